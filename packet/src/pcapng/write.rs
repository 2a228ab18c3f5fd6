//! Blocks as bytes, appended to a buffer.
//!
//! It must not know what becomes of the buffer.
//!
//! **Invariant:** each call appends one whole block.

use super::{
    BYTE_ORDER_MAGIC, ENHANCED_PACKET, FRAMING, INTERFACE_DESCRIPTION, INTERFACE_STATISTICS, Interface, MAJOR, Packet, SECTION_HEADER,
    Section, Statistics, option,
};
use crate::UnixNanos;

/// Times count nanoseconds: ten to the power of minus nine (section 4.2, `if_tsresol`).
const NANOSECONDS: u8 = 9;
/// Longest text of an option, in bytes; what is longer is cut.
pub const MAX_TEXT: usize = 16_384;
/// The length of a section that nobody knows yet (section 4.1).
const UNKNOWN_LENGTH: i64 = -1;

/// Begins a file, or a further section of one.
pub fn section(section: &Section, out: &mut Vec<u8>) {
    block(out, SECTION_HEADER, |out| {
        out.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        out.extend(MAJOR.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        out.extend(UNKNOWN_LENGTH.to_le_bytes());
        text(out, option::SECTION_HARDWARE, &section.hardware);
        text(out, option::SECTION_OS, &section.os);
        text(out, option::SECTION_APPLICATION, &section.application);
        text(out, option::COMMENT, &section.comment);
        end_of_options(out);
    });
}

/// Describes the section's next interface.
pub fn interface(interface: &Interface, out: &mut Vec<u8>) {
    block(out, INTERFACE_DESCRIPTION, |out| {
        out.extend(interface.link_type.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        out.extend(interface.snap_len.to_le_bytes());
        text(out, option::INTERFACE_NAME, &interface.name);
        one_option(out, option::INTERFACE_TIME_RESOLUTION, &[NANOSECONDS]);
        if !interface.filter.is_empty() {
            // Zero: what follows is the filter as text (section 4.2, `if_filter`).
            let filter = cut(&interface.filter).as_bytes();
            one_option(out, option::INTERFACE_FILTER, &[&[0], filter].concat());
        }
        end_of_options(out);
    });
}

/// How long the block of a packet is of which so many bytes were kept.
pub const fn packet_len(kept: usize) -> usize {
    FRAMING + 20 + kept.next_multiple_of(4)
}

/// Appends a packet. This is called for each of millions: nothing is allocated but the room in `out`.
pub fn packet(packet: &Packet<'_>, out: &mut Vec<u8>) {
    // What was kept never exceeds what fits: capture libraries bound it by 256 KiB.
    let kept = packet.data.len().min(u32::MAX as usize / 2);
    let len = packet_len(kept) as u32;
    let (time, mut head) = (packet.time.0, [0; 28]);
    let words = [ENHANCED_PACKET, len, packet.interface, (time >> 32) as u32, time as u32, kept as u32, packet.original_len];
    for (place, word) in head.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    out.reserve(len as usize);
    out.extend_from_slice(&head);
    out.extend_from_slice(packet.data.get(..kept).unwrap_or_default());
    pad(out, kept);
    out.extend_from_slice(&len.to_le_bytes());
}

/// Appends counters.
pub fn statistics(statistics: &Statistics, out: &mut Vec<u8>) {
    block(out, INTERFACE_STATISTICS, |out| {
        out.extend(statistics.interface.to_le_bytes());
        moment(out, statistics.time);
        for (code, time) in [(option::STATISTICS_START, statistics.start), (option::STATISTICS_END, statistics.end)] {
            if let Some(time) = time {
                let mut value = Vec::with_capacity(8);
                moment(&mut value, time);
                one_option(out, code, &value);
            }
        }
        for (code, count) in [
            (option::STATISTICS_RECEIVED, statistics.received),
            (option::STATISTICS_INTERFACE_DROPS, statistics.interface_drops),
            (option::STATISTICS_ACCEPTED, statistics.accepted),
            (option::STATISTICS_KERNEL_DROPS, statistics.kernel_drops),
            (option::STATISTICS_DELIVERED, statistics.delivered),
        ] {
            if let Some(count) = count {
                one_option(out, code, &count.to_le_bytes());
            }
        }
        end_of_options(out);
    });
}

/// A block around its body (section 3.1). The bodies that come here are short: texts are cut.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = ((out.len() - begin + 4) as u32).to_le_bytes();
    out.extend(len);
    if let Some(place) = out.get_mut(begin + 4..begin + 8) {
        place.copy_from_slice(&len);
    }
}

/// A time in two words, the high one first in either byte order (section 4.3).
fn moment(out: &mut Vec<u8>, time: UnixNanos) {
    out.extend(((time.0 >> 32) as u32).to_le_bytes());
    out.extend((time.0 as u32).to_le_bytes());
}

fn one_option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    pad(out, value.len());
}

fn text(out: &mut Vec<u8>, code: u16, text: &str) {
    if !text.is_empty() {
        one_option(out, code, cut(text).as_bytes());
    }
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default()
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend(option::END.to_le_bytes());
    out.extend([0; 2]);
}

/// Fills up to a multiple of four what was `len` bytes long (section 3.1).
fn pad(out: &mut Vec<u8>, len: usize) {
    let missing = len.next_multiple_of(4) - len;
    out.extend_from_slice([0; 3].get(..missing).unwrap_or_default());
}
