//! The raw kinds of scan besides SYN against a kernel: UDP, ACK, SCTP and ICMP timestamps.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::lab::{Lab, SILENT, sh};

/// What answers over UDP at the first address of each family: on port 53 something that repeats the question with the response bit,
/// on 7777 something that says the same to everybody. Ends when dropped.
struct Datagrams {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Datagrams {
    fn serve(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let at = [("198.19.0.1", 53), ("198.19.0.1", 7777), ("2001:db8:2::1", 53), ("2001:db8:2::1", 7777)];
        let threads = at.map(|(addr, port)| serve(&lab.target, addr.parse().unwrap(), port, Arc::clone(&stop))).into();
        Self { stop, threads }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been told already.
            let _ = thread.join();
        }
    }
}

/// One of them, which is there when this returns.
fn serve(namespace: &str, addr: IpAddr, port: u16, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    let namespace = format!("/var/run/netns/{namespace}");
    let (ready, bound) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let file = std::fs::File::open(namespace).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind((addr, port)).unwrap();
        // How often it looks whether it is over.
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        ready.send(()).unwrap();
        let mut buf = [0; 1500];
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = socket.recv_from(&mut buf) else { continue };
            buf[2] |= 0x80;
            let answer = if port == 53 { &buf[..len] } else { b"hello" };
            socket.send_to(answer, from).unwrap();
        }
    });
    bound.recv().unwrap();
    thread
}

#[test]
fn udp_scan_finds_the_truth() {
    let Some(lab) = Lab::new() else { return };
    // A route is enough to answer for an IPv6 address, not to bind to it.
    sh(&format!(
        "ip -n {0} address add 2001:db8:2::1/128 dev lo nodad; ip netns exec {0} nft add rule inet t in udp dport 514 drop",
        lab.target
    ));
    let _services = Datagrams::serve(&lab);
    let run = lab.run("scan 198.19.0.1 2001:db8:2::1 -Pn --technique udp -p 53,123,514,7777 -o ndjson --rate 50pps --attempts 3");
    assert_eq!(run.code, Some(0), "{}", run.err);
    let (answers, coverage) = run.parsed();
    for addr in ["198.19.0.1", "2001:db8:2::1"] {
        let said = |port| answers.get(&(addr.parse().unwrap(), port)).map(String::as_str);
        assert_eq!([53, 123, 514, 7777].map(said), [Some("open"), Some("closed"), None, Some("open")], "{addr} {coverage}");
    }
}

#[test]
fn ack_scan_tells_filters_from_none() {
    let Some(lab) = Lab::new() else { return };
    let run = lab.run("scan 198.19.0.0/28 2001:db8:2::/125 -Pn --technique ack -p 22-25 -o ndjson");
    let (answers, _) = run.parsed();
    assert_eq!(answers.len(), 24 * 3, "{}", run.err);
    assert!(answers.iter().all(|((_, port), state)| *port != SILENT && state == "unfiltered"), "{answers:?}");
}

#[test]
fn sctp_scan_is_answered_with_and_without_the_protocol() {
    let Some(lab) = Lab::new() else { return };
    // With the module its endpoint aborts, without it the kernel says that it does not speak the protocol.
    let run = lab.run("scan 198.19.0.1 2001:db8:2::1 -Pn --technique sctp -p 80 -o ndjson");
    let (answers, _) = run.parsed();
    assert!(answers.len() == 2 && answers.values().all(|state| state == "filtered" || state == "closed"), "{answers:?} {}", run.err);
}

#[test]
fn timestamps_are_answered() {
    let Some(lab) = Lab::new() else { return };
    let run = lab.run("scan 198.19.0.0/28 --technique timestamp -o ndjson");
    let (answers, coverage) = run.parsed();
    assert_eq!((answers.len(), &coverage["up"]), (16, &serde_json::json!(16)), "{}", run.err);
}
