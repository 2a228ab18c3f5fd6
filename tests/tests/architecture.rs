//! The arrows of the design, checked against what the crates and modules really import; licences; where `unsafe` may stand.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Value {
    let out = Command::new(env!("CARGO")).args(["metadata", "--format-version", "1", "--locked"]).current_dir(root()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Names of the direct, non-development dependencies of a workspace package.
fn dependencies(metadata: &Value, package: &str) -> Vec<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|p| p["name"] == package && p["source"].is_null()).unwrap();
    let normal = package["dependencies"].as_array().unwrap().iter().filter(|d| d["kind"].is_null());
    normal.map(|d| d["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn crates_depend_in_one_direction() {
    let metadata = metadata();
    for (package, forbidden) in [
        (
            "picket-wire",
            &["tokio", "rumqttc-v4-next", "sqlx", "rustls", "libc", "nix", "picket", "picket-probe", "axum", "hyper", "getrandom"][..],
        ),
        (
            "picket-packet",
            &[
                "tokio",
                "rumqttc-v4-next",
                "sqlx",
                "rustls",
                "libc",
                "nix",
                "pcap",
                "picket",
                "picket-probe",
                "axum",
                "hyper",
                "getrandom",
                "clap",
            ],
        ),
        ("picket-probe", &["picket", "sqlx", "axum", "mqtt5"]),
        ("picket", &["picket-probe", "libc"]),
    ] {
        for dependency in dependencies(&metadata, package) {
            assert!(!forbidden.contains(&dependency.as_str()), "{package} must not know {dependency}");
        }
    }
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                rust_files(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The product part of a file: everything before its unit tests.
fn product_code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned()
}

/// Modules of a crate, each with the `crate::` paths that its product code names.
fn imports(crate_dir: &str) -> BTreeMap<String, Vec<String>> {
    let source = root().join(crate_dir).join("src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    let mut imports: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        let relative = file.strip_prefix(&source).unwrap().with_extension("");
        if relative.ends_with("tests") {
            continue;
        }
        let module = relative.to_str().unwrap().replace('/', "::").trim_end_matches("::mod").to_owned();
        let code = product_code(&file);
        let named = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| line.match_indices("crate::").map(|(at, _)| line[at + 7..].to_owned()).collect::<Vec<_>>());
        imports.entry(module).or_default().extend(named);
    }
    imports
}

fn assert_no_arrow(crate_dir: &str, from: &[&str], to: &[&str]) {
    for (module, paths) in imports(crate_dir) {
        let inside = |prefix: &&str| module == **prefix || module.starts_with(&format!("{prefix}::"));
        if !from.iter().any(inside) {
            continue;
        }
        for path in &paths {
            let forbidden =
                to.iter().find(|target| path.starts_with(&format!("{target}::")) || path.trim_end_matches([';', '}']) == **target);
            assert_eq!(forbidden, None, "{crate_dir}: {module} must not import crate::{path}");
        }
    }
}

#[test]
fn probe_modules_keep_their_distance() {
    assert_no_arrow("probe", &["net"], &["scan", "agent", "spool", "transport", "standalone", "identity"]);
    assert_no_arrow(
        "probe",
        &["scan::engine", "scan::kinds", "scan::chunk"],
        &["net::link", "net::clock", "net::drive", "net::afpacket", "transport", "spool", "agent"],
    );
    assert_no_arrow(
        "probe",
        &[
            "trace::course",
            "trace::engine",
            "trace::multipath",
            "trace::packet",
            "trace::path",
            "trace::report",
            "trace::spec",
            "trace::statistics",
            "trace::stops",
        ],
        &[
            "scan",
            "discover",
            "service",
            "agent",
            "transport",
            "spool",
            "standalone",
            "identity",
            "config",
            "net::link",
            "net::clock",
            "net::drive",
        ],
    );
    assert_no_arrow("probe", &["scan", "discover", "service", "net"], &["trace"]);
    assert_no_arrow(
        "probe",
        &["service"],
        &["scan", "agent", "transport", "spool", "standalone", "identity", "config", "net::link", "net::afpacket", "net::route"],
    );
    assert_no_arrow(
        "probe",
        &["service::protocols", "service::tls", "service::dialogue", "service::guess", "service::text", "service::recog"],
        &["net", "service::conn", "service::shell", "service::inquiry", "service::toll"],
    );
    assert_no_arrow(
        "probe",
        &["discover"],
        &["scan", "service", "agent", "transport", "spool", "standalone", "net::link", "net::afpacket"],
    );
    assert_no_arrow(
        "probe",
        &["agent::link", "agent::held", "agent::traces"],
        &["transport", "spool", "net::link", "net::afpacket", "net::clock"],
    );
    assert_no_arrow(
        "probe",
        &["capture"],
        &[
            "scan",
            "discover",
            "service",
            "trace",
            "agent",
            "transport",
            "spool",
            "standalone",
            "identity",
            "config",
            "station",
            "net::link",
            "net::drive",
            "net::engine",
            "net::afpacket",
            "net::pacer",
        ],
    );
    assert_no_arrow("probe", &["net", "scan", "discover", "service", "trace", "spool", "transport"], &["capture"]);
    assert_no_arrow("probe", &["capture::session", "capture::flows", "capture::filter"], &["net"]);
    assert_no_arrow("probe", &["capture::bpf", "capture::ring::index", "capture::ring::query", "capture::ring::segment"], &["net"]);
    assert_no_arrow("probe", &["capture::ring"], &["packet", "capture::run"]);
    assert_no_arrow("probe", &["capture::bpf"], &["packet", "capture"]);
    assert_no_arrow("probe", &["spool"], &["net", "scan", "agent", "transport"]);
    assert_no_arrow("probe", &["transport"], &["scan", "agent", "net::drive", "net::afpacket"]);
    assert_no_arrow("probe", &["agent::core"], &["net::drive", "net::afpacket", "net::link", "transport", "scan", "spool"]);
}

/// The modules of each protocol are the ground; what is made of captured packets stands on it, files of packets beside it.
#[test]
fn packet_modules_keep_their_distance() {
    let made = ["pcapng", "summary", "line", "view"];
    let protocols =
        ["arp", "checksum", "eth", "extension", "guard", "icmp", "ip", "link", "mld", "ndp", "payload", "provoked", "sctp", "tcp", "udp"];
    assert_no_arrow("packet", &protocols, &made);
    assert_no_arrow("packet", &["pcapng"], &[&protocols[..], &["summary", "line", "view"]].concat());
}

#[test]
fn controller_modules_keep_their_distance() {
    assert_no_arrow("controller", &["cli"], &["store", "service", "hub", "jobs", "results", "fleet", "pki", "broker"]);
    assert_no_arrow("controller", &["jobs::plan"], &["store", "hub", "service", "broker", "api"]);
    assert_no_arrow("controller", &["store"], &["api", "cli", "hub", "broker", "service"]);
    assert_no_arrow(
        "controller",
        &["lookup"],
        &["store", "api", "cli", "hub", "broker", "service", "jobs", "results", "fleet", "pki", "config", "view"],
    );
    assert_no_arrow("controller", &["broker", "pki"], &["store", "api", "cli", "service", "hub"]);
}

#[test]
fn sql_stands_in_the_store_alone() {
    for (module, _) in imports("controller") {
        let path = root().join("controller/src").join(module.replace("::", "/"));
        let file = if path.with_extension("rs").exists() { path.with_extension("rs") } else { path.join("mod.rs") };
        if !module.starts_with("store") && file.exists() {
            assert!(!product_code(&file).contains("sqlx"), "{module} must not know sqlx");
        }
    }
}

#[test]
fn unsafe_code_stands_in_the_sockets_of_the_packet_loop_alone() {
    let mut files = Vec::new();
    for dir in ["wire", "packet", "probe", "controller", "tests"] {
        rust_files(&root().join(dir), &mut files);
    }
    let allowed = ["afpacket", "afxdp", "mapping", "receiver"].map(|module| root().join(format!("probe/src/net/{module}.rs")));
    for file in files.into_iter().filter(|file| !allowed.contains(file)) {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let found = code.find(|line| {
            line.contains(concat!("unsafe", " {")) || line.contains(concat!("unsafe", " fn")) || line.contains(concat!("unsafe", " impl"))
        });
        assert_eq!(found, None, "{}", file.display());
    }
}

#[test]
fn dependencies_have_licences_that_we_may_use() {
    const ALLOWED: [&str; 13] = [
        "MIT",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "MPL-2.0",
        "Unicode-3.0",
        "Zlib",
        "CC0-1.0",
        "0BSD",
        "CDLA-Permissive-2.0",
        "Unlicense",
        // BSD in other words; libFuzzer's, which no program that is shipped contains.
        "NCSA",
    ];
    let allowed = |name: &str| ALLOWED.contains(&name.trim_matches(['(', ')', ' ']).split(" WITH ").next().unwrap_or_default());
    for package in metadata()["packages"].as_array().unwrap() {
        let licence = package["license"].as_str().unwrap_or("none").replace('/', " OR ");
        // Every part of an AND must have an alternative that is allowed.
        let good = licence.split(" AND ").all(|part| part.split(" OR ").any(allowed));
        assert!(good, "{} has the licence `{licence}`", package["name"]);
    }
}
