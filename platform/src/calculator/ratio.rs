//! Exact fractions of bounded size.

use std::cmp::Ordering;
use std::fmt;

/// Largest numerator and denominator: 36 digits, so that a remainder times ten still fits.
const MOST: u128 = 10u128.pow(36);
/// Digits shown of a decimal that does not end.
const DIGITS: usize = 16;

/// A fraction in lowest terms with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ratio {
    over: i128,
    under: i128,
}

/// Why a result cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RatioError {
    /// Division, or remainder, by zero, or a negative power of it.
    #[error("division by zero")]
    DivisionByZero,
    /// Numerator or denominator is too large.
    #[error("a number is too large: exact results hold at most 36 digits")]
    TooLarge,
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Ratio {
    /// `over / under` in lowest terms.
    pub(super) fn new(over: i128, under: i128) -> Result<Self, RatioError> {
        if under == 0 {
            return Err(RatioError::DivisionByZero);
        }
        let (a, b) = (over.unsigned_abs(), under.unsigned_abs());
        let shared = gcd(a, b).max(1);
        let (a, b) = (a / shared, b / shared);
        if a > MOST || b > MOST {
            return Err(RatioError::TooLarge);
        }
        let negative = (over < 0) != (under < 0);
        let over = if negative { -(a as i128) } else { a as i128 };
        Ok(Self { over, under: b as i128 })
    }

    /// A whole number.
    pub(super) fn whole(n: i128) -> Result<Self, RatioError> {
        Self::new(n, 1)
    }

    pub(super) fn is_whole(self) -> bool {
        self.under == 1
    }

    /// The value, when it is whole.
    pub(super) fn to_whole(self) -> Option<i128> {
        self.is_whole().then_some(self.over)
    }

    pub(super) fn neg(self) -> Self {
        Self { over: -self.over, ..self }
    }

    pub(super) fn abs(self) -> Self {
        Self { over: self.over.abs(), ..self }
    }

    pub(super) fn add(self, other: Self) -> Result<Self, RatioError> {
        let shared = gcd(self.under as u128, other.under as u128) as i128;
        let (mine, theirs) = (other.under / shared, self.under / shared);
        let over = product(self.over, mine)?.checked_add(product(other.over, theirs)?);
        Self::new(over.ok_or(RatioError::TooLarge)?, product(self.under, mine)?)
    }

    pub(super) fn sub(self, other: Self) -> Result<Self, RatioError> {
        self.add(other.neg())
    }

    pub(super) fn mul(self, other: Self) -> Result<Self, RatioError> {
        // Lowest terms across the two first, so that only a result that is too large overflows.
        let a = gcd(self.over.unsigned_abs(), other.under as u128).max(1) as i128;
        let b = gcd(other.over.unsigned_abs(), self.under as u128).max(1) as i128;
        Self::new(product(self.over / a, other.over / b)?, product(self.under / b, other.under / a)?)
    }

    pub(super) fn div(self, other: Self) -> Result<Self, RatioError> {
        if other.over == 0 {
            return Err(RatioError::DivisionByZero);
        }
        self.mul(Self::new(other.under, other.over)?)
    }

    /// The remainder with the sign of the divisor, as Python's `%`.
    pub(super) fn rem(self, other: Self) -> Result<Self, RatioError> {
        let times = self.div(other)?.floor();
        self.sub(times.mul(other)?)
    }

    /// A whole power, of either sign.
    pub(super) fn pow(self, exponent: i128) -> Result<Self, RatioError> {
        if exponent < 0 {
            return Self::whole(1)?.div(self)?.pow(-exponent);
        }
        let (mut result, mut square, mut left) = (Self::whole(1)?, self, exponent);
        loop {
            if left % 2 == 1 {
                result = result.mul(square)?;
            }
            left /= 2;
            if left == 0 {
                return Ok(result);
            }
            square = square.mul(square)?;
        }
    }

    pub(super) fn floor(self) -> Self {
        Self { over: self.over.div_euclid(self.under), under: 1 }
    }

    pub(super) fn ceil(self) -> Self {
        self.neg().floor().neg()
    }

    /// The nearest multiple of `10^-digits`; halves go away from zero.
    pub(super) fn round(self, digits: i128) -> Result<Self, RatioError> {
        let scale = Self::whole(10)?.pow(digits)?;
        let rounded = self.abs().mul(scale)?.add(Self::new(1, 2)?)?.floor().div(scale)?;
        Ok(if self.over < 0 { rounded.neg() } else { rounded })
    }

    pub(super) fn cmp(self, other: Self) -> Result<Ordering, RatioError> {
        Ok(self.sub(other)?.over.cmp(&0))
    }
}

fn product(a: i128, b: i128) -> Result<i128, RatioError> {
    a.checked_mul(b).ok_or(RatioError::TooLarge)
}

/// A decimal when it ends; else the fraction and its first digits.
impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_whole() {
            return write!(f, "{}", self.over);
        }
        let mut left = self.under;
        while left % 2 == 0 {
            left /= 2;
        }
        while left % 5 == 0 {
            left /= 5;
        }
        let ends = left == 1;
        let under = self.under as u128;
        let size = self.over.unsigned_abs();
        let mut text = format!("{}{}.", if self.over < 0 { "-" } else { "" }, size / under);
        let mut rest = size % under;
        let mut shown = 0;
        while rest != 0 && (ends || shown < DIGITS) {
            rest *= 10;
            text.push(char::from(b'0' + (rest / under) as u8));
            rest %= under;
            // Leading zeros tell nothing of a small number.
            shown += usize::from(shown > 0 || !text.ends_with('0'));
        }
        if ends { f.write_str(&text) } else { write!(f, "{}/{} ≈ {text}…", self.over, self.under) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ratio(over: i128, under: i128) -> Ratio {
        Ratio::new(over, under).unwrap()
    }

    #[test]
    fn decimals_that_end_are_shown_whole() {
        let shown = [(1, 8), (-5, 4), (1, 3), (-2, 7), (10, 5), (1, 3_000_000)]
            .map(|(a, b)| ratio(a, b).to_string())
            .join("\n");
        insta::assert_snapshot!(shown, @r"
        0.125
        -1.25
        1/3 ≈ 0.3333333333333333…
        -2/7 ≈ -0.2857142857142857…
        2
        1/3000000 ≈ 0.0000003333333333333333…
        ");
    }

    #[test]
    fn halves_go_away_from_zero() {
        for (value, digits, wanted) in
            [((5, 2), 0, "3"), ((-5, 2), 0, "-3"), ((2675, 1000), 2, "2.68"), ((1250, 1), -2, "1300")]
        {
            assert_eq!(ratio(value.0, value.1).round(digits).unwrap().to_string(), wanted);
        }
    }

    proptest! {
        /// The field's laws hold exactly wherever both sides can be had.
        #[test]
        fn laws_of_a_field(a in -9999i128..9999, b in 1i128..999, c in -9999i128..9999, d in 1i128..999, e in -99i128..99) {
            let (x, y, z) = (ratio(a, b), ratio(c, d), ratio(e, 7));
            prop_assert_eq!(x.add(y).unwrap(), y.add(x).unwrap());
            prop_assert_eq!(x.add(y).unwrap().sub(y).unwrap(), x);
            prop_assert_eq!(x.mul(y.add(z).unwrap()).unwrap(), x.mul(y).unwrap().add(x.mul(z).unwrap()).unwrap());
            if c != 0 {
                prop_assert_eq!(x.div(y).unwrap().mul(y).unwrap(), x);
                let rest = x.rem(y).unwrap();
                prop_assert!(rest.over == 0 || (rest.over < 0) == (c < 0));
                prop_assert!(rest.abs().cmp(y.abs()).unwrap().is_lt());
            }
            prop_assert_eq!(x.floor().cmp(x).unwrap().is_le(), true);
            prop_assert_eq!(x.ceil().cmp(x).unwrap().is_ge(), true);
        }

        /// Whatever the size: a result or an error, never a panic, and never a wrong sign.
        #[test]
        fn any_size_is_safe(a in any::<i128>(), b in any::<i128>(), c in any::<i128>(), d in any::<i128>(), n in -300i128..300) {
            if let (Ok(x), Ok(y)) = (Ratio::new(a, b), Ratio::new(c, d)) {
                for result in [x.add(y), x.mul(y), x.div(y), x.rem(y), x.pow(n), x.round(n)].into_iter().flatten() {
                    prop_assert!(result.under > 0);
                    let _ = result.to_string();
                }
            }
        }
    }
}
