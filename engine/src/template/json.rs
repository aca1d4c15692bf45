//! Templates' `tojson`, byte for byte as Hugging Face renders it (Python's `json.dumps` without
//! `ensure_ascii`): models were trained on that form.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Writes `{"a": 1, "b": 2}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// The filter. Other keyword arguments of Python's are accepted and change nothing that a template
/// here could ask for.
pub(super) fn tojson(value: &Value, kwargs: &Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<Value> = kwargs.get("ensure_ascii")?;
    let _: Option<Value> = kwargs.get("separators")?;
    let _: Option<Value> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    dump(value, indent)
        .map(Value::from_safe_string)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("cannot write a value as JSON: {e}")))
}

/// A value as JSON text.
pub(super) fn dump(value: &impl Serialize, indent: Option<usize>) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced))?,
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_pythons() {
        let value = serde_json::json!({"a": [1, 2.5, {"b": "<é>\n"}], "c": {}, "d": [], "e": null});
        assert_eq!(
            dump(&value, None).unwrap(),
            r#"{"a": [1, 2.5, {"b": "<é>\n"}], "c": {}, "d": [], "e": null}"#
        );
        assert_eq!(dump(&serde_json::json!({"a": [1]}), Some(2)).unwrap(), "{\n  \"a\": [\n    1\n  ]\n}");
    }
}
