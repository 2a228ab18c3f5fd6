//! How the box and the program fare, read from `/proc`. What cannot be read counts as zero: a heartbeat is never held up.

use std::time::Duration;

/// The figures of a heartbeat that come from the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// The program's processor time, user and system.
    pub cpu: Duration,
    /// Its resident memory in KiB.
    pub memory_kib: u64,
    /// The box's load over one minute, in hundredths.
    pub load_percent: u32,
}

/// Reads them.
pub fn read() -> Health {
    let file = |path| std::fs::read_to_string(path).unwrap_or_default();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    let span = |time: nix::sys::time::TimeVal| {
        Duration::new(u64::try_from(time.tv_sec()).unwrap_or(0), u32::try_from(time.tv_usec()).unwrap_or(0).saturating_mul(1000))
    };
    Health {
        cpu: usage.map(|usage| span(usage.user_time()) + span(usage.system_time())).unwrap_or_default(),
        memory_kib: parse_memory(&file("/proc/self/status")),
        load_percent: parse_load(&file("/proc/loadavg")),
    }
}

fn parse_memory(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn parse_load(loadavg: &str) -> u32 {
    // Written as `0.42 0.30 ...`: without the point these are hundredths.
    loadavg.split_whitespace().next().and_then(|load| load.replace('.', "").parse().ok()).unwrap_or(0)
}

/// What the box is: the device tree's model on boards, the product name on PCs.
pub fn hardware() -> String {
    let candidates = ["/proc/device-tree/model", "/sys/class/dmi/id/product_name"];
    let text = candidates.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let text: String = text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(64).collect();
    let arch = std::env::consts::ARCH;
    match text.trim() {
        "" => arch.to_owned(),
        model => format!("{model} ({arch})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_their_lines() {
        assert_eq!(parse_memory("Name:\tx\nVmRSS:\t   8464 kB\nThreads:\t3\n"), 8464);
        assert_eq!(parse_load("1.07 0.50 0.20 1/100 4242\n"), 107);
        assert_eq!((parse_memory("garbage"), parse_load("")), (0, 0));
        assert!(read().memory_kib > 0 && !hardware().is_empty());
    }
}
