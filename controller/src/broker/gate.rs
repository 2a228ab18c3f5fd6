//! What stands between the broker library and the routers, one gate for each session: it answers the library's questions from
//! what TLS or the password has shown, and takes messages before they are routed.
//!
//! Must not know listeners or TLS.
//!
//! **Invariant:** every answer comes from [`acl::may`] for the principal the gate was made for; what the packet says about
//! itself is only compared with it.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mqtt5::QoS;
use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::broker::events::{BrokerEventHandler, ClientConnectEvent, ClientPublishEvent, PublishAction};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::packet::publish::PublishPacket;
use mqtt5::protocol::v5::reason_codes::ReasonCode;
use picket_wire::topic::Topic;
use tokio::time::Instant;

use super::acl::{self, Action, Principal};
use super::embedded::Shared;
use super::guard::{LEVEL_3_1_1, Link};
use super::sessions::{Session, SessionNumber};
use super::{Event, Refusal};
use crate::pki::Peer;

/// Queued messages for a controller from which on probes are held back.
const HIGH_WATER: usize = 256;
/// Longest that one message of a probe is held back.
const HELD_MAX: Duration = Duration::from_secs(10);
/// How often a held-back message looks whether there is room.
const HELD_STEP: Duration = Duration::from_millis(10);
/// Wrong passwords are answered late, which makes guessing slow.
const PASSWORD_PENALTY: Duration = Duration::from_secs(1);

/// What stands between the library and the routers for one fleet session.
pub(super) struct FleetGate {
    shared: Arc<Shared>,
    number: SessionNumber,
    who: Principal,
    shown: Peer,
    peer: SocketAddr,
    link: Arc<Link>,
    /// Seconds, from CONNECT.
    keep_alive: AtomicU16,
    connected: OnceLock<()>,
}

impl FleetGate {
    pub(super) fn new(shared: Arc<Shared>, number: SessionNumber, shown: Peer, peer: SocketAddr, link: Arc<Link>) -> Self {
        let who = Principal::from(shown.identity.clone());
        Self { shared, number, who, shown, peer, link, keep_alive: AtomicU16::new(0), connected: OnceLock::new() }
    }

    /// Ends the session because its certificate has ended.
    pub(super) fn expire(&self) {
        log::info!("{}: its certificate has ended", self.who);
        self.link.cut();
    }

    fn may(&self, action: Action, topic: &str) -> bool {
        let roles = match &self.who {
            Principal::Probe(id) if action == Action::Subscribe => self.shared.hooks.roles(id),
            _ => Vec::new(),
        };
        acl::may(&self.who, &roles, action, topic, &self.shared.prefix)
    }

    /// Looks at CONNECT; the session is this identity's one and only from here on.
    fn connect(&self, connect: &ConnectPacket) -> Result<(), (Refusal, ReasonCode)> {
        self.link.set_level(connect.protocol_version);
        self.keep_alive.store(connect.keep_alive, Ordering::Relaxed);
        if connect.protocol_version != LEVEL_3_1_1 {
            return Err((Refusal::Protocol(connect.protocol_version), ReasonCode::UnsupportedProtocolVersion));
        }
        if connect.client_id != self.shown.identity.name() {
            return Err((Refusal::ClientId(connect.client_id.clone()), ReasonCode::ClientIdentifierNotValid));
        }
        if let Some(will) = &connect.will {
            let fits = will.qos != QoS::ExactlyOnce && self.may(Action::Will { retain: will.retain }, &will.topic);
            if !fits {
                return Err((Refusal::Will(will.topic.clone()), ReasonCode::NotAuthorized));
            }
        }
        for old in self.shared.sessions.accept(self.number) {
            log::info!("{}: a connection from {} takes over from {} after {:?}", self.who, self.peer, old.peer, old.age);
            self.shared.hooks.event(Event::TakenOver { old, peer: self.peer, serial: Some(self.shown.serial.clone()) });
        }
        Ok(())
    }

    fn deny(&self, action: Action, topic: &str) {
        log::warn!("{} from {} may not {action:?} `{}`", self.who, self.peer, topic.escape_debug());
        self.shared.hooks.event(Event::Denied { who: self.who.clone(), action, topic: topic.to_owned() });
        if action != Action::Subscribe {
            self.link.cut();
        }
    }

    fn allow_publish(&self, topic: &str) -> bool {
        if self.link.is_cut() {
            // What comes now is the will, or was read before the cut and is stopped at the next door.
            return !self.shared.sessions.is_revoked(&self.shown.serial) && self.may(Action::Will { retain: false }, topic);
        }
        let action = Action::Publish { retain: false };
        let allowed = self.may(action, topic);
        if !allowed {
            self.deny(action, topic);
        }
        allowed
    }

    /// Takes a message that the library is about to route.
    async fn publish(&self, event: ClientPublishEvent) -> PublishAction {
        let action = Action::Publish { retain: event.retain };
        if self.link.is_cut() {
            return PublishAction::Handled;
        }
        if event.qos == QoS::ExactlyOnce || !self.may(action, &event.topic) {
            self.deny(action, &event.topic);
            return PublishAction::Handled;
        }
        if matches!(self.who, Principal::Probe(_)) {
            self.hold_back().await;
            return PublishAction::Continue;
        }
        // The controller waits for nobody: a slow subscriber gets the message behind its queue.
        let mut packet = PublishPacket::new_v311(event.topic.as_ref(), event.payload, event.qos);
        packet.retain = event.retain;
        let router = match Topic::parse(&self.shared.prefix, &event.topic) {
            Some(Topic::Fleet(_)) => &self.shared.board,
            _ => &self.shared.fleet,
        };
        router.route_message_with_deadline(&packet, Some(&event.client_id), Instant::now()).await;
        PublishAction::Handled
    }

    /// Waits while a controller has much to read.
    async fn hold_back(&self) {
        let keep_alive = Duration::from_secs(self.keep_alive.load(Ordering::Relaxed).into());
        let longest = if keep_alive.is_zero() { HELD_MAX } else { (keep_alive / 2).min(HELD_MAX) };
        let deadline = Instant::now() + longest;
        while self.controller_is_behind() && Instant::now() < deadline && !self.link.is_cut() {
            tokio::time::sleep(HELD_STEP).await;
        }
    }

    fn controller_is_behind(&self) -> bool {
        self.shared.sessions.controllers().iter().any(|name| self.shared.fleet.queue_handle(name).count() > HIGH_WATER)
    }

    /// Leaves the table when the connection is gone.
    pub(super) fn finish(&self, result: mqtt5::Result<()>) {
        if let Err(error) = result {
            log::debug!("{} from {}: {error}", self.who, self.peer);
        }
        let left = self.shared.sessions.leave(self.number);
        if let (Some(session), Some(())) = (left, self.connected.get()) {
            self.shared.hooks.event(Event::Disconnected { session });
        }
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl AuthProvider for FleetGate {
    fn authenticate<'a>(&'a self, connect: &'a ConnectPacket, _: SocketAddr) -> Answer<'a, mqtt5::Result<AuthResult>> {
        let answer = match self.connect(connect) {
            Ok(()) => AuthResult::success(),
            Err((why, code)) => {
                log::warn!("{} from {} was refused: {why:?}", self.who, self.peer);
                self.shared.refuse(self.peer, Some(self.who.clone()), why);
                AuthResult::fail(code)
            }
        };
        Box::pin(std::future::ready(Ok(answer)))
    }

    fn authorize_publish<'a>(&'a self, _: &str, _: Option<&'a str>, topic: &'a str) -> Answer<'a, bool> {
        Box::pin(std::future::ready(self.allow_publish(topic)))
    }

    fn authorize_subscribe<'a>(&'a self, _: &str, _: Option<&'a str>, filter: &'a str) -> Answer<'a, bool> {
        let allowed = !self.link.is_cut() && self.may(Action::Subscribe, filter);
        if !allowed {
            self.deny(Action::Subscribe, filter);
        }
        Box::pin(std::future::ready(allowed))
    }
}

impl BrokerEventHandler for FleetGate {
    fn on_client_connect<'a>(&'a self, _: ClientConnectEvent) -> Answer<'a, ()> {
        if self.connected.set(()).is_ok() {
            let serial = Some(self.shown.serial.clone());
            self.shared.hooks.event(Event::Connected { who: self.who.clone(), serial, peer: self.peer });
        }
        Box::pin(std::future::ready(()))
    }

    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Answer<'a, PublishAction> {
        Box::pin(self.publish(event))
    }
}

/// What stands between the library and the fleet tree for one dashboard. Its user may have many sessions at once.
pub(super) struct BoardGate {
    shared: Arc<Shared>,
    peer: SocketAddr,
    link: Arc<Link>,
    entered: OnceLock<(SessionNumber, Principal)>,
}

impl BoardGate {
    pub(super) fn new(shared: Arc<Shared>, peer: SocketAddr, link: Arc<Link>) -> Self {
        Self { shared, peer, link, entered: OnceLock::new() }
    }

    /// Leaves the table when the connection is gone.
    pub(super) fn finish(&self, result: mqtt5::Result<()>) {
        if let Err(error) = result {
            log::debug!("dashboard from {}: {error}", self.peer);
        }
        if let Some(session) = self.entered.get().and_then(|(number, _)| self.shared.sessions.leave(*number)) {
            self.shared.hooks.event(Event::Disconnected { session });
        }
    }

    async fn connect(&self, connect: &ConnectPacket) -> AuthResult {
        self.link.set_level(connect.protocol_version);
        let user = connect.username.as_deref().unwrap_or_default();
        let password = connect.password.as_deref().unwrap_or_default();
        let right = !user.is_empty() && {
            let _permit = self.shared.password_checks.acquire().await;
            self.shared.hooks.verify_dashboard(user, password).await
        };
        if !right {
            let who = Some(Principal::Dashboard(user.to_owned()));
            log::warn!("dashboard user {user:?} from {}: wrong user name or password", self.peer);
            self.shared.refuse(self.peer, who, Refusal::Password(user.to_owned()));
            tokio::time::sleep(PASSWORD_PENALTY).await;
            return AuthResult::fail(ReasonCode::BadUsernameOrPassword);
        }
        let who = Principal::Dashboard(user.to_owned());
        let session = Session {
            principal: who.clone(),
            serial: None,
            peer: self.peer,
            since: Instant::now(),
            link: Arc::clone(&self.link),
            accepted: false,
        };
        if let Some(number) = self.shared.sessions.enter(session) {
            self.shared.sessions.accept_beside(number);
            if self.entered.set((number, who)).is_err() {
                self.shared.sessions.leave(number);
            }
        }
        AuthResult::success_with_user(user)
    }

    fn may_subscribe(&self, filter: &str) -> bool {
        let Some((_, who)) = self.entered.get() else { return false };
        let allowed = acl::may(who, &[], Action::Subscribe, filter, &self.shared.prefix);
        if !allowed {
            log::debug!("{who} from {} may not subscribe `{}`", self.peer, filter.escape_debug());
            self.shared.hooks.event(Event::Denied { who: who.clone(), action: Action::Subscribe, topic: filter.to_owned() });
        }
        allowed
    }
}

impl AuthProvider for BoardGate {
    fn authenticate<'a>(&'a self, connect: &'a ConnectPacket, _: SocketAddr) -> Answer<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async move { Ok(self.connect(connect).await) })
    }

    // Dashboards publish nothing, their last wills included. People's tools announce themselves on topics of their own, so this
    // is no offence: the message is dropped and acknowledged.
    fn authorize_publish<'a>(&'a self, _: &str, _: Option<&'a str>, _: &'a str) -> Answer<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    fn authorize_subscribe<'a>(&'a self, _: &str, _: Option<&'a str>, filter: &'a str) -> Answer<'a, bool> {
        Box::pin(std::future::ready(self.may_subscribe(filter)))
    }
}

impl BrokerEventHandler for BoardGate {
    fn on_client_connect<'a>(&'a self, _: ClientConnectEvent) -> Answer<'a, ()> {
        if let Some((_, who)) = self.entered.get() {
            self.shared.hooks.event(Event::Connected { who: who.clone(), serial: None, peer: self.peer });
        }
        Box::pin(std::future::ready(()))
    }

    // Nothing gets here, since nothing is authorised; should the library change its mind, the message still goes nowhere.
    fn on_client_publish<'a>(&'a self, _: ClientPublishEvent) -> Answer<'a, PublishAction> {
        Box::pin(std::future::ready(PublishAction::Handled))
    }
}
