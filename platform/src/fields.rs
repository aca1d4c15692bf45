//! Reads the members of a JSON object one by one, so that a wrong one is named with its full path and
//! an unknown one is never ignored.

use serde_json::{Map, Value};
use strata_hop::Fault;

use crate::refusal::not_built;

/// The members of one object that were not read yet. A member that is `null` counts as absent.
pub(crate) struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The members of `value`, which stands at `path`; the empty path is the body itself.
    pub(crate) fn new(path: impl Into<String>, value: Value) -> Result<Self, Fault> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(wrong(&path, "an object", &other)),
        }
    }

    /// The full path of a member.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Takes a member of any type.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key).filter(|v| !v.is_null())
    }

    /// Takes a member that must be there.
    pub(crate) fn required(&mut self, key: &str) -> Result<Value, Fault> {
        self.take(key).ok_or_else(|| {
            let path = self.path(key);
            let mut fault = Fault::invalid_param(&path, format!("missing required parameter: '{path}'"));
            fault.body.error.code = Some("missing_required_parameter".to_owned());
            fault
        })
    }

    /// Takes a text.
    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>, Fault> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(wrong(&self.path(key), "a string", &other)),
        }
    }

    /// Takes a text that must be there and not be empty.
    pub(crate) fn required_text(&mut self, key: &str) -> Result<String, Fault> {
        let value = self.required(key)?;
        match value {
            Value::String(s) if !s.is_empty() => Ok(s),
            other => Err(wrong(&self.path(key), "a string that is not empty", &other)),
        }
    }

    /// Takes a text that must be there and may be empty.
    pub(crate) fn required_any_text(&mut self, key: &str) -> Result<String, Fault> {
        let value = self.required(key)?;
        match value {
            Value::String(s) => Ok(s),
            other => Err(wrong(&self.path(key), "a string", &other)),
        }
    }

    /// Takes a truth value.
    pub(crate) fn flag(&mut self, key: &str) -> Result<Option<bool>, Fault> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(wrong(&self.path(key), "true or false", &other)),
        }
    }

    /// Takes a whole number of at least `least`.
    pub(crate) fn count(&mut self, key: &str, least: u64) -> Result<Option<u64>, Fault> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|n| *n >= least && i64::try_from(*n).is_ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(wrong(&self.path(key), &format!("a whole number of at least {least}"), &value)),
            },
        }
    }

    /// Takes a number within bounds.
    pub(crate) fn number(&mut self, key: &str, least: f64, most: f64) -> Result<Option<f64>, Fault> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|n| (least..=most).contains(n)) {
                Some(n) => Ok(Some(n)),
                None => Err(wrong(&self.path(key), &format!("a number from {least} to {most}"), &value)),
            },
        }
    }

    /// Refuses these members, if they are there, as known and not built.
    pub(crate) fn refuse(&mut self, keys: &[&str]) -> Result<(), Fault> {
        match keys.iter().find(|key| self.take(key).is_some()) {
            Some(key) => Err(not_built(&self.path(key), "this parameter")),
            None => Ok(()),
        }
    }

    /// Refuses this member unless its value is one of those that change nothing.
    pub(crate) fn only(&mut self, key: &str, harmless: &[Value]) -> Result<(), Fault> {
        match self.take(key) {
            Some(value) if !harmless.contains(&value) => {
                let what = match value {
                    Value::Array(_) | Value::Object(_) => "this value".to_owned(),
                    scalar => format!("the value {}", shown(&scalar)),
                };
                Err(not_built(&self.path(key), &what))
            }
            _ => Ok(()),
        }
    }

    /// Refuses whatever was not read.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        match self.map.iter().find(|(_, v)| !v.is_null()) {
            None => Ok(()),
            Some((key, _)) => {
                let path = self.path(key);
                let mut fault = Fault::invalid_param(&path, format!("unknown parameter: '{path}'"));
                fault.body.error.code = Some("unknown_parameter".to_owned());
                Err(fault)
            }
        }
    }
}

/// 400: the value at `path` is of the wrong type or out of bounds.
pub(crate) fn wrong(path: &str, wanted: &str, got: &Value) -> Fault {
    let name = if path.is_empty() { "the body".to_owned() } else { format!("'{path}'") };
    let mut fault =
        Fault::invalid(format!("invalid value for {name}: expected {wanted}, got {}", shown(got)));
    if !path.is_empty() {
        fault = fault.param(path);
    }
    fault
}

/// A value as errors show it: scalars as they are when short, the rest by their type, so that an error
/// never repeats a prompt.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(s) if s.len() <= 40 => format!("{s:?}"),
        Value::String(_) => "a longer string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// At most 16 pairs of texts: keys of up to 64 characters, values of up to 512.
pub(crate) fn metadata(path: &str, value: Option<Value>) -> Result<Map<String, Value>, Fault> {
    let map = match value {
        None => return Ok(Map::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong(path, "an object", &other)),
    };
    let refuse = |what: String| Err(Fault::invalid_param(path, format!("invalid '{path}': {what}")));
    if map.len() > 16 {
        return refuse(format!("{} pairs, and 16 is the limit", map.len()));
    }
    for (key, value) in &map {
        if key.chars().count() > 64 {
            return refuse("a key is longer than 64 characters".to_owned());
        }
        match value {
            Value::String(s) if s.chars().count() <= 512 => {}
            Value::String(_) => {
                return refuse(format!("the value of '{key}' is longer than 512 characters"));
            }
            other => return refuse(format!("the value of '{key}' must be a string, not {}", shown(other))),
        }
    }
    Ok(map)
}
