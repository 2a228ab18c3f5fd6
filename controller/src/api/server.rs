//! The listener under the API: TLS, bounds on connections and time, and an orderly end.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::Peer;

/// Bounds of the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. Default 2,048.
    pub connections: usize,
    /// Connections at once from one address. Default 256: many people may share one behind NAT.
    pub connections_per_address: usize,
    /// Time for one TLS handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// Time for the head of a request, and between two of them. Default 60 s.
    pub head_timeout: Duration,
    /// How long requests may go on after the end was asked for. Default 2 s.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            connections_per_address: 256,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(60),
            shutdown: Duration::from_secs(2),
        }
    }
}

/// A running listener.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    finished: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

struct Shared {
    router: Router,
    tls: RwLock<Arc<ServerConfig>>,
    limits: Limits,
    connections: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Server {
    /// Serves `router` on `listener`, which must be non-blocking. Must be called within a tokio runtime.
    pub fn start(listener: TcpListener, tls: Arc<ServerConfig>, router: Router, limits: Limits) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let connections = Arc::new(Semaphore::new(limits.connections));
        let shared = Arc::new(Shared { router, tls: RwLock::new(tls), limits, connections, by_address: Mutex::default() });
        let (stop, stopped) = watch::channel(false);
        let (alive, finished) = mpsc::channel(1);
        tokio::spawn(accept(Arc::clone(&shared), listener, stopped, alive));
        Ok(Self { address, shared, stop, finished: tokio::sync::Mutex::new(finished) })
    }

    /// Where it is bound (the real port where 0 was asked for).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Uses another certificate and revocation list for connections from now on.
    pub fn set_tls(&self, tls: Arc<ServerConfig>) {
        *self.shared.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// Accepts nothing more, lets running requests end for a while, and returns when all is gone.
    pub async fn shutdown(&self) {
        let _ = self.stop.send(true);
        let gone = tokio::time::timeout(self.shared.limits.shutdown, async { self.finished.lock().await.recv().await });
        if gone.await.is_err() {
            log::info!("API: requests were still running at the end");
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: tokio::net::TcpListener, mut stopped: watch::Receiver<bool>, alive: mpsc::Sender<()>) {
    loop {
        let Ok(permit) = Arc::clone(&shared.connections).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end(&mut stopped) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let place = Place::take(&shared, peer, permit);
                let (shared, stopped, alive) = (Arc::clone(&shared), stopped.clone(), alive.clone());
                if let Some(place) = place {
                    tokio::spawn(async move {
                        connection(&shared, stream, peer, stopped).await;
                        drop((place, alive));
                    });
                }
            }
            Err(error) => {
                // Out of file descriptors, mostly: what is there must end before there is room again.
                log::warn!("API: accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection's share of the limits; given back when dropped.
struct Place {
    shared: Arc<Shared>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn take(shared: &Arc<Shared>, peer: SocketAddr, permit: OwnedSemaphorePermit) -> Option<Self> {
        let address = peer.ip().to_canonical();
        let mut counts = shared.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= shared.limits.connections_per_address {
            log::debug!("API: too many connections from {address}");
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Self { shared: Arc::clone(shared), address, _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.shared.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Returns when the end was asked for, or whoever could ask is gone.
async fn end(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn connection(shared: &Shared, stream: TcpStream, peer: SocketAddr, mut stopped: watch::Receiver<bool>) {
    // Small answers must not wait for more of them.
    let _ = stream.set_nodelay(true);
    let tls = Arc::clone(&shared.tls.read().unwrap_or_else(PoisonError::into_inner));
    let handshake = tokio::time::timeout(shared.limits.handshake_timeout, TlsAcceptor::from(tls).accept(stream));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return log::debug!("API: TLS with {peer}: {error}"),
        Err(_) => return log::debug!("API: TLS with {peer} took too long"),
    };
    let router = TowerToHyperService::new(shared.router.clone());
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(shared.limits.head_timeout);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = end(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        log::debug!("API: connection with {peer}: {error}");
    }
}
