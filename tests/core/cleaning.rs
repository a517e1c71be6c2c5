//! What a coordinator's decisions are based on, and what it deletes after a round has formed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use lattice_rdzv::{
    Error,
    backend::{
        Backend as _, Keys, Operation, Range,
        memory::{MemoryBackend, MemoryService},
    },
    error::Applied,
    node::Node,
    protocol::records::ChangeKind,
    run::Entropy,
};
use tokio::time::{Instant, sleep};

use crate::support::{
    nodes::{Agent, TTL, place, settings},
    tapped::Tapped,
};

const RUN: &str = "/lattice/rdzv/default/run/";

/// The coordinator, whose traffic is tapped, and other nodes, all in one world.
async fn world(service: &MemoryService, others: u64, more: &[(&str, &str)]) -> (Node, Tapped, Vec<Agent>) {
    let link = Tapped::new(service.connect_with(TTL / 4));
    let nnodes = format!("1:{}", others + 1);
    let settings = |name: &str| settings(name, &nnodes, more);
    let backend = Arc::new(link.clone());
    let first = Node::join(backend, settings("n0"), Entropy::seeded(1000), place("n0")).await.unwrap();
    let mut agents = Vec::new();
    for number in 1..=others {
        agents.push(Agent::join(service, settings(&format!("n{number}")), number).await.unwrap());
    }
    next_round(&first, &agents).await;
    (first, link, agents)
}

/// All of these nodes request the next round, and are in it.
async fn next_round(first: &Node, agents: &[Agent]) -> u64 {
    let others = join_all(agents.iter().map(|agent| agent.node.next_world(None, None)));
    let (world, others) = tokio::join!(first.next_world(None, None), others);
    let world = world.expect("a world").place.clone();
    for other in others {
        assert_eq!(other.expect("a world").place.round, world.round);
    }
    world.round
}

async fn keys(client: &MemoryBackend, prefix: &str) -> usize {
    let range = Range { keys_only: true, ..Range::new(Keys::prefix(format!("{RUN}{prefix}"))) };
    client.range(range).await.unwrap().items.len()
}

async fn until_there_are(client: &MemoryBackend, count: usize, prefix: &str) {
    let deadline = Instant::now() + Duration::from_secs(100);
    loop {
        let there = keys(client, prefix).await;
        if there == count {
            return;
        }
        assert!(Instant::now() < deadline, "{there} keys under `{prefix}`, not {count}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_decision_is_made_over_all_reports_that_have_arrived() {
    let service = MemoryService::new();
    let (first, link, agents) = world(&service, 3, &[]).await;
    // etcd sends a message for each revision, and these arrive together.
    link.tap().splits = true;
    link.inner.cut();
    let leaving = agents.iter().map(|agent| agent.node.mark_leaving(TTL));
    assert_eq!(join_all(leaving).await, [true; 3]);
    link.inner.reconnect();
    let (_, change) = first.wait_change(Some(TTL)).await.expect("a change");
    assert_eq!((change.kind, change.names.len()), (ChangeKind::Leaving, 3), "{:?}", change.names);
}

#[tokio::test(start_paused = true)]
async fn stores_of_earlier_rounds_are_deleted_in_pieces_after_the_commit() {
    const KEYS: usize = 1_200;
    let service = MemoryService::new();
    let client = service.connect();
    let (first, link, agents) = world(&service, 1, &[]).await;
    let facts = first.subscribe().borrow().world.clone().expect("a world");
    let store = first.round_store(&facts, false);
    for number in 0..KEYS {
        store.set(&format!("key{number}"), b"value", TTL).await.unwrap();
    }
    let deleting = Arc::new(AtomicUsize::new(0));
    let commits_that_delete = Arc::clone(&deleting);
    link.tap().refuses = Some(Box::new(move |txn| {
        let puts_round = |operation: &Operation| matches!(operation, Operation::Put { key, .. } if key.ends_with(b"ctl/round"));
        let deletes = |operation: &Operation| matches!(operation, Operation::Delete(_));
        if txn.operations().iter().any(puts_round) && txn.operations().iter().any(deletes) {
            commits_that_delete.fetch_add(1, Ordering::Relaxed);
        }
        None
    }));
    let mut watch = client.watch(Keys::prefix(format!("{RUN}kv/")), 0).await.unwrap();
    assert_eq!(next_round(&first, &agents).await, 2);
    assert_eq!(keys(&client, "kv/").await, KEYS, "the store of the last round is kept");
    assert_eq!(next_round(&first, &agents).await, 3);
    until_there_are(&client, 0, "kv/").await;
    let mut gone = 0;
    while gone < KEYS {
        let events = watch.next().await.unwrap().events;
        gone += events.len();
        let mut revisions: Vec<_> = events.iter().map(lattice_rdzv::backend::Event::revision).collect();
        revisions.dedup();
        for revision in revisions {
            let piece = events.iter().filter(|event| event.revision() == revision).count();
            assert!(piece <= 500, "{piece} keys in one transaction");
        }
    }
    assert_eq!(deleting.load(Ordering::Relaxed), 0, "commits that delete");
    until_there_are(&client, 2, "plan/").await;
}

#[tokio::test(start_paused = true)]
async fn slots_of_all_gone_nodes_are_deleted_and_those_of_others_stay() {
    let service = MemoryService::new();
    let client = service.connect();
    let (first, _link, mut agents) = world(&service, 150, &[]).await;
    for agent in &agents {
        let store = agent.node.run_store(TTL).await.unwrap();
        store.add("count", 1, false, TTL).await.unwrap();
    }
    assert_eq!(keys(&client, "ops/").await, 150);
    drop(agents.split_off(2));
    first.wait_change(Some(TTL * 3)).await.expect("a change");
    next_round(&first, &agents).await;
    until_there_are(&client, 2, "ops/").await;
    for agent in &agents {
        let store = agent.node.run_store(TTL).await.unwrap();
        store.add("count", 1, false, TTL).await.unwrap();
    }
    let store = agents[0].node.run_store(TTL).await.unwrap();
    assert_eq!(store.get("count", false, TTL).await.unwrap(), Some(b"152".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn new_coordinator_deletes_what_the_last_one_left() {
    let service = MemoryService::new();
    let client = service.connect();
    let ignore = [("on_member_loss", "ignore")];
    let (first, link, agents) = world(&service, 2, &ignore).await;
    let facts = agents[0].node.subscribe().borrow().world.clone().expect("a world");
    agents[0].node.round_store(&facts, false).set("key", b"value", TTL).await.unwrap();
    link.tap().refuses = Some(Box::new(|txn| {
        let deletes = txn.operations().iter().any(|operation| matches!(operation, Operation::Delete(_)));
        deletes.then(|| Error::Unavailable {
            endpoint: "memory".into(),
            cause: "a test".into(),
            applied: Applied::No,
        })
    }));
    next_round(&first, &agents).await;
    next_round(&first, &agents).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(keys(&client, "kv/").await, 1, "it could not be deleted");
    drop(first);
    until_there_are(&client, 0, "kv/").await;
    assert_eq!(agents[0].node.num_nodes_waiting(), 0, "no round has formed since");
}

#[tokio::test(start_paused = true)]
async fn store_of_a_finished_node_is_kept_when_the_coordinator_missed_that_it_finished() {
    let service = MemoryService::new();
    let (first, link, mut agents) = world(&service, 2, &[("rejoin_timeout", "1")]).await;
    // A listing would also show it, but only 30 s later.
    link.tap().loses = Some(Box::new(|event| String::from_utf8_lossy(event.key()).contains("/finished/")));
    let finished = agents.pop().unwrap();
    let facts = finished.node.subscribe().borrow().world.clone().expect("a world");
    let store = finished.node.round_store(&facts, false);
    store.add("barrier", 1, true, TTL).await.unwrap();
    assert_eq!(next_round(&first, &agents).await, 2);
    assert_eq!(next_round(&first, &agents).await, 3);
    // The plan is deleted with the last piece of the stores, and the slots after it.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(store.get("barrier", false, TTL).await.unwrap(), Some(b"1".to_vec()));
}
