//! One paced connection: a TCP stream or a connected UDP socket, TLS on top of it where it was begun, bounded reads, and an
//! orderly end however it is let go of.

use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::io;
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use picket_wire::job::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use super::dialogue::End;
use super::tls::layer::{Session, TlsFailure};
use super::toll::Toll;
use super::{DetectOptions, ServiceTarget};
use crate::net::clock;
use crate::net::drive::Gate;
use crate::net::parting::{self, READ_MAX};
use crate::net::price::{Price, SEGMENT};

/// Bytes asked of the kernel at a time.
const CHUNK: usize = 4096;

/// What all connections of a detection share.
pub(super) struct Shared {
    pub(super) options: DetectOptions,
    pub(super) gate: Arc<dyn Gate>,
    pub(super) toll: Toll,
    /// When it began.
    pub(super) begun: crate::net::time::Instant,
    /// Connections at a time.
    pub(super) room: Arc<Semaphore>,
    /// Where connections go to be closed.
    pub(super) closing: mpsc::UnboundedSender<Parting>,
}

/// A port that is being asked.
pub(super) struct Port {
    pub(super) shared: Arc<Shared>,
    pub(super) target: ServiceTarget,
    /// Nanoseconds that its connections waited for their turn.
    waited: AtomicU64,
}

impl Port {
    pub(super) fn new(shared: Arc<Shared>, target: ServiceTarget) -> Self {
        Self { shared, target, waited: AtomicU64::new(0) }
    }

    /// How long its connections waited for the pacers and for room: no fault of the port's.
    pub(super) fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    fn add_waited(&self, span: Duration) {
        self.waited.fetch_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    async fn pay(&self, price: Price) {
        self.add_waited(self.shared.toll.pay(self.target.addr, price).await);
    }

    fn owe(&self, price: Price) {
        self.shared.toll.owe(self.target.addr, price);
    }

    fn is_v4(&self) -> bool {
        self.target.addr.is_ipv4()
    }
}

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// The gate forbids the address.
    Refused,
    /// It did not come about.
    Lost(String),
}

/// What listening came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// More bytes.
    Bytes,
    /// No more of them.
    End(End),
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

/// How the other side of a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Open,
    /// It has said that no more comes.
    Ended,
    /// It broke the connection off: there is nothing left to close.
    Gone,
}

/// A connection that was let go of, until it is closed.
pub(super) struct Parting {
    port: Arc<Port>,
    /// There until it is being closed.
    stream: Option<TcpStream>,
    segment: usize,
    /// What closing costs and was not paid yet.
    unpaid: Option<Price>,
    _room: OwnedSemaphorePermit,
}

/// A connection.
pub(super) struct Conn {
    port: Arc<Port>,
    /// There until the connection is dropped.
    socket: Option<(Socket, OwnedSemaphorePermit)>,
    tls: Option<Box<Session>>,
    /// Most data of a segment.
    segment: usize,
    peer: Peer,
    received: usize,
    /// How long the handshake took: the round trip, about.
    rtt: Duration,
}

impl Conn {
    /// Opens a connection to the port when there is room, the pacers admit it and the gate permits it.
    pub(super) async fn open(port: &Arc<Port>) -> Result<Self, Unopened> {
        // A refused address costs nobody's time.
        check_gate(port)?;
        let begun = clock::now();
        let room = port.shared.room.clone().acquire_owned().await.map_err(|_| Unopened::Lost("the detection has ended".into()))?;
        port.add_waited(clock::now().saturating_since(begun));
        let (socket, rtt) = match port.target.transport {
            Transport::Tcp => {
                let (stream, rtt) = connect(port).await?;
                (Socket::Tcp(stream), rtt)
            }
            Transport::Udp => (Socket::Udp(associate(port).await?), Duration::from_millis(100)),
            Transport::Sctp => return Err(Unopened::Lost("SCTP services are not asked".into())),
        };
        let segment = match &socket {
            Socket::Tcp(stream) => parting::segment(stream),
            Socket::Udp(_) => SEGMENT,
        };
        Ok(Self { port: port.clone(), socket: Some((socket, room)), tls: None, segment, peer: Peer::Open, received: 0, rtt })
    }

    /// The round trip as the handshake showed it.
    pub(super) fn rtt(&self) -> Duration {
        self.rtt
    }

    /// The TLS session on it, if it was begun.
    pub(super) fn tls(&self) -> Option<&Session> {
        self.tls.as_deref()
    }

    /// Says `bytes`, inside TLS where that stands.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(session) => {
                session.write(bytes)?;
                self.flush().await
            }
            None => self.send_raw(bytes).await,
        }
    }

    /// Sends what the TLS session has to say.
    async fn flush(&mut self) -> io::Result<()> {
        let bytes = self.tls.as_mut().map(|session| session.outgoing()).unwrap_or_default();
        if bytes.is_empty() { Ok(()) } else { self.send_raw(&bytes).await }
    }

    async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let v4 = self.port.is_v4();
        let patience = self.port.shared.options.deadlines.follow;
        match &mut self.socket {
            Some((Socket::Tcp(stream), _)) => {
                for piece in bytes.chunks(self.segment) {
                    self.port.pay(Price::segment(v4, piece.len())).await;
                    // A window that stays shut must not hold us.
                    timeout(patience, stream.write_all(piece)).await.map_err(|_| io::ErrorKind::TimedOut)??;
                }
                Ok(())
            }
            Some((Socket::Udp(socket), _)) => {
                self.port.pay(Price::datagram(v4, bytes.len())).await;
                socket.send(bytes).await.map(drop)
            }
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Hears more into `input`, for at most `wait`.
    pub(super) async fn receive(&mut self, input: &mut Vec<u8>, wait: Duration) -> Heard {
        let until = Instant::now() + wait;
        loop {
            match self.tls.as_mut().map(|session| session.read(input)) {
                Some(Ok(0)) | None => {}
                Some(Ok(_)) => return Heard::Bytes,
                Some(Err(_)) => return Heard::End(End::Closed),
            }
            let mut raw = Vec::new();
            let heard = self.receive_raw(&mut raw, until).await;
            match (&mut self.tls, heard) {
                (None, heard) => {
                    input.append(&mut raw);
                    return heard;
                }
                (Some(session), Heard::Bytes) => {
                    // What came before a fault is still to be read; the fault shows in the next round.
                    session.feed(&raw);
                    if self.flush().await.is_err() {
                        return Heard::End(End::Closed);
                    }
                }
                (Some(_), end) => return end,
            }
        }
    }

    async fn receive_raw(&mut self, input: &mut Vec<u8>, until: Instant) -> Heard {
        if self.received >= READ_MAX {
            return Heard::End(End::Flood);
        }
        input.reserve(CHUNK);
        let read = match &mut self.socket {
            Some((Socket::Tcp(stream), _)) => timeout_at(until, stream.read_buf(input)).await,
            Some((Socket::Udp(socket), _)) => timeout_at(until, socket.recv_buf(input)).await,
            None => return Heard::End(End::Closed),
        };
        match read {
            Err(_) => Heard::End(End::Silence),
            Ok(Ok(len)) => {
                self.received += len;
                if self.port.target.transport == Transport::Tcp {
                    self.owe_acknowledgements(len);
                }
                if len == 0 { Heard::End(End::Closed) } else { Heard::Bytes }
            }
            Ok(Err(_)) => {
                self.peer = Peer::Gone;
                Heard::End(End::Closed)
            }
        }
    }

    /// The kernel acknowledges what was heard: `len` bytes, or the end where there are none.
    fn owe_acknowledgements(&mut self, len: usize) {
        let v4 = self.port.is_v4();
        if len > 0 {
            self.port.owe(Price::acknowledgements(v4, len, self.segment));
        } else if self.peer == Peer::Open {
            self.peer = Peer::Ended;
            self.port.owe(Price::acknowledgement(v4));
        }
    }

    /// Begins TLS, waiting `patience` for the first word; `heard` gets the first bytes of who does not speak it.
    pub(super) async fn start_tls(&mut self, session: Session, heard: &mut Vec<u8>, patience: Duration) -> Result<(), TlsFailure> {
        self.tls = Some(Box::new(session));
        let deadlines = self.port.shared.options.deadlines;
        let mut wait = patience + 4 * self.rtt;
        loop {
            self.flush().await.map_err(|_| TlsFailure::Closed)?;
            let session = self.tls.as_mut().ok_or(TlsFailure::Closed)?;
            session.check(heard)?;
            if !session.is_handshaking() {
                return Ok(());
            }
            let mut raw = Vec::new();
            match self.receive_raw(&mut raw, Instant::now() + wait).await {
                Heard::Bytes => {}
                Heard::End(_) if !heard.is_empty() => return Err(TlsFailure::Disagreed("broke off the handshake".into())),
                Heard::End(End::Silence) => return Err(TlsFailure::Silent),
                Heard::End(_) => return Err(TlsFailure::Closed),
            }
            wait = deadlines.follow + 4 * self.rtt;
            if heard.len() < CHUNK {
                heard.extend_from_slice(&raw);
            }
            if let Some(session) = &mut self.tls {
                session.feed(&raw);
            }
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if let Some((Socket::Tcp(stream), room)) = self.socket.take() {
            let unpaid = (self.peer != Peer::Gone).then(|| Price::closing(self.port.is_v4(), self.peer == Peer::Ended));
            let parting = Parting { port: self.port.clone(), stream: Some(stream), segment: self.segment, unpaid, _room: room };
            // Where nobody closes any more, dropping it closes it.
            let _ = self.port.shared.closing.send(parting);
        }
    }
}

impl Drop for Parting {
    fn drop(&mut self) {
        // It is closed without having waited for its turn: others wait for it.
        if let Some(price) = self.unpaid.take() {
            self.port.owe(price);
        }
    }
}

impl Parting {
    /// Closes in order when the pacers admit it.
    pub(super) async fn close(mut self) {
        if let Some(price) = self.unpaid {
            self.port.shared.toll.pay(self.port.target.addr, price).await;
            self.unpaid = None;
        }
        let (port, stream) = (self.port.clone(), self.stream.take());
        if let Some(stream) = stream {
            let segment = self.segment;
            parting::part(stream, |len| port.owe(Price::acknowledgements(port.is_v4(), len, segment))).await;
        }
    }
}

fn check_gate(port: &Port) -> Result<(), Unopened> {
    // The address that the packets will really carry, so asked again each time.
    if port.shared.gate.permits(port.target.addr.to_canonical()) { Ok(()) } else { Err(Unopened::Refused) }
}

fn source(port: &Port) -> Option<SocketAddr> {
    let source = port.shared.options.source;
    let ip = if port.is_v4() { source.v4.map(IpAddr::V4) } else { source.v6.map(IpAddr::V6) };
    ip.map(|ip| SocketAddr::new(ip, 0))
}

fn mark(port: &Port, socket: &impl std::os::fd::AsFd) {
    if let Some(mark) = port.shared.options.mark
        && let Err(error) = setsockopt(socket, sockopt::Mark, &mark)
    {
        log::debug!("a connection is not marked: {error}");
    }
}

/// Connects, with a second attempt where the first SYN or its answer was lost.
async fn connect(port: &Port) -> Result<(TcpStream, Duration), Unopened> {
    let to = SocketAddr::new(port.target.addr, port.target.port);
    for _ in 0..2 {
        port.pay(Price::opening(port.is_v4())).await;
        check_gate(port)?;
        let begun = Instant::now();
        match timeout(port.shared.options.deadlines.connect, attempt(port, to)).await {
            Ok(Ok(stream)) => return Ok((stream, begun.elapsed())),
            Ok(Err(error)) => return Err(Unopened::Lost(reason(&error))),
            Err(_) => {}
        }
    }
    Err(Unopened::Lost("no answer to two SYNs".into()))
}

async fn attempt(port: &Port, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    mark(port, &socket);
    if let Some(from) = source(port) {
        // Best effort: else each port would be taken for all destinations until a minute after its close.
        let _ = setsockopt(&socket, sockopt::IpBindAddressNoPort, &true);
        socket.bind(from)?;
    }
    let stream = socket.connect(to).await?;
    // Questions are small and each is waited for.
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn associate(port: &Port) -> Result<UdpSocket, Unopened> {
    check_gate(port)?;
    let any = SocketAddr::new(if port.is_v4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) }, 0);
    let made = async {
        let socket = UdpSocket::bind(source(port).unwrap_or(any)).await?;
        mark(port, &socket);
        socket.connect(SocketAddr::new(port.target.addr, port.target.port)).await?;
        Ok(socket)
    };
    made.await.map_err(|error: io::Error| Unopened::Lost(reason(&error)))
}

/// An error in a few words.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::HostUnreachable => "host unreachable".into(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".into(),
        _ => error.to_string(),
    }
}
