use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::net::UdpSocket;

use super::*;

/// Only waited for when something is broken.
const LONG: Duration = Duration::from_secs(60);

fn addr(last: u8) -> IpAddr {
    [198, 18, 0, last].into()
}

fn addrs(last: impl IntoIterator<Item = u8>) -> BTreeSet<IpAddr> {
    last.into_iter().map(addr).collect()
}

fn settings(timeout: Duration) -> Settings {
    Settings { timeout, ..Settings::default() }
}

/// Answers with the last octet's name; 0 is not answered at all, 1 is refused.
#[derive(Default)]
struct Fake {
    asked: AtomicUsize,
    open: Mutex<(usize, usize)>,
}

#[async_trait]
impl Resolver for Fake {
    async fn pointer(&self, addr: IpAddr) -> Result<Pointer, ResolveError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        {
            let mut open = self.open.lock().unwrap();
            *open = (open.0 + 1, open.1.max(open.0 + 1));
        }
        tokio::task::yield_now().await;
        self.open.lock().unwrap().0 -= 1;
        match addr {
            IpAddr::V4(v4) if v4.octets()[3] == 0 => std::future::pending().await,
            IpAddr::V4(v4) if v4.octets()[3] == 1 => Err(ResolveError::Failed("refused".to_owned())),
            IpAddr::V4(v4) if v4.octets()[3] == 2 => Ok(Pointer::default()),
            _ => Ok(Pointer { names: vec![vec![addr.to_string().into_bytes(), b"test".to_vec()]], ttl: None }),
        }
    }
}

#[tokio::test]
async fn names_come_once_and_are_remembered() {
    let fake = Arc::new(Fake::default());
    let lookup = Lookup::with_resolver(&settings(LONG), Some(fake.clone() as Arc<dyn Resolver>));
    let all = addrs(2..=200);
    let first = lookup.who(&all).await;
    assert_eq!((first.known.len(), first.lacking.len()), (198, 0), "one has no name, and that is an answer");
    assert_eq!(first.known[&addr(7)].names, ["198\\04618\\0460\\0467.test"]);
    assert_eq!(fake.open.lock().unwrap().1, names::AT_ONCE);
    assert_eq!(lookup.who(&all).await, first);
    assert_eq!(fake.asked.load(Ordering::Relaxed), 199);
    // As it was asked for, whatever its form.
    let mapped: IpAddr = "::ffff:198.18.0.7".parse().unwrap();
    assert_eq!(lookup.who(&[mapped].into()).await.known[&mapped], first.known[&addr(7)]);
}

#[tokio::test]
async fn an_answer_does_not_wait_for_one_address_and_not_for_a_dead_resolver() {
    let fake = Arc::new(Fake::default());
    let lookup = Lookup::with_resolver(&settings(Duration::from_millis(100)), Some(fake.clone() as Arc<dyn Resolver>));
    let found = tokio::time::timeout(LONG, lookup.who(&addrs(0..4))).await.unwrap();
    assert_eq!(found.known.keys().copied().collect::<BTreeSet<_>>(), addrs([3]));
    assert_eq!(found.lacking, ["names of 2 of 4 addresses are lacking: refused"]);
    // Neither is asked about again for a while, and others are.
    let again = lookup.who(&addrs(0..5)).await;
    assert_eq!(
        (again.known.len(), again.lacking),
        (2, vec!["names of 2 of 5 addresses are lacking: not answered a moment ago".to_owned()])
    );
    assert_eq!(fake.asked.load(Ordering::Relaxed), 5);

    // Who does not know is no reason to ask him no more.
    let unknown = (0..40).map(|net| IpAddr::from([198, 18, net, 1])).collect();
    assert_eq!(lookup.who(&unknown).await.lacking, ["names of 40 of 40 addresses are lacking: refused"]);
    assert_eq!(lookup.who(&addrs([5])).await.known.len(), 1);

    // Who answers nobody is left alone.
    let dead = (0..40).map(|net| IpAddr::from([198, 19, net, 0])).collect();
    let found = tokio::time::timeout(LONG, lookup.who(&dead)).await.unwrap();
    let silent = |found: &Found| found.lacking.iter().all(|why| why.contains("the resolver did not answer within 100 ms"));
    assert!(found.known.is_empty() && found.lacking.len() == 1 && silent(&found), "{found:?}");
    let asked = fake.asked.load(Ordering::Relaxed);
    let rest = lookup.who(&addrs([3, 10])).await;
    assert_eq!((rest.known.len(), rest.lacking.len()), (1, 1), "what is known is told: {rest:?}");
    assert!(silent(&rest) && fake.asked.load(Ordering::Relaxed) == asked, "{rest:?}");
}

#[tokio::test]
async fn who_looks_nothing_up_says_so() {
    let found = Lookup::new(&Settings::default()).who(&addrs([1])).await;
    assert!(found.known.is_empty() && found.lacking[0].contains("set `lookup.reverse` or `lookup.origin`"), "{found:?}");
}

/// A DNS server that answers one question for each entry, and every other one with NXDOMAIN.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The labels of a question's name, and where they end.
fn question(packet: &[u8]) -> (Vec<String>, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while packet[at] > 0 {
        let len = usize::from(packet[at]);
        labels.push(String::from_utf8(packet[at + 1..at + 1 + len].to_vec()).unwrap().to_lowercase());
        at += 1 + len;
    }
    (labels, at + 1)
}

/// A response without anything but the question, with a code and so many answers.
fn head(packet: &[u8], end: usize, code: u8, answers: u8) -> Vec<u8> {
    let mut response = packet[..end + 4].to_vec();
    (response[2], response[3]) = (0x85, 0x80 | code);
    response[6..12].copy_from_slice(&[0, answers, 0, 0, 0, 0]);
    response
}

fn record(ttl: u32, labels: &[&[u8]]) -> Vec<u8> {
    let mut name: Vec<u8> = labels.iter().flat_map(|label| [&[label.len() as u8][..], label].concat()).collect();
    name.push(0);
    let mut record = vec![0xc0, 12, 0, 12, 0, 1];
    record.extend(ttl.to_be_bytes());
    record.extend((name.len() as u16).to_be_bytes());
    [record, name].concat()
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 1_500];
            loop {
                let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
                let (labels, end) = question(&buffer[..len]);
                let name = labels.join(".");
                seen.lock().unwrap().push(name.clone());
                let answer = |records: &[Vec<u8>]| [head(&buffer[..len], end, 0, records.len() as u8), records.concat()].concat();
                let response = match name.as_str() {
                    "1.0.18.198.in-addr.arpa" => answer(&[record(300, &[b"edge1", b"example", b"net"])]),
                    "2.0.18.198.in-addr.arpa" => answer(&[record(300, &[b"b", b"test"]), record(300, &[b"a", b"test"])]),
                    "3.0.18.198.in-addr.arpa" => answer(&[record(0, &[b"\x1b]0;owned\x07", b"a.b \n", b"\xff\xfe"])]),
                    // More than there is, and a pointer that leads to itself.
                    "4.0.18.198.in-addr.arpa" => [head(&buffer[..len], end, 0, 9), vec![0xc0; 40]].concat(),
                    "5.0.18.198.in-addr.arpa" => head(&buffer[..len], end, 2, 0),
                    name if name.ends_with("8.b.d.0.1.0.0.2.ip6.arpa") => answer(&[record(300, &[b"six", b"test"])]),
                    _ => head(&buffer[..len], end, 3, 0),
                };
                socket.send_to(&response, from).await.unwrap();
            }
        });
        Self { address, asked, task }
    }
}

#[tokio::test]
async fn names_are_asked_of_a_real_server_and_hostile_ones_are_harmless() {
    let server = Server::start().await;
    let asked = Settings { reverse: true, server: Some(server.address), timeout: Duration::from_secs(5), origin: None };
    let lookup = Lookup::new(&asked);
    let mut all = addrs([1, 2, 3, 5, 6]);
    all.insert("2001:db8::9".parse().unwrap());
    let found = lookup.who(&all).await;
    let names = |addr: IpAddr| found.known.get(&addr).map(|known| known.names.join(" ")).unwrap_or_default();
    assert_eq!(names(addr(1)), "edge1.example.net");
    assert_eq!(names(addr(2)), "a.test b.test");
    assert_eq!(names(addr(3)), "\\027\\0930\\059owned\\007.a\\046b\\032\\010.\\255\\254");
    assert_eq!((names(addr(5)), names(addr(6))), (String::new(), String::new()));
    assert_eq!(names("2001:db8::9".parse().unwrap()), "six.test");
    assert!(found.lacking.len() == 1 && found.lacking[0].starts_with("names of 1 of 6 addresses are lacking: "), "{:?}", found.lacking);

    // What is remembered is not asked again, not even that there is nothing.
    let times = server.asked.lock().unwrap().len();
    let again = lookup.who(&all).await;
    assert_eq!((again.known, server.asked.lock().unwrap().len()), (found.known, times));

    let nonsense = lookup.who(&addrs([4])).await;
    assert!(nonsense.known.is_empty() && nonsense.lacking.len() == 1, "{nonsense:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said() {
    // Bound and never read.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let settings =
        Settings { reverse: true, server: Some(socket.local_addr().unwrap()), timeout: Duration::from_millis(200), origin: None };
    let lookup = Lookup::new(&settings);
    let found = tokio::time::timeout(LONG, lookup.who(&addrs(1..100))).await.unwrap();
    assert!(found.known.is_empty() && found.lacking[0].starts_with("names of 99 of 99 addresses are lacking: "), "{found:?}");
}

const ONE: &str = "198.18.0.0\t198.18.0.127\t64500\tDE\tEXAMPLE-ONE One\n198.18.0.128\t198.18.0.255\t0\tNone\tNot routed\n";
const OTHER: &str = "198.18.0.0\t198.18.0.255\t64501\tFR\tEXAMPLE-OTHER\n";

fn origin(found: &Found, last: u8) -> Option<(u32, String)> {
    found.known.get(&addr(last)).and_then(|known| known.origin.as_ref()).map(|origin| (origin.asn, origin.description.clone()))
}

#[tokio::test]
async fn origins_are_read_when_they_are_wanted_and_again_when_the_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.tsv");
    // A rename is another file, whatever the clock of the file system.
    let put = |bytes: &[u8]| {
        let part = dir.path().join("part");
        std::fs::write(&part, bytes).unwrap();
        std::fs::rename(&part, &path).unwrap();
    };
    let lookup = Lookup::new(&Settings { origin: Some(path.clone()), timeout: LONG, ..Settings::default() });
    let missing = lookup.who(&addrs([1])).await;
    assert!(missing.lacking[0].contains("table.tsv cannot be read: No such file"), "{missing:?}");
    put(ONE.as_bytes());
    let found = lookup.who(&addrs([1, 200])).await;
    assert_eq!((origin(&found, 1), origin(&found, 200), found.lacking.len()), (Some((64_500, "EXAMPLE-ONE One".into())), None, 0));

    // A table that is broken does not take away the one that is there, and its place is told.
    put(format!("{OTHER}nonsense\n").as_bytes());
    let broken = loop {
        let found = lookup.who(&addrs([1])).await;
        assert_eq!(origin(&found, 1), Some((64_500, "EXAMPLE-ONE One".into())));
        if !found.lacking.is_empty() {
            break found;
        }
        tokio::task::yield_now().await;
    };
    assert!(broken.lacking[0].contains("cannot be used: line 2: 1 columns"), "{broken:?}");

    // Compressed, as it is published.
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(OTHER.as_bytes()).unwrap();
    put(&gz.finish().unwrap());
    let found = loop {
        let found = lookup.who(&addrs([200])).await;
        if origin(&found, 200).is_some() {
            break found;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((origin(&found, 200), found.lacking.len()), (Some((64_501, "EXAMPLE-OTHER".into())), 0));
}
