//! The stream under one MQTT session: it can be cut at once from outside, and keeps what it carries to MQTT 3.1.1.
//!
//! The broker library answers a refused message to a 3.1.1 client with an MQTT 5 acknowledgement, and a session that was
//! taken over with a DISCONNECT; neither exists in 3.1.1 and clients drop the link over the first. Here such packets are
//! seen before they leave.
//!
//! **Invariant:** once cut, no byte is read or written any more.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The MQTT protocol level of 3.1.1.
pub(super) const LEVEL_3_1_1: u8 = 4;

/// Shared between a session's stream and those who may end it.
#[derive(Debug, Default)]
pub(super) struct Link {
    cut: AtomicBool,
    level: AtomicU8,
    waker: AtomicWaker,
}

impl Link {
    /// Ends the session now; says whether it was still whole.
    pub(super) fn cut(&self) -> bool {
        let first = !self.cut.swap(true, Ordering::SeqCst);
        self.waker.wake();
        first
    }

    /// Whether the session was ended.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// Notes the protocol level of the CONNECT packet.
    pub(super) fn set_level(&self, level: u8) {
        self.level.store(level, Ordering::SeqCst);
    }

    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.waker.register(context.waker());
        if self.is_cut() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

/// What to do when the library answers a refused message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// End the session: a probe that breaks the rules is not to go on.
    Cut,
    /// Acknowledge as 3.1.1 asks (section 3.3.5) and go on: people's tools send greetings to topics of their own.
    Acknowledge,
}

/// A stream with a [`Link`].
#[derive(Debug)]
pub(super) struct Guarded<S> {
    inner: S,
    link: std::sync::Arc<Link>,
    refused: Refused,
    /// Bytes of the current outgoing packet that are still to come.
    left: usize,
    /// A packet of our own that is on its way out: the bytes and how many are written.
    own: Option<([u8; 4], usize)>,
}

/// What is at the start of an outgoing packet.
#[derive(Debug, PartialEq, Eq)]
enum Outgoing {
    /// Passes; its whole length.
    Pass(usize),
    /// To be replaced by this acknowledgement; the whole length of the original.
    Acknowledge([u8; 4], usize),
    /// To be left out; its whole length.
    Skip(usize),
    /// Must not be sent.
    Forbidden,
}

/// Length of the fixed header and of the whole packet (MQTT 3.1.1 section 2.2).
fn packet_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (position, byte) in bytes.get(1..)?.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            let header = position + 2;
            return Some((header, header + length));
        }
    }
    None
}

fn examine(bytes: &[u8], level: u8, refused: Refused) -> Outgoing {
    let Some((header, whole)) = packet_length(bytes) else { return Outgoing::Forbidden };
    if level != LEVEL_3_1_1 {
        return Outgoing::Pass(whole);
    }
    match bytes.first().map(|byte| byte >> 4) {
        // PUBACK, PUBREC: two bytes of packet id in 3.1.1, a reason after it only when the message was refused.
        Some(kind @ (4 | 5)) if whole > header + 2 => match (refused, bytes.get(header..header + 2)) {
            (Refused::Acknowledge, Some(&[high, low])) => Outgoing::Acknowledge([kind << 4, 2, high, low], whole),
            _ => Outgoing::Forbidden,
        },
        // DISCONNECT goes only from client to server in 3.1.1.
        Some(14) => Outgoing::Skip(whole),
        Some(15) => Outgoing::Forbidden,
        _ => Outgoing::Pass(whole),
    }
}

impl<S> Guarded<S> {
    pub(super) fn new(inner: S, link: std::sync::Arc<Link>, refused: Refused) -> Self {
        Self { inner, link, refused, left: 0, own: None }
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    /// Finishes a packet of our own that is on its way.
    fn poll_own(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((bytes, written)) = self.own {
            let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) else { break };
            let count = ready!(Pin::new(&mut self.inner).poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.own = Some((bytes, written + count));
        }
        self.own = None;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.link.check(context)?;
        Pin::new(&mut this.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.link.check(context)?;
        ready!(this.poll_own(context))?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.left == 0 {
            match examine(bytes, this.link.level.load(Ordering::SeqCst), this.refused) {
                Outgoing::Pass(whole) => this.left = whole,
                // The library writes packets whole; a part of one could not be taken back.
                Outgoing::Acknowledge(packet, whole) if bytes.len() >= whole => {
                    this.own = Some((packet, 0));
                    return Poll::Ready(Ok(whole));
                }
                Outgoing::Skip(whole) if bytes.len() >= whole => return Poll::Ready(Ok(whole)),
                _ => {
                    this.link.cut();
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
            }
        }
        let part = bytes.get(..this.left).unwrap_or(bytes);
        let count = ready!(Pin::new(&mut this.inner).poll_write(context, part))?;
        this.left -= count;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.link.check(context)?;
        ready!(this.poll_own(context))?;
        Pin::new(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn outgoing_packets_are_told_apart() {
        use Outgoing::{Acknowledge as Ack, Forbidden, Pass, Skip};
        let refused_puback = [0x40, 4, 1, 2, 0x87, 0];
        let long_publish = [0x30, 0xff, 0x7f, 0, 1, b'a'];
        let table: &[(&str, &[u8], u8, Refused, Outgoing)] = &[
            ("plain acknowledgement", &[0x40, 2, 0, 7], 4, Refused::Cut, Pass(4)),
            ("refusal to a probe", &refused_puback, 4, Refused::Cut, Forbidden),
            ("refusal to a dashboard", &refused_puback, 4, Refused::Acknowledge, Ack([0x40, 2, 1, 2], 6)),
            ("refusal in MQTT 5", &refused_puback, 5, Refused::Acknowledge, Pass(6)),
            ("refusal of QoS 2", &[0x50, 3, 0, 9, 0x87], 4, Refused::Acknowledge, Ack([0x50, 2, 0, 9], 5)),
            ("taken over", &[0xe0, 2, 0x8e, 0], 4, Refused::Cut, Skip(4)),
            ("taken over in MQTT 5", &[0xe0, 2, 0x8e, 0], 5, Refused::Cut, Pass(4)),
            ("AUTH", &[0xf0, 0], 4, Refused::Acknowledge, Forbidden),
            ("long message", &long_publish, 4, Refused::Cut, Pass(3 + 16383)),
            ("before CONNECT was read", &[0x20, 2, 0, 5], 0, Refused::Cut, Pass(4)),
            ("no length", &[0x30], 4, Refused::Cut, Forbidden),
            ("endless length", &[0x30, 0xff, 0xff, 0xff, 0xff, 1], 4, Refused::Cut, Forbidden),
        ];
        for (name, bytes, level, refused, expected) in table {
            assert_eq!(&examine(bytes, *level, *refused), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn packets_pass_in_order_and_refusals_become_acknowledgements() {
        // Four bytes of room make every write a partial one.
        let (near, mut far) = tokio::io::duplex(4);
        let link = Arc::new(Link::default());
        link.set_level(LEVEL_3_1_1);
        let mut guarded = Guarded::new(near, link, Refused::Acknowledge);
        let writer = tokio::spawn(async move {
            guarded.write_all(&[0x30, 5, 0, 1, b'a', b'x', b'y']).await.unwrap();
            guarded.write_all(&[0x40, 4, 1, 2, 0x87, 0]).await.unwrap();
            guarded.write_all(&[0xe0, 2, 0x8e, 0]).await.unwrap();
            guarded.write_all(&[0xd0, 0, 0xd0, 0]).await.unwrap();
            guarded.write_all(&[0x40, 3, 1, 3, 0x87]).await.unwrap();
            guarded.flush().await.unwrap();
        });
        let mut out = Vec::new();
        far.read_to_end(&mut out).await.unwrap();
        writer.await.unwrap();
        assert_eq!(out, [0x30, 5, 0, 1, b'a', b'x', b'y', 0x40, 2, 1, 2, 0xd0, 0, 0xd0, 0, 0x40, 2, 1, 3]);
    }

    #[tokio::test]
    async fn a_cut_wakes_a_waiting_reader_and_a_stuck_writer() {
        for write in [false, true] {
            let (near, far) = tokio::io::duplex(1);
            let link = Arc::new(Link::default());
            let mut guarded = Guarded::new(near, Arc::clone(&link), Refused::Cut);
            let task = tokio::spawn(async move {
                if write { guarded.write_all(&[0x30, 3, 0, 1, b'a']).await } else { guarded.read_u8().await.map(drop) }
            });
            tokio::task::yield_now().await;
            assert!(link.cut() && !link.cut());
            assert_eq!(task.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
            drop(far);
        }
    }
}
