//! The seam between a protocol's conversation and the sockets: what a dialogue is told, and what it says.
//!
//! **Invariant:** a dialogue owns no socket and no clock; whatever bytes it is given, it neither panics nor works longer than
//! their number warrants.

use picket_wire::service::Service;

/// What a dialogue wants next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this, then hear on.
    Send(Vec<u8>),
    /// Hear on.
    More,
    /// Begin TLS on this connection, then [`Dialogue::on_tls`].
    StartTls,
    /// It is known what serves here.
    Done(Box<Finding>),
    /// This is not the dialogue's protocol.
    Foreign,
}

/// Why no more bytes come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The other side closed, or broke off.
    Closed,
    /// It said nothing for as long as is waited.
    Silence,
    /// It said more than is read.
    Flood,
}

/// A conversation in one protocol, from one connection's start to its end.
pub(super) trait Dialogue: Send {
    /// What to say first; `More` where the other side begins.
    fn start(&mut self) -> Step;

    /// More was heard: `input` is all that was not yet taken. The dialogue drains what it has understood.
    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step;

    /// No more comes; `input` is what was not yet taken. Returns what is known all the same.
    fn on_end(&mut self, input: &[u8], how: End) -> Option<Box<Finding>>;

    /// Nothing was heard for as long as is waited: what to ask instead. `None` ends it.
    fn on_silence(&mut self) -> Option<Step> {
        None
    }

    /// TLS stands, as [`Step::StartTls`] asked; `false` where it failed.
    fn on_tls(&mut self, _stands: bool) -> Step {
        Step::Foreign
    }
}

/// What a dialogue learnt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Finding {
    /// What it says of the service.
    pub service: Service,
    /// What fingerprints may know more about: the database's key and the text, most telling first.
    pub lookups: Vec<(&'static str, String)>,
    /// What is said before the connection is closed, where the protocol has a good-bye.
    pub farewell: &'static [u8],
}

impl Finding {
    /// A finding of protocol `name`.
    pub(super) fn new(name: &str) -> Self {
        Self { service: Service { name: name.to_owned(), ..Service::default() }, ..Self::default() }
    }

    /// Notes a fact; an empty one is none.
    pub(super) fn fact(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.service.facts.push((name.to_owned(), value));
        }
    }

    /// Has fingerprints of database `key` look at `text`.
    pub(super) fn look_up(&mut self, key: &'static str, text: impl Into<String>) {
        let text = text.into();
        if !text.is_empty() {
            self.lookups.push((key, text));
        }
    }

    /// The step that ends a dialogue with this.
    pub(super) fn done(self) -> Step {
        Step::Done(Box::new(self))
    }
}
