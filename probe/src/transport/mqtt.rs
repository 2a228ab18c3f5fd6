//! MQTT over mutual TLS: the socket shell around one broker connection at a time.
//!
//! A task of its own keeps a session up: connect, subscribe to the probe's own commands, hand messages in and out, notice
//! when the link is dead, wait, connect again. It knows nothing of what the messages say.
//!
//! How it uses its client library, and why:
//! - The client is made anew for every connection. A used one keeps queued and unacknowledged messages and would send them
//!   into the next session; ours come from the spool again, in order.
//! - Polling is never cancelled while connecting (that has its own limit), nor by another event while connected.
//! - The library sends pings only when it has nothing else to say, so a busy sender would not notice a dead link; here
//!   silence of the broker, measured from its last packet of any kind, ends the session.
//! - Writing has no limit of its own either; the same watch covers it.
//! - The packet limit is raised to that of the protocol: exceeding the default of 10 KiB would drop the link.
//!
//! **Invariant:** each [`LinkEvent::Connected`] is followed by exactly one [`LinkEvent::Disconnected`] before the next, and
//! a [`Session`] never sends into another session than its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use picket_wire::codec::MESSAGE_MAX;
use picket_wire::ids::{ProbeId, Role, SessionId};
use picket_wire::topic::{Prefix, Topic};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{LastWill, SubscribeReasonCode};
use rumqttc::{
    AsyncClient, Broker, ConnectionError, EventLoop, Incoming, MqttOptions, NetworkOptions, PublishOptions, SubscribeFilter,
    TlsConfiguration, Transport, ValidatedTopic,
};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::{Backoff, split_address};

/// Longest time to wait for TCP, TLS and the broker's answer together, and for one packet to leave: a satellite or GPRS
/// link is slow, not broken.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// For one of several addresses of a broker, so that a dead one leaves time for the next.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an orderly end: what was published last may still be acknowledged.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages queued for sending; the window of [`super::Delivery`] keeps it far from full.
const QUEUE: usize = 256;
/// Topic and headers beside the payload.
const PACKET_OVERHEAD: usize = 1024;

/// What a session is made of, asked anew for each.
pub struct Beginning {
    /// The session's id.
    pub session: SessionId,
    /// What the broker says for the probe if it vanishes, on its `live` topic.
    pub will: Vec<u8>,
    /// Identity and trust; see [`crate::identity::Identity::tls_config`].
    pub tls: Arc<ClientConfig>,
}

/// Fixed for the life of a link.
pub struct MqttConfig {
    /// Brokers, `host:port`, tried in turn.
    pub brokers: Vec<String>,
    /// The client id: the certificate's common name.
    pub probe: ProbeId,
    /// The topics' prefix.
    pub prefix: Prefix,
    /// Waiting between attempts.
    pub backoff: Backoff,
    /// Ping interval, whole seconds; the broker reports a probe as dead after one and a half of it.
    pub keep_alive: Duration,
    /// Without a packet from the broker for this long the link is dead. At least twice the ping interval.
    pub silence: Duration,
}

impl MqttConfig {
    /// With the usual times: pings every 10 s, dead after 30 s.
    pub fn new(brokers: Vec<String>, probe: ProbeId, prefix: Prefix) -> Self {
        let (keep_alive, silence) = (Duration::from_secs(10), Duration::from_secs(30));
        Self { brokers, probe, prefix, backoff: Backoff::default(), keep_alive, silence }
    }
}

/// Why a session ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The configured text is not an address.
    #[error("`{broker}` is not a broker's address: host:port is expected")]
    Address {
        /// The text.
        broker: String,
    },
    /// Connecting failed: name, network, TLS or MQTT.
    #[error("connect to broker {broker}")]
    Connect {
        /// Its address.
        broker: String,
        /// What happened.
        source: Box<ConnectionError>,
    },
    /// The broker does not let this probe in.
    #[error("broker {broker} refuses this probe: {reason}")]
    Refused {
        /// Its address.
        broker: String,
        /// The broker's code.
        reason: String,
    },
    /// The broker does not let this probe read its own commands, or its role's.
    #[error("broker {broker} refuses the subscription to {topic}: this identity may not read it")]
    Subscription {
        /// Its address.
        broker: String,
        /// The topic.
        topic: String,
    },
    /// The connection was lost.
    #[error("connection to broker {broker} lost")]
    Lost {
        /// Its address.
        broker: String,
        /// What happened.
        source: Box<ConnectionError>,
    },
    /// The broker says nothing, not even answers to pings.
    #[error("broker {broker} has been silent for {} s", silence.as_secs())]
    Silent {
        /// Its address.
        broker: String,
        /// For how long.
        silence: Duration,
    },
    /// [`Link::close`] was called.
    #[error("closed")]
    Closed,
}

/// What happens on the link.
#[derive(Debug)]
pub enum LinkEvent {
    /// A session began; the probe's own commands are subscribed.
    Connected(Session),
    /// The session ended, or an attempt failed; the next attempt is made after `retry_in`.
    Disconnected {
        /// Why.
        reason: LinkError,
        /// The wait before the next attempt.
        retry_in: Duration,
    },
    /// Roles asked for by [`Session::subscribe`] are subscribed, or the first one that is refused.
    Subscribed(SessionId, Result<Vec<Role>, LinkError>),
    /// A message on a subscribed topic.
    Message {
        /// Where; never another probe's.
        topic: Topic,
        /// What.
        payload: Bytes,
    },
}

/// Where a probe may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlet {
    /// Its `evt` topic.
    Events,
    /// Its `live` topic.
    Live,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The session is over; the next one sends everything again.
    #[error("the session is over")]
    Gone,
    /// Too much is waiting to be sent; try again after the next event.
    #[error("too many messages wait to be sent")]
    Busy,
    /// Longer than any broker of ours takes.
    #[error("a message of {0} bytes is longer than the protocol allows ({MESSAGE_MAX})")]
    TooLong(usize),
}

/// One session's way out. Cheap to clone; dead when the session is.
#[derive(Clone)]
pub struct Session {
    id: SessionId,
    broker: Arc<str>,
    client: AsyncClient,
    topics: Arc<Topics>,
    /// Weak: a forgotten session must not keep the events of a closed link open.
    events: mpsc::WeakSender<LinkEvent>,
}

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("broker", &self.broker).finish_non_exhaustive()
    }
}

struct Topics {
    prefix: Prefix,
    commands: String,
    events: ValidatedTopic,
    live: ValidatedTopic,
    live_text: String,
}

impl Topics {
    fn new(probe: &ProbeId, prefix: &Prefix) -> Self {
        let live_text = Topic::ProbeLive(probe.clone()).format(prefix);
        let valid = |text: String| ValidatedTopic::new(text).expect("a formatted topic has no wildcards");
        Self {
            prefix: prefix.clone(),
            commands: Topic::ProbeCmd(probe.clone()).format(prefix),
            events: valid(Topic::ProbeEvt(probe.clone()).format(prefix)),
            live: valid(live_text.clone()),
            live_text,
        }
    }
}

impl Session {
    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Queues a message, QoS 1, not retained.
    ///
    /// # Errors
    /// It was not taken.
    pub fn publish(&self, to: Outlet, payload: Vec<u8>) -> Result<(), PublishError> {
        if payload.len() > MESSAGE_MAX {
            return Err(PublishError::TooLong(payload.len()));
        }
        let topic = match to {
            Outlet::Events => &self.topics.events,
            Outlet::Live => &self.topics.live,
        };
        use rumqttc::ClientError;
        match self.client.try_publish(topic.clone(), payload, PublishOptions::at_least_once()) {
            Ok(()) => Ok(()),
            Err(ClientError::RequestChannelFull(_)) => Err(PublishError::Busy),
            Err(_) => Err(PublishError::Gone),
        }
    }

    /// Asks for the commands of `roles`; [`LinkEvent::Subscribed`] tells the outcome. Asking again is harmless.
    pub fn subscribe(&self, roles: &[Role]) {
        let (session, roles) = (self.clone(), roles.to_vec());
        tokio::spawn(async move {
            let topics: Vec<String> = roles.iter().map(|role| Topic::RoleCmd(*role).format(&session.topics.prefix)).collect();
            let outcome = subscribe(&session.client, &session.broker, &topics).await;
            // A session that ended meanwhile has been reported already.
            if let (Some(outcome), Some(events)) = (outcome, session.events.upgrade()) {
                let _ = events.send(LinkEvent::Subscribed(session.id, outcome.map(|()| roles))).await;
            }
        });
    }
}

/// Subscribes and waits for the broker's word; `None` where the session ended before that.
async fn subscribe(client: &AsyncClient, broker: &str, topics: &[String]) -> Option<Result<(), LinkError>> {
    if topics.is_empty() {
        return Some(Ok(()));
    }
    let filters = topics.iter().map(|topic| SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce));
    let notice = client.subscribe_many_tracked(filters).await.ok()?;
    let codes = notice.wait_async().await.ok()?.return_codes;
    let refused = topics.iter().zip(codes).find(|(_, code)| matches!(code, SubscribeReasonCode::Failure));
    Some(match refused {
        Some((topic, _)) => Err(LinkError::Subscription { broker: broker.to_owned(), topic: topic.clone() }),
        None => Ok(()),
    })
}

/// The running link.
pub struct Link {
    stop: watch::Sender<bool>,
    retry: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Link {
    /// Starts connecting. `begin` is asked for each attempt; `random` must return uniform numbers.
    pub fn start(
        config: MqttConfig,
        begin: impl FnMut() -> Beginning + Send + 'static,
        random: impl FnMut() -> u64 + Send + 'static,
    ) -> (Link, mpsc::Receiver<LinkEvent>) {
        // Little is queued: where the agent does not keep up, the broker is to wait, not this box's memory.
        let (events, receiver) = mpsc::channel(32);
        let (stop, stopped) = watch::channel(false);
        let topics = Arc::new(Topics::new(&config.probe, &config.prefix));
        let retry = Arc::new(Notify::new());
        let runner = Runner { config, topics, events, stopped, retry: Arc::clone(&retry), begin, random };
        (Link { stop, retry, task: tokio::spawn(runner.run()) }, receiver)
    }

    /// Ends the wait before the next attempt (or skips the next one) and forgets the failures: something has changed for the
    /// better, here and not at the controller, so that nobody else does the same at the same time.
    pub fn retry_now(&self) {
        self.retry.notify_one();
    }

    /// Ends in an orderly way: what was published is sent, the last will is not. Takes two seconds as a rule, four at most:
    /// where nobody takes the events meanwhile, the task may wait for that and is left to end with their receiver.
    pub async fn close(self) {
        let _ = self.stop.send(true);
        if tokio::time::timeout(2 * CLOSE_TIMEOUT, self.task).await.is_err() {
            log::warn!("the connection did not end in an orderly way");
        }
    }
}

struct Runner<B, R> {
    config: MqttConfig,
    topics: Arc<Topics>,
    events: mpsc::Sender<LinkEvent>,
    stopped: watch::Receiver<bool>,
    retry: Arc<Notify>,
    begin: B,
    random: R,
}

impl<B: FnMut() -> Beginning + Send, R: FnMut() -> u64 + Send> Runner<B, R> {
    async fn run(mut self) {
        let mut stopped = self.stopped.clone();
        for attempt in 0.. {
            let broker = self.config.brokers.get(attempt % self.config.brokers.len().max(1)).cloned().unwrap_or_default();
            let beginning = (self.begin)();
            let started = Instant::now();
            let reason = self.session(&broker, beginning).await;
            if matches!(reason, LinkError::Closed) {
                return;
            }
            self.config.backoff.session_ended(started.elapsed());
            let retry_in = self.config.backoff.next_delay((self.random)());
            if self.events.send(LinkEvent::Disconnected { reason, retry_in }).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(retry_in) => {}
                () = self.retry.notified() => self.config.backoff.session_ended(Backoff::STABLE),
                () = wait_true(&mut stopped) => return,
            }
        }
    }

    /// One attempt, and the session if it succeeds.
    async fn session(&mut self, broker: &str, beginning: Beginning) -> LinkError {
        let Some((host, port)) = split_address(broker) else {
            return LinkError::Address { broker: broker.to_owned() };
        };
        let options = self.options(host, port, &beginning);
        let (client, mut eventloop) = AsyncClient::builder(options).capacity(QUEUE).build();
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        eventloop.set_network_options(network);

        let mut stopped = self.stopped.clone();
        let connected = tokio::select! {
            connected = eventloop.poll() => connected,
            // The whole client goes with it, so nothing is left half done.
            () = wait_true(&mut stopped) => return LinkError::Closed,
        };
        match connected {
            Ok(_) => {}
            Err(ConnectionError::ConnectionRefused(code)) => {
                return LinkError::Refused { broker: broker.to_owned(), reason: format!("{code:?}") };
            }
            Err(source) => return LinkError::Connect { broker: broker.to_owned(), source: Box::new(source) },
        }
        let session = Session {
            id: beginning.session,
            broker: broker.into(),
            client,
            topics: Arc::clone(&self.topics),
            events: self.events.downgrade(),
        };
        self.converse(session, eventloop, stopped).await
    }

    fn options(&self, host: &str, port: u16, beginning: &Beginning) -> MqttOptions {
        let mut options = MqttOptions::new(self.config.probe.as_str(), Broker::tcp(host, port));
        let tls = TlsConfiguration::Rustls(Arc::clone(&beginning.tls));
        let will = LastWill::new(self.topics.live_text.clone(), beginning.will.clone(), QoS::AtLeastOnce, false);
        options
            .set_transport(Transport::tls_with_config(tls))
            .set_keep_alive(u16::try_from(self.config.keep_alive.as_secs()).unwrap_or(u16::MAX))
            .set_clean_session(true)
            .set_max_packet_size(MESSAGE_MAX + PACKET_OVERHEAD, MESSAGE_MAX + PACKET_OVERHEAD)
            .set_max_request_batch(16)
            .set_last_will(will);
        let address = (host.to_owned(), port);
        options.set_socket_connector(move |_, _| {
            let address = address.clone();
            async move { dial(&address.0, address.1).await }
        });
        options
    }

    /// Subscribes, then passes messages until the session ends.
    async fn converse(&mut self, session: Session, mut eventloop: EventLoop, mut stopped: watch::Receiver<bool>) -> LinkError {
        let broker = session.broker.to_string();
        let client = session.client.clone();
        let commands = [self.topics.commands.clone()];
        let subscribing = tokio::time::timeout(CONNECT_TIMEOUT, subscribe(&client, &broker, &commands));
        tokio::pin!(subscribing);
        let mut session = Some(session);
        let mut heard = Instant::now();
        let mut closing = None;
        loop {
            let poll = eventloop.poll();
            tokio::pin!(poll);
            // Going round here leaves the polling where it is.
            let event = loop {
                let patience = closing.unwrap_or(heard + self.config.silence);
                tokio::select! {
                    biased;
                    event = &mut poll => break event,
                    outcome = &mut subscribing, if session.is_some() => match (outcome, session.take()) {
                        (Ok(Some(Ok(()))), Some(session)) => {
                            if self.events.send(LinkEvent::Connected(session)).await.is_err() {
                                return LinkError::Closed;
                            }
                        }
                        (Ok(Some(Err(refused))), _) => return refused,
                        (Err(_), _) => return LinkError::Silent { broker: broker.clone(), silence: CONNECT_TIMEOUT },
                        // The session is over; polling says why.
                        (Ok(_), _) => {}
                    },
                    () = wait_true(&mut stopped), if closing.is_none() => {
                        closing = Some(Instant::now() + CLOSE_TIMEOUT);
                        let _ = client.try_disconnect_with_timeout(CLOSE_TIMEOUT);
                    }
                    () = tokio::time::sleep_until(patience) => return match closing {
                        Some(_) => LinkError::Closed,
                        None => LinkError::Silent { broker: broker.clone(), silence: self.config.silence },
                    },
                }
            };
            match event {
                Ok(rumqttc::Event::Incoming(packet)) => {
                    heard = Instant::now();
                    if let Incoming::Publish(publish) = packet
                        && !self.deliver(&publish.topic, publish.payload).await
                    {
                        return LinkError::Closed;
                    }
                }
                Ok(rumqttc::Event::Outgoing(_)) => {}
                Err(_) if closing.is_some() => return LinkError::Closed,
                Err(source) => return LinkError::Lost { broker: broker.clone(), source: Box::new(source) },
            }
        }
    }

    /// Passes a message on; `false` where nobody listens any more.
    async fn deliver(&mut self, topic: &Bytes, payload: Bytes) -> bool {
        let known = std::str::from_utf8(topic).ok().and_then(|text| Topic::parse(&self.topics.prefix, text));
        match known {
            Some(topic) => self.events.send(LinkEvent::Message { topic, payload }).await.is_ok(),
            None => {
                log::warn!("the broker delivered a message on a topic that is not ours; it is ignored");
                true
            }
        }
    }
}

/// Connects to the first address of the name that answers.
async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

async fn wait_true(stopped: &mut watch::Receiver<bool>) {
    // A dropped handle is no request to stop: the receiver of events ends the task then.
    if stopped.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
