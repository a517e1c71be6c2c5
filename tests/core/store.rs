//! A run's key-value space, as its users see it: every write is applied once whatever the network does, waits end when
//! the keys exist, and if the service loses its data, this is reported or the data is restored.
//!
//! The faults are those of the memory engine on paused time. Tests that do not need them also use a real etcd.

use std::{sync::Arc, time::Duration};

use lattice_rdzv::{
    Error,
    backend::{
        Backend, Keys, LeaseId, Operation, Range, Txn,
        etcd::{EtcdBackend, EtcdOptions},
        limits::Limits,
        memory::{Call, Fate, MemoryBackend, MemoryService},
        monotonic::Monotonic,
        retry::RetryPolicy,
    },
    protocol::{identity::NodeId, keys::RunKeys},
    store::{Slots, Store, StoreContext, StoreView, Takes},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::support::{etcd::Etcd, within};

const LIMIT: Duration = Duration::from_secs(60);
const RUN_LEASE: LeaseId = 4711;
const LIFE: &str = "life";
const TTL: Duration = Duration::from_secs(3600);

/// Does by hand what a session does for the stores of its node.
struct Member {
    node: NodeId,
    backend: Arc<dyn Backend>,
    view: watch::Sender<StoreView>,
    slots: Arc<Slots>,
    takes: Arc<Takes>,
}

fn keys() -> RunKeys {
    RunKeys::new("default", "run")
}

impl Member {
    async fn join(number: u64, backend: Arc<dyn Backend>) -> Self {
        let view = StoreView { run_lease: RUN_LEASE, ..StoreView::default() };
        let node = NodeId::from_random((number + 1) << 8);
        let member = Self {
            node,
            backend,
            view: watch::Sender::new(view),
            slots: Slots::new(),
            takes: Arc::default(),
        };
        member.appear(RUN_LEASE).await;
        member
    }

    /// Writes the record, and the run's lease if it does not exist.
    async fn appear(&self, run_lease: LeaseId) {
        match self.backend.lease_grant(run_lease, TTL).await {
            Ok(_) | Err(Error::LeaseExists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let node = Operation::put(keys().node(self.node), "record", 0);
        let round = Operation::put(keys().round(), "round", run_lease);
        self.backend.txn(Txn::new(node).then([round])).await.unwrap();
    }

    async fn disappear(&self) {
        let delete = Operation::delete(keys().node(self.node));
        self.backend.txn(Txn::new(delete)).await.unwrap();
    }

    /// Does what a session does when it finds that the service lost its data.
    async fn restore(&self, run_lease: LeaseId) {
        self.view.send_modify(|view| {
            view.resets += 1;
            view.run_lease = run_lease;
        });
        self.appear(run_lease).await;
    }

    fn context(&self, round: Option<u64>) -> StoreContext {
        StoreContext {
            backend: Arc::clone(&self.backend),
            monotonic: Monotonic::new(Arc::clone(&self.backend)),
            record_missing: Arc::default(),
            keys: keys(),
            node: self.node,
            life: LIFE.to_owned(),
            round,
            view: self.view.subscribe(),
            slots: Arc::clone(&self.slots),
            takes: Arc::clone(&self.takes),
            told: Arc::new(self.view.borrow().resets.into()),
            retry: RetryPolicy::default(),
            limits: Limits::default(),
            seed: 1,
        }
    }

    fn store(&self) -> Store {
        Store::new(self.context(Some(1)))
    }
}

/// One node of a run in memory.
async fn alone() -> (MemoryService, Arc<MemoryBackend>, Member, Store) {
    let service = MemoryService::new();
    let backend = Arc::new(service.connect());
    let member = Member::join(0, Arc::clone(&backend) as Arc<dyn Backend>).await;
    let store = member.store();
    (service, backend, member, store)
}

/// Members of one run, on the memory engine, and on a real etcd if there is one.
async fn everywhere<F: AsyncFn(Vec<Member>)>(count: u64, story: F) {
    let service = MemoryService::new();
    let mut members = Vec::new();
    for number in 0..count {
        members.push(Member::join(number, Arc::new(service.connect())).await);
    }
    within("the story in memory", story(members)).await;
    let Some(etcd) = Etcd::start().await else { return };
    let mut members = Vec::new();
    for number in 0..count {
        let backend = EtcdBackend::connect(EtcdOptions::new([etcd.endpoint()])).unwrap();
        members.push(Member::join(number, Arc::new(backend)).await);
    }
    within("the story on etcd", story(members)).await;
}

fn spawn<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(call)
}

#[expect(clippy::unnecessary_wraps, reason = "what a key holds is compared with it")]
fn text(value: &str) -> Option<Vec<u8>> {
    Some(value.as_bytes().to_vec())
}

#[tokio::test]
async fn key_is_set_read_replaced_and_deleted() {
    everywhere(2, async |members| {
        let (one, other) = (members[0].store(), members[1].store());
        assert_eq!(one.get_now(&["a/b", "c"], LIMIT).await.unwrap(), [None, None]);
        one.set("a/b", b"1", LIMIT).await.unwrap();
        assert_eq!(other.get("a/b", false, LIMIT).await.unwrap(), text("1"));
        other.append("a/b", b"2", LIMIT).await.unwrap();
        other.append("c", b"x", LIMIT).await.unwrap();
        assert_eq!(one.get_now(&["c", "a/b", "c"], LIMIT).await.unwrap(), [text("x"), text("12"), text("x")]);
        assert!(one.check(&["a/b", "c"], LIMIT).await.unwrap());
        assert!(!one.check(&["a/b", "d"], LIMIT).await.unwrap());
        assert_eq!(one.list(LIMIT).await.unwrap(), ["a/b", "c"]);
        assert!(one.delete("a/b", LIMIT).await.unwrap());
        assert!(!other.delete("a/b", LIMIT).await.unwrap());
        assert_eq!(other.count(LIMIT).await.unwrap(), 1);
        let run_wide = Store::new(members[0].context(None));
        assert_eq!(run_wide.count(LIMIT).await.unwrap(), 0, "another space");
    })
    .await;
}

#[tokio::test]
async fn counter_and_a_content_become_each_other() {
    everywhere(1, async |members| {
        let store = members[0].store();
        assert_eq!(store.add("n", 1, false, LIMIT).await.unwrap(), 1);
        assert_eq!(store.add("n", 1, false, LIMIT).await.unwrap(), 2);
        assert_eq!(store.add("n", 40, false, LIMIT).await.unwrap(), 42);
        assert_eq!(store.add("n", 1, false, LIMIT).await.unwrap(), 43);
        assert_eq!(store.add("n", -50, false, LIMIT).await.unwrap(), -7);
        assert_eq!(store.add("n", 0, false, LIMIT).await.unwrap(), -7);
        assert_eq!(store.get("n", false, LIMIT).await.unwrap(), text("-7"));
        store.set("n", b"10", LIMIT).await.unwrap();
        assert_eq!(store.get("n", false, LIMIT).await.unwrap(), text("10"));
        assert_eq!(store.add("n", 1, false, LIMIT).await.unwrap(), 11);
        assert_eq!(store.compare_set("n", b"11", b"text", LIMIT).await.unwrap(), b"text");
        let error = store.add("n", 1, false, LIMIT).await.unwrap_err();
        assert!(matches!(&error, Error::Argument { message } if message.ends_with(": n")), "{error}");
        assert_eq!(store.add("z", 0, false, LIMIT).await.unwrap(), 0);
        store.append("z", b"1", LIMIT).await.unwrap();
        assert_eq!(store.get("z", false, LIMIT).await.unwrap(), text("01"));
        assert!(matches!(store.add("max", i64::MAX, false, LIMIT).await, Ok(i64::MAX)));
        assert!(matches!(
            store.add("max", 1, false, LIMIT).await,
            Err(Error::Record { .. } | Error::Argument { .. })
        ));
    })
    .await;
}

#[tokio::test]
async fn compare_set_puts_only_over_what_was_expected() {
    everywhere(1, async |members| {
        let store = members[0].store();
        assert_eq!(
            store.compare_set("k", b"a", b"b", LIMIT).await.unwrap(),
            b"a",
            "absent, and something expected"
        );
        assert_eq!(store.get_now(&["k"], LIMIT).await.unwrap(), [None]);
        assert_eq!(store.compare_set("k", b"", b"b", LIMIT).await.unwrap(), b"b");
        assert_eq!(store.compare_set("k", b"", b"c", LIMIT).await.unwrap(), b"b");
        assert_eq!(store.compare_set("k", b"x", b"c", LIMIT).await.unwrap(), b"b");
        assert_eq!(store.compare_set("k", b"b", b"", LIMIT).await.unwrap(), b"");
        assert_eq!(store.compare_set("k", b"", b"d", LIMIT).await.unwrap(), b"d", "an empty content is one");
    })
    .await;
}

#[tokio::test]
async fn one_of_many_concurrent_compares_succeeds() {
    everywhere(8, async |members| {
        let calls =
            members.iter().enumerate().map(|(number, member)| {
                let store = member.store();
                spawn(async move {
                    store.compare_set("k", b"", format!("{number}").as_bytes(), LIMIT).await.unwrap()
                })
            });
        let mut held = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            held.push(call.await.unwrap());
        }
        held.dedup();
        assert_eq!(held.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn key_whose_queue_is_not_empty_counts_as_there_for_check_and_wait() {
    everywhere(2, async |members| {
        let stores: Vec<_> = members.iter().map(Member::store).collect();
        let [one, other] = &stores[..] else { panic!("two stores") };
        assert!(!one.check(&["q"], LIMIT).await.unwrap());
        one.queue_push("q", b"item", LIMIT).await.unwrap();
        assert!(other.check(&["q"], LIMIT).await.unwrap());
        other.wait(&["q"], LIMIT).await.unwrap();
        assert!(!other.check(&["q", "key"], LIMIT).await.unwrap());
        let waiting = spawn({
            let store = other.clone();
            async move { store.wait(&["later", "q", "key"], LIMIT).await }
        });
        one.set("key", b"value", LIMIT).await.unwrap();
        one.queue_push("later", b"item", LIMIT).await.unwrap();
        waiting.await.unwrap().unwrap();
        // Many keys are read in another way.
        let many: Vec<String> = (0..40).map(|number| format!("many-{number}")).collect();
        for key in &many {
            one.queue_push(key, b"item", LIMIT).await.unwrap();
        }
        assert!(other.check(&many, LIMIT).await.unwrap());
        // Nothing of the queue remains after the last item was taken. `get` still waits for a value.
        assert_eq!(one.queue_pop("q", false, LIMIT).await.unwrap(), text("item"));
        assert!(!other.check(&["q"], LIMIT).await.unwrap());
        assert_eq!(other.get_now(&["later"], LIMIT).await.unwrap(), [None]);
    })
    .await;
}

#[tokio::test]
async fn queue_is_first_in_first_out_and_each_item_goes_to_one() {
    everywhere(3, async |members| {
        let stores: Vec<_> = members.iter().map(Member::store).collect();
        assert_eq!(stores[0].queue_pop("q", false, LIMIT).await.unwrap(), None);
        stores[2].queue_push("q", b"first", LIMIT).await.unwrap();
        stores[0].queue_push("q", b"second", LIMIT).await.unwrap();
        assert_eq!(stores[1].queue_len("q", LIMIT).await.unwrap(), 2);
        assert_eq!(stores[1].count(LIMIT).await.unwrap(), 0);
        assert_eq!(stores[1].queue_pop("q", false, LIMIT).await.unwrap(), text("first"));
        assert_eq!(stores[1].queue_pop("q", true, LIMIT).await.unwrap(), text("second"));
        let waiting: Vec<_> = stores[..2]
            .iter()
            .cloned()
            .map(|store| spawn(async move { store.queue_pop("q", true, LIMIT).await.unwrap().unwrap() }))
            .collect();
        stores[2].queue_push("q", b"a", LIMIT).await.unwrap();
        stores[2].queue_push("q", b"b", LIMIT).await.unwrap();
        let mut taken = Vec::new();
        for waiting in waiting {
            taken.push(waiting.await.unwrap());
        }
        taken.sort();
        assert_eq!(taken, [b"a", b"b"]);
        assert_eq!(stores[0].queue_len("q", LIMIT).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn many_keys_are_set_and_awaited_at_once() {
    everywhere(2, async |members| {
        let names: Vec<_> = (0..300).map(|rank| format!("torchelastic/role_info/{rank}")).collect();
        let (reader, writer) = (members[0].store(), members[1].store());
        let waiting = spawn({
            let names = names.clone();
            async move { reader.multi_get(&names, false, LIMIT).await.unwrap() }
        });
        let items: Vec<_> =
            names.iter().map(|name| (name.clone(), format!("of {name}").into_bytes())).collect();
        writer.multi_set(&items[..200], LIMIT).await.unwrap();
        for (name, value) in &items[200..] {
            writer.set(name, value, LIMIT).await.unwrap();
        }
        let expected: Vec<_> = items.iter().map(|(_, value)| Some(value.clone())).collect();
        assert_eq!(waiting.await.unwrap(), expected);
        assert_eq!(writer.count(LIMIT).await.unwrap(), 300);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn listing_reads_page_by_page() {
    let (_service, _, member, store) = alone().await;
    let items: Vec<_> = (0..50).map(|number| (format!("key {number:02}"), vec![0])).collect();
    store.multi_set(&items, LIMIT).await.unwrap();
    let mut context = member.context(Some(1));
    context.limits.page = 7;
    let names: Vec<_> = items.into_iter().map(|(name, _)| name).collect();
    assert_eq!(Store::new(context).list(LIMIT).await.unwrap(), names);
}

#[tokio::test(start_paused = true)]
async fn add_whose_answer_is_lost_counts_once() {
    let (_service, backend, _member, store) = alone().await;
    for (amount, expected) in [(1, 1), (1, 2), (5, 7), (1, 8), (0, 8), (-8, 0)] {
        backend.lose_answers(1);
        assert_eq!(store.add("n", amount, false, LIMIT).await.unwrap(), expected);
        backend.lose_answers(0);
    }
    backend.lose_answers(1);
    store.append("text", b"ab", LIMIT).await.unwrap();
    backend.lose_answers(2);
    store.append("text", b"cd", LIMIT).await.unwrap();
    assert_eq!(store.get("text", false, LIMIT).await.unwrap(), text("abcd"));
    backend.lose_answers(1);
    assert!(store.delete("text", LIMIT).await.unwrap());
    backend.lose_answers(1);
    assert_eq!(store.compare_set("text", b"", b"won", LIMIT).await.unwrap(), b"won");
    store.queue_push("q", b"one", LIMIT).await.unwrap();
    backend.lose_answers(1);
    assert_eq!(store.queue_pop("q", false, LIMIT).await.unwrap(), text("one"));
    backend.lose_answers(1);
    store.queue_push("q", b"two", LIMIT).await.unwrap();
    assert_eq!(store.queue_len("q", LIMIT).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn pop_that_is_dropped_at_any_moment_loses_no_item() {
    const ITEMS: usize = 60;
    for seed in 0..20 {
        let service = MemoryService::new();
        let mut poppers = Vec::new();
        for number in 0..3 {
            let backend = Arc::new(service.connect());
            let member = Member::join(number, Arc::clone(&backend) as Arc<dyn Backend>).await;
            let store = member.store();
            for item in 0..ITEMS {
                store.queue_push("q", format!("{number} {item}").as_bytes(), LIMIT).await.unwrap();
            }
            backend.interfere(Some(Box::new(unreliable(seed * 10 + number))));
            poppers.push((backend, member, store));
        }
        let calls: Vec<_> = poppers
            .into_iter()
            .enumerate()
            .map(|(number, (backend, member, store))| {
                spawn(async move {
                    let mut received = Vec::new();
                    for pop in 0..100_u64 {
                        let limit = Duration::from_millis((seed * 31 + number as u64 * 17 + pop * 13) % 150);
                        // Dropped at the limit, in whatever state it is then.
                        if let Ok(popped) = timeout(limit, store.queue_pop("q", pop % 2 == 0, LIMIT)).await {
                            received.extend(popped.unwrap());
                        }
                    }
                    backend.interfere(None);
                    // This node's pops return the items that it keeps.
                    while let Some(item) = store.queue_pop("q", false, LIMIT).await.unwrap() {
                        received.push(item);
                    }
                    assert!(member.takes.is_empty());
                    // Kept until here, because its session would end without its view.
                    drop(member);
                    received
                })
            })
            .collect();
        let mut received = Vec::new();
        for call in calls {
            received.extend(call.await.unwrap());
        }
        received.sort();
        let mut pushed: Vec<_> = (0..3)
            .flat_map(|node| (0..ITEMS).map(move |item| format!("{node} {item}").into_bytes()))
            .collect();
        pushed.sort();
        assert_eq!(received, pushed, "seed {seed}");
    }
}

/// Loses and delays some calls of every kind, differently for each seed.
fn unreliable(seed: u64) -> impl FnMut(Call) -> Fate + Send {
    let mut random = seed;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % 100
    };
    move |_| Fate {
        // Longer than an attempt may take, so that the write arrives after it was given up.
        request_delay: Duration::from_millis(if next() < 20 { 100 * next() } else { next() / 10 }),
        request_lost: next() < 10,
        answer_delay: Duration::from_millis(next() / 10),
        answer_lost: next() < 20,
    }
}

#[tokio::test(start_paused = true)]
async fn adds_of_many_nodes_sum_exactly_however_bad_the_network() {
    for seed in 0..40 {
        let service = MemoryService::new();
        let mut calls = Vec::new();
        for number in 0..12 {
            let backend = Arc::new(service.connect());
            let member = Member::join(number, Arc::clone(&backend) as Arc<dyn Backend>).await;
            backend.interfere(Some(Box::new(unreliable(seed * 100 + number))));
            calls.push(spawn(async move {
                let store = member.store();
                for _ in 0..3 {
                    store.add("ones", 1, false, LIMIT * 100).await?;
                    store.add("others", 1 + number.cast_signed() % 3, false, LIMIT * 100).await?;
                }
                store.append("letters", b"x", LIMIT * 100).await?;
                Ok::<(), Error>(())
            }));
        }
        for call in calls {
            call.await.unwrap().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        // Every request in flight arrives.
        sleep(Duration::from_secs(60)).await;
        let member_too = Member::join(99, Arc::new(service.connect())).await;
        let store = member_too.store();
        let held = store.get_now(&["ones", "others", "letters"], LIMIT).await.unwrap();
        assert_eq!(held, [text("36"), text("72"), text("xxxxxxxxxxxx")], "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn late_attempt_does_not_overtake_the_answer_that_nothing_was_to_be_done() {
    let (service, backend, _member, store) = alone().await;
    store.set("k", b"b", LIMIT).await.unwrap();
    // The request of the first attempt takes 20 s. The later ones find that `k` does not hold `a`.
    let mut first = true;
    backend.interfere(Some(Box::new(move |call| {
        let late = std::mem::take(&mut first) && call == Call::Txn;
        Fate { request_delay: Duration::from_secs(if late { 20 } else { 0 }), ..Fate::default() }
    })));
    assert_eq!(store.compare_set("k", b"a", b"stolen", LIMIT).await.unwrap(), b"b");
    // Of another node, because this one would use the same slot again.
    let other_member = Member::join(1, Arc::new(service.connect())).await;
    let other = other_member.store();
    other.set("k", b"a", LIMIT).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(other.get("k", false, LIMIT).await.unwrap(), text("a"));
}

#[tokio::test(start_paused = true)]
async fn watch_that_a_wiped_service_accepts_is_not_trusted() {
    let (service, backend, member, store) = alone().await;
    let store = store.put_back();
    for _ in 0..20 {
        store.set("k", b"", LIMIT).await.unwrap();
    }
    backend.interfere(Some(Box::new(|call| {
        let seconds = u64::from(call == Call::Watch);
        Fate { request_delay: Duration::from_secs(seconds), ..Fate::default() }
    })));
    let waiting = spawn({
        let store = store.clone();
        async move { store.get("late", false, LIMIT).await }
    });
    sleep(Duration::from_millis(500)).await;
    // The watch arrives at a service with other data, far below the revision at which it starts.
    service.wipe();
    sleep(Duration::from_millis(1500)).await;
    member.restore(RUN_LEASE + 1).await;
    store.set("late", b"here", LIMIT).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), text("here"));
}

#[tokio::test(start_paused = true)]
async fn get_waits_by_a_watch_and_reads_again_once_a_minute() {
    let (service, backend, _member, store) = alone().await;
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    backend.interfere(Some(Box::new({
        let asked = Arc::clone(&asked);
        move |call| {
            asked.lock().unwrap().push(call);
            Fate::default()
        }
    })));
    let waiting = spawn(async move { store.get("late", false, LIMIT * 100).await });
    sleep(Duration::from_secs(29)).await;
    assert_eq!(*asked.lock().unwrap(), [Call::Txn, Call::Watch]);
    sleep(Duration::from_secs(2971)).await;
    let member_too = Member::join(1, Arc::new(service.connect())).await;
    let writer = member_too.store();
    writer.set("late", b"here", LIMIT).await.unwrap();
    let began = Instant::now();
    assert_eq!(waiting.await.unwrap().unwrap(), text("here"));
    assert_eq!(began.elapsed(), Duration::ZERO);
    let asked = asked.lock().unwrap();
    assert!(asked.chunks(2).all(|pair| pair == [Call::Txn, Call::Watch]), "{asked:?}");
    // After 30 to 90 s each.
    assert!((3000 / 90..=3000 / 30).contains(&(asked.len() / 2)), "{} reads", asked.len() / 2);
}

#[tokio::test(start_paused = true)]
async fn wait_for_other_nodes_reads_once_even_while_they_write() {
    let (service, backend, _member, store) = alone().await;
    let member_too = Member::join(1, Arc::new(service.connect())).await;
    let writer = member_too.store();
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    backend.interfere(Some(Box::new({
        let asked = Arc::clone(&asked);
        move |call| {
            asked.lock().unwrap().push(call);
            let seconds = u64::from(call == Call::Watch);
            Fate { request_delay: Duration::from_secs(seconds), ..Fate::default() }
        }
    })));
    let waiting = spawn(async move { store.get("late", true, LIMIT).await });
    sleep(Duration::from_millis(500)).await;
    writer.set("other", b"", LIMIT).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    writer.set("late", b"here", LIMIT).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), text("here"));
    assert_eq!(*asked.lock().unwrap(), [Call::Watch, Call::Txn]);
}

#[tokio::test(start_paused = true)]
async fn broken_watch_misses_nothing() {
    let (service, backend, _member, store) = alone().await;
    let waiting = spawn(async move { store.get("late", false, LIMIT * 10).await });
    sleep(Duration::from_secs(1)).await;
    backend.cut();
    let member_too = Member::join(1, Arc::new(service.connect())).await;
    let writer = member_too.store();
    writer.set("late", b"here", LIMIT).await.unwrap();
    service.stop();
    sleep(Duration::from_secs(5)).await;
    service.start();
    backend.reconnect();
    assert_eq!(waiting.await.unwrap().unwrap(), text("here"));
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_when_the_world_is_about_to_change() {
    let (_service, backend, member, store) = alone().await;
    store.set("here", b"1", LIMIT).await.unwrap();
    let waiting = spawn({
        let store = store.clone();
        async move { store.multi_get(&["here", "never"], true, LIMIT).await }
    });
    let deaf = spawn({
        let store = store.clone();
        async move { store.get("never", false, LIMIT).await }
    });
    sleep(Duration::from_secs(1)).await;
    member.view.send_modify(|view| view.changed = true);
    let began = Instant::now();
    assert_eq!(waiting.await.unwrap().unwrap(), [text("1"), None]);
    assert_eq!(store.get("never", true, LIMIT).await.unwrap(), None);
    assert_eq!(store.get("here", true, LIMIT).await.unwrap(), text("1"), "what is there is given");
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(matches!(deaf.await.unwrap(), Err(Error::Timeout { .. })));
    backend.cut();
    assert_eq!(store.get("here", true, LIMIT).await.unwrap(), None, "without a service, after one attempt");
}

#[tokio::test(start_paused = true)]
async fn timeout_names_what_was_awaited() {
    let (_service, backend, _member, store) = alone().await;
    store.set("b", b"", LIMIT).await.unwrap();
    let error = store.multi_get(&["a", "b", "c", "d", "e"], false, Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "timed out after 5.0 s: `multi_get a and 4 more`; 4 of 5 keys missing: `a`, `c`, `d`, ..."
    );
    let error = store.queue_pop("q", true, Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "timed out after 1.0 s: `queue_pop q`; the queue is empty");
    backend.cut();
    let error = store.add("n", 1, false, Duration::from_secs(5)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Timeout { after, what }
        if after.as_secs() == 5 && what.contains("`add n`") && what.contains("no answer within")),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_key_is_an_argument_error() {
    let (_service, _, member, store) = alone().await;
    assert!(matches!(store.set("", b"", LIMIT).await, Err(Error::Argument { .. })));
    assert!(matches!(store.get("a\0", false, LIMIT).await, Err(Error::Argument { .. })));
    let run_wide = Store::new(member.context(None));
    assert!(matches!(run_wide.add("n", 1, true, LIMIT).await, Err(Error::Argument { .. })));
}

#[tokio::test(start_paused = true)]
async fn finished_is_put_with_the_add() {
    let (_service, backend, member, store) = alone().await;
    backend.lose_answers(1);
    assert_eq!(store.add("exit", 1, true, LIMIT).await.unwrap(), 1);
    let keys = Keys::one(keys().finished_node(LIFE, 1, member.node));
    let found = backend.range(Range::new(keys)).await.unwrap().items;
    let counter =
        backend.range(Range::new(Keys::prefix(self::keys().round_store(LIFE, 1)))).await.unwrap().items;
    assert_eq!((found.len(), found[0].lease), (1, RUN_LEASE));
    assert_eq!(found[0].mod_revision, counter[0].mod_revision);
}

#[tokio::test(start_paused = true)]
async fn without_its_record_a_node_waits_until_it_is_back_or_over() {
    let (_service, _, member, store) = alone().await;
    member.disappear().await;
    let waiting = spawn({
        let store = store.clone();
        async move { (store.add("n", 1, false, LIMIT).await, store.get_now(&["n"], LIMIT).await) }
    });
    sleep(Duration::from_secs(5)).await;
    assert!(!waiting.is_finished());
    member.appear(RUN_LEASE).await;
    let (total, held) = waiting.await.unwrap();
    assert_eq!((total.unwrap(), held.unwrap()), (1, vec![text("1")]));
    member.disappear().await;
    let waiting =
        spawn(async move { (store.set("n", b"", LIMIT).await, store.get("n", false, LIMIT).await) });
    sleep(Duration::from_secs(5)).await;
    member.view.send_modify(|view| view.over = Some(Error::Left));
    let (set, get) = waiting.await.unwrap();
    assert!(matches!((set, get), (Err(Error::Left), Err(Error::Left))));
}

#[tokio::test(start_paused = true)]
async fn write_waits_for_the_runs_lease() {
    let (_service, backend, member, store) = alone().await;
    backend.lease_revoke(RUN_LEASE).await.unwrap();
    let waiting = spawn(async move { store.set("k", b"", LIMIT).await });
    sleep(Duration::from_secs(3)).await;
    member.view.send_modify(|view| view.run_lease = 0);
    sleep(Duration::from_secs(3)).await;
    assert!(!waiting.is_finished());
    member.appear(5).await;
    member.view.send_modify(|view| view.run_lease = 5);
    waiting.await.unwrap().unwrap();
    let held = backend.range(Range::new(Keys::prefix(keys().prefix()))).await.unwrap().items;
    assert!(held.iter().filter(|item| item.value != b"record").all(|item| item.lease == 5), "{held:?}");
}

#[tokio::test(start_paused = true)]
async fn what_became_of_a_write_whose_slot_is_gone_is_unknown() {
    let (_service, backend, member, store) = alone().await;
    store.add("n", 1, false, LIMIT).await.unwrap();
    backend.lose_answers(1);
    let waiting = spawn({
        let store = store.clone();
        async move { store.add("n", 1, false, LIMIT).await }
    });
    sleep(Duration::from_millis(10)).await;
    let delete = Operation::Delete(Keys::prefix(keys().operations(member.node)));
    backend.txn(Txn::new(delete)).await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::OutcomeUnknown { what, .. } if what == "add n"), "{error}");
    assert_eq!(store.add("n", 1, false, LIMIT).await.unwrap(), 3, "with another slot the store continues");
    // No outcome was uncertain when this slot was deleted.
    let delete = Operation::Delete(Keys::prefix(keys().operations(member.node)));
    backend.txn(Txn::new(delete)).await.unwrap();
    assert_eq!(store.add("n", 1, false, LIMIT).await.unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn add_whose_result_is_compacted_away_is_unknown() {
    let (service, backend, _member, store) = alone().await;
    store.add("n", 1, false, LIMIT).await.unwrap();
    backend.lose_answers(1);
    let waiting = spawn({
        let store = store.clone();
        async move { store.add("n", 1, false, LIMIT).await }
    });
    sleep(Duration::from_millis(10)).await;
    let member_too = Member::join(1, Arc::new(service.connect())).await;
    let other = member_too.store();
    other.add("n", 1, false, LIMIT).await.unwrap();
    service.compact(service.revision()).unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::OutcomeUnknown { why, .. } if why.contains("compacted")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn pending_calls_of_a_plain_store_end_when_the_service_lost_its_data() {
    let (service, backend, member, store) = alone().await;
    store.add("n", 1, false, LIMIT).await.unwrap();
    let get = spawn({
        let store = store.clone();
        async move { store.get("never", false, LIMIT).await }
    });
    sleep(Duration::from_secs(1)).await;
    backend.lose_answers(1);
    let add = spawn({
        let store = store.clone();
        async move { store.add("n", 1, false, LIMIT).await }
    });
    sleep(Duration::from_millis(10)).await;
    service.wipe();
    sleep(Duration::from_secs(4)).await;
    assert!(!add.is_finished() && !get.is_finished(), "they were not notified yet");
    member.restore(RUN_LEASE + 1).await;
    assert!(matches!(add.await.unwrap(), Err(Error::StoreReset { what }) if what == "add n"));
    assert!(matches!(get.await.unwrap(), Err(Error::StoreReset { what }) if what == "get never"));
    assert_eq!(store.add("n", 1, false, LIMIT).await.unwrap(), 1, "the next call finds a new store");
}

#[tokio::test(start_paused = true)]
async fn store_that_restores_its_writes_keeps_waiting_and_its_keys_return() {
    let service = MemoryService::new();
    let mut members = Vec::new();
    let mut stores = Vec::new();
    for number in 0..3 {
        let member = Member::join(number, Arc::new(service.connect())).await;
        stores.push(member.store().put_back());
        members.push(member);
    }
    for (number, store) in stores.iter().enumerate() {
        store.set(&format!("of {number}"), b"1", LIMIT).await.unwrap();
        store.add("count", 1, number == 0, LIMIT).await.unwrap();
    }
    stores[0].add("count", 5, false, LIMIT).await.unwrap();
    stores[0].set("base", b"10", LIMIT).await.unwrap();
    stores[0].add("base", 1, false, LIMIT).await.unwrap();
    stores[1].append("text", b"ab", LIMIT).await.unwrap();
    stores[1].compare_set("won", b"", b"1", LIMIT).await.unwrap();
    stores[2].compare_set("won", b"", b"2", LIMIT).await.unwrap();
    stores[2].multi_set(&[("gone", vec![]), ("many", b"m".to_vec())], LIMIT).await.unwrap();
    stores[2].delete("gone", LIMIT).await.unwrap();
    let waiting = spawn({
        let store = stores[1].clone();
        async move { store.multi_get(&["of 0", "count", "later"], false, LIMIT).await }
    });
    sleep(Duration::from_secs(1)).await;

    for reset in 1..=2 {
        service.wipe();
        sleep(Duration::from_secs(2)).await;
        for member in &members {
            member.restore(RUN_LEASE + reset).await;
        }
        for store in &stores {
            store.put_back_now().await.unwrap();
            store.put_back_now().await.unwrap();
        }
        let names = stores[0].list(LIMIT).await.unwrap();
        assert_eq!(names, ["base", "count", "many", "of 0", "of 1", "of 2", "text", "won"]);
        let held = stores[0].get_now(&["base", "count", "many", "text", "won"], LIMIT).await.unwrap();
        assert_eq!(held, [text("11"), text("8"), text("m"), text("ab"), text("1")]);
        let finished = Keys::prefix(keys().finished(LIFE, 1));
        assert_eq!(members[0].backend.range(Range::new(finished)).await.unwrap().items.len(), 1);
    }
    assert_eq!(stores[2].add("count", 1, false, LIMIT).await.unwrap(), 9);
    assert!(!waiting.is_finished());
    stores[2].set("later", b"!", LIMIT).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), [text("1"), text("9"), text("!")]);
}

#[tokio::test(start_paused = true)]
async fn add_during_a_loss_of_data_counts_once_in_the_end() {
    // The loss happens at every point of the call: before it arrives, while its response is in flight, and after that.
    for moment in 0..40 {
        let (service, backend, member, store) = alone().await;
        let store = store.put_back();
        store.add("n", 1, false, LIMIT).await.unwrap();
        backend.interfere(Some(Box::new(|_| Fate {
            request_delay: Duration::from_millis(100),
            answer_delay: Duration::from_millis(100),
            ..Fate::default()
        })));
        let add = spawn({
            let store = store.clone();
            async move { store.add("n", 1, false, LIMIT).await }
        });
        sleep(Duration::from_millis(10 * moment)).await;
        service.wipe();
        sleep(Duration::from_millis(35)).await;
        backend.interfere(None);
        member.restore(RUN_LEASE + 1).await;
        store.put_back_now().await.unwrap();
        let total = add.await.unwrap().unwrap_or_else(|error| panic!("moment {moment}: {error}"));
        assert!((1..=2).contains(&total), "moment {moment}: {total}");
        store.put_back_now().await.unwrap();
        assert_eq!(store.get("n", false, LIMIT).await.unwrap(), text("2"), "moment {moment}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_node_wrote_since_is_not_overwritten_by_restoring() {
    let (service, _, member, store) = alone().await;
    let store = store.put_back();
    store.set("k", b"old", LIMIT).await.unwrap();
    service.wipe();
    member.restore(RUN_LEASE + 1).await;
    let other = Member::join(1, Arc::new(service.connect())).await;
    other.restore(RUN_LEASE + 1).await;
    other.store().set("k", b"new", LIMIT).await.unwrap();
    store.put_back_now().await.unwrap();
    assert_eq!(store.get("k", false, LIMIT).await.unwrap(), text("new"));
}

#[tokio::test(start_paused = true)]
async fn restoring_a_counter_does_not_starve_however_busy_it_is() {
    let (service, backend, member, store) = alone().await;
    let store = store.put_back();
    store.add("n", 7, false, LIMIT).await.unwrap();
    service.wipe();
    member.restore(RUN_LEASE + 1).await;
    let mut busy = Vec::new();
    for number in 1..=8 {
        let backend = Arc::new(service.connect());
        let other = Member::join(number, Arc::clone(&backend) as Arc<dyn Backend>).await;
        other.restore(RUN_LEASE + 1).await;
        // Faster than the node that restores, and without a pause.
        let request_delay = Duration::from_micros(100 * number);
        backend.interfere(Some(Box::new(move |_| Fate { request_delay, ..Fate::default() })));
        let (stop, store) = (watch::Sender::new(false), other.store());
        let mut stopped = stop.subscribe();
        let task = spawn(async move {
            let mut added = 0;
            while !*stopped.borrow_and_update() {
                store.add("n", 1, false, LIMIT).await.unwrap();
                added += 1;
            }
            added
        });
        busy.push((stop, task, other));
    }
    let request_delay = Duration::from_millis(20);
    backend.interfere(Some(Box::new(move |_| Fate { request_delay, ..Fate::default() })));
    timeout(LIMIT, store.put_back_now()).await.expect("an end").unwrap();
    let mut sum = 7;
    for (stop, task, other) in busy {
        stop.send_replace(true);
        sum += task.await.unwrap();
        drop(other);
    }
    assert_eq!(store.get("n", false, LIMIT).await.unwrap(), text(&sum.to_string()));
}

#[tokio::test(start_paused = true)]
async fn no_node_adds_to_a_counter_that_another_node_has_claimed() {
    let (_service, backend, _member, store) = alone().await;
    store.add("n", 1, false, LIMIT).await.unwrap();
    let claim = format!("{}n/c", keys().round_store(LIFE, 1));
    let put = Operation::put(claim.as_str(), "", 0);
    backend.txn(Txn::new(put)).await.unwrap();
    let adding = spawn({
        let store = store.clone();
        async move { (store.add("n", 1, false, LIMIT).await, store.add("n", 3, false, LIMIT).await) }
    });
    sleep(Duration::from_secs(5)).await;
    assert_eq!(store.get("n", false, LIMIT).await.unwrap(), text("1"));
    backend.txn(Txn::new(Operation::delete(claim))).await.unwrap();
    let (one, three) = adding.await.unwrap();
    assert_eq!((one.unwrap(), three.unwrap()), (2, 5));
}

#[tokio::test(start_paused = true)]
async fn older_backup_is_recognized_by_the_nodes_own_keys_whatever_its_revision_is() {
    let (service, backend, member, _) = alone().await;
    let context = member.context(Some(1));
    let (setbacks, store) = (context.monotonic.setbacks(), Store::new(context));
    store.add("n", 1, false, LIMIT).await.unwrap();
    let backup = service.backup();
    store.add("n", 1, false, LIMIT).await.unwrap();
    store.add("n", 1, false, LIMIT).await.unwrap();
    service.restore(backup);
    for number in 0..10 {
        let put = Operation::put(format!("/other/{number}"), "", 0);
        backend.txn(Txn::new(put)).await.unwrap();
    }
    assert_eq!(*setbacks.borrow(), 0);
    store.add("n", 1, false, LIMIT).await.unwrap();
    assert_eq!(*setbacks.borrow(), 1);
}
