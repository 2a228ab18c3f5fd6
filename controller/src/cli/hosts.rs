//! `picket hosts`: what was seen on the probes' own links, with hardware addresses.

use picket_wire::ids::JobId;

use super::client::{Client, Query};
use super::failure::{Exit, Failure};
use super::place::Place;
use super::results::Output;
use super::table::{Align, Columns};
use super::{Context, format};
use crate::view::{HostRow, Page};

/// Rows asked for at once.
const PAGE: usize = 1000;

/// `picket hosts` and its flags.
#[derive(Debug, clap::Args)]
pub(super) struct HostsArgs {
    /// Hosts that this job saw [default: the latest of every site]
    #[arg(long, value_name = "JOB")]
    job: Option<JobId>,
    #[command(flatten)]
    place: Place,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: HostsArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    let mut query: Query = Vec::new();
    let mut add = |name, value: Option<String>| query.extend(value.map(|value| (name, value)));
    add("job", args.job.map(|id| id.to_string()));
    args.place.narrow(&mut add);
    let rows = all(&client, query).await?;
    match args.json {
        true => context.json(&rows)?,
        false => table(&rows, context)?,
    }
    Ok(Exit::Complete)
}

/// All hosts that a query selects.
pub(super) async fn all(client: &Client, mut query: Query) -> Result<Vec<HostRow>, Failure> {
    query.push(("limit", PAGE.to_string()));
    let mut rows: Vec<HostRow> = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let asked: Query = query.iter().cloned().chain(cursor.map(|cursor| ("cursor", cursor))).collect();
        let page: Page<HostRow> = client.get(&["hosts"], &asked).await?;
        rows.extend(page.items);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(rows),
        }
    }
}

/// Prints the hosts of a job in a chosen form.
pub(super) fn print(rows: &[HostRow], output: Output, context: &mut Context<'_>) -> Result<(), Failure> {
    match output {
        Output::Table => table(rows, context),
        Output::Ndjson => rows.iter().try_for_each(|row| context.line(serde_json::json!(row))),
        Output::Csv => {
            context.line("site,probe,job,addr,mac,how,first_seen,last_seen")?;
            let text = |row: &HostRow| {
                let (mac, how) = (row.mac.as_deref().unwrap_or_default(), row.how.as_str());
                format!("{},{},{},{},{mac},{how},{},{}", row.site, row.probe, row.job, row.addr, row.first_seen, row.last_seen)
            };
            rows.iter().try_for_each(|row| context.line(text(row)))
        }
    }
}

/// Prints hosts as columns for people.
pub(super) fn table(rows: &[HostRow], context: &mut Context<'_>) -> Result<(), Failure> {
    match rows.is_empty() {
        true => context.line("no host was seen on a link"),
        false => context.line(columns(rows)),
    }
}

fn columns(rows: &[HostRow]) -> Columns {
    let heading = ["ADDRESS", "MAC", "HOW", "PROBE", "SITE", "FIRST SEEN", "LAST SEEN", "JOB"];
    let mut columns = Columns::new(&heading.map(|name| (name, Align::Left)));
    for row in rows {
        columns.row([
            row.addr.to_string(),
            row.mac.clone().unwrap_or_default(),
            row.how.as_str().to_owned(),
            row.probe.to_string(),
            row.site.to_string(),
            format::moment(&row.first_seen),
            format::moment(&row.last_seen),
            row.job.to_string(),
        ]);
    }
    columns
}

#[cfg(test)]
mod tests {
    use picket_wire::host::SeenBy;

    use super::*;

    #[test]
    fn a_table_of_hosts() {
        let row = |addr: &str, mac: Option<&str>, how| HostRow {
            site: "hq".parse().unwrap(),
            probe: "attic".parse().unwrap(),
            job: JobId(0x65f0_c1d2_00a4_b7e1),
            addr: addr.parse().unwrap(),
            mac: mac.map(str::to_owned),
            how,
            first_seen: "2026-11-21T10:00:00.123Z".into(),
            last_seen: "2026-11-21T10:00:01Z".into(),
        };
        let rows = [row("198.18.0.7", Some("02:00:00:00:00:07"), SeenBy::ProxyArp), row("2001:db8::7", None, SeenBy::AllNodes)];
        insta::assert_snapshot!(columns(&rows).to_string());
    }
}
