//! One adapter of the command line, as vLLM writes them: `name=path`, or JSON.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An adapter that is served from the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraModule {
    /// The name that requests ask for.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// The base's name; it must be that of the model that is served.
    #[serde(default)]
    pub base_model_name: Option<String>,
}

impl FromStr for LoraModule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let module = match text.split_once('=') {
            Some((name, path)) if !text.trim_start().starts_with('{') => {
                Self { name: name.to_owned(), path: path.into(), base_model_name: None }
            }
            _ => serde_json::from_str(text).map_err(|e| {
                format!(
                    "{e}; expected name=path, or JSON such as {{\"name\":\"sql\",\"path\":\"/adapters/sql\"}}"
                )
            })?,
        };
        if module.name.trim().is_empty() {
            return Err("the adapter's name is empty; expected name=path".into());
        }
        if module.path.as_os_str().is_empty() {
            return Err(format!("the path of `{}` is empty; expected name=path", module.name));
        }
        Ok(module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_of_vllm_s_forms_are_read() {
        let read = |text: &str| text.parse::<LoraModule>();
        let module = |name: &str, path: &str, base: Option<&str>| LoraModule {
            name: name.into(),
            path: path.into(),
            base_model_name: base.map(str::to_owned),
        };
        assert_eq!(read("sql=/a/b=c"), Ok(module("sql", "/a/b=c", None)));
        let json = r#"{"name": "sql", "path": "/a=b", "base_model_name": "m"}"#;
        assert_eq!(read(json), Ok(module("sql", "/a=b", Some("m"))));
        for (bad, why) in [
            ("sql", "expected name=path"),
            ("=/a", "name is empty"),
            ("sql=", "path of `sql` is empty"),
            (r#"{"name": "sql"}"#, "missing field `path`"),
            (r#"{"name": "sql", "path": "/a", "rank": 1}"#, "unknown field `rank`"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
