//! What the controller can do, as one object: the HTTP API, the broker's hooks and the tests speak to [`Service`] alone.
//!
//! A `Service` is cheap to clone. It owns the database and the state of work and fleet made from it; the hub
//! ([`crate::hub`]) feeds it what probes say and carries out what it has to say to them. It must not know HTTP or MQTT.
//!
//! **Invariant:** what a method has answered is in the database.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use picket_wire::addr::IpNet;
use picket_wire::capture::Keeps;
use picket_wire::codec;
use picket_wire::enrol::{EnrolRequest, EnrolResponse, Token};
use picket_wire::ids::{JobId, LeaseId, ProbeId, Role, SiteName};
use picket_wire::policy::AddressPolicy;
use picket_wire::port::{SERVICES_FILE, Services};
use picket_wire::topic::Prefix;
use picket_wire::units::{PortSet, UnixMillis};
use tokio::sync::{Mutex, MutexGuard, mpsc, watch};

use crate::clock::{Clock, Mono, Now, date, millis, rfc3339};
use crate::hub::core::Core;
use crate::hub::{Inbound, Outgoing};
use crate::jobs::book::Job;
use crate::jobs::submit::{self, Setting};
use crate::lookup::{self, Lookup};
use crate::pki::{Pki, PkiError, Serial};
use crate::results::captures;
use crate::results::rebuild::Rebuild;
use crate::results::rows;
use crate::secret;
use crate::store::sqlite::SqliteStore;
use crate::store::{
    ApiToken, CaptureQuery, CertificateRecord, Download, EnrolToken, FoundCapture, PathBaseline, ProbeRecord, Standing, Store, StoreError,
    UserRecord,
};
use crate::view::{
    AcceptPaths, CaptureState, CaptureView, DashboardUser, DashboardUserMade, FleetSummary, Health, HostRow, JobRequest, JobState, JobView,
    Page, PathRow, PathsAccepted, ProbeInvited, ProbeRequest, ProbeView, RebuildCounts, ResultRow, Scope, Submitted, TokenMade, TokenView,
};

/// What the service is told once, at its start.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// The data directory; the admin token is kept there.
    pub data_dir: PathBuf,
    /// The SQLite file, usually `picket.db` in the data directory.
    pub database: PathBuf,
    /// The topics' prefix.
    pub prefix: Prefix,
    /// Addresses of the API that are written into enrolment tokens, `https://host:port`.
    pub api_urls: Vec<String>,
    /// Brokers that probes are told at enrolment, `host:port`.
    pub brokers: Vec<String>,
    /// The fleet's address policy.
    pub policy: AddressPolicy,
    /// Times of leases and heartbeats.
    pub timing: Timing,
    /// Where names and origins of addresses are looked up.
    pub lookup: lookup::Settings,
    /// What is kept of captures.
    pub captures: CaptureLimits,
}

/// What is kept of captures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureLimits {
    /// What may be asked for of packets.
    pub allow: Keeps,
    /// Bytes that all captures may take, packed.
    pub max_bytes: u64,
    /// How long bytes are kept after the last of their capture came.
    pub keep: Duration,
}

impl Default for CaptureLimits {
    /// Headers, 10 GiB, 30 days.
    fn default() -> Self {
        Self { allow: Keeps::Headers, max_bytes: 10 << 30, keep: Duration::from_secs(30 * 86_400) }
    }
}

/// Times of leases and heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease of shared work holds without a word from the controller.
    pub lease_ttl: Duration,
    /// How much longer than the probe the controller waits before it takes a lease for expired.
    pub lease_margin: Duration,
    /// How often idle probes are asked for a heartbeat.
    pub heartbeat: Duration,
    /// A connected probe that was silent for so long is late.
    pub late_after: Duration,
    /// A connected probe that was silent for so long is taken for offline.
    pub offline_after: Duration,
    /// How long a command is good for.
    pub command_life: Duration,
    /// How long probes have to end their leases after a cancel.
    pub stop_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(90),
            lease_margin: Duration::from_secs(10),
            heartbeat: Duration::from_secs(10),
            late_after: Duration::from_secs(25),
            offline_after: Duration::from_secs(60),
            command_life: Duration::from_secs(60),
            stop_grace: Duration::from_secs(30),
        }
    }
}

/// Why a request was not done. The message is fit for the one who asked; a source is for the log.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// An input is wrong.
    #[error("{reason}")]
    InvalidInput {
        /// The field of the request, such as `targets`.
        field: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// There is no such thing.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// `job`, `probe`, ...
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// It contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// The one who asks may not.
    #[error("{0}")]
    Forbidden(String),
    /// Too many failures; later it may work.
    #[error("too many failed attempts: try again in {} s", retry_after.as_secs().max(1))]
    RateLimited {
        /// When it may work again.
        retry_after: Duration,
    },
    /// It cannot be done now.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of the controller or its machine.
    #[error("the controller failed to {action}")]
    Internal {
        /// What it was doing.
        action: &'static str,
        /// Why that failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Which jobs to list; the newest come first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only jobs in one of these states; all where empty.
    pub states: Vec<JobState>,
}

/// Which results to list. With a job they are in natural order of its targets; without one, the latest of every site,
/// address and port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResultQuery {
    /// Only of this job.
    pub job: Option<JobId>,
    /// Only in this site.
    pub site: Option<SiteName>,
    /// Only by this probe.
    pub probe: Option<ProbeId>,
    /// Only addresses in this network (a single address is a network too).
    pub net: Option<IpNet>,
    /// Only these ports.
    pub ports: Option<PortSet>,
    /// Only in this state: `up`, `open`, `closed`, `filtered` or `unfiltered`.
    pub state: Option<String>,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Rows per page, 1 to 10,000; 1,000 where 0.
    pub limit: u32,
}

/// Which hosts on links to list: those of a job, or the latest of every site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostQuery {
    /// Only of this job.
    pub job: Option<JobId>,
    /// Only in this site.
    pub site: Option<SiteName>,
    /// Only by this probe.
    pub probe: Option<ProbeId>,
    /// Only addresses in this network (a single address is a network too).
    pub net: Option<IpNet>,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Rows per page, 1 to 10,000; 1,000 where 0.
    pub limit: u32,
}

/// Which paths to list: those of a job by destination, or all of them by destination, probe and flow, the newest of each first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathsQuery {
    /// Only of this job.
    pub job: Option<JobId>,
    /// Only in this site.
    pub site: Option<SiteName>,
    /// Only by this probe.
    pub probe: Option<ProbeId>,
    /// Only destinations in this network (a single address is a network too).
    pub net: Option<IpNet>,
    /// Only the newest of each destination, probe and flow.
    pub latest: bool,
    /// Of those, only the ones that differ from what is known of their way, with what is new.
    pub changes: bool,
    /// With names and origins of the addresses on them, as far as they are to be had.
    pub names: bool,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Rows per page, 1 to 10,000; 1,000 where 0.
    pub limit: u32,
}

/// Which captures to list, the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapturesQuery {
    /// Only of this job.
    pub job: Option<JobId>,
    /// Only in this site.
    pub site: Option<SiteName>,
    /// Only by this probe.
    pub probe: Option<ProbeId>,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Rows per page, 1 to 10,000; 1,000 where 0.
    pub limit: u32,
}

/// Who holds a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// The token's name, for logs and as the actor.
    pub name: String,
    /// What it allows.
    pub scope: Scope,
}

/// What is read without waiting: by the broker in the middle of its connections, and by those who wait for a job.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    views: RwLock<HashMap<JobId, watch::Sender<Arc<JobView>>>>,
    roles: RwLock<BTreeMap<ProbeId, Vec<Role>>>,
    users: RwLock<HashMap<String, [u8; 32]>>,
    tokens: RwLock<Vec<ApiToken>>,
    connected: AtomicBool,
}

impl Shared {
    /// A job has changed.
    pub(crate) fn show(&self, view: JobView) {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        let view = Arc::new(view);
        match views.get(&view.id) {
            Some(sender) => drop(sender.send_replace(view)),
            None => drop(views.insert(view.id, watch::Sender::new(view))),
        }
    }

    /// A job is over and nobody has asked for it lately.
    pub(crate) fn drop_view(&self, id: JobId) {
        self.views.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Who holds which role.
    pub(crate) fn set_roles(&self, roles: BTreeMap<ProbeId, Vec<Role>>) {
        *self.roles.write().unwrap_or_else(PoisonError::into_inner) = roles;
    }

    /// Whether the hub is connected to the broker.
    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    fn follow(&self, id: JobId) -> Option<watch::Receiver<Arc<JobView>>> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).get(&id).map(watch::Sender::subscribe)
    }
}

/// Failed enrolments of one address, or of all.
#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    count: u32,
    since: Mono,
}

/// So many failed enrolments from one address per [`FAILURE_WINDOW`].
const FAILURES_PER_PEER: u32 = 10;
/// So many from everywhere: a secret of 128 bits is not guessed, but the log should stay readable.
const FAILURES_ALL: u32 = 300;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered at most.
const PEERS_MAX: usize = 4096;
const TOKEN_HOURS_DEFAULT: u32 = 24;
const TOKEN_HOURS_MAX: u32 = 24 * 366;
const API_TOKEN_PREFIX: &str = "pkt_";
const ADMIN: &str = "admin";
/// Bytes of an accepted way, encoded: a quarter of what is read back.
const WAY_MAX: usize = 64 << 10;

/// The controller's service.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<ServiceConfig>,
    pki: Arc<Pki>,
    clock: Clock,
    started: Now,
    store: Arc<dyn Store>,
    shared: Arc<Shared>,
    core: Mutex<Core>,
    lookup: Lookup,
    outbox: std::sync::Mutex<Option<mpsc::UnboundedReceiver<Outgoing>>>,
    revoked: watch::Sender<Arc<Vec<Serial>>>,
    failures: std::sync::Mutex<HashMap<Option<IpAddr>, Failures>>,
}

impl core::fmt::Debug for Service {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Service").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

fn internal<E: std::error::Error + Send + Sync + 'static>(action: &'static str) -> impl FnOnce(E) -> ServiceError {
    move |error| ServiceError::Internal { action, source: Box::new(error) }
}

fn invalid(field: &'static str, reason: impl ToString) -> ServiceError {
    ServiceError::InvalidInput { field, reason: reason.to_string() }
}

impl Service {
    /// Opens the database (making or migrating it), loads what runs, and is ready to answer.
    pub async fn open(config: ServiceConfig, pki: Arc<Pki>, clock: Clock) -> Result<Self, ServiceError> {
        let store = SqliteStore::open(&config.database).await.map_err(internal("open its database"))?;
        Self::with_store(config, Arc::new(store), pki, clock).await
    }

    /// Like [`Service::open`], with a database that is open already.
    pub async fn with_store(config: ServiceConfig, store: Arc<dyn Store>, pki: Arc<Pki>, clock: Clock) -> Result<Self, ServiceError> {
        let config = Arc::new(config);
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = mpsc::unbounded_channel();
        let load = Core::load(Arc::clone(&store), Arc::clone(&config), Arc::clone(&pki), clock.clone(), Arc::clone(&shared), sender);
        let core = load.await.map_err(internal("read its database"))?;
        let now = clock.now();
        let revoked = store.revoked(now.wall).await.map_err(internal("read the revoked certificates"))?;
        let inner = Inner {
            lookup: Lookup::new(&config.lookup),
            config,
            pki,
            clock,
            started: now,
            store,
            shared,
            core: Mutex::new(core),
            outbox: std::sync::Mutex::new(Some(receiver)),
            revoked: watch::Sender::new(Arc::new(revoked)),
            failures: std::sync::Mutex::default(),
        };
        let service = Self { inner: Arc::new(inner) };
        service.reload_tokens().await?;
        service.reload_users().await?;
        Ok(service)
    }

    /// The state of work and fleet, with nothing half done in it.
    async fn core(&self) -> MutexGuard<'_, Core> {
        self.inner.core.lock().await
    }

    fn now(&self) -> Now {
        self.inner.clock.now()
    }

    // ---- the hub's side ---------------------------------------------------------------------------------------------

    /// Takes messages from probes, in the order in which they came. On an error all of them may be given again.
    pub async fn handle(&self, messages: &[Inbound]) -> Result<(), ServiceError> {
        self.core().await.handle(messages).await.map_err(internal("store what probes sent"))
    }

    /// Time has passed: to be called every half second or so.
    pub async fn tick(&self) -> Result<(), ServiceError> {
        self.core().await.tick().await.map_err(internal("plan"))
    }

    /// What is to be sent. There is one taker; later ones get `None`.
    pub fn take_outbox(&self) -> Option<mpsc::UnboundedReceiver<Outgoing>> {
        self.inner.outbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The connection to the broker is there, or is gone.
    pub async fn set_connected(&self, connected: bool) {
        self.inner.shared.set_connected(connected);
        if connected {
            self.core().await.reconnected();
        }
    }

    // ---- jobs and results -------------------------------------------------------------------------------------------

    /// Judges and submits a job (or only judges it, for a dry run).
    pub async fn submit(&self, request: JobRequest, actor: &str) -> Result<Submitted, ServiceError> {
        if let Some(filter) = request.capture.as_ref().and_then(|capture| capture.filter.as_deref()) {
            captures::check_filter(filter).await?;
        }
        let targets = submit::items("targets", &request.targets)?;
        let excluded = submit::items("exclude", &request.exclude)?;
        let mut names = submit::resolve("targets", &targets.names).await?;
        let include = submit::set(&targets, &names);
        let more = submit::resolve("exclude", &excluded.names).await?;
        let exclude = submit::set(&excluded, &more);
        names.extend(more);
        // A system without such a file knows no names of ports.
        let services = Services::parse(&tokio::fs::read_to_string(SERVICES_FILE).await.unwrap_or_default());
        let (seed, random) = (secret::number()?, secret::number()? as u32);
        let dry_run = request.dry_run;
        let mut core = self.core().await;
        let now = self.now();
        let workers = core.registry.workers(now);
        let setting = Setting {
            include: &include,
            exclude: &exclude,
            names: &names,
            policy: &self.inner.config.policy,
            captures: self.inner.config.captures.allow,
            services: &services,
            workers: &workers,
            actor,
            now,
            seed,
        };
        let mut draft = submit::draft(request, setting)?;
        if dry_run {
            return Ok(Submitted { job: None, plan: draft.plan });
        }
        draft.record.spec.id = submit::job_id(now.wall, random);
        let id = core.submit(Job::new(draft.record, draft.space, now)).await?;
        let job = core.job_view(id).await.map_err(internal("read the job"))?;
        Ok(Submitted { job, plan: draft.plan })
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, filter: &JobFilter, cursor: Option<&str>, limit: u32) -> Result<Page<JobView>, ServiceError> {
        let limit = if limit == 0 { 50 } else { limit.min(1_000) };
        let before = cursor.map(|cursor| cursor.parse::<JobId>()).transpose().map_err(|error| invalid("cursor", error))?;
        let ids = self.inner.store.job_ids(&filter.states, before, limit + 1).await.map_err(internal("list the jobs"))?;
        let more = ids.len() > limit as usize;
        let mut items = Vec::with_capacity(ids.len());
        for id in ids.into_iter().take(limit as usize) {
            items.push(self.job(id).await?);
        }
        let next = items.last().filter(|_| more).map(|job: &JobView| job.id.to_string());
        Ok(Page { items, next })
    }

    /// One job.
    pub async fn job(&self, id: JobId) -> Result<JobView, ServiceError> {
        if let Some(view) = self.inner.shared.follow(id) {
            return Ok(JobView::clone(&view.borrow()));
        }
        let view = self.core().await.job_view(id).await.map_err(internal("read the job"))?;
        view.ok_or_else(|| ServiceError::NotFound { what: "job", name: id.to_string() })
    }

    /// Waits until the job's version differs from `since`, or `timeout` has passed; then the job as it stands.
    pub async fn wait_job(&self, id: JobId, since: u64, timeout: Duration) -> Result<JobView, ServiceError> {
        let Some(mut view) = self.inner.shared.follow(id) else { return self.job(id).await };
        // Whether it changed or the time is over: the answer is the job as it stands.
        let _ = tokio::time::timeout(timeout, view.wait_for(|view| view.version != since)).await;
        let now = JobView::clone(&view.borrow());
        Ok(now)
    }

    /// Asks a job to stop. Cancelling twice is no error; cancelling a job that is over is a conflict.
    pub async fn cancel(&self, id: JobId, actor: &str) -> Result<JobView, ServiceError> {
        self.core().await.cancel(id, actor).await?;
        self.job(id).await
    }

    /// What was found.
    pub async fn results(&self, query: &ResultQuery) -> Result<Page<ResultRow>, ServiceError> {
        let limit = rows::page_size(query.limit)? as usize;
        let read = internal("read results");
        let rows: Vec<(ResultRow, String)> = match query.job {
            Some(id) => {
                let look = |job: &Job| (Arc::clone(&job.space), job.record.spec.targets.clone(), job.options().technique);
                let known = self.core().await.with_job(id, look).await.map_err(internal("read the job"))?;
                let (space, targets, technique) = known.ok_or_else(|| ServiceError::NotFound { what: "job", name: id.to_string() })?;
                let include = targets.include.minus(&targets.exclude);
                let query = rows::observation_query(query, &space, &include, targets.ports.as_ref(), id)?;
                let found = self.inner.store.observations(&query).await.map_err(read)?;
                found.iter().filter_map(|found| rows::job_row(found, &space, technique)).collect()
            }
            None => self.inner.store.ports(&rows::port_query(query)?).await.map_err(read)?.iter().map(rows::port_row).collect(),
        };
        let next = rows.last().filter(|_| rows.len() == limit).map(|(_, cursor)| cursor.clone());
        Ok(Page { items: rows.into_iter().map(|(row, _)| row).collect(), next })
    }

    /// Hosts seen on the links of probes.
    pub async fn link_hosts(&self, query: &HostQuery) -> Result<Page<HostRow>, ServiceError> {
        let limit = rows::page_size(query.limit)? as usize;
        let found = self.inner.store.link_hosts(&rows::link_host_query(query)?).await.map_err(internal("read hosts on links"))?;
        let rows: Vec<(HostRow, String)> = found.iter().map(rows::host_row).collect();
        let next = rows.last().filter(|_| rows.len() == limit).map(|(_, cursor)| cursor.clone());
        Ok(Page { items: rows.into_iter().map(|(row, _)| row).collect(), next })
    }

    /// Paths that were traced.
    pub async fn paths(&self, query: &PathsQuery) -> Result<Page<PathRow>, ServiceError> {
        let asked = rows::path_query(query)?;
        let found = self.inner.store.paths(&asked).await.map_err(internal("read paths"))?;
        let next = found.last().filter(|_| found.len() == asked.limit as usize).map(|last| rows::path_cursor(query, last));
        let rows = found.iter().map(rows::path_row);
        // A page of changes may be short, even empty, although `next` says that there is more.
        let mut items: Vec<PathRow> = rows.filter(|row| !query.changes || row.change.is_some()).collect();
        if query.names && !items.is_empty() {
            let found = self.inner.lookup.who(&items.iter().flat_map(rows::path_addrs).collect()).await;
            items.iter_mut().for_each(|row| rows::name_path(row, &found));
        }
        Ok(Page { items, next })
    }

    /// Takes the latest paths that a request selects for what is to be expected; gives how many.
    pub async fn accept_paths(&self, request: &AcceptPaths, actor: &str) -> Result<PathsAccepted, ServiceError> {
        let net = request.addr.parse::<IpNet>().map_err(|error| invalid("addr", error))?;
        let (site, probe) = (request.site.clone(), request.probe.clone());
        let mut query = rows::path_query(&PathsQuery { net: Some(net), site, probe, latest: true, ..PathsQuery::default() })?;
        query.known = request.add;
        let now = self.now().wall;
        let mut accepted = 0;
        loop {
            let found = self.inner.store.paths(&query).await.map_err(internal("read paths"))?;
            let baselines: Vec<PathBaseline> = found.iter().map(|path| rows::baseline(path, request.add, now, actor)).collect();
            if let Some(large) = baselines.iter().find(|baseline| codec::encode(&baseline.way).len() > WAY_MAX) {
                let what = format!("the way to {} has too many alternatives for another one: accept it without `add`", large.dst);
                return Err(invalid("add", what));
            }
            self.inner.store.put_path_baselines(&baselines).await.map_err(internal("accept ways"))?;
            accepted += baselines.len() as u64;
            query.after = found.last().map(rows::path_after);
            if found.len() < query.limit as usize {
                return Ok(PathsAccepted { accepted });
            }
        }
    }

    // ---- captures ---------------------------------------------------------------------------------------------------

    /// Captures, the newest first.
    pub async fn captures(&self, query: &CapturesQuery) -> Result<Page<CaptureView>, ServiceError> {
        let asked = captures::query(query)?;
        let found = self.inner.store.captures(&asked).await.map_err(internal("read captures"))?;
        let next = found.last().filter(|_| found.len() == asked.limit as usize).map(|last| last.row.lease.to_string());
        Ok(Page { items: found.iter().map(captures::view).collect(), next })
    }

    async fn found_capture(&self, lease: LeaseId) -> Result<Option<FoundCapture>, ServiceError> {
        let query = CaptureQuery { lease: Some(lease), limit: 1, ..CaptureQuery::default() };
        Ok(self.inner.store.captures(&query).await.map_err(internal("read captures"))?.pop())
    }

    /// One capture, with who has downloaded it.
    pub async fn capture(&self, lease: LeaseId) -> Result<CaptureView, ServiceError> {
        let found = self.found_capture(lease).await?.ok_or_else(|| captures::missing(lease))?;
        let downloads = self.inner.store.downloads(lease, captures::DOWNLOADS_SHOWN).await.map_err(internal("read downloads"))?;
        Ok(CaptureView { downloads: Some(downloads.iter().map(captures::download).collect()), ..captures::view(&found) })
    }

    /// Somebody begins to download a capture: remembered before the first byte is given.
    pub async fn begin_download(&self, lease: LeaseId, from: u64, actor: &str) -> Result<CaptureView, ServiceError> {
        let found = self.found_capture(lease).await?.ok_or_else(|| captures::missing(lease))?;
        if let Some((at, remover)) = &found.row.removed {
            let message = format!("the bytes of capture {lease} are gone: removed at {}, {remover}", rfc3339(*at));
            return Err(ServiceError::Conflict(message));
        }
        log::info!("{actor} downloads the capture of lease {lease} by probe {}, from byte {from} on", found.probe);
        let download = Download { at: self.now().wall, actor: actor.to_owned(), start: from };
        self.inner.store.note_download(lease, &download).await.map_err(internal("enter a download"))?;
        Ok(captures::view(&found))
    }

    /// The next bytes of a capture's file, from `from` on; none where no more are here now. And how far the capture is.
    pub async fn capture_bytes(&self, lease: LeaseId, from: u64) -> Result<(Vec<u8>, CaptureState), ServiceError> {
        // Looked at first: what comes in between is found the next time.
        let state = self.found_capture(lease).await?.map_or(CaptureState::Removed, |found| captures::view(&found).state);
        let chunks = self.inner.store.capture_chunks(lease, from, captures::CHUNKS_AT_ONCE).await;
        let chunks = chunks.map_err(internal("read bytes of a capture"))?;
        Ok((captures::bytes(&chunks, from).map_err(internal("unpack bytes of a capture"))?, state))
    }

    /// Removes the bytes of a capture. Removing twice is no error.
    pub async fn remove_capture(&self, lease: LeaseId, actor: &str) -> Result<(), ServiceError> {
        // One that still runs would only begin again.
        let found = self.found_capture(lease).await?.ok_or_else(|| captures::missing(lease))?;
        if captures::view(&found).state == CaptureState::Running && !self.job(lease.job).await?.state.is_final() {
            return Err(ServiceError::Conflict(format!(
                "capture {lease} is running: cancel its job first, by `picket job cancel {}`",
                lease.job
            )));
        }
        let removed = self.inner.store.remove_capture(lease, self.now().wall, &format!("by {actor}")).await;
        if removed.map_err(internal("remove a capture"))? {
            log::info!("{actor} removed the capture of lease {lease} by probe {}", found.probe);
        }
        Ok(())
    }

    // ---- probes -----------------------------------------------------------------------------------------------------

    /// Invites a probe: makes it known, and makes a one-time token (again, where the probe has never enrolled).
    pub async fn probe_add(&self, request: ProbeRequest) -> Result<ProbeInvited, ServiceError> {
        let hours = request.token_hours.unwrap_or(TOKEN_HOURS_DEFAULT);
        if !(1..=TOKEN_HOURS_MAX).contains(&hours) {
            return Err(invalid("token_hours", format!("`{hours}` hours are not possible: use 1 to {TOKEN_HOURS_MAX}")));
        }
        let mut core = self.core().await;
        let now = self.now();
        let old = core.registry.get(&request.id).map(|probe| probe.record.clone());
        if let Some(old) = old.as_ref().filter(|old| old.standing == Standing::Enrolled) {
            let message = format!("probe {} is enrolled already: revoke it before it is invited again", old.id);
            return Err(ServiceError::Conflict(message));
        }
        let site = match request.site {
            Some(site) => site,
            None => request.id.as_str().parse().map_err(|error| invalid("site", error))?,
        };
        let mut roles = if request.roles.is_empty() { vec![Role::Scan] } else { request.roles };
        roles.sort_unstable();
        roles.dedup();
        let record = ProbeRecord {
            key: 0,
            id: request.id.clone(),
            site,
            labels: request.labels,
            roles,
            standing: Standing::Invited,
            reason: None,
            since: now.wall,
            created: old.map_or(now.wall, |old| old.created),
            hardware: None,
            version: None,
            last_seen: None,
            birth: None,
            certificate_expires: None,
        };
        let expires = now.wall.after(Duration::from_secs(u64::from(hours) * 3600));
        let secret: [u8; 16] = secret::bytes()?;
        let token = EnrolToken { hash: secret::hash(&secret), expires, used: None };
        let key = self.inner.store.invite(&record, &token).await.map_err(internal("store the invitation"))?;
        core.put_probe(ProbeRecord { key, ..record });
        log::info!("probe {} is invited", request.id);
        let text = Token {
            probe: request.id.clone(),
            urls: self.inner.config.api_urls.clone(),
            ca_sha256: self.inner.pki.ca_fingerprint(),
            secret,
            expires,
        };
        let probe = core.registry.get(&request.id).map(|probe| probe.view());
        let probe = probe.ok_or_else(|| ServiceError::NotFound { what: "probe", name: request.id.to_string() })?;
        Ok(ProbeInvited { probe, token: text.to_string(), expires: rfc3339(expires) })
    }

    /// All probes, by id.
    pub async fn probes(&self) -> Result<Vec<ProbeView>, ServiceError> {
        Ok(self.core().await.registry.iter().map(|probe| probe.view()).collect())
    }

    /// One probe.
    pub async fn probe(&self, id: &ProbeId) -> Result<ProbeView, ServiceError> {
        let view = self.core().await.registry.get(id).map(|probe| probe.view());
        view.ok_or_else(|| ServiceError::NotFound { what: "probe", name: id.to_string() })
    }

    /// Revokes a probe's certificates for good; see [`Service::revoked`].
    pub async fn probe_revoke(&self, id: &ProbeId, reason: &str) -> Result<ProbeView, ServiceError> {
        let mut core = self.core().await;
        let now = self.now();
        let record = core.registry.get(id).map(|probe| probe.record.clone());
        let mut record = record.ok_or_else(|| ServiceError::NotFound { what: "probe", name: id.to_string() })?;
        if record.standing != Standing::Revoked {
            record.standing = Standing::Revoked;
            record.reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
            record.since = now.wall;
            self.inner.store.revoke(&record).await.map_err(internal("store the revocation"))?;
            core.put_probe(record);
            log::warn!("probe {id} is revoked: {reason}");
            core.begin().await.map_err(internal("read its database"))?;
            core.settle().await.map_err(internal("plan without the probe"))?;
        }
        // Also for one that is revoked already: asking again must put into force what failed on the way the first time.
        let serials = self.inner.store.revoked(now.wall).await.map_err(internal("read the revoked certificates"))?;
        self.inner.revoked.send_replace(Arc::new(serials));
        let view = core.registry.get(id).map(|probe| probe.view());
        view.ok_or_else(|| ServiceError::NotFound { what: "probe", name: id.to_string() })
    }

    /// Makes a box a probe: its token is used up, its certificate issued. `peer` is who asks, for the limit on failures.
    pub async fn enrol(&self, request: EnrolRequest, peer: IpAddr) -> Result<EnrolResponse, ServiceError> {
        self.check_failures(peer)?;
        let refused = |why: &str| {
            log::warn!("an enrolment as {} from {peer} was refused: {why}", request.probe);
            self.count_failure(peer);
            // Whether a probe is known, and what was wrong, is nobody's business who has no token.
            ServiceError::Forbidden("the enrolment token is wrong, was used before or has expired: ask for a new one".to_owned())
        };
        let secret: Option<[u8; 16]> = hex::decode(&request.secret).ok().and_then(|bytes| bytes.try_into().ok());
        let hash = secret::hash(&secret.unwrap_or_default());
        let mut core = self.core().await;
        let now = self.now();
        let record = core.registry.get(&request.probe).map(|probe| probe.record.clone());
        let token = match &record {
            Some(record) => self.inner.store.enrol_token(record.key).await.map_err(internal("read the token"))?,
            None => None,
        };
        // The comparison takes the same time wherever it fails.
        let right = secret::equal(&hash, &token.map_or([0; 32], |token| token.hash)) && secret.is_some();
        let (Some(mut record), Some(token)) = (record.filter(|_| right), token) else { return Err(refused("wrong token")) };
        if token.used.is_some() {
            return Err(refused("the token was used before"));
        }
        if now.wall > token.expires || record.standing != Standing::Invited {
            return Err(refused("the token has expired"));
        }
        let issued = match self.inner.pki.issue_probe(&request.csr_pem, &request.probe, date(now.wall)) {
            Ok(issued) => issued,
            Err(error @ PkiError::Request { .. }) => return Err(invalid("csr_pem", error)),
            Err(error) => return Err(internal("issue the certificate")(error)),
        };
        let not_after = millis(issued.not_after);
        record.standing = Standing::Enrolled;
        record.since = now.wall;
        record.hardware = Some(request.hardware.chars().take(200).collect());
        record.version = Some(request.version.chars().take(60).collect());
        record.certificate_expires = Some(not_after);
        let certificate = CertificateRecord { serial: issued.serial, not_after };
        let done = self.inner.store.enrol(&record, &hash, &certificate, now.wall).await.map_err(internal("store the enrolment"))?;
        if !done {
            return Err(refused("the token was used before"));
        }
        core.put_probe(record);
        log::info!("probe {} is enrolled, from {peer}", request.probe);
        Ok(EnrolResponse {
            certificate_pem: issued.certificate_pem,
            ca_pem: self.inner.pki.ca_pem().to_owned(),
            signing_key: hex::encode(self.inner.pki.signing_key().verifying_key().to_bytes()),
            brokers: self.inner.config.brokers.clone(),
            prefix: self.inner.config.prefix.clone(),
        })
    }

    fn check_failures(&self, peer: IpAddr) -> Result<(), ServiceError> {
        let now = self.now().mono;
        let mut failures = self.inner.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, failed| now.since(failed.since) < FAILURE_WINDOW);
        for (who, most) in [(Some(peer), FAILURES_PER_PEER), (None, FAILURES_ALL)] {
            if let Some(failed) = failures.get(&who).filter(|failed| failed.count >= most) {
                return Err(ServiceError::RateLimited { retry_after: FAILURE_WINDOW.saturating_sub(now.since(failed.since)) });
            }
        }
        Ok(())
    }

    fn count_failure(&self, peer: IpAddr) {
        let now = self.now().mono;
        let mut failures = self.inner.failures.lock().unwrap_or_else(PoisonError::into_inner);
        for who in [Some(peer), None] {
            if failures.len() < PEERS_MAX || failures.contains_key(&who) {
                failures.entry(who).or_insert(Failures { count: 0, since: now }).count += 1;
            }
        }
    }

    /// The fleet in a few numbers.
    pub async fn fleet(&self) -> Result<FleetSummary, ServiceError> {
        let core = self.core().await;
        Ok(core.registry.summary(core.running(), self.now()))
    }

    // ---- who may ask ------------------------------------------------------------------------------------------------

    /// Makes `admin.token` (mode 0600) in the data directory where there is none, and makes sure that it is accepted.
    pub async fn ensure_admin_token(&self) -> Result<PathBuf, ServiceError> {
        let path = self.inner.config.data_dir.join("admin.token");
        let text = secret::keep(&path, || Ok(format!("{API_TOKEN_PREFIX}{}", secret::text()?)))?;
        let hash = secret::hash(text.as_bytes());
        let known = self.inner.store.api_tokens().await.map_err(internal("read the API tokens"))?;
        if !known.iter().any(|token| token.hash == hash) {
            // The file decides: what it says is the admin's token, and an older one under that name is void.
            self.inner.store.remove_api_token(ADMIN).await.map_err(internal("store the admin token"))?;
            let token = ApiToken { name: ADMIN.to_owned(), hash, scope: Scope::Admin, created: self.now().wall, expires: None };
            self.inner.store.add_api_token(&token).await.map_err(internal("store the admin token"))?;
        }
        self.reload_tokens().await?;
        Ok(path)
    }

    async fn reload_tokens(&self) -> Result<(), ServiceError> {
        let tokens = self.inner.store.api_tokens().await.map_err(internal("read the API tokens"))?;
        *self.inner.shared.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
        Ok(())
    }

    async fn reload_users(&self) -> Result<(), ServiceError> {
        let users = self.inner.store.users().await.map_err(internal("read the dashboard users"))?;
        let users = users.into_iter().map(|user| (user.name, user.hash)).collect();
        *self.inner.shared.users.write().unwrap_or_else(PoisonError::into_inner) = users;
        Ok(())
    }

    /// Makes an API token.
    pub async fn token_add(&self, name: &str, scope: Scope, life: Option<Duration>) -> Result<TokenMade, ServiceError> {
        check_name("name", name)?;
        let now = self.now().wall;
        let text = format!("{API_TOKEN_PREFIX}{}", secret::text()?);
        let expires = life.map(|life| now.after(life));
        let token = ApiToken { name: name.to_owned(), hash: secret::hash(text.as_bytes()), scope, created: now, expires };
        if !self.inner.store.add_api_token(&token).await.map_err(internal("store the API token"))? {
            return Err(ServiceError::Conflict(format!("there is an API token `{name}` already: revoke it first, or choose another name")));
        }
        self.reload_tokens().await?;
        log::info!("API token {name} made, scope {}", scope.as_str());
        Ok(TokenMade { token: text, view: token_view(&token) })
    }

    /// All API tokens that are good, by name.
    pub async fn tokens(&self) -> Result<Vec<TokenView>, ServiceError> {
        let now = self.now().wall;
        let tokens = self.inner.shared.tokens.read().unwrap_or_else(PoisonError::into_inner);
        Ok(tokens.iter().filter(|token| is_good(token, now)).map(token_view).collect())
    }

    /// Ends an API token at once.
    pub async fn token_revoke(&self, name: &str) -> Result<(), ServiceError> {
        if !self.inner.store.remove_api_token(name).await.map_err(internal("remove the API token"))? {
            return Err(ServiceError::NotFound { what: "API token", name: name.to_owned() });
        }
        log::warn!("API token {name} revoked");
        self.reload_tokens().await
    }

    /// Whose token this is; [`ServiceError::Forbidden`] where it is nobody's.
    pub async fn token_verify(&self, token: &str) -> Result<Bearer, ServiceError> {
        let hash = secret::hash(token.as_bytes());
        let now = self.now().wall;
        let tokens = self.inner.shared.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for known in tokens.iter() {
            if secret::equal(&known.hash, &hash) && is_good(known, now) {
                found = Some(Bearer { name: known.name.clone(), scope: known.scope });
            }
        }
        found.ok_or_else(|| ServiceError::Forbidden("the API token is not known here, was revoked or has expired".to_owned()))
    }

    /// Makes a user of the dashboards' listener, or a new password for one.
    pub async fn dashboard_user_add(&self, name: &str) -> Result<DashboardUserMade, ServiceError> {
        check_name("name", name)?;
        let password = secret::text()?;
        let user = UserRecord { name: name.to_owned(), hash: secret::hash(password.as_bytes()), created: self.now().wall };
        self.inner.store.put_user(&user).await.map_err(internal("store the dashboard user"))?;
        self.reload_users().await?;
        Ok(DashboardUserMade { name: name.to_owned(), password })
    }

    /// Removes a user of the dashboards' listener.
    pub async fn dashboard_user_remove(&self, name: &str) -> Result<(), ServiceError> {
        if !self.inner.store.remove_user(name).await.map_err(internal("remove the dashboard user"))? {
            return Err(ServiceError::NotFound { what: "dashboard user", name: name.to_owned() });
        }
        self.reload_users().await
    }

    /// All users of the dashboards' listener, by name.
    pub async fn dashboard_users(&self) -> Result<Vec<DashboardUser>, ServiceError> {
        let users = self.inner.store.users().await.map_err(internal("read the dashboard users"))?;
        Ok(users.into_iter().map(|user| DashboardUser { name: user.name, created: rfc3339(user.created) }).collect())
    }

    /// Whether this is a user of the dashboards' listener with the right password. Never blocks: the broker asks.
    pub fn dashboard_verify(&self, name: &str, password: impl AsRef<[u8]>) -> bool {
        let known = self.inner.shared.users.read().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        // Passwords are random and made by us: one hash is enough. An unknown user costs the same time.
        secret::equal(&secret::hash(password.as_ref()), &known.unwrap_or_default()) && known.is_some()
    }

    /// The roles of an enrolled probe; `None` for one that is unknown or revoked. Never blocks: the broker asks.
    pub fn probe_roles(&self, id: &ProbeId) -> Option<Vec<Role>> {
        self.inner.shared.roles.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Serial numbers of all revoked certificates; changes when one is revoked. Whoever runs the broker follows it: new
    /// revocation list, sessions cut.
    pub fn revoked(&self) -> watch::Receiver<Arc<Vec<Serial>>> {
        self.inner.revoked.subscribe()
    }

    // ---- the service itself -----------------------------------------------------------------------------------------

    /// Makes all projections anew from the raw records.
    pub async fn rebuild(&self) -> Result<RebuildCounts, ServiceError> {
        // Nothing may come in between reading the leases and writing the projections.
        let mut core = self.core().await;
        let store = &self.inner.store;
        let read = || internal::<StoreError>("read the jobs");
        let mut jobs = Vec::new();
        let mut before = None;
        loop {
            let ids = store.job_ids(&[], before, 1_000).await.map_err(read())?;
            let Some(last) = ids.last().copied() else { break };
            for id in ids {
                jobs.extend(store.job(id).await.map_err(read())?);
            }
            before = Some(last);
        }
        let probes = store.probes().await.map_err(internal("read the probes"))?;
        let mut rebuild = Rebuild::new(jobs, probes);
        let counts = store.rebuild(&mut rebuild).await.map_err(internal("rebuild the projections"))?;
        core.invalidate();
        core.refresh().await.map_err(internal("read its database"))?;
        log::info!("projections rebuilt: {counts:?}");
        Ok(counts)
    }

    /// Whether the controller is well.
    pub async fn health(&self) -> Health {
        let database = self.inner.store.ping().await.err().map(|error| error.to_string());
        Health {
            ok: database.is_none(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            database,
            broker_connected: self.inner.shared.connected.load(Ordering::Relaxed),
            uptime_seconds: self.now().mono.since(self.inner.started.mono).as_secs(),
        }
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &ServiceConfig {
        &self.inner.config
    }

    /// Where its time comes from.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// The fleet's authority.
    pub fn pki(&self) -> &Arc<Pki> {
        &self.inner.pki
    }
}

fn is_good(token: &ApiToken, now: UnixMillis) -> bool {
    token.expires.is_none_or(|end| now <= end)
}

fn token_view(token: &ApiToken) -> TokenView {
    TokenView { name: token.name.clone(), scope: token.scope, created: rfc3339(token.created), expires: token.expires.map(rfc3339) }
}

fn check_name(field: &'static str, name: &str) -> Result<(), ServiceError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
    match (1..=64).contains(&name.len()) && name.bytes().all(good) {
        true => Ok(()),
        false => {
            Err(invalid(field, format!("`{}` is not a name: use 1 to 64 of letters, digits, `-`, `_`, `.` and `@`", name.escape_debug())))
        }
    }
}

#[cfg(test)]
mod tests;
