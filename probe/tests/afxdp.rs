//! Sending by AF_XDP on a real kernel: a veth pair between two network namespaces, and a plain packet socket at the other end.
//!
//! Needs root, `ip` and a kernel with AF_XDP; without them it says so and stops, and CI runs as root.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

mod namespaces;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use picket_probe::net::afpacket::LinkConfig;
use picket_probe::net::afxdp::{AfXdp, XdpError};
use picket_probe::net::clock;
use picket_probe::net::link::{BATCH, Batch, Link, Stop};
use picket_probe::net::netlink;

use namespaces::{Namespaces, inside, sh};

/// For experiments on a local network (IEEE 802, 9.2.4).
const ETHERTYPE: u16 = 0x88b5;

/// Two namespaces joined by a veth pair: frames go from `probe` to `target`.
struct Lab(Namespaces);

impl Lab {
    fn new() -> Option<Lab> {
        let lab = Lab(Namespaces::named("xdp")?);
        let Namespaces { probe: near, target: far } = &lab.0;
        sh(&format!(
            "ip netns add {near}; ip netns add {far}
             ip -n {near} link add eth0 type veth peer name eth0 netns {far}
             ip -n {near} link set eth0 up; ip -n {far} link set eth0 up
             ip -n {near} address add 198.18.1.1/24 dev eth0"
        ));
        Some(lab)
    }

    /// The sending link; `None` where the kernel has no AF_XDP.
    fn link(&self) -> Option<AfXdp> {
        let opened = inside(&self.0.probe, || {
            let table = std::sync::Arc::new(netlink::snapshot_blocking().unwrap()).table("eth0").unwrap();
            AfXdp::open(table.interface(), &LinkConfig::for_ports(45_000, 45_000))
        });
        match opened {
            Ok(link) => Some(link),
            Err(XdpError::Io { operation: "open an AF_XDP socket", source, .. }) if source.raw_os_error() == Some(97) => {
                eprintln!("SKIPPED: this kernel has no AF_XDP");
                None
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    /// What arrives at the other end.
    fn receiver(&self) -> OwnedFd {
        inside(&self.0.target, || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let receiver = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
            setsockopt(&receiver, sockopt::RcvBufForce, &(64 << 20)).unwrap();
            receiver
        })
    }
}

// A link looks at its interface by name, in the namespace of the calling thread: the tests run inside.

/// Frame number `n`: all lengths come, and every byte depends on the number.
fn frame(n: u32) -> Vec<u8> {
    let len = 60 + (n as usize * 37) % 1455;
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(ETHERTYPE.to_be_bytes());
    frame.extend(n.to_be_bytes());
    frame.extend((frame.len()..len).map(|at| (at as u32).wrapping_mul(n.wrapping_add(7)) as u8));
    frame
}

fn put(batch: &mut Batch, n: u32) {
    let frame = frame(n);
    batch.slot()[..frame.len()].copy_from_slice(&frame);
    batch.push(frame.len());
}

/// Sends frames in order until all are taken.
fn send_all(link: &mut AfXdp, numbers: impl IntoIterator<Item = u32>, mut meanwhile: impl FnMut()) {
    let (mut left, mut batch) = (numbers.into_iter().collect::<VecDeque<u32>>(), Batch::default());
    let give_up = clock::now() + Duration::from_secs(20);
    while !left.is_empty() || !batch.is_empty() {
        assert!(clock::now() < give_up, "the kernel takes no frames");
        while batch.len() < BATCH
            && !batch.is_full()
            && let Some(n) = left.pop_front()
        {
            put(&mut batch, n);
        }
        let sent = link.send(clock::now(), &batch, batch.len());
        assert!(matches!(sent.stop, None | Some(Stop::Full)), "{sent:?}");
        assert_eq!(sent.stop.is_none(), sent.count == batch.len());
        batch.advance(sent.count);
        meanwhile();
    }
}

/// Takes what has arrived, and checks that it is intact; returns the numbers.
fn take(receiver: &OwnedFd, arrived: &mut Vec<u32>) {
    let mut buffer = [0; 2048];
    loop {
        match recv(receiver.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) if buffer[12..14] == ETHERTYPE.to_be_bytes() => {
                let n = u32::from_be_bytes(buffer[14..18].try_into().unwrap());
                assert_eq!(buffer[..len], frame(n), "frame {n}");
                arrived.push(n);
            }
            // The kernels' own chatter.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until as many frames have arrived as are wanted; a short while more finds those that nobody wants.
fn take_until(receiver: &OwnedFd, arrived: &mut Vec<u32>, wanted: usize) {
    let give_up = clock::now() + Duration::from_secs(10);
    while arrived.len() < wanted && clock::now() < give_up {
        take(receiver, arrived);
        std::thread::yield_now();
    }
    std::thread::park_timeout(Duration::from_millis(20));
    take(receiver, arrived);
}

#[test]
fn frames_arrive_intact_and_in_order() {
    let Some(lab) = Lab::new() else { return };
    inside(&lab.0.probe, || frames_arrive(&lab));
}

fn frames_arrive(lab: &Lab) {
    let Some(mut link) = lab.link() else { return };
    let (receiver, mut arrived) = (lab.receiver(), Vec::new());
    let mut meanwhile = Vec::new();
    // Many times round the ring and through its memory.
    send_all(&mut link, 0..20_000, || take(&receiver, &mut meanwhile));
    arrived.append(&mut meanwhile);
    take_until(&receiver, &mut arrived, 20_000);
    assert_eq!(arrived, (0..20_000).collect::<Vec<_>>());
}

#[test]
fn what_did_not_leave_while_the_link_was_down_leaves_once_or_never() {
    let Some(lab) = Lab::new() else { return };
    inside(&lab.0.probe, || what_did_not_leave(&lab));
}

fn what_did_not_leave(lab: &Lab) {
    let Some(mut link) = lab.link() else { return };
    let (receiver, mut arrived) = (lab.receiver(), Vec::new());
    send_all(&mut link, 0..100, || {});
    for side in [&lab.0.probe, &lab.0.target] {
        sh(&format!("ip -n {side} link set eth0 down"));
        let mut batch = Batch::default();
        (1_000..1_040).for_each(|n| put(&mut batch, n));
        let give_up = clock::now() + Duration::from_secs(10);
        loop {
            let sent = link.send(clock::now(), &batch, batch.len());
            assert_eq!(sent.count, 0, "{side}");
            // The kernel says later than it drops that the other end is gone.
            match sent.stop {
                Some(Stop::Down) => break,
                other => assert_eq!(other, Some(Stop::Full), "{side}"),
            }
            assert!(clock::now() < give_up, "{side}: the link is not found to be down");
            std::thread::yield_now();
        }
        assert!(!link.is_up());
        sh(&format!("ip -n {side} link set eth0 up"));
        let give_up = clock::now() + Duration::from_secs(10);
        while !link.is_up() {
            assert!(clock::now() < give_up, "the link does not come up");
            std::thread::yield_now();
        }
        // Fewer than were refused, and others: the loop has given the old ones back.
        send_all(&mut link, 100..110, || {});
        send_all(&mut link, 110..200, || {});
    }
    take_until(&receiver, &mut arrived, 300);
    let expected: Vec<u32> = (0..200).chain(100..200).collect();
    assert_eq!(arrived, expected);
}

#[test]
fn a_queue_that_was_just_closed_is_waited_for() {
    let Some(lab) = Lab::new() else { return };
    inside(&lab.0.probe, || a_closed_queue(&lab));
}

fn a_closed_queue(lab: &Lab) {
    let Some(mut link) = lab.link() else { return };
    send_all(&mut link, 0..10, || {});
    drop(link);
    let mut again = lab.link().unwrap();
    let (receiver, mut arrived) = (lab.receiver(), Vec::new());
    send_all(&mut again, 10..20, || {});
    take_until(&receiver, &mut arrived, 10);
    assert_eq!(arrived, (10..20).collect::<Vec<_>>());
}
