//! What each probe really sent, from captures made at the router, against what its interface may send.
//!
//! Counted against the limit is all that measuring costs: questions (SYNs and echo requests), the probe's searches for neighbours,
//! and the resets by which its kernel answers open ports. Not counted is what the kernel sends on its own link to find out where
//! its resets go; it is told beside.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use picket_probe::net::pacer::DEFAULT_BURST;
use picket_tests::lab::truth::Network;
use picket_tests::lab::watch::{Capture, Content, Frame, Packet, Timing, Watch};

use crate::say::count;
use crate::stage::{PROBES, ProbePlan, Stage};

/// The windows that are looked at, wherever they begin.
const WINDOWS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// Running captures of what each probe sends.
#[derive(Debug)]
pub(crate) struct Watches(Vec<(ProbePlan, Watch)>);

/// What one probe sent.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) plan: ProbePlan,
    /// Questions: SYNs and echo requests.
    pub(crate) questions: u64,
    /// The probe's searches for neighbours: those before the first question to them.
    searches: u64,
    /// Whatever else went to the targets: the kernel's resets of half-open connections.
    resets: u64,
    /// When all of these passed.
    paced: Timing,
    /// The kernel's own searches for neighbours: those after a question to them.
    kernel_searches: u64,
    /// Frames to what policy forbids.
    pub(crate) forbidden: u64,
    /// Questions to addresses that are no targets at all.
    pub(crate) astray: u64,
}

impl Watches {
    /// Starts a capture of each probe, without its talk with the controller.
    pub(crate) fn start(stage: &Stage) -> Result<Self> {
        let site = stage.site();
        let filter = format!("not host {} and not host {}", site.controller_v4(), site.controller_v6());
        let watches = PROBES.into_iter().map(|plan| Ok((plan, site.watch(plan.name, Some(&filter))?)));
        watches.collect::<Result<_>>().map(Self)
    }

    /// Ends the captures and reads them.
    pub(crate) fn stop(self, networks: &[Network]) -> Result<Vec<Sent>> {
        self.0.into_iter().map(|(plan, watch)| Ok(Sent::new(plan, &watch.stop()?, networks, Stage::forbidden()))).collect()
    }
}

/// Whom a frame is about: the destination of an IP packet, or the neighbour that is searched (RFC 826, RFC 4861).
fn about(frame: &Frame<'_>, packet: Option<&Packet>) -> Option<IpAddr> {
    match packet {
        Some(Packet { content: Content::Icmp { kind: 135, .. }, destination: IpAddr::V6(_), .. }) => {
            Some(IpAddr::from(<[u8; 16]>::try_from(frame.head.get(62..78)?).ok()?))
        }
        Some(packet) => Some(packet.destination),
        None if frame.ethertype() == Some(0x0806) => Some(IpAddr::from(<[u8; 4]>::try_from(frame.head.get(38..42)?).ok()?)),
        None => None,
    }
}

impl Sent {
    fn new(plan: ProbePlan, capture: &Capture, networks: &[Network], forbidden: Network) -> Self {
        let mut sent =
            Self { plan, questions: 0, searches: 0, resets: 0, paced: Timing::default(), kernel_searches: 0, forbidden: 0, astray: 0 };
        let mut asked = BTreeSet::new();
        let mut paced = Vec::new();
        for frame in capture.frames() {
            let packet = frame.packet();
            let Some(address) = about(&frame, packet.as_ref()) else { continue };
            let target = networks.iter().any(|network| network.contains(address));
            sent.forbidden += u64::from(forbidden.contains(address));
            let question = packet.is_some_and(|packet| packet.is_syn() || packet.is_echo_request());
            let search = packet.is_none_or(|packet| matches!(packet.content, Content::Icmp { kind: 135, .. }));
            sent.astray += u64::from(question && !target);
            // The rest is its talk with its router.
            if !question && !target {
                continue;
            }
            match (question, search) {
                (true, _) => {
                    asked.insert(address);
                    sent.questions += 1;
                }
                (false, true) if asked.contains(&address) => {
                    sent.kernel_searches += 1;
                    continue;
                }
                (false, true) => sent.searches += 1,
                (false, false) => sent.resets += 1,
            }
            paced.push((frame.at, frame.length));
        }
        sent.paced = Timing::new(paced);
        sent
    }

    /// Most frames that the limit permits in a window: its rate over the window and its stated burst, and one more.
    fn permitted(&self, window: Duration) -> u64 {
        (f64::from(self.plan.limit) * (window + DEFAULT_BURST).as_secs_f64()) as u64 + 1
    }

    /// Where the limit was broken, in words.
    pub(crate) fn faults(&self) -> Vec<String> {
        let windows = WINDOWS.map(|window| (window, self.paced.peak(window).packets, self.permitted(window)));
        let over = windows.into_iter().filter(|(_, most, permitted)| most > permitted);
        over.map(|(window, most, permitted)| format!("{} sent {most} frames within {window:?}, permitted are {permitted}", self.plan.name))
            .collect()
    }
}

/// A table for people.
pub(crate) fn table(all: &[Sent]) -> Vec<String> {
    let row = |cells: [&str; 7]| {
        let [probe, limit, questions, searches, resets, tenth, second] = cells;
        format!("{probe:<6} {limit:>7} {questions:>10} {searches:>9} {resets:>7} {tenth:>15} {second:>14}")
    };
    let mut lines = vec![row(["PROBE", "LIMIT", "QUESTIONS", "SEARCHES", "RESETS", "MOST IN 100 ms", "MOST IN 1 s"])];
    for sent in all {
        let [tenth, second] =
            WINDOWS.map(|window| format!("{} of {}", count(sent.paced.peak(window).packets), count(sent.permitted(window))));
        let limit = format!("{}pps", sent.plan.limit);
        let [questions, searches, resets] = [sent.questions, sent.searches, sent.resets].map(count);
        lines.push(row([sent.plan.name, &limit, &questions, &searches, &resets, &tenth, &second]));
    }
    for sent in all.iter().filter(|sent| sent.kernel_searches > 0) {
        lines.push(format!(
            "({} more frames of {}'s kernel searched for neighbours to reset)",
            count(sent.kernel_searches),
            sent.plan.name
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(frames: &[(u64, Vec<u8>)]) -> Capture {
        let mut bytes = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
        for word in [0x0004_0002_u32, 0, 0, 160, 1] {
            bytes.extend(word.to_le_bytes());
        }
        for (at, frame) in frames {
            let length = frame.len() as u32;
            for word in [(at / 1_000_000_000) as u32, (at % 1_000_000_000) as u32, length, length] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(frame);
        }
        Capture::parse(bytes).unwrap()
    }

    fn tcp(destination: [u8; 4], flags: u8) -> Vec<u8> {
        let mut frame = [&[0; 12][..], &[8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 198, 19, 1, 2]].concat();
        frame.extend(destination);
        frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame
    }

    fn arp(target: [u8; 4]) -> Vec<u8> {
        let mut frame = [&[0xff; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 6], &[198, 19, 101, 10], &[0; 6]].concat();
        frame.extend(target);
        frame
    }

    #[test]
    fn frames_are_told_apart_and_counted_against_the_limit() {
        let networks = ["198.18.10.0/26".parse().unwrap()];
        let forbidden = "198.18.10.60/30".parse().unwrap();
        let plan = ProbePlan { name: "north", place: "", limit: 20 };
        let ms = 1_000_000;
        let mut frames = vec![
            (0, tcp([198, 18, 10, 1], 2)),
            (ms, tcp([198, 18, 10, 1], 4)),
            (2 * ms, arp([198, 18, 10, 2])),
            (3 * ms, arp([198, 19, 1, 1])),
        ];
        let sent = Sent::new(plan, &capture(&frames), &networks, forbidden);
        assert_eq!((sent.questions, sent.searches, sent.resets, sent.kernel_searches), (1, 1, 1, 0));
        assert_eq!((sent.paced.packets(), sent.forbidden, sent.astray), (3, 0, 0));
        assert!(sent.faults().is_empty(), "{:?}", sent.faults());
        frames.push((4 * ms, tcp([198, 18, 10, 61], 2)));
        frames.push((5 * ms, tcp([198, 18, 11, 1], 2)));
        let sent = Sent::new(plan, &capture(&frames), &networks, forbidden);
        assert_eq!((sent.forbidden, sent.astray), (1, 1));
        assert_eq!(sent.permitted(Duration::from_millis(100)), 3);
        assert_eq!(sent.faults(), ["north sent 5 frames within 100ms, permitted are 3"]);
        frames.push((6 * ms, arp([198, 18, 10, 1])));
        assert_eq!(Sent::new(plan, &capture(&frames), &networks, forbidden).kernel_searches, 1);
    }
}
