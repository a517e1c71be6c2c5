//! Reads and follows runs, among them a large one on a real etcd. Its times are printed and not judged, because a machine
//! under load is slow.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use lattice_rdzv::{
    Error,
    backend::{Backend, Keys, Operation, Range, Txn, memory::MemoryService},
    error::Applied,
    operate::Operator,
    protocol::{
        identity::NodeId,
        keys::RunKeys,
        plan::shards,
        records::{
            HistoryRecord, NodeRecord, Outcome, Phase, PlanEntry, Record, RoundRecord, WorldMembership,
        },
    },
    run::Entropy,
    settings::RunName,
    status::{
        Reader, Watching,
        picture::{NodeState, State},
        reading::list_tenants,
    },
};
use tokio::time::{Instant, timeout};

use crate::support::{
    etcd::Etcd,
    nodes::{Agent, joined, settings},
    tapped::Tapped,
};

const NODES: u32 = 10_000;
const MISSING: u32 = 4_711;

fn id(number: u32) -> NodeId {
    NodeId::from_random((u64::from(number) + 1) << 1)
}

fn node(number: u32, seeks: u64) -> NodeRecord {
    let text = format!(
        r#"{{"version":1,"name":"host-{number:05}.rack-{}.example.com","address":"10.{}.{}.1","port":29500,"min":2,
        "max":{NODES},"seeks":{seeks},"topology":"rack-{}","leaving":false}}"#,
        number / 40,
        number / 250,
        number % 250,
        number / 40
    );
    NodeRecord::decode("nodes/1", text.as_bytes()).unwrap()
}

/// Writes a run of [`NODES`] nodes in round 3, of which one is missing.
async fn write_run(backend: &dyn Backend, keys: &RunKeys) {
    let lease = 4242;
    backend.lease_grant(lease, Duration::from_secs(600)).await.unwrap();
    let world: Vec<PlanEntry> = (0..NODES)
        .map(|rank| {
            let record = node(rank, 3);
            PlanEntry { id: id(rank), name: record.name, label: record.topology, rank }
        })
        .collect();
    let cut = shards(&world, &BTreeMap::new());
    let forming = RoundRecord::forming("life".into(), 2, NODES, "attempt".into());
    let round = RoundRecord {
        round: 3,
        world: "world".into(),
        size: NODES,
        phase: Phase::Running,
        shards: u32::try_from(cut.len()).unwrap(),
        master_address: "10.0.0.1".into(),
        ..forming
    };
    let history = HistoryRecord {
        round: 3,
        why: "first world".into(),
        took_seconds: 1.0,
        size: NODES,
        newcomers: 0,
        coordinator: "host".into(),
        names: Vec::new(),
        formed_at: Some(1_795_000_000),
        change: None,
        lost: Vec::new(),
    };
    let nodes = (0..NODES).filter(|number| *number != MISSING);
    let mut puts: Vec<Operation> =
        nodes.map(|number| Operation::put(keys.node(id(number)), node(number, 3).encode(), lease)).collect();
    puts.extend((0..).zip(&cut).map(|(number, shard)| {
        Operation::put(keys.plan_shard("life", 3, "attempt", number), shard.encode(), lease)
    }));
    puts.push(Operation::put(keys.history_round("life", 3), history.encode(), lease));
    puts.push(Operation::put(keys.round(), round.encode(), lease));
    for batch in puts.chunks(100) {
        let mut batch = batch.iter().cloned();
        let txn = Txn::new(batch.next().unwrap()).then(batch);
        assert!(backend.txn(txn).await.unwrap().succeeded);
    }
}

fn reader(backend: &Arc<dyn Backend>, keys: &RunKeys) -> Reader {
    Reader {
        backend: Arc::clone(backend),
        keys: keys.clone(),
        run: RunName { run_id: "large".into(), tenant: "default".into() },
        entropy: Entropy::from_system(),
    }
}

/// The nodes of a closed job may still be stopping when another one uses its run id.
#[tokio::test(start_paused = true)]
async fn followed_status_counts_no_node_of_a_closed_job() {
    let service = MemoryService::new();
    let backend: Arc<dyn Backend> = Arc::new(service.connect());
    let keys = RunKeys::new("default", "run");
    backend.lease_grant(1, Duration::from_secs(600)).await.unwrap();
    let round = |life: &str| RoundRecord::forming(life.into(), 2, NODES, "attempt".into());
    let of = |life: &str| {
        let world = "world".into();
        Some(WorldMembership { life: life.into(), round: 7, world, rank: 0, size: 2 })
    };
    let old = NodeRecord { world: of("old"), ..node(1, 8) };
    let txn = Txn::new(Operation::put(keys.round(), round("old").encode(), 1)).then([Operation::put(
        keys.node(id(1)),
        old.encode(),
        1,
    )]);
    backend.txn(txn).await.unwrap();
    let mut watching = Watching::begin(reader(&backend, &keys)).await.unwrap();
    let limit = Duration::from_secs(5);
    watching.next(limit).await.unwrap();

    let begins = Txn::new(Operation::put(keys.closed_life("old"), b"{}".to_vec(), 1)).then([
        Operation::put(keys.round(), round("new").encode(), 1),
        Operation::put(keys.node(id(2)), node(2, 1).encode(), 1),
    ]);
    backend.txn(begins).await.unwrap();
    let (followed, _) = watching.next(limit).await.unwrap();
    let read = reader(&backend, &keys).status(&[]).await.unwrap();
    assert_eq!(followed.verdict.sentence, read.verdict.sentence);
    assert_eq!(followed.counts, read.counts);
    assert_eq!(followed.counts.get(&NodeState::Excluded), Some(&1), "{:?}", followed.nodes);
}

/// A closing whose answer was lost may be applied later.
#[tokio::test(start_paused = true)]
async fn operator_does_not_undo_a_closing_whose_answer_is_lost() {
    let service = MemoryService::new();
    let agents = joined(&service, "2", &["a", "b"]).await;
    join_all(agents.iter().map(|agent| agent.node.next_world(None, None))).await;
    let link = Tapped::new(service.connect());
    link.tap().refuses = Some(Box::new(|txn| {
        txn.operations().iter().any(|operation| matches!(operation, Operation::Put { .. })).then(|| {
            Error::Unavailable {
                endpoint: "memory".into(),
                cause: "no answer".into(),
                applied: Applied::Unknown,
            }
        })
    }));
    let keys = RunKeys::new("default", "run");
    let operator = Operator::over(Arc::new(link.clone()), keys, "me".into(), Entropy::seeded(3));
    let end = operator.close(Outcome::Failed, "test", Duration::from_secs(5)).await;
    assert!(matches!(end, Err(Error::Unavailable { applied: Applied::Unknown, .. })), "{end:?}");
    let lease = link.tap().granted[0];
    assert!(link.inner.lease_life(lease).await.unwrap().is_some(), "the closing would end with its lease");
}

/// The rest of the round is read again, although etcd could not be read at first.
#[tokio::test(start_paused = true)]
async fn followed_status_is_complete_after_a_read_that_failed() {
    let service = MemoryService::new();
    let mut agents = joined(&service, "2:3", &["a", "b"]).await;
    join_all(agents.iter().map(|agent| agent.node.next_world(None, None))).await;
    let link = Tapped::new(service.connect());
    let backend: Arc<dyn Backend> = Arc::new(link.clone());
    let mut watching = Watching::begin(reader(&backend, &RunKeys::new("default", "run"))).await.unwrap();
    let limit = Duration::from_secs(5);
    assert_eq!(watching.next(limit).await.unwrap().0.rounds.len(), 1);

    let mut failures = 2;
    link.tap().fails = Some(Box::new(move |range: &Range| {
        let (Keys::One(start) | Keys::Prefix(start) | Keys::Span(start, _)) = &range.keys;
        let fails = failures > 0 && String::from_utf8_lossy(start).contains("/history/");
        failures -= u32::from(fails);
        fails.then(|| Error::Unavailable {
            endpoint: "memory".into(),
            cause: "cut off".into(),
            applied: Applied::No,
        })
    }));
    agents.push(Agent::join(&service, settings("c", "2:3", &[]), 3).await.unwrap());
    agents[0].node.wait_change(None).await.unwrap();
    join_all(agents.iter().map(|agent| agent.node.next_world(None, None))).await;
    let complete = async {
        loop {
            let (status, _) = watching.next(limit).await.unwrap();
            if status.rounds.len() == 2 && status.verdict.state == State::Formed {
                return;
            }
        }
    };
    timeout(4 * limit, complete).await.unwrap();
}

/// Each client that may write to the service can write such a key.
#[tokio::test(start_paused = true)]
async fn listing_passes_over_a_key_that_is_not_text() {
    let backend = MemoryService::new().connect();
    let keys =
        [b"/lattice/rdzv/a/run/nodes/1".as_slice(), b"/lattice/rdzv/\xff", b"/lattice/rdzv/\xf0\x9f/b"];
    for key in keys {
        backend.txn(Txn::new(Operation::put(key, "", 0))).await.unwrap();
    }
    assert_eq!(list_tenants(&backend).await.unwrap(), ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_of_ten_thousand_nodes_is_read_and_each_change_is_seen() {
    let Some(etcd) = Etcd::start().await else { return };
    let backend: Arc<dyn Backend> = Arc::new(etcd.backend());
    let keys = RunKeys::new("default", "large");
    write_run(backend.as_ref(), &keys).await;
    let before = backend.range(Range::new(keys.control())).await.unwrap().header.revision;

    let began = Instant::now();
    let status = reader(&backend, &keys).status(&[]).await.unwrap();
    let read = began.elapsed();
    let json = serde_json::to_string(&status).unwrap();
    println!("read {NODES} nodes in {read:?}; {} KiB of JSON after {:?}", json.len() / 1024, began.elapsed());
    assert_eq!(status.nodes.len(), NODES as usize);
    assert_eq!(status.counts.get(&NodeState::Member), Some(&(NODES as usize - 1)));
    let missing: Vec<&str> = status.verdict.waits_for.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(missing, ["host-04711.rack-117.example.com"]);

    let mut watching = Watching::begin(reader(&backend, &keys)).await.unwrap();
    let (first, changed) = watching.next(Duration::from_secs(5)).await.unwrap();
    assert!(changed && first.nodes.len() == NODES as usize);
    let writer = Arc::clone(&backend);
    let key = keys.node(id(MISSING));
    let written = tokio::spawn(async move {
        tokio::task::yield_now().await;
        let put = Operation::put(key, node(MISSING, 3).encode(), 4242);
        writer.txn(Txn::new(put)).await.unwrap();
        Instant::now()
    });
    let (second, changed) = watching.next(Duration::from_secs(30)).await.unwrap();
    let seen = Instant::now();
    println!(
        "a change was seen {:?} after its write",
        seen.saturating_duration_since(written.await.unwrap())
    );
    assert!(changed);
    assert_eq!((second.verdict.state, second.verdict.waits_for.len()), (State::Formed, 0));
    assert_eq!(second.counts.get(&NodeState::Member), Some(&(NODES as usize)));

    let after = backend.range(Range::new(keys.control())).await.unwrap().header.revision;
    assert_eq!(after, before + 1, "only the test has written");
}
