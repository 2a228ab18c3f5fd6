//! What a dashboard sees: the lines of `mosquitto_sub` on the fleet's topics, shortened to what has changed.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::say::Say;
use crate::stage::Tail;

/// Progress is shown in steps of so many percent.
const PROGRESS_STEP: u64 = 25;
/// Fields of a probe's document that are shown; it holds more.
const SHOWN: [&str; 4] = ["state", "reason", "progress_percent", "sent_packets"];

/// Follows the topics through the output of a running `mosquitto_sub -v`.
#[derive(Debug)]
pub(crate) struct Follower {
    tail: Tail,
    /// Per probe: what was shown last.
    shown: BTreeMap<String, News>,
    /// Per probe: every state that it was seen in, in order, repetitions left out.
    states: BTreeMap<String, Vec<String>>,
    /// The last summary.
    summary: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct News {
    state: String,
    reason: String,
    step: u64,
}

impl Follower {
    pub(crate) fn new(output: &Path) -> Self {
        Self { tail: Tail::new(output), shown: BTreeMap::new(), states: BTreeMap::new(), summary: None }
    }

    /// Reads what came, and prints what is news.
    pub(crate) fn show(&mut self, say: &Say) {
        for line in self.tail.lines() {
            if let Some(text) = self.take(&line) {
                say.aside(&text);
            }
        }
    }

    /// Takes one line; gives what to print where it is news.
    fn take(&mut self, line: &str) -> Option<String> {
        let (topic, payload) = line.split_once(' ')?;
        let document: Value = serde_json::from_str(payload).ok()?;
        if topic.ends_with("/fleet/summary") {
            self.summary = Some(document);
            return None;
        }
        let (_, probe) = topic.split_once("/fleet/probe/")?;
        let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
        let state = text("state");
        let busy = state == "busy";
        let percent = document["progress_percent"].as_u64().unwrap_or_default();
        let states = self.states.entry(probe.to_owned()).or_default();
        if states.last() != Some(&state) {
            states.push(state.clone());
        }
        let news = News { state, reason: text("reason"), step: if busy { percent / PROGRESS_STEP } else { 0 } };
        if self.shown.get(probe) == Some(&news) {
            return None;
        }
        self.shown.insert(probe.to_owned(), news);
        let fields = SHOWN.iter().filter(|field| busy || **field != "progress_percent").filter(|field| !document[**field].is_null());
        let fields: Vec<String> = fields.map(|field| format!("\"{field}\":{}", document[*field])).collect();
        Some(format!("{topic} {{{},...}}", fields.join(",")))
    }

    /// The state that a probe was seen in last.
    pub(crate) fn state(&self, probe: &str) -> Option<&str> {
        self.states.get(probe)?.last().map(String::as_str)
    }

    /// The states that a probe went through.
    pub(crate) fn states(&self, probe: &str) -> &[String] {
        self.states.get(probe).map_or(&[], Vec::as_slice)
    }

    /// The last summary of the fleet, as it came.
    pub(crate) fn summary(&self) -> Option<&Value> {
        self.summary.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_news_is_shown() {
        let mut follower = Follower::new(Path::new("/nonexistent"));
        let line = |state: &str, percent: u64| {
            format!(
                r#"picket/v1/fleet/probe/north {{"id":"north","state":"{state}","reason":"r","progress_percent":{percent},"sent_packets":7,"x":1}}"#
            )
        };
        let online = r#"picket/v1/fleet/probe/north {"state":"online","reason":"r","sent_packets":7,...}"#;
        assert_eq!(follower.take(&line("online", 100)).as_deref(), Some(online));
        assert_eq!(follower.take(&line("online", 100)), None);
        assert!(follower.take(&line("busy", 3)).unwrap().contains(r#""progress_percent":3"#));
        assert_eq!(follower.take(&line("busy", 20)), None);
        assert!(follower.take(&line("busy", 30)).is_some());
        assert!(follower.take(&line("online", 100)).is_some());
        assert_eq!(follower.states("north"), ["online", "busy", "online"]);
        assert_eq!((follower.state("north"), follower.state("south")), (Some("online"), None));
        assert_eq!(follower.take(r#"picket/v1/fleet/summary {"probes":1}"#), None);
        assert_eq!(follower.summary().unwrap()["probes"], 1);
        for odd in ["", "x", "picket/v1/fleet/probe/north", "picket/v1/fleet/probe/north not json", "picket/v1/fleet/controller {}"] {
            assert_eq!(follower.take(odd), None, "{odd}");
        }
    }
}
