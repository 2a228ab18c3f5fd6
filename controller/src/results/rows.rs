//! Rows for people: from a query's words to the database's, and back to addresses, ports and reasons.

use std::collections::BTreeSet;
use std::net::IpAddr;

use picket_wire::addr::{AddrSet, IpNet};
use picket_wire::ids::{ProbeId, SiteName};
use picket_wire::job::{Technique, Transport};
use picket_wire::path;
use picket_wire::service::ServiceOutcome;
use picket_wire::space::{Target, TargetSpace};
use picket_wire::trace::Method;
use picket_wire::units::{PortSet, UnixMillis};

use super::ways::{Difference, Way};
use crate::clock::rfc3339;
use crate::lookup::{self, Origin};
use crate::service::{HostQuery, PathsQuery, ResultQuery, ServiceError};
use crate::store::{
    Found, FoundHost, FoundPath, FoundPort, FoundService, KnownWay, LinkHostQuery, ObservationQuery, PathAfter, PathBaseline, PathQuery,
    PortQuery,
};
use crate::view::{AddrNames, HostRow, OriginView, PathAsked, PathChange, PathNames, PathRow, ResultRow, ServiceView};

const LIMIT_DEFAULT: u32 = 1_000;
const LIMIT_MAX: u32 = 10_000;

fn invalid(field: &'static str, reason: String) -> ServiceError {
    ServiceError::InvalidInput { field, reason }
}

/// Paths on a page at most, whatever was asked for: one has some hundred bytes, or tens of thousands.
const PATHS_MAX: u32 = 100;

/// How many rows a page has.
pub fn page_size(limit: u32) -> Result<u32, ServiceError> {
    match limit {
        0 => Ok(LIMIT_DEFAULT),
        1..=LIMIT_MAX => Ok(limit),
        _ => Err(invalid("limit", format!("`{limit}` rows are more than a page holds: use 1 to {LIMIT_MAX}"))),
    }
}

fn state(text: Option<&str>) -> Result<Option<u8>, ServiceError> {
    let number = |text: &str| match text {
        "up" => Ok(1),
        "open" => Ok(2),
        "closed" => Ok(3),
        "filtered" => Ok(4),
        "unfiltered" => Ok(5),
        _ => Err(invalid("state", format!("`{text}` is not a state: use up, open, closed, filtered or unfiltered"))),
    };
    text.map(number).transpose()
}

fn bad_cursor(cursor: &str) -> ServiceError {
    invalid("cursor", format!("`{cursor}` is not a cursor: pass on the one of the page before"))
}

/// The first and last address of a network.
fn bounds(net: IpNet) -> (IpAddr, IpAddr) {
    let set = AddrSet::from_nets([&net]);
    set.ranges().next().unwrap_or((net.addr(), net.addr()))
}

/// Ranks of a job's space that lie in a network, inclusive.
fn ranks(space: &TargetSpace, include: &AddrSet, ports: Option<&PortSet>, net: IpNet) -> Vec<(u64, u64)> {
    let edge = |port: Option<u16>, addr| space.index(Target { addr, port });
    let first_port = ports.and_then(|ports| ports.nth(0));
    let last_port = ports.and_then(|ports| ports.nth(ports.len().saturating_sub(1)));
    let inside = include.intersection(&AddrSet::from_nets([&net]));
    inside.ranges().filter_map(|(first, last)| Some((edge(first_port, first)?, edge(last_port, last)?))).collect()
}

/// The database's form of a query within a job. `include` are the job's addresses without its exclusions.
pub fn observation_query(
    query: &ResultQuery,
    space: &TargetSpace,
    include: &AddrSet,
    ports: Option<&PortSet>,
    job: picket_wire::ids::JobId,
) -> Result<ObservationQuery, ServiceError> {
    let parse = |cursor: &str| {
        let (rank, probe) = cursor.split_once('.')?;
        Some((rank.parse().ok()?, probe.parse().ok()?))
    };
    let after = query.cursor.as_deref().map(|cursor| parse(cursor).ok_or_else(|| bad_cursor(cursor))).transpose()?;
    let columns = query.ports.as_ref().map(|wanted| match ports {
        None => (1, Vec::new()),
        Some(all) => {
            // Of each wanted range, the ranks of its first and last port that the job has.
            let rank_of = |(first, last): &(u16, u16)| {
                let inside: Vec<(u16, u16)> =
                    all.ranges().iter().map(|(a, b)| ((*a).max(*first), (*b).min(*last))).filter(|(a, b)| a <= b).collect();
                let (low, high) = (inside.first()?.0, inside.last()?.1);
                Some((u64::from(all.rank(low)?), u64::from(all.rank(high)?)))
            };
            (u64::from(all.len()), wanted.ranges().iter().filter_map(rank_of).collect())
        }
    });
    Ok(ObservationQuery {
        job,
        ranks: query.net.map(|net| ranks(space, include, ports, net)),
        columns,
        site: query.site.clone(),
        probe: query.probe.clone(),
        state: state(query.state.as_deref())?,
        after,
        limit: page_size(query.limit)?,
    })
}

/// The database's form of a query over all jobs.
pub fn port_query(query: &ResultQuery) -> Result<PortQuery, ServiceError> {
    let parse = |cursor: &str| -> Option<(SiteName, IpAddr, Option<u16>, Option<Transport>)> {
        let mut parts = cursor.split('_');
        let (site, addr, port, transport) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let port = if port.is_empty() { None } else { Some(port.parse().ok()?) };
        let transport = Transport::ALL.into_iter().find(|known| known.as_str() == transport);
        Some((site.parse().ok()?, addr.parse().ok()?, port, transport))
    };
    let after = query.cursor.as_deref().map(|cursor| parse(cursor).ok_or_else(|| bad_cursor(cursor))).transpose()?;
    Ok(PortQuery {
        site: query.site.clone(),
        probe: query.probe.clone(),
        addrs: query.net.map(bounds),
        ports: query.ports.as_ref().map(|ports| ports.ranges().to_vec()),
        state: state(query.state.as_deref())?,
        after,
        limit: page_size(query.limit)?,
    })
}

/// A row of a job's page, and the cursor behind it.
pub fn job_row(found: &Found, space: &TargetSpace, technique: Technique) -> Option<(ResultRow, String)> {
    let answer = &found.answer;
    let target = space.natural(answer.rank)?;
    let row = ResultRow {
        site: found.site.clone(),
        probe: found.probe.clone(),
        job: answer.job,
        addr: target.addr,
        port: target.port,
        protocol: technique.transport().filter(|_| target.port.is_some()),
        state: answer.state.as_str().to_owned(),
        reason: answer.state.reason(technique),
        rtt_us: answer.rtt_us,
        ttl: (answer.ttl != 0).then_some(answer.ttl),
        seen: rfc3339(answer.seen),
        service: found.service.as_ref().map(service),
    };
    Some((row, format!("{}.{}", answer.rank, answer.probe)))
}

/// A row of a page over all jobs, and the cursor behind it.
pub fn port_row(found: &FoundPort) -> (ResultRow, String) {
    let (port, answer) = (&found.row, &found.row.answer);
    let row = ResultRow {
        site: port.site.clone(),
        probe: found.probe.clone(),
        job: answer.job,
        addr: port.addr,
        port: port.port,
        protocol: port.transport,
        state: answer.state.as_str().to_owned(),
        reason: answer.state.reason(found.technique),
        rtt_us: answer.rtt_us,
        ttl: (answer.ttl != 0).then_some(answer.ttl),
        seen: rfc3339(answer.seen),
        service: found.service.as_ref().map(service),
    };
    let number = port.port.map_or_else(String::new, |port| port.to_string());
    let cursor = format!("{}_{}_{number}_{}", port.site, port.addr, port.transport.map_or("", Transport::as_str));
    (row, cursor)
}

/// A service as people see it.
fn service((outcome, asked): &FoundService) -> ServiceView {
    let banner = |bytes: &[u8]| (!bytes.is_empty()).then(|| bytes.escape_ascii().to_string());
    let view = ServiceView { outcome: outcome.as_str().to_owned(), asked: rfc3339(*asked), ..ServiceView::default() };
    match outcome {
        ServiceOutcome::Identified(service) => ServiceView {
            name: Some(service.name.clone()),
            tls: service.tls,
            product: service.product.clone(),
            version: service.version.clone(),
            extra: service.extra.clone(),
            os: service.os.clone(),
            hostname: service.hostname.clone(),
            device: service.device.clone(),
            cpes: service.cpes.clone(),
            facts: service.facts.clone(),
            banner: banner(&service.banner),
            ..view
        },
        ServiceOutcome::Unidentified { banner: bytes } => ServiceView { banner: banner(bytes), ..view },
        ServiceOutcome::Lost(why) => ServiceView { why: Some(why.clone()), ..view },
        ServiceOutcome::Silent | ServiceOutcome::Spared | ServiceOutcome::Refused => view,
    }
}

/// The database's form of a query for hosts on links.
pub fn link_host_query(query: &HostQuery) -> Result<LinkHostQuery, ServiceError> {
    let parse = |cursor: &str| -> Option<(SiteName, IpAddr, ProbeId)> {
        let mut parts = cursor.split('_');
        let (site, addr, probe) = (parts.next()?, parts.next()?, parts.next()?);
        Some((site.parse().ok()?, addr.parse().ok()?, probe.parse().ok()?))
    };
    let after = query.cursor.as_deref().map(|cursor| parse(cursor).ok_or_else(|| bad_cursor(cursor))).transpose()?;
    Ok(LinkHostQuery {
        job: query.job,
        site: query.site.clone(),
        probe: query.probe.clone(),
        addrs: query.net.map(bounds),
        after,
        limit: page_size(query.limit)?,
    })
}

/// A row of hosts on links, and the cursor behind it.
pub fn host_row(found: &FoundHost) -> (HostRow, String) {
    let FoundHost { row, first_seen, probe } = found;
    let cursor = format!("{}_{}_{probe}", row.site, row.host.addr);
    let row = HostRow {
        site: row.site.clone(),
        probe: probe.clone(),
        job: row.job,
        addr: row.host.addr,
        mac: row.host.mac.map(|mac| mac.to_string()),
        how: row.host.how,
        first_seen: rfc3339(*first_seen),
        last_seen: rfc3339(row.seen),
    };
    (row, cursor)
}

/// The database's form of a query for paths.
pub fn path_query(query: &PathsQuery) -> Result<PathQuery, ServiceError> {
    let rank = |cursor: &str| {
        let (rank, probe) = cursor.split_once('.')?;
        Some(PathAfter::Rank(rank.parse().ok()?, probe.parse().ok()?))
    };
    let path = |cursor: &str| {
        let mut parts = cursor.splitn(5, '_');
        let mut part = || parts.next();
        Some(PathAfter::Path {
            dst: part()?.parse().ok()?,
            probe: part()?.parse().ok()?,
            seen: UnixMillis(part()?.parse().ok()?),
            job: part()?.parse().ok()?,
            flow: part()?.to_owned(),
        })
    };
    let parse = |cursor: &str| if query.job.is_some() { rank(cursor) } else { path(cursor) };
    let after = query.cursor.as_deref().map(|cursor| parse(cursor).ok_or_else(|| bad_cursor(cursor))).transpose()?;
    Ok(PathQuery {
        job: query.job,
        site: query.site.clone(),
        probe: query.probe.clone(),
        addrs: query.net.map(bounds),
        latest: query.latest || query.changes,
        known: query.changes,
        after,
        limit: page_size(query.limit)?.min(PATHS_MAX),
    })
}

/// The cursor behind a path.
pub fn path_cursor(query: &PathsQuery, FoundPath { row, .. }: &FoundPath) -> String {
    match query.job {
        Some(_) => format!("{}.{}", row.rank, row.probe),
        None => format!("{}_{}_{}_{}_{}", row.dst, row.probe, row.seen.0, row.job, row.trace.flow()),
    }
}

/// What stands behind a path in the order over all jobs.
pub fn path_after(FoundPath { row, .. }: &FoundPath) -> PathAfter {
    PathAfter::Path { dst: row.dst, probe: row.probe, flow: row.trace.flow(), seen: row.seen, job: row.job }
}

/// A path taken for what is to be expected, in place of what is known of its way, or with `add` beside it.
pub fn baseline(FoundPath { row, known, .. }: &FoundPath, add: bool, now: UnixMillis, actor: &str) -> PathBaseline {
    let mut way = Way::of(&row.trace.found(row.dst));
    if let Some(known) = known.as_ref().filter(|_| add) {
        way.add(&known.way);
    }
    PathBaseline {
        site: row.site.clone(),
        dst: row.dst,
        probe: row.probe,
        flow: row.trace.flow(),
        way,
        accepted: now,
        actor: actor.to_owned(),
    }
}

/// What of a path is new against what is known; nothing where that is nothing.
fn change(known: &KnownWay, found: &path::Found) -> Option<PathChange> {
    let difference = known.way.compare(&Way::of(found));
    if difference.is_none() {
        return None;
    }
    let Difference { hops, distance, reached } = difference;
    Some(PathChange { since: rfc3339(known.since), accepted_by: known.actor.clone(), hops, distance, reached })
}

/// A path as people see it.
pub fn path_row(FoundPath { row, probe, known }: &FoundPath) -> PathRow {
    let options = &row.trace.options;
    let found = row.trace.found(row.dst);
    let (end, sent) = (found.end(), found.sent());
    let change = known.as_ref().and_then(|known| change(known, &found));
    let (hops, ways, mtu) = match found {
        path::Found::Path(path) => (path.hops, None, path.mtu),
        path::Found::Ways(graph) => (Vec::new(), Some(*graph), None),
    };
    PathRow {
        site: row.site.clone(),
        probe: probe.clone(),
        job: row.job,
        dst: row.dst,
        flow: row.trace.flow(),
        asked: PathAsked {
            method: options.method,
            port: (options.port != 0).then_some(options.port),
            flow: options.flow,
            tos: options.tos,
            payload: if options.method == Method::Tcp { 0 } else { options.payload },
            first_ttl: options.first_ttl,
            max_ttl: options.max_ttl,
            gap: options.gap,
            attempts: options.attempts(),
        },
        source: row.trace.source,
        began: rfc3339(row.began),
        ended: rfc3339(row.seen),
        end,
        sent,
        hops,
        ways,
        mtu,
        change,
        names: None,
    }
}

/// The addresses on a path, the destination's among them, and those that were known of a way that has changed.
pub fn path_addrs(row: &PathRow) -> BTreeSet<IpAddr> {
    let hops = row.hops.iter().flat_map(|hop| &hop.replies).map(|reply| reply.from);
    let nodes = row.ways.iter().flat_map(|graph| &graph.hops).flat_map(|hop| &hop.nodes).map(|node| node.reply.from);
    let changed = row.change.iter().flat_map(|change| &change.hops).flat_map(|hop| hop.known.union(&hop.new)).copied();
    core::iter::once(row.dst).chain(hops).chain(nodes).chain(changed).collect()
}

/// Adds to a path who is behind its addresses.
pub fn name_path(row: &mut PathRow, found: &lookup::Found) {
    let addrs = path_addrs(row).into_iter().filter_map(|addr| Some((addr, addr_names(found.known.get(&addr)?))));
    row.names = Some(PathNames { addrs: addrs.collect(), lacking: found.lacking.clone() });
}

fn addr_names(known: &lookup::Known) -> AddrNames {
    let origin = known.origin.as_ref();
    let origin = origin.map(|Origin { asn, country, description }| OriginView {
        asn: *asn,
        country: country.clone(),
        description: description.clone(),
    });
    AddrNames { names: known.names.clone(), origin }
}
