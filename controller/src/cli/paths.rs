//! `picket paths`, and the paths that `picket trace` ends with.

use std::collections::BTreeSet;
use std::net::IpAddr;

use picket_wire::addr::IpNet;
use picket_wire::atlas::{Asked, Traceroute};
use picket_wire::ids::{JobId, ProbeId, SiteName};
use picket_wire::trace::{Path, PathEnd, ReplyKind};
use picket_wire::trace_text;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use self::nmap_xml::Document;
use super::client::{Client, Query};
use super::failure::{Exit, Failure};
use super::table::{Align, Columns};
use super::{Context, format};
use crate::view::{AcceptPaths, Page, PathRow, PathsAccepted, Reached, ResolvedName};

mod names;
mod nmap_xml;

/// Rows asked for at once.
const PAGE: usize = 500;
/// Earlier paths that are shown of each, where nobody says how many.
const HISTORY: usize = 10;

/// How paths are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PathOutput {
    /// A line for each hop, for people
    Table,
    /// One JSON object per line
    Ndjson,
    /// As RIPE Atlas tells traceroutes, one JSON object per line
    Atlas,
    /// Nmap's XML (1.05), with a host and its trace for each path
    #[value(alias = "xml")]
    NmapXml,
}

/// In which form.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct PathOutputArgs {
    /// Form of the paths
    #[arg(long, short, value_enum, default_value_t = PathOutput::Table, help_heading = "Output")]
    pub(super) output: PathOutput,
    /// Print one JSON document
    #[arg(long, conflicts_with = "output", help_heading = "Output")]
    pub(super) json: bool,
    /// Say who is behind each address: its name by reverse DNS and the autonomous system that announces it, as far as the controller looks them up
    /// (`[lookup]` in its configuration). They are those of today, and not kept
    #[arg(long, help_heading = "Output")]
    pub(super) names: bool,
}

impl PathOutputArgs {
    /// Whether the form can tell names, where they are asked for.
    pub(super) fn tells_names(&self) -> Result<(), Failure> {
        match (self.names, self.output) {
            (true, PathOutput::Atlas) => Err(Failure::usage("--output atlas has no place for names: leave out --names, or use ndjson")),
            _ => Ok(()),
        }
    }

    /// Adds to a query what the form needs.
    pub(super) fn ask(&self, query: &mut Query) {
        query.extend(self.names.then(|| ("names", "true".to_owned())));
    }

    /// Whether the form can tell all ways.
    pub(super) fn draws_graphs(&self) -> Result<(), Failure> {
        match self.output {
            PathOutput::Atlas | PathOutput::NmapXml => {
                let form = if self.output == PathOutput::Atlas { "atlas" } else { "nmap-xml" };
                Err(Failure::usage(format!("--output {form} tells one way and not all: leave out --multipath, or use ndjson")))
            }
            PathOutput::Table | PathOutput::Ndjson => Ok(()),
        }
    }
}

/// `picket paths` and its flags.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct PathsArgs {
    #[command(subcommand)]
    command: Option<PathsCommand>,
    /// The destination, or a network of destinations; with one address its paths are shown hop by hop, and those before
    #[arg(value_name = "DESTINATION")]
    destination: Option<IpNet>,
    /// Paths of this job [default: the latest of every probe, destination and flow]
    #[arg(long, value_name = "JOB")]
    job: Option<JobId>,
    /// Only from this site
    #[arg(long, value_name = "SITE")]
    site: Option<SiteName>,
    /// Only from this probe
    #[arg(long, value_name = "PROBE")]
    probe: Option<ProbeId>,
    /// Earlier paths of each that are listed behind the latest in the table; 0 for none [default: 10 for one destination, else none]. Other outputs have all
    /// paths of one destination (nmap-xml: the latest), and else the latest
    #[arg(long, value_name = "N", conflicts_with_all = ["job", "json", "output"])]
    history: Option<usize>,
    #[command(flatten)]
    output: PathOutputArgs,
}

/// What else is done with paths.
#[derive(Debug, clap::Subcommand)]
enum PathsCommand {
    /// List the latest paths that differ from what is known of their way: hops at which somebody else answers, and whether the destination is reached
    ///
    /// Known is what was accepted, or the first path that was seen. Alternatives that are known are one way, and silence is no change.
    #[command(after_help = "Examples:\n  picket paths changes\n  picket paths changes 198.18.0.0/16 --site hq --names")]
    Changes(ChangesArgs),
    /// Take the latest paths for what is to be expected from now on
    #[command(after_help = "Examples:\n  picket paths accept 198.18.9.2 --probe attic\n  picket paths accept 198.18.0.0/16 --add")]
    Accept(AcceptArgs),
}

#[derive(Debug, clap::Args)]
struct ChangesArgs {
    /// Only to this destination, or to those in a network
    #[arg(value_name = "DESTINATION")]
    destination: Option<IpNet>,
    /// Only from this site
    #[arg(long, value_name = "SITE")]
    site: Option<SiteName>,
    /// Only from this probe
    #[arg(long, value_name = "PROBE")]
    probe: Option<ProbeId>,
    /// Say who is behind each address, as far as the controller looks it up
    #[arg(long)]
    names: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct AcceptArgs {
    /// The destination, or a network of destinations
    #[arg(value_name = "DESTINATION")]
    destination: IpNet,
    /// Only from this site
    #[arg(long, value_name = "SITE")]
    site: Option<SiteName>,
    /// Only from this probe
    #[arg(long, value_name = "PROBE")]
    probe: Option<ProbeId>,
    /// Keep what is known as well: the latest path is one more alternative
    #[arg(long)]
    add: bool,
    /// Print the answer of the API as JSON
    #[arg(long)]
    json: bool,
}

async fn accept(args: AcceptArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let AcceptArgs { destination, site, probe, add, json } = args;
    let request = AcceptPaths { addr: destination.to_string(), site, probe, add };
    let accepted: PathsAccepted = context.client()?.post(&["paths", "accept"], &request).await?;
    match json {
        true => context.json(&accepted)?,
        false => context.line(format!("{} accepted", format::plural(usize::try_from(accepted.accepted).unwrap_or(usize::MAX), "way")))?,
    }
    Ok(Exit::Complete)
}

async fn changes(args: ChangesArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    let mut query: Query = vec![("changes", "true".to_owned())];
    let mut add = |name, value: Option<String>| query.extend(value.map(|value| (name, value)));
    add("addr", args.destination.map(|net| net.to_string()));
    add("site", args.site.map(|site| site.to_string()));
    add("probe", args.probe.map(|probe| probe.to_string()));
    add("names", args.names.then(|| "true".to_owned()));
    if args.json {
        return json(&client, query, context).await.map(|()| Exit::Complete);
    }
    let (mut lines, mut lacking) = (Vec::new(), Lacking::default());
    each(&client, query, |row| {
        lines.extend(change_lines(&row));
        lacking.add(&row);
        Ok(())
    })
    .await?;
    if lines.is_empty() {
        lines.push("no way has changed".to_owned());
    }
    lines.into_iter().try_for_each(|line| context.line(line))?;
    lacking.tell(context);
    Ok(Exit::Complete)
}

/// What of a path is new, in words.
fn change_lines(row: &PathRow) -> Vec<String> {
    let Some(change) = &row.change else { return Vec::new() };
    let by = change.accepted_by.as_ref().map_or_else(|| "first seen".to_owned(), |actor| format!("accepted by {actor}"));
    let mut lines = vec![format!(
        "{} by {} from {} ({}), seen {}, against what was {by} {}",
        row.dst,
        row.flow,
        row.probe,
        row.site,
        format::moment(&row.ended),
        format::moment(&change.since)
    )];
    let list = |addrs: &BTreeSet<IpAddr>| addrs.iter().map(|addr| names::inline(row, *addr)).collect::<Vec<_>>().join(" or ");
    lines.extend(change.hops.iter().map(|hop| format!("{:>3} {}, known {}", hop.ttl, list(&hop.new), list(&hop.known))));
    lines.extend(change.distance.map(|ttl| format!("    the destination answers at hop {ttl}")));
    lines.extend(change.reached.map(|reached| match reached {
        Reached::Lost => format!("    no longer reached: reached -> {}", row.end.as_str()),
        Reached::Gained => "    reached now, and not before".to_owned(),
    }));
    if change.hops.is_empty() && change.distance.is_none() && (row.ways.is_some() || !row.hops.is_empty()) {
        lines.push("    the way is the same as far as it goes".to_owned());
    }
    lines.iter().map(|line| format::clean(line)).collect()
}

pub(super) async fn run(args: PathsArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    match args.command {
        Some(PathsCommand::Changes(args)) => return changes(args, context).await,
        Some(PathsCommand::Accept(args)) => return accept(args, context).await,
        None => {}
    }
    args.output.tells_names()?;
    let client = context.client()?;
    let single = args.destination.is_some_and(|net| net.prefix() == if net.addr().is_ipv4() { 32 } else { 128 });
    let latest = args.job.is_some() || !single || args.output.output == PathOutput::NmapXml;
    let history = args.history.unwrap_or(if latest { 0 } else { HISTORY });
    let mut query: Query = Vec::new();
    let mut add = |name, value: Option<String>| query.extend(value.map(|value| (name, value)));
    add("addr", args.destination.map(|net| net.to_string()));
    add("job", args.job.map(|id| id.to_string()));
    add("site", args.site.map(|site| site.to_string()));
    add("probe", args.probe.map(|probe| probe.to_string()));
    add("latest", (args.job.is_none() && history == 0).then(|| "true".to_owned()));
    args.output.ask(&mut query);
    if args.output.json {
        json(&client, query, context).await?;
    } else if args.output.output != PathOutput::Table || args.job.is_some() {
        print(&client, query, args.output.output, &[], context).await?;
    } else if single {
        detailed(&client, query, history, context).await?;
    } else {
        summary(&client, query, history, context).await?;
    }
    Ok(Exit::Complete)
}

/// Calls `take` for each path that a query selects.
async fn each(client: &Client, query: Query, mut take: impl FnMut(PathRow) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut cursor: Option<String> = None;
    loop {
        let more = [("limit", PAGE.to_string())].into_iter().chain(cursor.map(|cursor| ("cursor", cursor)));
        let asked: Query = query.iter().cloned().chain(more).collect();
        let page: Page<PathRow> = client.get(&["paths"], &asked).await?;
        page.items.into_iter().try_for_each(&mut take)?;
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}

/// Prints paths as one JSON list, without holding them all.
pub(super) async fn json(client: &Client, query: Query, context: &mut Context<'_>) -> Result<(), Failure> {
    let out = &mut *context.out;
    let mut before = "[\n";
    each(client, query, |row| {
        out.write_all(core::mem::replace(&mut before, ",\n").as_bytes()).map_err(Failure::output)?;
        serde_json::to_writer(&mut *out, &row).map_err(|error| Failure::output(error.into()))
    })
    .await?;
    let end = if before == "[\n" { "[]\n" } else { "\n]\n" };
    out.write_all(end.as_bytes()).map_err(Failure::output)
}

/// Prints all paths that a query selects, one after the other. `given` are the names that destinations were given by.
pub(super) async fn print(
    client: &Client,
    query: Query,
    output: PathOutput,
    given: &[ResolvedName],
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let (mut graphs, mut lacking) = (0, Lacking::default());
    let name = |dst: IpAddr| given.iter().find(|name| name.addresses.contains(&dst)).map(|name| name.name.as_str());
    let out = &mut *context.out;
    let mut document = None;
    if output == PathOutput::NmapXml {
        let (begun, text) = Document::begin(&query);
        write!(out, "{text}").map_err(Failure::output)?;
        document = Some(begun);
    }
    each(client, query, |row| {
        lacking.add(&row);
        let text = match output {
            PathOutput::Table => hops(&row, name(row.dst)).join("\n"),
            PathOutput::Ndjson => serde_json::json!(row).to_string(),
            PathOutput::Atlas | PathOutput::NmapXml if row.ways.is_some() => {
                graphs += 1;
                return Ok(());
            }
            PathOutput::Atlas => serde_json::json!(atlas(&row, name(row.dst))).to_string(),
            PathOutput::NmapXml => {
                document.as_mut().map(|document| document.host(&row, name(row.dst))).unwrap_or_default().trim_end().to_owned()
            }
        };
        writeln!(out, "{text}").map_err(Failure::output)
    })
    .await?;
    if let Some(document) = &document {
        write!(out, "{}", document.end()).map_err(Failure::output)?;
    }
    lacking.tell(context);
    if graphs > 0 {
        let whose = if output == PathOutput::Atlas { "RIPE Atlas's" } else { "Nmap's" };
        context.note(format!("{} left out: {whose} form tells one way, not all", format::plural(graphs, "destination")));
    }
    if let Some(again) = document.map(|document| document.again()).filter(|again| *again > 0) {
        let hosts = format::plural(again, "more path");
        context.note(format!("{hosts} to a host that is there already, which tools of Nmap take for one: choose with --probe or --job"));
    }
    Ok(())
}

/// What could not be found out about names, each once.
#[derive(Default)]
struct Lacking(BTreeSet<String>);

impl Lacking {
    fn add(&mut self, row: &PathRow) {
        let lacking = row.names.iter().flat_map(|names| &names.lacking).filter(|what| !self.0.contains(*what)).cloned();
        let lacking: Vec<String> = lacking.collect();
        self.0.extend(lacking);
    }

    fn tell(&self, context: &mut Context<'_>) {
        self.0.iter().for_each(|what| context.note(format::clean(what)));
    }
}

/// The destination, how it was asked and from where, and a line for each hop.
fn hops(row: &PathRow, name: Option<&str>) -> Vec<String> {
    let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
    let sure = row.ways.as_ref().map(|graph| format!(", {} % sure of each node's successors", graph.confidence)).unwrap_or_default();
    let heading = format!("{}{name} by {} from {} ({}){sure}", row.dst, row.flow, row.probe, row.site);
    let lines = match &row.ways {
        Some(graph) => trace_text::graph_by(graph, row.asked.tos, &names::columns(row)),
        None => trace_text::path_by(&path(row), row.asked.tos, &names::columns(row)),
    };
    // Names of interfaces are the routers' words.
    std::iter::once(heading).chain(lines).map(|line| format::clean(&line)).collect()
}

fn path(row: &PathRow) -> Path {
    Path { dst: row.dst, end: row.end, hops: row.hops.clone(), sent: row.sent, mtu: row.mtu.clone() }
}

/// Seconds since 1970 of RFC 3339 text.
fn seconds(text: &str) -> u64 {
    OffsetDateTime::parse(text, &Rfc3339).ok().and_then(|at| u64::try_from(at.unix_timestamp()).ok()).unwrap_or(0)
}

fn atlas(row: &PathRow, name: Option<&str>) -> Traceroute {
    let asked = Asked {
        method: row.asked.method,
        name,
        source: row.source,
        began: seconds(&row.began),
        ended: seconds(&row.ended),
        size: row.asked.payload.into(),
        flow: row.asked.flow,
        first_ttl: row.asked.first_ttl,
        max_ttl: row.asked.max_ttl,
        gap: row.asked.gap,
        attempts: row.asked.attempts,
    };
    Traceroute::new(&path(row), &asked)
}

/// How far it is, and how long the destination's own answer took.
fn distance(row: &PathRow) -> (String, String) {
    let own = |kind: ReplyKind| kind != ReplyKind::TimeExceeded;
    let (last, rtt) = match &row.ways {
        Some(graph) => {
            let nodes = graph.hops.last().map(|hop| hop.nodes.as_slice()).unwrap_or_default();
            (graph.hops.last().map(|hop| hop.ttl), nodes.iter().find(|node| own(node.reply.kind)).map(|node| node.least_rtt_us))
        }
        None => {
            let replies = row.hops.last().map(|hop| hop.replies.as_slice()).unwrap_or_default();
            (row.hops.last().map(|hop| hop.ttl), replies.iter().find(|reply| own(reply.kind)).map(|reply| reply.rtt_us))
        }
    };
    let rtt = rtt.filter(|_| row.end == PathEnd::Reached).map(|us| format::rtt(us.into())).unwrap_or_default();
    (last.map(|ttl| ttl.to_string()).unwrap_or_default(), rtt)
}

/// Whose paths can be compared.
fn key(row: &PathRow) -> (IpAddr, &ProbeId, &str) {
    (row.dst, &row.probe, row.flow.as_str())
}

/// The rows of a query; of each destination, probe and flow the newest and so many before it.
async fn newest(client: &Client, query: Query, history: usize) -> Result<Vec<Vec<PathRow>>, Failure> {
    let mut groups: Vec<Vec<PathRow>> = Vec::new();
    each(client, query, |row| {
        match groups.last_mut().filter(|group| group.first().is_some_and(|first| key(first) == key(&row))) {
            Some(group) if group.len() > history => {}
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
        Ok(())
    })
    .await?;
    Ok(groups)
}

/// The latest path of each hop by hop, and those before in a line each.
async fn detailed(client: &Client, query: Query, history: usize, context: &mut Context<'_>) -> Result<(), Failure> {
    let groups = newest(client, query, history).await?;
    if groups.is_empty() {
        return context.line("no path is known");
    }
    let mut lacking = Lacking::default();
    groups.iter().flatten().for_each(|row| lacking.add(row));
    for (index, group) in groups.iter().enumerate() {
        if index > 0 {
            context.line("")?;
        }
        let Some((latest, before)) = group.split_first() else { continue };
        for line in hops(latest, None) {
            context.line(line)?;
        }
        context.line(format!("    seen {}, job {}", format::moment(&latest.ended), latest.job))?;
        if !before.is_empty() {
            context.line("before that:")?;
            context.line(columns(before.iter()))?;
        }
    }
    lacking.tell(context);
    Ok(())
}

/// A line for each.
async fn summary(client: &Client, query: Query, history: usize, context: &mut Context<'_>) -> Result<(), Failure> {
    let groups = newest(client, query, history).await?;
    if groups.is_empty() {
        return context.line("no path is known");
    }
    context.line(columns(groups.iter().flatten()))?;
    let mut lacking = Lacking::default();
    groups.iter().flatten().for_each(|row| lacking.add(row));
    lacking.tell(context);
    Ok(())
}

fn columns<'a>(rows: impl Iterator<Item = &'a PathRow> + Clone) -> Columns {
    use Align::{Left, Right};
    let heading = [("DESTINATION", Left), ("FLOW", Left), ("END", Left), ("HOPS", Right), ("RTT", Right)];
    let named: &[&str] = if rows.clone().any(|row| row.names.is_some()) { &["NAME", "ORIGIN"] } else { &[] };
    let more = [&["PROBE", "SITE", "SEEN", "JOB"], named].concat();
    let width = heading.len() + more.len();
    let mut columns = Columns::new(&[&heading[..], &more.into_iter().map(|name| (name, Left)).collect::<Vec<_>>()].concat());
    for row in rows {
        let (hops, rtt) = distance(row);
        let (name, origin) = row.names.as_ref().map(|names| names::parts(names, row.dst)).unwrap_or_default();
        let cells = [
            row.dst.to_string(),
            row.flow.clone(),
            row.end.as_str().to_owned(),
            hops,
            rtt,
            row.probe.to_string(),
            row.site.to_string(),
            format::moment(&row.ended),
            row.job.to_string(),
            name,
            origin,
        ];
        columns.row(cells.into_iter().take(width));
    }
    columns
}

#[cfg(test)]
mod tests {
    use picket_wire::trace::{Graph, GraphHop, Hop, InterfaceInfo, InterfaceRole, Link, Method, Node, Quoted, Reply};

    use super::*;
    use crate::view::{AddrNames, HopChange, OriginView, PathAsked, PathChange, PathNames};

    fn reply(from: [u8; 4], rtt_us: u32, kind: ReplyKind) -> Reply {
        let quoted = (kind == ReplyKind::TimeExceeded).then_some(Quoted { ttl: 1, tos: 0 });
        Reply { from: from.into(), rtt_us, ttl: 62, kind, quoted, mpls: vec![], interfaces: vec![], mtu: None }
    }

    fn row() -> PathRow {
        let name = "ge\u{1b}[31m".to_owned();
        let info = InterfaceInfo { role: InterfaceRole::Incoming, index: None, addr: None, name: Some(name), mtu: None };
        let router = Reply { interfaces: vec![info], ..reply([198, 18, 1, 2], 410, ReplyKind::TimeExceeded) };
        PathRow {
            site: "hq".parse().unwrap(),
            probe: "attic".parse().unwrap(),
            job: JobId(0x65f0_c1d2_00a4_b7e1),
            dst: [198, 18, 9, 2].into(),
            flow: "icmp".into(),
            asked: PathAsked {
                method: Method::Icmp,
                port: None,
                flow: 0,
                tos: 0,
                payload: 12,
                first_ttl: 1,
                max_ttl: 30,
                gap: 5,
                attempts: 2,
            },
            source: Some([198, 18, 1, 1].into()),
            began: "2026-11-21T10:00:00.123Z".into(),
            ended: "2026-11-21T10:00:01Z".into(),
            end: PathEnd::Reached,
            sent: 5,
            hops: vec![
                Hop { ttl: 1, sent: 1, replies: vec![router], inherited: false },
                Hop { ttl: 2, sent: 2, replies: vec![], inherited: false },
                Hop { ttl: 3, sent: 1, replies: vec![reply([198, 18, 9, 2], 1_300, ReplyKind::Answer)], inherited: false },
            ],
            ways: None,
            mtu: None,
            change: None,
            names: None,
        }
    }

    fn graph() -> PathRow {
        let node = |from, kind| Node { flows: 6, least_rtt_us: 700, reply: reply(from, 800, kind) };
        let hop = |ttl, nodes| GraphHop { ttl, sure: true, by_packet: false, silent: 0, nodes };
        let exceeded = ReplyKind::TimeExceeded;
        let hops = vec![
            hop(1, vec![node([198, 18, 1, 2], exceeded), node([198, 18, 100, 2], exceeded)]),
            hop(2, vec![node([198, 18, 9, 2], ReplyKind::Answer)]),
        ];
        let links = vec![Link { ttl: 1, from: 0, to: 0 }, Link { ttl: 1, from: 1, to: 0 }];
        let graph = Graph { dst: row().dst, end: PathEnd::Reached, confidence: 95, hops, links, sent: 30 };
        PathRow { hops: vec![], ways: Some(graph), sent: 30, flow: "udp/33434 all ways".into(), ..row() }
    }

    #[test]
    fn paths_as_people_see_them() {
        let silent = PathRow { end: PathEnd::Silent, hops: vec![], ..row() };
        let all = [row(), graph(), silent];
        let text = [hops(&all[0], Some("www.example.org")), hops(&all[1], None), vec![columns(all.iter()).to_string()]].concat();
        assert!(!text.iter().any(|line| line.contains('\u{1b}')));
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn changes_as_people_see_them() {
        let addrs = |last: &[u8]| last.iter().map(|last| IpAddr::from([198, 18, 1, *last])).collect::<BTreeSet<_>>();
        let since = || "2026-11-20T09:00:00Z".to_owned();
        let hops = vec![HopChange { ttl: 1, known: addrs(&[2, 3]), new: addrs(&[7]) }];
        let another = PathChange { since: since(), accepted_by: Some("admin".into()), hops, distance: Some(3), reached: None };
        let lost = PathChange { since: since(), accepted_by: None, hops: vec![], distance: None, reached: Some(Reached::Lost) };
        let unsent = PathRow { end: PathEnd::NoRoute, hops: vec![], sent: 0, change: Some(lost.clone()), ..row() };
        let silent = PathRow { end: PathEnd::Silent, change: Some(lost), ..row() };
        let lines = [PathRow { change: Some(another), ..row() }, silent, unsent].map(|row| change_lines(&row)).concat();
        insta::assert_snapshot!(lines.join("\n"));
        assert!(change_lines(&row()).is_empty());
    }

    fn named(mut row: PathRow) -> PathRow {
        let origin = |asn, description: &str| Some(OriginView { asn, country: Some("DE".into()), description: description.to_owned() });
        let known = [
            ([198, 18, 1, 2], "edge1.example.net", origin(64_500, "EXAMPLE-ONE One")),
            ([198, 18, 1, 7], "", origin(64_501, "EX\u{1b}[31m")),
            ([198, 18, 9, 2], "www.example.org", None),
        ];
        let addrs = known.into_iter().map(|(addr, name, origin)| {
            let names = Some(name.to_owned()).filter(|name| !name.is_empty()).into_iter().collect();
            (addr.into(), AddrNames { names, origin })
        });
        row.names = Some(PathNames { addrs: addrs.collect(), lacking: vec!["nothing".into()] });
        row
    }

    #[test]
    fn names_stand_in_columns_beside_addresses() {
        let all = [named(row()), named(graph()), PathRow { dst: [198, 18, 9, 3].into(), ..named(row()) }];
        let hop =
            HopChange { ttl: 1, known: [[198, 18, 1, 2].into()].into(), new: [[198, 18, 1, 7].into(), [198, 18, 1, 9].into()].into() };
        let change = PathChange { since: "2026-11-20T09:00:00Z".into(), accepted_by: None, hops: vec![hop], distance: None, reached: None };
        let changed = PathRow { change: Some(change), ..named(row()) };
        let text = [hops(&all[0], None), hops(&all[1], None), vec![columns(all.iter()).to_string()], change_lines(&changed)].concat();
        assert!(!text.iter().any(|line| line.contains('\u{1b}')));
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn paths_as_ripe_atlas_has_them() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&atlas(&row(), None)).unwrap());
    }

    #[test]
    fn paths_as_tools_of_nmap_have_them() {
        let query = vec![("addr", "198.18.9.0/24".to_owned()), ("probe", "attic".to_owned()), ("latest", "true".to_owned())];
        let (mut document, begin) = Document::begin(&query);
        assert!(begin.contains(" args=\"picket paths 198.18.9.0/24 --probe attic\" "), "{begin}");
        let hosts = document.host(&row(), None) + &document.host(&named(row()), Some("a<b"));
        let end = document.end();
        assert!(end.contains("<hosts up=\"2\" down=\"0\" total=\"2\"/>") && document.again() == 1, "{end}");
        insta::assert_snapshot!(hosts);
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for row in [row(), graph(), named(row())] {
            let text = serde_json::to_string(&row).unwrap();
            assert_eq!(serde_json::from_str::<PathRow>(&text).unwrap(), row);
        }
    }
}
