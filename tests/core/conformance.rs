//! The behavior of a backend, defined once and checked for each: the engine in the process, the engine as a server, and
//! a real etcd. If all pass, a simulation on the first is also valid for the last.

use std::{sync::Arc, time::Duration};

use lattice_rdzv::{
    Error,
    backend::{
        Backend, Changes, Compare, Event, Get, KeyValue, Keys, LeaseId, Operation, OperationResult, Range,
        Revision, Txn, TxnParts, TxnResult, WatchStream,
        memory::MemoryService,
        retry::RetryPolicy,
        watcher::{Watched, Watcher},
    },
    error::Applied,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    choices::Choices,
    embedded::Embedded,
    etcd::{Etcd, PATIENCE},
    within,
};

/// A service under test.
enum Service {
    Memory(MemoryService),
    Server(Embedded),
    Etcd(Etcd),
}

impl Service {
    fn connect(&self) -> Arc<dyn Backend> {
        match self {
            Self::Memory(service) => Arc::new(service.connect()),
            Self::Server(server) => Arc::new(server.backend()),
            Self::Etcd(etcd) => Arc::new(etcd.backend()),
        }
    }

    async fn stop(&mut self) {
        match self {
            Self::Memory(service) => service.stop(),
            Self::Server(server) => server.stop().await,
            Self::Etcd(etcd) => etcd.kill(),
        }
    }

    async fn start(&mut self) {
        match self {
            Self::Memory(service) => service.start(),
            Self::Server(server) => server.go_on().await,
            Self::Etcd(etcd) => {
                etcd.spawn();
                etcd.served().await;
            }
        }
    }

    async fn wipe(&mut self) {
        match self {
            Self::Memory(service) => service.wipe(),
            Self::Server(server) => server.restart().await,
            Self::Etcd(etcd) => etcd.wipe().await,
        }
    }

    async fn compact(&self, revision: Revision) {
        match self {
            Self::Memory(service) => service.compact(revision).unwrap(),
            Self::Server(server) => compact(&server.endpoint(), revision).await,
            Self::Etcd(etcd) => compact(etcd.endpoint(), revision).await,
        }
    }
}

async fn compact(endpoint: &str, revision: Revision) {
    let mut client = etcd_client::Client::connect([endpoint], None).await.unwrap();
    client.compact(revision, None).await.unwrap();
}

macro_rules! conformance {
    ($($behavior:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $behavior() {
                super::$behavior(super::Service::Memory(super::MemoryService::new())).await;
            })+
        }

        mod server {
            $(#[tokio::test]
            async fn $behavior() {
                super::$behavior(super::Service::Server(super::Embedded::start().await)).await;
            })+
        }

        mod etcd {
            $(#[tokio::test]
            async fn $behavior() {
                if let Some(etcd) = super::Etcd::start().await {
                    super::$behavior(super::Service::Etcd(etcd)).await;
                }
            })+
        }
    };
}

conformance![
    transaction_has_one_revision,
    deleted_key_starts_again_at_version_1,
    conditions_choose_the_branch,
    transaction_reads_its_own_writes,
    transaction_is_applied_completely_or_not_at_all,
    touch_increases_the_version_and_keeps_value_and_lease,
    duplicates_are_rejected,
    requests_beyond_the_limits_are_rejected,
    range_returns_the_keys_of_its_selection,
    range_reads_at_a_revision,
    range_at_a_compacted_revision_is_rejected,
    lease_has_the_requested_id,
    keys_are_deleted_when_their_lease_expires,
    renewed_lease_does_not_expire,
    revoked_lease_deletes_its_keys_in_one_revision,
    put_moves_a_key_to_another_lease,
    watch_returns_later_events,
    watch_from_a_revision_returns_earlier_events,
    watch_of_one_key_returns_only_its_events,
    watch_from_a_future_revision_waits,
    watch_never_splits_a_revision,
    watch_far_behind_returns_the_revision_that_it_has_reached,
    watch_from_a_compacted_revision_ends,
    watch_misses_no_event_during_a_compaction,
    stopped_service_ends_watches_and_refuses_calls,
    watcher_continues_after_a_restart,
    watcher_reports_a_compaction,
    watcher_can_be_cancelled_at_any_time,
    leases_outlive_a_restart,
    wiped_service_is_empty,
    status_names_the_member_that_responds,
];

fn put(key: &str, value: &str) -> Operation {
    Operation::put(key, value, 0)
}

fn txn(operations: impl Into<Vec<Operation>>) -> Txn {
    Txn::of(TxnParts { then: operations.into(), ..TxnParts::default() }).expect("an operation")
}

async fn write(backend: &Arc<dyn Backend>, operations: impl Into<Vec<Operation>>) -> Revision {
    let txn = txn(operations);
    backend.txn(txn).await.unwrap().header.revision
}

async fn refused(backend: &Arc<dyn Backend>, operations: impl Into<Vec<Operation>>) -> Error {
    let txn = txn(operations);
    backend.txn(txn).await.unwrap_err()
}

async fn find(backend: &Arc<dyn Backend>, key: &str) -> Option<KeyValue> {
    backend.range(Range::new(Keys::one(key))).await.unwrap().items.pop()
}

async fn names(backend: &Arc<dyn Backend>, keys: Keys) -> Vec<String> {
    let items = backend.range(Range::new(keys)).await.unwrap().items;
    items.into_iter().map(|item| String::from_utf8_lossy(&item.key).into_owned()).collect()
}

async fn next(watch: &mut Box<dyn WatchStream>) -> Changes {
    within("changes", watch.next()).await.unwrap()
}

fn told(events: &[Event]) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let tell = |event: &Event| match event {
        Event::Put(item) => format!("{}={}", text(&item.key), text(&item.value)),
        Event::Delete { key, .. } => format!("{} gone", text(key)),
    };
    events.iter().map(tell).collect()
}

fn rejection(error: Error) -> String {
    match error {
        Error::Rejected { cause, .. } => cause,
        other => panic!("expected a rejection: {other:?}"),
    }
}

const LEASE: LeaseId = 0x1234_5678_9abc_def0;
const TTL: Duration = Duration::from_secs(2);

async fn transaction_has_one_revision(service: Service) {
    let backend = service.connect();
    let before = backend.range(Range::new(Keys::prefix(""))).await.unwrap().header;
    assert_eq!(before.revision, 1, "an empty store is at revision 1");
    assert_ne!(before.cluster_id, 0);
    let result = backend.txn(Txn::new(put("a", "1")).then([put("b", "1"), put("c", "1")]));
    let TxnResult { header, succeeded, results } = result.await.unwrap();
    assert_eq!((header.revision, header.cluster_id, succeeded), (2, before.cluster_id, true));
    assert_eq!(results, vec![OperationResult::Put; 3]);
    for key in ["a", "b", "c"] {
        let item = find(&backend, key).await.unwrap();
        assert_eq!((item.create_revision, item.mod_revision, item.version, item.lease), (2, 2, 1, 0));
    }
    let read = write(&backend, [Operation::get("a"), Operation::delete("missing")]).await;
    assert_eq!(read, 2, "an operation without a change is not counted");
    let deleted = Txn::new(Operation::Delete(Keys::prefix("a"))).then([put("d", "")]);
    let deleted = backend.txn(deleted).await.unwrap();
    assert_eq!(deleted.results, [OperationResult::Delete(1), OperationResult::Put]);
    assert_eq!(deleted.header.revision, 3);
}

async fn deleted_key_starts_again_at_version_1(service: Service) {
    let backend = service.connect();
    let first = write(&backend, [put("a", "1")]).await;
    let second = write(&backend, [put("a", "2")]).await;
    let item = find(&backend, "a").await.unwrap();
    assert_eq!((item.create_revision, item.mod_revision, item.version), (first, second, 2));
    assert_eq!(item.value, b"2");
    write(&backend, [Operation::delete("a")]).await;
    assert_eq!(find(&backend, "a").await, None);
    let again = write(&backend, [put("a", "3")]).await;
    let item = find(&backend, "a").await.unwrap();
    assert_eq!((item.create_revision, item.mod_revision, item.version), (again, again, 1));
}

async fn conditions_choose_the_branch(service: Service) {
    let backend = service.connect();
    let first = write(&backend, [put("a", "1")]).await;
    let second = write(&backend, [put("a", "2")]).await;
    backend.lease_grant(LEASE, TTL * 30).await.unwrap();
    write(&backend, [Operation::put("leased", "", LEASE)]).await;
    let cases = [
        (Compare::Lease("leased".into(), LEASE), true),
        (Compare::Lease("leased".into(), LEASE - 1), false),
        (Compare::Lease("leased".into(), 0), false),
        (Compare::Lease("a".into(), 0), true),
        (Compare::Lease("a".into(), LEASE), false),
        (Compare::Lease("b".into(), LEASE), false),
        (Compare::CreateRevision("a".into(), first), true),
        (Compare::CreateRevision("a".into(), second), false),
        (Compare::CreateRevision("b".into(), 0), true),
        (Compare::absent("a"), false),
        (Compare::absent("b"), true),
        (Compare::ModRevision("a".into(), second), true),
        (Compare::ModRevision("a".into(), first), false),
        (Compare::ModRevision("b".into(), 0), true),
        (Compare::Version("a".into(), 2), true),
        (Compare::Version("a".into(), 1), false),
        (Compare::Version("b".into(), 0), true),
        (Compare::Exists("a".into()), true),
        (Compare::Exists("b".into()), false),
        (Compare::UnchangedSince(Keys::prefix("a"), second), true),
        (Compare::UnchangedSince(Keys::prefix("a"), second - 1), false),
        (Compare::UnchangedSince(Keys::Span("b".into(), "m".into()), first), false),
        (Compare::UnchangedSince(Keys::prefix(""), second), false),
        (Compare::UnchangedSince(Keys::prefix(""), second + 1), true),
        (Compare::UnchangedSince(Keys::one("b"), 0), true),
        (Compare::Value("a".into(), "2".into()), true),
        (Compare::Value("a".into(), "1".into()), false),
        (Compare::Value("b".into(), "".into()), false),
    ];
    for (compare, holds) in cases {
        let (mut txn, _) = Txn::read("a");
        txn.get_if_refused("b");
        let txn = txn.when([compare.clone()]);
        let result = backend.txn(txn).await.unwrap();
        assert_eq!(
            (result.succeeded, result.results.len()),
            (holds, if holds { 1 } else { 2 }),
            "{compare:?}"
        );
    }
    let when = vec![Compare::Exists("a".into()), Compare::Exists("b".into())];
    let parts = TxnParts { when, then: vec![put("then", "")], otherwise: vec![put("otherwise", "")] };
    let txn = Txn::of(parts).expect("operations");
    assert!(!backend.txn(txn).await.unwrap().succeeded, "one condition that fails is enough");
    assert_eq!(names(&backend, Keys::prefix("")).await, ["a", "leased", "otherwise"]);
}

async fn transaction_reads_its_own_writes(service: Service) {
    let backend = service.connect();
    write(&backend, [put("a", "1"), put("b", "1")]).await;
    let (txn, before) = Txn::read("a");
    let mut txn = txn.then([put("a", "2")]);
    let after = txn.get("a");
    let all = Operation::Get(Keys::prefix(""));
    let result = backend.txn(txn.then([Operation::delete("b"), Operation::delete("b"), all])).await.unwrap();
    let value = |get: Get| get.item(&result).map(|item| item.value.as_slice());
    assert_eq!((value(before), value(after)), (Some(b"1".as_slice()), Some(b"2".as_slice())));
    assert_eq!(after.revision(&result), result.header.revision);
    assert_eq!(result.results[3..5], [OperationResult::Delete(1), OperationResult::Delete(0)]);
    assert!(matches!(&result.results[5], OperationResult::Get(items) if items.len() == 1));
}

async fn transaction_is_applied_completely_or_not_at_all(service: Service) {
    let backend = service.connect();
    let before = write(&backend, [put("a", "1")]).await;
    let error = refused(&backend, [put("a", "2"), Operation::put("b", "2", 77)]).await;
    assert!(matches!(error, Error::LeaseNotFound { lease: 77 }), "{error:?}");
    let touch = Operation::Touch { key: "missing".into() };
    let cause = rejection(refused(&backend, [put("a", "2"), touch]).await);
    assert!(cause.contains("key not found"), "{cause}");
    let read = backend.range(Range::new(Keys::prefix(""))).await.unwrap();
    assert_eq!((read.header.revision, read.items.len()), (before, 1));
    assert_eq!(read.items[0].value, b"1");
}

async fn touch_increases_the_version_and_keeps_value_and_lease(service: Service) {
    let backend = service.connect();
    backend.lease_grant(LEASE, TTL * 30).await.unwrap();
    let first = write(&backend, [Operation::put("a", "value", LEASE)]).await;
    let mut watch = backend.watch(Keys::one("a"), 0).await.unwrap();
    let second = write(&backend, [Operation::Touch { key: "a".into() }]).await;
    let item = find(&backend, "a").await.unwrap();
    assert_eq!((item.create_revision, item.mod_revision, item.version), (first, second, 2));
    assert_eq!((item.value.as_slice(), item.lease), (b"value".as_slice(), LEASE));
    assert_eq!(next(&mut watch).await.events, [Event::Put(item)]);
    backend.lease_revoke(LEASE).await.unwrap();
    assert_eq!(find(&backend, "a").await, None, "it still hung on its lease");
}

async fn duplicates_are_rejected(service: Service) {
    let backend = service.connect();
    let before = write(&backend, [put("a", "1")]).await;
    let wrong = [
        vec![put("a", "2"), put("a", "2")],
        vec![put("a", "2"), Operation::delete("a")],
        vec![Operation::Delete(Keys::prefix("a")), put("a", "2")],
        // etcd itself accepts this one, and dies of the next one: see `puts_what_it_deletes_without_end`.
        vec![Operation::Delete(Keys::prefix("")), put("a", "2")],
        vec![Operation::Delete(Keys::prefix("")), Operation::Touch { key: "a".into() }],
        vec![Operation::Touch { key: "a".into() }, put("a", "2")],
        vec![Operation::Delete(Keys::Span("a".into(), "b".into())), put("a", "2")],
    ];
    for operations in wrong {
        let cause = rejection(refused(&backend, operations.clone()).await);
        assert!(cause.contains("etcdserver: duplicate key given in txn request"), "{cause}");
        // Also in the branch that is not executed.
        let when = vec![Compare::absent("missing")];
        let txn = Txn::of(TxnParts { when, then: Vec::new(), otherwise: operations }).expect("operations");
        rejection(backend.txn(txn).await.unwrap_err());
    }
    let fine = [Operation::Delete(Keys::Span("b".into(), "c".into())), Operation::delete("b"), put("a", "1")];
    assert_eq!(write(&backend, fine).await, before + 1);
    let when = vec![Compare::absent("missing")];
    let both = TxnParts { when, then: vec![put("a", "3")], otherwise: vec![put("a", "4")] };
    assert!(
        backend.txn(Txn::of(both).expect("operations")).await.unwrap().succeeded,
        "a key may be in both branches"
    );
}

async fn requests_beyond_the_limits_are_rejected(service: Service) {
    let backend = service.connect();
    let puts = |count: usize| (0..count).map(|index| put(&format!("k{index:04}"), "v")).collect::<Vec<_>>();
    write(&backend, puts(128)).await;
    let cause = rejection(refused(&backend, puts(129)).await);
    assert!(cause.contains("too many operations"), "{cause}");
    let when = (0..129).map(|_| Compare::absent("missing"));
    rejection(backend.txn(Txn::read("a").0.when(when)).await.unwrap_err());
    let large = |bytes: usize| [Operation::put("large", vec![b'x'; bytes], 0)];
    write(&backend, large(1_500_000)).await;
    let cause = rejection(refused(&backend, large(1_600_000)).await);
    assert!(cause.contains("request is too large"), "{cause}");
    rejection(refused(&backend, large(8_000_000)).await);
    assert_eq!(find(&backend, "large").await.unwrap().value.len(), 1_500_000, "the connection is still good");
    for operation in [put("", ""), Operation::get(""), Operation::delete("")] {
        let cause = rejection(refused(&backend, [operation]).await);
        assert!(cause.contains("key is not provided"), "{cause}");
    }
    // A response larger than gRPC accepts by default.
    for index in 0..4 {
        write(&backend, [Operation::put(format!("large{index}"), vec![b'x'; 1_400_000], 0)]).await;
    }
    assert_eq!(backend.range(Range::new(Keys::prefix("large"))).await.unwrap().items.len(), 5);
}

async fn range_returns_the_keys_of_its_selection(service: Service) {
    let backend = service.connect();
    write(&backend, ["a", "a/1", "a/2", "a/3", "a0", "b"].map(|key| put(key, "value"))).await;
    write(&backend, [Operation::put(vec![0xff, 0xff], "", 0)]).await;
    assert_eq!(names(&backend, Keys::one("a")).await, ["a"]);
    assert_eq!(names(&backend, Keys::prefix("a/")).await, ["a/1", "a/2", "a/3"]);
    assert_eq!(names(&backend, Keys::prefix("missing")).await, [""; 0]);
    assert_eq!(names(&backend, Keys::Span("a/2".into(), "b".into())).await, ["a/2", "a/3", "a0"]);
    assert_eq!(names(&backend, Keys::Span("b".into(), "a".into())).await, [""; 0]);
    assert_eq!(names(&backend, Keys::Span("b".into(), "b".into())).await, [""; 0]);
    assert_eq!(names(&backend, Keys::Span("b".into(), "".into())).await, [""; 0]);
    assert_eq!(names(&backend, Keys::prefix("")).await.len(), 7);
    assert_eq!(backend.range(Range::new(Keys::prefix(vec![0xff]))).await.unwrap().items.len(), 1);
    let pages = |limit| Range { limit, ..Range::new(Keys::prefix("a/")) };
    let page = backend.range(pages(2)).await.unwrap();
    assert_eq!((page.items.len(), page.more), (2, true));
    assert_eq!(page.items[1].key, b"a/2");
    let page = backend.range(pages(3)).await.unwrap();
    assert_eq!((page.items.len(), page.more), (3, false));
    let keys_only = backend.range(Range { keys_only: true, ..pages(0) }).await.unwrap().items;
    assert!(keys_only.iter().all(|item| item.value.is_empty() && item.mod_revision > 0));
}

async fn range_reads_at_a_revision(service: Service) {
    let backend = service.connect();
    let first = write(&backend, [put("a", "1"), put("b", "1")]).await;
    let second = write(&backend, [put("a", "2"), Operation::delete("b")]).await;
    let third = write(&backend, [Operation::delete("a")]).await;
    let at = |revision| Range { revision, ..Range::new(Keys::prefix("")) };
    let found = backend.range(at(first)).await.unwrap();
    assert_eq!(found.header.revision, third, "the head tells where the store is");
    assert_eq!((found.items.len(), found.items[0].version), (2, 1));
    let found = backend.range(at(second)).await.unwrap().items;
    assert_eq!((found.len(), found[0].value.as_slice()), (1, b"2".as_slice()));
    assert!(backend.range(at(third)).await.unwrap().items.is_empty());
    let error = backend.range(at(third + 1)).await.unwrap_err();
    assert!(matches!(error, Error::FutureRevision), "{error:?}");
}

async fn range_at_a_compacted_revision_is_rejected(service: Service) {
    let backend = service.connect();
    let first = write(&backend, [put("a", "1"), put("b", "1")]).await;
    let second = write(&backend, [put("a", "2")]).await;
    write(&backend, [put("a", "3"), Operation::delete("b")]).await;
    service.compact(second).await;
    let at = |revision| Range { revision, ..Range::new(Keys::prefix("")) };
    let error = backend.range(at(first)).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
    let found = backend.range(at(second)).await.unwrap().items;
    assert_eq!(found.iter().map(|item| item.value.as_slice()).collect::<Vec<_>>(), [b"2", b"1"]);
    let item = find(&backend, "a").await.unwrap();
    assert_eq!(
        (item.create_revision, item.version),
        (first, 3),
        "a live key keeps the numbers of its history"
    );
}

async fn lease_has_the_requested_id(service: Service) {
    let (one, other) = (service.connect(), service.connect());
    assert_eq!(one.lease_grant(LEASE, Duration::from_secs(60)).await.unwrap(), Duration::from_secs(60));
    let error = other.lease_grant(LEASE, Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(error, Error::LeaseExists { lease: LEASE }), "{error:?}");
    assert_eq!(one.lease_grant(1, Duration::from_millis(2500)).await.unwrap(), Duration::from_secs(3));
    assert_eq!(one.lease_grant(2, Duration::from_millis(1)).await.unwrap(), TTL, "no lease is shorter");
    assert_eq!(one.lease_keep_alive(LEASE).await.unwrap(), Duration::from_secs(60));
    assert_eq!(
        other.lease_keep_alive(LEASE).await.unwrap(),
        Duration::from_secs(60),
        "nor must it be one's own"
    );
    let error = one.lease_keep_alive(LEASE + 1).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound { lease } if lease == LEASE + 1), "{error:?}");
    let error = one.lease_revoke(LEASE + 1).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound { lease } if lease == LEASE + 1), "{error:?}");
    let error = refused(&one, [Operation::put("a", "", LEASE + 1)]).await;
    assert!(matches!(error, Error::LeaseNotFound { lease } if lease == LEASE + 1), "{error:?}");
}

async fn keys_are_deleted_when_their_lease_expires(service: Service) {
    let backend = service.connect();
    let began = Instant::now();
    backend.lease_grant(LEASE, TTL).await.unwrap();
    let keys = ["b", "a", "c"].map(|key| Operation::put(key, "", LEASE));
    let revision = write(&backend, keys).await;
    write(&backend, [put("other", "")]).await;
    let mut watch = backend.watch(Keys::prefix(""), revision + 2).await.unwrap();
    let changes = next(&mut watch).await;
    assert!(began.elapsed() >= TTL && began.elapsed() < TTL * 3, "{:?}", began.elapsed());
    assert_eq!(told(&changes.events), ["a gone", "b gone", "c gone"]);
    assert!(changes.events.iter().all(|event| event.revision() == revision + 2));
    assert_eq!(names(&backend, Keys::prefix("")).await, ["other"]);
    let error = backend.lease_keep_alive(LEASE).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound { lease: LEASE }), "{error:?}");
    backend.lease_grant(LEASE, TTL).await.unwrap();
}

async fn renewed_lease_does_not_expire(service: Service) {
    let backend = service.connect();
    backend.lease_grant(LEASE, TTL).await.unwrap();
    write(&backend, [Operation::put("a", "", LEASE)]).await;
    let began = Instant::now();
    while began.elapsed() < TTL * 2 {
        assert_eq!(backend.lease_keep_alive(LEASE).await.unwrap(), TTL);
        sleep(TTL / 4).await;
    }
    assert_eq!(find(&backend, "a").await.unwrap().lease, LEASE);
}

async fn revoked_lease_deletes_its_keys_in_one_revision(service: Service) {
    let backend = service.connect();
    backend.lease_grant(LEASE, TTL * 30).await.unwrap();
    let mut watch = backend.watch(Keys::prefix(""), 0).await.unwrap();
    let revision = write(&backend, ["b", "a"].map(|key| Operation::put(key, "", LEASE))).await;
    assert_eq!(told(&next(&mut watch).await.events), ["b=", "a="]);
    backend.lease_revoke(LEASE).await.unwrap();
    let changes = next(&mut watch).await;
    assert_eq!(told(&changes.events), ["a gone", "b gone"]);
    assert_eq!(changes.revision, revision + 1);
    let error = backend.lease_revoke(LEASE).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound { lease: LEASE }), "{error:?}");
    backend.lease_grant(LEASE, TTL).await.unwrap();
    backend.lease_revoke(LEASE).await.unwrap();
    let now = backend.range(Range::new(Keys::prefix(""))).await.unwrap();
    assert_eq!((now.header.revision, now.items.len()), (revision + 1, 0), "an empty lease counts nothing");
}

async fn put_moves_a_key_to_another_lease(service: Service) {
    let backend = service.connect();
    let (first, second) = (LEASE, LEASE + 1);
    backend.lease_grant(first, TTL * 30).await.unwrap();
    backend.lease_grant(second, TTL * 30).await.unwrap();
    write(&backend, ["moved", "freed", "gone"].map(|key| Operation::put(key, "", first))).await;
    write(&backend, [Operation::put("moved", "", second), put("freed", ""), Operation::delete("gone")]).await;
    write(&backend, [put("gone", "")]).await;
    backend.lease_revoke(first).await.unwrap();
    assert_eq!(names(&backend, Keys::prefix("")).await, ["freed", "gone", "moved"]);
    backend.lease_revoke(second).await.unwrap();
    assert_eq!(names(&backend, Keys::prefix("")).await, ["freed", "gone"]);
}

async fn watch_returns_later_events(service: Service) {
    let backend = service.connect();
    let before = write(&backend, [put("a/1", "old"), put("b", "old")]).await;
    let mut watch = backend.watch(Keys::prefix("a/"), 0).await.unwrap();
    assert_eq!(watch.revision(), before);
    assert_eq!(watch.connection(), backend.connection());
    write(&backend, [put("b", "other")]).await;
    let revision = write(&backend, [put("a/2", "new"), put("b", "new"), Operation::delete("a/1")]).await;
    let changes = next(&mut watch).await;
    assert_eq!(told(&changes.events), ["a/2=new", "a/1 gone"]);
    assert!(changes.events.iter().all(|event| event.revision() == revision));
    assert_eq!((changes.revision, watch.revision()), (revision, revision));
    let quiet = timeout(Duration::from_millis(300), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    write(&backend, [put("a/3", "")]).await;
    assert_eq!(told(&next(&mut watch).await.events), ["a/3="], "a cancelled wait loses nothing");
}

async fn watch_from_a_revision_returns_earlier_events(service: Service) {
    let backend = service.connect();
    write(&backend, [put("a", "1")]).await;
    let from = write(&backend, [put("a", "2"), put("b", "2")]).await;
    write(&backend, [Operation::delete("a")]).await;
    let last = write(&backend, [put("a", "4")]).await;
    let mut watch = backend.watch(Keys::prefix(""), from).await.unwrap();
    assert_eq!(watch.revision(), from - 1);
    let mut events = Vec::new();
    while watch.revision() < last {
        events.extend(next(&mut watch).await.events);
    }
    assert_eq!(told(&events), ["a=2", "b=2", "a gone", "a=4"]);
    write(&backend, [put("a", "5")]).await;
    assert_eq!(told(&next(&mut watch).await.events), ["a=5"], "and continues in the present");
}

async fn watch_of_one_key_returns_only_its_events(service: Service) {
    let backend = service.connect();
    let mut watch = backend.watch(Keys::one("a"), 0).await.unwrap();
    let mut span = backend.watch(Keys::Span("a".into(), "b".into()), 0).await.unwrap();
    write(&backend, [put("a/1", ""), put("b", "")]).await;
    write(&backend, [put("a", "")]).await;
    assert_eq!(told(&next(&mut watch).await.events), ["a="]);
    let mut events = Vec::new();
    while events.len() < 2 {
        events.extend(next(&mut span).await.events);
    }
    assert_eq!(told(&events), ["a/1=", "a="]);
    let error = backend.watch(Keys::one(""), 0).await.map(|_| ());
    assert!(error.is_ok() || matches!(error, Err(Error::Rejected { .. })), "{error:?}");
}

async fn watch_from_a_future_revision_waits(service: Service) {
    let backend = service.connect();
    let now = write(&backend, [put("a", "1")]).await;
    let mut watch = backend.watch(Keys::one("a"), now + 2).await.unwrap();
    write(&backend, [put("a", "2")]).await;
    write(&backend, [put("a", "3")]).await;
    assert_eq!(told(&next(&mut watch).await.events), ["a=3"]);
}

async fn watch_never_splits_a_revision(service: Service) {
    const KEYS: usize = 100;
    const ROUNDS: usize = 60;
    let backend = service.connect();
    let from = backend.range(Range::new(Keys::one("a"))).await.unwrap().header.revision + 1;
    let round = |round: usize| {
        let value = "x".repeat(1000);
        (0..KEYS).map(move |key| put(&format!("{key:03}"), &format!("{round}{value}"))).collect::<Vec<_>>()
    };
    for number in 0..ROUNDS / 2 {
        write(&backend, round(number)).await;
    }
    let mut watch = backend.watch(Keys::prefix(""), from).await.unwrap();
    let writer = tokio::spawn(async move {
        for number in ROUNDS / 2..ROUNDS {
            write(&backend, round(number)).await;
        }
    });
    let mut seen = from - 1;
    while seen < from - 1 + i64::try_from(ROUNDS).unwrap() {
        let changes = next(&mut watch).await;
        for whole in changes.events.chunk_by(|one, other| one.revision() == other.revision()) {
            assert_eq!((whole[0].revision(), whole.len()), (seen + 1, KEYS), "one revision, whole, in order");
            seen += 1;
        }
        assert_eq!((changes.revision, watch.revision()), (seen, seen));
    }
    writer.await.unwrap();
}

async fn watch_far_behind_returns_the_revision_that_it_has_reached(service: Service) {
    // etcd reports 1000 revisions at once, with a header that contains the newest one.
    const WRITES: i64 = 1500;
    let backend = service.connect();
    for _ in 0..WRITES {
        write(&backend, [put("a", "")]).await;
    }
    let mut watch = backend.watch(Keys::one("a"), 2).await.unwrap();
    let mut seen = 1;
    while seen < 1 + WRITES {
        let changes = next(&mut watch).await;
        seen += i64::try_from(changes.events.len()).unwrap();
        assert_eq!((changes.revision, watch.revision()), (seen, seen));
    }
}

async fn watch_from_a_compacted_revision_ends(service: Service) {
    let backend = service.connect();
    let first = write(&backend, [put("a", "1")]).await;
    let second = write(&backend, [put("a", "2")]).await;
    write(&backend, [put("a", "3")]).await;
    service.compact(second).await;
    let mut watch = backend.watch(Keys::one("a"), first).await.unwrap();
    let error = within("the end of the watch", watch.next()).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { oldest } if oldest == second), "{error:?}");
    let mut watch = backend.watch(Keys::one("a"), second).await.unwrap();
    assert_eq!(
        told(&next(&mut watch).await.events)[0],
        "a=2",
        "the revision compacted to can still be watched"
    );
}

async fn watch_misses_no_event_during_a_compaction(service: Service) {
    let backend = service.connect();
    let mut watch = backend.watch(Keys::one("a"), 0).await.unwrap();
    let mut newest = 0;
    for _ in 0..20 {
        newest = write(&backend, [put("b", "")]).await;
    }
    service.compact(newest).await;
    write(&backend, [put("a", "1")]).await;
    assert_eq!(told(&next(&mut watch).await.events), ["a=1"]);
}

async fn stopped_service_ends_watches_and_refuses_calls(mut service: Service) {
    let backend = service.connect();
    write(&backend, [put("a", "1")]).await;
    let mut watch = backend.watch(Keys::one("a"), 0).await.unwrap();
    let connection = backend.connection();
    service.stop().await;
    let error = within("the end of the watch", watch.next()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(backend.connection() > connection, "a broken connection is given up");
    let error = refused(&backend, [put("a", "2")]).await;
    assert!(matches!(error, Error::Unavailable { applied: Applied::No, .. }), "{error:?}");
    assert!(error.is_transient());
    assert!(error.to_string().to_lowercase().contains("connection refused"), "{error}");
    service.start().await;
    assert_eq!(find(&backend, "a").await.unwrap().value, b"1");
}

fn watcher(backend: &Arc<dyn Backend>, keys: Keys, start: Revision) -> Watcher {
    Watcher::with_policy(Arc::clone(backend), keys, start, RetryPolicy::default(), 1)
}

async fn changes(watcher: &mut Watcher) -> Vec<String> {
    match within("changes", watcher.next()).await.unwrap() {
        Watched::Changes(changes) => told(&changes.events),
        Watched::Compacted => panic!("compacted"),
    }
}

async fn watcher_continues_after_a_restart(mut service: Service) {
    let backend = service.connect();
    write(&backend, [put("a", "old")]).await;
    let mut watcher = watcher(&backend, Keys::prefix(""), 0);
    assert_eq!(watcher.resumed_on(), 0);
    within("the watch", watcher.ready()).await.unwrap();
    assert_eq!(watcher.resumed_on(), backend.connection());
    service.stop().await;
    // No change was seen yet, and still none may be missed.
    service.start().await;
    let other = service.connect();
    write(&other, [put("a", "1")]).await;
    assert_eq!(changes(&mut watcher).await, ["a=1"]);
    write(&other, [put("a", "2")]).await;
    assert_eq!(changes(&mut watcher).await, ["a=2"]);
    let before = watcher.resumed_on();
    assert_eq!(before, backend.connection());
    service.stop().await;
    within("that it has no connection", async {
        while watcher.resumed_on() != 0 {
            let waiting = timeout(Duration::from_millis(300), watcher.next()).await;
            assert!(waiting.is_err(), "{waiting:?}");
        }
    })
    .await;
    service.start().await;
    let other = service.connect();
    write(&other, [put("b", "3")]).await;
    write(&other, [Operation::delete("a")]).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(changes(&mut watcher).await);
    }
    assert_eq!(seen, ["b=3", "a gone"]);
    assert!(watcher.resumed_on() > before);
}

async fn watcher_reports_a_compaction(service: Service) {
    let backend = service.connect();
    let first = write(&backend, [put("a", "1")]).await;
    let second = write(&backend, [put("a", "2")]).await;
    write(&backend, [put("a", "3")]).await;
    service.compact(second).await;
    let mut watcher = watcher(&backend, Keys::one("a"), first);
    let told = within("the news", watcher.next()).await.unwrap();
    assert_eq!(told, Watched::Compacted);
    let listed = backend.range(Range::new(Keys::one("a"))).await.unwrap();
    watcher.restart(listed.header.revision + 1);
    write(&backend, [put("a", "4")]).await;
    assert_eq!(changes(&mut watcher).await, ["a=4"]);
}

async fn watcher_can_be_cancelled_at_any_time(service: Service) {
    const WRITES: usize = 200;
    let backend = service.connect();
    let mut watcher = watcher(&backend, Keys::one("a"), 1);
    let writer = tokio::spawn(async move {
        for number in 0..WRITES {
            write(&backend, [put("a", &number.to_string())]).await;
            sleep(Duration::from_millis(1)).await;
        }
    });
    let mut seen = Vec::new();
    let began = Instant::now();
    while seen.len() < WRITES {
        assert!(began.elapsed() < PATIENCE, "saw only {}", seen.len());
        if let Ok(Ok(Watched::Changes(changes))) = timeout(Duration::from_micros(700), watcher.next()).await {
            seen.extend(told(&changes.events));
        }
    }
    assert_eq!(seen, (0..WRITES).map(|number| format!("a={number}")).collect::<Vec<_>>());
    writer.await.unwrap();
}

async fn leases_outlive_a_restart(mut service: Service) {
    let backend = service.connect();
    backend.lease_grant(LEASE, Duration::from_secs(5)).await.unwrap();
    write(&backend, [Operation::put("a", "", LEASE)]).await;
    sleep(Duration::from_secs(3)).await;
    service.stop().await;
    service.start().await;
    sleep(Duration::from_secs(3)).await;
    let backend = service.connect();
    assert_eq!(find(&backend, "a").await.unwrap().lease, LEASE, "it has its full TTL again");
    assert_eq!(backend.lease_keep_alive(LEASE).await.unwrap(), Duration::from_secs(5));
}

async fn wiped_service_is_empty(mut service: Service) {
    let backend = service.connect();
    backend.lease_grant(LEASE, TTL * 30).await.unwrap();
    let revision = write(&backend, [Operation::put("a", "", LEASE)]).await;
    write(&backend, [put("a", "2")]).await;
    let before = backend.status().await.unwrap();
    let mut watch = backend.watch(Keys::one("a"), 0).await.unwrap();
    service.wipe().await;
    let error = within("the end of the watch", watch.next()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let found = backend.range(Range::new(Keys::prefix(""))).await.unwrap();
    assert_eq!((found.header.revision, found.items.len()), (1, 0));
    let after = backend.status().await.unwrap();
    if matches!(service, Service::Server(_)) {
        assert_ne!(
            found.header.cluster_id, before.cluster_id,
            "this server has no files, and its ID shows that"
        );
        assert_ne!(after.member_id, before.member_id);
    } else {
        assert_eq!(found.header.cluster_id, before.cluster_id, "its ID does not distinguish it");
        assert_eq!(after.member_id, before.member_id);
    }
    let error = backend.lease_keep_alive(LEASE).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound { .. }), "{error:?}");
    // The trap: a watch from a revision of the old data is accepted, and stays silent.
    let mut watch = backend.watch(Keys::one("a"), revision + 2).await.unwrap();
    assert_eq!(write(&backend, [put("a", "new")]).await, 2);
    let silent = timeout(Duration::from_millis(300), watch.next()).await;
    assert!(silent.is_err(), "{silent:?}");
}

async fn status_names_the_member_that_responds(service: Service) {
    let backend = service.connect();
    let status = backend.status().await.unwrap();
    let header = backend.range(Range::new(Keys::one("a"))).await.unwrap().header;
    assert_eq!(status.cluster_id, header.cluster_id);
    assert_ne!(status.member_id, 0);
    assert_eq!(status.leader, status.member_id);
    assert!(status.version.starts_with("3."), "{}", status.version);
    assert!(status.errors.is_empty(), "{:?}", status.errors);
    assert!(!backend.endpoint().is_empty());
    assert_eq!(backend.connection(), 1);
}

impl Choices {
    fn key(&mut self) -> Vec<u8> {
        let keys: [&[u8]; 6] = [b"a", b"aa", b"ab", b"b", b"c", &[0xff]];
        keys[usize::try_from(self.below(6)).unwrap()].to_vec()
    }

    fn keys(&mut self) -> Keys {
        match self.below(5) {
            0 => Keys::prefix(""),
            1 => Keys::Prefix(self.key()),
            2 => Keys::Span(self.key(), self.key()),
            _ => Keys::One(self.key()),
        }
    }

    fn compare(&mut self, newest: Revision) -> Compare {
        let (key, revision) = (self.key(), newest - self.number(6));
        match self.below(8) {
            0 => Compare::absent(key),
            7 => Compare::UnchangedSince(self.keys(), revision),
            1 => Compare::Exists(key),
            2 => Compare::CreateRevision(key, revision),
            3 => Compare::ModRevision(key, revision),
            4 => Compare::Version(key, self.number(4)),
            _ => Compare::Value(key, vec![b'0' + u8::try_from(self.below(3)).unwrap()]),
        }
    }

    fn operation(&mut self) -> Operation {
        match self.below(8) {
            0 => Operation::Touch { key: self.key() },
            1 | 2 => Operation::Get(self.keys()),
            3 => Operation::Delete(self.keys()),
            _ => {
                let lease = if self.below(3) == 0 { 1 + self.number(4) } else { 0 };
                Operation::put(self.key(), vec![b'0' + u8::try_from(self.below(3)).unwrap()], lease)
            }
        }
    }

    fn txn(&mut self, newest: Revision) -> Txn {
        let parts = TxnParts {
            when: (0..self.below(3)).map(|_| self.compare(newest)).collect(),
            then: (0..self.below(4)).map(|_| self.operation()).collect(),
            otherwise: (0..self.below(4)).map(|_| self.operation()).collect(),
        };
        Txn::of(parts).unwrap_or_else(|| Txn::new(self.operation()))
    }
}

/// A response without the parts that may differ between two services: their names.
fn essence<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Ok(answer) => format!("{answer:?}"),
        Err(Error::Rejected { cause, .. }) => {
            format!("rejected: {}", cause.trim_start_matches("etcdserver: "))
        }
        // The error of a compacted read does not contain the compacted revision.
        Err(Error::Compacted { .. }) => "compacted".to_owned(),
        Err(other) => format!("{other:?}"),
    }
}

/// Executes the operations of a seed on a service, and returns every response and every event.
async fn random_operations(service: Service, seed: u64) -> Vec<String> {
    const STEPS: usize = 400;
    let mut choices = Choices(seed);
    let backend = service.connect();
    let mut answers = Vec::new();
    let mut newest = 1;
    let mut compacted = 1;
    for _ in 0..STEPS {
        let (lease, ttl) = (1 + choices.number(4), Duration::from_secs(600));
        let (what, answer) = match choices.below(20) {
            0 => ("grant", essence(backend.lease_grant(lease, ttl).await)),
            1 => ("revoke", essence(backend.lease_revoke(lease).await)),
            2 => ("keep alive", essence(backend.lease_keep_alive(lease).await)),
            3 if newest > compacted + 20 => {
                compacted = newest - choices.number(20);
                service.compact(compacted).await;
                ("compact", compacted.to_string())
            }
            3..=6 => {
                let range = Range {
                    keys: choices.keys(),
                    revision: if choices.below(2) == 0 {
                        0
                    } else {
                        (newest + 2 - choices.number(30)).max(0)
                    },
                    limit: choices.number(4),
                    keys_only: choices.below(4) == 0,
                };
                let result = backend.range(range).await;
                ("range", essence(result.map(|found| (found.header.revision, found.items, found.more))))
            }
            _ => {
                let result = backend.txn(choices.txn(newest)).await;
                let done = result.map(|done| (done.header.revision, done.succeeded, done.results));
                match done {
                    // etcd does not report which of several leases.
                    Err(Error::LeaseNotFound { .. }) => ("txn", "a lease is not found".to_owned()),
                    done => ("txn", essence(done)),
                }
            }
        };
        answers.push(format!("{what}: {answer}"));
        newest = backend.range(Range::new(Keys::one("a"))).await.unwrap().header.revision;
    }
    let start = compacted.max(newest - 150) + 1;
    // So that there is a last event to wait for.
    let last = write(&backend, [put("end", "")]).await;
    let mut watch = backend.watch(Keys::prefix(""), start).await.unwrap();
    while watch.revision() < last {
        answers.extend(next(&mut watch).await.events.iter().map(|event| format!("{event:?}")));
    }
    answers
}

#[tokio::test]
async fn random_operations_have_equal_results_in_memory_and_in_the_server() {
    for seed in 0..6 {
        let served = random_operations(Service::Server(Embedded::start().await), seed).await;
        let model = random_operations(Service::Memory(MemoryService::new()), seed).await;
        assert_eq!(served, model, "seed {seed}");
    }
}

#[tokio::test]
async fn random_operations_have_equal_results_in_memory_and_in_etcd() {
    for seed in 0..6 {
        let Some(etcd) = Etcd::start().await else { return };
        let real = random_operations(Service::Etcd(etcd), seed).await;
        let model = random_operations(Service::Memory(MemoryService::new()), seed).await;
        for (step, (real, model)) in real.iter().zip(&model).enumerate() {
            assert_eq!(model, real, "seed {seed}, step {step}: the model is on the left");
        }
        assert_eq!(model.len(), real.len(), "seed {seed}");
        assert!(
            model.iter().filter(|answer| answer.contains("txn: (") && answer.contains("Put")).count() > 40
        );
    }
}
