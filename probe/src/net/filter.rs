//! The kernel's filter on what we receive, as a classic BPF program: only what can be an answer to us.
//!
//! It works on the network header and the kernel's own fields, so one program fits every kind of link. Frames of a VLAN
//! that is not ours and our own outgoing packets do not pass.
//!
//! Invariant: pure; `net::afpacket` attaches it.

/// One instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip where the condition holds.
    pub jt: u8,
    /// Instructions to skip where it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// What passes, besides ARP replies and announcements, neighbour and router advertisements, reports of multicast listeners and the ICMP
/// messages that answer us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Our source ports: the lowest and the highest. Segments to other ports do not pass.
    pub ports: (u16, u16),
    /// IP protocols whose destination port is looked at; all have it in bytes 2 and 3.
    pub protocols: Vec<u8>,
}

const LDB_ABS: u16 = 0x30;
const LDH_ABS: u16 = 0x28;
const LDW_ABS: u16 = 0x20;
const LDB_IND: u16 = 0x50;
const LDH_IND: u16 = 0x48;
const LDX_MSH: u16 = 0xb1;
const AND: u16 = 0x54;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const JEQ_X: u16 = 0x1d;
const TAX: u16 = 0x07;
const RET: u16 = 0x06;

/// `SKF_NET_OFF`: relative to the network header.
const NET: u32 = 0xfff0_0000;
/// `SKF_AD_OFF`: the kernel's own fields.
const AD: u32 = 0xffff_f000;
const AD_PROTOCOL: u32 = AD;
const AD_PKTTYPE: u32 = AD + 4;
const AD_VLAN_TAG: u32 = AD + 44;
const AD_VLAN_TAG_PRESENT: u32 = AD + 48;
const PACKET_OUTGOING: u32 = 4;

/// ICMP types that answer us: echo reply, unreachable, source quench, time exceeded, parameter problem, timestamp reply.
const ICMP_TYPES: [u32; 6] = [0, 3, 4, 11, 12, 14];
/// ICMPv6 types: the errors, echo reply, router and neighbour advertisement.
const ICMPV6_TYPES: [u32; 7] = [1, 2, 3, 4, 129, 134, 136];
/// ICMPv6 types behind a router alert: reports of multicast listeners. They come seldom, and only while all groups are listened to.
const LISTENER_REPORTS: [u32; 2] = [131, 143];

/// Where a jump goes before the offsets are known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Accept,
    Drop,
    Label(&'static str),
}

#[derive(Default)]
struct Assembler {
    code: Vec<(u16, u32, To, To)>,
    labels: Vec<(&'static str, usize)>,
}

impl Assembler {
    fn label(&mut self, name: &'static str) {
        self.labels.push((name, self.code.len()));
    }

    fn load(&mut self, code: u16, k: u32) {
        self.code.push((code, k, To::Next, To::Next));
    }

    fn jump(&mut self, code: u16, k: u32, yes: To, no: To) {
        self.code.push((code, k, yes, no));
    }

    fn any_of(&mut self, values: &[u32], yes: To) {
        for value in values {
            self.jump(JEQ, *value, yes, To::Next);
        }
        self.jump(JGE, 0, To::Drop, To::Drop);
    }

    /// The last two instructions are "accept" and "drop".
    fn finish(self) -> Vec<Instruction> {
        let len = self.code.len();
        let distance = |from: usize, to: To| {
            let target = match to {
                To::Next => from + 1,
                To::Accept => len,
                To::Drop => len + 1,
                To::Label(name) => self.labels.iter().find(|(label, _)| *label == name).map(|(_, at)| *at).expect("every label is placed"),
            };
            u8::try_from(target - from - 1).expect("the program is short and jumps forward")
        };
        let body = self.code.iter().enumerate().map(|(at, (code, k, yes, no))| Instruction {
            code: *code,
            jt: distance(at, *yes),
            jf: distance(at, *no),
            k: *k,
        });
        let accept = Instruction { code: RET, jt: 0, jf: 0, k: u32::MAX };
        body.chain([accept, Instruction { k: 0, ..accept }]).collect()
    }
}

impl Filter {
    /// The program.
    pub fn program(&self) -> Vec<Instruction> {
        let mut a = Assembler::default();
        a.load(LDW_ABS, AD_PKTTYPE);
        a.jump(JEQ, PACKET_OUTGOING, To::Drop, To::Next);
        a.load(LDW_ABS, AD_VLAN_TAG_PRESENT);
        a.jump(JEQ, 0, To::Label("protocol"), To::Next);
        a.load(LDW_ABS, AD_VLAN_TAG);
        a.load(AND, 0xfff);
        a.jump(JEQ, 0, To::Next, To::Drop);
        a.label("protocol");
        a.load(LDW_ABS, AD_PROTOCOL);
        a.jump(JEQ, 0x0800, To::Label("v4"), To::Next);
        a.jump(JEQ, 0x86dd, To::Label("v6"), To::Next);
        a.jump(JEQ, 0x0806, To::Next, To::Drop);
        a.load(LDH_ABS, NET + 6);
        a.jump(JEQ, 2, To::Accept, To::Next);
        a.load(LDW_ABS, NET + 14);
        a.load(TAX, 0);
        a.load(LDW_ABS, NET + 24);
        a.jump(JEQ_X, 0, To::Accept, To::Drop);

        a.label("v4");
        a.load(LDH_ABS, NET + 6);
        a.jump(JSET, 0x1fff, To::Drop, To::Next);
        a.load(LDX_MSH, NET);
        a.load(LDB_ABS, NET + 9);
        a.jump(JEQ, 1, To::Label("icmp"), To::Next);
        a.any_of(&self.numbers(), To::Label("v4 ports"));
        a.label("v4 ports");
        a.load(LDH_IND, NET + 2);
        self.port_range(&mut a);
        a.label("icmp");
        a.load(LDB_IND, NET);
        a.any_of(&ICMP_TYPES, To::Accept);

        a.label("v6");
        a.load(LDB_ABS, NET + 6);
        a.jump(JEQ, 58, To::Label("icmpv6"), To::Next);
        a.jump(JEQ, 0, To::Label("hop by hop"), To::Next);
        a.any_of(&self.numbers(), To::Label("v6 ports"));
        a.label("v6 ports");
        a.load(LDH_ABS, NET + 42);
        self.port_range(&mut a);
        a.label("icmpv6");
        a.load(LDB_ABS, NET + 40);
        a.any_of(&ICMPV6_TYPES, To::Accept);
        a.label("hop by hop");
        // Only ICMPv6 behind options of eight octets.
        a.load(LDH_ABS, NET + 40);
        a.jump(JEQ, 58 << 8, To::Next, To::Drop);
        a.load(LDB_ABS, NET + 48);
        a.any_of(&LISTENER_REPORTS, To::Accept);
        a.finish()
    }

    fn numbers(&self) -> Vec<u32> {
        self.protocols.iter().map(|number| u32::from(*number)).collect()
    }

    fn port_range(&self, a: &mut Assembler) {
        a.jump(JGE, self.ports.0.into(), To::Next, To::Drop);
        a.jump(JGT, self.ports.1.into(), To::Drop, To::Accept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Packet<'a> {
        kind: u32,
        vlan: Option<u32>,
        protocol: u32,
        bytes: &'a [u8],
    }

    /// As the kernel's interpreter does it, for the instructions used here.
    fn run(program: &[Instruction], packet: &Packet<'_>) -> u32 {
        let byte = |at: u32| packet.bytes.get(at.wrapping_sub(NET) as usize).copied().map(u32::from);
        let half = |at: u32| Some(byte(at)? << 8 | byte(at + 1)?);
        let (mut a, mut x, mut pc) = (0, 0, 0);
        loop {
            let i = program[pc];
            pc += 1;
            let mut jump = |holds: bool| pc += usize::from(if holds { i.jt } else { i.jf });
            let loaded = match (i.code, i.k) {
                (LDW_ABS, AD_PKTTYPE) => Some(packet.kind),
                (LDW_ABS, AD_VLAN_TAG_PRESENT) => Some(packet.vlan.is_some().into()),
                (LDW_ABS, AD_VLAN_TAG) => Some(packet.vlan.unwrap_or(0)),
                (LDW_ABS, AD_PROTOCOL) => Some(packet.protocol),
                (LDW_ABS, k) => half(k).and_then(|high| Some(high << 16 | half(k + 2)?)),
                (TAX, _) => {
                    x = a;
                    Some(a)
                }
                (JEQ_X, _) => {
                    jump(a == x);
                    Some(a)
                }
                (LDB_ABS, k) => byte(k),
                (LDH_ABS, k) => half(k),
                (LDB_IND, k) => byte(k.wrapping_add(x)),
                (LDH_IND, k) => half(k.wrapping_add(x)),
                (LDX_MSH, k) => match byte(k) {
                    Some(first) => {
                        x = (first & 0xf) * 4;
                        Some(a)
                    }
                    None => None,
                },
                (AND, k) => Some(a & k),
                (JEQ, k) => {
                    jump(a == k);
                    Some(a)
                }
                (JGT, k) => {
                    jump(a > k);
                    Some(a)
                }
                (JGE, k) => {
                    jump(a >= k);
                    Some(a)
                }
                (JSET, k) => {
                    jump(a & k != 0);
                    Some(a)
                }
                (RET, k) => return k,
                other => panic!("unknown instruction {other:x?}"),
            };
            match loaded {
                Some(value) => a = value,
                None => return 0,
            }
        }
    }

    fn passes(protocol: u32, bytes: &[u8]) -> bool {
        let program = Filter { ports: (40_000, 40_999), protocols: vec![6] }.program();
        run(&program, &Packet { kind: 0, vlan: None, protocol, bytes }) != 0
    }

    fn v4(protocol: u8, header_words: u8, fragment: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; usize::from(header_words) * 4];
        packet[0] = 0x40 | header_words;
        packet[7] = fragment;
        packet[9] = protocol;
        packet.extend(payload);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[6] = next;
        packet.extend(payload);
        packet
    }

    #[test]
    fn answers_pass_and_nothing_else() {
        let port = |port: u16| [&[0, 80][..], &port.to_be_bytes(), &[0; 16]].concat();
        for (protocol, packet, pass, what) in [
            (0x0800, v4(6, 5, 0, &port(40_000)), true, "lowest port"),
            (0x0800, v4(6, 5, 0, &port(40_999)), true, "highest port"),
            (0x0800, v4(6, 8, 0, &port(40_500)), true, "IP options"),
            (0x0800, v4(6, 5, 0, &port(39_999)), false, "port below"),
            (0x0800, v4(6, 5, 0, &port(41_000)), false, "port above"),
            (0x0800, v4(6, 5, 9, &port(40_500)), false, "later fragment"),
            (0x0800, v4(17, 5, 0, &port(40_500)), false, "UDP"),
            (0x0800, v4(1, 5, 0, &[0, 0, 0, 0]), true, "echo reply"),
            (0x0800, v4(1, 5, 0, &[11, 0, 0, 0]), true, "time exceeded"),
            (0x0800, v4(1, 5, 0, &[8, 0, 0, 0]), false, "echo request"),
            (0x0800, v4(6, 5, 0, &[0]), false, "cut short"),
            (0x86dd, v6(6, &port(40_001)), true, "TCP over IPv6"),
            (0x86dd, v6(6, &port(1)), false, "foreign TCP over IPv6"),
            (0x86dd, v6(58, &[136]), true, "advertisement"),
            (0x86dd, v6(58, &[135]), false, "solicitation"),
            (0x86dd, v6(58, &[128]), false, "echo request over IPv6"),
            (0x86dd, v6(58, &[134]), true, "router advertisement"),
            (0x86dd, v6(0, &[58, 0, 5, 2, 0, 0, 1, 0, 143]), true, "listener report"),
            (0x86dd, v6(0, &[58, 0, 5, 2, 0, 0, 1, 0, 131]), true, "listener report of version 1"),
            (0x86dd, v6(0, &[58, 0, 5, 2, 0, 0, 1, 0, 128]), false, "echo request with options"),
            (0x86dd, v6(0, &[58, 1, 5, 2, 0, 0, 1, 0, 143]), false, "more options than a listener has"),
            (0x86dd, v6(0, &[6, 0, 5, 2, 0, 0, 1, 0, 143]), false, "TCP with options"),
            (0x86dd, v6(17, &port(40_001)), false, "UDP over IPv6"),
            (0x0806, vec![0, 1, 8, 0, 6, 4, 0, 2], true, "ARP reply"),
            (0x0806, [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[1; 20]].concat(), true, "ARP announcement"),
            (0x0806, [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[1; 10], &[2; 10]].concat(), false, "ARP request"),
            (0x0806, vec![0, 1, 8, 0, 6, 4, 0, 1], false, "ARP request cut short"),
            (0x88cc, vec![0; 64], false, "LLDP"),
        ] {
            assert_eq!(passes(protocol, &packet), pass, "{what}");
        }
    }

    #[test]
    fn own_packets_and_foreign_vlans_do_not_pass() {
        let program = Filter { ports: (1, 2), protocols: vec![6] }.program();
        let reply = v4(1, 5, 0, &[0; 8]);
        for (kind, vlan, pass) in [(0, None, true), (4, None, false), (0, Some(0xe000), true), (0, Some(7), false)] {
            let packet = Packet { kind, vlan, protocol: 0x0800, bytes: &reply };
            assert_eq!(run(&program, &packet) != 0, pass, "{kind} {vlan:?}");
        }
    }

    proptest! {
        #[test]
        fn ends_whatever_arrives(protocol in prop_oneof![Just(0x0800u32), Just(0x86dd), Just(0x0806), any::<u32>()], bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            passes(protocol, &bytes);
        }
    }
}
