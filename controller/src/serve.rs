//! `picket serve`: everything that is the controller, started in order and ended in order.
//!
//! On the first start nothing needs to be there: the data directory, the authority, the database and the admin token are made.
//! A lock on the directory keeps a second controller out of it.
//!
//! Order: the broker's listener and the API's socket are opened first, so that their ports are known when the service writes
//! them into enrolment tokens; until the service is there the broker admits nobody, and the API accepts nothing.
//!
//! **Invariant:** when the ready file or the ready block appears, every listener accepts.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use picket_wire::ids::{ProbeId, Role};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api;
use crate::broker::{self, Broker, BrokerError, EmbeddedBroker, Event, Hooks};
use crate::cli::{ENDPOINTS_FILE, Endpoints, Exit};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Listen, ServeArgs, host_port};
use crate::errors::chain;
use crate::hub::mqtt::{Hub, HubConfig};
use crate::pki::{Crl, Identity, Peer, Pki, PkiError};
use crate::service::{Service, ServiceConfig, ServiceError, Timing};

/// File in the data directory that the running controller holds locked.
const LOCK_FILE: &str = "lock";
/// The database in the data directory.
const DATABASE: &str = "picket.db";
/// Between two signs of life from the hub to the broker.
const HUB_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often certificates and the revocation list are looked after.
const CARE_EVERY: Duration = Duration::from_secs(6 * 3600);

/// Why the controller does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system refused something about a file.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another controller uses the data directory.
    #[error("another controller runs with the data directory {}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A listener cannot be opened.
    #[error("listen on {listen} for {what}")]
    Listen {
        /// For whom.
        what: &'static str,
        /// Where.
        listen: Listen,
        /// Why not.
        source: std::io::Error,
    },
    /// The authority cannot work.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The broker cannot work.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The service cannot work.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The runtime cannot work.
    #[error("start the runtime")]
    Runtime(#[source] std::io::Error),
}

impl ServeError {
    /// What the operator can do about it.
    fn hint(&self) -> Option<String> {
        match self {
            ServeError::Listen { source, what, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                Some(format!("another program listens there; `picket serve --help` shows how to move the listener for {what}"))
            }
            ServeError::File { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Some("run it as a user who may write there, or choose another directory with --data".to_owned())
            }
            _ => None,
        }
    }
}

/// Runs `picket serve` until it is asked to end.
pub fn main(args: &ServeArgs) -> Exit {
    let config = match Config::load(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("picket: {}", chain(&error));
            return Exit::Usage;
        }
    };
    crate::logging::start(config.log_level);
    match run(config) {
        Ok(()) => Exit::Complete,
        Err(error) => {
            eprintln!("picket: {}", chain(&error));
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            Exit::Failure
        }
    }
}

fn run(config: Config) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(ServeError::Runtime)?;
    runtime.block_on(async {
        // Asked for before anything starts, so that no signal is lost.
        let mut stop = StopSignals::new().map_err(ServeError::Runtime)?;
        let ready_file = config.ready_file.clone();
        let controller = tokio::select! {
            controller = Controller::start(config) => controller?,
            () = stop.next() => return Ok(()),
        };
        if let Some(path) = &ready_file {
            controller.write_endpoints(path)?;
        }
        eprint!("{}", controller.ready_block());
        stop.next().await;
        log::info!("ending");
        controller.shutdown().await;
        Ok(())
    })
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A running controller.
pub struct Controller {
    data: PathBuf,
    admin_token: PathBuf,
    endpoints: Endpoints,
    service: Service,
    broker: Arc<EmbeddedBroker>,
    api: Arc<api::Server>,
    hub: Hub,
    care: JoinHandle<()>,
    _lock: File,
}

impl Controller {
    /// Starts everything; returns when every listener accepts.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        let data = config.data.clone();
        prepare(&data)?;
        let lock = lock(&data)?;
        let now = OffsetDateTime::now_utc();
        let mut names = config.names.certificate();
        [config.api, config.mqtt, config.dashboard]
            .iter()
            .filter_map(|listen| listen.address())
            .for_each(|address| names.add_address(address));
        let pki = Arc::new(Pki::open(&data, &names, now)?);

        let hooks = Arc::new(BrokerHooks::default());
        let broker_config = broker::Config {
            fleet: socket(config.mqtt),
            dashboards: Some(socket(config.dashboard)),
            prefix: config.prefix.clone(),
            limits: broker::Limits::default(),
        };
        // Nobody is admitted before the service is there, so an empty revocation list is good enough until then.
        let broker =
            EmbeddedBroker::start(broker_config, &pki.server_tls(), &pki.crl(&[], now)?, Arc::clone(&hooks) as Arc<dyn Hooks>).await?;
        let broker = Arc::new(broker);
        let api_listener = config.api.bind().map_err(|source| ServeError::Listen { what: "the HTTPS API", listen: config.api, source })?;
        let api_address =
            api_listener.local_addr().map_err(|source| ServeError::Listen { what: "the HTTPS API", listen: config.api, source })?;

        let service =
            Service::open(service_config(&config, api_address.port(), broker.fleet_addr().port()), Arc::clone(&pki), Clock::system())
                .await?;
        let admin_token = service.ensure_admin_token().await?;
        hooks.connect(&service);
        let crl = current_crl(&pki, &service)?;
        broker.update_crl(&crl)?;
        let api =
            api::Server::start(api_listener, pki.server_tls().api_server(&crl)?, api::router(service.clone()), api::Limits::default())
                .map_err(|source| ServeError::Listen { what: "the HTTPS API", listen: config.api, source })?;
        let api = Arc::new(api);
        let client = broker.client_addr();
        let hub_config = HubConfig { host: client.ip().to_string(), port: client.port(), keep_alive: HUB_KEEP_ALIVE };
        // The service is new: nobody has taken its outbox.
        let hub = Hub::start(service.clone(), hub_config).expect("a new service has its outbox");
        let care = tokio::spawn(care(Arc::clone(&pki), service.clone(), Arc::clone(&broker), Arc::clone(&api), crl));

        hub_connected(&service).await;
        let endpoints = Endpoints {
            api: format!("https://{}", reachable(api_address)),
            public: config.names.with_port(api_address.port()).iter().map(|name| format!("https://{name}")).collect(),
            mqtt_port: broker.fleet_addr().port(),
            api_port: api_address.port(),
            dashboard_port: broker.dashboard_addr().map_or(0, |address| address.port()),
            pid: std::process::id(),
        };
        let controller = Self { data, admin_token, endpoints, service, broker, api, hub, care, _lock: lock };
        controller.write_endpoints(&controller.data.join(ENDPOINTS_FILE))?;
        log::info!(
            "ready: API {}, probes on port {}, dashboards on port {}",
            controller.endpoints.api,
            controller.endpoints.mqtt_port,
            controller.endpoints.dashboard_port
        );
        Ok(controller)
    }

    /// Where it listens.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Its service, for tests.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Ends everything, the outermost first.
    pub async fn shutdown(self) {
        self.care.abort();
        self.api.shutdown().await;
        self.hub.stop().await;
        self.broker.shutdown().await;
        // Clients then say that nothing runs instead of that nothing answers.
        let _ = std::fs::remove_file(self.data.join(ENDPOINTS_FILE));
    }

    /// What an operator needs to go on.
    fn ready_block(&self) -> String {
        let public = self.endpoints.public.first().map(String::as_str).unwrap_or_default();
        let connection =
            if self.data == Path::new(crate::config::DEFAULT_DATA) { String::new() } else { format!(" --data {}", self.data.display()) };
        format!(
            "picket {} is ready\n\
             \x20 API         {public} (here {})\n\
             \x20 probes      port {} (MQTT over mutual TLS)\n\
             \x20 dashboards  port {} (MQTT over TLS, read-only)\n\
             \x20 data        {}\n\
             \x20 admin token {}\n\
             next: picket probe add NAME{connection}\n",
            env!("CARGO_PKG_VERSION"),
            self.endpoints.api,
            self.endpoints.mqtt_port,
            self.endpoints.dashboard_port,
            self.data.display(),
            self.admin_token.display(),
        )
    }

    /// Writes the endpoints whole or not at all: whoever waits for the file must not find half of it.
    fn write_endpoints(&self, path: &Path) -> Result<(), ServeError> {
        let fail = |action| move |source| ServeError::File { action, path: path.to_owned(), source };
        let mut text = serde_json::to_vec_pretty(&self.endpoints).unwrap_or_default();
        text.push(b'\n');
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path)).map_err(fail("write"))
    }
}

/// Waits a moment for the hub to be at the broker, so that the first words of probes are heard when they are said. It goes on
/// trying by itself, so a wait in vain is no reason to give up.
async fn hub_connected(service: &Service) {
    let connected = async {
        while !service.health().await.broker_connected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(5), connected).await.is_err() {
        log::warn!("the hub is not connected to the broker yet");
    }
}

/// Makes the data directory, for its owner alone.
fn prepare(data: &Path) -> Result<(), ServeError> {
    DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(|source| ServeError::File {
        action: "make directory",
        path: data.to_owned(),
        source,
    })
}

/// Locks the data directory for as long as the file is open.
fn lock(data: &Path) -> Result<File, ServeError> {
    let path = data.join(LOCK_FILE);
    let fail = |action| {
        let path = path.clone();
        move |source| ServeError::File { action, path, source }
    };
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(fail("open lock"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(ServeError::Locked { path: data.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => return Err(fail("lock")(source)),
    }
    // For people who look who holds it; the lock itself is what counts.
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(fail("write"))?;
    Ok(file)
}

/// Where to bind; every IPv4 address where the machine has no IPv6.
fn socket(listen: Listen) -> SocketAddr {
    match listen {
        Listen::At(address) => address,
        Listen::Everywhere(port) => {
            let has_v6 = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
            let any: IpAddr = if has_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            SocketAddr::new(any, port)
        }
    }
}

/// `host:port` under which this machine itself reaches a bound address; all of them are in the server's certificate.
fn reachable(bound: SocketAddr) -> String {
    match bound.ip() {
        ip if ip.is_unspecified() => host_port("127.0.0.1", bound.port()),
        ip => host_port(&ip.to_string(), bound.port()),
    }
}

fn service_config(config: &Config, api_port: u16, mqtt_port: u16) -> ServiceConfig {
    let default = Timing::default();
    let timing = Timing {
        lease_ttl: config.lease_ttl,
        heartbeat: config.heartbeat,
        late_after: config.heartbeat * 5 / 2,
        offline_after: config.heartbeat * 6,
        ..default
    };
    ServiceConfig {
        data_dir: config.data.clone(),
        database: config.data.join(DATABASE),
        prefix: config.prefix.clone(),
        api_urls: config.names.with_port(api_port).iter().map(|name| format!("https://{name}")).collect(),
        brokers: config.names.with_port(mqtt_port),
        policy: config.policy.clone(),
        timing,
        lookup: config.lookup.clone(),
        captures: config.captures,
    }
}

/// The revocation list as the database has it, also as a file.
fn current_crl(pki: &Pki, service: &Service) -> Result<Crl, ServeError> {
    let revoked = Arc::clone(&service.revoked().borrow());
    Ok(pki.publish_crl(&revoked, OffsetDateTime::now_utc())?)
}

/// How soon a list that could not be put into force is tried again.
const CARE_RETRY: Duration = Duration::from_secs(5);

/// Follows revocations at once, and renews certificates and the list in time.
async fn care(pki: Arc<Pki>, service: Service, broker: Arc<EmbeddedBroker>, api: Arc<api::Server>, mut crl: Crl) {
    let mut revoked: watch::Receiver<_> = service.revoked();
    // What was revoked while everything started is not to be missed.
    revoked.mark_changed();
    let mut tick = tokio::time::interval(CARE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let changed = tokio::select! {
            changed = revoked.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
            _ = tick.tick() => false,
        };
        let serials = Arc::clone(&revoked.borrow_and_update());
        let now = OffsetDateTime::now_utc();
        let renewed = pki.renew(now).unwrap_or_else(|error| {
            // Certificates are renewed long before they end; a revocation does not wait for that.
            log::error!("renew certificates: {}", chain(&error));
            false
        });
        if !(renewed || *serials != crl.serials || crl.is_due(now)) {
            continue;
        }
        let applied = pki.publish_crl(&serials, now).map_err(ServeError::from).and_then(|next| {
            let cut = apply(&pki, &broker, &api, &next)?;
            crl = next;
            Ok(cut)
        });
        if applied.is_err() {
            tick.reset_after(CARE_RETRY);
        }
        match applied {
            Ok(cut) if changed => log::info!("revocation list {} is in force, {cut} sessions cut", crl.number),
            Ok(_) => log::info!("certificates are renewed, revocation list {} is in force", crl.number),
            Err(error) => log::error!("certificates or revocation list: {}", chain(&error)),
        }
    }
}

fn apply(pki: &Pki, broker: &EmbeddedBroker, api: &api::Server, crl: &Crl) -> Result<usize, ServeError> {
    let tls = pki.server_tls();
    let cut = broker.update_crl(crl)?;
    broker.update_tls(&tls, crl)?;
    api.set_tls(tls.api_server(crl)?);
    Ok(cut)
}

/// What the broker asks: the service knows. Before the service is there nobody is let in.
#[derive(Default)]
struct BrokerHooks(OnceLock<Service>);

impl BrokerHooks {
    fn connect(&self, service: &Service) {
        // Called once; a second service would be another controller.
        let _ = self.0.set(service.clone());
    }
}

#[async_trait]
impl Hooks for BrokerHooks {
    fn roles(&self, probe: &ProbeId) -> Vec<Role> {
        self.0.get().and_then(|service| service.probe_roles(probe)).unwrap_or_default()
    }

    fn admit(&self, peer: &Peer) -> bool {
        match (self.0.get(), &peer.identity) {
            (Some(service), Identity::Probe(id)) => service.probe_roles(id).is_some(),
            (Some(_), Identity::Controller(_)) => true,
            (None, _) => false,
        }
    }

    async fn verify_dashboard(&self, user: &str, password: &[u8]) -> bool {
        self.0.get().is_some_and(|service| service.dashboard_verify(user, password))
    }

    fn event(&self, event: Event) {
        match event {
            Event::Connected { who, peer, .. } => log::info!("{who} connected from {peer}"),
            Event::Disconnected { session } => {
                log::info!("{} from {} is gone after {} s", session.principal, session.peer, session.age.as_secs())
            }
            Event::TakenOver { old, peer, .. } => {
                log::warn!("{} came again from {peer}: the older connection, from {}, was cut", old.principal, old.peer);
            }
            Event::Refused { peer, who, why } => match who {
                Some(who) => log::warn!("refused {who} from {peer}: {why:?}"),
                None => log::info!("refused a connection from {peer}: {why:?}"),
            },
            Event::Denied { who, action, topic } => log::warn!("{who} tried what it may not: {action:?} on {topic:?}"),
        }
    }
}
