//! A whole fleet in a lab: the real controller, real probes that enrolled with real tokens, and the ways in which an operator,
//! a dashboard or an attacker reaches them.
//!
//! Must not know: how Picket works inside. What is asked of it goes through its command line ([`Fleet::picket`]), its HTTP API
//! ([`Api`]), its MQTT listeners ([`mqtt`]) and, for what no interface shows, its database opened read-only ([`records`]).
//!
//! Invariant: nothing here waits for a fixed time; each wait ends with its condition or fails at its deadline.

pub mod api;
pub mod expect;
pub mod mqtt;
pub mod paths;
pub mod records;
pub mod services;
pub mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use picket_controller::view::{JobState, JobView, ProbeInvited, ProbeState, ProbeView, ResultRow, Submitted};
use picket_wire::ids::JobId;
use serde::de::DeserializeOwned;

use crate::lab::programs::Programs;
use crate::lab::site::Site;
use crate::lab::{Finished, Namespace, Proc, wait_until};
pub use api::Api;

/// Only ever waited for when something is broken, or a debug build runs on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The probes' MQTT listener.
pub const MQTT_PORT: u16 = 8883;
/// The HTTPS API.
pub const API_PORT: u16 = 8443;
/// The dashboards' MQTT listener.
pub const DASHBOARD_PORT: u16 = 8884;

/// What a fleet shall be. Everything that is not said is as a newcomer has it, but for the policy: the lab's prefixes are allowed.
#[derive(Clone, Debug)]
pub struct Plan {
    fleet_deny: Vec<String>,
    site_deny: Vec<String>,
    heartbeat: u32,
    lease_ttl: u32,
    packets: String,
    bits: String,
    log: Option<String>,
    only: Option<BTreeSet<String>>,
    roles: Option<String>,
    controller: String,
    probe: String,
    /// What captures may keep, for the controller and for every site.
    captures: Option<(String, String)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            fleet_deny: Vec::new(),
            site_deny: Vec::new(),
            heartbeat: 2,
            lease_ttl: 30,
            packets: "1kpps".to_owned(),
            bits: "100Mbit".to_owned(),
            log: None,
            only: None,
            roles: None,
            controller: String::new(),
            probe: String::new(),
            captures: None,
        }
    }
}

impl Plan {
    /// Networks that the controller's policy denies.
    #[must_use]
    pub fn fleet_deny(mut self, networks: &[&str]) -> Self {
        self.fleet_deny = networks.iter().map(|text| (*text).to_owned()).collect();
        self
    }

    /// Networks that the policy of every probe's own site denies.
    #[must_use]
    pub fn site_deny(mut self, networks: &[&str]) -> Self {
        self.site_deny = networks.iter().map(|text| (*text).to_owned()).collect();
        self
    }

    /// Seconds between heartbeats of idle probes.
    #[must_use]
    pub fn heartbeat(mut self, seconds: u32) -> Self {
        self.heartbeat = seconds;
        self
    }

    /// Seconds for which a lease holds without a word.
    #[must_use]
    pub fn lease_ttl(mut self, seconds: u32) -> Self {
        self.lease_ttl = seconds;
        self
    }

    /// The packet limit of every probe's interface.
    #[must_use]
    pub fn packets(mut self, limit: &str) -> Self {
        self.packets = limit.to_owned();
        self
    }

    /// The bit limit of every probe's interface.
    #[must_use]
    pub fn bits(mut self, limit: &str) -> Self {
        self.bits = limit.to_owned();
        self
    }

    /// What every probe logs, as `RUST_LOG` says it.
    #[must_use]
    pub fn log(mut self, directives: &str) -> Self {
        self.log = Some(directives.to_owned());
        self
    }

    /// Enrols and starts only these of the site's probes at first.
    #[must_use]
    pub fn only(mut self, probes: &[&str]) -> Self {
        self.only = Some(probes.iter().map(|text| (*text).to_owned()).collect());
        self
    }

    /// The roles of every probe, such as `scan,trace`.
    #[must_use]
    pub fn roles(mut self, roles: &str) -> Self {
        self.roles = Some(roles.to_owned());
        self
    }

    /// More sections of every probe's configuration.
    #[must_use]
    pub fn probe(mut self, toml: &str) -> Self {
        self.probe = toml.to_owned();
        self
    }

    /// More sections of the controller's configuration.
    #[must_use]
    pub fn controller(mut self, toml: &str) -> Self {
        self.controller = toml.to_owned();
        self
    }

    /// What captures may keep of packets, by the controller's word and by that of every site: `off`, `headers` or `payload`.
    #[must_use]
    pub fn captures(mut self, controller: &str, site: &str) -> Self {
        self.captures = Some((controller.to_owned(), site.to_owned()));
        self
    }

    fn controller_config(&self, site: &Site) -> String {
        let captures = self.captures.as_ref().map(|(allow, _)| format!("[captures]\nallow = \"{allow}\"\n")).unwrap_or_default();
        format!(
            "names = [\"{}\", \"{}\"]\n[policy]\nallow = {ALLOWED}\ndeny = {:?}\n[leases]\nttl = \"{}s\"\n[probes]\nheartbeat = \"{}s\"\n{}{captures}",
            site.controller_v4(),
            site.controller_v6(),
            self.fleet_deny,
            self.lease_ttl,
            self.heartbeat,
            self.controller
        )
    }

    fn probe_config(&self) -> String {
        let captures = self.captures.as_ref().map(|(_, allow)| format!("[capture]\nallow = \"{allow}\"\n")).unwrap_or_default();
        format!(
            "[interface]\nname = \"{}\"\npackets = \"{}\"\nbits = \"{}\"\n[policy]\nallow = {ALLOWED}\ndeny = {:?}\n{captures}{}",
            crate::lab::site::DEVICE,
            self.packets,
            self.bits,
            self.site_deny,
            self.probe
        )
    }
}

/// The lab's prefixes, as a TOML list.
const ALLOWED: &str = "[\"198.18.0.0/15\", \"192.0.2.0/24\", \"2001:db8::/32\"]";

/// One enrolled box.
#[derive(Debug)]
struct Boxed {
    config: PathBuf,
    data: PathBuf,
    namespace: Namespace,
    proc: Option<Proc>,
}

/// A running fleet. Dropping it ends its programs, and then its site.
#[derive(Debug)]
pub struct Fleet {
    // Before the site, so that the programs end first.
    probes: BTreeMap<String, Boxed>,
    controller: Option<Proc>,
    config: PathBuf,
    data: PathBuf,
    ready: PathBuf,
    api: Api,
    programs: Programs,
    plan: Plan,
    site: Site,
}

impl Fleet {
    /// Starts the controller, enrols the site's probes, each by a token of its own, starts them, and waits until all are online.
    ///
    /// # Errors
    /// When a program is not built, does not start, or refuses its configuration; the error holds what it said.
    pub fn start(site: Site, plan: Plan) -> Result<Self> {
        let programs = Programs::locate()?;
        let lab = site.lab().clone();
        let data = lab.make_dir("controller")?;
        // As a service manager would make it; the controller refuses one that others can write to.
        restrict(&data)?;
        let config = lab.write("controller.toml", plan.controller_config(&site))?;
        let ready = lab.dir().join("ready.json");
        let api = Api::new(site.controller().clone(), site.controller_v4().into(), &data);
        let mut fleet = Self { probes: BTreeMap::new(), controller: None, config, data, ready, api, programs, plan, site };
        fleet.start_controller()?;
        let names: Vec<String> = fleet.site.probes().map(|(name, _)| name.to_owned()).collect();
        let wanted = |name: &&String| fleet.plan.only.as_ref().is_none_or(|only| only.contains(*name));
        let names: Vec<String> = names.iter().filter(wanted).cloned().collect();
        for name in &names {
            fleet.enrol(name)?;
            fleet.start_probe(name)?;
        }
        for name in &names {
            fleet.wait_online(name)?;
        }
        Ok(fleet)
    }

    /// Its site.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The HTTP API, with the admin token.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The controller's data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The data directory of a probe.
    ///
    /// # Errors
    /// When it was never enrolled.
    pub fn probe_data(&self, name: &str) -> Result<&Path> {
        Ok(&self.boxed(name)?.data)
    }

    /// A probe's running program.
    ///
    /// # Errors
    /// When it does not run.
    pub fn probe_proc(&mut self, name: &str) -> Result<&mut Proc> {
        self.boxed_mut(name)?.proc.as_mut().with_context(|| format!("probe {name} does not run"))
    }

    /// The running controller.
    ///
    /// # Errors
    /// When it does not run.
    pub fn controller_proc(&mut self) -> Result<&mut Proc> {
        self.controller.as_mut().context("the controller does not run")
    }

    /// Starts the controller and waits until everything of it accepts connections.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn start_controller(&mut self) -> Result<()> {
        ensure!(self.controller.is_none(), "the controller runs already");
        let _ = std::fs::remove_file(&self.ready);
        let run = self.programs.serve(&self.config, &self.data)?.arg("--ready-file").arg(&self.ready);
        let mut proc = self.site.controller().spawn(&run)?;
        let ready = self.ready.clone();
        let waited = proc.wait_for("ready file", PATIENCE, |_, _| ready.exists().then_some(()));
        self.controller = Some(proc);
        waited.context("start the controller")
    }

    /// Kills the controller at once (SIGKILL).
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_controller(&mut self) -> Result<()> {
        self.controller.take().context("the controller does not run")?.kill().map(drop)
    }

    /// Enrols a probe of the site: `picket probe add`, and `picket-probe enrol` at its place.
    ///
    /// # Errors
    /// When one of the two refuses.
    pub fn enrol(&mut self, name: &str) -> Result<()> {
        let namespace = self.site.probe(name)?.namespace().clone();
        self.enrol_at(name, &namespace)
    }

    /// Enrols a box at any place, under any id.
    ///
    /// # Errors
    /// When the controller or the box's program refuses.
    pub fn enrol_at(&mut self, name: &str, namespace: &Namespace) -> Result<()> {
        let mut args = vec!["probe", "add", name, "--json"];
        if let Some(roles) = &self.plan.roles {
            args.extend(["--role", roles]);
        }
        let invited: ProbeInvited = self.json(&args)?;
        let lab = self.site.lab();
        let data = lab.make_dir(&format!("probe-{name}"))?;
        restrict(&data)?;
        let config = lab.write(&format!("probe-{name}.toml"), self.plan.probe_config())?;
        let run = self.programs.probe_enrol(&invited.token, &data)?;
        namespace.run(&run, PATIENCE)?.ok().with_context(|| format!("enrol {name}"))?;
        self.probes.insert(name.to_owned(), Boxed { config, data, namespace: namespace.clone(), proc: None });
        Ok(())
    }

    /// Starts an enrolled probe; does not wait.
    ///
    /// # Errors
    /// When it runs already or was never enrolled.
    pub fn start_probe(&mut self, name: &str) -> Result<()> {
        let (programs, log) = (self.programs.clone(), self.plan.log.clone());
        let boxed = self.boxed_mut(name)?;
        ensure!(boxed.proc.is_none(), "probe {name} runs already");
        let run = programs.probe_run(&boxed.config, &boxed.data)?;
        let run = log.into_iter().fold(run, |run, directives| run.env("RUST_LOG", directives));
        boxed.proc = Some(boxed.namespace.spawn(&run)?);
        Ok(())
    }

    /// Kills a probe at once (SIGKILL).
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_probe(&mut self, name: &str) -> Result<()> {
        self.boxed_mut(name)?.proc.take().with_context(|| format!("probe {name} does not run"))?.kill().map(drop)
    }

    /// Asks a probe to end (SIGTERM), waits, and gives its exit status.
    ///
    /// # Errors
    /// When it does not run or does not end.
    pub fn stop_probe(&mut self, name: &str) -> Result<std::process::ExitStatus> {
        self.boxed_mut(name)?.proc.take().with_context(|| format!("probe {name} does not run"))?.terminate(PATIENCE)
    }

    /// Runs `picket` on the controller's machine, with its data directory.
    ///
    /// # Errors
    /// When it does not end in time. A bad exit status is no error here: see [`Finished::ok`].
    pub fn picket(&self, args: &[&str], deadline: Duration) -> Result<Finished> {
        self.site.controller().run(&self.programs.operator(&self.data, args)?, deadline)
    }

    /// Starts `picket` on the controller's machine.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn picket_spawn(&self, args: &[&str]) -> Result<Proc> {
        self.site.controller().spawn(&self.programs.operator(&self.data, args)?)
    }

    /// Runs a command that prints one JSON document.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let text = self.picket(args, PATIENCE)?.ok().with_context(|| format!("picket {}", args.join(" ")))?;
        serde_json::from_str(&text).with_context(|| format!("what picket {} printed: {text}", args.join(" ")))
    }

    /// A probe as the controller sees it.
    ///
    /// # Errors
    /// When the controller does not answer or does not know it.
    pub fn probe(&self, name: &str) -> Result<ProbeView> {
        self.api.get(&format!("probes/{name}"))
    }

    /// Waits until a probe is connected, has told what it can do, and is idle.
    ///
    /// # Errors
    /// When that does not happen; the error holds what the probe said.
    pub fn wait_online(&mut self, name: &str) -> Result<ProbeView> {
        let view = self.wait_probe(name, "online", PATIENCE, |view| view.state == ProbeState::Online);
        if view.is_err() {
            let tail = |text: String| text.lines().rev().take(30).map(|line| format!("\n  {line}")).collect::<String>();
            let said = self.probe_proc(name).map(|proc| tail(proc.stderr())).unwrap_or_default();
            return view.with_context(|| format!("probe {name} said, the newest first:{said}"));
        }
        view
    }

    /// Waits until the controller sees a probe as `what` says.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn wait_probe(&self, name: &str, what: &str, deadline: Duration, is: impl Fn(&ProbeView) -> bool) -> Result<ProbeView> {
        let mut last = None;
        wait_until(&format!("probe {name} that is {what}"), deadline, || {
            // While the controller itself restarts there is no answer, which is no reason to give up.
            let view = self.probe(name).ok();
            let found = view.clone().filter(|view| is(view));
            last = view.or(last.take());
            Ok(found)
        })
        .with_context(|| format!("it was last {last:?}"))
    }

    /// Submits a job without waiting: `picket scan ... --detach` or `picket discover ... --detach`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(&self, args: &[&str]) -> Result<Submitted> {
        self.json(&[args, &["--detach", "--json"]].concat())
    }

    /// Submits a job without waiting, and gives its id.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit_job(&self, args: &[&str]) -> Result<JobId> {
        self.submit(args)?.job.map(|job| job.id).context("no job was made")
    }

    /// A job as it stands.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub fn job(&self, id: JobId) -> Result<JobView> {
        self.api.get(&format!("jobs/{id}"))
    }

    /// Follows a job by long polls until `is` holds.
    ///
    /// # Errors
    /// When that does not happen in time; the error holds the job as it was last seen.
    pub fn wait_job(&self, id: JobId, what: &str, deadline: Duration, is: impl Fn(&JobView) -> bool) -> Result<JobView> {
        let start = Instant::now();
        let mut last: Option<JobView> = None;
        loop {
            let path = match &last {
                Some(job) => format!("jobs/{id}?since={}&wait=2s", job.version),
                None => format!("jobs/{id}"),
            };
            match self.api.get::<JobView>(&path) {
                Ok(job) if is(&job) => return Ok(job),
                Ok(job) => last = Some(job),
                // While the controller restarts there is no answer.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
            ensure!(start.elapsed() < deadline, "job {id} is not {what} after {deadline:?}; it is {last:?}");
        }
    }

    /// Waits for a job's good end.
    ///
    /// # Errors
    /// When it ends otherwise or not in time.
    pub fn wait_done(&self, id: JobId, deadline: Duration) -> Result<JobView> {
        let job = self.wait_job(id, "over", deadline, |job| job.state.is_final())?;
        ensure!(job.state == JobState::Done, "job {id} ended as {:?}: {:?}", job.state, job.reason);
        Ok(job)
    }

    /// All rows of a job, by `picket results --job ID -o ndjson`.
    ///
    /// # Errors
    /// When they cannot be had.
    pub fn results(&self, id: JobId) -> Result<Vec<ResultRow>> {
        let text = self.picket(&["results", "--job", &id.to_string(), "-o", "ndjson"], PATIENCE)?.ok()?;
        rows(&text)
    }

    fn boxed(&self, name: &str) -> Result<&Boxed> {
        self.probes.get(name).with_context(|| format!("probe {name} was never enrolled"))
    }

    fn boxed_mut(&mut self, name: &str) -> Result<&mut Boxed> {
        self.probes.get_mut(name).with_context(|| format!("probe {name} was never enrolled"))
    }
}

/// Reads rows of `-o ndjson`.
///
/// # Errors
/// When a line is not a row.
pub fn rows(ndjson: &str) -> Result<Vec<ResultRow>> {
    ndjson.lines().map(|line| serde_json::from_str(line).with_context(|| format!("a result row: {line}"))).collect()
}

/// A pcap filter for what goes to the networks of these segments of a site.
///
/// # Errors
/// When there is no such segment.
pub fn towards(site: &Site, segments: &[&str]) -> Result<String> {
    let mut filter = String::new();
    for segment in segments {
        for network in site.segment(segment)?.target().truth().networks() {
            let or = if filter.is_empty() { "" } else { " or " };
            write!(filter, "{or}dst net {network}").context("write a filter")?;
        }
    }
    if filter.is_empty() {
        bail!("no segment is named");
    }
    Ok(filter)
}

fn restrict(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).with_context(|| format!("restrict {}", dir.display()))
}
