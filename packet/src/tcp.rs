//! TCP headers (RFC 9293, section 3.1): a view of what comes, and the SYN and ACK that we send.
//!
//! It must not know cookies, attempts or what an answer means. Checksums are not verified on the way in, see [`super::ip`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ip::{PROTOCOL_TCP, Packet, V4_HEADER_LEN, V4Template, V6_HEADER_LEN, V6Template};

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// Length of the SYN that we send: a header and the maximum segment size option.
pub const SYN_LEN: usize = 24;
/// Length of the ACK that we send.
pub const ACK_LEN: usize = HEADER_LEN;
/// Offset of the flags.
const FLAGS: usize = 13;
/// What Linux offers on an Ethernet: some filters drop a SYN that no ordinary system would send.
pub const WINDOW: u16 = 64_240;
const MSS_V4: u16 = 1460;
const MSS_V6: u16 = 1440;

/// The control bits that matter here (RFC 9293, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Hand over what came so far.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is significant.
    pub const URG: u8 = 0x20;
    /// Congestion was experienced (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// The congestion window was reduced (RFC 3168).
    pub const CWR: u8 = 0x80;

    /// Whether all of `bits` are set.
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }
}

/// The first eight octets of a header: all that an ICMP error needs to quote (RFC 792).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
}

impl Start {
    /// Reads the start of a header, which may be cut after eight octets.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let ([a, b, c, d, s @ ..], _) = bytes.split_first_chunk::<8>()?;
        Some(Self { src_port: u16::from_be_bytes([*a, *b]), dst_port: u16::from_be_bytes([*c, *d]), seq: u32::from_be_bytes(*s) })
    }
}

/// A segment whose header is known to be complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    start: Start,
    ack: u32,
    flags: Flags,
    window: u16,
    header_len: u8,
}

impl Segment {
    /// Looks at the payload of an IP packet as a segment; `None` where the header with its options is not complete.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let len = usize::from(header[12] >> 4) * 4;
        let complete = len >= HEADER_LEN && len <= bytes.len();
        let ack = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        let window = u16::from_be_bytes([header[14], header[15]]);
        complete.then_some(Self { start: Start::parse(bytes)?, ack, flags: Flags(header[FLAGS]), window, header_len: len as u8 })
    }

    /// Source port.
    pub const fn src_port(&self) -> u16 {
        self.start.src_port
    }

    /// Destination port.
    pub const fn dst_port(&self) -> u16 {
        self.start.dst_port
    }

    /// Sequence number.
    pub const fn seq(&self) -> u32 {
        self.start.seq
    }

    /// Acknowledgement number; means something only with [`Flags::ACK`].
    pub const fn ack(&self) -> u32 {
        self.ack
    }

    /// Control bits.
    pub const fn flags(&self) -> Flags {
        self.flags
    }

    /// Window, as it stands in the header: not scaled.
    pub const fn window(&self) -> u16 {
        self.window
    }

    /// Length of the header with its options, in bytes.
    pub const fn header_len(&self) -> usize {
        self.header_len as usize
    }
}

/// The length of the IP packet by which the kernel answers `packet` behind our back, where it does: a segment for a port
/// without a socket provokes a reset (RFC 9293, section 3.10.7.1), unless it is one itself.
///
/// Nobody hands these packets to the pacer. Whoever owns the pacer must charge them, or the answers of open ports make the
/// interface send more than it may.
pub fn provoked_reset(packet: &[u8]) -> Option<usize> {
    let packet = Packet::parse(packet)?;
    let segment = (packet.protocol() == PROTOCOL_TCP).then(|| Segment::parse(packet.payload())).flatten()?;
    let header = if packet.src().is_ipv4() { V4_HEADER_LEN } else { V6_HEADER_LEN };
    (!segment.flags().has(Flags::RST)).then_some(header + HEADER_LEN)
}

/// What differs between two SYNs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syn {
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
}

/// The constant bytes of SYN packets, IP header included, for both families.
#[derive(Debug, Clone, Copy)]
pub struct SynTemplate {
    v4: Option<V4Template>,
    v6: Option<V6Template>,
}

const fn syn_segment(mss: u16) -> [u8; SYN_LEN] {
    let (w, m) = (WINDOW.to_be_bytes(), mss.to_be_bytes());
    // Six words of header, then the option "maximum segment size" (RFC 9293, section 3.2): kind 2, length 4.
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, Flags::SYN, w[0], w[1], 0, 0, 0, 0, 2, 4, m[0], m[1]]
}

const fn ack_segment() -> [u8; ACK_LEN] {
    let w = WINDOW.to_be_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, Flags::ACK, w[0], w[1], 0, 0, 0, 0]
}

const ACK: [u8; ACK_LEN] = ack_segment();
const SYN_V4: [u8; SYN_LEN] = syn_segment(MSS_V4);
const SYN_V6: [u8; SYN_LEN] = syn_segment(MSS_V6);

/// What differs between two ACKs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number: the sequence number of the RST that answers (RFC 9293, section 3.10.7.1).
    pub ack: u32,
}

/// The constant bytes of ACK packets, IP header included, for both families.
#[derive(Debug, Clone, Copy)]
pub struct AckTemplate {
    v4: Option<V4Template>,
    v6: Option<V6Template>,
}

impl AckTemplate {
    /// Templates for the families that have a source address.
    pub fn new(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, ttl: u8) -> Self {
        Self {
            v4: v4.map(|src| V4Template::new(src, PROTOCOL_TCP, ttl, ACK_LEN as u16)),
            v6: v6.map(|src| V6Template::new(src, PROTOCOL_TCP, ttl, ACK_LEN as u16)),
        }
    }

    /// Writes the packet for `ack` and gives its length; `None` where the family has no source address or `buf` is too short.
    pub fn write(&self, ack: &Ack, buf: &mut [u8]) -> Option<usize> {
        let mut segment = ACK;
        segment[8..12].copy_from_slice(&ack.ack.to_be_bytes());
        let start = Syn { dst: ack.dst, src_port: ack.src_port, dst_port: ack.dst_port, seq: ack.seq };
        match ack.dst {
            IpAddr::V4(dst) => {
                let template = self.v4.as_ref()?;
                let packet = buf.first_chunk_mut::<{ V4_HEADER_LEN + ACK_LEN }>()?;
                packet[..V4_HEADER_LEN].copy_from_slice(&template.header(dst));
                packet[V4_HEADER_LEN..].copy_from_slice(&patched(segment, &start, template.pseudo_sum(dst)));
                Some(packet.len())
            }
            IpAddr::V6(dst) => {
                let template = self.v6.as_ref()?;
                let packet = buf.first_chunk_mut::<{ V6_HEADER_LEN + ACK_LEN }>()?;
                packet[..V6_HEADER_LEN].copy_from_slice(&template.header(dst));
                packet[V6_HEADER_LEN..].copy_from_slice(&patched(segment, &start, template.pseudo_sum(dst)));
                Some(packet.len())
            }
        }
    }
}

/// The segment with its ports, sequence number and, from `sum` over the pseudo-header, checksum.
#[inline]
fn patched<const N: usize>(mut segment: [u8; N], syn: &Syn, mut sum: super::checksum::Checksum) -> [u8; N] {
    const { assert!(N >= HEADER_LEN) };
    segment[..2].copy_from_slice(&syn.src_port.to_be_bytes());
    segment[2..4].copy_from_slice(&syn.dst_port.to_be_bytes());
    segment[4..8].copy_from_slice(&syn.seq.to_be_bytes());
    sum.add(&segment);
    segment[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    segment
}

impl SynTemplate {
    /// Templates for the families that have a source address.
    pub fn new(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, ttl: u8) -> Self {
        Self {
            v4: v4.map(|src| V4Template::new(src, PROTOCOL_TCP, ttl, SYN_LEN as u16)),
            v6: v6.map(|src| V6Template::new(src, PROTOCOL_TCP, ttl, SYN_LEN as u16)),
        }
    }

    /// Writes the packet for `syn` and gives its length; `None` where the family has no source address or `buf` is too short.
    #[inline]
    pub fn write(&self, syn: &Syn, buf: &mut [u8]) -> Option<usize> {
        match syn.dst {
            IpAddr::V4(dst) => {
                let template = self.v4.as_ref()?;
                let packet = buf.first_chunk_mut::<{ V4_HEADER_LEN + SYN_LEN }>()?;
                packet[..V4_HEADER_LEN].copy_from_slice(&template.header(dst));
                packet[V4_HEADER_LEN..].copy_from_slice(&patched(SYN_V4, syn, template.pseudo_sum(dst)));
                Some(packet.len())
            }
            IpAddr::V6(dst) => {
                let template = self.v6.as_ref()?;
                let packet = buf.first_chunk_mut::<{ V6_HEADER_LEN + SYN_LEN }>()?;
                packet[..V6_HEADER_LEN].copy_from_slice(&template.header(dst));
                packet[V6_HEADER_LEN..].copy_from_slice(&patched(SYN_V6, syn, template.pseudo_sum(dst)));
                Some(packet.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pnet_packet::Packet as _;
    use pnet_packet::tcp::{self, TcpPacket};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn syns_are_what_pnet_reads(src4: u32, src6: u128, dst4: u32, dst6: u128, v4: bool, src_port: u16, dst_port: u16, seq: u32) {
            let (src4, src6) = (Ipv4Addr::from_bits(src4), Ipv6Addr::from_bits(src6));
            let template = SynTemplate::new(Some(src4), Some(src6), 64);
            let dst = if v4 { IpAddr::V4(Ipv4Addr::from_bits(dst4)) } else { IpAddr::V6(Ipv6Addr::from_bits(dst6)) };
            let mut buf = [0xaa; 1500];
            let len = template.write(&Syn { dst, src_port, dst_port, seq }, &mut buf).unwrap();
            let ip = Packet::parse(&buf[..len]).unwrap();
            prop_assert_eq!((ip.dst(), ip.protocol(), ip.ttl()), (dst, PROTOCOL_TCP, 64));
            let oracle = TcpPacket::new(ip.payload()).unwrap();
            prop_assert_eq!((oracle.get_source(), oracle.get_destination(), oracle.get_sequence()), (src_port, dst_port, seq));
            prop_assert_eq!(oracle.get_flags(), Flags::SYN);
            prop_assert_eq!(oracle.payload().len(), 0);
            let sum = match dst {
                IpAddr::V4(dst) => tcp::ipv4_checksum(&oracle, &src4, &dst),
                IpAddr::V6(dst) => tcp::ipv6_checksum(&oracle, &src6, &dst),
            };
            prop_assert_eq!(oracle.get_checksum(), sum);
        }

        #[test]
        fn acks_are_what_pnet_reads(dst4: u32, dst6: u128, v4: bool, src_port: u16, dst_port: u16, seq: u32, ack: u32) {
            let (src4, src6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::LOCALHOST);
            let template = AckTemplate::new(Some(src4), Some(src6), 64);
            let dst = if v4 { IpAddr::V4(Ipv4Addr::from_bits(dst4)) } else { IpAddr::V6(Ipv6Addr::from_bits(dst6)) };
            let mut buf = [0xaa; 1500];
            let len = template.write(&Ack { dst, src_port, dst_port, seq, ack }, &mut buf).unwrap();
            let ip = Packet::parse(&buf[..len]).unwrap();
            prop_assert_eq!((ip.dst(), ip.protocol(), ip.ttl(), ip.payload().len()), (dst, PROTOCOL_TCP, 64, ACK_LEN));
            let oracle = TcpPacket::new(ip.payload()).unwrap();
            prop_assert_eq!((oracle.get_source(), oracle.get_destination()), (src_port, dst_port));
            prop_assert_eq!((oracle.get_sequence(), oracle.get_acknowledgement(), oracle.get_flags()), (seq, ack, Flags::ACK));
            let sum = match dst {
                IpAddr::V4(dst) => tcp::ipv4_checksum(&oracle, &src4, &dst),
                IpAddr::V6(dst) => tcp::ipv6_checksum(&oracle, &src6, &dst),
            };
            prop_assert_eq!(oracle.get_checksum(), sum);
        }

        #[test]
        fn views_never_panic_and_agree_with_pnet(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Start::parse(&bytes);
            if let Some(segment) = Segment::parse(&bytes) {
                let oracle = TcpPacket::new(&bytes).unwrap();
                prop_assert_eq!((segment.src_port(), segment.dst_port()), (oracle.get_source(), oracle.get_destination()));
                prop_assert_eq!((segment.seq(), segment.ack()), (oracle.get_sequence(), oracle.get_acknowledgement()));
                prop_assert_eq!(segment.flags().0, oracle.get_flags());
                let (header_len, window) = (usize::from(oracle.get_data_offset()) * 4, oracle.get_window());
                prop_assert_eq!((segment.header_len(), segment.window()), (header_len, window));
            }
        }
    }

    #[test]
    fn segments_without_a_socket_provoke_a_reset() {
        let template = SynTemplate::new(Some(Ipv4Addr::new(192, 0, 2, 1)), Some(Ipv6Addr::LOCALHOST), 64);
        for (dst, header, reset) in [("198.18.0.1", 20, 40), ("2001:db8::1", 40, 60)] {
            let mut buf = [0; 100];
            let syn = Syn { dst: dst.parse().unwrap(), src_port: 1, dst_port: 2, seq: 3 };
            let len = template.write(&syn, &mut buf).unwrap();
            assert_eq!(provoked_reset(&buf[..len]), Some(reset));
            buf[header + FLAGS] = Flags::RST | Flags::ACK;
            assert_eq!(provoked_reset(&buf[..len]), None);
        }
        assert_eq!(provoked_reset(&[0x45; 30]), None);
    }

    #[test]
    fn without_a_source_address_there_is_no_packet() {
        let template = SynTemplate::new(None, Some(Ipv6Addr::LOCALHOST), 64);
        let syn = Syn { dst: "198.18.0.1".parse().unwrap(), src_port: 1, dst_port: 2, seq: 3 };
        assert_eq!(template.write(&syn, &mut [0; 1500]), None);
        let syn = Syn { dst: "2001:db8::1".parse().unwrap(), ..syn };
        assert_eq!(template.write(&syn, &mut [0; 10]), None);
        assert_eq!(template.write(&syn, &mut [0; 1500]), Some(64));
    }
}
