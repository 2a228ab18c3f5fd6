//! The demo's site, and shells at its places: what is printed there is what a shell runs there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use picket_tests::lab::programs::Programs;
use picket_tests::lab::site::{Segment, SegmentPlan, Site};
use picket_tests::lab::target::Service;
use picket_tests::lab::truth::{Mix, Network, TruthSpec};
use picket_tests::lab::{Namespace, Proc, Run};

use crate::say::Say;
use crate::stop;

/// How often a running command is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The controller's place.
pub(crate) const CONTROLLER: &str = "controller";
/// The segment whose hosts are on its own wire, beside one of the probes.
pub(crate) const OFFICE: &str = "office";
/// The segment behind a router.
pub(crate) const SERVERS: &str = "servers";
/// The networks of both, IPv4 and IPv6.
pub(crate) const NETWORKS: [&str; 4] = ["198.18.10.0/26", "2001:db8:10::/122", "198.18.20.0/25", "2001:db8:20::/121"];
/// What the fleet's policy forbids.
pub(crate) const FORBIDDEN: &str = "198.18.20.96/29";
/// Ports on which something listens somewhere.
pub(crate) const PORTS: [u16; 20] = [21, 22, 23, 25, 53, 80, 110, 139, 143, 389, 443, 445, 631, 993, 1883, 3306, 5432, 8080, 8443, 9100];
/// Fixed, so that every run of the demo shows the same network.
const SEED: u64 = 2;

/// A probe of the demo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbePlan {
    pub(crate) name: &'static str,
    /// Where it stands, in words.
    pub(crate) place: &'static str,
    /// Packets per second that its interface may send.
    pub(crate) limit: u32,
}

/// The three probes.
pub(crate) const PROBES: [ProbePlan; 3] = [
    ProbePlan { name: "north", place: "on a link of its own", limit: 900 },
    ProbePlan { name: "south", place: "on another link", limit: 600 },
    ProbePlan { name: "desk", place: "inside the office segment", limit: 400 },
];

/// The site with its places.
#[derive(Debug)]
pub(crate) struct Stage {
    site: Site,
    dir: PathBuf,
    path: String,
    /// Our own variables would be theirs: the programs read `PICKET_...` too.
    unset: Vec<String>,
}

impl Stage {
    /// Builds the site and what is needed to type commands in it.
    pub(crate) fn build() -> Result<Self> {
        let programs = Programs::locate()?;
        let picket = programs.path("picket")?;
        programs.path("picket-probe")?;
        let bin = picket.parent().context("the programs have no directory")?;
        let mix = Mix { dead: 300, shy: 80, open: 200, silent: 200 };
        let segment = |name: &str, networks: &[&str]| -> Result<SegmentPlan> {
            let plan = SegmentPlan::new(name, TruthSpec::new(SEED, networks, &PORTS)?.mix(mix));
            let plan = plan.service(22, Service::Banner("SSH-2.0-demo".to_owned())).service(25, Service::Banner("220 demo".to_owned()));
            Ok([80, 443, 8080, 8443].into_iter().fold(plan, |plan, port| plan.service(port, Service::Http("demo/1".to_owned()))))
        };
        let [north, south, desk] = PROBES.map(|probe| probe.name);
        let site = Site::builder("demo")
            .segment(segment(OFFICE, &NETWORKS[..2])?.on_link())
            .segment(segment(SERVERS, &NETWORKS[2..])?)
            .probe(north)
            .probe(south)
            .probe_in(desk, OFFICE)
            .build()?;
        let dir = site.lab().dir().to_owned();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()));
        let unset =
            std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| name.starts_with("PICKET_")).collect();
        let stage = Self { site, dir, path, unset };
        stage.write_enter()?;
        Ok(stage)
    }

    /// The site.
    pub(crate) fn site(&self) -> &Site {
        &self.site
    }

    /// The directory of all files, `$D` in the commands.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Both segments.
    pub(crate) fn segments(&self) -> Result<[&Segment; 2]> {
        Ok([self.site.segment(OFFICE)?, self.site.segment(SERVERS)?])
    }

    /// The networks that the fleet's policy forbids.
    pub(crate) fn forbidden() -> Network {
        FORBIDDEN.parse().expect("the network in this file is well formed")
    }

    /// The namespace of a place.
    pub(crate) fn place(&self, name: &str) -> Result<&Namespace> {
        if name == CONTROLLER { Ok(self.site.controller()) } else { Ok(self.site.probe(name)?.namespace()) }
    }

    /// The environment of every shell.
    fn variables(&self) -> BTreeMap<&'static str, String> {
        let data = self.dir.join(CONTROLLER).display().to_string();
        BTreeMap::from([("D", self.dir.display().to_string()), ("PATH", self.path.clone()), ("PICKET_DATA", data)])
    }

    /// Writes the script that opens a shell at a place.
    fn write_enter(&self) -> Result<()> {
        let mut script =
            String::from("#!/bin/sh\n# enter PLACE [COMMAND...]: a shell, or one command, at a place of the demo\ncase \"$1\" in\n");
        for place in [CONTROLLER].into_iter().chain(PROBES.map(|probe| probe.name)) {
            script.push_str(&format!("{place}) namespace={} ;;\n", self.place(place)?.name()));
        }
        script.push_str("*) echo \"usage: $0 controller|north|south|desk [COMMAND...]\" >&2; exit 2 ;;\nesac\nplace=$1; shift\n");
        for (name, value) in self.variables() {
            script.push_str(&format!("export {name}='{}'\n", value.replace('\'', "'\\''")));
        }
        script.push_str("[ $# -gt 0 ] || set -- env PS1=\"$place# \" sh -i\nexec ip netns exec \"$namespace\" \"$@\"\n");
        let file = self.site.lab().write("enter", script)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", file.display()))
    }

    fn shell(&self, label: &str, command: &str) -> Run {
        let run = Run::new("sh").args(["-c", command]).label(label);
        let run = self.variables().into_iter().fold(run, |run, (name, value)| run.env(name, value));
        let kept: Vec<&String> = self.unset.iter().filter(|name| *name != "PICKET_DATA").collect();
        run.under(["env"].into_iter().chain(kept.into_iter().flat_map(|name| ["-u", name.as_str()])))
    }

    /// Prints a command and starts it, to go on running.
    pub(crate) fn start(&self, say: &Say, place: &str, label: &str, command: &str) -> Result<Proc> {
        say.command(place, &format!("{command} &"));
        // The shell becomes the program, so that signals reach it.
        self.place(place)?.spawn(&self.shell(label, &format!("exec {command}")))
    }

    /// Prints a command, runs it to its end and prints what it says as it says it; `meanwhile` is called again and again.
    pub(crate) fn run(&self, say: &Say, place: &str, command: &str, patience: Duration, mut meanwhile: impl FnMut()) -> Result<ExitStatus> {
        stop::check()?;
        say.command(place, command);
        // Both outputs in one, in the order in which a terminal would show them.
        let mut proc = self.place(place)?.spawn(&self.shell("demo", &format!("exec 2>&1; {command}")))?;
        let mut said = Tail::new(proc.stdout_file());
        let start = Instant::now();
        loop {
            let ended = proc.try_wait()?;
            for line in said.lines() {
                say.output(&line);
            }
            meanwhile();
            if let Some(status) = ended {
                return Ok(status);
            }
            stop::check()?;
            if start.elapsed() > patience {
                bail!("`{command}` is still running after {patience:?}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Runs a command unseen, and gives what it printed.
    pub(crate) fn ask(&self, place: &str, command: &str) -> Result<String> {
        stop::check()?;
        let run = self.shell("ask", command);
        self.place(place)?.run(&run, Duration::from_secs(30))?.ok().with_context(|| format!("`{command}`"))
    }
}

/// Waits, looking again and again, until `look` gives something; ends early when the demo is interrupted.
pub(crate) fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        stop::check()?;
        if start.elapsed() > patience {
            bail!("no {what} within {patience:?}");
        }
        std::thread::sleep(LOOK);
    }
}

/// The lines of a growing file, each once.
#[derive(Debug)]
pub(crate) struct Tail {
    file: PathBuf,
    at: u64,
}

impl Tail {
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), at: 0 }
    }

    /// The whole lines that came since the last call.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        let read = File::open(&self.file).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_end(&mut bytes)
        });
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if read.is_err() || whole == 0 {
            return Vec::new();
        }
        self.at += whole as u64;
        String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let mut tail = Tail::new(&file);
        assert!(tail.lines().is_empty(), "not there yet");
        std::fs::write(&file, "one\ntwo\nthr").unwrap();
        assert_eq!(tail.lines(), ["one", "two"]);
        assert!(tail.lines().is_empty());
        std::fs::write(&file, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail.lines(), ["three"]);
    }
}
