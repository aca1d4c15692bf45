//! Kubernetes quantities and lengths of time, as far as Strata must compute with them.

use std::time::Duration;

/// A whole number of bytes such as `2Gi`, `500M` or `1048576`. `None` when it is malformed or does
/// not fit.
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let unit: u64 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "T" => 1000_u64.pow(4),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// CPU cores such as `2`, `0.5` or `500m`, in thousandths of a core.
pub fn milli_cores(text: &str) -> Option<u64> {
    if let Some(milli) = text.strip_suffix('m') {
        return milli.parse().ok();
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.chars().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) || fraction.len() > 3
    {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: u64 = format!("{fraction:0<3}").parse().ok()?;
    whole.checked_mul(1000)?.checked_add(fraction)
}

/// A length of time such as `500ms`, `5m` or `1h`, as the schemas write it. `None` when it is malformed.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_have_decimal_and_binary_units() {
        assert_eq!(bytes("2Gi"), Some(2 << 30));
        assert_eq!(bytes("500M"), Some(500_000_000));
        assert_eq!(bytes("17"), Some(17));
        for bad in ["", "Gi", "1.5Gi", "-1", "1gi", "99999999999999999999", "99999999999999Ti"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn cores_are_thousandths() {
        assert_eq!(milli_cores("2"), Some(2000));
        assert_eq!(milli_cores("0.5"), Some(500));
        assert_eq!(milli_cores("250m"), Some(250));
        for bad in ["", ".", "m", "1.0001", "-1", "two", "99999999999999999999"] {
            assert_eq!(milli_cores(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("15m"), Some(Duration::from_secs(900)));
        assert_eq!(duration("2d"), Some(Duration::from_secs(172_800)));
        for bad in ["", "5", "m", "1.5h", "-1s", "1w", "99999999999999999999d", "999999999999999999d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = (bytes(&text), milli_cores(&text), duration(&text));
        }
    }
}
