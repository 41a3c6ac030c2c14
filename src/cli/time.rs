//! Points in time as people write and read them.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

/// What `parse_time` takes, for help texts and errors.
pub const FORMS: &str =
    "a time such as 2026-11-22T12:00:00+01:00, '2026-11-22 12:00', 12:00, 'today 12:00', 'yesterday', '10m' (ago), now";

/// Reads a point in time, in ms since the Unix epoch. What has no zone is in the zone of `now`.
///
/// # Errors
/// The text is none of [`FORMS`].
pub fn parse_time(text: &str, now: &Zoned) -> Result<u64, String> {
    let text = text.trim();
    let found = parse_absolute(text)
        .or_else(|| parse_ago(text, now))
        .or_else(|| parse_local(text, now))
        .ok_or_else(|| format!("'{text}' is no time; write {FORMS}"))?;
    u64::try_from(found.as_millisecond()).map_err(|_| format!("'{text}' is before 1970"))
}

/// A moment as RFC 3339 with ms, in a zone.
pub fn format_ms(ms: u64, zone: &TimeZone) -> String {
    match i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()) {
        Some(moment) => moment.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string(),
        None => format!("{ms} ms"),
    }
}

/// How long ago, roughly: `3 s`, `12 min`, `5 h`, `9 days`.
pub fn format_age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The local zone, or UTC.
pub fn zone(utc: bool) -> TimeZone {
    if utc { TimeZone::UTC } else { TimeZone::system() }
}

fn parse_absolute(text: &str) -> Option<Timestamp> {
    if text == "now" {
        return Some(Timestamp::now());
    }
    text.parse().ok()
}

fn parse_ago(text: &str, now: &Zoned) -> Option<Timestamp> {
    let text = text.strip_suffix("ago").map_or(text, str::trim_end);
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let count: i64 = text[..digits].parse().ok()?;
    let span: Span = match text[digits..].trim() {
        "ms" => Span::new().try_milliseconds(count),
        "s" | "sec" | "second" | "seconds" => Span::new().try_seconds(count),
        "m" | "min" | "minute" | "minutes" => Span::new().try_minutes(count),
        "h" | "hour" | "hours" => Span::new().try_hours(count),
        "d" | "day" | "days" => Span::new().try_days(count),
        "w" | "week" | "weeks" => Span::new().try_weeks(count),
        _ => return None,
    }
    .ok()?;
    now.checked_sub(span).ok().map(|moment| moment.timestamp())
}

fn parse_local(text: &str, now: &Zoned) -> Option<Timestamp> {
    let (day, rest) = text.split_once([' ', 'T']).unwrap_or((text, ""));
    let date = match day {
        "today" => Some(now.date()),
        "yesterday" => now.date().checked_sub(1.day()).ok(),
        _ => day.parse::<Date>().ok(),
    };
    let moment = match (date, rest.trim()) {
        (Some(date), "") => DateTime::from_parts(date, Time::midnight()),
        (Some(date), time) => DateTime::from_parts(date, parse_clock(time)?),
        (None, "") => DateTime::from_parts(now.date(), parse_clock(day)?),
        (None, _) => return None,
    };
    moment.to_zoned(now.time_zone().clone()).ok().map(|moment| moment.timestamp())
}

fn parse_clock(text: &str) -> Option<Time> {
    if !text.contains(':') {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-11-22T12:34:56.789+01:00[Europe/Berlin]".parse().unwrap()
    }

    fn shown(text: &str) -> String {
        parse_time(text, &now()).map_or_else(|error| error, |ms| format_ms(ms, now().time_zone()))
    }

    #[test]
    fn people_write_times_in_many_ways() {
        assert_eq!(shown("2026-11-22T10:00:00Z"), "2026-11-22T11:00:00.000+01:00");
        assert_eq!(shown("2026-07-01 10:00"), "2026-07-01T10:00:00.000+02:00");
        assert_eq!(shown("2026-07-01T10:00:01.5"), "2026-07-01T10:00:01.500+02:00");
        assert_eq!(shown("2026-07-01"), "2026-07-01T00:00:00.000+02:00");
        assert_eq!(shown("today 12:00"), "2026-11-22T12:00:00.000+01:00");
        assert_eq!(shown("yesterday 23:59:59"), "2026-11-21T23:59:59.000+01:00");
        assert_eq!(shown("08:15"), "2026-11-22T08:15:00.000+01:00");
        assert_eq!(shown("10m"), "2026-11-22T12:24:56.789+01:00");
        assert_eq!(shown("2 days ago"), "2026-11-20T12:34:56.789+01:00");
    }

    #[test]
    fn what_is_no_time_is_told() {
        for text in ["", "soon", "10", "10x", "25:00", "today noon", "99999999999999999999s", "1969-01-01T00:00:00Z"] {
            assert!(parse_time(text, &now()).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_are_rough() {
        assert_eq!(format_age(119_999), "119 s");
        assert_eq!(format_age(3 * 3_600_000), "3 h");
    }
}
