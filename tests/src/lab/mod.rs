//! A lab of network namespaces on one machine: real kernels' stacks, real links, nothing outside touched.
//!
//! A [`Lab`] names everything after its owner (process id and start time), so labs run in parallel, and whatever a killed owner
//! left behind is collected when the next lab starts. Namespaces, processes and files are guards: they go when they are dropped,
//! also by a panic.
//!
//! Must not know: how Picket parses, paces or stores. It starts Picket's programs ([`programs`]) and looks at packets
//! ([`watch`]); it shares no packet code with them.
//!
//! Invariant: a lab moves no device of the machine and has no route out of it. Links are veth pairs made inside namespaces; a
//! namespace that holds any other device than lo, veth, tun or bridge fails [`Namespace::check`].
//! Invariant: only 198.18.0.0/15, 192.0.2.0/24 and 2001:db8::/32 are used as addresses (link-local ones apart).
//! Invariant: only processes that a lab started, or that run in a namespace of a lab whose owner is dead, are ever killed.

pub mod answer;
pub mod behind;
pub mod blast;
pub mod chain;
pub mod delay;
pub mod flood;
pub mod link;
mod netns;
mod process;
pub mod programs;
pub mod services;
pub mod sink;
pub mod site;
pub mod target;
pub mod tree;
pub mod truth;
pub mod watch;
pub mod ways;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use netns::{Counters, Namespace};
pub use nix::sys::signal::Signal;
pub use process::{Finished, Proc, Run};

/// What every name of a lab's namespaces starts with, followed by the owner's process id and start time.
const PREFIX: &str = "pk-lab-";
/// What every name of a lab's temporary directory starts with.
const DIR_PREFIX: &str = "picket-lab-";
/// The programs that a lab needs, and the Debian package that holds each.
const NEEDED: [(&str, &str); 5] =
    [("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables"), ("ethtool", "ethtool"), ("tcpdump", "tcpdump")];

/// Says what keeps this process from running a lab, in words for a person; `None` when nothing does.
pub fn missing() -> Option<String> {
    let mut lacks = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        lacks.push("root (network namespaces are made and entered)".to_owned());
    } else if let Err(error) = may_make_namespaces() {
        lacks.push(format!("the right to make network namespaces ({error})"));
    }
    for (program, package) in NEEDED {
        if find_program(program).is_none() {
            lacks.push(format!("the program `{program}` (Debian package {package})"));
        }
    }
    if lacks.is_empty() { None } else { Some(lacks.join(", ")) }
}

/// True when a lab can run here. When it cannot, says so loudly on standard error and returns false, so that a test can return;
/// with `PICKET_REQUIRE_LAB=1` in the environment (as `make test` sets it for root) it panics instead, so that nothing is skipped
/// unseen.
///
/// # Panics
/// When `PICKET_REQUIRE_LAB=1` and something is missing.
#[must_use = "a test must return when the lab cannot run"]
pub fn require_root() -> bool {
    let Some(lacks) = missing() else { return true };
    let required = std::env::var_os("PICKET_REQUIRE_LAB").is_some_and(|v| v == "1");
    assert!(!required, "PICKET_REQUIRE_LAB=1, but this lab test cannot run: missing {lacks}");
    eprintln!("\n*** SKIP: this test needs the lab and did NOT run: missing {lacks} ***\n");
    false
}

/// Root in a container may not; tried in a thread of its own, which takes the namespace with it.
fn may_make_namespaces() -> nix::Result<()> {
    let attempt = std::thread::spawn(|| nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET));
    attempt.join().unwrap_or(Err(nix::errno::Errno::EPERM))
}

/// Waits for a condition: looks every few milliseconds until `look` gives something. `what` names it in the error.
///
/// # Errors
/// When the deadline passes, or `look` fails.
pub fn wait_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look().with_context(|| format!("wait for {what}"))? {
            return Ok(found);
        }
        ensure!(start.elapsed() < deadline, "no {what} within {deadline:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The owner that a lab's names carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot, so that a re-used process id is not taken for the owner.
    start: u64,
}

impl Owner {
    fn this() -> Result<Self> {
        let pid = std::process::id();
        let start = start_time(pid).with_context(|| format!("read the start time of process {pid} from /proc"))?;
        Ok(Self { pid, start })
    }

    /// Reads `<pid>-<start>-...` after a prefix.
    fn parse(name: &str, prefix: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(prefix)?.split('-');
        let owner = Self { pid: parts.next()?.parse().ok()?, start: parts.next()?.parse().ok()? };
        parts.next().map(|_| owner)
    }

    fn alive(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may hold anything; fields are counted after its end.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Removes what labs of dead owners left: their processes, namespaces and temporary directories. Labs of living owners are not
/// touched, nor are directories while `PICKET_LAB_KEEP=1`. Returns the names of what was removed.
///
/// # Errors
/// When the list of namespaces cannot be read. That another process removes the same thing at the same time is no error.
pub fn collect_stale() -> Result<Vec<String>> {
    let mut gone = Vec::new();
    if let Ok(entries) = std::fs::read_dir(netns::DIR) {
        for entry in entries {
            let name = entry.with_context(|| format!("list {}", netns::DIR))?.file_name().to_string_lossy().into_owned();
            if Owner::parse(&name, PREFIX).is_some_and(|owner| !owner.alive()) {
                netns::remove(&name);
                gone.push(name);
            }
        }
    }
    if keep_files() {
        return Ok(gone);
    }
    let temp = std::env::temp_dir();
    for entry in std::fs::read_dir(&temp).with_context(|| format!("list {}", temp.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if Owner::parse(&name, DIR_PREFIX).is_some_and(|owner| !owner.alive()) {
            // A directory of another user, or one that vanished meanwhile: not ours to complain about.
            if std::fs::remove_dir_all(entry.path()).is_ok() {
                gone.push(name);
            }
        }
    }
    Ok(gone)
}

/// One lab: a name for its namespaces and a directory for its files. Clones share it; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Lab(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    prefix: String,
    dir: PathBuf,
    files: AtomicU32,
}

impl Lab {
    /// Starts a lab: checks that one can run, collects what dead owners left, makes the temporary directory.
    ///
    /// `name` is for people who look at `ip netns`: 1 to 12 of `[a-z0-9]`.
    ///
    /// # Errors
    /// When a lab cannot run here (the error says what is missing), the name is wrong, or the directory cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        if name.is_empty() || name.len() > 12 || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            bail!("lab name {name:?}: 1 to 12 characters of a-z and 0-9");
        }
        if let Some(lacks) = missing() {
            bail!("a lab cannot run here: missing {lacks}");
        }
        collect_stale()?;
        widen_machine_queues();
        let owner = Owner::this()?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let tail = format!("{}-{}-{serial}-{name}", owner.pid, owner.start);
        let dir = std::env::temp_dir().join(format!("{DIR_PREFIX}{tail}"));
        std::fs::create_dir(&dir).with_context(|| format!("make the lab's directory {}", dir.display()))?;
        Ok(Self(Arc::new(Inner { prefix: format!("{PREFIX}{tail}"), dir, files: AtomicU32::new(0) })))
    }

    /// The directory for this lab's files. Removed when the lab ends, unless `PICKET_LAB_KEEP=1`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A fresh directory below [`Lab::dir`], for one program's data.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.0.dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(dir)
    }

    /// Writes a file below [`Lab::dir`] and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<PathBuf> {
        let file = self.0.dir.join(name);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    /// Makes a namespace of this lab; it is deleted when its last handle is dropped.
    ///
    /// # Errors
    /// When the kernel refuses, or the namespace does not look as a new one must.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::create(self, name)
    }

    fn prefix(&self) -> &str {
        &self.0.prefix
    }

    fn next_file(&self, stem: &str) -> PathBuf {
        let n = self.0.files.fetch_add(1, Ordering::Relaxed);
        self.0.dir.join(format!("{n:03}-{stem}"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if keep_files() {
            eprintln!("lab: files kept in {} (PICKET_LAB_KEEP=1)", self.dir.display());
            return;
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Files are kept for a person who looks for a fault.
fn keep_files() -> bool {
    std::env::var_os("PICKET_LAB_KEEP").is_some_and(|value| value == "1")
}

/// The per-processor receive queue and the neighbour tables belong to the machine, not to a namespace. Too small ones lose lab
/// packets, which would look like a scanner's loss; they are only ever widened, and a machine that refuses keeps what it has.
fn widen_machine_queues() {
    for (name, least) in [
        ("net/core/netdev_max_backlog", 20_000_u64),
        ("net/ipv4/neigh/default/gc_thresh1", 4_096),
        ("net/ipv4/neigh/default/gc_thresh2", 8_192),
        ("net/ipv4/neigh/default/gc_thresh3", 16_384),
        ("net/ipv6/neigh/default/gc_thresh1", 4_096),
        ("net/ipv6/neigh/default/gc_thresh2", 8_192),
        ("net/ipv6/neigh/default/gc_thresh3", 16_384),
    ] {
        let file = Path::new("/proc/sys").join(name);
        let now = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if now.is_some_and(|now| now < least) {
            let _ = std::fs::write(&file, least.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_owner() {
        let this = Owner::this().unwrap();
        let name = format!("{PREFIX}{}-{}-0-x-router", this.pid, this.start);
        assert_eq!(Owner::parse(&name, PREFIX), Some(this));
        assert!(this.alive());
        assert!(!Owner { start: this.start + 1, ..this }.alive(), "a re-used process id is not the owner");
        for foreign in ["pk-lab-", "pk-lab-12", "pk-lab-12-13", "pk-lab-a-b-c", "pk-other-1-2-3", "default"] {
            assert_eq!(Owner::parse(foreign, PREFIX), None, "{foreign}");
        }
    }

    #[test]
    fn lab_names_are_checked() {
        for bad in ["", "Upper", "a-b", "../x", "abcdefghijklm"] {
            assert!(Lab::new(bad).unwrap_err().to_string().contains("lab name"), "{bad}");
        }
    }
}
