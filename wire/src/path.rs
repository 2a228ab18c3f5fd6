//! Finished paths as they travel: packed, some ten bytes a hop.
//!
//! Most hops say little besides who answered and when: a router whose quotation is as it should be, or the destination. Such a hop is its
//! address, a TTL and round trips; whatever says more is kept whole. The destination is not told: it is the target at the position.
//!
//! **Invariant:** what was packed is unpacked as it was, but for what [`TracedPath::path`] and [`TracedPath::ways`] leave out of an answer
//! that is larger than any honest one.
//! **Invariant:** of a batch that passed [`PathBatch::check`], every list is within the bounds stated here.

use core::net::IpAddr;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::LeaseId;
use crate::result::EXTRAS_MAX;
use crate::trace::{FLOWS_MAX, Graph, Hop, MAX_QUERIES, MAX_TTL, MPLS_MAX, Path, PathEnd, PathMtu, Quoted, Reply, ReplyKind};
use crate::units::UnixMillis;

/// Most interfaces that one answer names (RFC 5837 knows four roles).
pub const INTERFACES_MAX: usize = 4;
/// Longest name of an interface, in bytes (RFC 5837, section 4.3).
pub const NAME_MAX: usize = 64;
/// A path, or a graph, has at most so many bytes. Those of real networks have some hundred.
pub const PACKED_MAX: usize = 48 * 1024;

/// Paths that were traced under a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathBatch {
    /// The lease.
    pub lease: LeaseId,
    /// When it was put together, by the probe's trusted clock.
    pub at: UnixMillis,
    /// Where packets were sent from: one address of each family at most.
    pub sources: Vec<IpAddr>,
    /// The type of service that was sent, and that routers quoted where nothing else is said.
    pub tos: u8,
    /// The paths, at most [`EXTRAS_MAX`].
    pub paths: Vec<TracedPath>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedPath {
    /// The destination's position in the job's space.
    pub position: u64,
    /// How long before the batch was put together it was over, in milliseconds.
    pub ago_ms: u32,
    /// From its first packet to its end, in milliseconds.
    pub took_ms: u32,
    found: Packed,
}

/// What was found of the way to a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// One way.
    Path(Path),
    /// All ways.
    Ways(Box<Graph>),
}

impl Found {
    /// How it ended.
    pub fn end(&self) -> PathEnd {
        match self {
            Found::Path(path) => path.end,
            Found::Ways(graph) => graph.end,
        }
    }

    /// The destination.
    fn dst(&self) -> IpAddr {
        match self {
            Found::Path(path) => path.dst,
            Found::Ways(graph) => graph.dst,
        }
    }

    /// Packets that were sent for it.
    pub fn sent(&self) -> u32 {
        match self {
            Found::Path(path) => path.sent,
            Found::Ways(graph) => graph.sent,
        }
    }

    /// The destination's own answer, where it gave one.
    pub fn answer(&self) -> Option<&Reply> {
        let own = |reply: &&Reply| {
            reply.kind == ReplyKind::Answer || matches!(reply.kind, ReplyKind::Unreachable { .. }) && self.dst() == reply.from
        };
        match self {
            _ if self.end() != PathEnd::Reached => None,
            Found::Path(path) => path.hops.iter().rev().flat_map(|hop| &hop.replies).find(own),
            Found::Ways(graph) => graph.hops.iter().rev().flat_map(|hop| &hop.nodes).map(|node| &node.reply).find(own),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Packed {
    Path { end: PathEnd, sent: u32, first_ttl: u8, hops: Vec<PackedHop>, mtu: Option<PathMtu> },
    Ways(Box<Graph>),
}

/// A hop; its TTL is one more than that of the hop before, but where it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum PackedHop {
    /// Nobody answered so many packets.
    Silent(u8),
    /// The TTL ended there, and was 1 in the quotation.
    Router4(Plain<[u8; 4]>),
    Router6(Plain<[u8; 16]>),
    /// The destination answered without quoting anything.
    Answer4(Plain<[u8; 4]>),
    Answer6(Plain<[u8; 16]>),
    /// What another path got from a router, and nothing was sent.
    Known4(Plain<[u8; 4]>),
    Known6(Plain<[u8; 16]>),
    Whole(Box<Hop>),
}

/// Answers of one address that differ in their round trips alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Plain<A> {
    sent: u8,
    from: A,
    ttl: u8,
    rtt_us: u32,
    /// How much longer the others took.
    more: Vec<i32>,
}

/// How a plain hop is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Router,
    Answer,
    Known,
}

impl Sort {
    fn of(hop: &Hop, tos: u8) -> Option<Self> {
        let first = hop.replies.first()?;
        let quoted = Some(Quoted { ttl: 1, tos });
        let sort = match (first.kind, hop.inherited) {
            (ReplyKind::TimeExceeded, false) if first.quoted == quoted => Sort::Router,
            (ReplyKind::TimeExceeded, true) if first.quoted == quoted => Sort::Known,
            (ReplyKind::Answer, false) if first.quoted.is_none() => Sort::Answer,
            _ => return None,
        };
        let alike = |reply: &Reply| *reply == Reply { rtt_us: reply.rtt_us, ..first.clone() };
        (first.mpls.is_empty() && first.interfaces.is_empty() && first.mtu.is_none() && hop.replies.iter().all(alike)).then_some(sort)
    }
}

impl<A> Plain<A> {
    fn pack(hop: &Hop, from: A) -> Option<Self> {
        let (first, others) = hop.replies.split_first()?;
        let more = |reply: &Reply| i32::try_from(i64::from(reply.rtt_us) - i64::from(first.rtt_us)).ok();
        let more = others.iter().map(more).collect::<Option<Vec<i32>>>()?;
        Some(Self { sent: hop.sent, from, ttl: first.ttl, rtt_us: first.rtt_us, more })
    }

    fn unpack(&self, ttl: u8, from: IpAddr, sort: Sort, tos: u8) -> Hop {
        let (kind, quoted) = match sort {
            Sort::Router | Sort::Known => (ReplyKind::TimeExceeded, Some(Quoted { ttl: 1, tos })),
            Sort::Answer => (ReplyKind::Answer, None),
        };
        let reply = |rtt_us| Reply { from, rtt_us, ttl: self.ttl, kind, quoted, mpls: Vec::new(), interfaces: Vec::new(), mtu: None };
        let more = self.more.iter().map(|more| self.rtt_us.saturating_add_signed(*more));
        Hop {
            ttl,
            sent: self.sent,
            replies: core::iter::once(self.rtt_us).chain(more).map(reply).collect(),
            inherited: sort == Sort::Known,
        }
    }
}

impl PackedHop {
    fn pack(hop: &Hop, ttl: u8, tos: u8) -> Self {
        let whole = || PackedHop::Whole(Box::new(hop.clone()));
        if hop.ttl != ttl {
            return whole();
        }
        if hop.replies.is_empty() && !hop.inherited {
            return PackedHop::Silent(hop.sent);
        }
        let packed = Sort::of(hop, tos).zip(hop.replies.first()).and_then(|(sort, first)| match first.from {
            IpAddr::V4(from) => Plain::pack(hop, from.octets()).map(|plain| match sort {
                Sort::Router => PackedHop::Router4(plain),
                Sort::Answer => PackedHop::Answer4(plain),
                Sort::Known => PackedHop::Known4(plain),
            }),
            IpAddr::V6(from) => Plain::pack(hop, from.octets()).map(|plain| match sort {
                Sort::Router => PackedHop::Router6(plain),
                Sort::Answer => PackedHop::Answer6(plain),
                Sort::Known => PackedHop::Known6(plain),
            }),
        });
        packed.unwrap_or_else(whole)
    }

    fn unpack(&self, ttl: u8, tos: u8) -> Hop {
        match self {
            PackedHop::Silent(sent) => Hop { ttl, sent: *sent, ..Hop::default() },
            PackedHop::Router4(plain) => plain.unpack(ttl, plain.from.into(), Sort::Router, tos),
            PackedHop::Router6(plain) => plain.unpack(ttl, plain.from.into(), Sort::Router, tos),
            PackedHop::Answer4(plain) => plain.unpack(ttl, plain.from.into(), Sort::Answer, tos),
            PackedHop::Answer6(plain) => plain.unpack(ttl, plain.from.into(), Sort::Answer, tos),
            PackedHop::Known4(plain) => plain.unpack(ttl, plain.from.into(), Sort::Known, tos),
            PackedHop::Known6(plain) => plain.unpack(ttl, plain.from.into(), Sort::Known, tos),
            PackedHop::Whole(hop) => Hop::clone(hop),
        }
    }

    /// How many packets and answers it tells of.
    fn answers(&self) -> usize {
        match self {
            PackedHop::Silent(_) => 0,
            PackedHop::Router4(plain) | PackedHop::Answer4(plain) | PackedHop::Known4(plain) => 1 + plain.more.len(),
            PackedHop::Router6(plain) | PackedHop::Answer6(plain) | PackedHop::Known6(plain) => 1 + plain.more.len(),
            PackedHop::Whole(hop) => hop.replies.len(),
        }
    }
}

/// The TTL so many places behind the first one; whoever names more than there are says nothing.
fn ttl_at(first: u8, place: usize) -> u8 {
    first.saturating_add(u8::try_from(place).unwrap_or(u8::MAX))
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// The bytes of something on the wire.
fn size_of(value: &impl Serialize) -> usize {
    postcard::serialize_with_flavor(value, postcard::ser_flavors::Size::default()).unwrap_or(usize::MAX)
}

fn strip(reply: &mut Reply) {
    reply.interfaces.clear();
    reply.mpls.clear();
}

impl TracedPath {
    /// Packs a path that took so long; `tos` is what was sent. Where it has more than [`PACKED_MAX`] bytes, which takes routers that
    /// want it so, what they say of labels and interfaces is left out.
    pub fn path(position: u64, took: Duration, path: &Path, tos: u8) -> Self {
        let pack = |path: &Path| {
            let first_ttl = path.hops.first().map_or(1, |hop| hop.ttl);
            let hops = path.hops.iter().enumerate().map(|(at, hop)| PackedHop::pack(hop, ttl_at(first_ttl, at), tos)).collect();
            let found = Packed::Path { end: path.end, sent: path.sent, first_ttl, hops, mtu: path.mtu.clone() };
            Self { position, ago_ms: 0, took_ms: millis(took), found }
        };
        let packed = pack(path);
        if packed.size() <= PACKED_MAX {
            return packed;
        }
        let mut path = path.clone();
        path.hops.iter_mut().flat_map(|hop| &mut hop.replies).for_each(strip);
        pack(&path)
    }

    /// Packs all ways. Where they have more than [`PACKED_MAX`] bytes, labels and interfaces are left out, and then those nodes of the
    /// farthest hops that find no room: their hops are no longer `sure`.
    pub fn ways(position: u64, took: Duration, mut graph: Graph) -> Self {
        graph.hops.iter_mut().for_each(|hop| hop.nodes.truncate(FLOWS_MAX.into()));
        if size_of(&graph) > PACKED_MAX {
            graph.hops.iter_mut().flat_map(|hop| &mut hop.nodes).for_each(|node| strip(&mut node.reply));
        }
        let mut left = PACKED_MAX - PACKED_MAX / 4;
        if size_of(&graph) > PACKED_MAX {
            for hop in &mut graph.hops {
                let mut keep = 0;
                for node in &hop.nodes {
                    let needed = size_of(node);
                    let Some(rest) = left.checked_sub(needed) else { break };
                    (left, keep) = (rest, keep + 1);
                }
                hop.sure &= keep == hop.nodes.len();
                hop.nodes.truncate(keep);
            }
            let mut links = core::mem::take(&mut graph.links);
            links.retain(|link| graph.ends(link).is_some());
            // A link has some six bytes at most.
            links.truncate(PACKED_MAX / 4 / 8);
            graph.links = links;
        }
        Self { position, ago_ms: 0, took_ms: millis(took), found: Packed::Ways(Box::new(graph)) }
    }

    /// What was found, where `dst` is the target at the position and `tos` that of the batch.
    pub fn found(&self, dst: IpAddr, tos: u8) -> Found {
        match &self.found {
            Packed::Path { end, sent, first_ttl, hops, mtu } => {
                let hops = hops.iter().enumerate().map(|(at, hop)| hop.unpack(ttl_at(*first_ttl, at), tos)).collect();
                Found::Path(Path { dst, end: *end, hops, sent: *sent, mtu: mtu.clone() })
            }
            Packed::Ways(graph) => Found::Ways(Box::new(Graph { dst, ..Graph::clone(graph) })),
        }
    }

    /// How it ended.
    pub fn end(&self) -> PathEnd {
        match &self.found {
            Packed::Path { end, .. } => *end,
            Packed::Ways(graph) => graph.end,
        }
    }

    /// Its bytes on the wire.
    pub fn size(&self) -> usize {
        size_of(self)
    }
}

/// Why a batch of paths is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("paths of lease {lease}: {what} of {count} entries, at most {max} are allowed")]
pub struct PathError {
    lease: LeaseId,
    what: &'static str,
    count: usize,
    max: usize,
}

impl PathBatch {
    /// Verifies the bounds.
    ///
    /// # Errors
    /// When something is out of them.
    pub fn check(&self) -> Result<(), PathError> {
        let bound = |what, count, max| if count <= max { Ok(()) } else { Err(PathError { lease: self.lease, what, count, max }) };
        let reply = |reply: &Reply| {
            bound("a stack of labels", reply.mpls.len(), MPLS_MAX)?;
            bound("a list of interfaces", reply.interfaces.len(), INTERFACES_MAX)?;
            reply.interfaces.iter().flat_map(|info| &info.name).try_for_each(|name| bound("a name", name.len(), NAME_MAX))
        };
        let ttl = |ttl: u8| bound("a TTL", ttl.into(), MAX_TTL.into());
        bound("the batch", self.paths.len(), EXTRAS_MAX)?;
        bound("a list of sources", self.sources.len(), 2)?;
        for path in &self.paths {
            bound("a path in bytes", path.size(), PACKED_MAX)?;
            match &path.found {
                Packed::Path { first_ttl, hops, mtu, .. } => {
                    bound("a list of narrow links", mtu.as_ref().map_or(0, |mtu| mtu.limits.len()), MAX_TTL.into())?;
                    bound("a path", usize::from(*first_ttl) + hops.len(), usize::from(MAX_TTL) + 1)?;
                    for hop in hops {
                        bound("a hop", hop.answers(), MAX_QUERIES.into())?;
                        if let PackedHop::Whole(hop) = hop {
                            ttl(hop.ttl)?;
                            hop.replies.iter().try_for_each(reply)?;
                        }
                    }
                }
                Packed::Ways(graph) => {
                    bound("a graph", graph.hops.len(), MAX_TTL.into())?;
                    bound("a list of links", graph.links.len(), usize::from(MAX_TTL) * usize::from(FLOWS_MAX))?;
                    for hop in &graph.hops {
                        ttl(hop.ttl)?;
                        bound("a hop of a graph", hop.nodes.len(), FLOWS_MAX.into())?;
                        hop.nodes.iter().try_for_each(|node| reply(&node.reply))?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::JobId;
    use crate::trace::{GraphHop, InterfaceInfo, InterfaceRole, Link, MplsLabel, Node};

    fn reply(from: IpAddr, rtt_us: u32) -> Reply {
        let quoted = Some(Quoted { ttl: 1, tos: 0 });
        Reply { from, rtt_us, ttl: 250, kind: ReplyKind::TimeExceeded, quoted, mpls: vec![], interfaces: vec![], mtu: None }
    }

    /// Twelve hops over a wide network, `queries` answers each, the fifth hop silent.
    fn typical(v4: bool, queries: u8) -> Path {
        let from = |ttl: u8| -> IpAddr { if v4 { [198, 18, ttl, 2].into() } else { format!("2001:db8:{ttl:x}::2").parse().unwrap() } };
        let hop = |ttl: u8| {
            let rtt = 300 + 90 * u32::from(ttl).pow(2);
            let answer = |query: u8| reply(from(ttl), rtt + 37 * u32::from(query));
            let mut replies: Vec<Reply> = (0..if ttl == 5 { 0 } else { queries }).map(answer).collect();
            if ttl == 12 {
                replies.iter_mut().for_each(|reply| (reply.kind, reply.quoted) = (ReplyKind::Answer, None));
            }
            Hop { ttl, sent: queries.max(2), replies, inherited: false }
        };
        Path { dst: from(12), end: PathEnd::Reached, hops: (1..=12).map(hop).collect(), sent: 36, mtu: None }
    }

    fn batch(paths: Vec<TracedPath>) -> PathBatch {
        PathBatch { lease: LeaseId { job: JobId(1), grant: 1 }, at: UnixMillis(7), sources: vec![], tos: 0, paths }
    }

    #[test]
    fn a_typical_path_is_small() {
        let size = |v4, queries| TracedPath::path(70_000, Duration::from_millis(90), &typical(v4, queries), 0).size();
        // A path of a large job, one of a few destinations, and the same over IPv6.
        assert_eq!([size(true, 1), size(true, 3), size(false, 1), size(false, 3)], [123, 156, 255, 288]);
    }

    #[test]
    fn what_is_larger_than_honest_is_cut() {
        let info = InterfaceInfo { role: InterfaceRole::Incoming, index: Some(1), addr: None, name: Some("x".repeat(63)), mtu: None };
        let loud = Reply {
            interfaces: vec![info; 4],
            mpls: vec![MplsLabel { label: 1, tc: 0, bottom: true, ttl: 1 }; 8],
            ..reply([198, 18, 0, 1].into(), 9)
        };
        let hop = |ttl| Hop { ttl, sent: 16, replies: vec![loud.clone(); 16], inherited: false };
        let path = Path { dst: [198, 18, 0, 9].into(), end: PathEnd::Silent, hops: (1..=64).map(hop).collect(), sent: 1024, mtu: None };
        let packed = TracedPath::path(0, Duration::ZERO, &path, 0);
        assert!(packed.size() <= PACKED_MAX);
        let Found::Path(back) = packed.found(path.dst, 0) else { panic!("it was a path") };
        assert_eq!((back.hops.len(), back.hops[0].replies.len()), (64, 16));

        let node =
            |at: u16| Node { flows: 1, least_rtt_us: 9, reply: Reply { from: [10, 0, (at >> 8) as u8, at as u8].into(), ..loud.clone() } };
        let hop = |ttl| GraphHop { ttl, sure: true, by_packet: false, silent: 0, nodes: (0..512).map(node).collect() };
        let links = (1..64).flat_map(|ttl| (0..512).map(move |at| Link { ttl, from: at, to: at })).collect();
        let graph = Graph { dst: path.dst, end: PathEnd::Silent, confidence: 95, hops: (1..=64).map(hop).collect(), links, sent: 9 };
        let packed = TracedPath::ways(0, Duration::ZERO, graph);
        assert!(packed.size() <= PACKED_MAX, "{}", packed.size());
        assert_eq!(batch(vec![packed.clone()]).check(), Ok(()));
        let Found::Ways(back) = packed.found(path.dst, 0) else { panic!("it was a graph") };
        assert!(back.hops[0].sure && !back.hops[63].sure && back.hops[0].nodes.len() == 512);
        assert!(back.links.iter().all(|link| back.ends(link).is_some()));
    }

    #[test]
    fn batches_out_of_bounds_are_refused() {
        let one = || TracedPath::path(0, Duration::ZERO, &typical(true, 1), 0);
        assert_eq!(batch(vec![one(); EXTRAS_MAX]).check(), Ok(()));
        assert!(batch(vec![one(); EXTRAS_MAX + 1]).check().is_err());
        let with = |change: &dyn Fn(&mut Path)| {
            let mut path = typical(true, 1);
            change(&mut path);
            batch(vec![TracedPath::path(0, Duration::ZERO, &path, 0)]).check().map_err(|error| error.to_string())
        };
        let hop = |ttl, replies| Hop { ttl, sent: 1, replies: vec![reply([198, 18, 0, 1].into(), 5); replies], inherited: false };
        assert_eq!(with(&|path| path.hops = (1..=64).map(|ttl| hop(ttl, 1)).collect()), Ok(()));
        assert!(with(&|path| path.hops = (2..=65).map(|ttl| hop(ttl, 1)).collect()).is_err());
        assert!(with(&|path| path.hops = vec![hop(1, 1), hop(99, 1)]).unwrap_err().contains("a TTL of 99"));
        assert!(with(&|path| path.hops = vec![hop(1, 17)]).unwrap_err().contains("a hop of 17"));
        assert!(with(&|path| path.hops[0].replies[0].mpls = vec![MplsLabel { label: 1, tc: 0, bottom: true, ttl: 1 }; 9]).is_err());
    }

    #[test]
    fn more_hops_than_there_can_be_are_refused_and_harm_nobody() {
        let hop = |at: usize| Hop { ttl: ttl_at(1, at), sent: 1, ..Hop::default() };
        let path = Path { hops: (0..700).map(hop).collect(), ..typical(true, 1) };
        let packed = TracedPath::path(0, Duration::ZERO, &path, 0);
        assert!(batch(vec![packed.clone()]).check().is_err());
        assert_eq!(packed.found(path.dst, 0), Found::Path(path));
    }

    #[test]
    fn the_answer_of_a_destination_is_found() {
        let found = Found::Path(typical(true, 3));
        assert_eq!(found.answer().unwrap().rtt_us, 300 + 90 * 144);
        let mut silent = typical(true, 3);
        silent.end = PathEnd::Silent;
        assert_eq!(Found::Path(silent).answer(), None);
    }

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u8..4).prop_map(|last| [198, 18, 0, last].into()),
            (0u16..4).prop_map(|last| [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into())
        ]
    }

    fn replies() -> impl Strategy<Value = Reply> {
        let kind = prop_oneof![
            4 => Just(ReplyKind::TimeExceeded),
            2 => Just(ReplyKind::Answer),
            1 => any::<(u8, u8)>().prop_map(|(icmp_type, icmp_code)| ReplyKind::Unreachable { icmp_type, icmp_code })
        ];
        let quoted = proptest::option::of((0u8..3, 0u8..2).prop_map(|(ttl, tos)| Quoted { ttl, tos }));
        let label = any::<(u32, u8, bool, u8)>().prop_map(|(label, tc, bottom, ttl)| MplsLabel { label, tc, bottom, ttl });
        (addresses(), any::<u32>(), 60u8..62, kind, quoted, proptest::collection::vec(label, 0..2)).prop_map(
            |(from, rtt_us, ttl, kind, quoted, mpls)| Reply { from, rtt_us, ttl, kind, quoted, mpls, interfaces: vec![], mtu: None },
        )
    }

    fn hops() -> impl Strategy<Value = Hop> {
        let alike = (replies(), proptest::collection::vec(any::<u32>(), 0..4))
            .prop_map(|(first, rtts)| core::iter::once(first.rtt_us).chain(rtts).map(|rtt_us| Reply { rtt_us, ..first.clone() }).collect());
        let replies = prop_oneof![alike, proptest::collection::vec(replies(), 0..3)];
        (0u8..2, any::<u8>(), replies, any::<bool>()).prop_map(|(skip, sent, replies, inherited)| Hop {
            ttl: skip,
            sent,
            replies,
            inherited,
        })
    }

    proptest! {
        #[test]
        fn packed_paths_are_unpacked_as_they_were(dst in addresses(), hops in proptest::collection::vec(hops(), 0..12), first in 1u8..5, tos in 0u8..2, sent: u32) {
            let mut ttl = first;
            let hops = hops.into_iter().map(|hop| {
                ttl += 1 + hop.ttl;
                Hop { ttl, ..hop }
            }).collect();
            let path = Path { dst, end: PathEnd::TooFar, hops, sent, mtu: None };
            let packed = TracedPath::path(9, Duration::from_millis(3), &path, tos);
            let bytes = postcard::to_allocvec(&batch(vec![packed.clone()])).unwrap();
            let back: PathBatch = postcard::from_bytes(&bytes).unwrap();
            prop_assert_eq!(back.check(), Ok(()));
            prop_assert_eq!(back.paths[0].found(dst, tos), Found::Path(path));
        }

        #[test]
        fn any_bytes_decode_or_fail_and_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(batch) = postcard::from_bytes::<PathBatch>(&bytes) {
                let _ = batch.check();
                for path in &batch.paths {
                    let _ = path.found([198, 18, 0, 1].into(), batch.tos).answer();
                }
            }
        }
    }
}
