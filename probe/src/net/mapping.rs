//! Memory that is shared with the kernel: the rings of packet sockets.
//!
//! It must not know what lies in it.
//!
//! Invariant: every offset is checked. What the other side may write meanwhile is read by copying or atomically; a slice is given only
//! to who knows that the other side keeps off.
#![allow(unsafe_code, reason = "memory that is shared with the kernel has no safe wrapper")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

/// A mapping, for as long as the value lives.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread; the kernel's accesses go on whichever thread
// holds it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes: of `file` from `offset` on, or fresh ones.
    pub(super) fn new(len: usize, file: Option<(&OwnedFd, u64)>) -> io::Result<Self> {
        let (flags, fd, offset) = match file {
            Some((fd, offset)) => (libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE, -1, 0),
        };
        let offset = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory that is in use.
        let start = unsafe { libc::mmap64(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("memory mapped at address zero"))?;
        Ok(Self { start, len })
    }

    /// The address of its first byte.
    pub(super) fn start(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The address of a `T` at `offset`; `None` where it would not lie in the mapping, aligned.
    pub(super) fn at<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        // SAFETY: `offset` is within the mapping, which is one allocation.
        let place = (end <= self.len).then(|| unsafe { self.start.add(offset) })?.cast::<T>();
        place.is_aligned().then_some(place)
    }

    /// The word at `offset` by which both sides agree whose turn it is.
    pub(super) fn word(&self, offset: usize) -> Option<&AtomicU32> {
        // SAFETY: `at` found it inside the mapping and aligned; the mapping lives as long as the reference; both sides access
        // it atomically.
        self.at(offset).map(|place| unsafe { AtomicU32::from_ptr(place.as_ptr()) })
    }

    /// The `len` bytes at `offset`; `None` where they do not lie in the mapping.
    ///
    /// # Safety
    /// Nobody may write them while the slice is in use: their word must have said that they are ours.
    pub(super) unsafe fn bytes(&self, offset: usize, len: usize) -> Option<&[u8]> {
        let end = offset.checked_add(len)?;
        // SAFETY: they lie in the mapping (just checked), which lives as long as the reference; the caller vouches for the rest.
        (end <= self.len).then(|| unsafe { std::slice::from_raw_parts(self.start.add(offset).as_ptr(), len) })
    }

    /// Copies `bytes` to `offset`; whether they fit.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len);
        if fits {
            // SAFETY: the destination lies in the mapping (just checked), which `&mut self` gives to us alone but for the
            // kernel, which reads nothing that we write meanwhile; `bytes` is other memory.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(offset).as_ptr(), bytes.len()) };
        }
        fits
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `mmap64` returned; nothing refers to it after this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
