//! Which hardware addresses answer for suspiciously many addresses: routers that do proxy ARP (RFC 1027) or proxy neighbour
//! discovery (RFC 4389), and tarpits. What such a one answers says nothing about a host.
//!
//! It must not know packets or time.
//!
//! **The threshold.** A host may well have a few addresses, a server or a balancer some dozens. To take such a one for a proxy costs
//! little: its addresses are asked once more, by IP, and found all the same. To miss a proxy makes hosts of addresses where nobody
//! is. So the threshold is low: [`MANY`] addresses, or already [`FEW`] where these are more than half of all that were asked so far,
//! as they are where a proxy answers for everything: then it is found out before the first reports are made, even at a slow rate.
//!
//! **Invariant:** memory is bounded, whoever answers how often: [`HOLDERS`] hardware addresses with [`MANY`] keys each.

use std::collections::HashMap;

use crate::packet::eth::Mac;

/// So many addresses are too many for a host in any case.
pub const MANY: usize = 16;
/// So many are too many where they are most of what was asked.
pub const FEW: usize = 4;
/// Most hardware addresses that are remembered; on a link with more, those that come later are believed.
pub const HOLDERS: usize = 65_536;

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard<K> {
    /// It is the answer of a host.
    Host,
    /// With this answer its sender is known for a proxy: so were these answers, of late, given for others, this one not among them.
    Unmasked(Vec<K>),
    /// It comes from a known proxy.
    Proxy,
}

#[derive(Debug)]
struct Holder<K> {
    /// Addresses that it answered for, while it is believed.
    keys: Vec<K>,
    addresses: u64,
    proxy: bool,
}

/// Counts who answers for how many. `K` names an address for whoever uses it.
#[derive(Debug)]
pub struct ProxyWatch<K> {
    holders: HashMap<Mac, Holder<K>>,
}

impl<K> Default for ProxyWatch<K> {
    fn default() -> Self {
        Self { holders: HashMap::new() }
    }
}

impl<K: Copy + PartialEq> ProxyWatch<K> {
    /// `mac` answers for `key`, of which it is to be told only once; `asked` addresses were asked for so far.
    pub fn on_answer(&mut self, mac: Mac, key: K, asked: u64) -> Heard<K> {
        if self.holders.len() >= HOLDERS && !self.holders.contains_key(&mac) {
            return Heard::Host;
        }
        let holder = self.holders.entry(mac).or_insert_with(|| Holder { keys: Vec::new(), addresses: 0, proxy: false });
        holder.addresses += 1;
        if holder.proxy {
            return Heard::Proxy;
        }
        let most = holder.keys.len() + 1 >= FEW && holder.addresses * 2 > asked;
        if most || holder.keys.len() + 1 >= MANY {
            holder.proxy = true;
            return Heard::Unmasked(core::mem::take(&mut holder.keys));
        }
        holder.keys.push(key);
        Heard::Host
    }

    /// Takes `mac` for a proxy from now on, since it answered for what cannot exist.
    pub fn unmask(&mut self, mac: Mac) -> Vec<K> {
        let holder = self.holders.entry(mac).or_insert_with(|| Holder { keys: Vec::new(), addresses: 0, proxy: false });
        holder.addresses += 1;
        holder.proxy = true;
        core::mem::take(&mut holder.keys)
    }

    /// The proxies and how many addresses each answered for, in the order of their addresses.
    pub fn proxies(&self) -> Vec<(Mac, u64)> {
        let mut proxies: Vec<_> = self.holders.iter().filter(|(_, h)| h.proxy).map(|(mac, h)| (*mac, h.addresses)).collect();
        proxies.sort_unstable();
        proxies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn who_answers_for_most_is_found_out_at_once() {
        let mut watch = ProxyWatch::default();
        for key in 0..3 {
            assert_eq!(watch.on_answer(A, key, 3), Heard::Host);
        }
        assert_eq!(watch.on_answer(A, 3, 4), Heard::Unmasked(vec![0, 1, 2]));
        assert_eq!(watch.on_answer(A, 4, 5), Heard::Proxy);
        assert_eq!(watch.on_answer(B, 5, 6), Heard::Host);
        assert_eq!(watch.proxies(), [(A, 5)]);
    }

    #[test]
    fn a_host_may_have_several_addresses() {
        let mut watch = ProxyWatch::default();
        for key in 0..MANY - 1 {
            assert_eq!(watch.on_answer(A, key, 200), Heard::Host);
        }
        assert!(watch.proxies().is_empty());
        assert!(matches!(watch.on_answer(A, 99, 200), Heard::Unmasked(keys) if keys.len() == MANY - 1));
    }

    #[test]
    fn what_cannot_exist_unmasks() {
        let mut watch = ProxyWatch::default();
        watch.on_answer(A, 1, 100);
        assert_eq!(watch.unmask(A), [1]);
        assert_eq!(watch.on_answer(A, 2, 100), Heard::Proxy);
        assert_eq!(watch.proxies(), [(A, 3)]);
    }

    #[test]
    fn bounded() {
        let mut watch = ProxyWatch::default();
        for n in 0..HOLDERS as u64 + 10 {
            let [.., c, d, e, f] = n.to_be_bytes();
            watch.on_answer(Mac([2, 0, c, d, e, f]), n, u64::MAX);
        }
        assert_eq!(watch.holders.len(), HOLDERS);
    }
}
