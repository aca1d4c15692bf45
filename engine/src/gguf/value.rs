//! A value of a GGUF file's metadata.

use super::GgufError;

/// A metadata value. The integer widths of the file are folded into two.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// Values of one kind.
    Array(Vec<Value>),
}

impl Value {
    /// The value as a non-negative integer, whichever width it was written in.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The value as an integer.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Unsigned(n) => i64::try_from(*n).ok(),
            Self::Signed(n) => Some(*n),
            _ => None,
        }
    }

    /// The value as a 32-bit float.
    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Self::F32(x) => Some(*x),
            Self::F64(x) => Some(*x as f32),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    /// The value as true or false.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Unsigned(n) => n.to_string(),
            Self::Signed(n) => n.to_string(),
            Self::F32(x) => format!("{x:?}"),
            Self::F64(x) => format!("{x:?}"),
            Self::Bool(b) => b.to_string(),
            Self::String(s) => format!("{s:?}"),
            Self::Array(items) => format!("an array of {}", items.len()),
        }
    }

    /// Turns an array's items by `one`; `expected` names them in the error.
    pub(super) fn into_list<T>(
        self,
        key: &str,
        expected: &'static str,
        one: impl Fn(Value) -> Result<T, Value>,
    ) -> Result<Vec<T>, GgufError> {
        let wrong =
            |found: &Value| GgufError::WrongValue { key: key.to_owned(), expected, found: found.describe() };
        match self {
            Self::Array(items) => {
                items.into_iter().map(|item| one(item).map_err(|bad| wrong(&bad))).collect()
            }
            other => Err(wrong(&other)),
        }
    }
}
