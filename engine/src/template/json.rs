//! Templates' `tojson`, byte for byte as Hugging Face renders it (Python's `json.dumps` without
//! `ensure_ascii`): models were trained on that form.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};
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

/// Widest indentation.
const MAX_INDENT: usize = 64;
/// Bytes of JSON that one step of a template's work pays for, as in the template engine itself: writing it
/// is slower than copying.
const BYTES_A_STEP: usize = 4;

/// What a template makes, paid for as it grows: a value can be small and its text without an end.
struct Paid<'a, 'env> {
    text: Vec<u8>,
    settled: usize,
    state: &'a State<'a, 'env>,
}

impl io::Write for Paid<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        let steps = (self.text.len() - self.settled) / BYTES_A_STEP;
        self.settled += steps * BYTES_A_STEP;
        self.state.consume_fuel(steps as u64).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The filter. Other keyword arguments of Python's are accepted and change nothing that a template
/// here could ask for.
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, kwargs: &Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        let message = format!("tojson: indent must be at most {MAX_INDENT}");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let _: Option<Value> = kwargs.get("ensure_ascii")?;
    let _: Option<Value> = kwargs.get("separators")?;
    let _: Option<Value> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let mut paid = Paid { text: Vec::new(), settled: 0, state };
    write(&mut paid, value, indent).map_err(|error| {
        // Spent fuel stays spent: this says again what stopped the writing.
        state.consume_fuel(1).err().unwrap_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, format!("cannot write a value as JSON: {error}"))
        })
    })?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&paid.text).into_owned()))
}

/// A value as JSON text.
pub(super) fn dump(value: &impl Serialize, indent: Option<usize>) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    write(&mut out, value, indent)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn write(
    out: impl io::Write,
    value: &impl Serialize,
    indent: Option<usize>,
) -> Result<(), serde_json::Error> {
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(out, Spaced)),
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(out, formatter))
        }
    }
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
