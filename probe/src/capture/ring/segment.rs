//! One segment as it lies on the disk: where it is, what its index tells, and its blocks, read as far as they are wanted.
//!
//! It must not know what is asked: which extents are wanted is asked of a function.
//!
//! **Invariants:**
//! - Blocks come in the order of the file, each at most once, behind the description of their interface.
//! - What the index does not tell, or not as it was written, is read as if there were none.
//! - Memory is that of one extent and of the index, whatever stands in the files.
//! - Only what was there at the beginning is read: a segment that grows meanwhile, for example by the answer that leaves this box, has an end.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::index::{END, EXTENT, End, Extent, HEADER, Header, Record, Records, Span};
use crate::capture::UnixNanos;
use crate::capture::pcapng::Interface;
use crate::capture::pcapng::read::{Block, Blocks, MAX_BLOCK, ReadError, Reader, Step};

/// What a segment's files are called in front of their number.
const NAME: &str = "segment-";
/// Digits of the number, at least.
const DIGITS: usize = 10;
const DATA: &str = ".pcapng";
const INDEX: &str = ".index";
/// Longest head that an index tells of: its texts are cut long before.
const MAX_HEAD: u32 = 1 << 20;

/// Where a segment's packets are.
pub(super) fn data_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{NAME}{number:0DIGITS$}{DATA}"))
}

/// Where its index is.
pub(super) fn index_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{NAME}{number:0DIGITS$}{INDEX}"))
}

/// How the part of a segment's comment begins that is about this segment.
const NOTE: &str = "segment ";

/// The comment of a segment: what its capture says, and what no other segment's says. An index is bound to its segment by that.
pub(super) fn comment(capture: &str, number: u64, begun: UnixNanos) -> String {
    let between = if capture.is_empty() { "" } else { "; " };
    format!("{capture}{between}{NOTE}{number} of a ring, begun {begun}")
}

/// What the capture says in a segment's comment.
pub(super) fn of_capture(comment: &str) -> &str {
    let end = comment.rfind(NOTE).unwrap_or(comment.len());
    comment.get(..end).unwrap_or_default().trim_end_matches("; ")
}

/// Numbers of segments, and of indexes, both in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) segments: Vec<u64>,
    pub(super) indexes: Vec<u64>,
}

/// What is there.
pub(super) fn list(dir: &Path) -> io::Result<Listing> {
    let mut found = Listing::default();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        found.segments.extend(number(name, DATA));
        found.indexes.extend(number(name, INDEX));
    }
    found.segments.sort_unstable();
    found.indexes.sort_unstable();
    Ok(found)
}

/// The number in a name that is exactly one of ours.
fn number(name: &str, after: &str) -> Option<u64> {
    let number = name.strip_prefix(NAME)?.strip_suffix(after)?.parse().ok()?;
    (format!("{NAME}{number:0DIGITS$}{after}") == name).then_some(number)
}

/// How a segment was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Walk {
    /// Extents that were read, and that were not wanted.
    pub(super) read: u64,
    pub(super) skipped: u64,
    /// Bytes that were read of the segment, and of these, bytes of which no index tells.
    pub(super) bytes: u64,
    pub(super) unindexed: u64,
    /// Places at which it is damaged: what follows there cannot be read.
    pub(super) damaged: u64,
}

/// A segment that is open for reading.
#[derive(Debug)]
pub(super) struct Segment {
    data: File,
    len: u64,
    index: Option<Index>,
}

#[derive(Debug)]
struct Index {
    file: File,
    len: u64,
    header: Header,
    /// What stands in front of the first extent.
    head: Vec<u8>,
}

impl Segment {
    /// Opens a segment; `None` where it is gone.
    pub(super) fn open(dir: &Path, number: u64) -> io::Result<Option<Self>> {
        // The index is looked at first: it then tells nothing that is not in the data yet.
        let index = File::open(index_path(dir, number)).and_then(|file| Ok((file.metadata()?.len(), file)));
        let data = match File::open(data_path(dir, number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let len = data.metadata()?.len();
        // One that cannot be read is as good as none.
        let index = index.ok().and_then(|(index_len, file)| Index::bound(file, index_len, number, &data));
        Ok(Some(Self { data, len, index }))
    }

    /// Bytes of the segment, and of its index, where there is one that belongs to it.
    pub(super) fn lens(&self) -> (u64, u64) {
        (self.len, self.index.as_ref().map_or(0, |index| index.len))
    }

    /// The key of the index's hashes.
    pub(super) fn header(&self) -> Option<&Header> {
        self.index.as_ref().map(|index| &index.header)
    }

    /// What the index says of the segment as a whole, where that has ended and is as long as it was.
    pub(super) fn end(&self) -> Option<End> {
        let index = self.index.as_ref()?;
        let mut last = [0; END];
        index.file.read_exact_at(&mut last, index.len.checked_sub(END as u64)?).ok()?;
        End::parse(&last).filter(|end| end.len == self.len)
    }

    /// Hands over the blocks of the head, of the extents that are wanted, and of everything that the index does not tell.
    pub(super) fn read<E: From<io::Error>>(
        &self,
        wants: &mut dyn FnMut(&Extent<'_>) -> bool,
        take: &mut dyn FnMut(&Block<'_>) -> Result<(), E>,
    ) -> Result<Walk, E> {
        let mut walk = Walk::default();
        let (blocks, from) = match &self.index {
            Some(index) => self.extents(index, &mut walk, wants, take)?,
            None => (Blocks::new(), 0),
        };
        if from < self.len {
            self.tail(blocks, from, &mut walk, take)?;
        }
        Ok(walk)
    }

    fn extents<E: From<io::Error>>(
        &self,
        index: &Index,
        walk: &mut Walk,
        wants: &mut dyn FnMut(&Extent<'_>) -> bool,
        take: &mut dyn FnMut(&Block<'_>) -> Result<(), E>,
    ) -> Result<(Blocks, u64), E> {
        let mut blocks = Blocks::new();
        walk.bytes += index.head.len() as u64;
        walk.damaged += u64::from(!hand_over(&mut blocks, &index.head, take)?);
        let bytes = index.bytes(self.len)?;
        let (mut covered, mut buffer) = (index.head.len() as u64, Vec::new());
        for record in Records::new(&index.header, &bytes) {
            let Record::Extent(extent) = record else { break };
            let end = extent.offset + u64::from(extent.len);
            // After a power cut an index may tell more than there is.
            if end > self.len || u64::from(extent.len) > EXTENT + MAX_BLOCK as u64 {
                break;
            }
            covered = end;
            if !wants(&extent) {
                walk.skipped += 1;
                continue;
            }
            walk.read += 1;
            walk.bytes += u64::from(extent.len);
            buffer.resize(extent.len as usize, 0);
            let whole = match self.data.read_exact_at(&mut buffer, extent.offset) {
                Ok(()) => hand_over(&mut blocks, &buffer, take)?,
                // Cut meanwhile, since its disk is full.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
                Err(error) => return Err(error.into()),
            };
            walk.damaged += u64::from(!whole);
        }
        Ok((blocks, covered))
    }

    fn tail<E: From<io::Error>>(
        &self,
        blocks: Blocks,
        from: u64,
        walk: &mut Walk,
        take: &mut dyn FnMut(&Block<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut data = &self.data;
        data.seek(SeekFrom::Start(from))?;
        let mut reader = Reader::resume(data.take(self.len - from), blocks, from);
        loop {
            match reader.next_block() {
                Ok(Some(block)) => take(&block)?,
                Ok(None) | Err(ReadError::Torn { .. }) => break,
                Err(ReadError::Io { source, .. }) => return Err(source.into()),
                Err(ReadError::Format { .. }) => {
                    walk.damaged += 1;
                    break;
                }
            }
        }
        walk.bytes += self.len - from;
        walk.unindexed += self.len - from;
        Ok(())
    }

    /// Its interface, where its head is whole.
    pub(super) fn interface(&self) -> io::Result<Option<Interface>> {
        let take = &mut |block: &Block<'_>| match block {
            Block::Interface(interface) => Err(Found::Interface(interface.clone())),
            Block::Section(_) => Ok(()),
            _ => Err(Found::Nothing),
        };
        match self.read(&mut |_| false, take) {
            Err(Found::Interface(interface)) => Ok(Some(interface)),
            Err(Found::Problem(problem)) => Err(problem),
            Ok(_) | Err(Found::Nothing) => Ok(None),
        }
    }

    /// What is in it, counted: by the index where that tells, else by reading.
    pub(super) fn span(&self) -> io::Result<(Span, Walk)> {
        if let Some(end) = self.end() {
            return Ok((Span { packets: end.packets, first: end.first, last: end.last }, Walk::default()));
        }
        let (mut told, mut seen) = (Span::default(), Span::default());
        let mut wants = |extent: &Extent<'_>| {
            told.join(&Span { packets: extent.packets.into(), first: extent.first, last: extent.last });
            false
        };
        let mut take = |block: &Block<'_>| {
            if let Block::Packet(packet) = block {
                seen.packet(packet.time);
            }
            Ok::<(), io::Error>(())
        };
        let walk = self.read(&mut wants, &mut take)?;
        told.join(&seen);
        Ok((told, walk))
    }
}

/// What ends looking for an interface.
enum Found {
    Interface(Interface),
    Nothing,
    Problem(io::Error),
}

impl From<io::Error> for Found {
    fn from(error: io::Error) -> Self {
        Self::Problem(error)
    }
}

impl Index {
    /// An index that belongs to `data`.
    fn bound(file: File, len: u64, number: u64, data: &File) -> Option<Self> {
        let mut bytes = [0; HEADER];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let header = Header::parse(&bytes).filter(|header| header.number == number && header.head_len <= MAX_HEAD)?;
        let mut head = vec![0; header.head_len as usize];
        data.read_exact_at(&mut head, 0).ok()?;
        (crc32c::crc32c(&head) == header.head_crc).then_some(Self { file, len, header, head })
    }

    /// All of it; of one that is larger than those of its segment's length are, a part.
    fn bytes(&self, data_len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0))?;
        file.take(self.len.min(data_len / 8 + 4096)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Whether all of `bytes` are whole blocks; those that are whole are handed over up to the first one that is not.
fn hand_over<E>(blocks: &mut Blocks, bytes: &[u8], take: &mut dyn FnMut(&Block<'_>) -> Result<(), E>) -> Result<bool, E> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let Ok(Step::Block(block, len)) = blocks.next(rest) else { return Ok(false) };
        take(&block)?;
        rest = rest.get(len..).unwrap_or_default();
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_the_captures_and_the_segments() {
        for capture in ["", "captured by probe a; job 7", "on its own"] {
            let comment = comment(capture, 12, UnixNanos(5));
            assert!(comment.ends_with("segment 12 of a ring, begun 0.000000005"), "{comment}");
            assert_eq!(of_capture(&comment), capture);
        }
        assert_eq!(of_capture("of somebody else"), "of somebody else");
    }

    #[test]
    fn only_our_own_names_are_segments() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "segment-0000000012.pcapng",
            "segment-0000000003.pcapng",
            "segment-12345678901.index",
            "segment-3.pcapng",
            "segment-00000000004.pcapng",
            "segment-+000000004.pcapng",
            "segment-0000000005.pcap",
            "my-segment-0000000006.pcapng",
            "notes",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let expected = Listing { segments: vec![3, 12], indexes: vec![12_345_678_901] };
        assert_eq!(list(dir.path()).unwrap(), expected);
        assert_eq!(data_path(dir.path(), 12), dir.path().join("segment-0000000012.pcapng"));
        assert!(Segment::open(dir.path(), 4).unwrap().is_none());
    }
}
