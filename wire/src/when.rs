//! Moments as people type them: a time of day, a date, RFC 3339, seconds since 1970, or how long ago.
//!
//! It must not know clocks: what time it is, and the zone, are parameters. Moments are nanoseconds since 1970-01-01 00:00 UTC, leap seconds not
//! counted.
//!
//! **Invariant:** no text causes a panic; what is no moment is refused by name.

use tz::{DateTime, TimeZone};

use crate::units::parse_duration;

const DAY: i64 = 86_400;
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// What a time of day is near to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Near {
    /// The last such time that is over.
    Last,
    /// The first such time from here on.
    From(u64),
}

/// A clock's time that was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OfDay {
    hour: u8,
    minute: u8,
    second: u8,
    nanos: u32,
}

/// Reads a moment, in nanoseconds since 1970. `now` is such a moment, too. Of a time that a clock shows twice, `Last` takes the first, and `From` the second: what lies between them is within.
///
/// # Errors
/// It is none; the words name it and say what would be.
pub fn moment(text: &str, now: u64, zone: &TimeZone, near: Near) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is no time: write for example 02:10, 02:10:30, '2026-11-22 02:10', 2026-11-22T02:10:30+01:00, -5m or now");
    let typed = text.trim();
    if typed == "now" {
        return Ok(now);
    }
    if let Some(ago) = typed.strip_prefix('-') {
        let ago = parse_duration(ago).map_err(|_| wrong())?;
        return Ok(now.saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX)));
    }
    if let Some(seconds) = seconds(typed) {
        return Ok(seconds);
    }
    let found = match typed.split_once(['T', 't', ' ']) {
        Some((day, clock)) => dated(day, clock.trim_start(), zone, near),
        None if typed.contains(':') => of_day(typed).and_then(|clock| nearest(clock, now, zone, near)),
        None => dated(typed, "00:00", zone, near),
    };
    found.ok_or_else(wrong)
}

/// Seconds since 1970, as captures tell their times: nine digits at least, so that no year is taken for them.
fn seconds(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let right = whole.len() >= 9 && whole.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| whole.parse::<u64>().ok()?.checked_mul(SECOND)?.checked_add(fraction(part)?.into()))?
}

/// The digits behind a second's point, in nanoseconds.
fn fraction(digits: &str) -> Option<u32> {
    let right = (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| digits.parse::<u32>().ok()?.checked_mul(10u32.pow(9 - digits.len() as u32)))?
}

/// A number of exactly so many digits.
fn number<T: core::str::FromStr>(text: &str, digits: usize) -> Option<T> {
    let right = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| text.parse().ok())?
}

/// `02:10`, `02:10:30`, `02:10:30.5`.
fn of_day(text: &str) -> Option<OfDay> {
    let mut parts = text.split(':');
    let (hour, minute) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let (second, nanos) = match parts.next() {
        None => (0, 0),
        Some(rest) => {
            let (second, part) = rest.split_once('.').unwrap_or((rest, "0"));
            (number(second, 2)?, fraction(part)?)
        }
    };
    let right = parts.next().is_none() && hour < 24 && minute < 60 && second < 60;
    right.then_some(OfDay { hour, minute, second, nanos })
}

/// A date and a time, which may end in a zone.
fn dated(day: &str, clock: &str, zone: &TimeZone, near: Near) -> Option<u64> {
    let mut parts = day.split('-');
    let date = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if parts.next().is_some() {
        return None;
    }
    if let Some(utc) = clock.strip_suffix(['Z', 'z']) {
        return at(date, of_day(utc)?, &TimeZone::utc(), near);
    }
    let Some(sign) = clock.rfind(['+', '-']) else { return at(date, of_day(clock)?, zone, near) };
    let (clock, offset) = clock.split_at_checked(sign)?;
    let away = of_day(offset.get(1..)?).filter(|_| offset.len() == 6)?;
    let seconds = i32::from(away.hour) * 3600 + i32::from(away.minute) * 60;
    let fixed = TimeZone::fixed(if offset.starts_with('-') { -seconds } else { seconds }).ok()?;
    at(date, of_day(clock)?, &fixed, near)
}

/// A date's time in a zone. What a clock leaves out when it is put forward is when that happens.
fn at((year, month, day): (i32, u8, u8), clock: OfDay, zone: &TimeZone, near: Near) -> Option<u64> {
    let OfDay { hour, minute, second, nanos } = clock;
    let found = DateTime::find(year, month, day, hour, minute, second, nanos, zone.as_ref()).ok()?;
    let one = if near == Near::Last { found.earliest() } else { found.latest() }?;
    u64::try_from(one.unix_time()).ok()?.checked_mul(SECOND)?.checked_add(one.nanoseconds().into())
}

fn nearest(clock: OfDay, now: u64, zone: &TimeZone, near: Near) -> Option<u64> {
    let (base, days) = match near {
        Near::Last => (now, [0, -1, -2]),
        Near::From(from) => (from, [0, 1, 2]),
    };
    let today = DateTime::from_timespec(i64::try_from(base / SECOND).ok()?, 0, zone.as_ref()).ok()?;
    // From noon a day's length leads to another day's hours, also where clocks are changed in between.
    let noon = at((today.year(), today.month(), today.month_day()), OfDay { hour: 12, minute: 0, second: 0, nanos: 0 }, zone, near)?;
    days.into_iter().find_map(|day| {
        let seconds = i64::try_from(noon / SECOND).ok()?.checked_add(day * DAY)?;
        let that = DateTime::from_timespec(seconds, 0, zone.as_ref()).ok()?;
        let found = at((that.year(), that.month(), that.month_day()), clock, zone, near)?;
        let fits = if near == Near::Last { found <= base } else { found >= base };
        fits.then_some(found)
    })
}

/// A moment in local time, to the millisecond.
pub fn shown(time: u64, zone: &TimeZone) -> String {
    let local = i64::try_from(time / SECOND).ok().and_then(|seconds| DateTime::from_timespec(seconds, 0, zone.as_ref()).ok());
    let Some(local) = local else { return format!("{}.{:09}", time / SECOND, time % SECOND) };
    let (year, month, day) = (local.year(), local.month(), local.month_day());
    let (hour, minute, second, millis) = (local.hour(), local.minute(), local.second(), time % SECOND / 1_000_000);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Central Europe's rule of the time change, without the zone's file.
    fn berlin() -> TimeZone {
        TimeZone::from_posix_tz("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn utc(text: &str) -> u64 {
        moment(text, 0, &TimeZone::utc(), Near::Last).unwrap()
    }

    fn last(text: &str, now: &str) -> u64 {
        moment(text, utc(now), &berlin(), Near::Last).unwrap()
    }

    #[test]
    fn dates_have_a_zone() {
        assert_eq!(utc("2026-11-22T02:10:30Z"), 1_795_313_430 * SECOND);
        assert_eq!(utc("2026-11-22t03:10:30.25+01:00"), 1_795_313_430 * SECOND + SECOND / 4);
        assert_eq!(utc("2026-11-21T23:40:30-02:30"), 1_795_313_430 * SECOND);
        assert_eq!(utc("1795313430.000000007"), 1_795_313_430 * SECOND + 7);
        assert_eq!(last("2026-11-22 03:10", "2026-01-01"), utc("2026-11-22 02:10:00"));
        assert_eq!(last("2026-07-22", "2026-01-01"), utc("2026-07-21 22:00"));
    }

    #[test]
    fn a_time_of_day_is_the_last_one_and_its_end_the_next_one() {
        let now = "2026-11-22T12:00:00Z";
        assert_eq!(last("02:10", now), utc("2026-11-22 01:10"));
        assert_eq!(last("13:00:00", now), utc(now));
        assert_eq!(last("13:00:00.000000001", now), utc("2026-11-21 12:00:00.000000001"));
        assert_eq!(last("-90s", now), utc("2026-11-22 11:58:30"));
        assert_eq!(last("-2d", now), utc("2026-11-20 12:00"));
        assert_eq!(last("now", now), utc(now));
        let after = |text, from| moment(text, utc(now), &berlin(), Near::From(utc(from))).unwrap();
        assert_eq!(after("02:12", "2026-11-22 01:10"), utc("2026-11-22 01:12"));
        assert_eq!(after("00:10", "2026-11-21 22:50"), utc("2026-11-21 23:10"));
        assert_eq!(after("14:00", "2026-11-22 11:00"), utc("2026-11-22 13:00"));
    }

    #[test]
    fn clocks_that_are_changed_are_taken_by_the_longer_way() {
        // In the night of 2026-10-25 02:30 comes twice, in that of 2026-03-29 not at all.
        let now = "2026-10-25T12:00:00Z";
        assert_eq!(last("02:30", now), utc("2026-10-25 00:30"));
        let to = moment("02:30", utc(now), &berlin(), Near::From(utc("2026-10-24 23:00"))).unwrap();
        assert_eq!(to, utc("2026-10-25 01:30"));
        assert_eq!(last("2026-03-29 02:30", now), utc("2026-03-29 01:00"));
        assert_eq!(last("12:00", "2026-03-29T09:00:00Z"), utc("2026-03-28 11:00"));
    }

    #[test]
    fn what_is_no_time_is_said() {
        for wrong in [
            "",
            "2:10",
            "25:00",
            "02:60",
            "02:10:61",
            "02:10:30.",
            "2026-13-01",
            "2026-02-30 10:00",
            "2026-11-22 02:10 UTC",
            "-5",
            "5m",
            "yesterday",
            "2026",
            "2026-11-22T02:10+1:00",
            "1969-01-01",
            "٠٢:١٠",
            "02:10:30:40",
            "02:10Z",
        ] {
            let error = moment(wrong, utc("2026-11-22"), &berlin(), Near::Last).unwrap_err();
            assert!(error.starts_with(&format!("`{wrong}` is no time: write for example 02:10")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(seconds in 0u64..4_000_000_000, millis in 0u64..1000) {
            let time = seconds * SECOND + millis * 1_000_000;
            let text = shown(time, &TimeZone::utc());
            prop_assert_eq!(utc(&text), time);
            // Of a clock's time that comes twice, one is meant.
            let text = shown(time, &berlin());
            let ends = [Near::Last, Near::From(time)].map(|near| moment(&text, time, &berlin(), near).unwrap());
            prop_assert!(ends.contains(&time) && ends[1] - ends[0] <= 3_600 * SECOND);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,24}", now: u64) {
            let _ = moment(&text, now, &berlin(), Near::From(now));
        }
    }
}
