//! How the controller's messages travel: an MQTT 3.1.1 client with the controller's certificate.
//!
//! Every connection is a new client and a new session: what was on its way when one broke is dropped, and said again when
//! it is asked for (heartbeats show what got lost, the status tree is published anew). The certificate is taken afresh for
//! each connection, so that a renewed one is used without a restart.
//!
//! **Invariant:** nothing is sent before both subscriptions stand: whoever answers is heard.

use std::time::Duration;

use picket_wire::codec::MESSAGE_MAX;
use picket_wire::topic::Filter;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Packet, PublishOptions, QoS, SubscribeReasonCode, TlsConfiguration,
    Transport,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::{Inbound, Outgoing};
use crate::clock::rfc3339;
use crate::errors::chain;
use crate::fleet::publish::Publisher;
use crate::pki::PkiError;
use crate::service::Service;

/// Messages that wait for the database. When there are more, the connection is read no further.
const INBOUND: usize = 64;
/// Messages that are taken together.
const GROUP: usize = 64;
/// Requests that wait for the connection.
const REQUESTS: usize = 256;
/// Messages on their way to the broker.
const INFLIGHT: u16 = 1000;
/// Topic and headers of a message, at most.
const HEADROOM: usize = 1024;
/// How often time passes for the service.
const TICK: Duration = Duration::from_millis(500);
/// The first pause between two connections is random up to this, later ones up to twice as long each.
const BACK_OFF_MIN: Duration = Duration::from_millis(200);
/// And at most this.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// How long connecting and subscribing may take.
const READY: Duration = Duration::from_secs(30);
/// How long the last words may take.
const GOOD_BYE: Duration = Duration::from_secs(2);

/// Where the broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// Host name or address, as the broker's certificate has it.
    pub host: String,
    /// Port of its listener with client certificates.
    pub port: u16,
    /// How often the connection is probed when nothing else goes over it.
    pub keep_alive: Duration,
}

/// The running hub.
#[derive(Debug)]
pub struct Hub {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the controller's certificate cannot be used")]
    Pki(#[from] PkiError),
    #[error("{0}")]
    Options(String),
    #[error(transparent)]
    Connection(Box<ConnectionError>),
    #[error("the broker does not let the controller subscribe to `{0}`")]
    Subscription(String),
    #[error("it did not let the controller in and subscribe within {} s", READY.as_secs())]
    Slow,
    #[error("the service has ended")]
    Ended,
}

impl Hub {
    /// Starts the hub of a service. There can be one: of a second one this gives `None`.
    pub fn start(service: Service, config: HubConfig) -> Option<Self> {
        let outbox = service.take_outbox()?;
        let (stop, stopped) = watch::channel(false);
        let (inbound, messages) = mpsc::channel(INBOUND);
        let tasks = vec![
            tokio::spawn(take_messages(service.clone(), messages)),
            tokio::spawn(tick(service.clone(), stopped.clone())),
            tokio::spawn(connections(service, config, inbound, outbox, stopped)),
        ];
        Some(Self { stop, tasks })
    }

    /// Says good-bye to the dashboards and ends.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            // A task that panicked has said so in the log; it is over in any case.
            let _ = task.await;
        }
    }
}

/// Hands messages to the service until there are none any more. What the database does not take is tried again: it is not
/// acknowledged before, and meanwhile nothing more is read.
async fn take_messages(service: Service, mut messages: mpsc::Receiver<Inbound>) {
    let mut group = Vec::with_capacity(GROUP);
    while messages.recv_many(&mut group, GROUP).await > 0 {
        let mut pause = BACK_OFF_MIN;
        while let Err(error) = service.handle(&group).await {
            log::error!("{}; trying again in {pause:?}", chain(&error));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF_MAX);
            if messages.is_closed() && messages.is_empty() {
                return;
            }
        }
        group.clear();
    }
}

/// Returns when a flag is set, or nobody can set it any more.
async fn set(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|flag| *flag).await;
}

async fn tick(service: Service, mut stopped: watch::Receiver<bool>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = set(&mut stopped) => return,
            _ = interval.tick() => {
                if let Err(error) = service.tick().await {
                    log::error!("{}", chain(&error));
                }
            }
        }
    }
}

async fn connections(
    service: Service,
    config: HubConfig,
    inbound: mpsc::Sender<Inbound>,
    mut outbox: mpsc::UnboundedReceiver<Outgoing>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut failures = 0u32;
    loop {
        let (ready, was_ready) = watch::channel(false);
        let ended = connection(&service, &config, &inbound, &mut outbox, &ready, &mut stopped).await;
        service.set_connected(false).await;
        let Err(error) = ended else { return };
        if *stopped.borrow() {
            return;
        }
        failures = if *was_ready.borrow() { 0 } else { failures.saturating_add(1) };
        let most = BACK_OFF_MIN.saturating_mul(1 << failures.min(10)).min(BACK_OFF_MAX);
        let random = crate::secret::number().unwrap_or(u64::MAX >> 1);
        let pause = most.mul_f64(random as f64 / u64::MAX as f64);
        log::warn!("broker {}:{}: {}; connecting again in {} ms", config.host, config.port, chain(&error), pause.as_millis());
        tokio::select! {
            () = set(&mut stopped) => return,
            () = tokio::time::sleep(pause) => {}
            // Without a connection nothing is heard, so nobody waits for what is said now.
            () = discard(&mut outbox) => return,
        }
    }
}

/// Throws away what is to be sent; returns when nobody can send any more.
async fn discard(outbox: &mut mpsc::UnboundedReceiver<Outgoing>) {
    while outbox.recv().await.is_some() {}
}

fn options(service: &Service, config: &HubConfig) -> Result<MqttOptions, LinkError> {
    let pki = service.pki();
    let tls = pki.controller_tls().client()?;
    let mut options = MqttOptions::new(pki.controller_name(), (config.host.clone(), config.port));
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)))
        .set_keep_alive(u16::try_from(config.keep_alive.as_secs()).unwrap_or(u16::MAX).max(1))
        .set_clean_session(true)
        .set_max_packet_size(MESSAGE_MAX + HEADROOM, MESSAGE_MAX + HEADROOM)
        .set_inflight(INFLIGHT);
    Ok(options)
}

/// One connection, from its beginning to its end; `Ok` when the hub was stopped.
async fn connection(
    service: &Service,
    config: &HubConfig,
    inbound: &mpsc::Sender<Inbound>,
    outbox: &mut mpsc::UnboundedReceiver<Outgoing>,
    ready: &watch::Sender<bool>,
    stopped: &mut watch::Receiver<bool>,
) -> Result<(), LinkError> {
    let builder = AsyncClient::builder(options(service, config)?).capacity(REQUESTS);
    let (client, events) = builder.try_build().map_err(|error| LinkError::Options(error.to_string()))?;
    let forward = forward(&client, outbox, ready.subscribe(), stopped, service);
    tokio::select! {
        error = listen(service, &client, events, inbound, ready) => Err(error),
        ended = forward => ended,
    }
}

/// Drives the connection and hands on what comes, until it breaks.
async fn listen(
    service: &Service,
    client: &AsyncClient,
    mut events: EventLoop,
    inbound: &mpsc::Sender<Inbound>,
    ready: &watch::Sender<bool>,
) -> LinkError {
    let prefix = &service.config().prefix;
    let filters = [Filter::AllEvents, Filter::AllLive].map(|filter| filter.format(prefix));
    let mut granted = 0;
    loop {
        let event = match events.poll().await {
            Ok(Event::Incoming(event)) => event,
            Ok(Event::Outgoing(_)) => continue,
            Err(error) => return LinkError::Connection(Box::new(error)),
        };
        match event {
            Packet::ConnAck(_) => {
                for filter in &filters {
                    if let Err(error) = client.subscribe(filter.as_str(), QoS::AtLeastOnce).await {
                        return LinkError::Options(error.to_string());
                    }
                }
            }
            Packet::SubAck(answer) => {
                if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                    return LinkError::Subscription(filters[granted.min(1)].clone());
                }
                granted += 1;
                if granted == filters.len() {
                    log::info!("connected to the broker");
                    service.set_connected(true).await;
                    ready.send_replace(true);
                }
            }
            Packet::Publish(message) => {
                let topic = String::from_utf8_lossy(&message.topic).into_owned();
                if inbound.send(Inbound { topic, payload: message.payload }).await.is_err() {
                    return LinkError::Ended;
                }
            }
            _ => {}
        }
    }
}

/// Sends what is to be sent once the connection is ready, until the hub is stopped.
async fn forward(
    client: &AsyncClient,
    outbox: &mut mpsc::UnboundedReceiver<Outgoing>,
    mut ready: watch::Receiver<bool>,
    stopped: &mut watch::Receiver<bool>,
    service: &Service,
) -> Result<(), LinkError> {
    tokio::select! {
        () = set(stopped) => return Ok(()),
        () = discard(outbox) => return Ok(()),
        () = set(&mut ready) => {}
        () = tokio::time::sleep(READY) => return Err(LinkError::Slow),
    }
    let send = async |message: Outgoing| {
        let options = PublishOptions::new(QoS::AtLeastOnce).retain(message.retain);
        client.publish(message.topic, message.payload, options).await.map_err(|error| LinkError::Options(error.to_string()))
    };
    loop {
        let message = tokio::select! {
            biased;
            () = set(stopped) => break,
            message = outbox.recv() => message,
        };
        match message {
            Some(message) => send(message).await?,
            None => return Ok(()),
        }
    }
    let now = service.clock().now().wall;
    let (path, payload) = Publisher::good_bye(env!("CARGO_PKG_VERSION"), &rfc3339(now));
    let topic = picket_wire::topic::Topic::Fleet(path).format(&service.config().prefix);
    let last_words = async {
        send(Outgoing { topic, payload, retain: true }).await?;
        // The other half of the connection ends it when everything has been sent.
        client.disconnect().await.map_err(|error| LinkError::Options(error.to_string()))?;
        std::future::pending::<Result<(), LinkError>>().await
    };
    match tokio::time::timeout(GOOD_BYE, last_words).await {
        Ok(ended) => ended,
        Err(_) => Ok(()),
    }
}
