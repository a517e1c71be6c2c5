//! Scenarios in which single messages are lost, refused, or late, and how the run reacts.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lattice_rdzv::{
    Error,
    backend::{
        Backend as _, Event, Keys, Operation, Txn,
        memory::{Call, Fate, MemoryService},
    },
    error::Applied,
    node::{Node, State},
    protocol::records::{ChangeKind, Outcome},
    run::Entropy,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    nodes::{Agent, TTL, place, settings},
    tapped::Tapped,
};

fn away() -> Error {
    Error::Unavailable { endpoint: "memory".into(), cause: "a test".into(), applied: Applied::No }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(100);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Two nodes in their world. The first is the coordinator, and its traffic is tapped.
async fn two(service: &MemoryService) -> (Node, Tapped, Agent) {
    let link = Tapped::new(service.connect_with(TTL / 4));
    let backend = Arc::new(link.clone());
    let times = [("rejoin_timeout", "1000")];
    let settings = |name| settings(name, "2:3", &times);
    let first = Node::join(backend, settings("a"), Entropy::seeded(1), place("a")).await.unwrap();
    let second = Agent::join(service, settings("b"), 2).await.unwrap();
    let worlds = tokio::join!(first.next_world(None, None), second.node.next_world(None, None));
    worlds.0.expect("a world");
    worlds.1.expect("a world");
    (first, link, second)
}

#[tokio::test(start_paused = true)]
async fn renewed_lease_is_no_news() {
    let service = MemoryService::new();
    let (first, _link, _second) = two(&service).await;
    let mut news = first.subscribe();
    sleep(TTL).await;
    news.mark_unchanged();
    sleep(TTL * 10).await;
    assert!(!news.has_changed().unwrap(), "{:?}", news.borrow());
}

#[tokio::test(start_paused = true)]
async fn that_a_member_seeks_is_found_by_the_listing() {
    let service = MemoryService::new();
    let (first, link, second) = two(&service).await;
    link.tap().loses = Some(Box::new(
        |event| matches!(event, Event::Put(item) if String::from_utf8_lossy(&item.key).contains("/nodes/")),
    ));
    let again = async { tokio::join!(second.node.next_world(None, None), first.next_world(None, None)) };
    let (world, _) = timeout(Duration::from_secs(100), again).await.expect("the next round");
    assert_eq!(world.unwrap().place.round, 2);
}

/// The second node enters its exit barrier, and the first does not receive that.
async fn finish_unheard(link: &Tapped, second: &Agent) {
    link.tap().loses = Some(Box::new(|event| String::from_utf8_lossy(event.key()).contains("/finished/")));
    let world = second.node.subscribe().borrow().world.clone().expect("a world");
    let store = second.node.round_store(&world, false);
    store.add("barrier", 1, true, TTL).await.expect("its exit barrier");
}

#[tokio::test(start_paused = true)]
async fn that_a_member_has_finished_is_found_by_the_listing() {
    let service = MemoryService::new();
    let (first, link, second) = two(&service).await;
    finish_unheard(&link, &second).await;
    sleep(Duration::from_secs(40)).await;
    // While a node has finished, no other node is asked to start again.
    let _newcomer = Agent::join(&service, settings("c", "2:3", &[]), 3).await.unwrap();
    sleep(TTL * 2).await;
    assert_eq!(first.num_nodes_waiting(), 0, "{:?}", first.change());
}

#[tokio::test(start_paused = true)]
async fn node_that_finished_and_left_is_not_lost_in_whatever_order_that_is_reported() {
    let service = MemoryService::new();
    let (first, link, second) = two(&service).await;
    finish_unheard(&link, &second).await;
    assert!(second.node.leave(None).await);
    sleep(TTL * 2).await;
    assert_eq!(first.num_nodes_waiting(), 0, "{:?}", first.change());
}

#[tokio::test(start_paused = true)]
async fn record_that_cannot_be_read_is_no_lost_event() {
    let service = MemoryService::new();
    let (first, link, _second) = two(&service).await;
    let put = Operation::put("/lattice/rdzv/default/run/nodes/00000000000000aa", "{}", 0);
    service.connect().txn(Txn::new(put)).await.unwrap();
    let before = link.tap().watches;
    sleep(Duration::from_secs(200)).await;
    assert_eq!(link.tap().watches, before, "nothing was read again");
    assert_eq!(first.subscribe().borrow().state, State::Member);
}

#[tokio::test(start_paused = true)]
async fn coordinator_decides_nothing_after_its_node_is_gone() {
    let service = MemoryService::new();
    let (first, link, second) = two(&service).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    link.tap().refuses = Some(Box::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Some(away())
    }));
    drop(second);
    until("the loss is to be announced", || asked.load(Ordering::Relaxed) > 0).await;
    assert!(!first.leave(Some(Duration::from_millis(500))).await);
    let before = asked.load(Ordering::Relaxed);
    sleep(TTL * 3).await;
    assert_eq!(asked.load(Ordering::Relaxed), before, "transactions of a node that has left");
}

#[tokio::test(start_paused = true)]
async fn node_that_cannot_resign_at_once_resigns_later() {
    let service = MemoryService::new();
    let (first, link, second) = two(&service).await;
    // Roles are edited: for a while the first node may neither write what only a coordinator writes, nor resign.
    let denied = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&denied);
    link.tap().refuses = Some(Box::new(move |txn| {
        let touches = |operation: &Operation, part: &str| match operation {
            Operation::Put { key, .. } | Operation::Delete(Keys::One(key)) => {
                String::from_utf8_lossy(key).contains(part)
            }
            _ => false,
        };
        let decides = |operation| touches(operation, "ctl/round") || touches(operation, "ctl/coordinator");
        (txn.operations().iter().any(decides) && count.fetch_add(1, Ordering::Relaxed) < 5)
            .then(|| Error::Denied { endpoint: "memory".into(), cause: "permission denied".into() })
    }));
    let again = async { tokio::join!(second.node.next_world(None, None), first.next_world(None, None)) };
    let (world, _) = timeout(Duration::from_secs(100), again).await.expect("a coordinator decides again");
    assert_eq!(world.unwrap().place.round, 2);
    assert!(denied.load(Ordering::Relaxed) > 2, "resigning was denied as well");
}

#[tokio::test(start_paused = true)]
async fn closing_is_renewed_soon_and_again_when_that_fails() {
    let service = MemoryService::new();
    let (first, link, _second) = two(&service).await;
    let run_lease = first.subscribe().borrow().run_lease;
    let renewals = || link.tap().renewed.iter().filter(|lease| **lease == run_lease).count();
    link.inner.interfere(Some(Box::new(|call| Fate {
        request_lost: call == Call::LeaseKeepAlive,
        ..Fate::default()
    })));
    let before = renewals();
    assert!(first.close(Outcome::Succeeded, "", None).await);
    // The first renewal is sent within 10 s, and the next one a second after its failure.
    sleep(Duration::from_secs(13)).await;
    assert!(renewals() >= before + 2, "{} of two", renewals() - before);
    link.inner.interfere(None);
    sleep(TTL).await;
    let done = renewals();
    sleep(Duration::from_secs(15)).await;
    assert_eq!(renewals(), done, "no more than there is need of");
}

#[tokio::test(start_paused = true)]
async fn closing_takes_one_lease_however_many_attempts_it_takes() {
    let service = MemoryService::new();
    let (first, link, _second) = two(&service).await;
    let before = link.tap().granted.len();
    let mut refused = 0;
    link.tap().refuses = Some(Box::new(move |txn| {
        let closes = |operation: &Operation| matches!(operation, Operation::Put { key, .. } if key.ends_with(b"closed"));
        refused += usize::from(txn.operations().iter().any(closes));
        (txn.operations().iter().any(closes) && refused <= 3).then(away)
    }));
    assert!(first.close(Outcome::Failed, "", None).await);
    let granted: BTreeSet<_> = link.tap().granted.drain(before..).collect();
    assert_eq!(granted.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn errors_of_long_ago_do_not_make_a_coordinator_slow() {
    let service = MemoryService::new();
    let (first, link, second) = two(&service).await;
    // Seven listings fail, half a minute apart.
    let failed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failed);
    link.tap().fails = Some(Box::new(move |_| (count.fetch_add(1, Ordering::Relaxed) < 7).then(away)));
    let deadline = Instant::now() + Duration::from_secs(400);
    while failed.load(Ordering::Relaxed) < 7 {
        assert!(Instant::now() < deadline, "waited in vain for listings");
        sleep(Duration::from_millis(1)).await;
    }
    let began = Instant::now();
    let (_, change) = tokio::join!(second.node.next_world(None, None), async {
        let change = first.wait_change(Some(TTL)).await.expect("told");
        let took = began.elapsed();
        first.next_world(None, None).await.expect("a world");
        (took, change.1.kind)
    });
    assert_eq!(change.1, ChangeKind::Seeking);
    assert!(change.0 < Duration::from_millis(200), "{:?}", change.0);
}

#[tokio::test(start_paused = true)]
async fn leaving_node_that_lost_its_term_unnoticed_announces_its_departure() {
    let service = MemoryService::new();
    let (first, link, second) = two(&service).await;
    let term = "/lattice/rdzv/default/run/ctl/coordinator";
    link.tap().loses = Some(Box::new(|event| event.key() == term.as_bytes()));
    let delete = Txn::new(Operation::delete(term));
    service.connect().txn(delete).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    assert!(first.leave(None).await);
    let (_, change) = second.node.wait_change(Some(TTL)).await.expect("told");
    assert_eq!(change.kind, ChangeKind::Leaving);
}

#[tokio::test(start_paused = true)]
async fn coordinator_that_may_be_lost_decides_nothing() {
    let service = MemoryService::new();
    let (first, link, second) = two(&service).await;
    // Its renewals arrive, so that its term continues, but it receives no responses to them.
    link.inner.interfere(Some(Box::new(|call| Fate {
        answer_lost: call == Call::LeaseKeepAlive,
        ..Fate::default()
    })));
    sleep(TTL * 2).await;
    assert_eq!(first.subscribe().borrow().state, State::Uncertain);
    let again = async {
        tokio::join!(second.node.next_world(None, None), async {
            assert!(first.wait_change(Some(TTL)).await.is_none(), "{:?}", first.change());
            link.inner.interfere(None);
            assert!(first.wait_change(Some(TTL)).await.is_some(), "it decides again");
            first.next_world(None, None).await
        })
    };
    let (world, _) = timeout(Duration::from_secs(100), again).await.expect("the next round");
    assert_eq!(world.unwrap().place.round, 2);
}

/// Counts the warnings of this thread with this text.
#[derive(Clone)]
struct Warnings(&'static str, Arc<AtomicUsize>);

impl std::io::Write for Warnings {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.1.fetch_add(usize::from(String::from_utf8_lossy(line).contains(self.0)), Ordering::Relaxed);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn watch_that_is_refused_again_and_again_is_warned_of_once() {
    let service = MemoryService::new();
    let first = Agent::join(&service, settings("a", "2", &[]), 1).await.unwrap();
    let link = Tapped::new(service.connect_with(TTL / 4));
    let backend = Arc::new(link.clone());
    let second = Node::join(backend, settings("b", "2", &[]), Entropy::seeded(2), place("b"));
    let second = second.await.unwrap();
    let worlds = tokio::join!(first.node.next_world(None, None), second.next_world(None, None));
    assert_eq!(worlds.1.unwrap().place.rank, 1);

    let said = Warnings("watching the run failed", Arc::default());
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let denied = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&denied);
    link.tap().denies = Some(Box::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Some(Error::Denied { endpoint: "memory".into(), cause: "permission denied".into() })
    }));
    service.stop();
    service.start();
    sleep(TTL * 10).await;
    assert!(denied.load(Ordering::Relaxed) > 5);
    assert_eq!(said.1.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn full_service_is_logged_once_with_its_own_text_and_named_to_waiting_nodes() {
    const WORDS: &str = "etcdserver: mvcc: database space exceeded";
    let said = Warnings(WORDS, Arc::default());
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let service = MemoryService::new();
    let link = Tapped::new(service.connect_with(TTL / 4));
    let full = Arc::new(AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    link.tap().refuses = Some(Box::new(move |txn| {
        let commits = |operation: &Operation| matches!(operation, Operation::Put { key, .. } if String::from_utf8_lossy(key).contains("/plan/"));
        (is_full.load(Ordering::Relaxed) && txn.operations().iter().any(commits)).then(|| {
            Error::Unavailable { endpoint: "memory".into(), cause: WORDS.into(), applied: Applied::No }
        })
    }));
    let first = Node::join(Arc::new(link), settings("a", "2", &[]), Entropy::seeded(1), place("a"));
    let first = first.await.unwrap();
    let second = Agent::join(&service, settings("b", "2", &[]), 2).await.unwrap();
    let limit = Some(TTL * 20);
    let waited = tokio::join!(first.next_world(None, limit), second.node.next_world(None, limit));
    let error = waited.0.unwrap_err().to_string();
    assert!(error.contains("2 of at most 2 nodes") && error.contains(WORDS), "{error}");
    assert_eq!(said.1.load(Ordering::Relaxed), 1);
    full.store(false, Ordering::Relaxed);
    let worlds = tokio::join!(first.next_world(None, limit), second.node.next_world(None, limit));
    assert_eq!(worlds.1.unwrap().place.size, 2);
}

#[tokio::test(start_paused = true)]
async fn node_record_with_a_name_of_a_megabyte_stops_no_round() {
    let service = MemoryService::new();
    let value = format!(
        r#"{{"version":1,"name":"{}","address":"a","port":1,"topology":null,"min":2,"max":3,"seeks":1,"world":null,"leaving":false}}"#,
        "n".repeat(1_000_000)
    );
    let put = Operation::put("/lattice/rdzv/default/run/nodes/00000000000000aa", value, 0);
    service.connect().txn(Txn::new(put)).await.unwrap();
    let first = Agent::join(&service, settings("a", "2:3", &[]), 1).await.unwrap();
    let second = Agent::join(&service, settings("b", "2:3", &[]), 2).await.unwrap();
    let limit = Some(TTL * 20);
    let worlds = tokio::join!(first.node.next_world(None, limit), second.node.next_world(None, limit));
    assert_eq!(worlds.0.unwrap().place.size, 2);
}
