//! Slow joins, slow descriptions, concurrent closings, and what each of them leaves in the service.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use lattice_rdzv::{
    Error,
    backend::{
        Backend as _, Event, Keys, Operation, Range, Txn,
        memory::{Call, Fate, MemoryBackend, MemoryService},
    },
    error::Applied,
    node::Node,
    protocol::{
        keys::RunKeys,
        records::{DrainRecord, Outcome, Record as _, RoundRecord},
    },
    run::Entropy,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    nodes::{Agent, TTL, place, settings},
    tapped::Tapped,
};

const RUN: &str = "/lattice/rdzv/default/run/";

async fn tapped(service: &MemoryService, name: &str, nnodes: &str, more: &[(&str, &str)]) -> (Node, Tapped) {
    let link = Tapped::new(service.connect_with(TTL / 4));
    let backend = Arc::new(link.clone());
    let seed = name.bytes().map(u64::from).sum();
    let node = Node::join(backend, settings(name, nnodes, more), Entropy::seeded(seed), place(name)).await;
    (node.expect("joined"), link)
}

async fn items(client: &MemoryBackend, prefix: &str) -> Vec<lattice_rdzv::backend::KeyValue> {
    client.range(Range::new(Keys::prefix(format!("{RUN}{prefix}")))).await.unwrap().items
}

#[tokio::test(start_paused = true)]
async fn slow_join_leaves_no_record_of_a_node_that_does_not_exist() {
    let service = MemoryService::new();
    let link = Arc::new(service.connect_with(TTL / 4));
    let began = Instant::now();
    // What it writes in the first half of a TTL arrives soon after that half, when the node has given up these
    // attempts.
    link.interfere(Some(Box::new(move |call| {
        let arrives = began + TTL * 6 / 10;
        let early = call == Call::Txn && began.elapsed() < TTL / 2;
        let request_delay = if early { arrives - Instant::now() } else { Duration::ZERO };
        Fate { request_delay, ..Fate::default() }
    })));
    let agent = Agent::join_over(link, settings("a", "1", &[]), 1).await.expect("joined");
    agent.node.next_world(None, None).await.expect("a world");
    sleep((TTL * 7 / 10).saturating_sub(began.elapsed())).await;
    assert!(began.elapsed() < TTL, "before the first lease expires by itself");
    let nodes = items(&service.connect(), "nodes/").await;
    assert_eq!(nodes.len(), 1, "{nodes:?}");
}

#[tokio::test(start_paused = true)]
async fn node_that_leaves_while_it_joins_leaves_no_record() {
    let service = MemoryService::new();
    let (node, link) = tapped(&service, "a", "2", &[]).await;
    // No response to a join arrives from now on. Only a join compares two keys.
    let joins = Arc::new(AtomicBool::new(false));
    let is_join = Arc::clone(&joins);
    link.tap().refuses = Some(Box::new(move |txn: &Txn| {
        is_join.store(txn.conditions().len() == 2, Ordering::Relaxed);
        None
    }));
    link.inner.interfere(Some(Box::new(move |call| {
        let answer_lost = call == Call::Txn && joins.load(Ordering::Relaxed);
        Fate { answer_lost, ..Fate::default() }
    })));
    service.wipe();
    let client = service.connect();
    let deadline = Instant::now() + 3 * TTL;
    while items(&client, "nodes/").await.is_empty() {
        assert!(Instant::now() < deadline, "the node joins again");
        sleep(Duration::from_millis(10)).await;
    }
    assert!(node.leave(None).await);
    assert_eq!(items(&client, "nodes/").await.len(), 0, "before the lease expires");
}

#[tokio::test(start_paused = true)]
async fn world_is_returned_at_once_while_a_log_line_is_still_being_written() {
    for limit in [None, Some(Duration::from_secs(5))] {
        let service = MemoryService::new();
        let (first, link) = tapped(&service, "a", "2", &[]).await;
        let began = Instant::now();
        let slow = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&slow);
        link.inner.interfere(Some(Box::new(move |call| {
            let describes = call == Call::Range && began.elapsed() >= Duration::from_secs(5);
            asked.fetch_or(describes, Ordering::Relaxed);
            Fate { request_lost: describes, ..Fate::default() }
        })));
        let second = async {
            while !slow.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(10)).await;
            }
            Agent::join(&service, settings("b", "2", &[]), 2).await.unwrap()
        };
        let (world, _second) = tokio::join!(first.next_world(None, limit), second);
        assert_eq!(world.expect("a world").place.size, 2);
        let waited = began.elapsed();
        assert!(waited < Duration::from_millis(5_200), "{waited:?}: an attempt takes 750 ms");
    }
}

#[tokio::test(start_paused = true)]
async fn starters_that_wait_for_a_closed_run_do_not_poll() {
    let service = MemoryService::new();
    let (first, _) = tapped(&service, "a", "1", &[]).await;
    first.next_world(None, None).await.expect("a world");
    assert!(first.close(Outcome::Failed, "a test", None).await);
    assert!(first.leave(None).await);

    let refused = Arc::new(AtomicUsize::new(0));
    let mut starters = Vec::new();
    let mut watches = Vec::new();
    for name in ["b", "c", "d"] {
        let link = Tapped::new(service.connect_with(TTL / 4));
        let (backend, count) = (Arc::new(link.clone()), Arc::clone(&refused));
        link.tap().refuses = Some(Box::new(move |txn: &Txn| {
            count.fetch_add(usize::from(!txn.conditions().is_empty()), Ordering::Relaxed);
            None
        }));
        let (opened, control) = (Arc::new(AtomicUsize::new(0)), Keys::prefix(format!("{RUN}ctl/")));
        watches.push(Arc::clone(&opened));
        link.tap().denies = Some(Box::new(move |keys| {
            opened.fetch_add(usize::from(*keys == control), Ordering::Relaxed);
            None
        }));
        let settings = settings(name, "3", &[("reuse_delay", "30")]);
        starters.push(async move {
            let seed = u64::from(name.as_bytes()[0]);
            let node = Node::join(backend, settings, Entropy::seeded(seed), place(name)).await;
            node.expect("joined")
        });
    }
    let began = Instant::now();
    let waiting = join_all(starters);
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_secs(29), &mut waiting).await;
    assert!(early.is_err(), "the closed run's id was used again too soon");
    assert_eq!(refused.load(Ordering::Relaxed), 3, "one proposal for each starter");
    let watches = || watches.iter().map(|opened| opened.load(Ordering::Relaxed)).collect::<Vec<_>>();
    assert_eq!(watches(), [1, 1, 1]);
    let nodes = waiting.await;
    assert!(began.elapsed() < Duration::from_secs(32), "{:?}", began.elapsed());
    assert_eq!(watches(), [1, 1, 1]);
    let worlds = join_all(nodes.iter().map(|node| node.next_world(None, None))).await;
    assert!(worlds.into_iter().all(|world| world.expect("a world").place.size == 3));
}

#[tokio::test(start_paused = true)]
async fn starter_joins_as_soon_as_another_one_uses_the_id_again() {
    let service = MemoryService::new();
    let (first, _) = tapped(&service, "a", "1", &[]).await;
    first.next_world(None, None).await.expect("a world");
    assert!(first.close(Outcome::Failed, "a test", None).await && first.leave(None).await);
    let began = Instant::now();
    let waits = Agent::join(&service, settings("b", "2", &[("reuse_delay", "50")]), 2);
    let begins = async {
        sleep(Duration::from_secs(10)).await;
        Agent::join(&service, settings("c", "2", &[("reuse_delay", "0")]), 3).await
    };
    let (b, c) = tokio::join!(waits, begins);
    let elapsed = began.elapsed();
    assert!(elapsed < Duration::from_secs(11), "{elapsed:?}");
    let (b, c) = (b.expect("joined"), c.expect("joined"));
    let worlds = tokio::join!(b.node.next_world(None, None), c.node.next_world(None, None));
    assert_eq!((worlds.0.unwrap().place.size, worlds.1.unwrap().place.size), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn closers_that_lose_keep_no_lease_and_those_that_leave_renew_none() {
    const CLOSERS: usize = 20;
    let service = MemoryService::new();
    let mut nodes = Vec::new();
    for number in 0..CLOSERS {
        nodes.push(tapped(&service, &format!("n{number}"), &CLOSERS.to_string(), &[]).await);
    }
    for world in join_all(nodes.iter().map(|(node, _)| node.next_world(None, None))).await {
        world.expect("a world");
    }
    let lives = |service: &MemoryService| service.backup().leases().count();
    assert_eq!(lives(&service), CLOSERS + 1, "a lease for each node, and the run's");
    let before = nodes.iter().map(|(_, link)| link.tap().granted.len()).sum::<usize>();
    let closed = join_all(nodes.iter().map(|(node, _)| node.close(Outcome::Succeeded, "done", None))).await;
    assert_eq!(closed, [true; CLOSERS]);
    let granted = nodes.iter().map(|(_, link)| link.tap().granted.len()).sum::<usize>() - before;
    assert!(granted > 1, "several have tried: {granted}");
    assert_eq!(join_all(nodes.iter().map(|(node, _)| node.leave(None))).await, [true; CLOSERS]);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(lives(&service), 2, "the run's and the closing's");
    let own = |link: &Tapped| link.tap().granted[0];
    let renewed = nodes.iter().flat_map(|(_, link)| {
        let own = own(link);
        let renewed = link.tap().renewed.clone();
        renewed.into_iter().filter(move |lease| *lease != own)
    });
    assert!(
        renewed.count() <= 2,
        "renewals of the run's lease and of the closing's by nodes that left at once"
    );
}

#[tokio::test(start_paused = true)]
async fn nodes_that_stay_after_the_closing_keep_the_run_s_lease() {
    let service = MemoryService::new();
    let (first, _) = tapped(&service, "a", "2", &[]).await;
    let (second, _) = tapped(&service, "b", "2", &[]).await;
    let worlds = tokio::join!(first.next_world(None, None), second.next_world(None, None));
    assert!(worlds.0.is_ok() && worlds.1.is_ok());
    sleep(Duration::from_secs(100)).await;
    assert!(second.close(Outcome::Succeeded, "done", None).await);
    sleep(Duration::from_secs(300)).await;
    assert_eq!(
        items(&service.connect(), "ctl/round").await.len(),
        1,
        "the exit barrier's store is still there"
    );
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn leaving_coordinator_announces_nothing_in_a_closed_run() {
    let service = MemoryService::new();
    let (first, link) = tapped(&service, "a", "2", &[]).await;
    let second = Agent::join(&service, settings("b", "2", &[]), 2).await.unwrap();
    let worlds = tokio::join!(first.next_world(None, None), second.node.next_world(None, None));
    assert!(worlds.0.is_ok() && worlds.1.is_ok());
    // It reads that the run is open, and what it writes after that arrives when the run is closed.
    let mut transactions = 0;
    link.inner.interfere(Some(Box::new(move |call| {
        transactions += u32::from(call == Call::Txn);
        let late = call == Call::Txn && transactions == 2;
        Fate { request_delay: Duration::from_millis(if late { 400 } else { 0 }), ..Fate::default() }
    })));
    let close = async {
        sleep(Duration::from_millis(100)).await;
        second.node.close(Outcome::Succeeded, "done", None).await
    };
    assert_eq!(tokio::join!(first.leave(None), close), (true, true));
    let round = items(&service.connect(), "ctl/round").await;
    let record = RoundRecord::decode("ctl/round", &round[0].value).unwrap();
    assert_eq!(record.change, None, "written after the closing");
}

/// Loses all watch events of keys with this part for a time, as etcd has lost some.
fn lose_events(link: &Tapped, key: &'static str, time: Duration) {
    let end = Instant::now() + time;
    let loses =
        move |event: &Event| Instant::now() < end && String::from_utf8_lossy(event.key()).contains(key);
    link.tap().loses = Some(Box::new(loses));
}

#[tokio::test(start_paused = true)]
async fn lost_events_of_the_run_are_noticed_by_members_and_by_nodes_that_wait() {
    let service = MemoryService::new();
    // Time alone changes nothing: the coordinator waits for each member.
    let settings = [("rejoin_timeout", "100000"), ("join_timeout", "100000")];
    let (first, _) = tapped(&service, "a", "2:3", &settings).await;
    let (second, member) = tapped(&service, "b", "2:3", &settings).await;
    let worlds = tokio::join!(first.next_world(None, None), second.next_world(None, None));
    assert_eq!((worlds.0.unwrap().place.size, worlds.1.unwrap().place.size), (2, 2));

    lose_events(&member, "ctl/round", Duration::from_secs(20));
    let (third, waiting) = tapped(&service, "c", "2:3", &settings).await;
    lose_events(&waiting, "ctl/round", Duration::from_secs(100_000));
    let limit = Some(Duration::from_secs(100));
    let (_, change) = second.wait_change(limit).await.expect("b reads the change");
    assert!(change.why.contains("join"), "{}", change.why);
    let limit = Some(Duration::from_secs(200));
    let worlds = join_all([&first, &second, &third].map(|node| node.next_world(None, limit))).await;
    let sizes: Vec<_> = worlds.into_iter().map(|world| world.unwrap().place.size).collect();
    assert_eq!(sizes, [3, 3, 3]);
}

#[tokio::test(start_paused = true)]
async fn request_to_leave_is_noticed_although_its_event_is_lost() {
    let service = MemoryService::new();
    let (node, link) = tapped(&service, "a", "1", &[]).await;
    node.next_world(None, None).await.expect("a world");
    lose_events(&link, "/drain/", Duration::from_secs(100_000));
    let key = RunKeys::new("default", "run").drain(node.id().expect("an id"));
    let request = DrainRecord { by: "operator".into(), why: String::new() };
    service.connect().txn(Txn::new(Operation::put(key, request.encode(), 0))).await.expect("written");
    let mut seen = node.subscribe();
    let noticed = timeout(Duration::from_secs(100), seen.wait_for(|seen| seen.drained.is_some())).await;
    assert!(noticed.is_ok_and(|seen| seen.is_ok()));
}

/// Another member has closed the run, and the next job has begun with its id, while the closing of this node was delayed.
#[tokio::test(start_paused = true)]
async fn closing_that_the_next_job_has_moved_away_counts() {
    let service = MemoryService::new();
    let (one, two) = ([("submission", "one")], [("submission", "two")]);
    let (first, link) = tapped(&service, "a", "2", &one).await;
    let (second, _) = tapped(&service, "b", "2", &one).await;
    let worlds = tokio::join!(first.next_world(None, None), second.next_world(None, None));
    assert!(worlds.0.is_ok() && worlds.1.is_ok());
    let (third, _) = tapped(&service, "c", "2", &two).await;
    let (fourth, _) = tapped(&service, "d", "2", &two).await;
    // Only a closing has three conditions here.
    link.tap().refuses = Some(Box::new(|txn: &Txn| {
        (txn.conditions().len() == 3).then(|| Error::Unavailable {
            endpoint: "memory".into(),
            cause: "cut off".into(),
            applied: Applied::No,
        })
    }));
    let close = async {
        sleep(Duration::from_millis(10)).await;
        second.close(Outcome::Succeeded, "done", None).await;
        let next = tokio::join!(third.next_world(None, None), fourth.next_world(None, None));
        assert!(next.0.is_ok() && next.1.is_ok());
    };
    let limit = Duration::from_secs(10);
    let closed = tokio::join!(timeout(limit, first.close(Outcome::Succeeded, "done", None)), close).0;
    assert_eq!(closed, Ok(true));
    assert_eq!(timeout(limit, first.leave(None)).await, Ok(true), "the closing does not delay the departure");
}

#[tokio::test(start_paused = true)]
async fn lost_event_of_the_store_ends_no_wait_too_late() {
    let service = MemoryService::new();
    let (first, _) = tapped(&service, "a", "2", &[]).await;
    let (second, link) = tapped(&service, "b", "2", &[]).await;
    let (_, world) = tokio::join!(first.next_world(None, None), second.next_world(None, None));
    world.unwrap();
    let limit = Duration::from_secs(100);
    let (writes, waits) = (first.run_store(limit).await.unwrap(), second.run_store(limit).await.unwrap());
    lose_events(&link, "key", Duration::from_secs(20));
    let write = async {
        sleep(Duration::from_secs(1)).await;
        writes.set("key", b"value", limit).await
    };
    let (written, waited) = tokio::join!(write, waits.wait(&["key"], limit));
    written.unwrap();
    waited.unwrap();
}

#[tokio::test(start_paused = true)]
async fn compaction_while_a_new_coordinator_reads_ends_no_term() {
    let service = MemoryService::new();
    let link = Tapped::new(service.connect_with(TTL / 4));
    let compacted = Arc::new(Mutex::new(0));
    let count = Arc::clone(&compacted);
    // The nodes were read, and the other records at that revision are compacted, during the first read of the first
    // coordinator.
    link.tap().fails = Some(Box::new(move |range| {
        let mut count = count.lock().unwrap();
        let once = range.revision > 0 && *count == 0;
        *count += u32::from(once);
        once.then_some(Error::Compacted { oldest: range.revision + 1 })
    }));
    let backend = Arc::new(link.clone());
    let settings = settings("a", "1", &[]);
    let node = Node::join(backend, settings, Entropy::seeded(1), place("a")).await.expect("joined");
    node.next_world(None, None).await.expect("a world");
    assert_eq!(*compacted.lock().unwrap(), 1);
    let term = items(&service.connect(), "ctl/coordinator").await;
    assert_eq!(term[0].version, 1);
    let created = term[0].create_revision;
    assert!(created < 5, "this is the first term, not one that followed: {created}");
}
