//! Network namespaces, the links between them, and entering them.
//!
//! Invariant: every link is a veth pair whose two ends are made inside namespaces of the lab; none ever exists in the machine's
//! own namespace.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use super::{Finished, Lab, Proc, Run};

/// Where iproute2 keeps named namespaces.
pub(super) const DIR: &str = "/run/netns";

/// Devices that some kernels put, down, into every new namespace when their tunnel modules are loaded.
const FALLBACK_TUNNELS: [&str; 10] =
    ["sit0", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0", "ip6gretap0"];

/// Handle of a namespace of the lab. Clones share it; with the last one, whatever runs in it is killed and it is deleted.
#[derive(Clone)]
pub struct Namespace(Arc<Inner>);

struct Inner {
    name: String,
    short: String,
    lab: Lab,
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({})", self.0.name)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

impl Namespace {
    pub(super) fn create(lab: &Lab, short: &str) -> Result<Self> {
        ensure!(
            !short.is_empty() && short.len() <= 32 && short.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "namespace name {short:?}: 1 to 32 characters of a-z, 0-9 and -"
        );
        let name = format!("{}-{short}", lab.prefix());
        tool("ip", &["netns", "add", &name], None)?;
        // From here on the guard removes it.
        let this = Self(Arc::new(Inner { name, short: short.to_owned(), lab: lab.clone() }));
        ensure!(this.identity()? != identity_of(Path::new("/proc/thread-self/ns/net"))?, "{this} is this process's own namespace");
        this.sysctls(&[
            // Every address is usable at once, none is made up by a router's word, and none is lost with the link.
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/dad_transmits", "0"),
            ("net/ipv6/conf/all/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
            ("net/ipv6/conf/all/keep_addr_on_down", "1"),
            ("net/ipv6/conf/default/keep_addr_on_down", "1"),
            // Paths may be asymmetric in a lab, and the kernel must not help the routing along.
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/default/accept_redirects", "0"),
            // Unreachables and time-exceeded are part of what is measured: no limit on them.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
            // Datagram ICMP sockets for the lab's own pings.
            ("net/ipv4/ping_group_range", "0 0"),
        ])?;
        // Per namespace only in newer kernels; older ones have one budget for the machine, which is not ours to change.
        let _ = this.sysctls(&[("net/ipv4/icmp_msgs_per_sec", "1000000"), ("net/ipv4/icmp_msgs_burst", "100000")]);
        this.ip(&["link", "set", "lo", "up"])?;
        this.check()?;
        Ok(this)
    }

    /// Its full name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its name within the lab.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0.short
    }

    /// The lab it belongs to.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.0.lab
    }

    /// Runs one `ip` command in it and returns its output.
    ///
    /// # Errors
    /// When `ip` fails; the error holds the command and what it said.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        tool("ip", &[&["-n", self.name()], args].concat(), None)
    }

    /// Runs many `ip` commands (one a line, without the word `ip`) in one process.
    ///
    /// # Errors
    /// When one fails.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        tool("ip", &["-n", self.name(), "-batch", "-"], Some(lines)).map(drop)
    }

    /// Runs one `tc` command in it.
    ///
    /// # Errors
    /// When `tc` fails.
    pub fn tc(&self, args: &[&str]) -> Result<String> {
        tool("tc", &[&["-n", self.name()], args].concat(), None)
    }

    /// Loads an nftables ruleset into it.
    ///
    /// # Errors
    /// When `nft` refuses it.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        // From a file: `nft -f -` reads a pipe in small pieces, which is slow for big sets.
        let file = self.lab().next_file(&format!("{}.nft", self.short()));
        std::fs::write(&file, ruleset).with_context(|| format!("write {}", file.display()))?;
        let path = file.to_str().context("the lab's directory is not UTF-8")?;
        tool("ip", &["netns", "exec", self.name(), "nft", "-f", path], None).map(drop)
    }

    /// Sets kernel parameters of the namespace, named as paths below `/proc/sys`.
    ///
    /// # Errors
    /// When one is not there or refuses the value.
    pub fn sysctls(&self, values: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (name, value) in values {
                let file = Path::new("/proc/sys").join(name);
                std::fs::write(&file, value).with_context(|| format!("set {} to {value} in {self}", file.display()))?;
            }
            Ok(())
        })?
    }

    /// Runs a closure in a thread that has entered the namespace: sockets opened in it belong there, and stay there wherever they
    /// are moved. A panic in the closure goes on in the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let file = Path::new(DIR).join(self.name());
        let handle = File::open(&file).with_context(|| format!("open {}", file.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || setns(&handle, CloneFlags::CLONE_NEWNET).map(|()| f()));
            match thread.join() {
                Ok(entered) => entered.with_context(|| format!("enter {self}")),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a program in it.
    ///
    /// # Errors
    /// When it cannot be started. (That the program itself does not exist shows as its ending with status 255.)
    pub fn spawn(&self, run: &Run) -> Result<Proc> {
        run.spawn(self)
    }

    /// Runs a program in it to its end.
    ///
    /// # Errors
    /// When it cannot be started, or is still running at the deadline (it is killed then). A bad exit status is no error here: see
    /// [`Finished::ok`].
    pub fn run(&self, run: &Run, deadline: Duration) -> Result<Finished> {
        self.spawn(run)?.finish(deadline)
    }

    /// Connects it with another namespace by a veth pair; both ends are up and their offloads are off, so that what is captured is
    /// what is sent.
    ///
    /// # Errors
    /// When a name is too long or taken, or the kernel refuses.
    pub fn link(&self, device: &str, other: &Self, other_device: &str) -> Result<()> {
        for name in [device, other_device] {
            ensure!(!name.is_empty() && name.len() <= 15, "device name {name:?}: 1 to 15 characters");
        }
        self.ip(&["link", "add", device, "type", "veth", "peer", "name", other_device, "netns", other.name()])?;
        for (namespace, device) in [(self, device), (other, other_device)] {
            namespace.offloads_off(device)?;
            namespace.ip(&["link", "set", device, "up"])?;
        }
        Ok(())
    }

    fn offloads_off(&self, device: &str) -> Result<()> {
        let args = ["netns", "exec", self.name(), "ethtool", "-K", device];
        let off = ["tx", "off", "rx", "off", "gro", "off", "gso", "off", "tso", "off"];
        tool("ip", &[&args[..], &off[..]].concat(), None).map(drop)
    }

    /// Makes a bridge, without spanning tree and multicast snooping, so that it forwards from its first frame.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bridge(&self, device: &str) -> Result<()> {
        self.ip(&["link", "add", device, "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"])?;
        self.ip(&["link", "set", device, "up"]).map(drop)
    }

    /// Puts a device under a bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enslave(&self, device: &str, bridge: &str) -> Result<()> {
        self.ip(&["link", "set", device, "master", bridge]).map(drop)
    }

    /// Adds an address with its prefix length, usable at once.
    ///
    /// # Errors
    /// When it is not of the lab's prefixes, or the kernel refuses.
    pub fn address(&self, device: &str, address: IpAddr, prefix_length: u8) -> Result<()> {
        ensure!(super::truth::permitted(address), "{address} is outside the prefixes that a lab may use");
        let text = format!("{address}/{prefix_length}");
        let nodad: &[&str] = if address.is_ipv6() { &["nodad"] } else { &[] };
        self.ip(&[&["address", "add", &text, "dev", device], nodad].concat()).map(drop)
    }

    /// Adds a route by a gateway; `"default"` as destination is a default route.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn route(&self, destination: &str, gateway: IpAddr) -> Result<()> {
        let family = if gateway.is_ipv6() { "-6" } else { "-4" };
        self.ip(&[family, "route", "add", destination, "via", &gateway.to_string()]).map(drop)
    }

    /// Makes it forward IPv4 and IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forward(&self) -> Result<()> {
        self.sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])
    }

    /// Takes a device down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn down(&self, device: &str) -> Result<()> {
        self.ip(&["link", "set", device, "down"]).map(drop)
    }

    /// Takes a device up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn up(&self, device: &str) -> Result<()> {
        self.ip(&["link", "set", device, "up"]).map(drop)
    }

    /// Limits what leaves by a device with a token bucket (tbf): bits per second of L2 frames, burst in bytes, queue in bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn limit(&self, device: &str, bits_per_second: u64, burst: u32, queue: u32) -> Result<()> {
        let (rate, burst, queue) = (format!("{bits_per_second}bit"), burst.to_string(), queue.to_string());
        self.tc(&["qdisc", "replace", "dev", device, "root", "tbf", "rate", &rate, "burst", &burst, "limit", &queue]).map(drop)
    }

    /// Lets received frames of a device be handled by the given processors (a bit mask): stands in for "another machine".
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn receive_on(&self, device: &str, processors: u32) -> Result<()> {
        // sysfs shows the namespace that it was mounted in, and `ip netns exec` mounts it anew.
        let script = format!("echo {processors:x} > /sys/class/net/{device}/queues/rx-0/rps_cpus");
        tool("ip", &["netns", "exec", self.name(), "sh", "-c", &script], None).map(drop)
    }

    /// The hardware address of a device.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn hardware_address(&self, device: &str) -> Result<[u8; 6]> {
        let links = self.links(&["dev", device])?;
        let text = links.iter().find_map(|link| link["address"].as_str()).with_context(|| format!("no address of {device} in {self}"))?;
        let mut address = [0_u8; 6];
        hex::decode_to_slice(text.replace(':', ""), &mut address).with_context(|| format!("hardware address {text:?} of {device}"))?;
        Ok(address)
    }

    /// The kernel's counters of a device.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn counters(&self, device: &str) -> Result<Counters> {
        let text = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?.context("read /proc/thread-self/net/dev")?;
        let line = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))
            .with_context(|| format!("no device {device} in {self}"))?;
        let fields: Vec<u64> = line.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        ensure!(fields.len() >= 12, "counters of {device} in {self}: {line:?}");
        Ok(Counters {
            received_bytes: fields[0],
            received_packets: fields[1],
            received_dropped: fields[3],
            sent_bytes: fields[8],
            sent_packets: fields[9],
            sent_dropped: fields[11],
        })
    }

    /// Checks the lab's promise: only lo, veth, tun and bridge devices here.
    ///
    /// # Errors
    /// When another device is found.
    pub fn check(&self) -> Result<()> {
        for link in self.links(&[])? {
            let name = link["ifname"].as_str().unwrap_or("?");
            let kind = link["linkinfo"]["info_kind"].as_str();
            let permitted = match kind {
                Some("veth" | "tun" | "bridge") => true,
                None => name == "lo" && link["link_type"] == "loopback",
                Some(_) => {
                    // Made by the kernel itself; down they are no way out.
                    let up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
                    FALLBACK_TUNNELS.contains(&name) && !up
                }
            };
            ensure!(permitted, "{self} holds the device {name} ({}), which a lab must not", kind.unwrap_or("of hardware"));
        }
        Ok(())
    }

    /// The ids of the processes that run in it.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn processes(&self) -> Result<BTreeSet<i32>> {
        pids(self.name())
    }

    /// True when a TCP connection to `to` can be made from inside within `deadline`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn reaches(&self, to: SocketAddr, deadline: Duration) -> Result<bool> {
        self.enter(|| std::net::TcpStream::connect_timeout(&to, deadline).is_ok())
    }

    fn links(&self, which: &[&str]) -> Result<Vec<serde_json::Value>> {
        let text = self.ip(&[&["-d", "-j", "link", "show"], which].concat())?;
        serde_json::from_str(&text).with_context(|| format!("what `ip -j link` said in {self}"))
    }

    fn identity(&self) -> Result<(u64, u64)> {
        identity_of(&Path::new(DIR).join(self.name()))
    }
}

/// The kernel's counters of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Bytes received (L2 frames).
    pub received_bytes: u64,
    /// Frames received.
    pub received_packets: u64,
    /// Frames dropped on reception.
    pub received_dropped: u64,
    /// Bytes sent (L2 frames).
    pub sent_bytes: u64,
    /// Frames sent.
    pub sent_packets: u64,
    /// Frames dropped before sending.
    pub sent_dropped: u64,
}

fn identity_of(path: &Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    Ok((meta.dev(), meta.ino()))
}

/// Kills what runs in a namespace and deletes it. Never fails: it may be called while unwinding, and twice.
pub(super) fn remove(name: &str) {
    // A process can fork between the listing and the kill, so until none is left; a bound, because removal must end.
    for _ in 0..20 {
        let Ok(found) = pids(name) else { break };
        if found.is_empty() {
            break;
        }
        for pid in found {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = tool("ip", &["netns", "delete", name], None);
}

fn pids(name: &str) -> Result<BTreeSet<i32>> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let text = tool("ip", &["netns", "pids", name], None)?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid != own).collect())
}

/// Runs a system tool to its end and returns its standard output.
pub(super) fn tool(program: &str, args: &[&str], input: Option<&str>) -> Result<String> {
    let path = super::find_program(program).with_context(|| format!("no program {program} on this machine"))?;
    let what = || format!("{program} {}", args.join(" "));
    let mut command = Command::new(path);
    command.args(args).stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run `{}`", what()))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A tool that stops early closes the pipe; its own message says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("run `{}`", what()))?;
    if !output.status.success() {
        bail!("`{}` failed ({}): {}", what(), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
