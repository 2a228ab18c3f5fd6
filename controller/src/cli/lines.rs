//! Packets of a capture in lines on standard output, while its file arrives.
//!
//! The file is read as it comes ([`Packets`]); a thread prints, so that a terminal that is slow or held up is waited for by nobody: what it has
//! no room for is counted. It must not know where the bytes come from, nor what else becomes of them.
//!
//! **Invariants:**
//! - Of the packets that came, each was printed or is counted as not shown.
//! - Nothing waits for the terminal while the capture runs.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

use picket_packet::line::{Allowance, Object, Shown, Table};
use picket_packet::pcapng::Packet;
use picket_packet::pcapng::read::{Block, Blocks, FormatError, Step};
use tokio::sync::oneshot;

use super::failure::{Exit, Failure};
use super::interrupt::Interrupts;

/// Lines that wait for the terminal.
const WAITING: usize = 512;

/// The packets of a file that comes in pieces.
#[derive(Debug, Default)]
struct Packets {
    blocks: Blocks,
    /// The beginning of a block, and where it begins in the file.
    rest: Vec<u8>,
    offset: u64,
    /// Link types of the section's interfaces.
    links: Vec<u16>,
}

impl Packets {
    /// Tells of each packet that `piece` makes whole, with its link type.
    fn push(&mut self, piece: &[u8], mut each: impl FnMut(u16, &Packet<'_>)) -> Result<(), FormatError> {
        self.rest.extend_from_slice(piece);
        let mut at = 0;
        while let Step::Block(block, len) = self.blocks.next(self.rest.get(at..).unwrap_or_default())? {
            match block {
                Block::Section(_) => self.links.clear(),
                Block::Interface(interface) => self.links.push(interface.link_type),
                Block::Packet(packet) => {
                    let link_type = usize::try_from(packet.interface).ok().and_then(|number| self.links.get(number));
                    each(link_type.copied().unwrap_or_default(), &packet);
                }
                Block::Statistics(_) | Block::Other(_) => {}
            }
            at += len;
            self.offset += len as u64;
        }
        self.rest.drain(..at);
        Ok(())
    }
}

/// What is said of the lines at the end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Told {
    /// Packets without a line.
    pub(super) skipped: u64,
    /// Why lines ended early.
    pub(super) problem: Option<String>,
}

/// Packets on their way to standard output.
pub(super) struct Lines {
    packets: Packets,
    allowance: Allowance,
    began: Instant,
    news: SyncSender<(u16, Shown)>,
    printed: oneshot::Receiver<(u64, io::Result<()>)>,
    captured: u64,
    /// Why nothing more is read.
    broken: Option<String>,
    gone: bool,
}

impl Lines {
    /// At most so many lines a second; objects where `json`.
    pub(super) fn start(per_second: u32, json: bool) -> Result<Self, Failure> {
        let cannot = |error: io::Error| Failure::new(Exit::Failure, format!("print packets: {error}"));
        // Not by way of the lock on standard output, which the command holds.
        let out = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(cannot)?);
        let (news, told) = sync_channel(WAITING);
        let (done, printed) = oneshot::channel();
        let work = move || {
            // Nobody may be left to be told.
            let _ = done.send(print(&told, out, json));
        };
        std::thread::Builder::new().name("picket-lines".into()).spawn(work).map_err(cannot)?;
        let (packets, allowance) = (Packets::default(), Allowance::new(per_second));
        Ok(Self { packets, allowance, began: Instant::now(), news, printed, captured: 0, broken: None, gone: false })
    }

    /// The next bytes of the file.
    pub(super) fn push(&mut self, piece: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        let Self { packets, allowance, news, captured, gone, .. } = self;
        allowance.tick(self.began.elapsed());
        let read = packets.push(piece, |link_type, packet| {
            *captured += 1;
            if !allowance.is_left() || *gone {
                return;
            }
            match news.try_send((link_type, Shown::new(*captured, packet))) {
                Ok(()) => allowance.spend(),
                Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Disconnected(_)) => *gone = true,
            }
        });
        if let Err(error) = read {
            self.broken = Some(format!("what follows byte {} cannot be shown: {error}", self.packets.offset));
        }
    }

    /// Whether nobody reads the lines any more.
    pub(super) fn are_gone(&self) -> bool {
        self.gone
    }

    /// Has the last lines printed, unless the user leaves.
    pub(super) async fn end(self, interrupts: &mut Interrupts) -> Told {
        let Self { news, printed, captured, broken, .. } = self;
        drop(news);
        let (lines, outcome) = tokio::select! {
            printed = printed => printed.unwrap_or((0, Ok(()))),
            () = interrupts.next() => {
                return Told { skipped: 0, problem: Some("left while lines waited to be printed".to_owned()) };
            }
        };
        let failed = outcome.err().filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
        let problem = broken.or_else(|| failed.map(|error| format!("write to standard output: {error}")));
        Told { skipped: captured.saturating_sub(lines), problem }
    }
}

/// Prints until the sender is gone; gives how many packets have a line.
fn print(told: &Receiver<(u16, Shown)>, mut out: impl Write, json: bool) -> (u64, io::Result<()>) {
    let mut table = Table::default();
    let mut printed = 0;
    for (link_type, shown) in told {
        let text = match json {
            false => Ok(table.line(link_type, &shown)),
            true => serde_json::to_string(&Object::new(link_type, &shown)).map(|object| object + "\n").map_err(io::Error::from),
        };
        if let Err(error) = text.and_then(|text| out.write_all(text.as_bytes())) {
            return (printed, Err(error));
        }
        printed += 1;
    }
    (printed, Ok(()))
}

#[cfg(test)]
mod tests {
    use picket_packet::UnixNanos;
    use picket_packet::link::{ETHERNET, RAW_IP};
    use picket_packet::pcapng::{Interface, Section, write};
    use proptest::prelude::*;

    use super::*;

    fn interface(link_type: u16) -> Interface {
        Interface { link_type, snap_len: 0, name: "eth0".into(), filter: String::new() }
    }

    /// Two sections: the capture was interrupted, and went on with another link.
    fn file(packets: u64) -> Vec<u8> {
        let mut file = Vec::new();
        for link_type in [RAW_IP, ETHERNET] {
            write::section(&Section::default(), &mut file);
            write::interface(&interface(link_type), &mut file);
            for number in 0..packets {
                let data = [0x45; 40];
                write::packet(&Packet { interface: 0, time: UnixNanos(number), original_len: 40, data: &data }, &mut file);
            }
        }
        file
    }

    proptest! {
        #[test]
        fn every_packet_comes_once_whatever_the_pieces(lens in proptest::collection::vec(1usize..200, 1..60)) {
            let file = file(5);
            let (mut packets, mut found, mut at) = (Packets::default(), Vec::new(), 0usize);
            for len in lens.iter().chain([&usize::MAX]) {
                let end = at.max(file.len().min(at.saturating_add(*len)));
                packets.push(&file[at..end], |link_type, packet| found.push((link_type, packet.time.0))).unwrap();
                at = end;
            }
            let expected: Vec<(u16, u64)> = [RAW_IP, ETHERNET].into_iter().flat_map(|link| (0..5).map(move |n| (link, n))).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(packets.rest.is_empty() && packets.offset == file.len() as u64);
        }
    }

    #[test]
    fn what_is_no_pcapng_is_said() {
        let mut packets = Packets::default();
        packets.push(&file(1), |_, _| {}).unwrap();
        packets.push(&[0xff; 64], |_, _| {}).unwrap_err();
        assert_eq!(packets.offset, file(1).len() as u64);
    }

    #[test]
    fn lines_are_for_people_and_objects_for_programs() {
        let printed = |json: bool| {
            let (news, told) = sync_channel(8);
            let packet = Packet { interface: 0, time: UnixNanos(0), original_len: 60, data: b"\x1b[31m" };
            for number in [1, 3] {
                news.send((RAW_IP, Shown::new(number, &packet))).unwrap();
            }
            drop(news);
            let mut out = Vec::new();
            assert_eq!(print(&told, &mut out, json).0, 2);
            String::from_utf8(out).unwrap()
        };
        let text = printed(false);
        assert!(text.contains("... 1 packets are not shown\n") && text.lines().count() == 3, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        let objects: Vec<serde_json::Value> = printed(true).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(objects.iter().map(|object| object["number"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(3)]);
    }
}
