//! Captures as jobs, through a controller and a probe: the file that arrives is the one that the probe wrote, byte for byte, whatever is
//! killed or cut while it grows and travels; each side's policy holds; and what is asked for wrongly is said before anything is captured.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use picket_controller::view::{CaptureState, CaptureView, JobState};
use picket_packet::pcapng::read::{Block, Reader};
use picket_tests::lab::site::Site;
use picket_tests::lab::{require_root, wait_until};
use picket_tests::system::{Fleet, PATIENCE, Plan};
use picket_wire::ids::JobId;

/// Only waited for when something is broken.
const LONG: Duration = Duration::from_secs(180);
const PORT: u16 = 9;
/// Bytes of each datagram, its number included: what cannot be packed.
const DATAGRAM: usize = 1_000;

/// Numbered datagrams from the site's router to the probe, some hundreds per second.
struct Chatter {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Chatter {
    fn start(site: &Site) -> Self {
        let to: IpAddr = site.probe("a").unwrap().v4().into();
        let socket = site.router().enter(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let talk = move || {
            let mut state = 7u64;
            while !stopped.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed);
                let mut datagram = number.to_le_bytes().to_vec();
                while datagram.len() < DATAGRAM {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    datagram.extend((state >> 32).to_le_bytes());
                }
                // A probe that refuses is told of, and not waited for.
                if socket.send_to(&datagram[..DATAGRAM], (to, PORT)).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        };
        Self { stop, sent, thread: Some(std::thread::spawn(talk)) }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many more were sent.
    fn more(&self, count: u64) {
        let until = self.sent() + count;
        wait_until("datagrams", LONG, || Ok((self.sent() >= until).then_some(()))).unwrap();
    }
}

impl Drop for Chatter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn fleet(name: &str, controller: &str, site: &str) -> Fleet {
    let plan = Plan::default().roles("scan,capture").captures(controller, site);
    Fleet::start(Site::builder(name).probe("a").build().unwrap(), plan).unwrap()
}

fn captures(fleet: &Fleet, job: JobId) -> Vec<CaptureView> {
    fleet.json(&["captures", "list", "--job", &job.to_string(), "--json"]).unwrap()
}

/// The numbers of a file's datagrams, and its sections.
fn numbers(path: &Path) -> (Vec<u64>, u32) {
    let mut reader = Reader::new(fs::File::open(path).unwrap());
    let (mut numbers, mut sections) = (Vec::new(), 0);
    while let Some(block) = reader.next_block().unwrap() {
        match block {
            Block::Section(_) => sections += 1,
            // Ethernet, IPv4 and UDP headers come first.
            Block::Packet(packet) => numbers.push(u64::from_le_bytes(packet.data[42..50].try_into().unwrap())),
            _ => {}
        }
    }
    (numbers, sections)
}

/// The probe's own file under another name as well, so that it stays when the probe removes it.
fn hold(fleet: &Fleet, job: JobId, to: &Path) {
    let dir = fleet.probe_data("a").unwrap().join("captures");
    let file = wait_until("the probe's file", PATIENCE, || {
        let found = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let ours = |path: &PathBuf| path.to_string_lossy().contains(&job.to_string()) && path.extension().is_some_and(|e| e == "pcapng");
        Ok(found.into_iter().find(ours))
    });
    fs::hard_link(file.unwrap(), to).unwrap();
}

#[test]
fn what_a_probe_captures_arrives_while_it_grows_and_is_what_the_probe_wrote() {
    if !require_root() {
        return;
    }
    let fleet = fleet("capture", "payload", "payload");
    let chatter = Chatter::start(fleet.site());
    let dir = fleet.site().lab().dir().to_owned();
    let (here, there) = (dir.join("here.pcapng"), dir.join("there.pcapng"));
    let to = here.to_str().unwrap();
    let mut capture = fleet.picket_spawn(&["capture", "--probe", "a", "--full", "--time", "10m", "-w", to, "udp", "port", "9"]).unwrap();
    let line = capture.wait_for_line(": each probe, on", PATIENCE).unwrap();
    let job: JobId = line.split_whitespace().nth(1).unwrap().trim_end_matches(':').parse().unwrap();
    hold(&fleet, job, &there);
    // It is written here while it grows there.
    wait_until("packets here", LONG, || Ok((fs::metadata(&here).map_or(0, |about| about.len()) > 200_000).then_some(()))).unwrap();
    let [running] = captures(&fleet, job).try_into().unwrap();
    assert_eq!((running.state, running.probe.as_str()), (CaptureState::Running, "a"));
    capture.signal(Signal::SIGINT).unwrap();
    let finished = capture.finish(LONG).unwrap();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("packets written") && finished.stderr.contains("ended by asked"), "{}", finished.stderr);
    assert_eq!(fs::read(&here).unwrap(), fs::read(&there).unwrap(), "byte for byte");

    let (numbers, sections) = numbers(&here);
    let [view] = captures(&fleet, job).try_into().unwrap();
    let counts = view.counts.unwrap();
    assert_eq!((view.state, sections, counts.written, counts.kernel_drops), (CaptureState::Whole, 1, numbers.len() as u64, 0));
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "each datagram once, in order");
    // What passed the filter after the end was asked for is in the kernel's count alone.
    assert_eq!(counts.delivered, counts.written);
    assert!((counts.written..counts.written + 200).contains(&counts.accepted), "{counts:?}");
    let job_view = fleet.job(job).unwrap();
    assert_eq!((job_view.state, job_view.coverage.asked, job_view.coverage.up), (JobState::Cancelled, 1, 1));
    assert!(job_view.coverage.adds_up());
    // Nothing stays on the box.
    let left = || fs::read_dir(fleet.probe_data("a").unwrap().join("captures")).unwrap().count();
    wait_until("the box to clean up", LONG, || Ok((left() == 0).then_some(()))).unwrap();
    drop(chatter);

    // Fetched again, and who did is remembered; removed, it is gone.
    let again = dir.join("again.pcapng");
    let id = job.to_string();
    fleet.picket(&["captures", "get", &id, "-w", again.to_str().unwrap()], PATIENCE).unwrap().ok().unwrap();
    assert_eq!(fs::read(&again).unwrap(), fs::read(&here).unwrap());
    let shown = fleet.picket(&["captures", "show", &id], PATIENCE).unwrap().ok().unwrap();
    assert!(shown.lines().filter(|line| line.contains("by admin, from byte")).count() >= 2, "{shown}");
    fleet.picket(&["captures", "remove", &id], PATIENCE).unwrap().ok().unwrap();
    let gone = fleet.picket(&["captures", "get", &id, "-w", again.to_str().unwrap()], PATIENCE).unwrap();
    assert!(gone.status.code() == Some(1) && gone.stderr.contains("removed at"), "{}", gone.stderr);
    fleet.picket(&["db", "rebuild"], PATIENCE).unwrap().ok().unwrap();
    assert_eq!(captures(&fleet, job)[0].sha256, view.sha256);
}

/// The packets that lines or objects tell of, by number.
fn told(stdout: &str, number: impl Fn(&str) -> Option<u64>) -> Vec<u64> {
    let told: Vec<u64> = stdout.lines().filter(|line| !line.contains("are not shown")).filter_map(number).collect();
    assert!(told.is_sorted_by(|a, b| a < b), "{told:?}");
    told
}

/// How many packets had no line, as it is said at the end.
fn not_shown(stderr: &str) -> u64 {
    let line = stderr.lines().find(|line| line.contains("packets were not shown"));
    line.map_or(0, |line| line.split_whitespace().next().unwrap().replace([',', '.', '\u{202f}'], "").parse().unwrap())
}

#[test]
fn packets_are_shown_as_they_come_and_those_beyond_the_rate_are_counted() {
    if !require_root() {
        return;
    }
    let fleet = fleet("captline", "payload", "payload");
    let chatter = Chatter::start(fleet.site());
    // As picket-probe shows them, while they come.
    let args = ["capture", "--probe", "a", "-c", "900", "--lines", "40", "udp", "port", "9"];
    let mut capture = fleet.picket_spawn(&args).unwrap();
    let line = capture.wait_for_line(" UDP ", LONG).unwrap();
    assert!(line.starts_with("    1    0.000000 ") && line.contains(" → 9 Len=1000"), "{line}");
    assert!(capture.running(), "lines come before the end");
    let finished = capture.finish(LONG).unwrap();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    let lines = told(&finished.stdout, |line| line.split_whitespace().next()?.parse().ok());
    let [view] = fleet.json::<Vec<CaptureView>>(&["captures", "list", "--json"]).unwrap().try_into().unwrap();
    let counts = view.counts.unwrap();
    assert_eq!((counts.written, counts.kernel_drops), (900, 0));
    assert_eq!(lines.len() as u64 + not_shown(&finished.stderr), 900, "{}", finished.stderr);
    assert!(lines.len() >= 40 && not_shown(&finished.stderr) > 0, "{} lines", lines.len());

    // As objects beside a file, which lacks nothing that has no line.
    let file = fleet.site().lab().dir().join("lines.pcapng");
    let to = file.to_str().unwrap();
    let args = ["capture", "--probe", "a", "-c", "300", "--lines", "5", "--json", "-w", to, "udp", "port", "9"];
    let finished = fleet.picket(&args, LONG).unwrap();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    let (last, packets) = finished.stdout.trim_end().rsplit_once('\n').map(|(packets, last)| (last, packets)).unwrap();
    let object = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let shown = told(packets, |line| object(line)["number"].as_u64());
    assert_eq!(shown.len() as u64 + not_shown(&finished.stderr), 300, "{}", finished.stderr);
    assert_eq!((object(last)["type"].as_str(), object(last)["counts"]["written"].as_u64()), (Some("capture"), Some(300)));
    let (numbers, _) = numbers(&file);
    assert!(numbers.len() == 300 && numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "each datagram once, in order");
    drop(chatter);
}

#[test]
fn limits_end_a_capture_and_several_probes_have_a_file_each() {
    if !require_root() {
        return;
    }
    let plan = Plan::default().roles("scan,capture");
    let fleet = Fleet::start(Site::builder("captlim").probe("a").probe("b").build().unwrap(), plan).unwrap();
    let _chatter = Chatter::start(fleet.site());
    let job = fleet.submit_job(&["capture", "--site", "a", "--probe", "a", "-c", "40", "udp", "port", "9"]).unwrap();
    fleet.wait_done(job, LONG).unwrap();
    let to = fleet.site().lab().dir().join("few.pcapng");
    fleet.picket(&["captures", "get", &job.to_string(), "--follow", "-w", to.to_str().unwrap()], LONG).unwrap().ok().unwrap();
    let [few] = captures(&fleet, job).try_into().unwrap();
    assert_eq!((few.end.as_deref(), few.counts.unwrap().written, numbers(&to).0.len()), (Some("packets"), 40, 40));
    // Both of them, for a second; nothing passes the filter, and the files say so.
    let job = fleet.submit_job(&["capture", "--probe", "a,b", "--time", "1s", "tcp", "port", "1"]).unwrap();
    fleet.wait_done(job, LONG).unwrap();
    wait_until("both files", LONG, || Ok(captures(&fleet, job).iter().all(|one| one.state == CaptureState::Whole).then_some(()))).unwrap();
    let both = captures(&fleet, job);
    let probes: Vec<&str> = both.iter().map(|one| one.probe.as_str()).collect();
    assert!(both.len() == 2 && probes.contains(&"a") && probes.contains(&"b"), "{both:?}");
    assert!(both.iter().all(|one| one.counts.unwrap().written == 0 && one.end.as_deref() == Some("time")), "{both:?}");
    let which = fleet.picket(&["captures", "show", &job.to_string()], PATIENCE).unwrap();
    assert!(which.status.code() == Some(2) && which.stderr.contains("--probe"), "{}", which.stderr);
}

#[test]
fn what_is_wrong_or_forbidden_is_said() {
    if !require_root() {
        return;
    }
    let fleet = fleet("captpol", "payload", "headers");
    let ask = |args: &[&str]| fleet.picket(&[&["capture", "--probe", "a", "-w", "/dev/null"], args].concat(), LONG).unwrap();
    let wrong = ask(&["tcp", "prot", "80"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stderr.contains("filter is wrong at character 5, `prot`") && wrong.stderr.contains("\n      ^"), "{}", wrong.stderr);
    // What was asked for wrongly costs nobody the file of yesterday.
    let yesterday = fleet.site().lab().dir().join("yesterday.pcapng");
    fs::write(&yesterday, "precious").unwrap();
    let again = fleet.picket(&["capture", "--probe", "a", "-w", yesterday.to_str().unwrap(), "tcp", "prot"], LONG).unwrap();
    assert!(again.status.code() == Some(2) && fs::read(&yesterday).unwrap() == b"precious", "{}", again.stderr);
    // The fleet permits payload, and the site does not.
    let forbidden = ask(&["--full", "udp"]);
    assert_eq!(forbidden.status.code(), Some(3), "{}", forbidden.stderr);
    assert!(forbidden.stderr.contains("this site does not permit it"), "{}", forbidden.stderr);
    let nowhere = ask(&["-i", "eth99", "udp"]);
    assert!(nowhere.status.code() == Some(3) && nowhere.stderr.contains("eth99"), "{}", nowhere.stderr);
    let large = ask(&["--bytes", "2GiB", "udp"]);
    assert!(large.status.code() == Some(3) && large.stderr.contains("1073741824"), "{}", large.stderr);
    let ring = ask(&["--ring"]);
    assert!(ring.status.code() == Some(3) && ring.stderr.contains("keeps no ring"), "{}", ring.stderr);
    let plan = ask(&["--dry-run", "udp"]);
    assert!(plan.status.success() && plan.stdout.contains("packets that match `udp`"), "{}", plan.stdout);
    assert_eq!(fleet.json::<Vec<CaptureView>>(&["captures", "list", "--json"]).unwrap(), []);
}

/// The numbers and times (in milliseconds since 1970) of a file's datagrams.
fn times(path: &Path) -> Vec<(u64, u64)> {
    let mut reader = Reader::new(fs::File::open(path).unwrap());
    let mut found = Vec::new();
    while let Some(block) = reader.next_block().unwrap() {
        if let Block::Packet(packet) = block {
            found.push((u64::from_le_bytes(packet.data[42..50].try_into().unwrap()), packet.time.0 / 1_000_000));
        }
    }
    found
}

#[test]
fn a_ring_is_asked_afterwards_for_what_a_full_capture_saw() {
    if !require_root() {
        return;
    }
    let ring = "[ring]\nmax_bytes = 50000000\nfilter = \"udp port 9\"\n";
    let plan = Plan::default().roles("scan,capture").probe(ring);
    let mut fleet = Fleet::start(Site::builder("captring").probe("a").build().unwrap(), plan).unwrap();
    let chatter = Chatter::start(fleet.site());
    let dir = fleet.site().lab().dir().to_owned();
    let (truth, told) = (dir.join("truth.pcapng"), dir.join("told.pcapng"));
    let segment = fleet.probe_data("a").unwrap().join("ring");
    wait_until("the ring", LONG, || Ok(fs::read_dir(&segment).is_ok_and(|mut files| files.next().is_some()).then_some(()))).unwrap();
    chatter.more(200);
    let capture = |fleet: &Fleet, args: &[&str], to: &Path| {
        let to = to.to_str().unwrap();
        fleet.picket(&[&["capture", "--probe", "a", "-w", to], args].concat(), LONG).unwrap()
    };
    capture(&fleet, &["-c", "600", "udp", "port", "9"], &truth).ok().unwrap();
    let truth = times(&truth);
    assert_eq!(truth.len(), 600);
    // Killed, the ring is read up to its last whole block, and goes on.
    fleet.kill_probe("a").unwrap();
    fleet.start_probe("a").unwrap();
    fleet.wait_online("a").unwrap();
    let (from, to) = (truth[150].1 + 1, truth[450].1 + 1);
    let seconds = |millis: u64| format!("{}.{:03}", millis / 1_000, millis % 1_000);
    let source = fleet.site().probe("a").unwrap().v4().to_string();
    let ask = ["--ring", "--from", &seconds(from), "--to", &seconds(to), "--host", &source, "--port", "9"];
    let answer = capture(&fleet, &ask, &told);
    assert_eq!(answer.status.code(), Some(0), "{}", answer.stderr);
    assert!(answer.stderr.contains("packets were looked at"), "{}", answer.stderr);
    let within: Vec<u64> = truth.iter().filter(|(_, at)| (from..to).contains(at)).map(|(number, _)| *number).collect();
    assert!(within.len() > 250);
    assert_eq!(times(&told).iter().map(|(number, _)| *number).collect::<Vec<_>>(), within);
    // Nobody of that name, nothing of that time, and a filter that leaves nothing.
    let nobody = capture(&fleet, &["--ring", "--host", "192.0.2.99"], &told);
    assert!(nobody.status.success() && times(&told).is_empty(), "{}", nobody.stderr);
    let small = capture(&fleet, &["--ring", "--bytes", "4096"], &told);
    assert!(small.status.code() == Some(3) && small.stderr.contains("longer than the file may be"), "{}", small.stderr);
    let wrong = capture(&fleet, &["--ring", "tcp", "prot", "9"], &told);
    assert!(wrong.status.code() == Some(2) && wrong.stderr.contains("`prot`"), "{}", wrong.stderr);
}

/// What happens to whom.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillProbe,
    KillController,
    Partition,
}

/// Kills and partitions from a seed: a run can be had again.
fn faults(seed: u64, kills: usize) -> Vec<Fault> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut faults = Vec::new();
    while faults.iter().filter(|fault| !matches!(fault, Fault::Partition)).count() < kills {
        faults.push(match next() % 5 {
            0 | 1 => Fault::KillProbe,
            2 | 3 => Fault::KillController,
            _ => Fault::Partition,
        });
    }
    faults
}

#[test]
fn twenty_kills_of_either_end_leave_the_same_bytes_at_both() {
    if !require_root() {
        return;
    }
    let mut fleet = fleet("captkill", "payload", "payload");
    let chatter = Chatter::start(fleet.site());
    let dir = fleet.site().lab().dir().to_owned();
    let (here, there) = (dir.join("here.pcapng"), dir.join("there.pcapng"));
    let job = fleet.submit_job(&["capture", "--probe", "a", "--full", "--time", "1h", "udp", "port", "9"]).unwrap();
    hold(&fleet, job, &there);
    let faults = faults(20, 20);
    let killed = faults.iter().filter(|fault| matches!(fault, Fault::KillProbe)).count();
    assert!(killed >= 5, "{faults:?}");
    for fault in &faults {
        chatter.more(150);
        match fault {
            Fault::KillProbe => {
                fleet.kill_probe("a").unwrap();
                chatter.more(20);
                fleet.start_probe("a").unwrap();
                // Killed before it goes on, it would have nothing to lose.
                let before = fs::metadata(&there).unwrap().len();
                wait_until("the capture to go on", LONG, || Ok((fs::metadata(&there)?.len() > before + 1_000).then_some(()))).unwrap();
            }
            Fault::KillController => {
                fleet.kill_controller().unwrap();
                chatter.more(20);
                fleet.start_controller().unwrap();
            }
            Fault::Partition => {
                fleet.site().controller_link_down().unwrap();
                chatter.more(100);
                fleet.site().controller_link_up().unwrap();
            }
        }
    }
    chatter.more(100);
    fleet.wait_probe("a", "there", LONG, |view| view.jobs.iter().any(|held| held.job == job)).unwrap();
    fleet.picket(&["job", "cancel", &job.to_string()], PATIENCE).unwrap().ok().unwrap();
    let last = chatter.sent();
    let whole = |all: &[CaptureView]| all.first().is_some_and(|one| one.state == CaptureState::Whole);
    wait_until("all of the file", LONG, || Ok(whole(&captures(&fleet, job)).then_some(()))).unwrap();
    fleet.picket(&["captures", "get", &job.to_string(), "-w", here.to_str().unwrap()], LONG).unwrap().ok().unwrap();
    assert!(fs::read(&here).unwrap() == fs::read(&there).unwrap(), "byte for byte");
    let [view] = captures(&fleet, job).try_into().unwrap();
    let (numbers, sections) = numbers(&here);
    // One section for each time that the probe began, and no datagram twice.
    assert_eq!((sections as usize, view.sections), (killed + 1, Some(sections)));
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
    let gaps = numbers.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count();
    assert!(gaps <= killed, "{gaps} gaps for {killed} kills of the probe");
    assert!(numbers.len() as u64 * 2 > last, "{} of {last}", numbers.len());
}
