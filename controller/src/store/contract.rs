//! What every database must do: one suite, run on each of them.

use std::sync::Arc;

use picket_wire::addr::parse_set;
use picket_wire::capture::{CaptureCounts, CaptureEnd, Captured, Chunk, ChunkState};
use picket_wire::host::{HardwareAddress, SeenBy};
use picket_wire::ids::{JobId, LeaseId, ProbeId, StreamId};
use picket_wire::job::{JobKind, JobSpec, Mode, Priority, ScanOptions, Technique, Transport};
use picket_wire::policy::AddressPolicy;
use picket_wire::result::{Answer, BatchHead, Coverage, NotReached, Record, ResultBatch, Runs, State, UpReason};
use picket_wire::service::{Service, ServiceOutcome};
use picket_wire::space::{Target, TargetSpace, TargetSpec};
use picket_wire::trace::{Hop, Method, Path, PathEnd, Quoted, Reply, ReplyKind, WaysOptions};
use picket_wire::units::UnixMillis;

use super::*;
use crate::fleet::registry::tests::{birth, record};

fn job(number: u64) -> JobRecord {
    let targets = TargetSpec {
        include: parse_set("198.18.0.0/28,2001:db8::/126").unwrap(),
        exclude: Default::default(),
        ports: Some("22,80,443".parse().unwrap()),
        seed: number,
    };
    JobRecord {
        spec: JobSpec {
            id: JobId(number),
            kind: JobKind::Scan(ScanOptions { technique: Technique::Syn, attempts: 2 }),
            targets,
            mode: Mode::Split,
            rate: None,
            priority: Priority::Bulk,
            deadline: Some(UnixMillis(99)),
            policy: AddressPolicy::default(),
        },
        request: serde_json::from_value(serde_json::json!({ "targets": ["198.18.0.0/28"], "ports": "22", "technique": "syn" })).unwrap(),
        summary: "198.18.0.0/28 ports 22".into(),
        actor: "admin".into(),
        whole: false,
        state: JobState::Running,
        reason: Some("why not".into()),
        outcome: Some(Outcome::Cancelled("cancelled by admin".into())),
        created: UnixMillis(1),
        started: Some(UnixMillis(2)),
        ended: None,
        last_grant: 1,
    }
}

fn lease() -> LeaseRecord {
    LeaseRecord {
        number: 1,
        part: 0,
        probe: "attic".parse().unwrap(),
        span: Span { from: 0, to: 20 },
        attempt: 0,
        expires: true,
        granted: UnixMillis(2),
        ended: None,
    }
}

fn coverage(asked: u64) -> Coverage {
    Coverage { asked, open: asked, packets: asked * 2, ..Coverage::default() }
}

fn raw(stream: i64, sequence: u64) -> RawRecord {
    RawRecord { stream, sequence, received: UnixMillis(5), fate: Fate::Counted, reason: None, bytes: vec![1, 2, sequence as u8] }
}

/// Answers for the first `count` natural ranks, all of one state.
fn projection(job: &JobRecord, probe: i64, stream: i64, first: u64, count: u64, state: State, seen: u64) -> Projection {
    let space = TargetSpace::new(&job.spec.targets).unwrap();
    let mut out = Projection::default();
    for rank in first..first + count {
        let Target { addr, port } = space.natural(rank).unwrap();
        let answer = Observation { job: job.spec.id, rank, probe, state, rtt_us: 100 + rank, ttl: 60, seen: UnixMillis(seen) };
        out.observations.push(answer);
        out.ports.push(PortRow { site: "hq".parse().unwrap(), addr, port, transport: Some(Transport::Tcp), answer });
    }
    out.batches.push(BatchRow {
        lease: LeaseId { job: job.spec.id, grant: 1 },
        part: 0,
        span: Span { from: first, to: first + count },
        probe,
        stream,
        sequence: 1,
        started: UnixMillis(4),
        took_ms: 1,
        duplicates: 0,
        coverage: coverage(count),
    });
    out
}

/// All that a database must do.
pub(crate) async fn suite(store: Arc<dyn Store>) {
    let store = store.as_ref();
    numbers(store).await;
    probes(store).await;
    tokens_and_users(store).await;
    jobs(store).await;
    ingest(store).await;
    pages(store).await;
    states(store).await;
    lates(store).await;
    services(store).await;
    link_hosts(store).await;
    paths(store).await;
    captures(store).await;
}

async fn numbers(store: &dyn Store) {
    assert_eq!(store.number("a").await.unwrap(), 0);
    for (value, kept) in [(5, 5), (3, 5), (9, 9)] {
        store.raise_number("a", value).await.unwrap();
        assert_eq!(store.number("a").await.unwrap(), kept);
    }
    store.ping().await.unwrap();
}

async fn probes(store: &dyn Store) {
    let now = UnixMillis(1000);
    let mut probe = ProbeRecord { key: 0, standing: Standing::Invited, labels: vec!["roof".parse().unwrap()], ..record("attic") };
    let token = EnrolToken { hash: [7; 32], expires: UnixMillis(2000), used: None };
    probe.key = store.invite(&probe, &token).await.unwrap();
    assert_eq!(store.enrol_token(probe.key).await.unwrap(), Some(token));
    assert_eq!(store.probes().await.unwrap(), [probe.clone()]);

    // Used up once, by the right hash, in time; and nothing of the rest happens otherwise.
    let certificate = CertificateRecord { serial: "7f01".parse().unwrap(), not_after: UnixMillis(9000) };
    probe.standing = Standing::Enrolled;
    assert!(!store.enrol(&probe, &[8; 32], &certificate, now).await.unwrap());
    assert!(!store.enrol(&probe, &[7; 32], &certificate, UnixMillis(2001)).await.unwrap());
    assert_eq!(store.probes().await.unwrap()[0].standing, Standing::Invited);
    assert!(store.enrol(&probe, &[7; 32], &certificate, now).await.unwrap());
    assert!(!store.enrol(&probe, &[7; 32], &certificate, now).await.unwrap());
    assert_eq!(store.enrol_token(probe.key).await.unwrap().unwrap().used, Some(now));
    probe.certificate_expires = Some(UnixMillis(9000));
    (probe.birth, probe.last_seen) = (Some(birth(3)), Some(UnixMillis(77)));
    assert_eq!(store.put_probe(&probe).await.unwrap(), probe.key);
    assert_eq!(store.probes().await.unwrap(), [probe.clone()]);

    let gone = ProbeRecord { key: 0, ..record("cellar") };
    let gone = ProbeRecord { key: store.invite(&gone, &token).await.unwrap(), ..gone };
    let certificate = CertificateRecord { serial: "7f02".parse().unwrap(), not_after: UnixMillis(9000) };
    assert!(store.enrol(&gone, &[7; 32], &certificate, now).await.unwrap());
    assert!(store.revoked(now).await.unwrap().is_empty());
    store.revoke(&ProbeRecord { standing: Standing::Revoked, reason: Some("stolen".into()), ..gone.clone() }).await.unwrap();
    assert_eq!(store.revoked(now).await.unwrap(), ["7f02".parse().unwrap()]);
    assert!(store.revoked(UnixMillis(9001)).await.unwrap().is_empty(), "an ended certificate needs no revocation");
    assert_eq!(store.enrol_token(gone.key).await.unwrap(), None);
}

async fn tokens_and_users(store: &dyn Store) {
    let token = ApiToken { name: "ci".into(), hash: [1; 32], scope: Scope::Operate, created: UnixMillis(1), expires: Some(UnixMillis(2)) };
    assert!(store.add_api_token(&token).await.unwrap());
    assert!(!store.add_api_token(&ApiToken { hash: [2; 32], ..token.clone() }).await.unwrap());
    assert_eq!(store.api_tokens().await.unwrap(), [token]);
    assert!(store.remove_api_token("ci").await.unwrap() && !store.remove_api_token("ci").await.unwrap());

    let user = UserRecord { name: "wall".into(), hash: [1; 32], created: UnixMillis(1) };
    store.put_user(&user).await.unwrap();
    store.put_user(&UserRecord { hash: [2; 32], ..user.clone() }).await.unwrap();
    assert_eq!(store.users().await.unwrap(), [UserRecord { hash: [2; 32], ..user }]);
    assert!(store.remove_user("wall").await.unwrap() && !store.remove_user("wall").await.unwrap());
}

async fn jobs(store: &dyn Store) {
    let attic: ProbeId = "attic".parse().unwrap();
    let part = PartRecord { number: 0, probe: None, abandoned: None };
    let changes = [
        Change::Job(Box::new(job(10))),
        Change::Part(JobId(10), part.clone()),
        Change::Lease(JobId(10), lease()),
        Change::Exclude(JobId(10), attic.clone(), "it refuses".into()),
        Change::Job(Box::new(JobRecord { state: JobState::Done, ended: Some(UnixMillis(5)), outcome: None, ..job(11) })),
    ];
    store.apply(&changes).await.unwrap();
    let stored = store.job(JobId(10)).await.unwrap().unwrap();
    assert_eq!((stored.job, stored.parts, stored.leases), (job(10), vec![part.clone()], vec![lease()]));
    assert_eq!(stored.exclusions, [(attic, "it refuses".to_owned())]);
    assert_eq!(store.job(JobId(12)).await.unwrap(), None);
    assert_eq!(store.active_jobs().await.unwrap().iter().map(|stored| stored.job.spec.id).collect::<Vec<_>>(), [JobId(10)]);

    let ended = LeaseRecord { ended: Some(LeaseEnding { at: UnixMillis(6), how: "failed".into(), reason: Some("cut".into()) }), ..lease() };
    store
        .apply(&[Change::Lease(JobId(10), ended.clone()), Change::Part(JobId(10), PartRecord { abandoned: Some("gone".into()), ..part })])
        .await
        .unwrap();
    let stored = store.job(JobId(10)).await.unwrap().unwrap();
    assert_eq!((stored.leases, stored.parts[0].abandoned.as_deref()), (vec![ended], Some("gone")));

    let ids = async |states: &[JobState], before, limit| store.job_ids(states, before, limit).await.unwrap();
    assert_eq!(ids(&[], None, 10).await, [JobId(11), JobId(10)]);
    assert_eq!(ids(&[], Some(JobId(11)), 10).await, [JobId(10)]);
    assert_eq!(ids(&[JobState::Done, JobState::Failed], None, 10).await, [JobId(11)]);
    assert_eq!(ids(&[], None, 1).await, [JobId(11)]);
    assert!(store.apply(&[Change::Lease(JobId(999), lease())]).await.is_err(), "a lease of no job");
}

async fn ingest(store: &dyn Store) {
    let probe = store.probes().await.unwrap()[0].clone();
    let stream = store.stream(probe.key, StreamId(u64::MAX - 3)).await.unwrap();
    assert_eq!(stream.stored, 0);
    assert_eq!(store.stream(probe.key, StreamId(u64::MAX - 3)).await.unwrap(), stream);
    let first = Ingest {
        records: vec![raw(stream.key, 1), raw(stream.key, 2)],
        stored: vec![(stream.key, 2)],
        losses: vec![(stream.key, 4, 400)],
        projection: projection(&job(10), probe.key, stream.key, 0, 20, State::Open, 100),
        changes: vec![Change::Job(Box::new(JobRecord { reason: Some("so".into()), ..job(10) }))],
    };
    store.ingest(&first).await.unwrap();
    assert_eq!(store.stream(probe.key, StreamId(u64::MAX - 3)).await.unwrap().stored, 2);
    let stored = store.job(JobId(10)).await.unwrap().unwrap();
    assert_eq!(stored.covered, [(0, Span { from: 0, to: 20 })]);
    assert_eq!((stored.coverage, stored.job.reason.as_deref()), (vec![(probe.id.clone(), coverage(20))], Some("so")));

    // A name that is there already: nothing of the message is stored.
    let again = Ingest {
        records: vec![raw(stream.key, 3), raw(stream.key, 2)],
        stored: vec![(stream.key, 3)],
        projection: projection(&job(10), probe.key, stream.key, 20, 10, State::Open, 100),
        ..Ingest::default()
    };
    assert!(store.ingest(&again).await.is_err());
    assert_eq!(store.stream(probe.key, StreamId(u64::MAX - 3)).await.unwrap().stored, 2);
    assert_eq!(store.job(JobId(10)).await.unwrap().unwrap().covered.len(), 1);
}

async fn pages(store: &dyn Store) {
    let probe = store.probes().await.unwrap()[0].clone();
    let all =
        ObservationQuery { job: JobId(10), ranks: None, columns: None, site: None, probe: None, state: None, after: None, limit: 100 };
    let ranks =
        async |query: &ObservationQuery| store.observations(query).await.unwrap().iter().map(|found| found.answer.rank).collect::<Vec<_>>();
    assert_eq!(ranks(&all).await, (0..20).collect::<Vec<_>>());
    let found = &store.observations(&all).await.unwrap()[7];
    assert_eq!((found.answer.rtt_us, found.answer.ttl, found.answer.state, &found.probe), (107, 60, State::Open, &probe.id));
    assert_eq!(ranks(&ObservationQuery { after: Some((4, probe.key)), limit: 3, ..all.clone() }).await, [5, 6, 7]);
    assert_eq!(ranks(&ObservationQuery { ranks: Some(vec![(2, 3), (18, 30)]), ..all.clone() }).await, [2, 3, 18, 19]);
    assert_eq!(ranks(&ObservationQuery { columns: Some((3, vec![(1, 1)])), ..all.clone() }).await, [1, 4, 7, 10, 13, 16, 19]);
    assert_eq!(ranks(&ObservationQuery { ranks: Some(vec![]), ..all.clone() }).await, [] as [u64; 0]);
    assert_eq!(ranks(&ObservationQuery { state: Some(3), ..all.clone() }).await, [] as [u64; 0]);
    assert_eq!(ranks(&ObservationQuery { site: Some("elsewhere".parse().unwrap()), ..all.clone() }).await, [] as [u64; 0]);
    assert_eq!(ranks(&ObservationQuery { probe: Some(probe.id.clone()), limit: 1, ..all }).await, [0]);

    let query = PortQuery { limit: 100, ..PortQuery::default() };
    let ports = store.ports(&query).await.unwrap();
    assert_eq!((ports.len(), ports[4].technique), (20, Technique::Syn));
    let (addr, port) = (ports[4].row.addr, ports[4].row.port);
    assert_eq!((addr.to_string().as_str(), port), ("198.18.0.1", Some(80)));
    let after = PortQuery { after: Some(("hq".parse().unwrap(), addr, port, Some(Transport::Tcp))), limit: 1, ..query.clone() };
    assert_eq!(store.ports(&after).await.unwrap(), [ports[5].clone()]);
    let one = PortQuery { addrs: Some((addr, addr)), ports: Some(vec![(443, 443), (1, 22)]), ..query.clone() };
    assert_eq!(store.ports(&one).await.unwrap().iter().map(|found| found.row.port).collect::<Vec<_>>(), [Some(22), Some(443)]);

    // What was seen later wins, whatever comes first; of one moment, what comes last.
    for (number, seen, state, wins) in
        [(20, 90, State::Closed, State::Open), (21, 100, State::Closed, State::Closed), (22, 110, State::Open, State::Open)]
    {
        let later = job(number);
        store.apply(&[Change::Job(Box::new(later.clone()))]).await.unwrap();
        let projection = projection(&later, probe.key, 1, 0, 20, state, seen);
        store.ingest(&Ingest { projection, ..Ingest::default() }).await.unwrap();
        let ports = store.ports(&query).await.unwrap();
        assert_eq!(ports.len(), 20);
        assert!(ports.iter().all(|found| found.row.answer.state == wins), "{number}");
    }
}

/// The job's rows of one page, as they are.
async fn found(store: &dyn Store, job: u64) -> Vec<Found> {
    let query =
        ObservationQuery { job: JobId(job), ranks: None, columns: None, site: None, probe: None, state: None, after: None, limit: 100 };
    store.observations(&query).await.unwrap()
}

async fn latest(store: &dyn Store, addr: &str) -> Vec<FoundPort> {
    let addr = addr.parse().unwrap();
    store.ports(&PortQuery { addrs: Some((addr, addr)), limit: 100, ..PortQuery::default() }).await.unwrap()
}

fn answer_at(addr: &str, port: Option<u16>, transport: Option<Transport>, answer: Observation) -> PortRow {
    PortRow { site: "hq".parse().unwrap(), addr: addr.parse().unwrap(), port, transport, answer }
}

async fn states(store: &dyn Store) {
    let probe = store.probes().await.unwrap()[0].clone();
    let job = job(30);
    store.apply(&[Change::Job(Box::new(job.clone()))]).await.unwrap();
    let router = "192.0.2.1".parse().unwrap();
    let all = [
        State::Up,
        State::UpBy(UpReason::Arp),
        State::UpBy(UpReason::Sctp),
        State::UpBy(UpReason::IcmpError),
        State::Open,
        State::Closed,
        State::Filtered { icmp_type: 3, icmp_code: 13 },
        State::FilteredBy { icmp_type: 3, icmp_code: 1, from: router },
        State::FilteredBy { icmp_type: 1, icmp_code: 4, from: "2001:db8::1".parse().unwrap() },
        State::Unfiltered,
    ];
    let observation = |rank: usize, state| Observation {
        job: job.spec.id,
        rank: rank as u64,
        probe: probe.key,
        state,
        rtt_us: 7,
        ttl: 9,
        seen: UnixMillis(500),
    };
    let mut projection = Projection {
        observations: all.iter().enumerate().map(|(rank, state)| observation(rank, *state)).collect(),
        ..Projection::default()
    };
    // A port of one number under three protocols, and the host as a whole, are four things.
    for (transport, state) in
        [(Some(Transport::Tcp), State::Open), (Some(Transport::Udp), State::Closed), (Some(Transport::Sctp), all[7]), (None, all[1])]
    {
        projection.ports.push(answer_at("198.18.9.9", transport.map(|_| 53), transport, observation(0, state)));
    }
    store.ingest(&Ingest { projection, ..Ingest::default() }).await.unwrap();
    assert_eq!(found(store, 30).await.iter().map(|found| found.answer.state).collect::<Vec<_>>(), all);
    let rows = latest(store, "198.18.9.9").await;
    let states: Vec<_> = rows.iter().map(|found| (found.row.transport, found.row.answer.state)).collect();
    assert_eq!(
        states,
        [(None, all[1]), (Some(Transport::Tcp), State::Open), (Some(Transport::Udp), State::Closed), (Some(Transport::Sctp), all[7])]
    );
    let third = &rows[2].row;
    let after = PortQuery {
        addrs: Some((third.addr, third.addr)),
        after: Some((third.site.clone(), third.addr, third.port, third.transport)),
        limit: 9,
        ..PortQuery::default()
    };
    assert_eq!(store.ports(&after).await.unwrap(), [rows[3].clone()]);

    // That a filter lets packets through does not replace what is known of the port; a later answer of the port does.
    for (seen, state, wins) in [
        (600, State::Unfiltered, State::Open),
        (700, State::Closed, State::Closed),
        (800, all[6], all[6]),
        (900, State::Unfiltered, State::Unfiltered),
    ] {
        let row = answer_at("198.18.9.9", Some(53), Some(Transport::Tcp), Observation { seen: UnixMillis(seen), ..observation(0, state) });
        store.ingest(&Ingest { projection: Projection { ports: vec![row], ..Projection::default() }, ..Ingest::default() }).await.unwrap();
        assert_eq!(latest(store, "198.18.9.9").await[1].row.answer.state, wins, "{state:?}");
    }
}

async fn lates(store: &dyn Store) {
    let probe = store.probes().await.unwrap()[0].clone();
    let stream = store.stream(probe.key, StreamId(77)).await.unwrap().key;
    let job = job(40);
    store.apply(&[Change::Job(Box::new(job.clone())), Change::Lease(JobId(40), lease())]).await.unwrap();
    let id = LeaseId { job: JobId(40), grant: 1 };
    let head = BatchHead {
        lease: id,
        from: 0,
        to: 10,
        started: UnixMillis(1000),
        took: std::time::Duration::from_millis(5),
        packets: 10,
        duplicates: 0,
    };
    let open = Answer { offset: 3, state: State::Open, rtt: std::time::Duration::ZERO, ttl: 1 };
    let batch = ResultBatch::new(head, vec![open], Runs::from_ascending([4]), vec![(NotReached::NoRoute, Runs::from_ascending([5]))]);
    let space = TargetSpace::new(&job.spec.targets).unwrap();
    let late = |position: u64, grant| {
        let target = space.target(position).unwrap();
        let answer = Observation {
            job: JobId(40),
            rank: space.index(target).unwrap(),
            probe: probe.key,
            state: State::Closed,
            rtt_us: 9,
            ttl: 3,
            seen: UnixMillis(9_999),
        };
        let row = answer_at(&target.addr.to_string(), target.port, Some(Transport::Tcp), answer);
        LateRow { lease: LeaseId { grant, ..id }, part: 0, position, row }
    };
    let mut projection = Projection::default();
    let site = "hq".parse().unwrap();
    let origin = crate::results::project::Origin {
        probe: probe.key,
        site: &site,
        stream,
        sequence: 1,
        received: UnixMillis(2000),
        transport: Some(Transport::Tcp),
    };
    let whole = batch.check().unwrap();
    crate::results::project::project(&batch, whole, 0, &Default::default(), &space, origin, &mut projection);
    // Silent: counts, also in the transaction of its batch. Answered, refused, not reached, another's, not reported: nothing.
    projection.lates = [(1, 1), (3, 1), (4, 1), (5, 1), (2, 2), (15, 1), (1, 1)].map(|(position, grant)| late(position, grant)).into();
    let raw = |sequence, record: &Record| RawRecord { bytes: picket_wire::codec::encode(record), ..raw(stream, sequence) };
    let first = Ingest { records: vec![raw(1, &Record::Batch(batch))], projection, ..Ingest::default() };
    assert_eq!(store.ingest(&first).await.unwrap().lates, [late(1, 1)]);
    let again = Projection { lates: vec![late(1, 1), late(2, 1), late(9, 1)], ..Projection::default() };
    let counted = store.ingest(&Ingest { projection: again, ..Ingest::default() }).await.unwrap();
    assert_eq!(counted.lates, [late(2, 1), late(9, 1)]);

    let stored = store.job(JobId(40)).await.unwrap().unwrap();
    let coverage = stored.coverage[0].1;
    assert!(coverage.adds_up());
    assert_eq!(
        (coverage.asked, coverage.open, coverage.closed, coverage.silent, coverage.refused, coverage.not_reached),
        (10, 1, 3, 4, 1, 1)
    );
    let rows = found(store, 40).await;
    assert_eq!(rows.len(), 4);
    let closed = rows.iter().find(|found| found.answer.state == State::Closed).unwrap();
    assert_eq!(closed.answer.seen, UnixMillis(1005), "as late as its batch, and not when the record came");
    let target = space.target(9).unwrap();
    let ports = latest(store, &target.addr.to_string()).await;
    assert!(ports.iter().any(|found| found.row.port == target.port && found.row.answer.state == State::Closed));
}

async fn services(store: &dyn Store) {
    let probe = store.probes().await.unwrap()[0].clone();
    let row = |rank: u64, port, outcome: ServiceOutcome, seen| ServiceRow {
        site: "hq".parse().unwrap(),
        addr: "198.18.0.0".parse().unwrap(),
        port,
        transport: Transport::Tcp,
        job: JobId(10),
        rank,
        probe: probe.key,
        outcome,
        seen: UnixMillis(seen),
    };
    let ssh = |version: &str| {
        ServiceOutcome::Identified(Box::new(Service { name: "ssh".into(), version: Some(version.into()), ..Service::default() }))
    };
    let put = async |rows: Vec<ServiceRow>| {
        let projection = Projection { services: rows, ..Projection::default() };
        store.ingest(&Ingest { projection, ..Ingest::default() }).await.unwrap();
    };
    put(vec![row(0, 22, ssh("1"), 200), row(1, 80, ServiceOutcome::Silent, 200), row(40, 9, ssh("of no open port"), 200)]).await;
    // A range measured again says it again, in the same message even: once is enough.
    put(vec![row(0, 22, ServiceOutcome::Silent, 300), row(0, 22, ssh("2"), 300)]).await;
    let rows = found(store, 10).await;
    assert_eq!(rows[0].service, Some((ssh("2"), UnixMillis(300))));
    assert_eq!(rows[1].service, Some((ServiceOutcome::Silent, UnixMillis(200))));
    assert_eq!((&rows[2].service, rows.len()), (&None, 20));
    put(vec![row(0, 22, ssh("older, told later"), 100)]).await;
    let ports = latest(store, "198.18.0.0").await;
    assert_eq!(ports[0].service, Some((ssh("2"), UnixMillis(300))), "what was asked last stays");
    assert_eq!(ports[1].service, Some((ServiceOutcome::Silent, UnixMillis(200))));
}

async fn link_hosts(store: &dyn Store) {
    let probe = store.probes().await.unwrap()[0].clone();
    let row = |addr: &str, mac: u8, how, job, seen| LinkHostRow {
        site: "hq".parse().unwrap(),
        host: HostSeen { addr: addr.parse().unwrap(), mac: Some(HardwareAddress([2, 0, 0, 0, 0, mac])), how },
        job: JobId(job),
        probe: probe.key,
        seen: UnixMillis(seen),
    };
    let put = async |rows: Vec<LinkHostRow>| {
        let projection = Projection { link_hosts: rows, ..Projection::default() };
        store.ingest(&Ingest { projection, ..Ingest::default() }).await.unwrap();
    };
    put(vec![row("198.18.0.9", 1, SeenBy::Arp, 10, 100), row("2001:db8::9", 2, SeenBy::AllNodes, 10, 100)]).await;
    put(vec![row("198.18.0.9", 3, SeenBy::ProxyArp, 11, 50), row("198.18.0.9", 4, SeenBy::Arp, 11, 300)]).await;
    let query = LinkHostQuery { limit: 10, ..LinkHostQuery::default() };
    let all = store.link_hosts(&query).await.unwrap();
    assert_eq!(
        all.iter().map(|found| found.row.clone()).collect::<Vec<_>>(),
        [row("198.18.0.9", 4, SeenBy::Arp, 11, 300), row("2001:db8::9", 2, SeenBy::AllNodes, 10, 100)]
    );
    assert_eq!((all[0].first_seen, &all[0].probe), (UnixMillis(100), &probe.id));
    let of = async |query: LinkHostQuery| store.link_hosts(&query).await.unwrap().len();
    assert_eq!(of(LinkHostQuery { job: Some(JobId(10)), ..query.clone() }).await, 2);
    assert_eq!(of(LinkHostQuery { job: Some(JobId(12)), ..query.clone() }).await, 0);
    assert_eq!(of(LinkHostQuery { site: Some("elsewhere".parse().unwrap()), ..query.clone() }).await, 0);
    let after = Some(("hq".parse().unwrap(), all[0].row.host.addr, probe.id.clone()));
    assert_eq!(store.link_hosts(&LinkHostQuery { after, ..query }).await.unwrap(), [all[1].clone()]);
}

/// A path over one router, of `job`, to the destination at `rank`.
fn path_row(probe: i64, job: u64, rank: u64, dst: &str, router: u8, seen: u64, options: TraceOptions) -> PathRow {
    let dst: IpAddr = dst.parse().unwrap();
    let quoted = Some(Quoted { ttl: 1, tos: 0 });
    let from = [198, 18, 1, router].into();
    let reply = Reply { from, rtt_us: 300, ttl: 64, kind: ReplyKind::TimeExceeded, quoted, mpls: vec![], interfaces: vec![], mtu: None };
    let hops = vec![Hop { ttl: 1, sent: 1, replies: vec![reply], inherited: false }];
    let found = Path { dst, end: PathEnd::Silent, hops, sent: 9, mtu: None };
    let path = TracedPath::path(rank + 100, std::time::Duration::from_millis(9), &found, options.tos);
    let trace = Trace { options, source: Some([198, 18, 1, 1].into()), path };
    PathRow { site: "hq".parse().unwrap(), job: JobId(job), rank, probe, dst, began: UnixMillis(seen - 9), seen: UnixMillis(seen), trace }
}

async fn captures(store: &dyn Store) {
    let (probe, probe_id) = store.probes().await.unwrap().into_iter().map(|probe| (probe.key, probe.id)).next().unwrap();
    let lease = |job, grant| LeaseId { job: JobId(job), grant };
    let row = |lease| CaptureRow {
        lease,
        probe,
        site: "hq".parse().unwrap(),
        stored: 0,
        packed: 0,
        first: UnixMillis(0),
        last: UnixMillis(0),
        over: None,
        checked: false,
        removed: None,
    };
    let put = async |lease, offset, bytes: &[u8], at| {
        store.put_chunk(&row(lease), &Chunk::pack(lease, offset, bytes), UnixMillis(at)).await.unwrap()
    };
    let (one, two) = (lease(30, 1), lease(31, 2));
    assert!(put(one, 0, b"hello ", 100).await);
    assert!(!put(one, 0, b"hello ", 110).await, "it is here already");
    assert!(!put(one, 7, b"orld", 110).await, "something is missing before it");
    assert!(put(one, 6, b"world", 120).await);
    assert!(put(two, 0, b"?", 50).await);
    let of = async |query: CaptureQuery| store.captures(&CaptureQuery { limit: 10, ..query }).await.unwrap();
    let all = of(CaptureQuery::default()).await;
    assert_eq!(all.iter().map(|found| (found.row.lease, found.row.stored)).collect::<Vec<_>>(), [(two, 1), (one, 11)]);
    assert_eq!((all[1].row.first, all[1].row.last, &all[1].probe), (UnixMillis(100), UnixMillis(120), &probe_id));
    assert_eq!(store.captures_size().await.unwrap(), all.iter().map(|found| found.row.packed).sum::<u64>());
    assert_eq!(of(CaptureQuery { after: Some(two), ..CaptureQuery::default() }).await, all[1..]);
    assert_eq!(of(CaptureQuery { lease: Some(one), ..CaptureQuery::default() }).await, all[1..]);
    assert_eq!(of(CaptureQuery { job: Some(JobId(31)), ..CaptureQuery::default() }).await, all[..1]);
    assert_eq!(of(CaptureQuery { site: Some("elsewhere".parse().unwrap()), ..CaptureQuery::default() }).await, []);
    assert_eq!(of(CaptureQuery { probe: Some(probe_id), ..CaptureQuery::default() }).await.len(), 2);
    let untouched = async |since| of(CaptureQuery { untouched_since: Some(UnixMillis(since)), ..CaptureQuery::default() }).await.len();
    assert_eq!(untouched(1_000).await, 0, "neither is over");
    let starts = async |from, limit| {
        let chunks = store.capture_chunks(one, from, limit).await.unwrap();
        chunks.iter().map(|chunk| (chunk.start, chunk.len)).collect::<Vec<_>>()
    };
    assert_eq!(starts(0, 10).await, [(0, 6), (6, 5)]);
    assert_eq!((starts(0, 1).await, starts(5, 1).await, starts(6, 9).await), (vec![(0, 6)], vec![(0, 6)], vec![(6, 5)]));
    assert_eq!((starts(10, 9).await, starts(11, 9).await), (vec![(6, 5)], vec![]));
    // The end of a capture of which nothing is here, and of one that is.
    let over = |lease, len| {
        let counts = CaptureCounts { passed: Some(7), ..CaptureCounts::default() };
        let (interface, filter, end) = ("eth0".to_owned(), String::new(), CaptureEnd::Disk("full".into()));
        let (began, ended) = (UnixMillis(1), UnixMillis(2));
        let over = Captured { lease, began, ended, interface, filter, end, counts, sections: 1, len, sha256: [3; 32] };
        OverRow { probe, site: "hq".parse().unwrap(), came: UnixMillis(200), over }
    };
    let overs = vec![over(one, 11), over(lease(32, 1), 5)];
    store.ingest(&Ingest { projection: Projection { overs: overs.clone(), ..Projection::default() }, ..Ingest::default() }).await.unwrap();
    let states = async || of(CaptureQuery::default()).await.iter().map(|found| found.row.state()).collect::<Vec<_>>();
    assert_eq!(states().await, [ChunkState::Open; 3], "their digests were not looked at");
    assert!(store.capture_checked(one, 11, true).await.unwrap() && !store.capture_checked(one, 10, false).await.unwrap());
    assert_eq!(states().await, [ChunkState::Open, ChunkState::Open, ChunkState::Whole]);
    assert_eq!(of(CaptureQuery { lease: Some(one), ..CaptureQuery::default() }).await[0].row.over, Some(overs[0].over.clone()));
    assert!(put(lease(32, 1), 0, b"12345", 300).await);
    assert!(store.capture_checked(lease(32, 1), 5, false).await.unwrap(), "it comes again");
    let again = of(CaptureQuery { lease: Some(lease(32, 1)), ..CaptureQuery::default() }).await.remove(0).row;
    assert_eq!((again.stored, again.packed, store.capture_chunks(again.lease, 0, 9).await.unwrap()), (0, 0, vec![]));
    assert!(put(lease(32, 1), 0, b"54321", 300).await && store.capture_checked(lease(32, 1), 5, true).await.unwrap());
    assert_eq!(states().await, [ChunkState::Whole, ChunkState::Open, ChunkState::Whole]);
    assert_eq!((untouched(120).await, untouched(121).await, untouched(1_000).await), (0, 1, 2));
    let downloads = [(5, "alice", 0), (9, "bob", 6)].map(|(at, actor, start)| Download { at: UnixMillis(at), actor: actor.into(), start });
    for download in &downloads {
        store.note_download(one, download).await.unwrap();
    }
    assert_eq!(store.downloads(one, 10).await.unwrap(), [downloads[1].clone(), downloads[0].clone()]);
    assert!(store.remove_capture(one, UnixMillis(400), "carol").await.unwrap());
    assert!(
        !store.remove_capture(one, UnixMillis(500), "dave").await.unwrap()
            && !store.remove_capture(lease(9, 9), UnixMillis(1), "x").await.unwrap()
    );
    let removed = of(CaptureQuery { lease: Some(one), ..CaptureQuery::default() }).await.remove(0).row;
    assert_eq!((removed.removed.clone(), removed.state()), (Some((UnixMillis(400), "carol".into())), ChunkState::Removed));
    assert_eq!((starts(0, 9).await, put(one, 11, b"more", 600).await), (vec![], false));
}

async fn paths(store: &dyn Store) {
    let keys: Vec<(i64, ProbeId)> = store.probes().await.unwrap().into_iter().map(|probe| (probe.key, probe.id)).collect();
    let [(one, one_id), (two, _)] = keys.as_slice() else { panic!("the suite has two probes") };
    let usual = || TraceOptions::usual(Method::Icmp, true);
    let udp = TraceOptions { flow: 7, ..TraceOptions::usual(Method::Udp, true) };
    let put = async |rows: Vec<PathRow>| {
        let projection = Projection { paths: rows, ..Projection::default() };
        store.ingest(&Ingest { projection, ..Ingest::default() }).await.unwrap();
    };
    let first = path_row(*one, 20, 3, "198.18.0.3", 2, 100, usual());
    let again = path_row(*one, 20, 3, "198.18.0.3", 4, 150, usual());
    let other = path_row(*one, 20, 9, "2001:db8::9", 2, 100, usual());
    // Told twice, in one transaction and after it, as a probe does that was killed between paths and their batch.
    put(vec![first.clone(), other.clone(), first.clone()]).await;
    put(vec![again.clone()]).await;
    let later = path_row(*one, 21, 0, "198.18.0.3", 5, 300, usual());
    let elsewhere = path_row(*two, 21, 0, "198.18.0.3", 6, 200, usual());
    let by_udp = path_row(*one, 22, 0, "198.18.0.3", 7, 50, udp.clone());
    put(vec![later.clone(), elsewhere.clone(), by_udp.clone()]).await;

    let query = PathQuery { limit: 10, ..PathQuery::default() };
    let of = async |query: PathQuery| store.paths(&query).await.unwrap().into_iter().map(|found| found.row).collect::<Vec<_>>();
    assert_eq!(of(PathQuery { job: Some(JobId(20)), ..query.clone() }).await, [again.clone(), other.clone()]);
    let all = [later.clone(), again.clone(), by_udp.clone(), elsewhere.clone(), other.clone()];
    assert_eq!(of(query.clone()).await, all);
    let latest = [later.clone(), by_udp.clone(), elsewhere.clone(), other.clone()];
    assert_eq!(of(PathQuery { latest: true, ..query.clone() }).await, latest);
    let narrow = PathQuery { addrs: Some(("198.18.0.0".parse().unwrap(), "198.18.0.255".parse().unwrap())), ..query.clone() };
    assert_eq!(of(PathQuery { probe: Some(one_id.clone()), ..narrow.clone() }).await, all[..3]);
    assert_eq!(of(PathQuery { site: Some("elsewhere".parse().unwrap()), ..narrow }).await, []);

    for query in [query.clone(), PathQuery { latest: true, ..query.clone() }, PathQuery { job: Some(JobId(20)), ..query.clone() }] {
        let whole = of(query.clone()).await;
        let mut paged: Vec<PathRow> = Vec::new();
        loop {
            let after = paged.last().map(|row| match query.job {
                Some(_) => PathAfter::Rank(row.rank, row.probe),
                None => PathAfter::Path { dst: row.dst, probe: row.probe, flow: row.trace.flow(), seen: row.seen, job: row.job },
            });
            let page = of(PathQuery { after, limit: 1, ..query.clone() }).await;
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert_eq!(paged, whole);
    }
    // What is known of a way: the first path, until somebody accepts something.
    let known = async || {
        let query = PathQuery { latest: true, known: true, limit: 10, ..PathQuery::default() };
        let found = store.paths(&query).await.unwrap();
        found.into_iter().map(|found| (found.row, found.known.unwrap())).collect::<Vec<_>>()
    };
    let way = |row: &PathRow| Way::of(&row.trace.found(row.dst));
    let before = known().await;
    assert_eq!(before.iter().map(|(row, _)| row.clone()).collect::<Vec<_>>(), latest);
    assert_eq!(before[0].1, KnownWay { way: way(&again), since: again.seen, actor: None });
    let baseline = |way: Way, at| PathBaseline {
        site: later.site.clone(),
        dst: later.dst,
        probe: *one,
        flow: "icmp".into(),
        way,
        accepted: UnixMillis(at),
        actor: "admin".into(),
    };
    store.put_path_baselines(&[baseline(way(&later), 400)]).await.unwrap();
    store.put_path_baselines(&[baseline(way(&other), 500)]).await.unwrap();
    let after = known().await;
    assert_eq!(after[0].1, KnownWay { way: way(&other), since: UnixMillis(500), actor: Some("admin".into()) });
    assert_eq!(after[1..], before[1..]);
    // An end without a path is the latest where something older is known, and nothing where that is not so.
    let end = |rank, dst: &str, seen| {
        let row = path_row(*one, 23, rank, dst, 0, seen, usual());
        let found = Path { dst: row.dst, end: PathEnd::NoRoute, hops: vec![], sent: 0, mtu: None };
        let path = TracedPath::path(rank + 100, std::time::Duration::ZERO, &found, 0);
        PathRow { trace: Trace { path, source: None, ..row.trace.clone() }, ..row }
    };
    let ends = vec![end(0, "198.18.0.3", 600), end(1, "198.18.0.4", 600), end(2, "2001:db8::9", 50)];
    let told = path_row(*one, 23, 7, "198.18.0.3", 8, 590, usual());
    let projection = Projection { paths: vec![told.clone()], path_ends: ends.clone(), ..Projection::default() };
    store.ingest(&Ingest { projection, ..Ingest::default() }).await.unwrap();
    assert_eq!(of(PathQuery { job: Some(JobId(23)), ..query.clone() }).await, [ends[0].clone(), told.clone()]);
    assert_eq!(of(PathQuery { latest: true, ..query.clone() }).await[0], ends[0]);
    let projection = Projection { path_ends: vec![PathRow { rank: 7, ..ends[0].clone() }], ..Projection::default() };
    store.ingest(&Ingest { projection, ..Ingest::default() }).await.unwrap();
    assert_eq!(of(PathQuery { job: Some(JobId(23)), ..query.clone() }).await[1], told, "what was told stays");
    // Of two probes that told a path to one place, one has it.
    let theirs = path_row(*two, 23, 7, "198.18.0.3", 9, 595, usual());
    let settled_paths = vec![SettledPath { job: JobId(23), rank: 7, probe: *two }, SettledPath { job: JobId(23), rank: 0, probe: *one }];
    let projection = Projection { paths: vec![theirs.clone()], settled_paths, ..Projection::default() };
    store.ingest(&Ingest { projection, ..Ingest::default() }).await.unwrap();
    assert_eq!(of(PathQuery { job: Some(JobId(23)), ..query.clone() }).await, [ends[0].clone(), theirs]);
    assert_eq!(of(PathQuery { job: Some(JobId(20)), ..query.clone() }).await, [again.clone(), other.clone()]);
    assert_eq!([&first.trace, &by_udp.trace].map(Trace::flow), ["icmp", "udp/33434+7"]);
    let ways = Some(WaysOptions { confidence: 95, full: false });
    let marked = Trace { options: TraceOptions { tos: 184, ways, ..udp }, ..by_udp.trace };
    assert_eq!(marked.flow(), "udp/33434+7 tos 184 all ways");
}
