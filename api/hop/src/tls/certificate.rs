//! What a certificate says about its holder: the identity, and from when to when it holds. Who signed
//! it is judged elsewhere, by webpki.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::identity::Identity;

/// A leaf certificate's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its holder.
    pub identity: Identity,
    /// First second in which it holds, since 1970.
    pub not_before: i64,
    /// Last second in which it holds, since 1970.
    pub not_after: i64,
}

/// Why a certificate says nothing usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateProblem {
    /// It is no X.509 certificate.
    #[error("it is no X.509 certificate")]
    Encoding,
    /// No name in it, or more than one, is an identity.
    #[error("it names no single spiffe://strata/ns/NAMESPACE/COMPONENT")]
    Identity,
}

impl Certificate {
    /// Reads a certificate, without asking who signed it.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, CertificateProblem> {
        let parsed = EndEntityCert::try_from(der).map_err(|_| CertificateProblem::Encoding)?;
        let mut uris = parsed.valid_uri_names();
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(CertificateProblem::Identity);
        };
        let identity = Identity::parse(uri).ok_or(CertificateProblem::Identity)?;
        let (not_before, not_after) = validity(der).ok_or(CertificateProblem::Encoding)?;
        Ok(Self { identity, not_before, not_after })
    }
}

/// From when to when a certificate of any kind holds, in seconds since 1970.
pub fn validity(der: &[u8]) -> Option<(i64, i64)> {
    const SEQUENCE: u8 = 0x30;
    let expect = |input, wanted| element(input).filter(|(tag, ..)| *tag == wanted);
    let (_, certificate, _) = expect(der, SEQUENCE)?;
    let (_, signed, _) = expect(certificate, SEQUENCE)?;
    // Version (absent in the first one), serial number, algorithm, issuer.
    let mut rest = expect(signed, 0xa0).map_or(signed, |(_, _, rest)| rest);
    for tag in [0x02, SEQUENCE, SEQUENCE] {
        (_, _, rest) = expect(rest, tag)?;
    }
    let (_, validity, _) = expect(rest, SEQUENCE)?;
    let (tag, from, rest) = element(validity)?;
    let from = time(tag, from)?;
    let (tag, to, _) = element(rest)?;
    Some((from, time(tag, to)?))
}

/// The first DER element: its tag, its content, and what comes after it.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let bytes = usize::from(first & 0x7f);
        if !(1..=3).contains(&bytes) || rest.len() < bytes {
            return None;
        }
        length = rest[..bytes].iter().fold(0, |sum, &b| sum << 8 | usize::from(b));
        rest = &rest[bytes..];
    }
    (rest.len() >= length).then(|| (tag, &rest[..length], &rest[length..]))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, by its tag.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |part: &[u8]| part.iter().fold(0i64, |sum, &b| sum * 10 + i64::from(b - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (0x17, 12) => (number(&digits[..2]), &digits[2..]),
        (0x18, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    // X.509 has two-digit years from 1950 to 2049.
    let year = match tag {
        0x17 if year < 50 => 2000 + year,
        0x17 => 1900 + year,
        _ => year,
    };
    let part = |i: usize| number(&rest[2 * i..2 * i + 2]);
    let (month, day) = (part(0), part(1));
    let sound = (1..=12).contains(&month) && (1..=31).contains(&day);
    sound.then(|| days(year, month, day) * 86_400 + part(2) * 3600 + part(3) * 60 + part(4))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, whose year is counted from March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_seconds_since_1970() {
        assert_eq!(time(0x17, b"700101000000Z"), Some(0));
        assert_eq!(time(0x17, b"491231235959Z"), Some(2_524_607_999));
        assert_eq!(time(0x17, b"500101000000Z"), Some(-631_152_000));
        assert_eq!(time(0x18, b"20240229120000Z"), Some(1_709_208_000));
        assert_eq!(time(0x18, b"21000301000000Z"), Some(4_107_542_400));
        for wrong in [&b"20240229120000"[..], b"2024022912000Z", b"2024022912x000Z", b"20241329120000Z", b""]
        {
            assert_eq!(time(0x18, wrong), None);
        }
    }

    #[test]
    fn a_days_number_follows_the_day_before() {
        let length = |y: i64, m: i64| match m {
            2 if y % 4 == 0 && (y % 100 != 0 || y % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let mut expected = days(1950, 1, 1);
        for year in 1950..2500 {
            for month in 1..=12 {
                for day in 1..=length(year, month) {
                    assert_eq!(days(year, month, day), expected);
                    expected += 1;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = validity(&bytes);
            let _ = Certificate::parse(&CertificateDer::from(bytes));
        }
    }
}
