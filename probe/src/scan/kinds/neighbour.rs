//! ARP (RFC 826) and neighbour solicitation (RFC 4861, section 7.2): up where somebody has the address.
//!
//! Only for addresses on the probe's own link, with which it may not have spoken at all yet: the question goes to everybody there (ARP)
//! or to the target's group, and needs no hardware address.
//!
//! **No cookie.** Neither protocol has a field that an answer repeats. An answer is taken if it was sent to us, and is about an address
//! that is in the space, was asked for by this run, and has not been reported yet; what else arrives (announcements, answers to others)
//! is not ours. So whoever is on the link can answer for any address that we ask for, as he can to everybody else: an answer by ARP
//! proves that somebody there wants to be taken for the host, no more. Who does so for very many is found out (`net::proxy`).
//!
//! **No attempt** is named either. While a target was asked once its round trip is exact; an answer after a repetition is
//! counted from the last one, and the wait is learnt from the first, so that it errs to the long side (RFC 6298, section 3 would
//! not learn from it at all, and lose hosts that sleep between beacons).

use core::net::IpAddr;
use std::sync::Arc;

use picket_wire::result::{State, UpReason};

use crate::net::onlink::LocalLink;
use crate::packet::arp::{self, Arp, Operation};
use crate::packet::eth::Mac;
use crate::packet::ndp;

/// Somebody answers for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::scan) struct Answered {
    pub(in crate::scan) addr: IpAddr,
    pub(in crate::scan) mac: Mac,
    pub(in crate::scan) state: State,
}

/// Asks for neighbours on a link.
pub(in crate::scan) struct Neighbour {
    link: Arc<LocalLink>,
}

impl Neighbour {
    pub(in crate::scan) fn new(link: Arc<LocalLink>) -> Self {
        Self { link }
    }

    /// Writes the question for `addr`; `None` where it is not on the link.
    pub(in crate::scan) fn patch(&self, addr: IpAddr, buf: &mut [u8]) -> Option<usize> {
        match (addr, self.link.source_for(addr)?) {
            (IpAddr::V4(target), IpAddr::V4(sender)) => {
                let request =
                    Arp { operation: Operation::Request, sender_mac: self.link.mac(), sender, target_mac: Mac::default(), target };
                buf.get_mut(..arp::LEN)?.copy_from_slice(&request.emit());
                Some(arp::LEN)
            }
            (IpAddr::V6(target), IpAddr::V6(source)) => {
                let packet = ndp::solicit(source, self.link.mac(), target, ndp::solicited_node(target));
                buf.get_mut(..packet.len())?.copy_from_slice(&packet);
                Some(packet.len())
            }
            _ => None,
        }
    }

    /// Reads an answer that was sent to us from the hardware address `from`.
    pub(in crate::scan) fn accept(&self, from: Option<Mac>, packet: &[u8]) -> Option<Answered> {
        let answered = match packet.first_chunk::<2>()? {
            &arp::FIRST_BYTES => {
                let reply = Arp::parse(packet).filter(|arp| arp.operation == Operation::Reply && arp.target_mac == self.link.mac())?;
                let asked_from = self.link.source_for(reply.sender.into())?;
                (asked_from == IpAddr::V4(reply.target)).then_some(Answered {
                    addr: reply.sender.into(),
                    mac: reply.sender_mac,
                    state: State::UpBy(UpReason::Arp),
                })?
            }
            _ => {
                let advert = ndp::Neighbour::parse(packet).filter(|message| message.advert && message.solicited)?;
                let asked_from = self.link.source_for(advert.target.into())?;
                (asked_from == IpAddr::V6(advert.dst)).then_some(Answered {
                    addr: advert.target.into(),
                    mac: advert.mac.or(from)?,
                    state: State::UpBy(UpReason::Neighbour),
                })?
            }
        };
        // A group is no host, and nor are we.
        (answered.mac.is_unicast() && answered.mac != self.link.mac()).then_some(answered)
    }
}
