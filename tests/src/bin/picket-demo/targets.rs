//! `make demo TARGETS=...`: real targets from this machine, after showing what would be sent and asking.
//!
//! Invariant: nothing is sent before the yes. So names are not accepted: asking for their addresses would be sending.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use picket_probe::config::{Config, Raw};
use picket_tests::lab::programs::Programs;
use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::units::{PacketsPerSecond, PortSet};

use crate::say::{Say, count};
use crate::setting;

/// Asked where `PORTS` says nothing: what a newcomer knows from home.
const DEFAULT_PORTS: &str = "22,53,80,139,443,445,631,3389,5900,8080,8443,9100";
/// Where `RATE` says nothing: slow enough for the smallest router.
const DEFAULT_RATE: &str = "200pps";
/// How often a silent target is asked in all.
const ATTEMPTS: u8 = 2;

/// What would be sent.
#[derive(Debug)]
struct Plan {
    targets: Vec<String>,
    wanted: AddrSet,
    permitted: AddrSet,
    ports: PortSet,
    rate: PacketsPerSecond,
    /// What was asked for, where the interface's limit is lower.
    clipped: Option<PacketsPerSecond>,
}

impl Plan {
    fn new(targets: &str, ports: &str, rate: &str, config: &Config) -> Result<Self> {
        let items: Vec<String> =
            targets.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty()).map(str::to_owned).collect();
        let wanted = parse_set(&items.join(",")).context(
            "TARGETS: addresses, networks and ranges only, such as 192.168.1.0/24 or 192.168.1.1-50; no names, for asking for their \
             addresses would be sending",
        )?;
        let ports: PortSet = ports.parse().context("PORTS, such as 22,80,8000-8100")?;
        let asked: PacketsPerSecond = rate.parse().context("RATE, such as 200pps")?;
        let limit = config.interface.packets;
        let permitted = config.policy.permitted(&wanted);
        let rate = if asked.get() > limit.get() { limit } else { asked };
        Ok(Self { targets: items, wanted, permitted, ports, rate, clipped: (asked.get() > limit.get()).then_some(asked) })
    }

    fn addresses(&self) -> u128 {
        self.permitted.len().unwrap_or(u128::MAX)
    }

    fn packets(&self) -> u128 {
        self.addresses().saturating_mul(u128::from(self.ports.len())).saturating_mul(u128::from(ATTEMPTS))
    }

    /// The words for it, a line each.
    fn text(&self, config: &Config) -> Result<String> {
        let mut text = String::new();
        let wanted = self.wanted.len().unwrap_or(u128::MAX);
        let plural = if wanted == 1 { "" } else { "es" };
        writeln!(text, "targets    {}: {} address{plural}", self.targets.join(" "), count(wanted))?;
        let refused = wanted.saturating_sub(self.addresses());
        if refused == 0 {
            writeln!(text, "policy     permits all of them (policy.allow, policy.deny in /etc/picket/probe.toml)")?;
        } else {
            let example = self.wanted.minus(&self.permitted).ranges().next();
            let example = example.map(|(first, _)| format!("; {first}: {}", config.policy.check(first))).unwrap_or_default();
            writeln!(text, "policy     refuses {} of them, which get nothing{example}", count(refused))?;
        }
        writeln!(text, "ports      {} ({} an address)", self.ports, self.ports.len())?;
        writeln!(text, "packets    at most {}: each target once, silent ones {ATTEMPTS} times", count(self.packets()))?;
        writeln!(text, "           (and, on the machine's own link, the search for each address's neighbour)")?;
        let clipped = self.clipped.map(|asked| format!(": {asked} is above the interface's limit, interface.packets")).unwrap_or_default();
        writeln!(text, "rate       {}{clipped}", self.rate)?;
        let seconds = self.packets().div_ceil(u128::from(self.rate.get()));
        writeln!(text, "duration   at most {} of sending, and some seconds of waiting for the last answers", span(seconds))?;
        write!(text, "command    picket-probe {}", self.arguments().join(" "))?;
        Ok(text)
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["scan".to_owned()];
        arguments.extend(self.targets.iter().cloned());
        arguments.extend(["-p".to_owned(), self.ports.to_string(), "--rate".to_owned(), self.rate.to_string()]);
        arguments.extend(["--attempts".to_owned(), ATTEMPTS.to_string(), "--technique".to_owned(), "auto".to_owned()]);
        arguments
    }
}

fn span(seconds: u128) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds.div_ceil(60)),
        7200..=172_799 => format!("{} h", seconds.div_ceil(3600)),
        _ => format!("{} days", count(seconds.div_ceil(86_400))),
    }
}

/// Shows, asks, and becomes `picket-probe scan`.
pub(crate) fn run(say: &Say, targets: &str) -> ExitCode {
    match prepare(targets) {
        Ok((plan, config)) => ask(say, &plan, &config),
        Err(error) => {
            eprintln!("picket-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn prepare(targets: &str) -> Result<(Plan, Config)> {
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let config = picket_probe::config::load(None, variables, Raw::default()).context("the site's limits and policy")?;
    let ports = setting("PORTS").unwrap_or_else(|| DEFAULT_PORTS.to_owned());
    let rate = setting("RATE").unwrap_or_else(|| DEFAULT_RATE.to_owned());
    Ok((Plan::new(targets, &ports, &rate, &config)?, config))
}

fn ask(say: &Say, plan: &Plan, config: &Config) -> ExitCode {
    say.line("This would be sent from this machine. Nothing has been sent yet.\n");
    say.note(&plan.text(config).unwrap_or_default());
    if plan.permitted.is_empty() {
        say.line("\nPolicy permits none of the targets, so there is nothing to send. Allow a network where this machine stands with");
        say.line("policy.allow in /etc/picket/probe.toml, or once with PICKET_POLICY__ALLOW=203.0.113.0/24.");
        return ExitCode::from(2);
    }
    if setting("YES").is_none_or(|yes| yes != "1") {
        if !std::io::stdin().is_terminal() {
            eprintln!("\npicket-demo: nobody to ask (no terminal): nothing was sent. YES=1 says yes beforehand.");
            return ExitCode::from(2);
        }
        print!("\nScan only networks that you may scan. Send it? [y/N] ");
        let _ = std::io::stdout().flush();
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        if read.is_err() || !matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            say.line("Nothing was sent.");
            return ExitCode::SUCCESS;
        }
    }
    say.line("");
    match Programs::locate().and_then(|programs| programs.path("picket-probe")) {
        // It takes this process's place, so Ctrl-C and the exit status are its own.
        Ok(program) => {
            let error = Command::new(&program).args(plan.arguments()).exec();
            eprintln!("picket-demo: start {}: {error}", program.display());
        }
        Err(error) => eprintln!("picket-demo: {error:#}"),
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Config {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let none = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        picket_probe::config::load(Some(none.path()), variables, Raw::default()).unwrap()
    }

    #[test]
    fn what_would_be_sent_is_said_exactly() {
        let config = config(&[]);
        let plan = Plan::new("192.168.1.0/24, fd00::1-fd00::4 198.51.100.1", "22,80,443", "5kpps", &config).unwrap();
        assert_eq!((plan.addresses(), plan.packets()), (260, 260 * 3 * 2));
        let text = plan.text(&config).unwrap();
        for part in [
            "192.168.1.0/24 fd00::1-fd00::4 198.51.100.1: 261 addresses",
            "refuses 1 of them, which get nothing; 198.51.100.1: denied",
            "at most 1,560",
            "5kpps is above the interface's limit",
            "at most 2 s of sending",
            "picket-probe scan 192.168.1.0/24 fd00::1-fd00::4 198.51.100.1 -p 22,80,443 --rate 1kpps --attempts 2 --technique auto",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn huge_spaces_do_not_overflow() {
        let config = config(&[]);
        let plan = Plan::new("fc00::/7", "1-65535", "200pps", &config).unwrap();
        assert!(plan.text(&config).unwrap().contains("days"));
    }

    #[test]
    fn names_and_mistakes_are_refused() {
        let config = config(&[]);
        for (targets, ports, rate, part) in [
            ("printer.lan", "80", "200pps", "no names"),
            ("192.168.1.0/33", "80", "200pps", "TARGETS"),
            ("192.168.1.1", "x", "200pps", "PORTS"),
            ("192.168.1.1", "80", "200", "RATE"),
        ] {
            let error = format!("{:#}", Plan::new(targets, ports, rate, &config).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
