//! What a node does when a lifeline ends: when it asks the accused member, and what the service may hold for it to report
//! a death. The lifelines are scripted; nodes, coordinator and service are real.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lattice_rdzv::{
    backend::{
        Backend as _, KeyValue, Keys, Operation, Range, Txn,
        memory::{Call, Fate, MemoryBackend, MemoryService},
    },
    lifeline::{Lifelines, Questions, Suspicion, Verdict},
    node::{Node, Place},
    protocol::{
        identity::NodeId,
        keys::RunKeys,
        records::{CoordinatorRecord, LostRecord, Neighbor, NodeRecord, Record as _, WorldMembership},
    },
    run::Entropy,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::support::nodes::{place, settings};

/// The TTL of all leases. No lease expires while a test looks at the service.
const TTL: Duration = Duration::from_secs(30);
/// Long enough for a report, of which everything but the answers of the accused takes no time.
const SOON: Duration = Duration::from_millis(500);

type Meanwhile = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How the lifelines of a node behave.
#[derive(Default)]
struct Script {
    /// What the accused answers, one after the other. After that, it is alive.
    verdicts: Mutex<Vec<Verdict>>,
    /// What happens while the accused is asked for the first time.
    meanwhile: Mutex<Option<Meanwhile>>,
    /// How often this node has asked.
    asked: AtomicUsize,
    /// Whether lifelines to other members have ended too.
    others_ended: AtomicBool,
    /// Whether no member greets.
    nobody_greets: AtomicBool,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Script")
    }
}

#[async_trait]
impl Questions for Script {
    async fn confirm(&self, _: &Suspicion, _: NodeId) -> Verdict {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile.await;
        }
        self.verdicts.lock().unwrap().pop().unwrap_or(Verdict::Alive)
    }

    async fn greet(&self, _: &Neighbor, _: NodeId, _: u64) -> Option<SocketAddr> {
        let greets = !self.nobody_greets.load(Ordering::Relaxed);
        greets.then_some(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))
    }

    fn others_ended(&self, _: NodeId) -> bool {
        self.others_ended.load(Ordering::Relaxed)
    }

    async fn is_refused(&self, _: &str, _: &str) -> bool {
        false
    }
}

#[derive(Debug)]
struct Scripted {
    script: Arc<Script>,
    suspicions: mpsc::UnboundedReceiver<Suspicion>,
}

#[async_trait]
impl Lifelines for Scripted {
    fn port(&self) -> u16 {
        1
    }

    fn enter(&mut self, _: NodeId, _: u64) {}

    fn watch(&mut self, _: Vec<Neighbor>) {}

    async fn suspicion(&mut self) -> Suspicion {
        match self.suspicions.recv().await {
            Some(suspicion) => suspicion,
            None => std::future::pending().await,
        }
    }

    fn questions(&self) -> Arc<dyn Questions> {
        Arc::clone(&self.script) as _
    }

    async fn say_goodbye(self: Box<Self>) {}
}

/// A node and its lifelines.
struct Member {
    node: Node,
    link: Arc<MemoryBackend>,
    script: Arc<Script>,
    suspicions: mpsc::UnboundedSender<Suspicion>,
}

impl Member {
    /// From now on, the service receives no renewal of this node's lease.
    fn lose_renewals(&self) {
        self.link.interfere(Some(Box::new(|call| Fate {
            request_lost: call == Call::LeaseKeepAlive,
            ..Fate::default()
        })));
    }
}

async fn join(service: &MemoryService, name: &str) -> Member {
    let link = Arc::new(service.connect_with(TTL / 4));
    let script = Arc::<Script>::default();
    let (suspicions, receiver) = mpsc::unbounded_channel();
    let lifelines: Box<dyn Lifelines> =
        Box::new(Scripted { script: Arc::clone(&script), suspicions: receiver });
    let place = Place { lifelines: Some(lifelines), ..place(name) };
    let seed = name.bytes().map(u64::from).sum();
    let settings = settings(name, "3", &[("lease_ttl", "30")]);
    let node = Node::join(Arc::clone(&link) as _, settings, Entropy::seeded(seed), place).await.unwrap();
    Member { node, link, script, suspicions }
}

/// A world of three nodes. The first one is its coordinator. The observer is alive, and the victim may be dead.
struct Scene {
    service: MemoryService,
    keys: RunKeys,
    place: WorldMembership,
    first: Option<Member>,
    observer: Member,
    victim: NodeId,
}

impl Scene {
    /// The third node dies.
    async fn new() -> Self {
        let (scene, third) = Self::with_all().await;
        drop(third);
        scene
    }

    async fn with_all() -> (Self, Member) {
        let service = MemoryService::new();
        let (first, observer, third) =
            (join(&service, "a").await, join(&service, "b").await, join(&service, "c").await);
        let world = tokio::join!(
            first.node.next_world(None, None),
            observer.node.next_world(None, None),
            third.node.next_world(None, None)
        );
        let place = world.0.unwrap().place.clone();
        let victim = third.node.id().unwrap();
        let keys = RunKeys::new("default", "run");
        (Self { service, keys, place, first: Some(first), observer, victim }, third)
    }

    /// A suspicion of the observer about the victim, who answers with these verdicts.
    fn suspect(&self, verdicts: &[Verdict]) {
        *self.observer.script.verdicts.lock().unwrap() = verdicts.iter().rev().copied().collect();
        let neighbor = Neighbor { id: self.victim, rank: 0, address: "c.test".into(), port: 1 };
        let suspicion = Suspicion {
            world: self.place.number().unwrap(),
            neighbor,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            sign: "connection reset".into(),
            at: Instant::now(),
        };
        self.observer.suspicions.send(suspicion).unwrap();
    }

    /// How often the observer has asked.
    fn asked(&self) -> usize {
        self.observer.script.asked.load(Ordering::Relaxed)
    }

    async fn item(&self, key: String) -> Option<KeyValue> {
        self.service.connect().range(Range::new(Keys::one(key))).await.unwrap().items.pop()
    }

    async fn record(&self) -> Option<KeyValue> {
        self.item(self.keys.node(self.victim)).await
    }

    async fn evidence(&self) -> Option<KeyValue> {
        self.item(self.keys.lost_node(&self.place.life, self.place.round, self.victim)).await
    }
}

#[tokio::test(start_paused = true)]
async fn confirmed_death_is_reported_with_its_evidence_and_the_lease_is_revoked() {
    let scene = Scene::new().await;
    let before = scene.record().await.unwrap();
    let round = scene.item(scene.keys.round()).await.unwrap();
    scene.suspect(&[Verdict::Dead]);
    sleep(SOON).await;
    assert_eq!(scene.record().await, None);
    let evidence = scene.evidence().await.expect("evidence");
    assert_eq!(evidence.lease, round.lease, "it is kept as long as the run");
    let record = LostRecord::decode("lost", &evidence.value).unwrap();
    assert_eq!((record.name.as_str(), record.by.as_str(), record.lease), ("c", "b", before.lease));
    assert_eq!(record.why, "connection reset, then refused at 127.0.0.1:1");
    let renewed = scene.service.connect().lease_keep_alive(before.lease).await;
    assert!(renewed.is_err(), "the lease of the dead node is revoked: {renewed:?}");
    let first = &scene.first.as_ref().unwrap().node;
    let (_, change) =
        timeout(SOON, first.wait_change(None)).await.expect("no wait for the reconnect window").unwrap();
    assert!(change.why.contains("lost c: connection reset, then refused"), "{}", change.why);
}

/// Without evidence, it would wait until nodes that were cut off together with it had time to return.
#[tokio::test(start_paused = true)]
async fn coordinator_that_was_cut_off_a_moment_ago_announces_a_death_with_evidence_at_once() {
    for evidence in [true, false] {
        let (scene, third) = Scene::with_all().await;
        let first = scene.first.as_ref().unwrap();
        first.lose_renewals();
        sleep(TTL * 7 / 10).await;
        first.link.interfere(None);
        sleep(TTL / 6).await;
        drop(third);
        if evidence {
            scene.suspect(&[Verdict::Dead]);
        } else {
            let lease = scene.record().await.unwrap().lease;
            scene.service.connect().lease_revoke(lease).await.unwrap();
        }
        let told = timeout(SOON, first.node.wait_change(None)).await;
        assert_eq!(told.is_ok(), evidence, "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn member_that_did_not_greet_its_coordinator_is_greeted_again() {
    let (scene, third) = Scene::with_all().await;
    let first = scene.first.as_ref().unwrap();
    let rank = third.node.subscribe().borrow().world.as_ref().unwrap().place.rank;
    let suspect = async || scene.observer.node.suspect(rank, "slow", Duration::from_secs(2)).await;
    first.script.nobody_greets.store(true, Ordering::Relaxed);
    sleep(Duration::from_secs(2)).await;
    drop(third);
    *first.script.verdicts.lock().unwrap() = vec![Verdict::Dead; 2];
    suspect().await.unwrap();
    assert_eq!(
        scene.evidence().await,
        None,
        "a refusal at an address that never greeted is no sign of a death"
    );
    first.script.nobody_greets.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(2)).await;
    suspect().await.unwrap();
    assert!(scene.evidence().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn without_a_confirmation_nothing_is_written() {
    for verdict in [Verdict::Alive, Verdict::Unknown] {
        let scene = Scene::new().await;
        scene.suspect(&[verdict]);
        sleep(SOON).await;
        assert_eq!(scene.asked(), 1, "{verdict:?}");
        assert!(scene.record().await.is_some(), "{verdict:?}");
        assert_eq!(scene.evidence().await, None, "{verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn observer_whose_own_lease_was_not_renewed_asks_later() {
    let (scene, third) = Scene::with_all().await;
    scene.observer.lose_renewals();
    sleep(TTL * 11 / 20).await;
    drop(third);
    scene.suspect(&[Verdict::Dead]);
    sleep(SOON).await;
    assert_eq!(scene.asked(), 0);
    scene.observer.link.interfere(None);
    let asked = async {
        while scene.evidence().await.is_none() {
            sleep(SOON / 10).await;
        }
    };
    timeout(TTL / 2, asked).await.expect("the question is postponed, not dropped");
}

#[tokio::test(start_paused = true)]
async fn observer_whose_lease_was_replaced_asks_with_its_next_one() {
    let (scene, _third) = Scene::with_all().await;
    scene.observer.lose_renewals();
    sleep(TTL * 11 / 20).await;
    scene.suspect(&[Verdict::Dead]);
    sleep(SOON).await;
    assert_eq!(scene.asked(), 0);
    // All nodes take other leases.
    scene.service.wipe();
    scene.observer.link.interfere(None);
    sleep(3 * TTL).await;
    assert_ne!(scene.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn observer_whose_other_lifelines_ended_first_looks_whether_anybody_greets() {
    for nobody_greets in [true, false] {
        let scene = Scene::new().await;
        scene.observer.script.others_ended.store(true, Ordering::Relaxed);
        scene.observer.script.nobody_greets.store(nobody_greets, Ordering::Relaxed);
        scene.suspect(&[Verdict::Dead]);
        sleep(SOON).await;
        assert_eq!(scene.asked() == 0, nobody_greets);
        assert_eq!(scene.record().await.is_some(), nobody_greets);
    }
}

/// Everything that the report compares, changed while the accused is asked.
#[tokio::test(start_paused = true)]
async fn report_that_is_out_of_date_changes_nothing_and_the_accused_is_asked_again() {
    type Change = fn(&Scene, &KeyValue, &KeyValue) -> Operation;
    let changes: [(&str, Change); 5] = [
        ("the accused has put its record again", |_, record, _| {
            Operation::put(record.key.clone(), record.value.clone(), record.lease)
        }),
        ("the round was written again", |_, _, round| {
            Operation::put(round.key.clone(), round.value.clone(), round.lease)
        }),
        ("the accused has finished", |scene, _, round| {
            let (place, keys) = (&scene.place, &scene.keys);
            Operation::put(keys.finished_node(&place.life, place.round, scene.victim), "{}", round.lease)
        }),
        ("the run was closed", |scene, _, round| Operation::put(scene.keys.closed(), "{}", round.lease)),
        ("the observer has no record", |scene, _, _| {
            Operation::delete(scene.keys.node(scene.observer.node.id().unwrap()))
        }),
    ];
    for (what, change) in changes {
        let scene = Scene::new().await;
        let (record, round) = (scene.record().await.unwrap(), scene.item(scene.keys.round()).await.unwrap());
        let (client, change) = (scene.service.connect(), change(&scene, &record, &round));
        *scene.observer.script.meanwhile.lock().unwrap() = Some(Box::pin(async move {
            client.txn(Txn::new(change)).await.unwrap();
        }));
        scene.suspect(&[Verdict::Dead]);
        sleep(SOON).await;
        assert!(scene.asked() >= 1, "{what}");
        assert_eq!(scene.evidence().await, None, "{what}");
        let renewed = scene.service.connect().lease_keep_alive(record.lease).await;
        assert!(renewed.is_ok(), "{what}: {renewed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_report_without_an_answer_the_accused_is_asked_again() {
    let scene = Scene::new().await;
    let reports = Arc::new(AtomicBool::new(false));
    let reporting = Arc::clone(&reports);
    *scene.observer.script.meanwhile.lock().unwrap() = Some(Box::pin(async move {
        reporting.store(true, Ordering::Relaxed);
    }));
    scene.observer.link.interfere(Some(Box::new(move |call| {
        let answer_lost = call == Call::Txn && reports.swap(false, Ordering::Relaxed);
        Fate { answer_lost, ..Fate::default() }
    })));
    scene.suspect(&[Verdict::Dead, Verdict::Dead]);
    sleep(TTL / 3).await;
    assert_eq!(scene.record().await, None);
    let evidence = scene.evidence().await.expect("evidence");
    assert_eq!(evidence.version, 1, "it was written once");
}

#[tokio::test(start_paused = true)]
async fn evidence_of_a_record_that_is_gone_is_written_alone() {
    let mut scene = Scene::new().await;
    // Otherwise the coordinator announces the loss at once.
    drop(scene.first.take());
    let client = scene.service.connect();
    client.txn(Txn::new(Operation::delete(scene.keys.node(scene.victim)))).await.unwrap();
    scene.suspect(&[Verdict::Dead]);
    sleep(SOON).await;
    let record = LostRecord::decode("lost", &scene.evidence().await.expect("evidence").value).unwrap();
    assert_eq!(record.lease, 0, "no lease was read, so none is revoked");
}

#[tokio::test(start_paused = true)]
async fn observer_of_the_coordinators_death_becomes_coordinator_at_once() {
    let (mut scene, third) = Scene::with_all().await;
    let first = scene.first.take().unwrap();
    scene.victim = first.node.id().unwrap();
    drop(first);
    scene.suspect(&[Verdict::Dead]);
    sleep(SOON).await;
    let coordinator = scene.item(scene.keys.coordinator()).await.expect("a coordinator");
    let record = CoordinatorRecord::decode("coordinator", &coordinator.value).unwrap();
    assert_eq!(record.name, "b");
    drop(third);
}

/// Without a coordinator, its loss is not announced, and it is back in its world.
#[tokio::test(start_paused = true)]
async fn node_that_was_reported_dead_returns_and_deletes_the_evidence() {
    let (mut scene, third) = Scene::with_all().await;
    drop(scene.first.take());
    scene.suspect(&[Verdict::Dead]);
    let mut seen = third.node.subscribe();
    timeout(TTL, seen.wait_for(|seen| seen.false_alarms == 1)).await.expect("it learns of it").unwrap();
    sleep(SOON).await;
    let record = NodeRecord::decode("node", &scene.record().await.expect("a record").value).unwrap();
    assert_eq!(record.name, "c");
    assert_eq!(scene.evidence().await, None, "it would count at its next absence");
}
