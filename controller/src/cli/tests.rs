//! The command line as operators meet it: what is understood, what is refused and in which words.

use super::*;
use crate::view::Problem;

fn refused(line: &str) -> String {
    let args = std::iter::once("picket").chain(line.split_whitespace()).map(OsString::from);
    let error = parse(args).map(|_| "understood".to_owned()).unwrap_or_else(|error| error.to_string());
    let first = error.lines().next().unwrap_or_default();
    let more: String = error.lines().skip(1).take_while(|line| line.starts_with("  ")).map(|line| format!("\n{line}")).collect();
    format!("$ picket {line}\n{first}{more}\n")
}

#[test]
fn grammar_is_sound() {
    command().debug_assert();
}

#[test]
fn every_command_has_an_example() {
    fn check(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let is_leaf = command.get_subcommands().next().is_none();
        assert!(!is_leaf || help.contains("Example"), "{path} has no example");
        assert!(command.get_about().is_some(), "{path} says nothing about itself");
        command.get_subcommands().for_each(|sub| check(sub, &path));
    }
    let command = command();
    command.get_subcommands().for_each(|sub| check(sub, "picket"));
}

#[test]
fn every_example_is_understood() {
    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        found.extend(help.lines().filter_map(|line| line.strip_prefix("  picket ")).map(str::to_owned));
        command.get_subcommands().for_each(|sub| examples(sub, found));
    }
    let mut found = Vec::new();
    examples(&command(), &mut found);
    assert!(found.len() > 15, "{found:?}");
    for line in found {
        let line = line
            .split([';', '>', '|'])
            .next()
            .unwrap_or_default()
            .split("&&")
            .next()
            .unwrap_or_default()
            .replace("'box was stolen'", "stolen");
        let args = std::iter::once("picket").chain(line.split_whitespace()).map(OsString::from);
        if let Err(error) = parse(args) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn wrong_input_is_refused_in_words() {
    let lines = [
        "scan 198.18.0.0/33 -p 80",
        "scan 198.18.0.256 -p 80",
        "scan 198.18.0.9-3 -p 80",
        "scan 198.18.0.1-2001:db8::1 -p 80",
        "scan fe80::1%eth0 -p 80",
        "scan https://a.example -p 80",
        "scan 198.18.0.1 --exclude 198.18.0.0/ -p 80",
        "scan -p 80",
        "scan 198.18.0.1",
        "scan 198.18.0.1 -p http",
        "scan 198.18.0.1 -p 65536",
        "scan 198.18.0.1 -p 80-70",
        "scan 198.18.0.1 -p ,",
        "scan 198.18.0.1 -p 80 --rate 500",
        "scan 198.18.0.1 -p 80 --rate 5kbit",
        "scan 198.18.0.1 -p 80 --rate 0pps",
        "scan 198.18.0.1 -p 80 --mode both",
        "scan 198.18.0.1 -p 80 --technique xmas",
        "scan 198.18.0.1 -p 80 --attempts 0",
        "scan 198.18.0.1 -p 80 --attempts 11",
        "scan 198.18.0.1 -p 80 --probe At+ic",
        "scan 198.18.0.1 -p 80 --probe picket-controller-1",
        "scan 198.18.0.1 -p 80 --deadline 30",
        "scan 198.18.0.1 -p 80 --state ajar",
        "scan 198.18.0.1 -p 80 --output xml",
        "scan 198.18.0.1 -p 80 --json --output csv",
        "scan 198.18.0.1 -p 80 --dry-run --detach",
        "discover 198.18.0.1 -p 80",
        "discover",
        "discover --link --attempts 3",
        "job show 7",
        "job list --state gone",
        "results --addr 198.18.0.1-5",
        "results --job latest",
        "probe add Attic",
        "probe add attic --role root",
        "probe add attic --token-hours 0",
        "token add nightly",
        "token add nightly --scope root",
        "token add nightly --scope read --expires never",
        "serve --server https://a.example",
        "scna 198.18.0.1",
    ];
    insta::assert_snapshot!(lines.map(refused).join("\n"));
}

#[test]
fn names_and_addresses_are_told_apart() {
    for line in [
        "scan printer.example -p 80",
        "scan host -p 80",
        "scan a-b.example. 2001:db8::/64,198.18.0.1-9 -p- --rate 5kpps",
        "--data /x scan 198.18.0.1 -p 1",
    ] {
        assert!(refused(line).contains("understood"), "{}", refused(line));
    }
}

fn resolve(args: &ConnectArgs, default: &std::path::Path, token: Option<&str>, dir: &std::path::Path) -> String {
    match args.resolve(default, token.map(str::to_owned)) {
        Ok(found) => format!("{} {}", found.server, found.token),
        Err(failure) => format!("[{}] {failure}", failure.exit as u8).replace(&dir.display().to_string(), "DIR"),
    }
}

#[test]
fn connections_come_from_flags_or_from_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let data = at("data");
    std::fs::create_dir(&data).unwrap();
    let endpoints =
        Endpoints { api: "https://127.0.0.1:8443".into(), public: Vec::new(), mqtt_port: 1, api_port: 2, dashboard_port: 3, pid: 4 };
    std::fs::write(data.join(ENDPOINTS_FILE), serde_json::to_vec(&endpoints).unwrap()).unwrap();
    std::fs::write(data.join("admin.token"), "secret\n").unwrap();
    std::fs::write(data.join("ca.pem"), "pem").unwrap();
    std::fs::write(at("empty"), " \n").unwrap();
    std::fs::write(at("other.token"), "other").unwrap();
    let nowhere = at("nowhere");
    let none = ConnectArgs::default();
    let by_data = ConnectArgs { data: Some(data.clone()), ..none.clone() };
    let server = |url: &str| ConnectArgs { server: Some(url.into()), ..by_data.clone() };
    let shown = [
        resolve(&none, &nowhere, None, dir.path()),
        resolve(&none, &data, None, dir.path()),
        resolve(&by_data, &nowhere, None, dir.path()),
        resolve(&by_data, &nowhere, Some("from-environment"), dir.path()),
        resolve(&ConnectArgs { token_file: Some(at("other.token")), ..by_data.clone() }, &nowhere, Some("x"), dir.path()),
        resolve(&server("ctl.example:8443"), &nowhere, None, dir.path()),
        resolve(&ConnectArgs { data: Some(nowhere.clone()), ..none.clone() }, &nowhere, None, dir.path()),
        resolve(&ConnectArgs { server: Some("https://a.example:8443".into()), ..none.clone() }, &nowhere, None, dir.path()),
        resolve(
            &ConnectArgs { server: Some("https://a.example:8443".into()), ca: Some(data.join("ca.pem")), ..none.clone() },
            &nowhere,
            None,
            dir.path(),
        ),
        resolve(&ConnectArgs { ca: Some(data.join("ca.pem")), ..none.clone() }, &data, None, dir.path()),
        resolve(&ConnectArgs { ca: Some(at("no-ca.pem")), ..by_data.clone() }, &nowhere, None, dir.path()),
        resolve(&ConnectArgs { token_file: Some(at("empty")), ..by_data.clone() }, &nowhere, None, dir.path()),
        resolve(&ConnectArgs { token_file: Some(at("no.token")), ..by_data.clone() }, &nowhere, None, dir.path()),
        resolve(&server("http://a.example:8443"), &nowhere, None, dir.path()),
        resolve(&server("https://a.example/v1"), &nowhere, None, dir.path()),
        resolve(&server("https://"), &nowhere, None, dir.path()),
    ];
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn problems_become_exit_codes() {
    let shown = [400, 401, 403, 404, 409, 413, 422, 429, 500].map(|status| {
        let problem = Problem { kind: "k".into(), title: "t".into(), status, detail: "what is\nwrong".into() };
        let failure = Failure::problem(&problem);
        format!("{status} -> [{}] {failure}", failure.exit as u8)
    });
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn numbers_are_for_people() {
    use super::format::*;
    assert_eq!([count(7u64), count(1_234u64), count(1_234_567u64)], ["7", "1,234", "1,234,567"]);
    assert_eq!([seconds(7), seconds(200), seconds(7_260), seconds(90_000)], ["7 s", "3 min 20 s", "2 h 1 min", "1 d 1 h"]);
    assert_eq!([rtt(98), rtt(1_500), rtt(1_234_567)], ["98 us", "1.5 ms", "1.23 s"]);
    assert_eq!([rate(0.5), rate(4_950.0), rate(123_456.0)], ["0.5/s", "4950/s", "123.5k/s"]);
    assert_eq!([percent(999, 1000), percent(1000, 1000), percent(0, 0)], [99, 100, 100]);
    assert_eq!([moment("2026-11-21T10:00:00.123Z"), moment("2026-11-21T10:00:00Z")], ["2026-11-21 10:00:00", "2026-11-21 10:00:00"]);
    let coverage_of =
        picket_wire::result::Coverage { asked: 1000, open: 4, closed: 1, silent: 900, refused: 90, not_reached: 5, ..Default::default() };
    assert_eq!(coverage(&coverage_of), "1,000 asked = 5 answered (4 open, 1 closed) + 900 silent + 90 refused by policy + 5 not reached");
}

fn job() -> crate::view::JobView {
    serde_json::from_value(serde_json::json!({
        "id": "65f0c1d200a4b7e1", "name": "nightly \u{7}", "state": "running", "reason": null, "summary": "198.18.0.0/24 ports 22,80",
        "technique": "syn", "mode": "split", "asked_rate": "2kpps", "created": "2026-11-21T10:00:00.123Z", "started": "2026-11-21T10:00:01Z", "ended": null,
        "total": 512, "asked_so_far": 300, "rate": 1234.5, "seconds_left": 75, "version": 3,
        "coverage": { "asked": 256, "up": 0, "open": 3, "closed": 200, "filtered": 1, "silent": 52, "refused": 0, "not_reached": 0, "packets": 310 },
        "probes": [
            { "probe": "attic", "leases": 2, "limit": "1kpps", "granted": "1kpps, 20Mbit", "clipped": true,
              "coverage": { "asked": 256, "up": 0, "open": 3, "closed": 200, "filtered": 1, "silent": 52, "refused": 0, "not_reached": 0, "packets": 310 } },
            { "probe": "cellar", "leases": 0, "limit": "5kpps",
              "coverage": { "asked": 0, "up": 0, "open": 0, "closed": 0, "filtered": 0, "silent": 0, "refused": 0, "not_reached": 0, "packets": 0 } }
        ]
    }))
    .unwrap()
}

#[test]
fn the_hosts_of_a_link_are_pointed_at() {
    let link = crate::view::JobView { technique: picket_wire::job::Technique::Link, ..job() };
    assert!(jobs::shown(&link).contains("see picket hosts --job 65f0c1d200a4b7e1"));
    assert!(!jobs::shown(&job()).contains("picket hosts"));
}

#[test]
fn a_job_as_people_see_it() {
    let plan: crate::view::Plan = serde_json::from_value(serde_json::json!({
        "addresses": 256, "targets": 512, "excluded": 4, "refused_by_policy": 2, "refusal_example": "10.1.1.1: denied: no `allow` rule holds it",
        "packets_at_most": 1024, "seconds_about": 2, "probes": ["attic", "cellar"], "unfit": [{ "probe": "loft", "reason": "no raw socket" }],
        "names": [{ "name": "printer.example", "addresses": ["198.18.0.9", "2001:db8::9"] }]
    }))
    .unwrap();
    let shown = [jobs::shown(&job()), jobs::table(&[job()]).to_string(), progress::line(&job()), format::plan(&plan).join("\n")];
    insta::assert_snapshot!(shown.join("\n\n"));
}
