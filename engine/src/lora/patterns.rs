//! Ranks and alphas of single modules, as PEFT's `rank_pattern` and `alpha_pattern` say them: by the end of a
//! module's name, a regular expression. The first that fits counts.

use llguidance::derivre::Regex;
use serde_json::Value;

/// Entries of one pattern, and bytes of one key.
const MAX_ENTRIES: usize = 65_536;
const MAX_KEY_BYTES: usize = 512;

/// Values by modules' names.
#[derive(Default)]
pub(super) struct Patterns(Vec<(Key, f64)>);

enum Key {
    /// A name without anything that has a meaning in a regular expression but dots, or its end.
    Plain(String),
    Pattern(Box<std::cell::RefCell<Regex>>),
}

impl Patterns {
    /// Reads an object of numbers; or says what about it is wrong.
    pub(super) fn read(
        value: Option<&Value>,
        is_good: impl Fn(f64) -> Result<(), String>,
    ) -> Result<Self, String> {
        let Some(value) = value else { return Ok(Self::default()) };
        let Some(map) = value.as_object().filter(|map| map.len() <= MAX_ENTRIES) else {
            return Err(format!("must be an object of at most {MAX_ENTRIES} numbers by modules' names"));
        };
        let mut entries = Vec::with_capacity(map.len());
        for (key, value) in map {
            let shown: String = key.chars().take(80).collect();
            let number = value.as_f64().filter(|number| number.is_finite());
            let number = number.ok_or_else(|| format!("must hold a number for `{shown}`"))?;
            is_good(number).map_err(|problem| format!("for `{shown}` {problem}"))?;
            let key = Key::read(key).ok_or_else(|| format!("has the key `{shown}`, which is no pattern"))?;
            entries.push((key, number));
        }
        Ok(Self(entries))
    }

    /// What is said of a module of this name.
    pub(super) fn get(&self, module: &str) -> Option<f64> {
        self.0.iter().find(|(key, _)| key.fits(module)).map(|(_, value)| *value)
    }
}

impl Key {
    fn read(key: &str) -> Option<Self> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return None;
        }
        if key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
            return Some(Self::Plain(key.to_owned()));
        }
        // The whole name, where it is anchored, and else an end of it that begins at a dot.
        let key = key.strip_suffix('$').unwrap_or(key);
        let pattern = match key.strip_prefix('^') {
            Some(whole) => whole.to_owned(),
            None => format!("(?:.*\\.)?(?:{key})"),
        };
        Some(Self::Pattern(Box::new(Regex::new(&pattern).ok()?.into())))
    }

    fn fits(&self, module: &str) -> bool {
        match self {
            // A dot stands for any character, here as in PEFT.
            Self::Plain(key) => {
                let start = module.len().checked_sub(key.len());
                let Some(end) = start.and_then(|start| module.get(start..)) else { return false };
                let begins = module.len() == key.len() || module[..module.len() - key.len()].ends_with('.');
                begins && key.bytes().zip(end.bytes()).all(|(key, byte)| key == b'.' || key == byte)
            }
            Self::Pattern(regex) => regex.borrow_mut().is_match(module),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_that_fits_counts() {
        let said = json!({
            "layers.1.mlp.down_proj": 1, "^model.layers.0.self_attn.q_proj$": 2, r"layers\.[2-3]\..*_proj": 3,
            "q_proj": 4, "proj": 5,
        });
        let patterns = Patterns::read(Some(&said), |_| Ok(())).unwrap();
        for (module, value) in [
            ("model.layers.1.mlp.down_proj", Some(1.0)),
            ("model.layers.11.mlp.down_proj", None),
            ("model.layers.0.self_attn.q_proj", Some(2.0)),
            ("other.model.layers.0.self_attn.q_proj", Some(4.0)),
            ("model.layers.3.mlp.experts.5.gate_proj", Some(3.0)),
            ("model.layers.4.self_attn.q_proj", Some(4.0)),
            ("model.layers.4.self_attn.v_proj", None),
        ] {
            assert_eq!(patterns.get(module), value, "{module}");
        }
        let bad = |value: Value| Patterns::read(Some(&value), |_| Err("is bad".into())).err().unwrap();
        assert_eq!(bad(json!([])), "must be an object of at most 65536 numbers by modules' names");
        assert_eq!(bad(json!({"q": "x"})), "must hold a number for `q`");
        assert_eq!(bad(json!({"q": 1})), "for `q` is bad");
        let no_pattern = Patterns::read(Some(&json!({"(": 1})), |_| Ok(())).err().unwrap();
        assert_eq!(no_pattern, "has the key `(`, which is no pattern");
    }
}
