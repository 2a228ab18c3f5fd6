//! Service detection in a namespace of the lab, and what other tools say of the same ports.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use picket_probe::net::engine::Source;
use picket_probe::net::pacer::{Limits, Pacer};
use picket_probe::service::fragile::SitePolicy;
use picket_probe::service::recog::Fingerprints;
use picket_probe::service::{Deadlines, DetectOptions, Detected, ServiceTarget, detect};
use picket_wire::job::{ServiceOptions, Transport};
use tokio::sync::mpsc;

use crate::lab::services::Known;
use crate::lab::{Lab, Namespace};

/// Who asks and who serves, on one wire.
#[derive(Debug)]
pub struct Pair {
    /// Who asks; its device is [`Pair::DEVICE`], as everywhere here.
    pub probe: Namespace,
    /// Who serves: at [`Pair::host`] 1 to 14.
    pub servers: Namespace,
}

impl Pair {
    /// The device of both.
    pub const DEVICE: &'static str = "eth0";

    /// Builds it in a lab of its own.
    ///
    /// # Errors
    /// When a lab cannot run here.
    pub fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (probe, servers) = (lab.namespace("probe")?, lab.namespace("servers")?);
        probe.link(Self::DEVICE, &servers, Self::DEVICE)?;
        probe.address(Self::DEVICE, Self::host(200), 24)?;
        for host in 1..=14 {
            servers.address(Self::DEVICE, Self::host(host), 24)?;
        }
        Ok(Self { probe, servers })
    }

    /// A host's address.
    #[must_use]
    pub const fn host(number: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(198, 18, 1, number))
    }
}

/// The options that a probe without configuration has, at a rate.
#[must_use]
pub fn options(limits: Limits) -> DetectOptions {
    DetectOptions {
        interface: Arc::new(Mutex::new(Pacer::new(limits))),
        rate: Limits::UNLIMITED,
        targets: None,
        max_open: 256,
        options: ServiceOptions::default(),
        site: SitePolicy::default(),
        fingerprints: Arc::new(Fingerprints::builtin()),
        source: Source { v4: None, v6: None },
        mark: None,
        wall: None,
        deadlines: Deadlines::default(),
    }
}

/// A TCP port to ask; its number stands for it.
#[must_use]
pub fn tcp(addr: IpAddr, port: u16) -> ServiceTarget {
    ServiceTarget { id: u64::from(port), addr, port, transport: Transport::Tcp }
}

/// A port whose truth is known.
#[must_use]
pub fn target(known: &Known) -> ServiceTarget {
    ServiceTarget { transport: if known.udp { Transport::Udp } else { Transport::Tcp }, ..tcp(known.address, known.port) }
}

/// Asks targets from inside a namespace, and gives what was told in the order in which it was told.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn ask(namespace: &Namespace, options: DetectOptions, targets: &[ServiceTarget]) -> Result<Vec<Detected>> {
    namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the asynchronous runtime")?;
        Ok(runtime.block_on(async {
            let (to, from) = mpsc::channel(64);
            let (found, mut told) = mpsc::channel(64);
            let feed = async {
                for target in targets {
                    if to.send(*target).await.is_err() {
                        break;
                    }
                }
                drop(to);
            };
            let collect = async {
                let mut all = Vec::new();
                while let Some(detected) = told.recv().await {
                    all.push(detected);
                }
                all
            };
            tokio::join!(feed, detect(options, Arc::new(|_| true), from, found), collect).2
        }))
    })?
}
