//! Judges an object as the API server would: first its structure by the schema, then the rules.
//!
//! Pure. Messages say what is wrong and what to do; the path says where.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;

use kube::core::cel;
use regex::Regex;
use serde_json::{Map, Value};

use crate::schema::Kind;
use crate::suggest;

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Where, such as `spec.limits[0].window`. Empty for the object as a whole.
    pub path: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "`{}` {}", self.path, self.message)
        }
    }
}

/// Everything wrong with a new object of this kind.
pub fn validate(kind: Kind, object: &Value) -> Vec<FieldError> {
    judge(kind, object, None)
}

/// Everything wrong with an object that is to take the place of `old`.
pub fn validate_update(kind: Kind, object: &Value, old: &Value) -> Vec<FieldError> {
    judge(kind, object, Some(old))
}

fn judge(kind: Kind, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    Walk { errors: &mut errors }.value(kind.schema(), object, "");
    if errors.is_empty()
        && let Err(broken) = cel::validate_compiled(kind.rules(), object, old)
    {
        errors.extend(broken.into_iter().map(|e| FieldError { path: e.field_path, message: e.message }));
    }
    errors
}

struct Walk<'a> {
    errors: &'a mut Vec<FieldError>,
}

impl Walk<'_> {
    fn refuse(&mut self, path: &str, message: impl Into<String>) {
        self.errors.push(FieldError { path: path.to_owned(), message: message.into() });
    }

    fn value(&mut self, schema: &Value, value: &Value, path: &str) {
        if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
            match value {
                Value::String(text) => self.pattern(schema, text, path),
                Value::Number(n) if n.is_i64() || n.is_u64() => {}
                other => {
                    self.refuse(path, format!("must be an integer or a string, not {}", describe(other)));
                }
            }
            return;
        }
        let wanted = schema.get("type").and_then(Value::as_str);
        if let Some(wanted) = wanted
            && !is_of_type(value, wanted)
        {
            let hint = match (wanted, value) {
                ("integer" | "number" | "boolean", Value::String(text))
                    if serde_json::from_str::<Value>(text).is_ok_and(|v| is_of_type(&v, wanted)) =>
                {
                    ": remove the quotes"
                }
                ("string", Value::Number(_) | Value::Bool(_)) => ": put it in quotes",
                (_, Value::Null) => ": give it a value or remove the field",
                _ => "",
            };
            self.refuse(path, format!("must be {}, not {}{hint}", type_name(wanted), describe(value)));
            return;
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
            self.one_of(allowed, value, path);
        }
        match value {
            Value::Object(map) => self.object(schema, map, path),
            Value::Array(list) => self.list(schema, list, path),
            Value::String(text) => self.text(schema, text, path),
            Value::Number(number) => self.number(schema, number, path),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn one_of(&mut self, allowed: &[Value], value: &Value, path: &str) {
        if allowed.contains(value) {
            return;
        }
        let names: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        let meant = value
            .as_str()
            .and_then(|typed| suggest::nearest(typed, names.iter().copied()))
            .map_or_else(String::new, |name| format!(": did you mean {name}?"));
        self.refuse(path, format!("must be one of {}, not {}{meant}", names.join(", "), describe(value)));
    }

    fn object(&mut self, schema: &Value, map: &Map<String, Value>, path: &str) {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        for name in
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            if !map.contains_key(name) {
                let about = properties
                    .get(name)
                    .and_then(|p| p.get("description"))
                    .and_then(Value::as_str)
                    .and_then(|d| d.split(['\n']).next())
                    .map_or_else(String::new, |d| format!(" ({})", d.trim_end_matches('.')));
                self.refuse(&join(path, name), format!("is missing{about}"));
            }
        }
        let open = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
            || (properties.is_empty() && schema.get("additionalProperties").is_none());
        for (name, value) in map {
            let path = join(path, name);
            if let Some(property) = properties.get(name) {
                self.value(property, value, &path);
            } else if let Some(values) = schema.get("additionalProperties").filter(|s| s.is_object()) {
                self.value(values, value, &path);
            } else if !open {
                let known = properties.keys().map(String::as_str);
                let message = match suggest::nearest(name, known.clone()) {
                    Some(meant) => format!("is not a field: did you mean `{meant}`?"),
                    None => format!(
                        "is not a field; the fields here are {}",
                        known.collect::<Vec<_>>().join(", ")
                    ),
                };
                self.refuse(&path, message);
            }
        }
        if let Some(max) = limit(schema, "maxProperties")
            && map.len() > max
        {
            self.refuse(path, format!("has {} entries, and may have at most {max}", map.len()));
        }
    }

    fn list(&mut self, schema: &Value, list: &[Value], path: &str) {
        if let Some(max) = limit(schema, "maxItems")
            && list.len() > max
        {
            self.refuse(path, format!("has {} entries, and may have at most {max}", list.len()));
        }
        if let Some(min) = limit(schema, "minItems")
            && list.len() < min
        {
            self.refuse(path, format!("must have at least {min} entries"));
        }
        if let Some(items) = schema.get("items") {
            for (index, item) in list.iter().enumerate() {
                self.value(items, item, &format!("{path}[{index}]"));
            }
        }
        let keys: Vec<&str> = schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .map(|keys| keys.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let is_set = schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("set");
        if keys.is_empty() && !is_set {
            return;
        }
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (index, item) in list.iter().enumerate() {
            let identity = if is_set {
                item.to_string()
            } else {
                keys.iter()
                    .map(|k| item.get(k).unwrap_or(&Value::Null).to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            if let Some(first) = seen.get(&identity) {
                self.refuse(
                    &format!("{path}[{index}]"),
                    format!("repeats {identity} of `{path}[{first}]`: remove one"),
                );
            } else {
                seen.insert(identity, index);
            }
        }
    }

    fn text(&mut self, schema: &Value, text: &str, path: &str) {
        let length = text.chars().count();
        if let Some(min) = limit(schema, "minLength")
            && length < min
        {
            let message = if length == 0 {
                "must not be empty".to_owned()
            } else {
                format!("must have at least {min} characters")
            };
            self.refuse(path, message);
        }
        if let Some(max) = limit(schema, "maxLength")
            && length > max
        {
            self.refuse(path, format!("has {length} characters, and may have at most {max}"));
        }
        if schema.get("format").and_then(Value::as_str) == Some("date-time") && !is_date_time(text) {
            self.refuse(path, "must be a time as RFC 3339 has it, such as 2030-01-31T12:00:00Z");
        }
        self.pattern(schema, text, path);
    }

    fn pattern(&mut self, schema: &Value, text: &str, path: &str) {
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
            && !matches_pattern(pattern, text)
        {
            let about = schema.get("description").and_then(Value::as_str).map_or_else(
                || format!("must match {pattern}"),
                |d| format!("is not as it must be: {}", d.trim_end_matches('.')),
            );
            self.refuse(path, about);
        }
    }

    fn number(&mut self, schema: &Value, number: &serde_json::Number, path: &str) {
        let Some(value) = number.as_f64() else { return };
        if schema.get("format").and_then(Value::as_str) == Some("int32")
            && number.as_i64().is_none_or(|n| i32::try_from(n).is_err())
        {
            self.refuse(path, format!("must be between {} and {}, not {number}", i32::MIN, i32::MAX));
            return;
        }
        if let Some(min) = schema.get("minimum").and_then(Value::as_f64)
            && value < min
        {
            self.refuse(path, format!("must be at least {min}, not {number}"));
        }
        if let Some(max) = schema.get("maximum").and_then(Value::as_f64)
            && value > max
        {
            self.refuse(path, format!("must be at most {max}, not {number}"));
        }
    }
}

fn limit(schema: &Value, name: &str) -> Option<usize> {
    schema.get(name).and_then(Value::as_u64).map(|n| n as usize)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn is_of_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    }
}

fn type_name(wanted: &str) -> &str {
    match wanted {
        "object" => "a mapping of fields",
        "array" => "a list",
        "string" => "a string",
        "boolean" => "true or false",
        "integer" => "an integer",
        other => other,
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(text) if text.chars().count() > 40 => {
            format!("\"{}…\"", text.chars().take(40).collect::<String>())
        }
        other => other.to_string(),
    }
}

/// The patterns are those of the schemas, so that the cache stays small.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    static CACHE: Mutex<Option<HashMap<String, Option<Regex>>>> = Mutex::new(None);
    let mut cache = CACHE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let compiled = cache
        .get_or_insert_with(HashMap::new)
        .entry(pattern.to_owned())
        .or_insert_with(|| Regex::new(pattern).ok());
    compiled.as_ref().is_some_and(|regex| regex.is_match(text))
}

/// RFC 3339, as the API server takes it for the format `date-time`.
fn is_date_time(text: &str) -> bool {
    matches_pattern(
        "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)([.][0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$",
        text,
    )
}
