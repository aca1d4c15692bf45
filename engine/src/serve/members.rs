//! The members of a request's body, read one by one, so that every error names the member, what it
//! must be, and what it is.

use std::fmt::Display;
use std::ops::RangeInclusive;

use bytes::Bytes;
use serde_json::{Map, Value};
use strata_hop::{Fault, spool};
use strata_wire::ErrorKind;
use strata_wire::defaults;
use strata_wire::toplevel::TopLevel;

/// JSON values in one body. Each takes tens of bytes in memory, so that a body of nothing but short
/// ones would take a hundred times its size.
const MAX_VALUES: usize = 1 << 21;

/// A request's body: a JSON object.
#[derive(Debug)]
pub(super) struct Members {
    map: Map<String, Value>,
    body: Bytes,
}

impl Members {
    /// Reads and parses a body.
    pub(super) async fn read(body: axum::body::Body) -> Result<Self, Fault> {
        Self::parse(&spool::read(body, defaults::MAX_BODY_BYTES).await?)
    }

    pub(super) fn parse(body: &Bytes) -> Result<Self, Fault> {
        // The scan refuses what two readers could read differently: a key that stands twice.
        TopLevel::scan(body).map_err(|e| Fault::from_body(ErrorKind::InvalidRequest, e.to_body()))?;
        // A value takes two bytes at least, with what parts it from the next.
        if body.len() > MAX_VALUES {
            let values = count_values(body);
            if values > MAX_VALUES {
                let message = format!(
                    "the body holds {values} JSON values and at most {MAX_VALUES} are taken; send fewer"
                );
                return Err(Fault::new(ErrorKind::TooLarge, message));
            }
        }
        serde_json::from_slice(body)
            .map(|map| Self { map, body: body.clone() })
            .map_err(|e| Fault::invalid(format!("the body is not valid JSON: {e}")))
    }

    /// The body as it came.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// A member that is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Fault> {
        self.get(name).map(|v| v.as_str().ok_or_else(|| wrong(name, "a string", v))).transpose()
    }

    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, Fault> {
        self.get(name).map(|v| v.as_bool().ok_or_else(|| wrong(name, "true or false", v))).transpose()
    }

    pub(super) fn array(&self, name: &str) -> Result<Option<&[Value]>, Fault> {
        self.get(name)
            .map(|v| v.as_array().map(Vec::as_slice).ok_or_else(|| wrong(name, "an array", v)))
            .transpose()
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>, Fault> {
        self.get(name).map(|v| v.as_object().ok_or_else(|| wrong(name, "an object", v))).transpose()
    }

    /// A whole number in a range.
    pub(super) fn whole(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Fault> {
        let wanted = |got: &Value| match (range.start(), range.end()) {
            // Only who exceeds it has to know the range of 64 bits.
            (start, end) if beyond(got) => format!("a whole number from {start} to {end}"),
            (&i64::MIN, &i64::MAX) => "a whole number".to_owned(),
            (start, &i64::MAX) => format!("a whole number, at least {start}"),
            (start, end) => format!("a whole number from {start} to {end}"),
        };
        self.get(name).map(|v| whole(v, &range).ok_or_else(|| wrong(name, &wanted(v), v))).transpose()
    }

    /// A number in a range.
    pub(super) fn number(&self, name: &str, range: Bounds) -> Result<Option<f32>, Fault> {
        self.get(name)
            .map(|v| {
                v.as_f64()
                    .filter(|n| range.contains(*n))
                    .map(|n| n as f32)
                    .ok_or_else(|| wrong(name, &format!("a number {range}"), v))
            })
            .transpose()
    }

    /// Refuses a member whose effect is not built, unless its value asks for nothing.
    pub(super) fn unbuilt(
        &self,
        name: &str,
        harmless: fn(&Value) -> bool,
        instead: &str,
    ) -> Result<(), Fault> {
        match self.get(name) {
            Some(value) if !harmless(value) => Err(not_built(name, instead)),
            _ => Ok(()),
        }
    }
}

/// Values in a JSON text, give or take the empty arrays and objects.
fn count_values(json: &[u8]) -> usize {
    let (mut values, mut quoted, mut escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => values += 1,
            _ => {}
        }
    }
    values
}

/// The refusal of something that exists elsewhere and not here.
pub(super) fn not_built(name: &str, instead: &str) -> Fault {
    Fault::invalid_param(name, format!("`{name}` is not built yet in this engine; {instead}"))
}

/// The refusal of a value, which is quoted when it is short.
pub(super) fn wrong(name: &str, wanted: &str, got: &Value) -> Fault {
    let got = match got {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    Fault::invalid_param(name, format!("`{name}` must be {wanted}, and it is {got}"))
}

/// A whole number in a range; `1.0` counts as one.
pub(super) fn whole(value: &Value, range: &RangeInclusive<i64>) -> Option<i64> {
    let number = value
        .as_i64()
        .or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64));
    number.filter(|n| range.contains(n))
}

/// Whether a number is larger than those that are counted in.
fn beyond(value: &Value) -> bool {
    value.as_i64().is_none() && value.as_f64().is_some_and(|number| number.abs() >= 9e15)
}

/// A range of numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) low: f64,
    /// Whether `low` itself is in the range.
    pub(super) includes_low: bool,
    pub(super) high: f64,
}

impl Bounds {
    /// From `low` to `high`, both included.
    pub(super) const fn closed(low: f64, high: f64) -> Self {
        Self { low, includes_low: true, high }
    }

    /// Above `low`, up to and with `high`.
    pub(super) const fn above(low: f64, high: f64) -> Self {
        Self { low, includes_low: false, high }
    }

    fn contains(self, n: f64) -> bool {
        n <= self.high && if self.includes_low { n >= self.low } else { n > self.low }
    }
}

impl Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.includes_low {
            write!(f, "from {} to {}", self.low, self.high)
        } else {
            write!(f, "above {} and at most {}", self.low, self.high)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_texts() {
        assert_eq!(count_values(br#"{"a": [1, 2, {"b": 3}], "c": "x,[\",{"}"#), 7);
        assert_eq!(count_values(br#"{"prompt": "\\", "n": 1}"#), 3);
    }

    #[test]
    fn a_body_of_very_many_values_is_refused_and_a_long_text_is_not() {
        let ids = format!(r#"{{"prompt": [{}1]}}"#, "1,".repeat(MAX_VALUES));
        let fault = Members::parse(&ids.into()).unwrap_err();
        insta::assert_snapshot!(String::from_utf8_lossy(&fault.body.to_bytes()), @r#"{"error":{"message":"the body holds 2097155 JSON values and at most 2097152 are taken; send fewer","type":"invalid_request_error","param":null,"code":"request_too_large"}}"#);
        let text = format!(r#"{{"prompt": "{}"}}"#, "[1,".repeat(MAX_VALUES));
        assert!(Members::parse(&text.into()).is_ok());
    }
}
