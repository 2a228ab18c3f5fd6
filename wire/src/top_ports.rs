//! Ports that are worth asking first, in an order of our own.
//!
//! This is no measurement of how often ports are open, and nobody's frequency data went into it. It is an argument, made in groups:
//! a group comes before another when what it finds matters more to those who watch a network of their own, and within a group the
//! usual port of the most widely deployed software comes first. Facts about who uses which port are IANA's Service Name and
//! Transport Protocol Port Number Registry and the defaults that the software's own documentation states.
//!
//! The order of the groups, and why:
//! 1. what hosts are administered by, and the web: on almost every host, and the first thing an intruder tries;
//! 2. names, mail, files and directories: the services that IANA's registry began with, still in every office;
//! 3. databases, caches, queues and search: rarely meant to be reachable, and costly when they are;
//! 4. containers, virtual machines and the tools that deploy them: whoever reaches them owns the hosts below;
//! 5. industrial and building automation: seldom, and harmful when reachable;
//! 6. cameras, printers, telephones, routers and other devices of the house: many, old, and seldom patched;
//! 7. monitoring, backup, storage and office software: agents that run with high privileges;
//! 8. second ports by convention: where people put a second web server, a test system or a tunnel;
//! 9. the rest of the privileged ports that IANA assigns: only an administrator can open them, so each has a reason;
//! 10. the first ports of the ranges from which systems hand out ports by themselves (RPC and the like).
//!
//! **Invariant:** a longer selection holds every shorter one, and no port is listed twice.

use crate::job::Transport;
use crate::units::PortSet;

/// Ports of one group, the most telling first.
type Group = &'static [u16];

/// What hosts are administered by, and the web.
const TCP_ADMINISTRATION: Group = &[
    443, 22, 80, 3389, 445, 8080, 8443, 23, 5900, 21, 135, 139, 5985, 5986, 2222, 8000, 8888, 10000, 2082, 2083, 2086, 2087, 5901, 5800,
    4899, 5938, 6568, 902, 903, 623, 664, 16992, 16993, 16994, 16995, 8291, 8728, 8729, 2323, 992, 513, 514, 512, 222, 22222, 9090, 12320,
    12321, 3283, 5500, 5631, 5632, 5650, 8040, 8041, 3390, 3391, 9443, 4443, 81, 8081, 8008, 8088, 3000, 5000, 8082, 8083, 8084, 8085,
    8086, 8089, 8090, 8444, 9000, 4444, 591, 593, 7547, 2121, 990, 989, 20,
];

/// Names, mail, files and directories.
const TCP_OFFICE: Group = &[
    53, 25, 587, 465, 143, 993, 110, 995, 389, 636, 88, 464, 749, 3268, 3269, 111, 2049, 548, 873, 853, 49, 113, 119, 563, 79, 70, 37, 13,
    7, 9, 17, 19, 11, 15, 43, 109, 106, 220, 585, 4190, 2000, 24, 26, 2525, 366, 628, 691, 1352, 63148, 3690, 9418, 2401, 194, 6667, 6697,
    6660, 6661, 6662, 6663, 6664, 6665, 6666, 6668, 6669, 7000, 5222, 5269, 5223, 5280, 5281, 8448, 1080, 3128, 8118, 9050, 9051, 1723,
    1194, 1701, 4500, 500, 9001, 427, 1433, 137, 138, 42, 67, 69, 123, 161, 162, 177, 179, 264, 259, 256, 257, 258, 1812, 1813, 2948, 5190,
    1863,
];

/// Databases, caches, queues and search.
const TCP_DATA: Group = &[
    3306, 5432, 6379, 27017, 9200, 1521, 11211, 5984, 1434, 9042, 2181, 9092, 5672, 15672, 1883, 8883, 61616, 8161, 61613, 4222, 8222,
    6222, 5671, 9300, 5601, 7474, 7687, 8123, 9009, 50000, 50001, 523, 1830, 1522, 1523, 1524, 1525, 1526, 1527, 1528, 1529, 2483, 2484,
    1630, 3050, 3351, 4333, 5433, 5434, 6432, 3307, 33060, 33061, 4567, 4568, 26257, 28015, 29015, 28017, 27018, 27019, 27080, 16379,
    26379, 6380, 6381, 6382, 6383, 6384, 7001, 7199, 9160, 10800, 47500, 5701, 11222, 8087, 8098, 9999, 16010, 16020, 16030, 60000, 60010,
    60020, 60030, 8020, 50070, 50075, 50010, 50020, 50090, 8032, 8042, 19888, 10002, 7077, 18080, 4040, 8983, 7700, 8108, 9093, 9094, 6650,
    1099, 1098, 5445, 61614, 61617, 4369, 25672, 9600, 24224, 1414, 1415, 1978, 3333, 30015, 30013, 39013, 39015, 2638, 4100, 6101, 19530,
    6333, 6334, 8529, 2424, 2480, 1972, 5050, 9088,
];

/// Containers, virtual machines, and the tools that deploy them.
const TCP_PLATFORM: Group = &[
    2375, 2376, 6443, 10250, 10255, 2379, 2380, 4243, 10256, 10257, 10259, 10248, 10249, 2377, 7946, 4789, 8001, 8006, 8007, 5480, 9440,
    2020, 8697, 8774, 8775, 8776, 9292, 9696, 35357, 6080, 6081, 6082, 16509, 16514, 8500, 8501, 8502, 8300, 8301, 8302, 8600, 8200, 8201,
    4646, 4647, 4648, 8140, 8139, 4505, 4506, 8144, 61208, 8111, 50500, 8929, 3001, 3002, 5044, 9002, 9003, 15000, 15001, 15010, 15012,
    15014, 15017, 15021, 9901, 19000, 30000, 30080, 30443, 31000, 32000, 8181, 8009, 8005, 4848, 9990, 9993, 7002, 9060, 9043, 9080, 7777,
    7778, 1241, 8834, 9390, 9391, 9392, 55553, 3790, 50050, 9229, 5005, 8787, 1044, 5555, 6000, 6001, 6002, 6003, 6004, 6005, 6006, 6007,
    6008, 6009, 5037, 5858, 9222, 4000, 8889, 8265, 11434, 8554,
];

/// Industrial and building automation.
const TCP_AUTOMATION: Group = &[
    502, 102, 44818, 20000, 47808, 4840, 2404, 1911, 4911, 789, 1962, 5007, 5006, 5094, 18245, 18246, 2455, 1200, 1201, 11740, 1217, 20547,
    19999, 1089, 1090, 1091, 34962, 34963, 34964, 34980, 4001, 4002, 950, 10001, 771, 1025, 55000, 48898, 4712, 4713, 3671, 1628, 1629,
    503, 802, 5020,
];

/// Cameras, printers, telephones, routers and other devices of the house.
const TCP_DEVICES: Group = &[
    554, 9100, 631, 515, 5060, 5061, 37777, 34567, 7070, 1935, 8899, 5357, 5358, 1900, 49152, 49153, 49154, 2869, 5431, 52869, 37215,
    32764, 30005, 58000, 20005, 32400, 32469, 8096, 8920, 7878, 8989, 9091, 51413, 6881, 8112, 58846, 5001, 5009, 10243, 3689, 6466, 6467,
    8060, 1400, 1443, 3400, 3401, 3500, 7100, 49200, 62078, 5353, 1880, 1884, 6052, 6053, 4357, 9123, 55443, 8266, 34568, 34569, 9527,
    9530, 7443, 7080, 7447, 6789, 8880, 8843, 27117, 22443, 3702, 9101, 9102, 9103, 9104, 9105, 9106, 9107, 721, 35, 50100, 2501, 65000,
    8610, 8611, 8612, 9220, 9500, 9290, 9291, 1720, 5038, 2001, 2002, 2003, 4569, 5090, 2428, 2427, 2443, 6970, 8078, 1719, 1718, 5004,
    6800, 10554, 85, 82, 83, 84, 86, 87, 89, 90, 99, 9998, 3478, 5349,
];

/// Monitoring, backup, storage and office software.
const TCP_AGENTS: Group = &[
    10050, 10051, 5666, 5667, 6556, 9115, 9182, 9187, 9121, 9216, 3100, 8125, 8126, 2004, 4317, 4318, 14268, 16686, 9411, 6831, 8094,
    12201, 1514, 1515, 6514, 601, 5140, 9997, 8191, 199, 705, 1984, 4949, 8649, 12489, 5693, 3260, 860, 3205, 10809, 4420, 3300, 6801,
    6802, 6803, 6804, 6805, 6806, 6807, 6808, 6809, 6810, 7480, 24007, 24008, 49155, 49156, 988, 20048, 4045, 4046, 635, 662, 892, 2052,
    2053, 13720, 13721, 1556, 13724, 8014, 2967, 6106, 10082, 10083, 6502, 6503, 6504, 41523, 41524, 5554, 9393, 9394, 9395, 9396, 9397,
    9398, 9399, 9400, 9401, 10005, 10006, 2500, 6160, 6161, 6162, 1500, 1501, 1502, 8400, 8401, 8402, 8403, 497, 4242, 4282, 6690, 22000,
    8384, 3200, 3299, 3600, 50013, 50014, 1128, 1129, 4237, 4238, 3201, 8101, 1604, 1494, 2598, 27000, 7279, 8530, 8531, 5722, 9389, 47001,
    808, 1801, 2101, 2103, 2105, 2107, 5504, 6129, 5120, 5123, 7578, 3520, 17988, 17990, 3668, 5989, 5988, 2381, 2301, 1311, 8192, 8193,
    8194, 6389, 2372, 4172, 32111, 3031, 625, 687, 311, 312, 660, 1640, 8800, 4488, 1503, 27015, 27036, 25565, 25575, 3724, 3074, 30120,
    19132, 64738, 9987, 10011, 30033, 41144, 8767, 14534, 51234,
];

/// Second ports by convention.
const TCP_SECOND: Group = &[
    8002, 8003, 8004, 8010, 8011, 8012, 8013, 8015, 8016, 8017, 8018, 8019, 8021, 8022, 8030, 8031, 8043, 8050, 8051, 8070, 8071, 8072,
    8073, 8074, 8075, 8076, 8077, 8079, 8091, 8092, 8093, 8095, 8097, 8099, 8100, 8180, 8280, 8281, 8333, 8383, 8445, 8446, 8447, 8449,
    8580, 8585, 8686, 8765, 8799, 8801, 8808, 8881, 8882, 8884, 8885, 8886, 8887, 8890, 8980, 8990, 8991, 8999, 9004, 9005, 9006, 9007,
    9008, 9010, 9011, 9012, 9013, 9014, 9015, 9016, 9017, 9018, 9019, 9081, 9082, 9083, 9084, 9085, 9086, 9087, 9095, 9191, 9201, 9444,
    9445, 9800, 9876, 9898, 9900, 9943, 9944, 9981, 9988, 9991, 9992, 9994, 9995, 9996, 10003, 10004, 10008, 10009, 10010, 10080, 10443,
    11000, 12000, 12345, 13000, 14000, 16000, 18081, 20080, 20443, 1234, 1337, 31337, 2022, 2200, 2223, 10022, 20022, 22022, 23023, 3003,
    3004, 3005, 3006, 3007, 3008, 3009, 3010, 3030, 3080, 3443, 4430, 4433, 4445, 4446, 4447, 5010, 5080, 5443, 5801, 5802, 5803, 5902,
    5903, 5904, 5905, 5906, 5907, 5908, 5909, 5910, 6060, 6066, 7010, 7071, 7171, 7200, 7300, 7401, 7402, 7500, 7676, 7741, 7776, 7779,
    7800, 7801, 7900, 7999, 13389, 33389, 33890, 43389, 63389, 33899, 6588, 8197, 8213, 1081, 1085, 9150, 2080, 2095, 2096, 2078, 2079,
    2077, 2089, 2091, 2093,
];

/// Privileged ports that IANA assigns and no group before names.
const TCP_PRIVILEGED: Group = &[
    1, 2, 3, 5, 18, 27, 29, 31, 33, 38, 39, 41, 44, 45, 46, 47, 48, 50, 51, 52, 54, 55, 56, 58, 61, 62, 63, 64, 65, 66, 68, 71, 72, 73, 74,
    76, 78, 91, 92, 93, 94, 95, 96, 97, 98, 101, 104, 105, 107, 108, 112, 115, 117, 118, 129, 130, 131, 132, 133, 134, 136, 144, 150, 156,
    158, 163, 164, 174, 178, 180, 191, 192, 201, 202, 204, 206, 209, 210, 213, 218, 260, 261, 262, 265, 270, 280, 308, 318, 319, 320, 345,
    346, 347, 350, 351, 369, 370, 371, 376, 380, 383, 384, 387, 399, 400, 401, 406, 407, 410, 411, 412, 416, 425, 426, 433, 434, 444, 446,
    447, 448, 458, 475, 487, 491, 510, 517, 518, 520, 524, 525, 530, 531, 532, 533, 540, 541, 542, 543, 544, 545, 546, 547, 550, 555, 556,
    561, 562, 565, 574, 600, 604, 605, 606, 607, 608, 610, 611, 612, 620, 624, 633, 634, 639, 641, 642, 643, 646, 647, 648, 651, 652, 653,
    654, 655, 657, 658, 659, 666, 667, 668, 673, 674, 688, 690, 694, 695, 698, 700, 701, 702, 704, 706, 709, 710, 711, 712, 729, 730, 731,
    740, 741, 742, 744, 747, 748, 750, 751, 752, 753, 754, 758, 759, 760, 761, 762, 763, 764, 765, 767, 769, 770, 772, 773, 774, 775, 776,
    777, 780, 800, 801, 810, 828, 829, 830, 831, 832, 833, 843, 847, 848, 861, 862, 886, 887, 888, 898, 900, 901, 910, 911, 912, 953, 981,
    987, 991, 994, 996, 997, 998, 999, 1000, 1010, 1021, 1022,
];

/// The first ports of the ranges from which systems hand out ports by themselves.
const TCP_DYNAMIC: Group = &[
    1024, 1026, 1027, 1028, 1029, 1030, 49157, 49158, 49159, 49160, 49161, 49162, 49163, 49164, 49165, 49166, 49167, 49168, 49169, 49170,
    32768, 32769, 32770, 32771, 32772, 32773, 32774, 32775, 32776, 32777, 32778, 32779, 32780,
];

const TCP: &[Group] = &[
    TCP_ADMINISTRATION,
    TCP_OFFICE,
    TCP_DATA,
    TCP_PLATFORM,
    TCP_AUTOMATION,
    TCP_DEVICES,
    TCP_AGENTS,
    TCP_SECOND,
    TCP_PRIVILEGED,
    TCP_DYNAMIC,
];

/// UDP, by the same argument: what every network runs and what amplifies; tunnels; automation; devices; telephony; agents and games.
const UDP: &[Group] = &[
    &[53, 161, 123, 137, 5353, 1900, 67, 500, 4500, 69, 389, 111, 443, 514, 1194, 51820],
    &[138, 88, 464, 1812, 1813, 1645, 1646, 623, 3389, 1434, 11211, 19, 17, 7, 13, 37, 9],
    &[162, 177, 68, 546, 547, 520, 521, 2049, 853, 5355, 3702, 427, 1701, 646, 3799, 49],
    &[47808, 44818, 2222, 3671, 5683, 5684, 34964, 9600, 1628, 20000, 502, 5094, 48899, 18246],
    &[5060, 5061, 3478, 3479, 5349, 1719, 4569, 2427, 2727, 5004, 5005, 4789, 6081, 8472],
    &[10001, 5678, 20561, 37810, 8600, 9987, 27015, 27960, 25565, 19132, 3074, 6881, 51413],
    &[2055, 6343, 4739, 9995, 8125, 12201, 3260, 1604, 5632, 17185, 41794, 32414],
];

/// SCTP: signalling of telephone networks (IETF SIGTRAN, 3GPP), then what IANA registers beside TCP.
const SCTP: &[Group] = &[
    &[2905, 36412, 38412, 3868, 2904, 36422, 36443, 38422, 38462, 38472, 5868, 2944, 2945],
    &[9899, 9900, 9901, 9902, 14001, 29118, 29168, 29169, 5060, 5061, 4739, 80, 443, 22, 179],
];

/// The ports of a protocol in order of rank.
pub fn ranked(transport: Transport) -> Vec<u16> {
    let groups = match transport {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
        Transport::Sctp => SCTP,
    };
    groups.concat()
}

/// The `count` ports of highest rank; `None` where the list is shorter, or for none at all.
pub fn top(transport: Transport, count: usize) -> Option<PortSet> {
    let ranked = ranked(transport);
    let ports = ranked.get(..count).filter(|ports| !ports.is_empty())?;
    Some(PortSet::from_ranges(ports.iter().map(|port| (*port, *port))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_have_what_they_promise() {
        let count = |transport| ranked(transport).len();
        assert!((1000..=1300).contains(&count(Transport::Tcp)), "{} TCP ports", count(Transport::Tcp));
        assert!((100..=120).contains(&count(Transport::Udp)), "{} UDP ports", count(Transport::Udp));
        assert!((20..=30).contains(&count(Transport::Sctp)), "{} SCTP ports", count(Transport::Sctp));
        for transport in Transport::ALL {
            let ranked = ranked(transport);
            let once: std::collections::HashSet<u16> = ranked.iter().copied().collect();
            assert_eq!(once.len(), ranked.len(), "{transport:?}: a port is listed twice");
        }
    }

    #[test]
    fn a_longer_selection_holds_every_shorter_one() {
        for transport in Transport::ALL {
            let all = ranked(transport);
            for count in [1, 2, 10, 20, 100, 1000, all.len()].into_iter().filter(|count| *count <= all.len()) {
                let ports = top(transport, count).unwrap();
                assert_eq!(ports.len() as usize, count, "{transport:?}");
                assert!(all[..count].iter().all(|port| ports.rank(*port).is_some()));
            }
            assert_eq!((top(transport, 0), top(transport, all.len() + 1)), (None, None));
        }
    }

    #[test]
    fn port_0_is_never_common() {
        assert!(Transport::ALL.into_iter().all(|transport| !ranked(transport).contains(&0)));
    }
}
