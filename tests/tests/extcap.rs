//! Probes in Wireshark's list of interfaces: Debian's tshark runs `picket` as a program of its external capture interface, lists the probe,
//! captures real packets through it, and the capture ends with its reader.
//!
//! As root tshark looks into its system directory alone, so it runs as nobody here, with a directory of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use picket_controller::view::{CaptureState, CaptureView};
use picket_tests::lab::programs::Programs;
use picket_tests::lab::site::Site;
use picket_tests::lab::{Proc, Run, require_root, wait_until};
use picket_tests::system::{Fleet, PATIENCE, Plan};

/// Only waited for when something is broken.
const LONG: Duration = Duration::from_secs(180);
/// Whom Debian calls nobody.
const NOBODY: u32 = 65_534;

/// A home of nobody's, with what a wrapper script of Picket needs.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new(fleet: &Fleet) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let (data, extcap) = (path.join("data"), path.join("extcap"));
        for made in [&data, &extcap] {
            fs::create_dir(made).unwrap();
        }
        for file in ["endpoints.json", "ca.pem", "admin.token"] {
            fs::copy(fleet.data().join(file), data.join(file)).unwrap();
            chown(data.join(file), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // Nobody may not look into the directory that programs are built in.
        let (built, program) = (Programs::locate().unwrap().path("picket").unwrap(), path.join("picket"));
        fs::copy(built, &program).unwrap();
        let script = extcap.join("picket");
        fs::write(&script, format!("#!/bin/sh\nPICKET_DATA={} exec {} \"$@\"\n", data.display(), program.display())).unwrap();
        for open in [path, &data, &extcap, &program, &script] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
        }
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        Self { dir }
    }

    /// tshark, as somebody would call it.
    fn tshark(&self, args: &[&str]) -> Run {
        let path = self.dir.path();
        let run = Run::new("setpriv").label("tshark").args(["--reuid=65534", "--regid=65534", "--clear-groups", "tshark"]).args(args);
        run.env("HOME", path).env("TMPDIR", path).env("WIRESHARK_EXTCAP_DIR", path.join("extcap"))
    }
}

fn captures(fleet: &Fleet) -> Vec<CaptureView> {
    fleet.json(&["captures", "list", "--json"]).unwrap()
}

/// Waits until the newest capture of `count` has begun.
fn begun(fleet: &Fleet, count: usize) {
    let begun = || captures(fleet).len() == count;
    wait_until("a capture", LONG, || Ok(begun().then_some(()))).unwrap();
}

/// Waits for the end of the newest capture, which has been asked to end.
fn ended(fleet: &Fleet) -> CaptureView {
    let newest = || captures(fleet).into_iter().next().filter(|capture| capture.state == CaptureState::Whole);
    let capture = wait_until("the capture's end", LONG, || Ok(newest())).unwrap();
    assert_eq!(capture.end.as_deref(), Some("asked"), "{capture:?}");
    capture
}

/// Sends datagrams to the probe until the program has ended.
fn talk_until_end(site: &Site, mut program: Proc) -> String {
    let to: IpAddr = site.probe("a").unwrap().v4().into();
    let socket = site.router().enter(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let talk = || {
        // A probe that refuses is told of, and not waited for.
        let _ = socket.send_to(b"0123456789", (to, 9));
        Ok((!program.running()).then_some(()))
    };
    wait_until("the program's end", LONG, talk).unwrap();
    program.finish(LONG).unwrap().ok().unwrap()
}

#[test]
fn tshark_lists_a_probe_and_captures_through_it() {
    if !require_root() {
        return;
    }
    let plan = Plan::default().roles("scan,capture");
    let fleet = Fleet::start(Site::builder("extcap").probe("a").build().unwrap(), plan).unwrap();
    let (home, at) = (Home::new(&fleet), fleet.site().controller());
    let listed = at.run(&home.tshark(&["-D"]), LONG).unwrap().ok().unwrap();
    let line = listed.lines().find(|line| line.contains("picket-a")).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("(Picket probe a at "), "{line}");

    let args = ["-i", "picket-a", "-f", "udp port 9", "-c", "20", "-l", "-T", "fields", "-e", "udp.dstport", "-e", "frame.len"];
    let tshark = at.spawn(&home.tshark(&args)).unwrap();
    let seen = talk_until_end(fleet.site(), tshark);
    // Ethernet, IPv4 and UDP headers, and ten bytes.
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["9\t52"; 20]);
    let capture = ended(&fleet);
    assert_eq!((capture.probe.as_str(), capture.filter.as_deref().map(|filter| filter.contains("udp port 9"))), ("a", Some(true)));
}

#[test]
fn a_capture_ends_with_its_reader_and_what_is_wrong_is_said() {
    if !require_root() {
        return;
    }
    let plan = Plan::default().roles("scan,capture");
    let fleet = Fleet::start(Site::builder("extcapend").probe("a").build().unwrap(), plan).unwrap();
    let picket = |args: &[&str]| fleet.picket(&[&["--extcap-interface", "picket-a"], args].concat(), LONG).unwrap();
    assert_eq!(picket(&["--extcap-dlts"]).ok().unwrap().lines().count(), 1);
    assert!(picket(&["--extcap-config"]).ok().unwrap().contains("{call=--snap-length}"));
    // Nothing is said of a filter that is right.
    assert_eq!(picket(&["--extcap-capture-filter", "udp port 9"]).ok().unwrap(), "");
    let wrong = picket(&["--extcap-capture-filter", "tcp prot 80"]).ok().unwrap();
    assert!(wrong.contains("filter is wrong at character 5, `prot`"), "{wrong}");
    assert_eq!(captures(&fleet), []);

    // No packet ever passes: the reader's end is noticed all the same.
    let fifo = fleet.site().lab().dir().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let start = |path: &Path, filter: &str| {
        let reader = fs::File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).unwrap();
        let args = [
            "--capture",
            "--extcap-interface",
            "picket-a",
            "--fifo",
            path.to_str().unwrap(),
            "--extcap-capture-filter",
            filter,
            "--time",
            "1h",
        ];
        (reader, fleet.picket_spawn(&args).unwrap())
    };
    let (reader, program) = start(&fifo, "tcp port 1");
    begun(&fleet, 1);
    drop(reader);
    let finished = program.finish(LONG).unwrap();
    assert!(finished.status.success() && finished.stderr.is_empty(), "{}", finished.stderr);
    assert_eq!(ended(&fleet).counts.unwrap().written, 0);

    // Asked to end, it ends with a whole file.
    let (mut reader, mut program) = start(&fifo, "tcp port 1");
    begun(&fleet, 2);
    program.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    let finished = program.finish(PATIENCE).unwrap();
    assert!(finished.status.success() && finished.stderr.is_empty(), "{}", finished.stderr);
    let mut file = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut file).unwrap();
    assert_eq!(file.len() as u64, ended(&fleet).bytes.unwrap());
}
