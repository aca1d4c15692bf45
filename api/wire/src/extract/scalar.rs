//! Numbers and the words `true`, `false` and `null`, byte by byte.

/// How far a scalar has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    /// So many letters of a word.
    Word(Word, usize),
    /// A number's parts, as JSON's grammar names them.
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
    /// What can become nothing.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    True,
    False,
    Null,
}

impl Word {
    fn letters(self) -> &'static [u8] {
        match self {
            Self::True => b"true",
            Self::False => b"false",
            Self::Null => b"null",
        }
    }
}

/// Whether a byte can stand in a scalar: the first one that cannot ends it.
pub(super) fn continues(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

impl Scalar {
    pub(super) fn begin(byte: u8) -> Self {
        match byte {
            b't' => Self::Word(Word::True, 1),
            b'f' => Self::Word(Word::False, 1),
            b'n' => Self::Word(Word::Null, 1),
            b'-' => Self::Minus,
            b'0' => Self::Zero,
            b'1'..=b'9' => Self::Digits,
            _ => Self::Bad,
        }
    }

    pub(super) fn step(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Word(word, read), _) if word.letters().get(read) == Some(&byte) => {
                Self::Word(word, read + 1)
            }
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus, b'1'..=b'9') | (Self::Digits, b'0'..=b'9') => Self::Digits,
            (Self::Zero | Self::Digits, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Zero | Self::Digits | Self::Fraction, b'e' | b'E') => Self::Exponent,
            (Self::Exponent, b'+' | b'-') => Self::Sign,
            (Self::Exponent | Self::Sign | Self::Power, b'0'..=b'9') => Self::Power,
            _ => Self::Bad,
        }
    }

    /// Whether it may end here.
    pub(super) fn is_whole(self) -> bool {
        match self {
            Self::Word(word, read) => read == word.letters().len(),
            Self::Zero | Self::Digits | Self::Fraction | Self::Power => true,
            _ => false,
        }
    }

    pub(super) fn is_null(self) -> bool {
        matches!(self, Self::Word(Word::Null, _))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn takes(text: &[u8]) -> bool {
        let scalar = text
            .split_first()
            .map(|(first, rest)| rest.iter().fold(Scalar::begin(*first), |scalar, byte| scalar.step(*byte)));
        scalar.is_some_and(Scalar::is_whole)
    }

    proptest! {
        /// It takes what a full parser takes.
        #[test]
        fn agrees_with_a_full_parser(text in "[-+.eE0-9]{0,7}|-?[0-9]{1,3}(\\.[0-9]{0,2})?([eE][-+]?[0-9]{0,2})?|(true|false|null)[a-z]?|[a-z]{1,5}") {
            prop_assert_eq!(takes(text.as_bytes()), serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{}", text);
        }
    }
}
