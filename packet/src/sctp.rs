//! SCTP (RFC 9260): the INIT that we send, and a view of the first chunk of what comes.
//!
//! It must not know cookies or what an answer means. Checksums are not verified on the way in, see [`super::ip`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ip::{PROTOCOL_SCTP, V4_HEADER_LEN, V4Template, V6_HEADER_LEN, V6Template};

/// Length of the common header (RFC 9260, section 3.1).
pub const HEADER_LEN: usize = 12;
/// Length of the INIT packet: common header and an INIT chunk without parameters (section 3.3.2).
pub const INIT_LEN: usize = 32;
/// Where the initiate tag of an INIT stands.
const INITIATE_TAG: usize = 16;
/// Chunk types (section 3.2).
pub const CHUNK_INIT: u8 = 1;
/// The answer of an endpoint that listens.
pub const CHUNK_INIT_ACK: u8 = 2;
/// The answer of one that does not.
pub const CHUNK_ABORT: u8 = 6;
/// The T bit of an ABORT: the verification tag is reflected, the sender knows no association (section 8.5.1).
pub const ABORT_T: u8 = 1;
/// What a modest endpoint offers: receive window in bytes, streams each way. 1,500 is the least window (section 3.3.2).
const WINDOW: u32 = 32_768;
const STREAMS: u16 = 10;

/// The start of a packet: ports, verification tag and the first chunk's head, as far as a quote has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Verification tag: the initiate tag of who the packet is for; zero in an INIT.
    pub tag: u32,
    /// The initiate tag, where the first chunk is an INIT that is quoted so far.
    pub initiate_tag: Option<u32>,
}

impl Start {
    /// Reads what an ICMP error quotes; eight octets are enough.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let ([a, b, c, d, tag @ ..], _) = bytes.split_first_chunk::<8>()?;
        let initiate = bytes.get(HEADER_LEN..).filter(|chunk| chunk.first() == Some(&CHUNK_INIT));
        let initiate_tag = initiate.and_then(|chunk| chunk.get(INITIATE_TAG - HEADER_LEN..)?.first_chunk::<4>());
        Some(Self {
            src_port: u16::from_be_bytes([*a, *b]),
            dst_port: u16::from_be_bytes([*c, *d]),
            tag: u32::from_be_bytes(*tag),
            initiate_tag: initiate_tag.map(|tag| u32::from_be_bytes(*tag)),
        })
    }
}

/// A packet with its first chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Verification tag.
    pub tag: u32,
    /// Type of the first chunk.
    pub chunk: u8,
    /// Its flags.
    pub flags: u8,
}

impl Answer {
    /// Looks at the payload of an IP packet; `None` where the first chunk is not there as a whole.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let start = Start::parse(bytes)?;
        let chunk = bytes.get(HEADER_LEN..)?;
        let ([kind, flags, high, low], _) = chunk.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let whole = (4..=chunk.len()).contains(&len);
        whole.then_some(Self { src_port: start.src_port, dst_port: start.dst_port, tag: start.tag, chunk: *kind, flags: *flags })
    }
}

/// What differs between two INITs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Init {
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Initiate tag; never zero (section 3.3.2).
    pub tag: u32,
}

/// The constant bytes of INIT packets, IP header included, for both families.
#[derive(Debug, Clone, Copy)]
pub struct InitTemplate {
    v4: Option<V4Template>,
    v6: Option<V6Template>,
}

/// The packet behind the IP header.
fn packet(init: &Init) -> [u8; INIT_LEN] {
    let mut p = [0; INIT_LEN];
    p[..2].copy_from_slice(&init.src_port.to_be_bytes());
    p[2..4].copy_from_slice(&init.dst_port.to_be_bytes());
    p[HEADER_LEN] = CHUNK_INIT;
    p[15] = (INIT_LEN - HEADER_LEN) as u8;
    p[INITIATE_TAG..20].copy_from_slice(&init.tag.to_be_bytes());
    p[20..24].copy_from_slice(&WINDOW.to_be_bytes());
    p[24..26].copy_from_slice(&STREAMS.to_be_bytes());
    p[26..28].copy_from_slice(&STREAMS.to_be_bytes());
    // The initial TSN may be the initiate tag (section 3.3.2).
    p[28..32].copy_from_slice(&init.tag.to_be_bytes());
    // Over the packet with a zero checksum, the least significant byte first (RFC 9260, section 6.8 and appendix A).
    let sum = crc32c::crc32c(&p);
    p[8..12].copy_from_slice(&sum.to_le_bytes());
    p
}

impl InitTemplate {
    /// Templates for the families that have a source address.
    pub fn new(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, ttl: u8) -> Self {
        Self {
            v4: v4.map(|src| V4Template::new(src, PROTOCOL_SCTP, ttl, INIT_LEN as u16)),
            v6: v6.map(|src| V6Template::new(src, PROTOCOL_SCTP, ttl, INIT_LEN as u16)),
        }
    }

    /// Writes the packet for `init` and gives its length; `None` where the family has no source address or `buf` is too short.
    pub fn write(&self, init: &Init, buf: &mut [u8]) -> Option<usize> {
        match init.dst {
            IpAddr::V4(dst) => {
                let out = buf.first_chunk_mut::<{ V4_HEADER_LEN + INIT_LEN }>()?;
                out[..V4_HEADER_LEN].copy_from_slice(&self.v4.as_ref()?.header(dst));
                out[V4_HEADER_LEN..].copy_from_slice(&packet(init));
                Some(out.len())
            }
            IpAddr::V6(dst) => {
                let out = buf.first_chunk_mut::<{ V6_HEADER_LEN + INIT_LEN }>()?;
                out[..V6_HEADER_LEN].copy_from_slice(&self.v6.as_ref()?.header(dst));
                out[V6_HEADER_LEN..].copy_from_slice(&packet(init));
                Some(out.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::Packet;

    /// CRC32c bit by bit (RFC 9260, appendix A): an oracle without a table. pnet has no SCTP.
    fn slow_crc32c(bytes: &[u8]) -> u32 {
        !bytes
            .iter()
            .fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1))))
    }

    proptest! {
        #[test]
        fn inits_read_back(dst4: u32, dst6: u128, v4: bool, src_port: u16, dst_port: u16, tag in 1u32..) {
            let template = InitTemplate::new(Some(Ipv4Addr::new(192, 0, 2, 1)), Some(Ipv6Addr::LOCALHOST), 64);
            let dst = if v4 { IpAddr::V4(Ipv4Addr::from_bits(dst4)) } else { IpAddr::V6(Ipv6Addr::from_bits(dst6)) };
            let mut buf = [0xaa; 1500];
            let len = template.write(&Init { dst, src_port, dst_port, tag }, &mut buf).unwrap();
            let ip = Packet::parse(&buf[..len]).unwrap();
            prop_assert_eq!((ip.dst(), ip.protocol(), ip.ttl(), ip.payload().len()), (dst, PROTOCOL_SCTP, 64, INIT_LEN));
            let start = Start::parse(ip.payload()).unwrap();
            prop_assert_eq!(start, Start { src_port, dst_port, tag: 0, initiate_tag: Some(tag) });
            prop_assert_eq!(Start::parse(&ip.payload()[..8]).unwrap(), Start { initiate_tag: None, ..start });
            prop_assert_eq!(Answer::parse(ip.payload()).unwrap(), Answer { src_port, dst_port, tag: 0, chunk: CHUNK_INIT, flags: 0 });
            let mut zeroed = ip.payload().to_vec();
            zeroed[8..12].fill(0);
            prop_assert_eq!(&ip.payload()[8..12], &slow_crc32c(&zeroed).to_le_bytes()[..]);
        }

        #[test]
        fn views_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Start::parse(&bytes);
            if let Some(answer) = Answer::parse(&bytes) {
                prop_assert_eq!((answer.chunk, answer.flags), (bytes[12], bytes[13]));
            }
        }
    }

    #[test]
    fn crc32c_is_the_one_of_the_rfcs() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(slow_crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
