//! Who may do what on which topic: one pure function, the same for every broker.
//!
//! | who | publishes | subscribes | last will |
//! |---|---|---|---|
//! | probe | its own `evt` and `live`, never retained | its own `cmd`, `cmd` of the roles it holds | its own `live`, not retained |
//! | controller | every `cmd` (not retained), everything under `fleet/` | `evt` and `live` of one or of all probes | none |
//! | dashboard | nothing | filters that begin with `fleet/` | none |
//!
//! A subscription is judged by its filter, not by what it would match at the moment, so a filter that is wider than what is
//! allowed is refused whole: `#`, `picket/v1/probe/+/cmd` and `$share/x/...` give nobody anything.
//!
//! **Invariant:** what is not allowed here by name is refused; nothing is allowed because of what it fails to match.

use picket_wire::ids::{ProbeId, Role};
use picket_wire::topic::{Filter, Prefix, Topic};

use crate::pki::Identity;

/// Longest topic or filter that anybody may use, in bytes.
pub const TOPIC_MAX: usize = 512;

/// Who is on the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A probe, by certificate.
    Probe(ProbeId),
    /// A controller, by certificate; its whole common name.
    Controller(String),
    /// A read-only user, by password; its user name.
    Dashboard(String),
}

impl From<Identity> for Principal {
    fn from(identity: Identity) -> Self {
        match identity {
            Identity::Probe(id) => Principal::Probe(id),
            Identity::Controller(name) => Principal::Controller(name),
        }
    }
}

impl core::fmt::Display for Principal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Principal::Probe(id) => write!(f, "probe {id}"),
            Principal::Controller(name) => write!(f, "controller {name}"),
            Principal::Dashboard(user) => write!(f, "dashboard user {user:?}"),
        }
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a message, to be kept for later subscribers or not.
    Publish {
        /// The message's retain flag.
        retain: bool,
    },
    /// Leave a message with the broker that it sends when the connection breaks.
    Will {
        /// The will's retain flag.
        retain: bool,
    },
    /// Receive what matches a filter.
    Subscribe,
}

/// Whether `who`, holding `roles`, may do `action` on `text`, a topic or for [`Action::Subscribe`] a filter.
pub fn may(who: &Principal, roles: &[Role], action: Action, text: &str, prefix: &Prefix) -> bool {
    if text.is_empty() || text.len() > TOPIC_MAX || text.contains('\0') {
        return false;
    }
    match action {
        Action::Publish { retain } => may_publish(who, retain, text, prefix),
        Action::Will { retain } => !retain && may_leave_will(who, text, prefix),
        Action::Subscribe => may_subscribe(who, roles, text, prefix),
    }
}

fn may_publish(who: &Principal, retain: bool, topic: &str, prefix: &Prefix) -> bool {
    match (who, Topic::parse(prefix, topic)) {
        (Principal::Probe(own), Some(Topic::ProbeEvt(id) | Topic::ProbeLive(id))) => id == *own && !retain,
        (Principal::Controller(_), Some(Topic::RoleCmd(_) | Topic::ProbeCmd(_))) => !retain,
        (Principal::Controller(_), Some(Topic::Fleet(_))) => true,
        _ => false,
    }
}

fn may_leave_will(who: &Principal, topic: &str, prefix: &Prefix) -> bool {
    matches!((who, Topic::parse(prefix, topic)), (Principal::Probe(own), Some(Topic::ProbeLive(id))) if id == *own)
}

fn may_subscribe(who: &Principal, roles: &[Role], filter: &str, prefix: &Prefix) -> bool {
    match who {
        Principal::Probe(own) => match Topic::parse(prefix, filter) {
            Some(Topic::ProbeCmd(id)) => id == *own,
            Some(Topic::RoleCmd(role)) => roles.contains(&role),
            _ => false,
        },
        Principal::Controller(_) => {
            [Filter::AllEvents, Filter::AllLive].iter().any(|allowed| allowed.format(prefix) == filter)
                || matches!(Topic::parse(prefix, filter), Some(Topic::ProbeEvt(_) | Topic::ProbeLive(_)))
        }
        Principal::Dashboard(_) => is_fleet_filter(filter, prefix),
    }
}

/// A well-formed filter (MQTT 3.1.1 section 4.7.1) whose first levels are literally those of the fleet tree.
fn is_fleet_filter(filter: &str, prefix: &Prefix) -> bool {
    let Some(rest) = filter.strip_prefix(&format!("{prefix}/fleet/")) else { return false };
    let mut levels = rest.split('/').peekable();
    while let Some(level) = levels.next() {
        let fits = match level {
            "" => false,
            "+" => true,
            "#" => levels.peek().is_none(),
            name => !name.contains(['+', '#']),
        };
        if !fits {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISH: Action = Action::Publish { retain: false };
    const RETAIN: Action = Action::Publish { retain: true };
    const WILL: Action = Action::Will { retain: false };
    const RETAINED_WILL: Action = Action::Will { retain: true };
    use Action::Subscribe;

    fn probe() -> Principal {
        Principal::Probe("attic".parse().unwrap())
    }
    fn controller() -> Principal {
        Principal::Controller("picket-controller-00000001".to_owned())
    }
    fn dashboard() -> Principal {
        Principal::Dashboard("grafana".to_owned())
    }

    /// Every topic or filter that any row of the table is about.
    fn texts() -> Vec<String> {
        let mut texts: Vec<String> = [
            "picket/v1/probe/attic/cmd",
            "picket/v1/probe/attic/evt",
            "picket/v1/probe/attic/live",
            "picket/v1/probe/cellar/cmd",
            "picket/v1/probe/cellar/evt",
            "picket/v1/probe/cellar/live",
            "picket/v1/probe/+/cmd",
            "picket/v1/probe/+/evt",
            "picket/v1/probe/+/live",
            "picket/v1/probe/attic/+",
            "picket/v1/probe/attic/#",
            "picket/v1/probe/attic",
            "picket/v1/probe/attic/cmd/",
            "picket/v1/probe/attic/cmd/#",
            "picket/v1/probe/attic/cmd/x",
            "picket/v1/probe//cmd",
            "/picket/v1/probe/attic/cmd",
            "picket/v1//probe/attic/cmd",
            "picket/v1/probe/Attic/cmd",
            "PICKET/v1/probe/attic/evt",
            "picket/v1/probe/atti+/evt",
            "picket/v1/probe/attic/evt#",
            "picket/v1/probe/picket-controller-00000001/cmd",
            "picket/v1/role/scan/cmd",
            "picket/v1/role/trace/cmd",
            "picket/v1/role/capture/cmd",
            "picket/v1/role/root/cmd",
            "picket/v1/role/+/cmd",
            "picket/v1/role/#",
            "picket/v1/fleet/#",
            "picket/v1/fleet/+",
            "picket/v1/fleet/+/state",
            "picket/v1/fleet/probe/+/#",
            "picket/v1/fleet/summary",
            "picket/v1/fleet/probe/attic/state",
            "picket/v1/fleet/",
            "picket/v1/fleet",
            "picket/v1/fleet//x",
            "picket/v1/fleet/#/x",
            "picket/v1/fleet/a#",
            "picket/v1/fleet/a+/b",
            "picket/v1/fleetx/a",
            "picket/v1/+/summary",
            "picket/v1/#",
            "picket/#",
            "picket/+/fleet/#",
            "+/v1/fleet/#",
            "+/+/+/attic/cmd",
            "#",
            "+",
            "/#",
            "",
            "/",
            "$SYS/#",
            "$SYS/broker/uptime",
            "$share/all/picket/v1/probe/attic/cmd",
            "$share/all/picket/v1/fleet/#",
            "$share/all/#",
            "$share//picket/v1/fleet/#",
            "$queue/picket/v1/probe/attic/cmd",
            "other/v1/probe/attic/evt",
            "picket/v10/probe/attic/evt",
            "picket/v1/fleet/a\0b",
        ]
        .map(str::to_owned)
        .to_vec();
        texts.push(format!("picket/v1/fleet/{}", "a".repeat(TOPIC_MAX)));
        texts.push("a/".repeat(30_000));
        texts
    }

    fn allowed(who: &Principal, roles: &[Role], action: Action) -> Vec<String> {
        texts().into_iter().filter(|text| may(who, roles, action, text, &Prefix::default())).collect()
    }

    #[test]
    fn a_probe_has_its_own_topics_and_its_roles() {
        let own = ["picket/v1/probe/attic/evt", "picket/v1/probe/attic/live"];
        assert_eq!(allowed(&probe(), &Role::ALL, PUBLISH), own);
        assert!(allowed(&probe(), &Role::ALL, RETAIN).is_empty());
        assert_eq!(allowed(&probe(), &Role::ALL, WILL), ["picket/v1/probe/attic/live"]);
        assert!(allowed(&probe(), &Role::ALL, RETAINED_WILL).is_empty());
        assert_eq!(allowed(&probe(), &[], Subscribe), ["picket/v1/probe/attic/cmd"]);
        assert_eq!(
            allowed(&probe(), &[Role::Trace, Role::Scan], Subscribe),
            ["picket/v1/probe/attic/cmd", "picket/v1/role/scan/cmd", "picket/v1/role/trace/cmd"]
        );
    }

    #[test]
    fn a_controller_speaks_to_all_and_hears_all_but_has_no_more() {
        let commands = [
            "picket/v1/probe/attic/cmd",
            "picket/v1/probe/cellar/cmd",
            "picket/v1/role/scan/cmd",
            "picket/v1/role/trace/cmd",
            "picket/v1/role/capture/cmd",
        ];
        let fleet = ["picket/v1/fleet/summary", "picket/v1/fleet/probe/attic/state"];
        assert_eq!(allowed(&controller(), &[], PUBLISH), [commands.as_slice(), &fleet].concat());
        assert_eq!(allowed(&controller(), &[], RETAIN), fleet);
        assert!(allowed(&controller(), &[], WILL).is_empty());
        assert_eq!(
            allowed(&controller(), &Role::ALL, Subscribe),
            [
                "picket/v1/probe/attic/evt",
                "picket/v1/probe/attic/live",
                "picket/v1/probe/cellar/evt",
                "picket/v1/probe/cellar/live",
                "picket/v1/probe/+/evt",
                "picket/v1/probe/+/live",
            ]
        );
    }

    #[test]
    fn a_dashboard_reads_the_fleet_tree() {
        for action in [PUBLISH, RETAIN, WILL, RETAINED_WILL] {
            assert!(allowed(&dashboard(), &Role::ALL, action).is_empty());
        }
        assert_eq!(
            allowed(&dashboard(), &Role::ALL, Subscribe),
            [
                "picket/v1/fleet/#",
                "picket/v1/fleet/+",
                "picket/v1/fleet/+/state",
                "picket/v1/fleet/probe/+/#",
                "picket/v1/fleet/summary",
                "picket/v1/fleet/probe/attic/state",
            ]
        );
    }

    #[test]
    fn another_prefix_moves_everything() {
        let prefix: Prefix = "acme".parse().unwrap();
        assert!(may(&probe(), &[], Subscribe, "acme/probe/attic/cmd", &prefix));
        assert!(!may(&probe(), &[], Subscribe, "picket/v1/probe/attic/cmd", &prefix));
        assert!(may(&dashboard(), &[], Subscribe, "acme/fleet/#", &prefix));
        assert!(!may(&dashboard(), &[], Subscribe, "picket/v1/fleet/#", &prefix));
    }
}
