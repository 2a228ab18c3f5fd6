//! Which controller, which authority to trust, which token: from flags, environment and the controller's data directory.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::client::Client;
use super::failure::{Exit, Failure};
use crate::config::DEFAULT_DATA;

/// File in the data directory in which the service writes where it listens.
pub const ENDPOINTS_FILE: &str = "endpoints.json";
/// File in the data directory that holds the administrator's token.
pub(super) const ADMIN_TOKEN_FILE: &str = "admin.token";

/// Where a running service listens: what it writes into its data directory, and the ready file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The HTTPS API as reached from the controller's own machine.
    pub api: String,
    /// The HTTPS API under the controller's public names, the first to be tried first.
    pub public: Vec<String>,
    /// Port of the probes' MQTT listener.
    pub mqtt_port: u16,
    /// Port of the HTTPS API.
    pub api_port: u16,
    /// Port of the dashboards' MQTT listener.
    pub dashboard_port: u16,
    /// The service's process id.
    pub pid: u32,
}

/// How the controller is reached.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    #[allow(rustdoc::bare_urls, reason = "this is the help text")]
    /// Address of the controller's API, such as https://picket.example.net:8443
    #[arg(long, global = true, value_name = "URL", env = "PICKET_SERVER")]
    pub server: Option<String>,
    /// Certificate of the fleet's authority (PEM); no other is trusted
    #[arg(long, global = true, value_name = "FILE", env = "PICKET_CA")]
    pub ca: Option<PathBuf>,
    /// File that holds the API token; or PICKET_TOKEN, the token itself
    #[arg(long, global = true, value_name = "FILE", env = "PICKET_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// The controller's data directory, on its own machine: address, authority and admin token are read from there
    /// [default: /var/lib/picket]
    #[arg(long, global = true, value_name = "DIR", env = "PICKET_DATA")]
    pub data: Option<PathBuf>,
}

impl ConnectArgs {
    /// A client for the controller that is meant.
    pub(super) fn open(&self) -> Result<Client, Failure> {
        let token = std::env::var("PICKET_TOKEN").ok();
        let found = self.resolve(Path::new(DEFAULT_DATA), token)?;
        Client::new(&found)
    }

    /// Fills what is not given from the data directory.
    pub(super) fn resolve(&self, default_data: &Path, token: Option<String>) -> Result<Connection, Failure> {
        let data = self.data.clone().or_else(|| default_data.is_dir().then(|| default_data.to_owned()));
        let server = match (&self.server, &data) {
            (Some(server), _) => server.clone(),
            (None, Some(data)) => local_api(data)?,
            (None, None) => return Err(no_controller()),
        };
        let ca = match (&self.ca, &data) {
            (Some(ca), _) => ca.clone(),
            (None, Some(data)) => data.join("ca.pem"),
            (None, None) => {
                return Err(Failure::usage(format!("no certificate authority to verify {server} with"))
                    .hint("copy ca.pem from the controller's data directory and name it with --ca or PICKET_CA"));
            }
        };
        // Where another authority is named, another controller is meant: this machine's admin token is none of its business.
        let own = data.as_ref().filter(|_| self.data.is_some() || self.ca.is_none());
        let token = match (&self.token_file, token, own) {
            (Some(file), _, _) => read_token(file)?,
            (None, Some(token), _) => checked_token(&token, "PICKET_TOKEN")?,
            (None, None, Some(data)) => read_token(&data.join(ADMIN_TOKEN_FILE))?,
            (None, None, None) => {
                return Err(Failure::new(Exit::Unauthorised, "no API token is given").hint(
                    "use --token-file, PICKET_TOKEN_FILE or PICKET_TOKEN; `picket token add` on the controller's machine makes one",
                ));
            }
        };
        let ca_pem = std::fs::read(&ca).map_err(|error| unreadable("certificate authority", &ca, &error))?;
        Ok(Connection { server: parse_server(&server)?, ca_path: ca, ca_pem, token })
    }
}

/// Everything that a client needs.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) server: reqwest::Url,
    pub(super) ca_path: PathBuf,
    pub(super) ca_pem: Vec<u8>,
    pub(super) token: String,
}

fn no_controller() -> Failure {
    Failure::usage("no controller is named")
        .hint("use --server URL (PICKET_SERVER) with --ca and --token-file, or --data DIR (PICKET_DATA) on the controller's own machine")
}

fn local_api(data: &Path) -> Result<String, Failure> {
    let path = data.join(ENDPOINTS_FILE);
    let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(Exit::Unreachable, format!("no controller has run with the data directory {}", data.display()))
                .hint(format!("start it with `picket serve --data {}`, or name another one with --server", data.display()))
        }
        _ => unreadable("the controller's address", &path, &error),
    })?;
    let endpoints: Endpoints =
        serde_json::from_str(&text).map_err(|error| Failure::new(Exit::Failure, format!("{} cannot be used: {error}", path.display())))?;
    Ok(endpoints.api)
}

fn unreadable(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::usage(format!("read {what} {}: {error}", path.display()));
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Failure { exit: Exit::Unauthorised, ..failure }.hint("run it as the controller's user, or use --server, --ca and --token-file")
        }
        _ => failure,
    }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| unreadable("token file", path, &error))?;
    checked_token(&text, &path.display().to_string())
}

fn checked_token(text: &str, origin: &str) -> Result<String, Failure> {
    let token = text.trim();
    match !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(token.to_owned()),
        false => Err(Failure::new(Exit::Unauthorised, format!("{origin} holds no API token"))
            .hint("it is one line, printed by `picket token add`; enrolment tokens of probes (picket1-...) are something else")),
    }
}

fn parse_server(text: &str) -> Result<reqwest::Url, Failure> {
    let example = "write it as https://HOST:PORT, the port is usually 8443";
    if text.starts_with("http://") {
        return Err(Failure::usage(format!("`{text}` is not encrypted: the API speaks HTTPS only")).hint(example));
    }
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = reqwest::Url::parse(&with_scheme)
        .ok()
        .filter(|url| url.scheme() == "https" && url.has_host() && url.path() == "/" && url.query().is_none());
    url.ok_or_else(|| Failure::usage(format!("`{text}` is not the address of a controller")).hint(example))
}
