//! What happens to a run's data when its service is restored from an older backup or loses all data: in memory with
//! paused time, and on a real etcd.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use lattice_rdzv::{
    Error,
    backend::{
        Keys, LeaseId, Operation,
        memory::{
            MemoryService,
            engine::{Bounds, Engine, Put},
        },
    },
    node::{Node, State},
    run::Entropy,
    store::Store,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::support::{
    etcd::Etcd,
    nodes::{Agent, TTL, joined, place, settings},
    within,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than anything that restoring a run waits for.
const RESTORED: Duration = Duration::from_secs(15);

async fn stores<'node>(nodes: impl IntoIterator<Item = &'node Node>, put_back: bool) -> Vec<Arc<Store>> {
    let store = async |node: &'node Node| {
        let world = node.next_world(Some(29500), None).await.unwrap();
        node.round_store(&world, put_back)
    };
    join_all(nodes.into_iter().map(store)).await
}

fn nodes(agents: &[Agent]) -> impl Iterator<Item = &Node> {
    agents.iter().map(|agent| &agent.node)
}

fn assert_undisturbed<'node>(nodes: impl IntoIterator<Item = &'node Node>, round: u64) {
    for node in nodes {
        let seen = node.subscribe().borrow().clone();
        assert_eq!((seen.state, node.num_nodes_waiting()), (State::Member, 0), "{seen:?}");
        assert_eq!(seen.round.as_ref().map(|record| record.round), Some(round), "{seen:?}");
    }
}

/// Writes to a store until it is stopped, and then returns how often that was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<i64>,
}

impl Writer {
    fn start(store: &Arc<Store>, number: usize, pause: Duration) -> Self {
        let (stop, store) = (Arc::new(AtomicBool::new(false)), Arc::clone(store));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut acknowledged = 0;
            while !stopped.load(Ordering::Relaxed) {
                let amount = if acknowledged % 3 == 0 { 5 } else { 1 };
                store.add("count", amount, false, LIMIT).await.unwrap();
                store.add(&format!("ones of {number}"), 1, false, LIMIT).await.unwrap();
                store.append("tokens", format!("{number}-{acknowledged};").as_bytes(), LIMIT).await.unwrap();
                acknowledged += 1;
                sleep(pause).await;
            }
            acknowledged
        });
        Self { stop, task }
    }

    async fn end(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn sum(acknowledged: i64) -> i64 {
    (0..acknowledged).map(|number| if number % 3 == 0 { 5 } else { 1 }).sum()
}

/// Everything that was acknowledged is in the store, once.
async fn assert_exact(store: &Store, acknowledged: &[i64]) {
    let number = async |key: String| -> i64 {
        let value = store.get(&key, false, LIMIT).await.unwrap().unwrap();
        String::from_utf8(value).unwrap().parse().unwrap()
    };
    assert_eq!(number("count".to_owned()).await, acknowledged.iter().copied().map(sum).sum::<i64>());
    let mut tokens = Vec::new();
    for (writer, times) in acknowledged.iter().enumerate() {
        assert_eq!(number(format!("ones of {writer}")).await, *times);
        tokens.extend((0..*times).map(|time| format!("{writer}-{time}")));
    }
    let text = String::from_utf8(store.get("tokens", false, LIMIT).await.unwrap().unwrap()).unwrap();
    let mut found: Vec<_> = text.split_terminator(';').map(str::to_owned).collect();
    found.sort();
    tokens.sort();
    assert_eq!(found, tokens);
}

#[tokio::test(start_paused = true)]
async fn backup_of_the_same_round_loses_and_repeats_no_acknowledged_write() {
    for moment in 0..6 {
        let service = MemoryService::new();
        let agents = joined(&service, "3", &["a", "b", "c"]).await;
        let stores = stores(nodes(&agents), true).await;
        let writer = |(number, store)| Writer::start(store, number, Duration::from_millis(130));
        let writers: Vec<_> = stores.iter().enumerate().map(writer).collect();
        sleep(Duration::from_secs(1)).await;
        let backup = service.backup();
        sleep(Duration::from_millis(26 * moment) + Duration::from_secs(moment % 3)).await;
        service.restore(backup);
        sleep(RESTORED).await;
        let acknowledged = join_all(writers.into_iter().map(Writer::end)).await;
        sleep(TTL).await;
        assert_exact(&stores[1], &acknowledged).await;
        assert_undisturbed(nodes(&agents), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_written_before_the_later_round_is_restored_counts_once() {
    for moment in 0..6 {
        let service = MemoryService::new();
        let mut agents = joined(&service, "2:4", &["a", "b", "c"]).await;
        join_all(nodes(&agents).map(|node| node.next_world(None, None))).await;
        let backup = service.backup();
        agents.push(Agent::join(&service, settings("d", "2:4", &[]), 30).await.unwrap());
        assert!(agents[0].node.wait_change(Some(Duration::from_secs(10))).await.is_some());
        let stores = stores(nodes(&agents), true).await;
        let writer = |(number, store)| Writer::start(store, number, Duration::from_millis(80));
        let writers: Vec<_> = stores.iter().enumerate().map(writer).collect();
        sleep(Duration::from_millis(170 * moment)).await;
        service.restore(backup);
        sleep(RESTORED).await;
        let acknowledged = join_all(writers.into_iter().map(Writer::end)).await;
        sleep(TTL).await;
        assert_exact(&stores[3], &acknowledged).await;
        assert_undisturbed(nodes(&agents), 2);
    }
}

/// Adds to a counter and reads it, and reads a key that it wrote at first, until it is stopped. Returns how many reads
/// were older than what it had written itself.
fn read_own(store: &Arc<Store>, number: usize, stop: &Arc<AtomicBool>) -> JoinHandle<usize> {
    let (store, stop) = (Arc::clone(store), Arc::clone(stop));
    tokio::spawn(async move {
        let (own, counter) = (format!("own {number}"), format!("counter {number}"));
        store.set(&own, b"1", LIMIT).await.unwrap();
        let (mut wrong, mut total) = (0, 0_i64);
        while !stop.load(Ordering::Relaxed) {
            store.add("hot", 1, false, LIMIT).await.unwrap();
            total += 2;
            wrong += usize::from(store.add(&counter, 2, false, LIMIT).await.unwrap() != total);
            let held = store.get_now(&[&own, &counter], LIMIT).await.unwrap();
            let expected = [Some(b"1".to_vec()), Some(total.to_string().into_bytes())];
            wrong += usize::from(held != expected);
            wrong += usize::from(!store.check(&[&own], LIMIT).await.unwrap());
            wrong += usize::from(!store.list(LIMIT).await.unwrap().contains(&own));
            sleep(Duration::from_millis(50)).await;
        }
        wrong
    })
}

#[tokio::test(start_paused = true)]
async fn node_never_reads_what_it_wrote_itself_as_missing() {
    for backed_up in [false, true] {
        let service = MemoryService::new();
        let agents = joined(&service, "3", &["a", "b", "c"]).await;
        let stores = stores(nodes(&agents), true).await;
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> =
            stores.iter().enumerate().map(|(number, store)| read_own(store, number, &stop)).collect();
        for _ in 0..3 {
            sleep(Duration::from_secs(1)).await;
            let backup = service.backup();
            sleep(Duration::from_secs(1)).await;
            if backed_up {
                service.restore(backup);
            } else {
                service.wipe();
            }
            sleep(RESTORED).await;
        }
        stop.store(true, Ordering::Relaxed);
        let wrong: Vec<_> = join_all(readers).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(wrong, [0; 3], "backup: {backed_up}");
        assert_undisturbed(nodes(&agents), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn coordinator_that_cannot_know_of_the_backup_restores_the_round_that_another_node_discards() {
    let service = MemoryService::new();
    let agents = joined(&service, "2", &["a", "b"]).await;
    let stores = stores(nodes(&agents), true).await;
    for _ in 0..3 {
        stores[1].add("n", 1, false, LIMIT).await.unwrap();
    }
    let backup = service.backup();
    for _ in 0..3 {
        stores[1].add("n", 1, false, LIMIT).await.unwrap();
    }
    // All that the coordinator has received is older than the backup. It reads everything again before `b` discards it.
    agents[1].link.cut();
    service.restore(backup);
    sleep(Duration::from_secs(1)).await;
    agents[1].link.reconnect();
    sleep(RESTORED).await;
    assert_eq!(stores[1].get("n", false, LIMIT).await.unwrap(), Some(b"6".to_vec()));
    assert_undisturbed(nodes(&agents), 1);
}

/// A service with little more room than this run needs.
fn narrow() -> MemoryService {
    MemoryService::with_engine(Engine::new(Bounds { live_bytes: 200_000, ..Bounds::default() }))
}

#[tokio::test(start_paused = true)]
async fn no_node_is_moved_back_however_long_nothing_can_be_restored() {
    let service = narrow();
    let mut agents = joined(&service, "2:4", &["a", "b", "c"]).await;
    join_all(nodes(&agents).map(|node| node.next_world(None, None))).await;
    let mut backup = service.backup();
    let mut fillers = 0;
    let filler = |number: usize, bytes: usize| Put {
        key: format!("filler/{number}").into_bytes(),
        value: vec![0; bytes],
        ..Put::default()
    };
    for bytes in [10_000, 1_000, 100, 1] {
        while backup.put(&filler(fillers, bytes)).is_ok() {
            fillers += 1;
        }
    }
    agents.push(Agent::join(&service, settings("d", "2:4", &[]), 30).await.unwrap());
    assert!(agents[0].node.wait_change(Some(Duration::from_secs(10))).await.is_some());
    let stores = stores(nodes(&agents), true).await;
    stores[0].add("count", 3, false, LIMIT).await.unwrap();
    service.restore(backup);
    sleep(TTL * 30).await;
    for agent in &agents {
        let seen = agent.node.subscribe().borrow().clone();
        assert_eq!(seen.world.map(|world| world.place.round), Some(2), "in the world that it had");
        assert_eq!(agent.node.num_nodes_waiting(), 0);
    }
    let delete = Operation::Delete(Keys::prefix("filler/"));
    applied(&service, delete).await;
    sleep(RESTORED).await;
    assert_undisturbed(nodes(&agents), 2);
    assert_eq!(stores[0].get("count", false, LIMIT).await.unwrap(), Some(b"3".to_vec()));
}

async fn applied(service: &MemoryService, operation: Operation) {
    use lattice_rdzv::backend::{Backend as _, Txn};
    service.connect().txn(Txn::new(operation)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn plain_store_says_once_that_its_keys_are_gone_and_none_disappears_later() {
    for older_round in [false, true] {
        let service = MemoryService::new();
        let mut agents = joined(&service, "2:3", &["a", "b"]).await;
        join_all(nodes(&agents).map(|node| node.next_world(None, None))).await;
        let store = agents[0].node.run_store(LIMIT).await.unwrap();
        store.set("early", b"1", LIMIT).await.unwrap();
        let backup = service.backup();
        if older_round {
            agents.push(Agent::join(&service, settings("c", "2:3", &[]), 30).await.unwrap());
            assert!(agents[0].node.wait_change(Some(Duration::from_secs(10))).await.is_some());
            join_all(nodes(&agents).map(|node| node.next_world(None, None))).await;
        }
        store.set("late", b"1", LIMIT).await.unwrap();
        store.set("later", b"1", LIMIT).await.unwrap();
        service.restore(backup);
        sleep(RESTORED).await;
        // Another handle of this store, which had not recorded any of it.
        let again = agents[0].node.run_store(LIMIT).await.unwrap();
        let error = again.get_now(&["early"], LIMIT).await.unwrap_err();
        assert!(matches!(&error, Error::StoreReset { what } if what == "get_now early"), "{error}");
        assert_eq!(
            store.list(LIMIT).await.unwrap(),
            [""; 0],
            "the first call that noticed was the last to fail"
        );
        again.set("new", b"1", LIMIT).await.unwrap();
        sleep(Duration::from_secs(200)).await;
        assert_eq!(store.list(LIMIT).await.unwrap(), ["new"]);
        assert_eq!(leases_of(&service, "/kv/"), [1]);
    }
}

/// How many keys there are under each lease, of those whose name contains this.
fn leases_of(service: &MemoryService, part: &str) -> Vec<usize> {
    use std::collections::BTreeMap;

    use lattice_rdzv::backend::memory::engine::{Read, Span};
    let span = Span::try_from(&Keys::prefix("/")).unwrap();
    let found = service.backup().read(&Read::all(span)).unwrap();
    let mut leases: BTreeMap<LeaseId, usize> = BTreeMap::new();
    for item in found.items.iter().filter(|item| String::from_utf8_lossy(&item.key).contains(part)) {
        *leases.entry(item.lease).or_default() += 1;
    }
    leases.into_values().collect()
}

/// Waits until all of these have restored this round.
async fn settled(nodes: &[Node], round: u64) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let seen: Vec<_> = nodes.iter().map(|node| node.subscribe().borrow().clone()).collect();
        let is_settled = seen.iter().all(|seen| {
            let number = seen.round.as_ref().map(|record| record.round);
            seen.resets > 0 && seen.state == State::Member && number == Some(round)
        });
        if is_settled {
            return;
        }
        assert!(Instant::now() < deadline, "not restored: {seen:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// How the data of an etcd is restored.
#[derive(Clone, Copy)]
enum Backup {
    /// A copy of the data directory.
    Copy,
    /// A snapshot, restored with these options.
    Snapshot(&'static [&'static str]),
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_that_is_restored_from_a_backup_loses_and_repeats_no_acknowledged_write() {
    nothing_is_lost_or_repeated(Backup::Copy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_that_is_restored_from_a_snapshot_loses_and_repeats_no_acknowledged_write() {
    nothing_is_lost_or_repeated(Backup::Snapshot(&[])).await;
}

/// With these options the revision does not decrease, as etcd's guide recommends for clients that watch.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_that_is_restored_with_a_bumped_revision_loses_and_repeats_no_acknowledged_write() {
    nothing_is_lost_or_repeated(Backup::Snapshot(&["--bump-revision=1000000000", "--mark-compacted"])).await;
}

async fn nothing_is_lost_or_repeated(backup: Backup) {
    let Some(mut etcd) = Etcd::start().await else { return };
    if let Backup::Snapshot(options) = backup
        && !etcd.can_restore_with(options)
    {
        println!("skipped: no etcdutl or etcdctl beside etcd has the options {options:?}");
        return;
    }
    let mut members = Vec::new();
    for name in ["a", "b", "c"] {
        // A lease that outlives the restarts of etcd on a busy machine.
        let settings = settings(name, "3", &[("lease_ttl", "10")]);
        let joining = Node::join(Arc::new(etcd.backend()), settings, Entropy::from_system(), place(name));
        members.push(within("joining", joining).await.unwrap());
    }
    let stores = within("a world", stores(&members, true)).await;
    let plain = members[0].run_store(LIMIT).await.unwrap();
    plain.set("early", b"1", LIMIT).await.unwrap();
    let writer = |(number, store)| Writer::start(store, number, Duration::from_millis(20));
    let writers: Vec<_> = stores.iter().enumerate().map(writer).collect();
    match backup {
        Backup::Copy => etcd.back_up().await,
        Backup::Snapshot(_) if etcd.save_snapshot() => {}
        Backup::Snapshot(_) => {
            println!("skipped: there is no etcdctl beside etcd");
            return;
        }
    }
    let before = within("a revision", revision(&etcd)).await;
    plain.set("late", b"1", LIMIT).await.unwrap();
    // Many acknowledged writes are missing in the backup.
    while within("a revision", revision(&etcd)).await < before + 100 {
        sleep(Duration::from_millis(10)).await;
    }
    match backup {
        Backup::Copy => etcd.restore_backup().await,
        Backup::Snapshot(options) => etcd.restore_snapshot(options).await,
    }
    settled(&members, 1).await;
    let acknowledged = within("the writers", join_all(writers.into_iter().map(Writer::end))).await;
    within("the sums", assert_exact(&stores[1], &acknowledged)).await;
    assert_undisturbed(&members, 1);
    let error = plain.get_now(&["late"], LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::StoreReset { .. }), "{error}");
}

async fn revision(etcd: &Etcd) -> i64 {
    use lattice_rdzv::backend::{Backend as _, Range};
    etcd.backend().range(Range::new(Keys::one("none"))).await.unwrap().header.revision
}
