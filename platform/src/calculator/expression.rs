//! The calculator's language: numbers, `+ - * / % ^`, parentheses and a few functions.

use super::ratio::{Ratio, RatioError};

/// Longest expression, in bytes.
const MAX_BYTES: usize = 2048;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Largest exponent, of either sign.
const MAX_EXPONENT: i128 = 4096;

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExpressionError {
    #[error("the expression is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("the expression is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("expected {wanted} at position {at}, found {found}")]
    Syntax { at: usize, wanted: &'static str, found: String },
    #[error("unknown name `{0}`; known are abs, ceil, floor, max, min, round")]
    UnknownName(String),
    #[error("{name} takes {wanted}, not {got}")]
    Arity { name: &'static str, wanted: &'static str, got: usize },
    #[error("an exponent, or round's digits, must be a whole number from -{MAX_EXPONENT} to {MAX_EXPONENT}")]
    Exponent,
    #[error(transparent)]
    Value(#[from] RatioError),
}

type Outcome = Result<Ratio, ExpressionError>;

/// The value of an expression.
pub(super) fn evaluate(text: &str) -> Outcome {
    if text.len() > MAX_BYTES {
        return Err(ExpressionError::TooLong);
    }
    let mut reader = Reader { text: text.as_bytes(), at: 0, depth: 0 };
    let value = reader.sum()?;
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(reader.expected("an operator or the end")),
    }
}

struct Reader<'t> {
    text: &'t [u8],
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<u8> {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn expected(&mut self, wanted: &'static str) -> ExpressionError {
        let found = if self.peek().is_none() {
            "the end".to_owned()
        } else {
            let rest = String::from_utf8_lossy(&self.text[self.at..]);
            format!("`{}`", rest.chars().next().unwrap_or('?'))
        };
        ExpressionError::Syntax { at: self.at + 1, wanted, found }
    }

    fn deeper(&mut self, inner: fn(&mut Self) -> Outcome) -> Outcome {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ExpressionError::TooDeep);
        }
        let value = inner(self);
        self.depth -= 1;
        value
    }

    fn sum(&mut self) -> Outcome {
        let mut value = self.product()?;
        loop {
            if self.eat(b'+') {
                value = value.add(self.product()?)?;
            } else if self.eat(b'-') {
                value = value.sub(self.product()?)?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Outcome {
        let mut value = self.signed()?;
        loop {
            // `**` is a power, and the power before it has taken it.
            if self.eat(b'*') {
                value = value.mul(self.signed()?)?;
            } else if self.eat(b'/') {
                value = value.div(self.signed()?)?;
            } else if self.eat(b'%') {
                value = value.rem(self.signed()?)?;
            } else {
                return Ok(value);
            }
        }
    }

    /// A sign binds weaker than a power: `-2^2` is −4.
    fn signed(&mut self) -> Outcome {
        if self.eat(b'-') {
            Ok(self.deeper(Self::signed)?.neg())
        } else if self.eat(b'+') {
            self.deeper(Self::signed)
        } else {
            self.power()
        }
    }

    /// Powers group to the right: `2^3^2` is 512.
    fn power(&mut self) -> Outcome {
        let base = self.atom()?;
        if self.eat(b'^') || self.eat_double_star() {
            let exponent = self.deeper(Self::signed)?;
            return Ok(base.pow(small(exponent)?)?);
        }
        Ok(base)
    }

    fn eat_double_star(&mut self) -> bool {
        let there = self.peek() == Some(b'*') && self.text.get(self.at + 1) == Some(&b'*');
        self.at += if there { 2 } else { 0 };
        there
    }

    fn atom(&mut self) -> Outcome {
        match self.peek() {
            Some(b'(') => {
                self.at += 1;
                let value = self.deeper(Self::sum)?;
                if self.eat(b')') { Ok(value) } else { Err(self.expected("`)`")) }
            }
            Some(b'0'..=b'9' | b'.') => self.number(),
            Some(b'a'..=b'z' | b'A'..=b'Z') => self.function(),
            _ => Err(self.expected("a number, a name or `(`")),
        }
    }

    fn number(&mut self) -> Outcome {
        let (mut value, mut digits, mut places, mut in_fraction) = (0i128, 0, 0i128, false);
        while let Some(&byte) = self.text.get(self.at) {
            match byte {
                b'0'..=b'9' => {
                    value = value
                        .checked_mul(10)
                        .and_then(|v| v.checked_add(i128::from(byte - b'0')))
                        .ok_or(RatioError::TooLarge)?;
                    digits += 1;
                    places += i128::from(in_fraction);
                }
                b'.' if !in_fraction => in_fraction = true,
                _ => break,
            }
            self.at += 1;
        }
        if digits == 0 {
            return Err(self.expected("a digit"));
        }
        let mut exponent = -places;
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            exponent += self.exponent()?;
        }
        let scale = Ratio::whole(10)?.pow(exponent)?;
        Ok(Ratio::whole(value)?.mul(scale)?)
    }

    fn exponent(&mut self) -> Result<i128, ExpressionError> {
        let negative = match self.text.get(self.at) {
            Some(b'-') => true,
            Some(b'+') => false,
            _ => {
                self.at -= 1;
                false
            }
        };
        self.at += 1;
        let (mut value, start) = (0i128, self.at);
        while let Some(&byte @ b'0'..=b'9') = self.text.get(self.at) {
            value = value * 10 + i128::from(byte - b'0');
            if value > MAX_EXPONENT {
                return Err(ExpressionError::Exponent);
            }
            self.at += 1;
        }
        if self.at == start {
            return Err(self.expected("an exponent"));
        }
        Ok(if negative { -value } else { value })
    }

    fn function(&mut self) -> Outcome {
        let start = self.at;
        while self.text.get(self.at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_') {
            self.at += 1;
        }
        let name = String::from_utf8_lossy(&self.text[start..self.at]).to_ascii_lowercase();
        if !["abs", "ceil", "floor", "max", "min", "round"].contains(&name.as_str()) {
            return Err(ExpressionError::UnknownName(name));
        }
        if !self.eat(b'(') {
            return Err(self.expected("`(`"));
        }
        let mut values = vec![self.deeper(Self::sum)?];
        while self.eat(b',') {
            values.push(self.deeper(Self::sum)?);
        }
        if !self.eat(b')') {
            return Err(self.expected("`,` or `)`"));
        }
        apply(&name, &values)
    }
}

fn small(value: Ratio) -> Result<i128, ExpressionError> {
    value.to_whole().filter(|n| n.abs() <= MAX_EXPONENT).ok_or(ExpressionError::Exponent)
}

fn apply(name: &str, values: &[Ratio]) -> Outcome {
    let pick = |wanted| {
        values
            .iter()
            .skip(1)
            .try_fold(values[0], |best, v| -> Outcome { Ok(if v.cmp(best)? == wanted { *v } else { best }) })
    };
    Ok(match (name, values) {
        ("abs", [x]) => x.abs(),
        ("floor", [x]) => x.floor(),
        ("ceil", [x]) => x.ceil(),
        ("round", [x]) => x.round(0)?,
        ("round", [x, digits]) => x.round(small(*digits)?)?,
        ("min", _) => pick(std::cmp::Ordering::Less)?,
        ("max", _) => pick(std::cmp::Ordering::Greater)?,
        ("abs", _) => return Err(arity("abs", "one value", values)),
        ("floor", _) => return Err(arity("floor", "one value", values)),
        ("ceil", _) => return Err(arity("ceil", "one value", values)),
        _ => return Err(arity("round", "one or two values", values)),
    })
}

fn arity(name: &'static str, wanted: &'static str, values: &[Ratio]) -> ExpressionError {
    ExpressionError::Arity { name, wanted, got: values.len() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        match evaluate(text) {
            Ok(value) => format!("{text} = {value}"),
            Err(error) => format!("{text}: {error}"),
        }
    }

    #[test]
    fn values() {
        let shown = [
            "0.1 + 0.2",
            "(19.99 * 3 + 4.5) / 2",
            "-2^2",
            "2^3^2",
            "2 ** -3",
            "7 % 3 - -7 % 3",
            "1.5e3 / 7",
            "round(2/3, 2) + floor(-1.5) + ceil(0.2)",
            "max(1, 1/3, 7/2) * min(2, .5)",
            "2^100",
            "--3",
        ]
        .map(shown)
        .join("\n");
        insta::assert_snapshot!(shown, @r"
        0.1 + 0.2 = 0.3
        (19.99 * 3 + 4.5) / 2 = 32.235
        -2^2 = -4
        2^3^2 = 512
        2 ** -3 = 0.125
        7 % 3 - -7 % 3 = -1
        1.5e3 / 7 = 1500/7 ≈ 214.2857142857142857…
        round(2/3, 2) + floor(-1.5) + ceil(0.2) = -0.33
        max(1, 1/3, 7/2) * min(2, .5) = 1.75
        2^100 = 1267650600228229401496703205376
        --3 = 3
        ");
    }

    #[test]
    fn errors() {
        let deep = "(".repeat(200);
        let long = "1+".repeat(2000);
        let shown = [
            "",
            "1 +",
            "1 2",
            "(1",
            "1/0",
            "0^-1",
            "2^200",
            "2^0.5",
            "sqrt(2)",
            "abs(1,2)",
            "1e",
            "1e9999",
            ".",
            "2 × 3",
            "round(1, 99999)",
        ]
        .map(shown)
        .into_iter()
        .chain([&deep, &long].map(|t| evaluate(t).unwrap_err().to_string()))
        .collect::<Vec<_>>()
        .join("\n");
        insta::assert_snapshot!(shown, @r"
        : expected a number, a name or `(` at position 1, found the end
        1 +: expected a number, a name or `(` at position 4, found the end
        1 2: expected an operator or the end at position 3, found `2`
        (1: expected `)` at position 3, found the end
        1/0: division by zero
        0^-1: division by zero
        2^200: a number is too large: exact results hold at most 36 digits
        2^0.5: an exponent, or round's digits, must be a whole number from -4096 to 4096
        sqrt(2): unknown name `sqrt`; known are abs, ceil, floor, max, min, round
        abs(1,2): abs takes one value, not 2
        1e: expected an exponent at position 3, found the end
        1e9999: an exponent, or round's digits, must be a whole number from -4096 to 4096
        .: expected a digit at position 2, found the end
        2 × 3: expected an operator or the end at position 3, found `×`
        round(1, 99999): an exponent, or round's digits, must be a whole number from -4096 to 4096
        the expression is nested deeper than 64 levels
        the expression is longer than 2048 bytes
        ");
    }

    /// An expression's text, fully in parentheses, with its value by plain fractions.
    fn tree() -> impl Strategy<Value = (String, Option<(i128, i128)>)> {
        let leaf = (-50i128..50).prop_map(|n| (format!("({n})"), Some((n, 1))));
        leaf.prop_recursive(4, 24, 2, |inner| {
            (inner.clone(), prop::sample::select(vec!['+', '-', '*', '/']), inner).prop_map(
                |((a, x), op, (b, y))| {
                    let value = x.zip(y).and_then(|((p, q), (r, s))| match op {
                        '+' => Some((p * s + r * q, q * s)),
                        '-' => Some((p * s - r * q, q * s)),
                        '*' => Some((p * r, q * s)),
                        _ if r == 0 => None,
                        _ => Some((p * s, q * r)),
                    });
                    (format!("({a} {op} {b})"), value)
                },
            )
        })
    }

    proptest! {
        #[test]
        fn agrees_with_plain_fractions((text, value) in tree()) {
            let wanted = value.map_or(Err(RatioError::DivisionByZero.into()), |(p, q)| Ok(Ratio::new(p, q)?));
            prop_assert_eq!(evaluate(&text), wanted);
        }

        #[test]
        fn any_text_is_safe(text in "[-+*/%^().,0-9a-z eE×]{0,60}") {
            let _ = evaluate(&text);
        }
    }
}
