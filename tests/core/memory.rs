//! The faults of the service in the process, of which simulations consist.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use lattice_rdzv::{
    Error, Result,
    backend::{
        Backend, Event, Keys, Operation, Range, Revision, Txn,
        memory::{
            Call, Fate, MemoryBackend, MemoryService,
            engine::{Bounds, Engine},
        },
    },
    error::Applied,
};
use tokio::time::{Instant, sleep, timeout};

const ATTEMPT: Duration = Duration::from_millis(2500);
const TTL: Duration = Duration::from_secs(10);

async fn write(backend: &MemoryBackend, value: &str, lease: i64) -> Result<Revision> {
    let txn = Txn::new(Operation::put("a", value, lease));
    Ok(backend.txn(txn).await?.header.revision)
}

async fn read(backend: &MemoryBackend) -> Result<Option<String>> {
    let found = backend.range(Range::new(Keys::one("a"))).await?;
    Ok(found.items.first().map(|item| String::from_utf8_lossy(&item.value).into_owned()))
}

fn applied<T: std::fmt::Debug>(result: Result<T>) -> Applied {
    match result {
        Err(Error::Unavailable { applied, .. }) => applied,
        other => panic!("expected it to be unavailable: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_is_cut_off() {
    let service = MemoryService::new();
    let (cut, other) = (service.connect(), service.connect());
    let mut watch = cut.watch(Keys::one("a"), 0).await.unwrap();
    let connection = cut.connection();
    cut.cut();
    write(&other, "1", 0).await.unwrap();
    assert!(timeout(ATTEMPT, watch.next()).await.is_err(), "its watch is silent");
    let began = Instant::now();
    assert_eq!(applied(write(&cut, "2", 0).await), Applied::Unknown);
    assert_eq!(began.elapsed(), ATTEMPT);
    assert_eq!(read(&other).await.unwrap().unwrap(), "1", "and what it sends does not arrive");
    assert_eq!(cut.connection(), connection + 1);
    assert!(matches!(watch.next().await, Err(Error::Unavailable { .. })), "its connection was given up");
    assert_eq!(applied(read(&cut).await), Applied::No);
    cut.reconnect();
    assert_eq!(read(&cut).await.unwrap().unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn short_disconnection_costs_nothing() {
    let service = MemoryService::new();
    let (cut, other) = (service.connect(), service.connect());
    let mut watch = cut.watch(Keys::one("a"), 0).await.unwrap();
    cut.cut();
    write(&other, "1", 0).await.unwrap();
    let (result, ()) = tokio::join!(read(&cut), async {
        sleep(ATTEMPT / 2).await;
        cut.reconnect();
    });
    assert_eq!(result.unwrap().unwrap(), "1");
    assert_eq!(watch.next().await.unwrap().events.len(), 1);
    assert_eq!(cut.connection(), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_that_fail_together_cause_one_failover() {
    let service = MemoryService::new();
    let backend = service.connect();
    backend.cut();
    let (one, two, three) =
        tokio::join!(read(&backend), write(&backend, "1", 0), backend.lease_keep_alive(1));
    assert!(one.is_err() && two.is_err() && three.is_err());
    assert_eq!(backend.connection(), 2);
}

#[tokio::test(start_paused = true)]
async fn lost_answer() {
    let backend = MemoryService::new().connect();
    backend.lose_answers(1);
    assert_eq!(read(&backend).await.unwrap(), None, "reads are not meant");
    assert_eq!(applied(write(&backend, "1", 0).await), Applied::Unknown);
    assert_eq!(read(&backend).await.unwrap().unwrap(), "1", "it was applied nevertheless");
    write(&backend, "2", 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn delayed_write_is_applied_after_its_attempt_was_given_up() {
    let backend = MemoryService::new().connect();
    let late = |call: Call| Fate {
        request_delay: if call.writes() { Duration::from_secs(7) } else { Duration::ZERO },
        ..Fate::default()
    };
    backend.interfere(Some(Box::new(late)));
    assert_eq!(applied(write(&backend, "late", 0).await), Applied::Unknown);
    backend.interfere(None);
    write(&backend, "newer", 0).await.unwrap();
    sleep(Duration::from_secs(4)).await;
    assert_eq!(read(&backend).await.unwrap().unwrap(), "newer");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(read(&backend).await.unwrap().unwrap(), "late");
}

#[tokio::test(start_paused = true)]
async fn lost_request_and_a_slow_answer() {
    let backend = MemoryService::new().connect();
    backend.interfere(Some(Box::new(|_| Fate { request_lost: true, ..Fate::default() })));
    assert_eq!(applied(write(&backend, "1", 0).await), Applied::Unknown);
    let slow = Duration::from_secs(1);
    backend.interfere(Some(Box::new(move |_| Fate { answer_delay: slow, ..Fate::default() })));
    let began = Instant::now();
    assert_eq!(read(&backend).await.unwrap(), None);
    assert_eq!(began.elapsed(), slow);
}

#[tokio::test(start_paused = true)]
async fn response_in_flight_is_lost_with_the_service() {
    let service = MemoryService::new();
    let backend = service.connect();
    let slow = Fate { answer_delay: Duration::from_secs(1), ..Fate::default() };
    backend.interfere(Some(Box::new(move |_| slow)));
    let (result, ()) = tokio::join!(write(&backend, "1", 0), async {
        sleep(Duration::from_millis(500)).await;
        service.stop();
        service.start();
    });
    assert_eq!(applied(result), Applied::Unknown);
    assert_eq!(backend.connection(), 2);
    assert_eq!(read(&backend).await.unwrap().unwrap(), "1");
    let (result, ()) = tokio::join!(backend.watch(Keys::one("a"), 0), async {
        sleep(Duration::from_millis(500)).await;
        service.wipe();
    });
    assert_eq!(applied(result), Applied::No);
}

#[tokio::test(start_paused = true)]
async fn paused_service_revokes_what_came_due_on_waking() {
    let service = MemoryService::new();
    let backend = service.connect();
    backend.lease_grant(1, TTL).await.unwrap();
    let revision = write(&backend, "1", 1).await.unwrap();
    let mut watch = backend.watch(Keys::one("a"), 0).await.unwrap();
    service.pause();
    assert!(timeout(TTL * 2, watch.next()).await.is_err(), "nothing happens while it is paused");
    assert_eq!(applied(write(&backend, "2", 1).await), Applied::Unknown);
    service.resume();
    assert!(matches!(backend.lease_keep_alive(1).await, Err(Error::LeaseNotFound { .. })));
    assert_eq!(read(&backend).await.unwrap(), None);
    let mut watch = backend.watch(Keys::one("a"), revision + 1).await.unwrap();
    assert_eq!(watch.next().await.unwrap().events.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn leases_expire_on_time_without_any_calls() {
    let service = MemoryService::new();
    let backend = service.connect();
    let began = Instant::now();
    backend.lease_grant(1, TTL).await.unwrap();
    backend.lease_grant(2, TTL / 2).await.unwrap();
    let mut watch = backend.watch(Keys::prefix(""), 0).await.unwrap();
    let puts = Txn::new(Operation::put("long", "", 1)).then([Operation::put("short", "", 2)]);
    backend.txn(puts).await.unwrap();
    watch.next().await.unwrap();
    let mut gone = Vec::new();
    for _ in 0..2 {
        let changes = watch.next().await.unwrap();
        let near = began.elapsed().as_millis();
        gone.push((String::from_utf8(changes.events[0].key().to_vec()).unwrap(), near / 100));
    }
    assert_eq!(gone, [("short".to_owned(), 50), ("long".to_owned(), 100)]);
}

/// Some nodes write, watch, and are cut off. Returns what one of them saw, and when.
async fn a_small_world() -> Vec<(Duration, Vec<Event>)> {
    let service =
        MemoryService::with_engine(Engine::new(Bounds { minimum_ttl_seconds: 1, ..Bounds::default() }));
    let began = Instant::now();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watching = service.connect();
    let mut watch = watching.watch(Keys::prefix(""), 0).await.unwrap();
    let log = Arc::clone(&seen);
    let watcher = tokio::spawn(async move {
        while let Ok(changes) = watch.next().await {
            log.lock().unwrap().push((began.elapsed(), changes.events));
        }
    });
    let nodes = (1..=20).map(|id: i64| {
        let backend = service.connect();
        tokio::spawn(async move {
            backend.lease_grant(id, Duration::from_secs(1 + id.unsigned_abs() % 3)).await.unwrap();
            for round in 0..10 {
                let put = Operation::put(format!("node/{id}"), format!("{round}"), id);
                let shared = Operation::put("shared", format!("{id}"), 0);
                let _ = backend.txn(Txn::new(put).then([shared])).await;
                sleep(Duration::from_millis(100 + 7 * id.unsigned_abs())).await;
                if round == 5 && id % 4 == 0 {
                    backend.cut();
                }
            }
        })
    });
    for node in nodes.collect::<Vec<_>>() {
        node.await.unwrap();
    }
    watcher.abort();
    std::mem::take(&mut *seen.lock().unwrap())
}

#[test]
fn schedule_is_repeatable() {
    let run = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap().block_on(a_small_world())
    };
    let first = run();
    assert!(first.len() > 50, "{}", first.len());
    for _ in 0..5 {
        assert_eq!(run(), first);
    }
}

#[tokio::test(start_paused = true)]
async fn service_that_is_dropped_leaves_no_task() {
    let service = MemoryService::new();
    let backend = service.connect();
    backend.lease_grant(1, TTL).await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    tokio::task::yield_now().await;
    assert_eq!(tasks(), 1);
    drop((service, backend));
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert_eq!(tasks(), 0);
}
