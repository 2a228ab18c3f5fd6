//! The flags that narrow down where something was found, and their part of a query.

use picket_wire::addr::IpNet;
use picket_wire::ids::{ProbeId, SiteName};

/// See the module.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Only in this site
    #[arg(long, value_name = "SITE")]
    site: Option<SiteName>,
    /// Only by this probe
    #[arg(long, value_name = "PROBE")]
    probe: Option<ProbeId>,
    /// Only this address or network
    #[arg(long, value_name = "NET")]
    addr: Option<IpNet>,
}

impl Place {
    /// Gives each flag that was named to `add`.
    pub(super) fn narrow(self, add: &mut impl FnMut(&'static str, Option<String>)) {
        add("site", self.site.map(|site| site.to_string()));
        add("probe", self.probe.map(|probe| probe.to_string()));
        add("addr", self.addr.map(|net| net.to_string()));
    }
}
