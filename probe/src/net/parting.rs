//! How a connection is closed in order: we say that no more comes, and read what the other side still says, so that the kernel has
//! no cause for a reset.
//!
//! A reset ends a connection as well, and costs less. But it is an error to whoever gets it: servers log it, some of them as an attack, and
//! the stacks of small devices are known to keep what belonged to the connection, or to fail.
//!
//! **Invariant:** it ends within [`FAREWELL`], after [`READ_MAX`] bytes at most, whatever the other side does.

use core::time::Duration;
use std::io;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::price::SEGMENT;

/// How long the other side may take to close after we did.
pub(crate) const FAREWELL: Duration = Duration::from_millis(500);
/// Most bytes read meanwhile.
pub(crate) const READ_MAX: usize = 64 * 1024;
/// Bytes asked of the kernel at a time.
const CHUNK: usize = 4096;

/// Closes `stream`; `heard` is told how many bytes the other side still said, each time that it did. Who goes on talking is left all the
/// same, and a reset or a silent other side ends it as well.
pub(crate) async fn part(stream: TcpStream, heard: impl FnMut(usize)) {
    let _ = timeout(FAREWELL, farewell(stream, heard)).await;
}

async fn farewell(mut stream: TcpStream, mut heard: impl FnMut(usize)) -> io::Result<()> {
    stream.shutdown().await?;
    let mut total = 0;
    while total < READ_MAX {
        stream.readable().await?;
        match read(&stream) {
            Ok(0) => break,
            Ok(len) => {
                total += len;
                heard(len);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads into a buffer that nobody keeps while waiting.
fn read(stream: &TcpStream) -> io::Result<usize> {
    stream.try_read(&mut [0; CHUNK])
}

/// Lets go of `stream` without waiting: in order, unless the other side says something more.
pub(crate) fn part_at_once(stream: TcpStream) {
    // What is not read is answered by a reset.
    let _ = (0..READ_MAX / CHUNK).take_while(|_| read(&stream).is_ok_and(|len| len == CHUNK)).count();
}

/// Most data of a segment on `stream`, by the kernel's word, which knows of options and of the path; no more than an Ethernet frame
/// holds, also where the device would take larger ones, since each frame is paid for alone.
pub(crate) fn segment(stream: &TcpStream) -> usize {
    let agreed = getsockopt(stream, sockopt::TcpMaxSeg).ok().and_then(|most| usize::try_from(most).ok());
    agreed.unwrap_or(SEGMENT).clamp(1, SEGMENT)
}
