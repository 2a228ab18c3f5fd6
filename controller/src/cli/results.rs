//! `picket results`, and the result tables that `picket scan` ends with.

use std::net::IpAddr;

use picket_wire::ids::JobId;
use picket_wire::units::PortSet;

use super::client::{Client, Query};
use super::failure::{Exit, Failure};
use super::place::Place;
use super::table::{Align, Columns};
use super::{Context, format};
use crate::view::{Page, ResultRow, ServiceView};

/// Rows of a table for people, where they do not say otherwise.
const TABLE_ROWS: usize = 100;
/// Rows asked for at once.
const PAGE: usize = 1000;

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// Columns for people
    Table,
    /// One JSON object per line
    Ndjson,
    /// Comma-separated values (RFC 4180) with a heading
    Csv,
}

/// A state that a row can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum RowState {
    /// The host answers
    Up,
    /// The port accepts connections
    Open,
    /// The port is refused
    Closed,
    /// A router or the host said that it lets nothing through
    Filtered,
    /// The port is reachable, open or not
    Unfiltered,
    /// Every state
    All,
}

impl RowState {
    fn as_str(self) -> &'static str {
        match self {
            RowState::Up => "up",
            RowState::Open => "open",
            RowState::Closed => "closed",
            RowState::Filtered => "filtered",
            RowState::Unfiltered => "unfiltered",
            RowState::All => "all",
        }
    }
}

/// Which rows and in which form.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct OutputArgs {
    /// Form of the result
    #[arg(long, short, value_enum, default_value_t = Output::Table, help_heading = "Output")]
    pub(super) output: Output,
    /// Print one JSON document
    #[arg(long, conflicts_with = "output", help_heading = "Output")]
    pub(super) json: bool,
    /// Only rows in these states [default: up, open and unfiltered in tables, everything in other forms]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STATE", help_heading = "Output")]
    pub(super) state: Vec<RowState>,
    /// At most so many rows; 0 for all [default: 100 in tables, all in other forms]
    #[arg(long, value_name = "ROWS", help_heading = "Output")]
    pub(super) limit: Option<usize>,
}

impl OutputArgs {
    fn is_table(&self) -> bool {
        self.output == Output::Table && !self.json
    }

    /// The states to ask for; none means all.
    fn states(&self) -> Vec<&'static str> {
        match self.state.as_slice() {
            [] if self.is_table() => vec!["up", "open", "unfiltered"],
            [] => Vec::new(),
            states if states.contains(&RowState::All) => Vec::new(),
            states => states.iter().map(|state| state.as_str()).collect(),
        }
    }

    fn rows(&self) -> usize {
        match self.limit {
            Some(0) => usize::MAX,
            Some(limit) => limit,
            None if self.is_table() => TABLE_ROWS,
            None => usize::MAX,
        }
    }
}

/// `picket results` and its flags.
#[derive(Debug, clap::Args)]
pub(super) struct ResultsArgs {
    /// Results of this job [default: the latest of every site, address and port]
    #[arg(long, value_name = "JOB")]
    job: Option<JobId>,
    #[command(flatten)]
    place: Place,
    /// Only these ports
    #[arg(long, short, value_name = "PORTS")]
    ports: Option<PortSet>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(args: ResultsArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    let mut query: Query = Vec::new();
    let mut add = |name, value: Option<String>| query.extend(value.map(|value| (name, value)));
    add("job", args.job.map(|id| id.to_string()));
    args.place.narrow(&mut add);
    add("ports", args.ports.map(|ports| ports.to_string()));
    let again = match args.job {
        Some(job) => format!("picket results --job {job}"),
        None => "picket results".to_owned(),
    };
    let shape = Shape { jobs: args.job.is_none(), heading: true, again };
    if args.output.json {
        return json(&client, query, &args.output, context).await.map(|()| Exit::Complete);
    }
    print(&client, query, &args.output, &shape, context).await?;
    Ok(Exit::Complete)
}

/// What surrounds the rows.
pub(super) struct Shape {
    /// Whether the job and the time are columns too.
    pub(super) jobs: bool,
    /// Whether comma-separated values get their heading: the first of several lists has it.
    pub(super) heading: bool,
    /// The command that shows all rows.
    pub(super) again: String,
}

/// Prints rows in the form that is wanted.
pub(super) async fn print(
    client: &Client,
    query: Query,
    args: &OutputArgs,
    shape: &Shape,
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    match args.output {
        Output::Table => {
            let (rows, more) = first(client, query, args).await?;
            table(rows, more, shape, args, context)
        }
        Output::Ndjson => {
            let out = &mut *context.out;
            each(client, query, args, |row| {
                serde_json::to_writer(&mut *out, &row).map_err(|error| Failure::output(error.into()))?;
                out.write_all(b"\n").map_err(Failure::output)
            })
            .await
            .map(drop)
        }
        Output::Csv => {
            let heading = if shape.heading { CSV_HEADING } else { "" };
            context.out.write_all(heading.as_bytes()).map_err(Failure::output)?;
            let out = &mut *context.out;
            each(client, query, args, |row| out.write_all(csv_line(&row).as_bytes()).map_err(Failure::output)).await.map(drop)
        }
    }
}

/// Prints rows as one JSON list, without holding them all.
pub(super) async fn json(client: &Client, query: Query, args: &OutputArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    let out = &mut *context.out;
    let mut before = "[\n";
    each(client, query, args, |row| {
        out.write_all(before.as_bytes()).map_err(Failure::output)?;
        before = ",\n";
        serde_json::to_writer(&mut *out, &row).map_err(|error| Failure::output(error.into()))
    })
    .await?;
    let end = if before == "[\n" { "[]\n" } else { "\n]\n" };
    out.write_all(end.as_bytes()).map_err(Failure::output)
}

/// Calls `take` for each row up to the limit; says whether there are more.
async fn each(
    client: &Client,
    mut query: Query,
    args: &OutputArgs,
    take: impl FnMut(ResultRow) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let states = args.states();
    if !states.is_empty() {
        query.push(("state", states.join(",")));
    }
    pages(client, query, args.rows(), take).await
}

/// The first rows of a table. Several states are asked for one by one: the controller finds the rows of one state at once, and
/// would have to look through everything for several.
async fn first(client: &Client, query: Query, args: &OutputArgs) -> Result<(Vec<ResultRow>, bool), Failure> {
    let states = args.states();
    let queries: Vec<Query> = match states.is_empty() {
        true => vec![query],
        false => states.iter().map(|state| query.iter().cloned().chain([("state", (*state).to_owned())]).collect()).collect(),
    };
    let (mut rows, mut more) = (Vec::new(), false);
    for query in queries {
        let take = |row| {
            rows.push(row);
            Ok(())
        };
        more |= pages(client, query, args.rows(), take).await?;
    }
    rows.sort_by_key(|row| (order(row.addr), row.port, row.protocol, row.site.clone(), row.probe.clone()));
    more |= rows.len() > args.rows();
    rows.truncate(args.rows());
    Ok((rows, more))
}

async fn pages(
    client: &Client,
    query: Query,
    mut left: usize,
    mut take: impl FnMut(ResultRow) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let mut cursor: Option<String> = None;
    loop {
        let mut asked = query.clone();
        // One more than is shown tells whether there are more.
        asked.push(("limit", left.saturating_add(1).min(PAGE).to_string()));
        asked.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: Page<ResultRow> = client.get(&["results"], &asked).await?;
        for row in page.items {
            if left == 0 {
                return Ok(true);
            }
            left -= 1;
            take(row)?;
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(false),
        }
    }
}

fn table(rows: Vec<ResultRow>, more: bool, shape: &Shape, args: &OutputArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    if rows.is_empty() {
        let states = args.states();
        let which = if states.is_empty() { String::new() } else { format!(" that is {}", states.join(" or ")) };
        return context.line(format!("nothing{which}"));
    }
    context.line(columns(&rows, shape.jobs))?;
    if more {
        context.note(format!("the first {} rows; all of them: {} --output csv", rows.len(), shape.again));
    }
    Ok(())
}

/// IPv4 before IPv6, each in numerical order.
fn order(addr: IpAddr) -> (bool, u128) {
    match addr {
        IpAddr::V4(v4) => (false, v4.to_bits().into()),
        IpAddr::V6(v6) => (true, v6.to_bits()),
    }
}

fn columns(rows: &[ResultRow], jobs: bool) -> Columns {
    use Align::{Left, Right};
    let has_ports = rows.iter().any(|row| row.port.is_some());
    let mut heading = vec![("ADDRESS", Left)];
    if has_ports {
        heading.push(("PORT", Right));
    }
    heading.extend([("STATE", Left), ("REASON", Left)]);
    let has_services = rows.iter().any(|row| row.service.is_some());
    if has_services {
        heading.extend([("SERVICE", Left), ("VERSION", Left)]);
    }
    heading.extend([("RTT", Right), ("TTL", Right), ("PROBE", Left), ("SITE", Left)]);
    if jobs {
        heading.extend([("SEEN", Left), ("JOB", Left)]);
    }
    let mut columns = Columns::new(&heading);
    for row in rows {
        let mut cells = vec![row.addr.to_string()];
        if has_ports {
            cells.push(port(row));
        }
        let ttl = row.ttl.map(|ttl| ttl.to_string()).unwrap_or_default();
        cells.extend([row.state.clone(), row.reason.clone()]);
        if has_services {
            cells.extend(row.service.as_ref().map(|service| [service_name(service), service_version(service)]).unwrap_or_default());
        }
        cells.extend([format::rtt(row.rtt_us), ttl, row.probe.to_string(), row.site.to_string()]);
        if jobs {
            cells.extend([format::moment(&row.seen), row.job.to_string()]);
        }
        columns.row(cells);
    }
    columns
}

/// As in `80/tcp`.
fn port(row: &ResultRow) -> String {
    match (row.port, row.protocol) {
        (Some(port), Some(protocol)) => format!("{port}/{}", protocol.as_str()),
        (Some(port), None) => port.to_string(),
        (None, _) => String::new(),
    }
}

/// The protocol, or what asking came to; `ssl/` before it where it is spoken inside TLS, as other scanners write it.
fn service_name(service: &ServiceView) -> String {
    let name = service.name.clone().unwrap_or_else(|| service.outcome.clone());
    if service.tls { format!("ssl/{name}") } else { name }
}

/// Product, version and what else it says of itself in a line; of what nobody knows, the first bytes.
fn service_version(service: &ServiceView) -> String {
    let extra = service.extra.as_ref().map(|extra| format!("({extra})"));
    let parts = [service.product.clone(), service.version.clone(), extra];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let otherwise = || service.why.clone().or_else(|| service.banner.clone().filter(|_| service.name.is_none())).unwrap_or_default();
    let text = if text.is_empty() { otherwise() } else { text };
    match text.char_indices().nth(VERSION_WIDTH) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// Longest text in the column of versions, in characters; everything is in the other forms.
const VERSION_WIDTH: usize = 50;

const CSV_HEADING: &str = "site,probe,job,addr,port,state,reason,rtt_us,ttl,seen,protocol,service,tls,product,version,service_outcome\r\n";

fn csv_line(row: &ResultRow) -> String {
    let optional = |value: Option<String>| value.unwrap_or_default();
    let service = row.service.as_ref();
    let fields = [
        row.site.to_string(),
        row.probe.to_string(),
        row.job.to_string(),
        row.addr.to_string(),
        optional(row.port.map(|port| port.to_string())),
        row.state.clone(),
        row.reason.clone(),
        row.rtt_us.to_string(),
        optional(row.ttl.map(|ttl| ttl.to_string())),
        row.seen.clone(),
        optional(row.protocol.map(|protocol| protocol.as_str().to_owned())),
        optional(service.and_then(|service| service.name.clone())),
        optional(service.map(|service| service.tls.to_string())),
        optional(service.and_then(|service| service.product.clone())),
        optional(service.and_then(|service| service.version.clone())),
        optional(service.map(|service| service.outcome.clone())),
    ];
    fields.map(|field| csv_field(&field)).join(",") + "\r\n"
}

/// RFC 4180, section 2, rules 5 to 7.
fn csv_field(text: &str) -> String {
    match text.contains(['"', ',', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<ResultRow> {
        let row = |addr: &str, port, state: &str, reason: &str, rtt_us, ttl| ResultRow {
            site: "hq".parse().unwrap(),
            probe: "attic".parse().unwrap(),
            job: JobId(0x65f0_c1d2_00a4_b7e1),
            addr: addr.parse().unwrap(),
            port,
            protocol: Some(picket_wire::job::Transport::Tcp),
            state: state.into(),
            reason: reason.into(),
            rtt_us,
            ttl,
            seen: "2026-11-21T10:00:00.123Z".into(),
            service: None,
        };
        vec![
            row("2001:db8::7", Some(443), "open", "syn-ack", 1_234_567, Some(255)),
            row("198.18.0.10", Some(80), "open", "syn-ack", 412, Some(64)),
            row("198.18.0.9", Some(8080), "open", "connected", 15_300, None),
            row("198.18.0.9", Some(22), "filtered", "icmp 3/13, \u{1b}[31mred", 98, Some(63)),
        ]
    }

    fn shown(rows: Vec<ResultRow>, more: bool, jobs: bool) -> String {
        let args = OutputArgs { output: Output::Table, json: false, state: Vec::new(), limit: None };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut rows = rows;
        rows.sort_by_key(|row| (order(row.addr), row.port, row.site.clone(), row.probe.clone()));
        let mut context = Context { connect: super::super::ConnectArgs::default(), out: &mut out, err: &mut err, err_is_terminal: false };
        table(rows, more, &Shape { jobs, heading: true, again: "picket results --job X".into() }, &args, &mut context).unwrap();
        format!("{}--\n{}", String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn tables_are_sorted_and_harmless() {
        insta::assert_snapshot!(shown(rows(), true, false));
        insta::assert_snapshot!("table_over_jobs", shown(rows(), false, true));
        let hosts =
            rows().into_iter().map(|row| ResultRow { port: None, state: "up".into(), reason: "echo-reply".into(), ..row }).collect();
        insta::assert_snapshot!("table_of_hosts", shown(hosts, false, false));
        let mut served = rows();
        served[0].service = Some(ServiceView {
            outcome: "identified".into(),
            name: Some("http".into()),
            tls: true,
            product: Some("nginx".into()),
            version: Some("1.22.1".into()),
            extra: Some("Debian \u{1b}[2J".into()),
            ..ServiceView::default()
        });
        served[1].service =
            Some(ServiceView { outcome: "unidentified".into(), banner: Some("\\x00what ".repeat(20)), ..ServiceView::default() });
        insta::assert_snapshot!("table_of_services", shown(served, false, false));
        insta::assert_snapshot!("table_of_nothing", shown(Vec::new(), false, false));
    }

    #[test]
    fn csv_is_escaped() {
        let text: String = CSV_HEADING.to_owned() + &rows().iter().map(csv_line).collect::<String>();
        assert!(text.lines().all(|line| !line.is_empty()) && text.matches("\r\n").count() == 5);
        insta::assert_snapshot!(text.replace("\r\n", "\n").escape_debug().to_string().replace("\\n", "\n"));
        assert_eq!(csv_field("a \"b\", c"), "\"a \"\"b\"\", c\"");
        assert_eq!(csv_field("a\nb"), "\"a\nb\"");
        assert_eq!(csv_field("plain"), "plain");
    }

    #[test]
    fn ndjson_has_one_flat_object_per_row() {
        let line = serde_json::to_string(rows().first().unwrap()).unwrap();
        insta::assert_snapshot!(line);
    }
}
