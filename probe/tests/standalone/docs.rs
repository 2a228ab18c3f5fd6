//! docs/standalone.md says what is so: its commands run, and it names every field of NDJSON.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::lab::{Lab, Run};

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/standalone.md"));

/// The lines of the page's shell blocks.
fn commands() -> Vec<&'static str> {
    let blocks = PAGE.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).collect()
}

#[test]
fn the_commands_of_the_page_run() {
    let Some(lab) = Lab::new() else { return };
    let dir = Lab::dir();
    std::fs::write(dir.path().join("targets.txt"), "198.18.1.2 # a host\n").unwrap();
    let commands = commands();
    assert!(commands.len() > 5, "{commands:?}");
    for command in commands {
        let args = command.strip_prefix("picket-probe ").unwrap_or_else(|| panic!("{command}"));
        if args == "scan --resume FILE" {
            // Its own tests resume.
            continue;
        }
        let sends_nothing = args.contains("--dry-run") || args.contains("-sL");
        let dry = if sends_nothing { args.to_owned() } else { format!("{args} --dry-run") };
        let run = Run::of(lab.command(&dry).current_dir(dir.path()).output().unwrap());
        assert_eq!(run.code, Some(0), "{command}: {}", run.err);
        assert!(!run.out.is_empty(), "{command}");
    }
}

fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                found.insert(key.clone());
                // Facts have names of their own.
                if key != "facts" {
                    keys(value, found);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn every_field_of_ndjson_is_explained() {
    let Some(lab) = Lab::new() else { return };
    let mut found = BTreeSet::new();
    for args in ["services 198.18.1.2-3,198.19.0.0/30,2001:db8:2::1 -p T:22,25,81,110,U:53 -o ndjson", "discover 198.18.1.2 -o ndjson"] {
        let run = lab.run(args);
        assert_eq!(run.code, Some(0), "{}", run.err);
        run.out.lines().for_each(|line| keys(&serde_json::from_str(line).unwrap(), &mut found));
    }
    for field in ["icmp", "mac", "outcome", "passes", "stopped"] {
        assert!(found.contains(field), "the test does not bring about `{field}`: {found:?}");
    }
    for field in found {
        assert!(PAGE.contains(&format!("`{field}`")), "docs/standalone.md does not explain `{field}`");
    }
}
