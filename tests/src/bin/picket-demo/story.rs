//! The demo itself, step by step: a site, a controller, three probes, three jobs, and what was checked of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use picket_controller::view::{JobView, ResultRow};
use picket_tests::lab::Proc;
use picket_tests::lab::programs::Programs;
use picket_tests::lab::truth::{HostState, Network, PortTruth};

use crate::check::Question;
use crate::fleet::Follower;
use crate::rates::{self, Sent, Watches};
use crate::say::{Say, count};
use crate::stage::{CONTROLLER, FORBIDDEN, NETWORKS, OFFICE, PORTS, PROBES, SERVERS, Stage, until};
use crate::stop;

/// How long a program may take to start, or to do one small thing.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a job may take.
const JOB_PATIENCE: Duration = Duration::from_secs(90);
/// How long programs may take to end in an orderly way.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Rows shown of a result table.
const ROWS: usize = 10;
/// The ports that every probe asks for itself.
const EACH_PORTS: [u16; 3] = [22, 80, 443];
/// The dashboard's user.
const USER: &str = "wall";

/// Everything that runs. Programs end before the network they run in.
struct Show<'a> {
    say: &'a Say,
    programs: Vec<(String, Proc)>,
    fleet: Option<Follower>,
    watches: Option<Watches>,
    /// Packets that each probe reported, over all jobs.
    reported: BTreeMap<String, u64>,
    checks: Checks<'a>,
    stage: Stage,
}

/// What was checked: all of it is said, and what is wrong decides the exit status.
struct Checks<'a> {
    say: &'a Say,
    wrong: Vec<String>,
}

impl Checks<'_> {
    fn outcome(&mut self, right: &str, faults: Vec<String>) {
        if faults.is_empty() {
            self.say.right(right);
        }
        for fault in &faults {
            self.say.wrong(fault);
        }
        self.wrong.extend(faults);
    }
}

/// Tells the story; gives what was not as it should be.
pub(crate) fn tell(say: &Say, once: bool) -> Result<Vec<String>> {
    say.line("Picket, the demo: a controller and three probes on this machine, in network namespaces with no route to the outside.");
    say.line("Ctrl-C ends it at any time and removes everything.");
    say.step("A network of its own");
    let stage = Stage::build().context("build the site")?;
    let mut show = Show {
        say,
        programs: Vec::new(),
        fleet: None,
        watches: None,
        reported: BTreeMap::new(),
        checks: Checks { say, wrong: Vec::new() },
        stage,
    };
    let told = show.acts(once);
    if let Err(error) = &told
        && !error.is::<stop::Interrupted>()
    {
        show.logs();
    }
    told.map(|()| show.checks.wrong.clone())
}

impl Show<'_> {
    fn acts(&mut self, once: bool) -> Result<()> {
        self.network()?;
        self.controller()?;
        self.dashboard()?;
        self.probes()?;
        self.watches = Some(Watches::start(&self.stage)?);
        self.discovery()?;
        self.shared_scan()?;
        self.each_scan()?;
        self.limits()?;
        self.verdict();
        if once {
            self.end();
            return Ok(());
        }
        self.stay()
    }

    fn network(&self) -> Result<()> {
        stop::check()?;
        self.say.note(
            "controller ──┐\n\
             north ───────┤          ┌── servers  198.18.20.0/25   2001:db8:20::/121   routed\n\
             south ───────┴─ router ─┤\n\
             \x20                        └── office   198.18.10.0/26   2001:db8:10::/122   one wire, and the probe `desk` on it",
        );
        for (name, segment) in [OFFICE, SERVERS].into_iter().zip(self.stage.segments()?) {
            let truth = segment.target().truth();
            let hosts = |state| truth.hosts().filter(|(_, found)| *found == state).count();
            let ports = |state| truth.in_state(state).count();
            self.say.note(&format!(
                "{name}: {} addresses, {} hosts (of these {} ignore pings); {} open, {} refused, {} silent ports",
                hosts(HostState::Up) + hosts(HostState::Shy) + hosts(HostState::Dead),
                hosts(HostState::Up) + hosts(HostState::Shy),
                hosts(HostState::Shy),
                ports(PortTruth::Open),
                ports(PortTruth::Closed),
                ports(PortTruth::Silent) - hosts(HostState::Dead) * truth.ports().len(),
            ));
        }
        self.say.note(&format!(
            "A kernel answers for these addresses and real programs listen. What each port is, is known (the ground truth), so what\n\
             Picket finds can be checked. {FORBIDDEN} is off limits: the fleet's policy says so.\n\
             In the commands below `north#` is a shell at that place, and D={}",
            self.stage.dir().display()
        ));
        for segment in self.stage.segments()? {
            segment.target().self_check(self.stage.place("north")?, 6).context("the lab itself is wrong")?;
        }
        Ok(())
    }

    fn controller(&mut self) -> Result<()> {
        self.say.step("The controller");
        let site = self.stage.site();
        let networks = NETWORKS.map(|network| format!("\"{network}\"")).join(", ");
        let text = format!(
            "# Under which addresses probes and people reach the controller.\nnames = [\"{}\", \"{}\"]\n\n[policy]\n\
             # Without this line only private networks may be probed.\nallow = [{networks}]\n\
             # What nobody may touch, whatever a job says.\ndeny = [\"{FORBIDDEN}\"]\n\n[probes]\nheartbeat = \"1s\"\n",
            site.controller_v4(),
            site.controller_v6()
        );
        site.lab().write("controller.toml", text)?;
        self.say.note("It starts with nothing prepared: it makes its certificate authority, its database and an admin token.");
        let command = "picket serve --config $D/controller.toml --data $D/controller";
        let mut serve = self.stage.start(self.say, CONTROLLER, "serve", command)?;
        serve.wait_for("ready block of the controller", PATIENCE, |_, stderr| {
            stderr.contains("\nnext:").then_some(()).or_else(|| stop::asked().then_some(()))
        })?;
        stop::check()?;
        let said = serve.stderr();
        let block = said.lines().skip_while(|line| !line.contains("is ready")).take_while(|line| !line.starts_with("next:"));
        block.for_each(|line| self.say.output(line));
        self.programs.push(("picket serve".to_owned(), serve));
        Ok(())
    }

    fn dashboard(&mut self) -> Result<()> {
        self.say.step("A dashboard that follows the fleet over MQTT");
        self.say.note("A read-only user who sees the fleet's status and nothing else; its news are shown below as they come.");
        self.command(CONTROLLER, &format!("picket dashboard-user add {USER} > $D/{USER}.password"))?;
        let address = self.stage.site().controller_v4();
        let command = format!(
            "mosquitto_sub -h {address} -p 8884 --cafile $D/controller/ca.pem -u {USER} -P \"$(cat $D/{USER}.password)\" -v -t 'picket/v1/fleet/#'"
        );
        let proc = self.stage.start(self.say, CONTROLLER, "mosquitto_sub", &command)?;
        self.fleet = Some(Follower::new(proc.stdout_file()));
        self.programs.push(("mosquitto_sub".to_owned(), proc));
        Ok(())
    }

    fn probes(&mut self) -> Result<()> {
        self.say.step("Three probes");
        self.say.note("Each is invited by name, enrols with its one-time token (it makes its own key) and is started:");
        for plan in PROBES {
            let name = plan.name;
            let networks = NETWORKS.map(|network| format!("\"{network}\"")).join(", ");
            let text = format!(
                "[interface]\n# What the interface may send, over everything.\npackets = \"{}pps\"\n\n[policy]\n\
                 # The site's own word: only local hands change it.\nallow = [{networks}]\n",
                plan.limit
            );
            self.stage.site().lab().write(&format!("{name}.toml"), text)?;
            self.say.note(&format!("{name}, {}, may send {} packets per second", plan.place, plan.limit));
            self.command(CONTROLLER, &format!("picket probe add {name} --site demo > $D/{name}.token"))?;
            self.command(name, &format!("picket-probe enrol --token-file $D/{name}.token --data $D/{name}"))?;
            let command = format!("picket-probe run --config $D/{name}.toml --data $D/{name}");
            let proc = self.stage.start(self.say, name, name, &command)?;
            self.programs.push((format!("picket-probe run ({name})"), proc));
        }
        let (say, fleet) = (self.say, self.fleet.as_mut().context("the dashboard is there")?);
        let programs = &mut self.programs;
        until("three probes online, as the dashboard sees them", PATIENCE, || {
            fleet.show(say);
            for (name, proc) in programs.iter_mut() {
                ensure!(proc.running(), "{name} has ended");
            }
            Ok(PROBES.iter().all(|plan| fleet.state(plan.name) == Some("online")).then_some(()))
        })?;
        self.command(CONTROLLER, "picket probe list").map(drop)
    }

    fn discovery(&mut self) -> Result<()> {
        self.say.step("Which hosts are there? A search by ICMP echo");
        let command = format!("picket discover {} --host-probes echo --progress --limit {ROWS}", NETWORKS.join(" "));
        self.job(&command, "discovery", &[], false)
    }

    fn shared_scan(&mut self) -> Result<()> {
        self.say.step("Which ports are open? A scan split between the probes");
        self.say.note(
            "Every target is accounted for: it answered (filtered: a router said that nobody is there), stayed silent, was refused by\n\
             policy, or was not reached (on the desk's own wire nobody has that address).",
        );
        let command = format!("picket scan {} -p {} --progress --limit {ROWS}", NETWORKS.join(" "), join(&PORTS));
        self.job(&command, "split scan", &PORTS, false)
    }

    fn each_scan(&mut self) -> Result<()> {
        self.say.step("What does it look like from everywhere? A scan by each probe");
        let command = format!("picket scan {} -p {} --mode each --progress --limit 5", NETWORKS.join(" "), join(&EACH_PORTS));
        self.job(&command, "scan from each vantage point", &EACH_PORTS, true)
    }

    /// Runs a job to its end, shows it, and compares it with the truth.
    fn job(&mut self, command: &str, what: &str, ports: &[u16], each: bool) -> Result<()> {
        let ended = self.command_may_fail(CONTROLLER, command, JOB_PATIENCE)?;
        let newest: Vec<JobView> = self.api("picket job list --limit 1 --json")?;
        let listed = newest.first().with_context(|| format!("no job after `{command}` (exit status {ended})"))?.id;
        if each {
            self.same_host_from_everywhere(&listed.to_string())?;
        }
        self.command(CONTROLLER, &format!("picket job show {listed}"))?;
        let job: JobView = self.api(&format!("picket job show {listed} --json"))?;
        let rows: Vec<ResultRow> = self.api(&format!("picket results --job {listed} --json"))?;
        for part in &job.probes {
            *self.reported.entry(part.probe.to_string()).or_default() += part.coverage.packets;
        }
        let vantages = if each { PROBES.map(|plan| plan.name).to_vec() } else { Vec::new() };
        let [office, servers] = self.stage.segments()?;
        let truths = vec![(office.target().truth(), true), (servers.target().truth(), false)];
        let question = Question { truths, forbidden: Stage::forbidden(), ports, each: &vantages };
        let mut faults = Vec::new();
        if ended != 0 {
            faults.push(format!("`{command}` ended with status {ended}"));
        }
        match question.compare(&job, &rows) {
            Ok(compared) => self.checks.outcome(
                &format!(
                    "{what}: all {} answers found, none wrong, none twice; {} targets accounted for",
                    count(compared.answers),
                    count(compared.targets)
                ),
                faults,
            ),
            Err(differences) => {
                faults.extend(differences.into_iter().map(|difference| format!("{what}: {difference}")));
                self.checks.outcome("", faults);
            }
        }
        Ok(())
    }

    /// One host of the office with open ports, as each probe sees it.
    fn same_host_from_everywhere(&mut self, job: &str) -> Result<()> {
        let truth = self.stage.segments()?[0].target().truth();
        let open = |address| EACH_PORTS.iter().filter(|port| truth.state(address, **port) == Some(PortTruth::Open)).count();
        let host = truth.hosts().map(|(address, _)| address).max_by_key(|address| open(*address)).context("the office has no hosts")?;
        self.say.note("One host of the office, from everywhere: near from the desk, one hop further from the others:");
        self.command(CONTROLLER, &format!("picket results --job {job} --addr {host}"))
    }

    fn limits(&mut self) -> Result<()> {
        self.say.step("What did each probe send? As captured at the router");
        let networks: Vec<Network> =
            NETWORKS.iter().map(|network| network.parse()).collect::<Result<_>>().context("the networks of the demo")?;
        let watches = self.watches.take().context("the captures run")?;
        let all = watches.stop(&networks)?;
        rates::table(&all).iter().for_each(|line| self.say.output(line));
        let over = all.iter().flat_map(Sent::faults).collect();
        self.checks.outcome("no probe was ever faster than its limit and its stated burst, in any 100 ms or 1 s", over);
        let strays = all.iter().filter(|sent| sent.forbidden + sent.astray > 0);
        let strays = strays.map(|sent| {
            format!(
                "{} sent {} frames to {FORBIDDEN}, which is off limits, and {} to no target",
                sent.plan.name, sent.forbidden, sent.astray
            )
        });
        let strays = strays.collect();
        self.checks.outcome(&format!("nothing was sent to {FORBIDDEN}, nor to any address that was not asked for"), strays);
        let wrong = all.iter().filter(|sent| self.reported.get(sent.plan.name).copied().unwrap_or_default() != sent.questions);
        let wrong = wrong.map(|sent| {
            let reported = self.reported.get(sent.plan.name).copied().unwrap_or_default();
            format!("{} reported {reported} packets, captured were {}", sent.plan.name, sent.questions)
        });
        let wrong = wrong.collect();
        self.checks.outcome("what the probes reported as sent is what was captured", wrong);
        Ok(())
    }

    fn verdict(&mut self) {
        self.say.step("The dashboard's view, and the verdict");
        let Some(fleet) = self.fleet.as_mut() else { return };
        fleet.show(self.say);
        if let Some(summary) = fleet.summary() {
            self.say.aside(&format!("picket/v1/fleet/summary {summary}"));
        }
        let seen = |name: &str| ["online", "busy"].iter().all(|state| fleet.states(name).iter().any(|seen| seen == state));
        let unseen = PROBES.iter().filter(|plan| !seen(plan.name));
        let unseen =
            unseen.map(|plan| format!("the dashboard saw {} only as: {}", plan.name, fleet.states(plan.name).join(", "))).collect();
        self.checks.outcome("the dashboard saw every probe come online, work and rest", unseen);
        let text = match self.checks.wrong.len() {
            0 => "Everything is as it should be.".to_owned(),
            1 => "One thing is WRONG, see above.".to_owned(),
            many => format!("{many} things are WRONG, see above."),
        };
        self.say.line(&format!("\n{text}"));
    }

    /// Asks the programs to end, the probes first.
    fn end(&mut self) {
        while let Some((_, mut proc)) = self.programs.pop() {
            // Whoever does not end in time is killed with the network.
            let _ = proc.terminate(END_PATIENCE);
        }
    }

    /// Leaves everything running until Ctrl-C.
    fn stay(&mut self) -> Result<()> {
        let dir = self.stage.dir().display().to_string();
        let at = |place: &str| -> Result<String> { Ok(format!("ip netns exec {}", self.stage.place(place)?.name())) };
        let router = format!("ip netns exec {}", self.stage.site().router().name());
        let programs = Programs::locate()?;
        let (picket, probe) = (programs.path("picket")?, programs.path("picket-probe")?);
        let client = format!("{} env PICKET_DATA={dir}/controller {}", at(CONTROLLER)?, picket.display());
        self.say.line(&format!(
            "\nEverything is still running. In another root shell, ready to paste:\n\n  \
             {client} probe list\n  \
             {client} scan 198.18.10.0/26 -p 1-100 --rate 200pps\n  \
             {client} results --state open --addr 2001:db8:20::/121\n  \
             {} {} status --config {dir}/north.toml --data {dir}/north\n\n\
             Shells in which the commands above work as they stand:\n\n  \
             {dir}/enter controller      (or north, south, desk)\n\n\
             Pull the cable of `south`, look at `picket probe list`, and plug it in again (it comes back within half a minute):\n\n  \
             {router} ip link set p-south down\n  \
             {router} ip link set p-south up\n\n\
             Logs and data are in {dir}; Ctrl-C ends everything and removes it.",
            at("north")?,
            probe.display(),
        ));
        while !stop::asked() {
            if let Some(at) = self.programs.iter_mut().position(|(_, proc)| !proc.running()) {
                let (name, mut proc) = self.programs.remove(at);
                let status = proc.wait(END_PATIENCE)?;
                self.say.line(&format!("{name} has ended with {status}."));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.say.line("\nEnding everything ...");
        self.end();
        Ok(())
    }

    /// Shows and runs a command that must succeed.
    fn command(&mut self, place: &str, command: &str) -> Result<()> {
        let ended = self.command_may_fail(place, command, PATIENCE)?;
        ensure!(ended == 0, "`{command}` ended with status {ended}");
        Ok(())
    }

    /// Shows and runs a command; gives its exit status.
    fn command_may_fail(&mut self, place: &str, command: &str, patience: Duration) -> Result<i32> {
        let (say, fleet) = (self.say, &mut self.fleet);
        let ended = self.stage.run(say, place, command, patience, || {
            if let Some(fleet) = fleet {
                fleet.show(say);
            }
        })?;
        Ok(ended.code().unwrap_or(-1))
    }

    /// Asks the controller for something as JSON.
    fn api<T: serde::de::DeserializeOwned>(&self, command: &str) -> Result<T> {
        let text = self.stage.ask(CONTROLLER, command)?;
        serde_json::from_str(&text).with_context(|| format!("what `{command}` printed"))
    }

    /// What the programs said last, for who looks for a fault.
    fn logs(&mut self) {
        for (name, proc) in &mut self.programs {
            let state = match proc.try_wait() {
                Ok(Some(status)) => format!("ended with {status}"),
                _ => "running".to_owned(),
            };
            let log = proc.stderr();
            let lines: Vec<&str> = log.lines().collect();
            self.say.line(&format!("\nThe last lines of {name} ({state}):"));
            lines[lines.len().saturating_sub(15)..].iter().for_each(|line| self.say.output(line));
        }
        self.say.line("\nPICKET_LAB_KEEP=1 keeps all files for a closer look.");
    }
}

fn join(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}
