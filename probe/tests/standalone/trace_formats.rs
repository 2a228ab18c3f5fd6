//! Paths are read back by the programs of others: RIPE's sagan for Atlas results; Nmap's DTD, libnmap and ndiff for the XML.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::formats::{PYTHON, tool, valid_by_dtd};
use crate::lab::{Lab, has_tool, sh};
use crate::trace::{Chain, ROUTERS, SILENT};

/// Where `scripts/setup test` puts what is no package of the system.
const MODULES: &str = concat!("PYTHONPATH=", env!("CARGO_MANIFEST_DIR"), "/../target/python");

/// What sagan makes of each result; it warns on standard error of what it does not understand.
const SAGAN: &str = "
import json, sys
from ripe.atlas.sagan import Result
for line in open(sys.argv[1]):
    r = Result.get(line)
    packet = lambda p: {'from': p.origin, 'rtt': p.rtt, 'ttl': p.ttl, 'ittl': p.internal_ttl, 'error': p.error_message,
                        'objects': p.icmp_header.objects if p.icmp_header else None}
    hop = lambda h: {'hop': h.index, 'error': h.error_message, 'packets': [packet(p) for p in h.packets]}
    print(json.dumps({'type': r.type, 'dst': r.destination_address, 'name': r.destination_name, 'src': r.source_address, 'af': r.af,
        'proto': r.protocol, 'size': r.size, 'flow': r.paris_id, 'began': r.created_timestamp, 'ended': r.end_time_timestamp,
        'bad': r.is_malformed or r.is_error, 'arrived': r.destination_ip_responded, 'success': r.is_success,
        'hops': [hop(h) for h in r.hops]}))
";

/// A router of an MPLS network behind the namespace's own: what would end there is answered with two labels and an interface
/// (RFC 4884, 4950, 5837), and echo requests that go farther are answered by whom they ask for.
const MPLS_ROUTER: &str = r"
import fcntl, os, struct
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH', b'mpls', 0x1001))
def summed(data, at):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return data[:at] + struct.pack('!H', ~total & 0xffff) + data[at + 2:]
def send(src, dst, message):
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0, src, dst)
    os.write(tun, summed(head, 10) + summed(message, 2))
os.system('ip link set mpls up; ip route add 198.19.9.0/24 dev mpls')
print('ready', flush=True)
while True:
    p = os.read(tun, 2048)
    if p[0] >> 4 == 4 and p[8] > 1:
        send(p[16:20], p[12:16], b'\0\0\0\0' + p[24:])
    elif p[0] >> 4 == 4:
        labels = struct.pack('!HBBII', 12, 1, 1, 24001 << 12 | 3 << 9 | 1, 17 << 12 | 1 << 8 | 9)
        interface = struct.pack('!HBBI', 8, 2, 0b00001000, 7)
        extension = summed(struct.pack('!BBH', 0x20, 0, 0) + labels + interface, 2)
        send(bytes([198, 19, 9, 1]), p[12:16], bytes([11, 0, 0, 0, 0, 32, 0, 0]) + p.ljust(128, b'\0') + extension)
";

/// A process of the test, gone with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the MPLS router in the first router of the chain, and waits until it forwards.
fn mpls_router(chain: &Chain) -> Running {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &chain.names[1], PYTHON, "-c", MPLS_ROUTER]);
    let mut running = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    running
}

fn read_by_sagan(file: &Path) -> Vec<Value> {
    let run = tool("env", &[MODULES, PYTHON, "-c", SAGAN, file.to_str().unwrap()]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    run.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A packet of ours as sagan should read it.
fn expected(reply: &Value) -> Value {
    let mut objects: Vec<Value> = Vec::new();
    let labels = reply["mpls"].as_array().unwrap();
    if !labels.is_empty() {
        let label = |entry: &Value| json!({ "exp": entry["tc"], "label": entry["label"], "s": u8::from(entry["bottom"] == true), "ttl": entry["ttl"] });
        objects.push(json!({ "class": 1, "type": 1, "mpls": labels.iter().map(label).collect::<Vec<_>>() }));
    }
    // The lab's router names an index and nothing else.
    objects.extend(reply["interfaces"].as_array().unwrap().iter().map(|_| json!({ "class": 2, "type": 8 })));
    json!({
        "from": reply["from"], "rtt": reply["rtt_ms"], "ttl": reply["ttl"], "ittl": reply["quoted_ttl"].as_u64().unwrap_or(1), "error": null,
        "objects": if objects.is_empty() { Value::Null } else { objects.into() },
    })
}

fn silent() -> Value {
    json!({ "from": null, "rtt": null, "ttl": null, "ittl": 1, "error": null, "objects": null })
}

#[test]
fn atlas_results_are_read_by_sagan_as_they_were_measured() {
    let Some(chain) = Chain::new() else { return };
    if !has_tool("env", &[MODULES, PYTHON, "-c", "import ripe.atlas.sagan"]) {
        return;
    }
    let _router = mpls_router(&chain);
    let dir = Lab::dir();
    let file = dir.path().join("atlas.json");
    for (dst, method) in [(Chain::destination(true), "icmp"), (Chain::destination(false), "udp"), ("198.19.9.77".to_owned(), "icmp")] {
        let run = chain.run(&format!("trace -o ndjson --flow 5 --output-file atlas={} --method {method} {dst}", file.display()));
        assert_eq!(run.code, Some(0), "{}", run.err);
        let ours: Value = serde_json::from_str(run.out.lines().next().unwrap()).unwrap();
        let [theirs] = &read_by_sagan(&file)[..] else { panic!("{dst}") };
        let v4 = !dst.contains(':');
        let expected_head = json!({
            "type": "traceroute", "dst": dst, "name": dst, "src": if v4 { "198.18.1.1" } else { "2001:db8:1::1" }, "af": if v4 { 4 } else { 6 },
            "proto": method.to_uppercase(), "size": 12, "flow": 5, "bad": false, "arrived": true, "success": true,
        });
        for (key, value) in expected_head.as_object().unwrap() {
            assert_eq!(theirs[key], *value, "{key} of {theirs}");
        }
        let [began, ended] = ["began", "ended"].map(|key| theirs[key].as_u64().unwrap());
        assert!(began <= ended && ended - began <= 10 && began > 1_700_000_000, "{theirs}");
        let hops: Vec<Value> = ours["hops"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hop| {
                let mut packets: Vec<Value> = hop["replies"].as_array().unwrap().iter().map(expected).collect();
                packets.resize(hop["sent"].as_u64().unwrap() as usize, silent());
                json!({ "hop": hop["ttl"], "error": null, "packets": packets })
            })
            .collect();
        assert_eq!(theirs["hops"], Value::from(hops), "{ours}");
        if dst == "198.19.9.77" {
            let objects = &theirs["hops"][1]["packets"][0]["objects"];
            let labels = json!([{ "exp": 3, "label": 24_001, "s": 0, "ttl": 1 }, { "exp": 0, "label": 17, "s": 1, "ttl": 9 }]);
            assert_eq!((&objects[0]["mpls"], &objects[1]["class"]), (&labels, &2.into()), "{theirs}");
        } else {
            assert_eq!(theirs["hops"][SILENT - 1]["packets"], Value::from(vec![silent(); 3]));
        }
    }
}

#[test]
fn atlas_results_of_paths_that_end_elsewhere_do_not_look_like_success() {
    let Some(chain) = Chain::new() else { return };
    if !has_tool("env", &[MODULES, PYTHON, "-c", "import ripe.atlas.sagan"]) {
        return;
    }
    let last = &chain.names[ROUTERS];
    sh(&format!(
        "ip -n {last} route add blackhole 198.19.8.0/24
         ip netns exec {last} nft 'add table inet t; add chain inet t f {{ type filter hook forward priority 0; }};
           add rule inet t f ip daddr 198.19.7.0/24 reject with icmp admin-prohibited'"
    ));
    let dir = Lab::dir();
    let file = dir.path().join("atlas.json");
    let trace = |dst: &str| {
        let run = chain.run(&format!("trace -o ndjson --output-file atlas={} {dst}", file.display()));
        assert_eq!(run.code, Some(0), "{}", run.err);
        read_by_sagan(&file).remove(0)
    };
    let prohibited = trace("198.19.7.1");
    let packet = &prohibited["hops"][ROUTERS]["packets"][0];
    assert_eq!((&prohibited["success"], &packet["error"]), (&false.into(), &"Administratively prohibited".into()), "{prohibited}");
    // Readers take every hop for measured, and so it is.
    let run = chain.run(&format!("trace -o ndjson --output-file atlas={} 198.19.7.0/27", file.display()));
    assert_eq!((run.code, run.out.contains("\"inherited\":true")), (Some(0), false), "{}", run.err);
    let many = read_by_sagan(&file);
    assert!(many.len() == 32 && many.iter().all(|path| path["hops"][0]["packets"][0]["rtt"].is_f64()), "{many:?}");
    let silent = trace("198.19.8.1");
    assert_eq!((&silent["success"], &silent["arrived"], &silent["bad"]), (&false.into(), &false.into(), &false.into()), "{silent}");
    assert_eq!(silent["hops"].as_array().unwrap().len(), ROUTERS - 1 + 5, "five in vain behind the last answer: {silent}");
}

/// `address status distance` of every host, as libnmap reads them.
const LIBNMAP: &str = "
import sys
from libnmap.parser import NmapParser
for host in NmapParser.parse_fromfile(sys.argv[1]).hosts:
    print(host.address, host.status, host.distance, ' '.join(host.hostnames))
";

#[test]
fn nmap_xml_of_traces_is_valid_and_read() {
    let Some(chain) = Chain::new() else { return };
    let tools = [("xmllint", &["--version"][..]), ("ndiff", &["--help"]), (PYTHON, &["-c", "import libnmap"])];
    if !tools.iter().all(|(name, args)| has_tool(name, args)) {
        return;
    }
    let dir = Lab::dir();
    let file = dir.path().join("paths.xml");
    let path = file.to_str().unwrap();
    for (method, port) in [("icmp", ""), ("udp", " port=\"33434\""), ("tcp", " port=\"80\"")] {
        let dsts = [Chain::destination(true), Chain::destination(false), "198.18.200.1".to_owned()];
        let run = chain.run(&format!("trace -o ndjson --output-file nmap-xml={path} --method {method} {}", dsts.join(" ")));
        assert_eq!(run.code, Some(0), "{}", run.err);
        valid_by_dtd(&file);
        let read = tool(PYTHON, &["-c", LIBNMAP, path]);
        assert_eq!(read.code, Some(0), "{}", read.err);
        let mut hosts: Vec<&str> = read.out.lines().map(str::trim_end).collect();
        hosts.sort_unstable();
        let far = ROUTERS + 1;
        assert_eq!(hosts, [format!("{} up {far}", dsts[0]), format!("{} unknown 0", dsts[2]), format!("{} up {far}", dsts[1])]);
        // Hop by hop what NDJSON says: the first answer of each hop.
        let text = std::fs::read_to_string(&file).unwrap();
        for line in run.out.lines() {
            let ours: Value = serde_json::from_str(line).unwrap();
            let Some(hops) = ours["hops"].as_array() else { continue };
            let host = text.split("<host ").find(|host| host.contains(&format!("<address addr={}", ours["dst"]))).unwrap();
            assert!(host.contains(&format!("<trace{port} proto=\"{method}\">")), "{host}");
            let told: Vec<&str> = host.lines().filter(|line| line.starts_with("<hop ")).collect();
            let expected: Vec<String> = hops
                .iter()
                .filter_map(|hop| {
                    let reply = hop["replies"].get(0)?;
                    Some(format!("<hop ttl=\"{}\" ipaddr={} rtt=\"{:.2}\"/>", hop["ttl"], reply["from"], reply["rtt_ms"].as_f64().unwrap()))
                })
                .collect();
            assert_eq!(told, expected, "{ours}");
        }
    }
    let same = tool("ndiff", &[path, path]);
    assert_eq!(same.code, Some(0), "{}{}", same.out, same.err);
}
