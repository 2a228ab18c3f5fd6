//! One JSON object per line, for programs; every field is described in `docs/standalone.md`.

use std::io::{self, Write};
use std::time::UNIX_EPOCH;

use picket_wire::host::HostSeen;
use picket_wire::result::{Coverage, State};
use picket_wire::service::{Service, ServiceOutcome};
use serde_json::{Map, Value, json};

use super::super::Outcome;
use super::super::results::{Found, News, Row, Summary, Tally, reason_key};
use super::Format;

/// See the module.
pub(super) struct Ndjson;

impl Format for Ndjson {
    fn news(&mut self, news: &News<'_>, out: &mut dyn Write) -> io::Result<()> {
        match news {
            News::Chunk { rows, .. } | News::Late { rows, .. } => rows.iter().try_for_each(|row| writeln!(out, "{}", answer(row))),
            News::Service(found) => writeln!(out, "{}", service(found)),
            News::Unserved(_) => Ok(()),
            News::Hosts(hosts) => hosts.iter().try_for_each(|host| writeln!(out, "{}", seen(host))),
        }
    }

    fn end(&mut self, summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", coverage(summary))
    }
}

fn micros(duration: core::time::Duration) -> Value {
    json!(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

fn target(kind: &str, row: &Row) -> Value {
    let mut object = json!({ "type": kind, "addr": row.addr.to_string() });
    if let (Some(port), Some(transport)) = (row.port, row.transport()) {
        object["port"] = json!(port);
        object["proto"] = json!(transport.as_str());
    }
    object
}

fn answer(row: &Row) -> Value {
    let mut object = target(if row.port.is_some() { "answer" } else { "host" }, row);
    object["state"] = json!(row.state.as_str());
    object["reason"] = json!(row.state.reason(row.technique));
    match row.state {
        State::Filtered { icmp_type, icmp_code } => object["icmp"] = json!({ "type": icmp_type, "code": icmp_code }),
        State::FilteredBy { icmp_type, icmp_code, from } => {
            object["icmp"] = json!({ "type": icmp_type, "code": icmp_code, "from": from.to_string() });
        }
        _ => {}
    }
    object["rtt_us"] = micros(row.rtt);
    if row.ttl > 0 {
        object["ttl"] = json!(row.ttl);
    }
    if let Some(HostSeen { mac: Some(mac), how, .. }) = row.seen {
        object["mac"] = json!(mac.to_string());
        object["how"] = json!(how.as_str());
    }
    object
}

fn seen(host: &HostSeen) -> Value {
    let mut object = json!({ "type": "seen", "addr": host.addr.to_string(), "how": host.how.as_str() });
    if let Some(mac) = host.mac {
        object["mac"] = json!(mac.to_string());
    }
    object
}

fn service(Found { row, outcome }: &Found) -> Value {
    let mut object = target("service", row);
    object["outcome"] = json!(outcome.as_str());
    match outcome {
        ServiceOutcome::Identified(service) => identified(&mut object, service),
        ServiceOutcome::Unidentified { banner } => object["banner"] = json!(banner.escape_ascii().to_string()),
        ServiceOutcome::Lost(why) => object["why"] = json!(why),
        ServiceOutcome::Silent | ServiceOutcome::Spared | ServiceOutcome::Refused => {}
    }
    object
}

fn identified(object: &mut Value, service: &Service) {
    let Service { name, tls, product, version, extra, os, hostname, device, cpes, facts, banner } = service;
    object["name"] = json!(name);
    object["tls"] = json!(tls);
    let texts = [("product", product), ("version", version), ("extra", extra), ("os", os), ("hostname", hostname), ("device", device)];
    for (key, text) in texts {
        if let Some(text) = text {
            object[key] = json!(text);
        }
    }
    if !cpes.is_empty() {
        object["cpe"] = json!(cpes);
    }
    if !facts.is_empty() {
        object["facts"] = facts.iter().map(|(key, value)| (key.clone(), json!(value))).collect::<Map<_, _>>().into();
    }
    if !banner.is_empty() {
        object["banner"] = json!(banner.escape_ascii().to_string());
    }
}

fn numbers(tally: &Tally) -> Value {
    let Coverage { asked, up, open, closed, filtered, unfiltered, silent, refused, not_reached, packets } = tally.coverage;
    let reasons: Map<String, Value> = tally.not_reached.iter().map(|(why, count)| (reason_key(*why).to_owned(), json!(count))).collect();
    json!({
        "asked": asked, "answered": tally.coverage.answered(),
        "up": up, "open": open, "closed": closed, "filtered": filtered, "unfiltered": unfiltered,
        "silent": silent, "refused": refused, "not_reached": not_reached, "not_reached_reasons": reasons,
        "packets": packets, "duplicates": tally.duplicates, "late": tally.late,
    })
}

fn coverage(summary: &Summary) -> Value {
    let mut object = numbers(&summary.total());
    object["type"] = json!("coverage");
    object["complete"] = json!(summary.outcome == Outcome::Complete);
    object["excluded"] = json!(summary.excluded);
    object["seconds"] = json!(summary.took.as_secs_f64());
    let ended = summary.ended.duration_since(UNIX_EPOCH).unwrap_or_default();
    object["ended_unix"] = json!(ended.as_secs());
    let passes = summary.passes.iter().map(|pass| {
        let mut object = numbers(&pass.tally);
        object["what"] = json!(pass.head.what());
        object["technique"] = json!(pass.head.technique.as_str());
        object["discovery"] = json!(pass.head.discovery);
        object
    });
    object["passes"] = passes.collect();
    object["proxies"] = summary.proxies.iter().map(|p| json!({ "mac": p.mac.to_string(), "addresses": p.addresses })).collect();
    if let Some(services) = &summary.services {
        let mut parts: Map<String, Value> = services.parts().iter().map(|(name, n)| ((*name).to_owned(), json!(n))).collect();
        parts.insert("open".to_owned(), json!(services.open));
        object["services"] = parts.into();
    }
    object
}
