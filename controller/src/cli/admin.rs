//! `picket token`, `picket dashboard-user`, `picket db`: what administrators need now and then.

use picket_wire::units::parse_duration;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::table::{Align, Columns};
use super::{Context, JsonArgs, format};
use crate::view::{DashboardUser, DashboardUserMade, RebuildCounts, Scope, TokenMade, TokenView};

/// `picket token ...`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum TokenCommand {
    /// Make an API token; it is shown this once
    #[command(after_help = "Example:\n  picket token add nightly --scope operate --expires 90d > nightly.token")]
    Add(TokenAddArgs),
    /// List the tokens, without their secrets
    #[command(after_help = "Example:\n  picket token list")]
    List(JsonArgs),
    /// End a token at once
    #[command(after_help = "Example:\n  picket token revoke nightly")]
    Revoke(NameArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ScopeArg {
    /// See everything
    Read,
    /// Also submit and cancel jobs
    Operate,
    /// Also add and revoke probes, tokens and users
    Admin,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::Read => Scope::Read,
            ScopeArg::Operate => Scope::Operate,
            ScopeArg::Admin => Scope::Admin,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct TokenAddArgs {
    /// A name for it: whom or what it is for
    name: String,
    /// What it allows
    #[arg(long, value_enum)]
    scope: ScopeArg,
    /// It ends by itself after this time, such as 90d
    #[arg(long, value_name = "TIME", value_parser = life)]
    expires: Option<u64>,
    #[command(flatten)]
    json: JsonArgs,
}

fn life(text: &str) -> Result<u64, String> {
    match parse_duration(text).map_err(|reason| reason.to_string())?.as_secs() {
        0 => Err(format!("`{text}` is too short: use at least 1s")),
        seconds => Ok(seconds),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct NameArgs {
    /// Its name
    name: String,
}

/// `picket dashboard-user ...`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum DashboardUserCommand {
    /// Make a user of the read-only MQTT listener, or a new password for one
    #[command(
        after_help = "Example:\n  picket dashboard-user add grafana\n  mosquitto_sub -h CONTROLLER -p 8884 --cafile ca.pem -u grafana -P PASSWORD -v -t 'picket/v1/fleet/#'"
    )]
    Add(UserAddArgs),
    /// List the users
    #[command(after_help = "Example:\n  picket dashboard-user list")]
    List(JsonArgs),
    /// Remove a user
    #[command(after_help = "Example:\n  picket dashboard-user remove grafana")]
    Remove(NameArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct UserAddArgs {
    /// The user name
    name: String,
    #[command(flatten)]
    json: JsonArgs,
}

/// `picket db ...`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum DbCommand {
    /// Make all tables of hosts and ports anew from the raw records
    #[command(after_help = "Example:\n  picket db rebuild")]
    Rebuild(JsonArgs),
}

pub(super) async fn token(command: TokenCommand, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    match command {
        TokenCommand::Add(args) => {
            let body = json!({ "name": args.name, "scope": Scope::from(args.scope), "life_seconds": args.expires });
            let made: TokenMade = client.post(&["tokens"], &body).await?;
            if args.json.json {
                context.json(&made)?;
            } else {
                let until = made.view.expires.as_deref().map(|end| format!(" until {} UTC", format::moment(end))).unwrap_or_default();
                context.note(format!(
                    "token {}, good for {}{until}; it is shown this once:",
                    format::clean(&made.view.name),
                    made.view.scope.as_str()
                ));
                context.line(&made.token)?;
            }
        }
        TokenCommand::List(args) => {
            let tokens: Vec<TokenView> = client.all(&["tokens"], &Vec::new()).await?;
            if args.json {
                context.json(&tokens)?;
            } else {
                let mut columns = Columns::new(&["TOKEN", "SCOPE", "CREATED", "EXPIRES"].map(|name| (name, Align::Left)));
                for token in tokens {
                    let expires = token.expires.as_deref().map(format::moment).unwrap_or_else(|| "never".to_owned());
                    columns.row([token.name, token.scope.as_str().to_owned(), format::moment(&token.created), expires]);
                }
                context.line(columns)?;
            }
        }
        TokenCommand::Revoke(args) => {
            client.delete(&["tokens", &args.name]).await?;
            context.line(format!("token {} is revoked", format::clean(&args.name)))?;
        }
    }
    Ok(Exit::Complete)
}

pub(super) async fn dashboard_user(command: DashboardUserCommand, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let client = context.client()?;
    match command {
        DashboardUserCommand::Add(args) => {
            let made: DashboardUserMade = client.post(&["dashboard-users"], &json!({ "name": args.name })).await?;
            if args.json.json {
                context.json(&made)?;
            } else {
                context.note(format!("user {}; the password is shown this once:", format::clean(&made.name)));
                context.line(&made.password)?;
            }
        }
        DashboardUserCommand::List(args) => {
            let users: Vec<DashboardUser> = client.all(&["dashboard-users"], &Vec::new()).await?;
            if args.json {
                context.json(&users)?;
            } else if users.is_empty() {
                context.line("no users")?;
            } else {
                let mut columns = Columns::new(&["USER", "CREATED"].map(|name| (name, Align::Left)));
                for user in users {
                    columns.row([user.name, format::moment(&user.created)]);
                }
                context.line(columns)?;
            }
        }
        DashboardUserCommand::Remove(args) => {
            client.delete(&["dashboard-users", &args.name]).await?;
            context.line(format!("user {} is removed", format::clean(&args.name)))?;
        }
    }
    Ok(Exit::Complete)
}

pub(super) async fn db(command: DbCommand, context: &mut Context<'_>) -> Result<Exit, Failure> {
    let DbCommand::Rebuild(args) = command;
    let counts: RebuildCounts = context.client()?.post_long(&["db", "rebuild"]).await?;
    if args.json {
        context.json(&counts)?;
    } else {
        context.line(format!(
            "{} records read, {} rejected; {} batches, {} answers, {} hosts, {} ports, {} services, {} hosts on links",
            format::count(counts.records),
            format::count(counts.rejected),
            format::count(counts.batches),
            format::count(counts.observations),
            format::count(counts.hosts),
            format::count(counts.ports),
            format::count(counts.services),
            format::count(counts.link_hosts)
        ))?;
    }
    Ok(Exit::Complete)
}
