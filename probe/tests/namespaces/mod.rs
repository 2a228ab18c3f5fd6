//! Two network namespaces of a test's own, for the tests of this package that need real kernels.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Two namespaces, which the caller makes under these names; gone when dropped.
pub(crate) struct Namespaces {
    pub(crate) probe: String,
    pub(crate) target: String,
}

impl Namespaces {
    /// Fresh names that carry `what`; `None`, aloud, for whoever may make no namespaces.
    pub(crate) fn named(what: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: network namespaces need root");
            return None;
        }
        let id = format!("pk-{what}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        Some(Self { probe: format!("{id}-p"), target: format!("{id}-t") })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.probe, &self.target] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

pub(crate) fn sh(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// Runs `work` on a thread inside a namespace.
pub(crate) fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            let file = std::fs::File::open(format!("/var/run/netns/{name}")).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(enter).join().unwrap()
    })
}
