//! Numbers, times and names as people read them.

use std::time::Duration;

use picket_wire::result::Coverage;

use crate::view::{JobState, Plan, RuleVerdict};

/// Text that came from elsewhere, without anything that a terminal would obey.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `1234567` as `1,234,567`.
pub(super) fn count(number: impl Into<u128>) -> String {
    let digits = number.into().to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 probe`, `2 probes`.
pub(super) fn plural(number: usize, what: &str) -> String {
    format!("{} {what}{}", count(number as u128), if number == 1 { "" } else { "s" })
}

/// A time span with at most two units.
pub(super) fn seconds(total: u64) -> String {
    let (days, hours, minutes, seconds) = (total / 86_400, total / 3_600 % 24, total / 60 % 60, total % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// A round trip.
pub(super) fn rtt(us: u64) -> String {
    match Duration::from_micros(us) {
        rtt if us < 1_000 => format!("{} us", rtt.as_micros()),
        rtt if us < 1_000_000 => format!("{:.1} ms", rtt.as_secs_f64() * 1e3),
        rtt => format!("{:.2} s", rtt.as_secs_f64()),
    }
}

/// Targets per second.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate < 10.0 => format!("{rate:.1}/s"),
        rate if rate < 10_000.0 => format!("{rate:.0}/s"),
        rate if rate < 10_000_000.0 => format!("{:.1}k/s", rate / 1e3),
        rate => format!("{:.1}M/s", rate / 1e6),
    }
}

/// RFC 3339 text without fractions of a second.
pub(super) fn moment(text: &str) -> String {
    let text = clean(text);
    match text.split_once('.') {
        Some((whole, fraction)) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{whole}{zone}").replace('T', " ").replace('Z', "")
        }
        None => text.replace('T', " ").replace('Z', ""),
    }
}

/// How far, 0 to 100, rounded down so that 100 means all.
pub(super) fn percent(done: u64, total: u64) -> u64 {
    match total {
        0 => 100,
        total => u64::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).unwrap_or(100),
    }
}

/// The sum that must come out even: `asked = answered + silent + refused + not reached`.
pub(super) fn coverage(c: &Coverage) -> String {
    let states = [("up", c.up), ("open", c.open), ("closed", c.closed), ("filtered", c.filtered), ("unfiltered", c.unfiltered)];
    let named: Vec<String> = states.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{} {name}", count(*n))).collect();
    let detail = if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) };
    format!(
        "{} asked = {} answered{detail} + {} silent + {} refused by policy + {} not reached",
        count(c.asked),
        count(c.answered()),
        count(c.silent),
        count(c.refused),
        count(c.not_reached)
    )
}

/// A state's name.
pub(super) fn job_state(state: JobState) -> &'static str {
    match state {
        JobState::Pending => "pending",
        JobState::Running => "running",
        JobState::Cancelling => "cancelling",
        JobState::Done => "done",
        JobState::Cancelled => "cancelled",
        JobState::Failed => "failed",
    }
}

/// What the fleet's policy says of a job's addresses, rule by rule.
pub(super) fn verdicts(plan: &Plan) -> Vec<String> {
    let line = |rule: &RuleVerdict| {
        let noun = if rule.addresses == 1 { "address" } else { "addresses" };
        // Counts end there.
        let many = if rule.addresses == u64::MAX { "2^64 or more".to_owned() } else { count(rule.addresses) };
        format!("policy: {many} {noun} {}", clean(&rule.verdict))
    };
    plan.verdicts.iter().map(line).collect()
}

/// What a job would do, one line each.
pub(super) fn plan(plan: &Plan) -> Vec<String> {
    let one_or_many = |number: u64, one: &str, many: &str| format!("{} {}", count(number), if number == 1 { one } else { many });
    let what = match &plan.link {
        Some(_) => "the link of each probe".to_owned(),
        None => format!("{} on {}", one_or_many(plan.targets, "target", "targets"), one_or_many(plan.addresses, "address", "addresses")),
    };
    let mut lines = vec![format!(
        "{what}, at most {}{}",
        one_or_many(plan.packets_at_most, "packet", "packets"),
        plan.seconds_about.map(|s| format!(", about {}", seconds(s))).unwrap_or_default()
    )];
    lines.extend(plan.link.as_deref().map(clean));
    if plan.excluded > 0 {
        lines.push(format!("{} excluded", count(plan.excluded)));
    }
    if plan.refused_by_policy > 0 {
        let example = plan.refusal_example.as_ref().map(|example| format!(", for example {}", clean(example))).unwrap_or_default();
        lines.push(format!("{} refused by policy{example}", count(plan.refused_by_policy)));
    }
    for name in &plan.names {
        let addresses: Vec<String> = name.addresses.iter().map(ToString::to_string).collect();
        lines.push(format!("{} is {}", clean(&name.name), addresses.join(", ")));
    }
    let probes: Vec<&str> = plan.probes.iter().map(|id| id.as_str()).collect();
    lines.push(match probes.as_slice() {
        [] => "no probe can do it now".to_owned(),
        probes => format!("{}: {}", plural(probes.len(), "probe"), probes.join(", ")),
    });
    lines.extend(plan.unfit.iter().map(|unfit| format!("not {}: {}", unfit.probe, clean(&unfit.reason))));
    lines
}
