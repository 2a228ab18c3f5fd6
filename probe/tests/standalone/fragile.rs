//! Fragile ports on the command line: they are asked where the command *and* the site's configuration want it, and else told nothing.

use std::io::Read;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::lab::{Lab, inside};

/// How often a listener looks whether it is over.
const LOOK: Duration = Duration::from_millis(20);
const HOST: &str = "198.18.1.2";

/// A printer and a controller of a building: they note what they are told, and say nothing.
struct Devices {
    stop: Arc<AtomicBool>,
    /// Octets that came over TCP, and those of datagrams.
    heard: Arc<Mutex<(usize, usize)>>,
    thread: Option<JoinHandle<()>>,
}

impl Devices {
    fn new(lab: &Lab) -> Self {
        let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new((0, 0))));
        let host: IpAddr = HOST.parse().unwrap();
        let (printer, building) =
            inside(&lab.target, || (TcpListener::bind((host, 9100)).unwrap(), UdpSocket::bind((host, 47_808)).unwrap()));
        printer.set_nonblocking(true).unwrap();
        building.set_read_timeout(Some(LOOK)).unwrap();
        let (over, notes) = (Arc::clone(&stop), Arc::clone(&heard));
        let thread = std::thread::spawn(move || {
            let (mut buf, mut open) = ([0; 1500], Vec::new());
            while !over.load(Ordering::Relaxed) {
                // Waits a moment where nothing comes.
                notes.lock().unwrap().1 += building.recv(&mut buf).unwrap_or(0);
                open.extend(printer.accept().ok().map(|(stream, _)| stream));
                for stream in &mut open {
                    stream.set_nonblocking(true).unwrap();
                    notes.lock().unwrap().0 += stream.read(&mut buf).unwrap_or(0);
                }
            }
        });
        Self { stop, heard, thread: Some(thread) }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been told already.
            let _ = thread.join();
        }
    }
}

#[test]
fn fragile_ports_are_asked_only_where_command_and_site_agree() {
    let Some(lab) = Lab::new() else { return };
    let dir = Lab::dir();
    let cases = [
        ("", true, [false, false], Some("all of them are spared")),
        ("ask_fragile = false", true, [false, false], Some("all of them are spared")),
        ("ask_fragile = true", false, [false, false], None),
        ("ask_fragile = \"502\"", true, [false, false], Some("all but 502 are spared")),
        ("ask_fragile = \"9100\"", true, [true, false], Some("all but 9100 are spared")),
        ("ask_fragile = true", true, [true, true], None),
    ];
    for (number, (site, flag, asked, said)) in cases.into_iter().enumerate() {
        let devices = Devices::new(&lab);
        let file = dir.path().join(format!("{number}.toml"));
        std::fs::write(&file, format!("[services]\n{site}\n")).unwrap();
        let flag = if flag { "--ask-fragile" } else { "" };
        let run = lab.run(&format!("services {HOST} -p T:9100,U:47808 --config {} -o ndjson {flag}", file.display()));
        assert_eq!(run.code, Some(0), "{}", run.err);
        let is_open = |line: &str| line.contains("\"port\":9100") && line.contains("\"open\"");
        assert!(run.out.lines().any(is_open), "{}", run.out);
        let heard = *devices.heard.lock().unwrap();
        assert_eq!([heard.0 > 0, heard.1 > 0], asked, "`{site}` {flag}: {heard:?}\n{}", run.out);
        assert_eq!(run.out.contains("\"outcome\":\"spared\""), !asked[0], "{}", run.out);
        match said {
            Some(said) => assert!(run.err.contains(said), "`{site}` {flag}: {}", run.err),
            None => assert!(!run.err.contains("--ask-fragile"), "{}", run.err),
        }
    }
}
