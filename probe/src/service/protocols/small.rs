//! Protocols of one short question and one short answer: Modbus, Memcached, AMQP, NTP, STUN, CoAP, RPC, NetBIOS names, RMCP.

use picket_wire::job::Transport;

use super::Setting;
use super::once::{Once, Read};
use crate::service::dialogue::Finding;
use crate::service::text::{Reader, begins, clean, find};

/// Modbus ("MODBUS Application Protocol V1.1b3", section 6.21): read device identification, basic objects. Only where asking
/// fragile devices was allowed.
pub(super) fn modbus() -> Once {
    Once::new([0, 1, 0, 0, 0, 5, 1, 0x2b, 0x0e, 1, 0], |input, over| {
        let mut reader = Reader::new(input);
        let Some(head) = reader.take(6) else { return if over { Read::Foreign } else { Read::More } };
        let [0, 1, 0, 0, 0, len] = *head else { return Read::Foreign };
        match reader.take(len.into()) {
            Some(body) => Read::from_whole(modbus_answer(body)),
            None => Read::More,
        }
    })
}

fn modbus_answer(body: &[u8]) -> Option<Finding> {
    let mut reader = Reader::new(body);
    let unit = reader.u8()?;
    let mut finding = Finding::new("mbap");
    finding.fact("modbus.unit", unit.to_string());
    match reader.u8()? {
        0x2b => {
            // Type, code, conformity, more follows, next object; then how many objects.
            reader.take(5)?;
            for _ in 0..reader.u8()? {
                let (Some(id), Some(value)) = (reader.u8(), reader.sized8().map(clean)) else { break };
                match id {
                    0 => finding.fact("modbus.vendor", value),
                    1 => {
                        finding.service.product = Some(value.clone());
                        finding.fact("modbus.product", value);
                    }
                    2 => {
                        finding.service.version = Some(value.clone());
                        finding.fact("modbus.revision", value);
                    }
                    _ => {}
                }
            }
        }
        0xab => finding.fact("modbus.exception", reader.u8()?.to_string()),
        _ => return None,
    }
    Some(finding)
}

/// Memcached's text protocol.
pub(super) fn memcached() -> Once {
    Once::new("version\r\n", |input, over| {
        if begins(input, b"VERSION ") && (over || input.contains(&b'\n')) {
            let mut finding = Finding::new("memcache");
            finding.service.product = Some("Memcached".to_owned());
            finding.service.version = Some(clean(input.get(8..).unwrap_or_default()));
            return Read::Known(finding);
        }
        if begins(b"VERSION ", input.get(..8.min(input.len())).unwrap_or_default()) && !over { Read::More } else { Read::Foreign }
    })
}

/// AMQP 0-9-1, section 4.2.2: the server answers the protocol's header by Connection.Start, with what it says of itself.
pub(super) fn amqp() -> Once {
    Once::new(*b"AMQP\0\0\x09\x01", |input, over| {
        if begins(input, b"AMQP") {
            // Another version: the header of what it would speak.
            let Some([id, major, minor, revision]) = input.get(4..8) else { return Read::More };
            let mut finding = Finding::new("amqp");
            finding.fact("amqp.version", format!("{major}-{minor}-{revision} ({id})"));
            return Read::Known(finding);
        }
        if b"AMQP".starts_with(input) && !over {
            return Read::More;
        }
        let mut reader = Reader::new(input);
        // A frame of a method, on channel 0.
        if !input.is_empty() && reader.take(3) != Some(&[1, 0, 0]) {
            return if input.len() < 3 && !over { Read::More } else { Read::Foreign };
        }
        let Some(body) = reader.sized32() else {
            return if input.len() < 16 * 1024 { Read::More } else { Read::Foreign };
        };
        Read::from_whole(amqp_start(body))
    })
}

fn amqp_start(body: &[u8]) -> Option<Finding> {
    let mut reader = Reader::new(body);
    if reader.u32()? != 0x000a_000a {
        return None;
    }
    let mut finding = Finding::new("amqp");
    finding.fact("amqp.version", format!("{}-{}", reader.u8()?, reader.u8()?));
    let mut table = Reader::new(reader.sized32()?);
    while let (Some(name), Some(kind)) = (table.sized8(), table.u8()) {
        let value = match kind {
            b'S' => clean(table.sized32().unwrap_or_default()),
            b'F' | b'A' => table.sized32().map(|_| String::new()).unwrap_or_default(),
            b't' => table.u8().map(|_| String::new()).unwrap_or_default(),
            _ => break,
        };
        match name {
            b"product" => finding.service.product = Some(value),
            b"version" => finding.service.version = Some(value),
            b"cluster_name" => finding.fact("amqp.cluster", value),
            b"platform" => finding.fact("amqp.platform", value),
            _ => {}
        }
    }
    finding.fact("amqp.mechanisms", reader.sized32().map(clean).unwrap_or_default());
    Some(finding)
}

/// NTP (RFC 5905, section 7.3): a client's question.
pub(super) fn ntp() -> Once {
    let mut question = [0; 48];
    question[0] = 0x23;
    Once::new(question, |input, _| Read::from_whole(ntp_answer(input)))
}

fn ntp_answer(input: &[u8]) -> Option<Finding> {
    let mut reader = Reader::new(input);
    let (flags, stratum) = (reader.u8()?, reader.u8()?);
    reader.take(10)?;
    let reference = reader.take(4)?;
    reader.take(32)?;
    // A server's answer, of a version that there was.
    if flags & 7 != 4 || !(1..=4).contains(&(flags >> 3 & 7)) {
        return None;
    }
    let mut finding = Finding::new("ntp");
    finding.fact("ntp.version", (flags >> 3 & 7).to_string());
    finding.fact("ntp.stratum", stratum.to_string());
    finding.fact("ntp.synchronized", if flags >> 6 == 3 { "no" } else { "yes" });
    let [a, b, c, d] = <[u8; 4]>::try_from(reference).ok()?;
    finding.fact("ntp.reference", if stratum < 2 { clean(reference) } else { format!("{a}.{b}.{c}.{d}") });
    Some(finding)
}

/// STUN (RFC 8489, section 5): a Binding request.
pub(super) fn stun(setting: &Setting) -> Once {
    let mut question = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    question.extend_from_slice(setting.random.first_chunk::<12>().unwrap_or(&[0; 12]));
    Once::new(question, |input, _| Read::from_whole(stun_answer(input)))
}

fn stun_answer(input: &[u8]) -> Option<Finding> {
    let mut reader = Reader::new(input);
    let kind = reader.u16()?;
    let mut attributes = reader;
    attributes.u16()?;
    if attributes.u32()? != 0x2112_a442 || !matches!(kind, 0x0101 | 0x0111) {
        return None;
    }
    attributes.take(12)?;
    let mut finding = Finding::new("stun");
    while let (Some(kind), Some(value)) = (attributes.u16(), attributes.sized16()) {
        // SOFTWARE
        if kind == 0x8022 {
            finding.fact("stun.software", clean(value));
            (finding.service.product, finding.service.version) = super::http::product(&clean(value).replacen('-', "/", 1));
        }
        attributes.take((4 - value.len() % 4) % 4);
    }
    Some(finding)
}

/// CoAP (RFC 7252): what resources there are (RFC 6690).
pub(super) fn coap() -> Once {
    Once::new(*b"\x40\x01\x50\x4b\xbb.well-known\x04core", |input, _| {
        let mut reader = Reader::new(input);
        let (Some(first), Some(code), Some(0x504b)) = (reader.u8(), reader.u8(), reader.u16()) else { return Read::Foreign };
        // Version 1, an acknowledgement or a reset; a class of 2, 4 or 5, or empty.
        if first & 0xe0 != 0x60 || !matches!(code >> 5, 0 | 2 | 4 | 5) {
            return Read::Foreign;
        }
        let mut finding = Finding::new("coap");
        finding.fact("coap.code", format!("{}.{:02}", code >> 5, code & 31));
        if let Some(at) = find(input, b"\xff<") {
            finding.fact("coap.resources", clean(input.get(at + 1..).unwrap_or_default()));
        }
        Read::Known(finding)
    })
}

/// ONC RPC (RFC 5531): the port mapper's list (RFC 1833, PMAPPROC_DUMP).
pub(super) fn rpc(setting: &Setting) -> Once {
    let mut question = Vec::new();
    // Transaction, call, RPC version 2, port mapper version 2, dump; no credentials, no verifier.
    for number in [0x5049_434bu32, 0, 2, 100_000, 2, 4, 0, 0, 0, 0] {
        question.extend_from_slice(&number.to_be_bytes());
    }
    if setting.transport == Transport::Udp {
        return Once::new(question, |input, _| Read::from_whole(rpc_answer(input)));
    }
    let mark = 0x8000_0000 | u32::try_from(question.len()).unwrap_or_default();
    question.splice(0..0, mark.to_be_bytes());
    Once::new(question, |input, over| {
        let mut reader = Reader::new(input);
        let Some(mark) = reader.u32() else { return Read::More };
        let len = (mark & 0x7fff_ffff) as usize;
        let early = reader.rest().get(..8).is_some_and(|head| head != [0x50, 0x49, 0x43, 0x4b, 0, 0, 0, 1]);
        if early || !(24..48 * 1024).contains(&len) {
            return Read::Foreign;
        }
        match reader.take(len) {
            Some(body) => Read::from_whole(rpc_answer(body)),
            None if over => Read::from_whole(rpc_answer(reader.rest())),
            None => Read::More,
        }
    })
}

fn rpc_answer(input: &[u8]) -> Option<Finding> {
    let mut reader = Reader::new(input);
    if (reader.u32()?, reader.u32()?) != (0x5049_434b, 1) {
        return None;
    }
    let mut finding = Finding::new("sunrpc");
    // Accepted; a verifier; how it went.
    let accepted = reader.u32()? == 0;
    reader.u32()?;
    reader.sized32()?;
    let mut programs: Vec<String> = Vec::new();
    if accepted && reader.u32()? == 0 {
        while let Some(1) = reader.u32() {
            let (Some(program), Some(version), Some(_), Some(port)) = (reader.u32(), reader.u32(), reader.u32(), reader.u32()) else {
                break;
            };
            let text = format!("{program}v{version}:{port}");
            if !programs.contains(&text) && programs.len() < 40 {
                programs.push(text);
            }
        }
    }
    finding.fact("rpc.programs", programs.join(" "));
    Some(finding)
}

/// NetBIOS over TCP (RFC 1002, section 4.2.17): the names of a node.
pub(super) fn netbios() -> Once {
    let mut question = b"\x50\x4b\0\0\0\x01\0\0\0\0\0\0\x20CK".to_vec();
    question.extend_from_slice(&[b'A'; 30]);
    question.extend_from_slice(&[0, 0, 0x21, 0, 1]);
    Once::new(question, |input, _| Read::from_whole(netbios_answer(input)))
}

fn netbios_answer(input: &[u8]) -> Option<Finding> {
    let mut reader = Reader::new(input);
    if reader.u16()? != 0x504b || reader.u16()? & 0x8000 == 0 {
        return None;
    }
    let mut finding = Finding::new("netbios-ns");
    // The rest of the header, the name asked for, type, class, life, length.
    reader.take(8 + 34 + 10)?;
    let mut names = Vec::new();
    for _ in 0..reader.u8()? {
        let (Some(name), Some(suffix), Some(flags)) = (reader.take(15), reader.u8(), reader.u16()) else { break };
        let name = clean(name.trim_ascii_end());
        let group = flags & 0x8000 != 0;
        match (suffix, group) {
            (0x00, false) => finding.service.hostname = Some(name.clone()),
            (0x00, true) => finding.fact("netbios.group", name.clone()),
            _ => {}
        }
        names.push(format!("{name}<{suffix:02x}>"));
    }
    finding.fact("netbios.names", names.join(" "));
    finding.fact("netbios.mac", reader.take(6).map(hex::encode).unwrap_or_default());
    Some(finding)
}

/// RMCP (DMTF DSP0136, "ASF presence ping"): whether there is a management controller.
pub(super) fn rmcp() -> Once {
    Once::new([6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x80, 0, 0, 0], |input, _| match input {
        [6, _, _, 6, 0, 0, 0x11, 0xbe, 0x40, _, _, _, _, _, _, _, ..] => {
            let mut finding = Finding::new("asf-rmcp");
            finding.fact("rmcp.ipmi", if input.get(20).is_some_and(|byte| byte & 0x80 != 0) { "yes" } else { "no" });
            Read::Known(finding)
        }
        _ => Read::Foreign,
    })
}
