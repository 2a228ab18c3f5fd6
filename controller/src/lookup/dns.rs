//! Reverse DNS by hickory: plain DNS over UDP, over TCP where an answer is too long.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RData};

use super::names::{AT_ONCE, Pointer, ResolveError, Resolver};

/// Where the system says whom to ask.
const SYSTEM: &str = "/etc/resolv.conf";

/// See the module.
pub(super) struct Dns {
    server: Option<SocketAddr>,
    timeout: Duration,
    /// Made by the first question, and again when the system's configuration has changed since.
    resolver: Mutex<Option<(Option<SystemTime>, TokioResolver)>>,
}

impl Dns {
    pub(super) fn new(server: Option<SocketAddr>, timeout: Duration) -> Self {
        Self { server, timeout, resolver: Mutex::default() }
    }

    fn resolver(&self) -> Result<TokioResolver, ResolveError> {
        let configured = match self.server {
            Some(_) => None,
            None => std::fs::metadata(SYSTEM).and_then(|file| file.modified()).ok(),
        };
        let mut known = self.resolver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, resolver)) = known.as_ref().filter(|(when, _)| *when == configured) {
            return Ok(resolver.clone());
        }
        let made = self.make()?;
        *known = Some((configured, made.clone()));
        Ok(made)
    }

    fn make(&self) -> Result<TokioResolver, ResolveError> {
        let failed = |error: NetError| ResolveError::Silent(format!("no resolver can be used: {error}"));
        let builder = match self.server {
            None => TokioResolver::builder_tokio().map_err(failed),
            Some(server) => {
                let mut asked = NameServerConfig::udp_and_tcp(server.ip());
                asked.connections.iter_mut().for_each(|connection| connection.port = server.port());
                let config = ResolverConfig::from_name_servers(vec![asked]);
                Ok(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
            }
        };
        let mut builder = builder?;
        self.tune(builder.options_mut());
        builder.build().map_err(failed)
    }

    /// A packet that is lost is sent again before the time is over. Answers are kept by those who ask.
    fn tune(&self, options: &mut ResolverOpts) {
        options.timeout = self.timeout * 2 / 5;
        options.attempts = 1;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.max_active_requests = AT_ONCE;
        options.case_randomization = true;
    }
}

#[async_trait]
impl Resolver for Dns {
    async fn pointer(&self, addr: IpAddr) -> Result<Pointer, ResolveError> {
        match self.resolver()?.reverse_lookup(Name::from(addr)).await {
            Ok(found) => {
                let names = found.answers().iter().filter_map(|record| match &record.data {
                    RData::PTR(name) => Some(name.0.iter().map(<[u8]>::to_vec).collect()),
                    _ => None,
                });
                let ttl = found.valid_until().saturating_duration_since(Instant::now());
                Ok(Pointer { names: names.collect(), ttl: Some(ttl) })
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                Ok(Pointer { names: Vec::new(), ttl: none.negative_ttl.map(|seconds| Duration::from_secs(seconds.into())) })
            }
            Err(NetError::Dns(error)) => Err(ResolveError::Failed(error.to_string())),
            Err(error) => Err(ResolveError::Silent(error.to_string())),
        }
    }
}
