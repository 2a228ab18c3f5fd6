use super::*;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(text: &str, prefix: u8) -> InterfaceAddress {
    InterfaceAddress { ip: ip(text), prefix, usable: true }
}

fn interface(addresses: Vec<InterfaceAddress>) -> Interface {
    Interface { index: 2, name: "eth0".into(), kind: InterfaceKind::Ethernet, mac: Some(Mac([2; 6])), mtu: 1500, up: true, addresses }
}

fn route(network: &str, prefix: u8, action: RouteAction) -> Route {
    Route { network: ip(network), prefix, action, interface: Some(2), source: None, metric: 100 }
}

fn table() -> RouteTable {
    let addresses = vec![address("192.0.2.9", 24), address("198.18.0.1", 16), address("fe80::9", 64), address("2001:db8::9", 64)];
    let mut elsewhere = route("198.18.7.0", 24, RouteAction::OnLink);
    elsewhere.interface = Some(3);
    let routes = vec![
        route("0.0.0.0", 0, RouteAction::Via(ip("192.0.2.1"))),
        route("192.0.2.0", 24, RouteAction::OnLink),
        route("198.18.0.0", 16, RouteAction::OnLink),
        route("198.18.9.0", 24, RouteAction::Deny),
        route("198.18.9.128", 25, RouteAction::Via(ip("198.18.0.2"))),
        route("198.18.255.255", 32, RouteAction::Broadcast),
        Route { interface: Some(1), ..route("192.0.2.9", 32, RouteAction::Local) },
        elsewhere,
        route("2001:db8::", 64, RouteAction::OnLink),
        route("fe80::", 64, RouteAction::OnLink),
        Route { metric: 10, ..route("::", 0, RouteAction::Via(ip("fe80::1"))) },
        Route { metric: 1, interface: None, ..route("2001:db8:dead::", 48, RouteAction::Deny) },
    ];
    RouteTable::new(interface(addresses), routes, &[])
}

#[test]
fn longest_prefix_wins_and_denial_is_respected() {
    let table = table();
    for (dst, hop) in [
        ("192.0.2.7", NextHop::OnLink(ip("192.0.2.7"))),
        ("8.8.8.8", NextHop::Via(ip("192.0.2.1"))),
        ("198.18.9.7", NextHop::NoRoute),
        ("198.18.9.200", NextHop::Via(ip("198.18.0.2"))),
        ("198.18.255.255", NextHop::Group(Mac::BROADCAST)),
        ("192.0.2.9", NextHop::NoRoute),
        ("198.18.7.1", NextHop::OnLink(ip("198.18.7.1"))),
        ("2001:db8::77", NextHop::OnLink(ip("2001:db8::77"))),
        ("2001:db8:1::1", NextHop::Via(ip("fe80::1"))),
        ("2001:db8:dead::1", NextHop::NoRoute),
        ("ff02::1", NextHop::Group(Mac([0x33, 0x33, 0, 0, 0, 1]))),
    ] {
        assert_eq!(table.lookup(ip(dst)), hop, "{dst}");
    }
}

#[test]
fn no_default_route_is_no_route() {
    let table = RouteTable::new(interface(vec![]), vec![route("192.0.2.0", 24, RouteAction::OnLink)], &[]);
    assert_eq!(table.lookup(ip("198.51.100.1")), NextHop::NoRoute);
    assert_eq!(table.source(), Source { v4: None, v6: None });
}

#[test]
fn source_addresses() {
    let table = table();
    for (dst, source) in [
        ("198.18.3.3", "198.18.0.1"),
        ("192.0.2.3", "192.0.2.9"),
        ("203.0.113.1", "192.0.2.9"),
        ("fe80::5", "fe80::9"),
        ("2001:db8::5", "2001:db8::9"),
        ("2001:db8:5::5", "2001:db8::9"),
    ] {
        assert_eq!(table.source_for(ip(dst)), Some(ip(source)), "{dst}");
    }
    assert_eq!(table.source(), Source { v4: "192.0.2.9".parse().ok(), v6: "2001:db8::9".parse().ok() });
}

#[test]
fn the_route_prefers_a_source() {
    let mut preferring = route("198.18.0.0", 16, RouteAction::OnLink);
    preferring.source = Some(ip("198.18.0.77"));
    let table = RouteTable::new(interface(vec![address("198.18.0.1", 16), address("198.18.0.77", 16)]), vec![preferring], &[]);
    assert_eq!(table.source().v4, Some("198.18.0.77".parse().unwrap()));
}

#[test]
fn without_a_default_route_the_source_is_the_interfaces() {
    let table = RouteTable::new(interface(vec![address("198.18.0.1", 16)]), vec![route("198.18.0.0", 16, RouteAction::OnLink)], &[]);
    assert_eq!(table.source().v4, Some("198.18.0.1".parse().unwrap()));
}

proptest! {
    #[test]
    fn lookup_is_the_longest_match(
        routes in proptest::collection::vec((any::<u32>(), 0u8..=32, any::<bool>()), 0..20),
        dst in any::<u32>(),
        near in 0usize..20,
    ) {
        let routes: Vec<Route> = routes.iter().map(|(network, prefix, via)| {
            let network = if *prefix == 0 { 0 } else { network >> (32 - prefix) << (32 - prefix) };
            let action = if *via { RouteAction::Via(ip("192.0.2.1")) } else { RouteAction::OnLink };
            Route { network: IpAddr::V4(network.into()), prefix: *prefix, action, interface: Some(2), source: None, metric: 0 }
        }).collect();
        // Half the time an address that some route covers.
        let dst = routes.get(near).map_or(dst, |route| match route.network { IpAddr::V4(n) => u32::from(n) | (dst & 0xf), IpAddr::V6(_) => dst });
        let dst = IpAddr::V4(dst.into());
        prop_assume!(!dst.is_multicast() && dst != IpAddr::V4(Ipv4Addr::BROADCAST));
        let longest = routes.iter().filter(|route| route.covers(dst)).map(|route| route.prefix).max();
        let table = RouteTable::new(interface(vec![]), routes.clone(), &[]);
        prop_assert_eq!(table.route(dst).map(|route| route.prefix), longest);
        prop_assert_eq!(table.lookup(dst) == NextHop::NoRoute, longest.is_none());
    }
}

#[test]
fn neighbours_that_are_written_down_are_not_asked_for() {
    let neighbour = |text: &str, vouched| KernelNeighbour { interface: 2, ip: ip(text), mac: Mac([2, 0, 0, 0, 0, 7]), vouched };
    let known = [
        neighbour("192.0.2.7", Vouched::Fixed),
        neighbour("192.0.2.8", Vouched::Confirmed),
        neighbour("192.0.2.10", Vouched::Seen),
        neighbour("2001:db8::7", Vouched::Fixed),
    ];
    let RouteTable { interface, v4, v6, .. } = table();
    let link = RouteTable::new(interface, [v4, v6].concat(), &known).local_link().unwrap();
    for (addr, asked) in [
        ("192.0.2.6", true),
        ("192.0.2.7", false),
        ("192.0.2.8", true),
        ("192.0.2.10", true),
        ("2001:db8::6", true),
        ("2001:db8::7", false),
    ] {
        assert_eq!(link.source_for(ip(addr)).is_some(), asked, "{addr}");
    }
    assert!(link.holds(ip("192.0.2.8"), ip("192.0.2.12")));
    assert!(!link.holds(ip("192.0.2.4"), ip("192.0.2.7")), "one of them is asked by IP packets, which takes its own time");
}
