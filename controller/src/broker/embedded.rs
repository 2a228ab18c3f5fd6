//! The broker inside the controller: `mqtt5` behind our own TLS acceptor.
//!
//! The identity of a fleet session is what TLS has verified, never what MQTT says: each connection gets its own gate that knows
//! its certificate's identity, and the client id must equal it. Dashboards have a router of their own into which only messages
//! of the fleet tree are ever put, so that no client id, filter or mistake over there can reach the fleet's.
//!
//! No session outlives its connection and nothing is stored: retained messages live in memory and their writer repeats them
//! after a restart.
//!
//! **A slow subscriber.** 256 messages wait on their way to each session and [`Limits::queued_messages`] or
//! [`Limits::queued_bytes`] behind them.
//! - When the controller does not keep up, probes' messages are held back one by one (up to half a keep-alive, at most ten
//!   seconds each) before they are acknowledged, which stops the probes; only after that they are queued.
//! - When a probe or a dashboard does not keep up, nobody waits for it: its oldest queued message is dropped.
//! - Who reads nothing for one and a quarter of its keep-alive interval while something is to be sent is disconnected.
//!
//! A message that was acknowledged can thus still be lost in a full queue: the acknowledgement that counts is the
//! application's, and a sender repeats what was not acknowledged so.
//!
//! **Invariant:** a message is routed only after [`super::acl::may`] has allowed it for the verified identity.
//! **Invariant:** a fleet session that publishes what it may not, or uses what MQTT 3.1.1 with QoS 0 and 1 does not have, is cut.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use mqtt5::broker::auth::AuthProvider;
use mqtt5::broker::client_handler::ClientHandler;
use mqtt5::broker::config::{BrokerConfig, StorageConfig};
use mqtt5::broker::events::BrokerEventHandler;
use mqtt5::broker::resource_monitor::{ResourceLimits, ResourceMonitor};
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::storage::QueueLimits;
use mqtt5::broker::sys_topics::BrokerStats;
use mqtt5::broker::transport::{BrokerTransport, WebSocketTransport};
use picket_wire::topic::Prefix;
use rustls::ServerConfig;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::acl::Principal;
use super::gate::{BoardGate, FleetGate};
use super::guard::{Guarded, Link, Refused};
use super::sessions::{Session, SessionInfo, Sessions};
use super::{Broker, BrokerError, Event, Hooks, Limits, Refusal, reachable};
use crate::pki::{Crl, Tls, identity_of};

/// Messages on their way to one session before they are queued.
const LANE: usize = 256;
/// How often the library's leavings are swept.
const SWEEP: Duration = Duration::from_secs(60);
/// How long a shutdown waits for sessions.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// Subscriptions of one session: a probe has five at most, a dashboard may have one per topic it shows.
const SUBSCRIPTIONS: usize = 256;
/// Retained messages of the fleet tree; a probe has about ten.
const RETAINED: usize = 1_000_000;

/// Where and how the embedded broker listens.
#[derive(Debug, Clone)]
pub struct Config {
    /// Mutual TLS for probes and controllers; port 8883 by custom.
    pub fleet: SocketAddr,
    /// TLS with user and password for dashboards; port 8884 by custom. None: no such listener.
    pub dashboards: Option<SocketAddr>,
    /// What all topics begin with.
    pub prefix: Prefix,
    /// Bounds.
    pub limits: Limits,
}

/// The broker inside the controller. Dropping it ends it without waiting; [`Broker::shutdown`] waits.
pub struct EmbeddedBroker {
    shared: Arc<Shared>,
    fleet: SocketAddr,
    dashboards: Option<SocketAddr>,
    finished: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl core::fmt::Debug for EmbeddedBroker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EmbeddedBroker").field("fleet", &self.fleet).field("dashboards", &self.dashboards).finish_non_exhaustive()
    }
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) prefix: Prefix,
    limits: Limits,
    pub(super) hooks: Arc<dyn Hooks>,
    pub(super) sessions: Sessions,
    /// For probes and controllers.
    pub(super) fleet: Arc<MessageRouter>,
    /// For dashboards: holds the fleet tree and nothing else.
    pub(super) board: Arc<MessageRouter>,
    tls: RwLock<Tls>,
    fleet_tls: RwLock<Arc<ServerConfig>>,
    board_tls: RwLock<Arc<ServerConfig>>,
    settings: BrokerConfig,
    stats: Arc<BrokerStats>,
    monitor: Arc<ResourceMonitor>,
    fleet_door: Arc<Door>,
    board_door: Arc<Door>,
    /// The number of the revocation list in use; held while it changes.
    crl_number: Mutex<u64>,
    pub(super) password_checks: Semaphore,
    stop: broadcast::Sender<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Fleet,
    Dashboards,
}

impl EmbeddedBroker {
    /// Opens the listeners and serves until [`Broker::shutdown`] or drop. Must be called within a tokio runtime.
    pub async fn start(config: Config, tls: &Tls, crl: &Crl, hooks: Arc<dyn Hooks>) -> Result<Self, BrokerError> {
        let fleet_tls = tls.fleet_server(crl)?;
        let board_tls = tls.dashboard_server()?;
        let fleet_listener = listen(config.fleet).await?;
        let board_listener = match config.dashboards {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let limits = config.limits;
        let queues = QueueLimits { max_messages: limits.queued_messages, max_bytes: limits.queued_bytes };
        let router = || MessageRouter::new().with_fallback_queue_limits(queues).with_retained_limits(RETAINED, limits.packet);
        let shared = Arc::new(Shared {
            prefix: config.prefix,
            hooks,
            sessions: Sessions::default(),
            fleet: Arc::new(router()),
            board: Arc::new(router()),
            tls: RwLock::new(tls.clone()),
            fleet_tls: RwLock::new(fleet_tls),
            board_tls: RwLock::new(board_tls),
            settings: settings(&limits),
            stats: Arc::new(BrokerStats::new()),
            monitor: Arc::new(ResourceMonitor::new(resources(&limits))),
            fleet_door: Arc::new(Door::new(limits.connections, &limits)),
            board_door: Arc::new(Door::new(limits.dashboards, &limits)),
            crl_number: Mutex::new(crl.number),
            password_checks: Semaphore::new(limits.password_checks),
            stop: broadcast::channel(1).0,
            limits,
        });
        shared.sessions.revoke(&crl.serials);
        let (alive, finished) = mpsc::channel(1);
        let fleet = local_address(&fleet_listener, config.fleet)?;
        let dashboards = match &board_listener {
            Some(listener) => Some(local_address(listener, config.fleet)?),
            None => None,
        };
        tokio::spawn(accept(Arc::clone(&shared), fleet_listener, Side::Fleet, alive.clone()));
        if let Some(listener) = board_listener {
            tokio::spawn(accept(Arc::clone(&shared), listener, Side::Dashboards, alive.clone()));
        }
        tokio::spawn(sweep(Arc::clone(&shared), alive));
        log::info!("embedded broker: fleet on {fleet}, dashboards on {}", dashboards.map_or("no port".to_owned(), |a| a.to_string()));
        Ok(Self { shared, fleet, dashboards, finished: tokio::sync::Mutex::new(finished) })
    }

    /// Where the fleet listener is bound (the real port where 0 was asked for).
    pub fn fleet_addr(&self) -> SocketAddr {
        self.fleet
    }

    /// Where the dashboards' listener is bound.
    pub fn dashboard_addr(&self) -> Option<SocketAddr> {
        self.dashboards
    }

    /// Where the controller's own client connects to.
    pub fn client_addr(&self) -> SocketAddr {
        reachable(self.fleet)
    }

    /// Cuts the sessions of one probe, which may come back; gives their number.
    pub fn disconnect_probe(&self, probe: &picket_wire::ids::ProbeId) -> usize {
        self.disconnect(&Principal::Probe(probe.clone()))
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

#[async_trait]
impl Broker for EmbeddedBroker {
    fn update_crl(&self, crl: &Crl) -> Result<usize, BrokerError> {
        let mut number = self.shared.crl_number.lock().unwrap_or_else(PoisonError::into_inner);
        if crl.number < *number {
            log::warn!("embedded broker: revocation list {} came after {}, which stays", crl.number, *number);
            return Ok(0);
        }
        *number = crl.number;
        // The table first: it refuses the revoked even if the list should turn out unusable for TLS.
        let cut = self.shared.sessions.revoke(&crl.serials);
        let config = self.shared.tls.read().unwrap_or_else(PoisonError::into_inner).fleet_server(crl)?;
        *self.shared.fleet_tls.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(cut)
    }

    fn update_tls(&self, tls: &Tls, crl: &Crl) -> Result<(), BrokerError> {
        let (fleet, board) = (tls.fleet_server(crl)?, tls.dashboard_server()?);
        *self.shared.tls.write().unwrap_or_else(PoisonError::into_inner) = tls.clone();
        *self.shared.fleet_tls.write().unwrap_or_else(PoisonError::into_inner) = fleet;
        *self.shared.board_tls.write().unwrap_or_else(PoisonError::into_inner) = board;
        self.update_crl(crl).map(drop)
    }

    fn disconnect(&self, who: &Principal) -> usize {
        self.shared.sessions.disconnect(who)
    }

    fn sessions(&self) -> Vec<SessionInfo> {
        self.shared.sessions.list()
    }

    async fn shutdown(&self) {
        self.shared.stop();
        let mut finished = self.finished.lock().await;
        if tokio::time::timeout(SHUTDOWN, finished.recv()).await.is_err() {
            log::warn!("embedded broker: some sessions did not end within {SHUTDOWN:?}");
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, BrokerError> {
    TcpListener::bind(address).await.map_err(|source| BrokerError::Listen { address, source })
}

fn local_address(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, BrokerError> {
    listener.local_addr().map_err(|source| BrokerError::Listen { address, source })
}

/// The library's settings: nothing stored, nothing but QoS 0 and 1, bounded.
fn settings(limits: &Limits) -> BrokerConfig {
    BrokerConfig {
        max_clients: limits.connections,
        session_expiry_interval: Duration::ZERO,
        max_packet_size: limits.packet,
        topic_alias_maximum: 0,
        maximum_qos: 1,
        shared_subscription_available: false,
        max_subscriptions_per_client: SUBSCRIPTIONS,
        max_retained_messages: RETAINED,
        max_retained_message_size: limits.packet,
        client_channel_capacity: LANE,
        storage_config: StorageConfig { enable_persistence: false, ..StorageConfig::default() },
        sys_topics_enabled: false,
        bind_addresses: Vec::new(),
        ..BrokerConfig::default()
    }
}

fn resources(limits: &Limits) -> ResourceLimits {
    ResourceLimits {
        max_connections: limits.connections,
        max_connections_per_ip: limits.connections,
        max_message_rate_per_client: 0,
        max_bandwidth_per_client: 0,
        ..ResourceLimits::default()
    }
}

impl Shared {
    fn stop(&self) {
        // An error says that nobody is left to stop.
        let _ = self.stop.send(());
    }

    /// Reports a refused connection.
    pub(super) fn refuse(&self, peer: SocketAddr, who: Option<Principal>, why: Refusal) {
        log::debug!("refused a connection from {peer}: {why:?}");
        self.hooks.event(Event::Refused { peer, who, why });
    }
}

/// How many may come in through one listener. Each has its own, so that strangers at the dashboards' cannot shut out probes.
struct Door {
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    per_address: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Door {
    fn new(connections: usize, limits: &Limits) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(connections)),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            per_address: limits.handshakes_per_address,
            by_address: Mutex::default(),
        }
    }

    /// Room for one more connection and its handshake; each is given back on drop.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<(OwnedSemaphorePermit, HandshakeSlot)> {
        let connection = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        let permit = Arc::clone(&self.handshakes).try_acquire_owned().ok()?;
        let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some((connection, HandshakeSlot { door: Arc::clone(self), address, _permit: permit }))
    }
}

struct HandshakeSlot {
    door: Arc<Door>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for HandshakeSlot {
    fn drop(&mut self) {
        let mut counts = self.door.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

async fn sweep(shared: Arc<Shared>, _alive: mpsc::Sender<()>) {
    let mut stop = shared.stop.subscribe();
    let mut tick = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                shared.fleet.sweep_sessions().await;
                shared.board.sweep_sessions().await;
            }
            _ = stop.recv() => return,
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, side: Side, alive: mpsc::Sender<()>) {
    let mut stop = shared.stop.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.recv() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: trying again at once would only burn the processor.
                log::warn!("embedded broker: accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let door = match side {
            Side::Fleet => &shared.fleet_door,
            Side::Dashboards => &shared.board_door,
        };
        let Some((connection, slot)) = door.enter(peer.ip()) else {
            shared.refuse(peer, None, Refusal::Busy);
            continue;
        };
        let (shared, alive) = (Arc::clone(&shared), alive.clone());
        tokio::spawn(async move {
            match side {
                Side::Fleet => serve_fleet(&shared, stream, peer, slot).await,
                Side::Dashboards => serve_dashboard(&shared, stream, peer, slot).await,
            }
            drop((connection, alive));
        });
    }
}

/// The TLS handshake, in time or not at all.
async fn handshake(shared: &Shared, config: Arc<ServerConfig>, stream: TcpStream, peer: SocketAddr) -> Option<TlsStream<TcpStream>> {
    let mut stop = shared.stop.subscribe();
    let result = tokio::select! {
        result = tokio::time::timeout(shared.limits.handshake_timeout, TlsAcceptor::from(config).accept(stream)) => result,
        _ = stop.recv() => return None,
    };
    let why = match result {
        Ok(Ok(stream)) => {
            if let Err(error) = stream.get_ref().0.set_nodelay(true) {
                log::debug!("set TCP_NODELAY for {peer}: {error}");
            }
            return Some(stream);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the handshake took too long".to_owned(),
    };
    shared.refuse(peer, None, Refusal::Tls(why));
    None
}

/// A stream that the library takes as one of its own kinds.
impl WebSocketTransport for Guarded<TlsStream<TcpStream>> {
    fn peer_addr(&self) -> mqtt5::Result<SocketAddr> {
        Err(mqtt5::MqttError::InvalidState("the peer's address is given beside the stream".to_owned()))
    }
}

async fn serve_fleet(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, slot: HandshakeSlot) {
    let config = Arc::clone(&shared.fleet_tls.read().unwrap_or_else(PoisonError::into_inner));
    let Some(stream) = handshake(shared, config, stream, peer).await else { return };
    drop(slot);
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let Some(shown) = leaf.and_then(identity_of) else {
        return shared.refuse(peer, None, Refusal::Nobody);
    };
    let who = Principal::from(shown.identity.clone());
    if !shared.hooks.admit(&shown) {
        return shared.refuse(peer, Some(who), Refusal::NotAdmitted);
    }
    let link = Arc::new(Link::default());
    let session = Session {
        principal: who.clone(),
        serial: Some(shown.serial.clone()),
        peer,
        since: Instant::now(),
        link: Arc::clone(&link),
        accepted: false,
    };
    let Some(number) = shared.sessions.enter(session) else {
        return shared.refuse(peer, Some(who), Refusal::Revoked);
    };
    let life = (shown.not_after - OffsetDateTime::now_utc()).try_into().unwrap_or(Duration::ZERO);
    let gate = Arc::new(FleetGate::new(Arc::clone(shared), number, shown, peer, Arc::clone(&link)));
    let stream = Guarded::new(stream, link, Refused::Cut);
    let mut run = std::pin::pin!(carry(shared, stream, peer, &shared.fleet, &gate));
    let result = tokio::select! {
        result = &mut run => result,
        () = tokio::time::sleep(life) => {
            gate.expire();
            run.await
        }
    };
    gate.finish(result);
}

async fn serve_dashboard(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, slot: HandshakeSlot) {
    let config = Arc::clone(&shared.board_tls.read().unwrap_or_else(PoisonError::into_inner));
    let Some(stream) = handshake(shared, config, stream, peer).await else { return };
    drop(slot);
    let link = Arc::new(Link::default());
    let gate = Arc::new(BoardGate::new(Arc::clone(shared), peer, Arc::clone(&link)));
    let stream = Guarded::new(stream, link, Refused::Acknowledge);
    let result = carry(shared, stream, peer, &shared.board, &gate).await;
    gate.finish(result);
}

/// Gives a connection to the library, which asks `gate` and routes through `router`.
async fn carry<G: AuthProvider + BrokerEventHandler + 'static>(
    shared: &Shared,
    stream: Guarded<TlsStream<TcpStream>>,
    peer: SocketAddr,
    router: &Arc<MessageRouter>,
    gate: &Arc<G>,
) -> mqtt5::Result<()> {
    let handler: Arc<dyn BrokerEventHandler> = Arc::<G>::clone(gate);
    let handler = ClientHandler::new(
        BrokerTransport::WebSocket(Box::new(stream)),
        peer,
        Arc::new(BrokerConfig { event_handler: Some(handler), ..shared.settings.clone() }),
        Arc::clone(router),
        Arc::<G>::clone(gate),
        None,
        Arc::clone(&shared.stats),
        Arc::clone(&shared.monitor),
        shared.stop.subscribe(),
    );
    handler.run().await
}
