//! `picket-probe trace --multipath` through routers that spread load: every router and every link.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use picket_tests::lab::require_root;
use picket_tests::lab::ways::Ways;
use picket_tests::system::ways;

#[test]
fn every_way_is_found_by_either_form() {
    if !require_root() {
        return;
    }
    let lab = Ways::new("ways").unwrap();
    for form in ["lite", "full"] {
        for method in ["udp", "tcp"] {
            let graph = ways::graph(&lab, &["--method", method, "--confidence", "99", &format!("--multipath={form}")]).unwrap();
            let expected = lab.links();
            assert_eq!(graph.links, *expected, "{form} by {method}: {:?} are missing", expected.difference(&graph.links));
            assert_eq!((graph.nodes, graph.end.as_str()), (lab.routers() + 1, "reached"), "{form} by {method}");
        }
    }
    // Echo requests have no ports: to these routers they are one flow, and so there is one way.
    let graph = ways::graph(&lab, &["--multipath", "--method", "icmp"]).unwrap();
    assert!(graph.links.is_subset(lab.links()) && graph.links.len() == 4, "{graph:?}");
}
