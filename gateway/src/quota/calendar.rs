//! Calendar periods in a time zone.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use strata_kinds::quota_policy::Period;

/// A period's first instant and the first instant after it, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub start: i64,
    /// Where the next begins.
    pub end: i64,
}

/// The period of this kind that `now` lies in. A day begins at the first instant of its date,
/// whatever the clocks do.
pub fn span(period: Period, zone: &TimeZone, now: i64) -> Span {
    let now = now.clamp(Timestamp::MIN.as_millisecond(), Timestamp::MAX.as_millisecond());
    local(period, zone, now).unwrap_or_else(|| {
        // Only at the ends of the calendar, thousands of years away.
        const DAY: i64 = 86_400_000;
        let start = now.div_euclid(DAY) * DAY;
        Span { start, end: start + DAY }
    })
}

fn local(period: Period, zone: &TimeZone, now: i64) -> Option<Span> {
    let today = Timestamp::from_millisecond(now).ok()?.to_zoned(zone.clone()).date();
    let (first, next) = match period {
        Period::Day => (today, today.tomorrow().ok()?),
        Period::Week => {
            let into = i64::from(today.weekday().to_monday_zero_offset());
            let monday = today.checked_sub(jiff::Span::new().try_days(into).ok()?).ok()?;
            (monday, monday.checked_add(jiff::Span::new().try_days(7).ok()?).ok()?)
        }
        Period::Month => (today.first_of_month(), today.last_of_month().tomorrow().ok()?),
    };
    let begin = |date: Date| Some(date.to_zoned(zone.clone()).ok()?.start_of_day().ok()?.timestamp());
    Some(Span { start: begin(first)?.as_millisecond(), end: begin(next)?.as_millisecond() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn hours(s: Span) -> i64 {
        (s.end - s.start) / 3_600_000
    }

    #[test]
    fn months_end_where_their_zone_says() {
        let utc = span(Period::Month, &TimeZone::UTC, at("2024-02-29T23:59:59Z"));
        assert_eq!(utc, Span { start: at("2024-02-01T00:00:00Z"), end: at("2024-03-01T00:00:00Z") });
        let tokyo = span(Period::Month, &zone("Asia/Tokyo"), at("2024-02-29T15:00:00Z"));
        assert_eq!(tokyo.start, at("2024-02-29T15:00:00Z"));
        let december = span(Period::Month, &TimeZone::UTC, at("2025-12-31T23:59:59.999Z"));
        assert_eq!(december.end, at("2026-01-01T00:00:00Z"));
    }

    #[test]
    fn weeks_begin_on_monday() {
        let week = span(Period::Week, &TimeZone::UTC, at("2026-11-22T12:00:00Z"));
        assert_eq!(week, Span { start: at("2026-11-16T00:00:00Z"), end: at("2026-11-23T00:00:00Z") });
        assert_eq!(span(Period::Week, &TimeZone::UTC, at("2026-11-23T00:00:00Z")).start, week.end);
    }

    #[test]
    fn days_are_as_long_as_the_clocks_make_them() {
        let berlin = zone("Europe/Berlin");
        assert_eq!(hours(span(Period::Day, &berlin, at("2026-03-29T12:00:00Z"))), 23);
        assert_eq!(hours(span(Period::Day, &berlin, at("2026-10-25T12:00:00Z"))), 25);
        // A date whose midnight does not exist begins at one o'clock.
        let santiago = span(Period::Day, &zone("America/Santiago"), at("2026-09-06T12:00:00Z"));
        assert_eq!(hours(santiago), 23);
    }

    proptest! {
        /// Periods tile time: every instant lies in its period, and the next begins where it ends.
        #[test]
        fn periods_tile_time(
            now in 0i64..4_000_000_000_000,
            name in proptest::sample::select(vec!["UTC", "Europe/Berlin", "America/Santiago", "Asia/Kathmandu", "Pacific/Apia", "Australia/Lord_Howe"]),
            period in proptest::sample::select(vec![Period::Day, Period::Week, Period::Month]),
        ) {
            let zone = zone(name);
            let s = span(period, &zone, now);
            prop_assert!(s.start <= now && now < s.end, "{s:?}");
            prop_assert_eq!(span(period, &zone, s.start), s);
            prop_assert_eq!(span(period, &zone, s.end - 1), s);
            prop_assert_eq!(span(period, &zone, s.end).start, s.end);
        }
    }
}
