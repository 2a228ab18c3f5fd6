//! What operators read: help and errors, as they are.

use std::process::Command;

use crate::lab::{POLICY, PROBE, Run};

fn probe(args: &str) -> Run {
    let mut command = Command::new(PROBE);
    command.args(args.split_whitespace()).env("PICKET_POLICY__ALLOW", POLICY).env_remove("COLUMNS").current_dir("/");
    Run::of(command.output().unwrap())
}

#[test]
fn help() {
    insta::assert_snapshot!("help of scan", probe("scan --help").out);
    insta::assert_snapshot!("help of discover", probe("discover --help").out);
    insta::assert_snapshot!("help of services", probe("services --help").out);
    insta::assert_snapshot!("help of trace", probe("trace --help").out);
}

#[test]
fn errors() {
    let mut text = String::new();
    for args in [
        "scan 198.18.0.1",
        "scan 198.18.0.1 -p 80 --technique syn,ack",
        "scan 198.18.0.1 --technique echo,timestamp",
        "scan 198.18.0.1 -p U:53 --technique connect",
        "scan 198.18.0.1 -p 80 --rate 20m",
        "scan 198.18.0.1 -p 80 --output-file pdf=x",
        "scan 198.18.0.1 -p 80 -o ndjson -oX -",
        "scan 198.18.0.1 -p 80 -oX same -oJ same",
        "scan -iL /nonexistent/targets -p 80",
        "scan 198.18.0.1 -p 80 --json",
        "scan 198.18.0.1 -p 80 --top-ports 10",
        "discover 198.18.0.1 --technique syn",
        "discover 198.18.0.1 --host-probes syn",
        "scan --resume /nonexistent/run",
    ] {
        let run = probe(args);
        assert!(run.out.is_empty(), "{args}: {}", run.out);
        text.push_str(&format!("$ picket-probe {args}\n{}[exit {}]\n\n", run.err, run.code.unwrap()));
    }
    insta::assert_snapshot!("errors", text);
}
