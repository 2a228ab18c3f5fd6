//! What a UDP port is asked: for each well-known service one harmless question that it answers, written from its specification.
//!
//! A question carries a nonce wherever the protocol makes an honest answer repeat one, and [`Payload::judge`] looks for it there.
//! None of them changes anything at the service, logs in or claims to be somebody; those that open half an association (IKE,
//! L2TP, OpenVPN) let it lapse. Questions with small answers are preferred, so that nobody's flood is built from them.
//!
//! It must not know addresses, cookies, scans or time; it is of use to whoever asks a UDP service.
//!
//! **Invariant:** a payload depends on its nonce alone, has no more than [`MAX_LEN`] bytes, and does not match its own judgement,
//! so that a mirror is not taken for a service.

mod manage;
mod media;
mod names;
mod plain;
mod secure;

#[cfg(test)]
mod tests;

/// The longest payload: a QUIC client fills its first datagram to 1,200 bytes (RFC 9000, section 14.1).
pub const MAX_LEN: usize = 1_200;

/// What an answer is, judged by the payload that it should answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It answers this very question: the nonce is there.
    Repeats,
    /// It speaks the protocol, which repeats nothing.
    Plausible,
    /// It speaks the protocol and answers somebody else's question.
    Foreign,
    /// It speaks something else.
    Other,
}

impl Judgement {
    /// [`Judgement::Repeats`] or [`Judgement::Foreign`].
    fn repeats(yes: bool) -> Self {
        if yes { Self::Repeats } else { Self::Foreign }
    }
}

/// One question.
pub struct Payload {
    /// The protocol, as in a service's name.
    pub name: &'static str,
    /// Ports that it is sent to.
    pub ports: &'static [u16],
    /// Where the format is specified.
    pub source: &'static str,
    /// Bits of the nonce that an honest answer repeats.
    pub strength: u8,
    /// Whether answers may come from another port than the one that was asked.
    pub from_elsewhere: bool,
    /// Whether the service is that of machines, which an unexpected datagram may disturb: it is not asked unless somebody insists.
    pub fragile: bool,
    build: fn(u64) -> Vec<u8>,
    judge: fn(u64, &[u8]) -> Option<Judgement>,
}

impl Payload {
    const PLAIN: Payload = Payload {
        name: "",
        ports: &[],
        source: "",
        strength: 0,
        from_elsewhere: false,
        fragile: false,
        build: |_| Vec::new(),
        judge: |_, _| None,
    };

    /// The bytes for a nonce.
    pub fn bytes(&self, nonce: u64) -> Vec<u8> {
        (self.build)(nonce)
    }

    /// What `answer` says to the question with this nonce.
    pub fn judge(&self, nonce: u64, answer: &[u8]) -> Judgement {
        (self.judge)(nonce, answer).unwrap_or(Judgement::Other)
    }
}

impl core::fmt::Debug for Payload {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Payload").field("name", &self.name).field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// All questions. Where several name a port, they are asked one after the other, in this order.
pub fn catalogue() -> impl Iterator<Item = &'static Payload> {
    [names::PAYLOADS, manage::PAYLOADS, media::PAYLOADS, secure::PAYLOADS, plain::PAYLOADS].into_iter().flatten()
}

/// The questions for a port, in order.
pub fn payloads_for(port: u16) -> impl Iterator<Item = &'static Payload> {
    catalogue().filter(move |payload| payload.ports.contains(&port))
}

/// The first question for a port, where there is one. Others get an empty datagram.
pub fn payload_for(port: u16) -> Option<&'static Payload> {
    payloads_for(port).next()
}

/// `N` bytes at `at`.
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    chunk(bytes, at).map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    chunk(bytes, at).map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    chunk(bytes, at).map(u64::from_be_bytes)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
