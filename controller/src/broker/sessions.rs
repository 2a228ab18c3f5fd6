//! Who is connected: the one table that revocation, disconnection and takeover work on.
//!
//! **Invariant:** a session whose certificate is revoked is not in the table, or is cut: both are decided under one lock, so
//! a certificate cannot be revoked between the check and the entry.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::acl::Principal;
use super::guard::Link;
use crate::pki::Serial;

/// Names one session for as long as the broker runs.
pub(super) type SessionNumber = u64;

/// One connection whose principal is known.
pub(super) struct Session {
    pub(super) principal: Principal,
    pub(super) serial: Option<Serial>,
    pub(super) peer: SocketAddr,
    pub(super) since: Instant,
    pub(super) link: Arc<Link>,
    /// Whether CONNECT was accepted: before that it displaces nobody and is no session to others.
    pub(super) accepted: bool,
}

/// A session as others may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Who it is.
    pub principal: Principal,
    /// By which certificate; none for dashboards.
    pub serial: Option<Serial>,
    /// From where.
    pub peer: SocketAddr,
    /// For how long the connection has existed.
    pub age: std::time::Duration,
}

impl Session {
    fn info(&self) -> SessionInfo {
        SessionInfo { principal: self.principal.clone(), serial: self.serial.clone(), peer: self.peer, age: self.since.elapsed() }
    }
}

#[derive(Default)]
struct Table {
    last: SessionNumber,
    sessions: HashMap<SessionNumber, Session>,
    by_principal: HashMap<Principal, HashSet<SessionNumber>>,
    revoked: HashSet<Serial>,
    controllers: Arc<[String]>,
}

impl Table {
    /// Kept ready because every message of every probe asks for it.
    fn refresh_controllers(&mut self) {
        let names = self.sessions.values().filter(|session| session.accepted).filter_map(|session| match &session.principal {
            Principal::Controller(name) => Some(name.clone()),
            _ => None,
        });
        self.controllers = names.collect();
    }
}

/// The table of sessions.
#[derive(Default)]
pub(super) struct Sessions(Mutex<Table>);

impl Sessions {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session; `None` when its certificate is revoked.
    pub(super) fn enter(&self, session: Session) -> Option<SessionNumber> {
        let mut table = self.table();
        if session.serial.as_ref().is_some_and(|serial| table.revoked.contains(serial)) {
            return None;
        }
        table.last += 1;
        let number = table.last;
        table.by_principal.entry(session.principal.clone()).or_default().insert(number);
        table.sessions.insert(number, session);
        Some(number)
    }

    /// Takes a session out when its connection has ended.
    pub(super) fn leave(&self, number: SessionNumber) -> Option<SessionInfo> {
        let mut table = self.table();
        let session = table.sessions.remove(&number)?;
        if let Some(numbers) = table.by_principal.get_mut(&session.principal) {
            numbers.remove(&number);
            if numbers.is_empty() {
                table.by_principal.remove(&session.principal);
            }
        }
        if matches!(session.principal, Principal::Controller(_)) {
            table.refresh_controllers();
        }
        Some(session.info())
    }

    /// Makes `number` the one session of its principal: earlier accepted ones are cut and returned.
    pub(super) fn accept(&self, number: SessionNumber) -> Vec<SessionInfo> {
        let mut table = self.table();
        let Some(session) = table.sessions.get_mut(&number) else { return Vec::new() };
        session.accepted = true;
        let principal = session.principal.clone();
        if matches!(principal, Principal::Controller(_)) {
            table.refresh_controllers();
        }
        let numbers = table.by_principal.get(&principal).cloned().unwrap_or_default();
        let others = numbers.iter().filter(|other| **other != number).filter_map(|other| table.sessions.get(other));
        others.filter(|other| other.accepted && other.link.cut()).map(Session::info).collect()
    }

    /// Notes that CONNECT was accepted, leaving other sessions of the same principal alone.
    pub(super) fn accept_beside(&self, number: SessionNumber) {
        if let Some(session) = self.table().sessions.get_mut(&number) {
            session.accepted = true;
        }
    }

    /// Replaces the set of revoked certificates and cuts every session that uses one of them; says how many.
    pub(super) fn revoke(&self, serials: &[Serial]) -> usize {
        let mut table = self.table();
        table.revoked = serials.iter().cloned().collect();
        let revoked = |session: &&Session| session.serial.as_ref().is_some_and(|serial| table.revoked.contains(serial));
        table.sessions.values().filter(revoked).filter(|session| session.link.cut()).count()
    }

    /// Whether a certificate is revoked.
    pub(super) fn is_revoked(&self, serial: &Serial) -> bool {
        self.table().revoked.contains(serial)
    }

    /// Cuts every session of `principal`; says how many.
    pub(super) fn disconnect(&self, principal: &Principal) -> usize {
        let table = self.table();
        let numbers = table.by_principal.get(principal).into_iter().flatten();
        numbers.filter_map(|number| table.sessions.get(number)).filter(|session| session.link.cut()).count()
    }

    /// Every accepted session that has not been cut.
    pub(super) fn list(&self) -> Vec<SessionInfo> {
        let table = self.table();
        table.sessions.values().filter(|session| session.accepted && !session.link.is_cut()).map(Session::info).collect()
    }

    /// The client ids of the connected controllers.
    pub(super) fn controllers(&self) -> Arc<[String]> {
        Arc::clone(&self.table().controllers)
    }
}
