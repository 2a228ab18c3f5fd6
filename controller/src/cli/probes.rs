//! `picket probe`: add, list, show and revoke; and `picket fleet`.

use std::io::IsTerminal;

use picket_wire::ids::{Label, ProbeId, Role, SiteName};
use serde_json::json;

use super::failure::{Exit, Failure};
use super::table::{Align, Columns, details};
use super::{Context, JsonArgs, format};
use crate::view::{FleetSummary, LeasePacingView, ProbeInvited, ProbeRequest, ProbeState, ProbeView};

/// `picket probe ...`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum ProbeCommand {
    /// Invite a probe: make the one-time token that enrols a box
    #[command(
        after_help = "Example:\n  picket probe add attic --site hq --label top-floor\n\nThe token is printed on standard output, everything else on standard error:\n  picket probe add attic > attic.token"
    )]
    Add(AddArgs),
    /// List the probes
    #[command(after_help = "Example:\n  picket probe list")]
    List(JsonArgs),
    /// Show one probe
    #[command(after_help = "Example:\n  picket probe show attic")]
    Show(ProbeArgs),
    /// Revoke a probe's certificate for good; it is out within seconds
    #[command(after_help = "Example:\n  picket probe revoke attic --reason 'box was stolen'")]
    Revoke(RevokeArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// The probe's id: 1 to 32 of a-z, 0-9 and `-`
    #[arg(value_name = "PROBE")]
    id: ProbeId,
    /// The site it stands in [default: its id]
    #[arg(long, value_name = "SITE")]
    site: Option<SiteName>,
    /// A label by which jobs can select it; may be given several times
    #[arg(long = "label", value_name = "LABEL", value_delimiter = ',')]
    labels: Vec<Label>,
    /// A role it holds: scan, trace, capture or tool; may be given several times [default: scan]
    #[arg(long = "role", value_name = "ROLE", value_delimiter = ',')]
    roles: Vec<Role>,
    /// For how many hours the token is good [default: 24]
    #[arg(long, value_name = "HOURS", value_parser = clap::value_parser!(u32).range(1..=8760))]
    token_hours: Option<u32>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ProbeArgs {
    /// The probe
    #[arg(value_name = "PROBE")]
    id: ProbeId,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    probe: ProbeArgs,
    /// Why, for those who ask later
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub(super) async fn run(command: ProbeCommand, context: &mut Context<'_>) -> Result<Exit, Failure> {
    match command {
        ProbeCommand::Add(args) => add(args, context).await?,
        ProbeCommand::List(args) => list(args, context).await?,
        ProbeCommand::Show(args) => {
            let probe: ProbeView = context.client()?.get(&["probes", args.id.as_str()], &Vec::new()).await?;
            print(&probe, args.json, context)?;
        }
        ProbeCommand::Revoke(args) => {
            let body = json!({ "reason": args.reason });
            let probe: ProbeView = context.client()?.post(&["probes", args.probe.id.as_str(), "revoke"], &body).await?;
            if args.probe.json.json {
                context.json(&probe)?;
            } else {
                context.line(format!("probe {} is revoked", probe.id))?;
            }
        }
    }
    Ok(Exit::Complete)
}

async fn add(args: AddArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    let request = ProbeRequest { id: args.id, site: args.site, labels: args.labels, roles: args.roles, token_hours: args.token_hours };
    let invited: ProbeInvited = context.client()?.post(&["probes"], &request).await?;
    if args.json.json {
        return context.json(&invited);
    }
    context.note(format!("probe {}: this token enrols one box, once, until {} UTC:", invited.probe.id, format::moment(&invited.expires)));
    context.line(&invited.token)?;
    if std::io::stdout().is_terminal() {
        context.note("on the box: picket-probe enrol TOKEN");
    }
    Ok(())
}

async fn list(args: JsonArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    let probes: Vec<ProbeView> = context.client()?.all(&["probes"], &Vec::new()).await?;
    if args.json {
        return context.json(&probes);
    }
    if probes.is_empty() {
        context.line("no probes")?;
        context.note("add one with: picket probe add NAME");
        return Ok(());
    }
    context.line(table(&probes))
}

fn state(state: ProbeState) -> &'static str {
    match state {
        ProbeState::Invited => "invited",
        ProbeState::Enrolled => "enrolled",
        ProbeState::Online => "online",
        ProbeState::Busy => "busy",
        ProbeState::Late => "late",
        ProbeState::Offline => "offline",
        ProbeState::Revoked => "revoked",
    }
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn jobs(probe: &ProbeView) -> String {
    probe.jobs.iter().map(|job| format!("{} {}%", job.job, job.percent)).collect::<Vec<_>>().join(", ")
}

/// How fast it sends at present, and each job that gets less than it asked for.
fn pace(probe: &ProbeView) -> String {
    let Some(pacing) = &probe.pacing else { return String::new() };
    let because = |why: &Option<String>| why.as_ref().map(|why| format!(" (slowed down: {why})")).unwrap_or_default();
    let interface = format!("at most {}{}", pacing.current, because(&pacing.slowed));
    let lease = |lease: &LeasePacingView| {
        let clipped =
            if lease.granted == lease.asked || lease.asked == "unlimited" { String::new() } else { format!(" of {} asked", lease.asked) };
        format!("job {}: {}{clipped}{}", lease.job, lease.current, because(&lease.slowed))
    };
    core::iter::once(interface).chain(pacing.leases.iter().map(lease)).collect::<Vec<_>>().join("; ")
}

fn shaper(probe: &ProbeView) -> String {
    let Some(pacing) = &probe.pacing else { return String::new() };
    match (&pacing.shaper_reason, pacing.shaper_packets) {
        (Some(why), _) => format!("none: {why}"),
        (None, Some(packets)) => format!(
            "holds: {} packets, {} waited, {} had no room",
            format::count(packets),
            format::count(pacing.shaper_overlimits.unwrap_or_default()),
            format::count(pacing.shaper_drops.unwrap_or_default())
        ),
        (None, None) => pacing.shaper.clone(),
    }
}

fn table(probes: &[ProbeView]) -> Columns {
    use Align::Left;
    let heading = ["PROBE", "STATE", "SINCE", "SITE", "ROLES", "LABELS", "VERSION", "JOBS", "REASON"].map(|name| (name, Left));
    let mut columns = Columns::new(&heading);
    for probe in probes {
        columns.row([
            probe.id.to_string(),
            state(probe.state).to_owned(),
            format::moment(&probe.since),
            probe.site.to_string(),
            joined(&probe.roles),
            joined(&probe.labels),
            probe.version.clone().unwrap_or_default(),
            jobs(probe),
            probe.reason.clone(),
        ]);
    }
    columns
}

fn print(probe: &ProbeView, args: JsonArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    if args.json {
        return context.json(probe);
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let number = |value: Option<u64>, unit: &str| value.map(|n| format!("{}{unit}", format::count(n))).unwrap_or_default();
    let moment = |value: &Option<String>| value.as_deref().map(format::moment).unwrap_or_default();
    let limits: Vec<String> = [&probe.packet_limit, &probe.bit_limit].into_iter().flatten().cloned().collect();
    let self_test = match (probe.self_test.is_empty(), probe.version.is_some()) {
        (false, _) => probe.self_test.join("; "),
        (true, true) => "all is well".to_owned(),
        (true, false) => String::new(),
    };
    context.line(details(&[
        ("probe", probe.id.to_string()),
        ("state", state(probe.state).to_owned()),
        ("reason", probe.reason.clone()),
        ("since", format::moment(&probe.since)),
        ("last seen", moment(&probe.last_seen)),
        ("site", probe.site.to_string()),
        ("labels", joined(&probe.labels)),
        ("roles", joined(&probe.roles)),
        ("link", text(&probe.link)),
        ("version", text(&probe.version)),
        ("hardware", text(&probe.hardware)),
        ("self-test", self_test),
        ("interface", text(&probe.interface)),
        ("limits", limits.join(", ")),
        ("jobs", jobs(probe)),
        ("pace", pace(probe)),
        ("shaper", shaper(probe)),
        ("uptime", probe.uptime_seconds.map(format::seconds).unwrap_or_default()),
        ("memory", number(probe.memory_kib, " KiB")),
        ("load", probe.load_percent.map(|load| format!("{load} %")).unwrap_or_default()),
        ("spool", number(probe.spool_records, " records")),
        ("lost", number(probe.lost_records.filter(|lost| *lost > 0), " records")),
        ("sent", number(probe.sent_packets, " packets")),
        ("refused", number(probe.refused_commands.filter(|refused| *refused > 0), " commands")),
        ("certificate", moment(&probe.certificate_expires)),
    ]))
}

pub(super) async fn fleet(args: JsonArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let fleet: FleetSummary = context.client()?.get(&["fleet"], &Vec::new()).await?;
    if args.json {
        context.json(&fleet)?;
    } else {
        context.line(format!(
            "{}: {} online, {} busy, {} late, {} offline; {} running",
            format::plural(fleet.probes as usize, "probe"),
            fleet.online,
            fleet.busy,
            fleet.late,
            fleet.offline,
            format::plural(fleet.jobs_running as usize, "job")
        ))?;
    }
    Ok(Exit::Complete)
}
