//! One random schedule: what happens to a run, and whether everything held that must. On which service, and what may
//! happen to that and to the way to it, is its [`Ground`].

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use lattice_rdzv::{
    Error,
    backend::{Backend, Event, Keys, Range},
    node::{Node, Place, State},
    protocol::{
        keys::RunKeys,
        records::{ChangeKind, LastWorld, Outcome, Phase, PlanShard, Record as _, RoundRecord},
        sizing::Sizing,
    },
    run::Entropy,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    runtime::{Builder, RngSeed},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    book::Book,
    nodes::{TTL, place, settings},
};

/// What happens to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Everything.
    Stormy,
    /// Only what happens to the service: no node dies, leaves or is cut off.
    ServiceOnly,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) trace: Vec<String>,
    pub(crate) broken: Vec<String>,
    pub(crate) tally: Tally,
    /// One number for all that happened.
    pub(crate) fingerprint: u64,
}

/// What happened how often.
pub(crate) type Tally = BTreeMap<&'static str, usize>;

/// What a schedule is played on: a service, the ways to it, and what may happen to them. All of it is chance, and all
/// chance is of the seed.
pub(crate) trait Ground: Sized + 'static {
    /// A node's way to the service.
    type Link;

    async fn prepare(random: &mut StdRng, weather: Weather) -> Self;

    /// The way of a node that starts.
    fn link(&mut self, name: &str, seed: u64) -> Self::Link;

    fn backend(link: &Self::Link) -> Arc<dyn Backend>;

    /// Where a node that starts is, and what it hosts.
    async fn place(&mut self, name: &str, _: &Self::Link) -> Place {
        place(name)
    }

    /// Whether the service ends with this node.
    fn is_hosted_by(&self, _: &Self::Link) -> bool {
        false
    }

    /// Whether there is a service; if not, the next node that starts hosts one.
    fn is_served(&self) -> bool {
        true
    }

    /// A client that nothing happens to.
    fn observer(&self) -> Arc<dyn Backend>;

    /// Cuts a way, in one of the manners there are, and says which.
    fn cut(&mut self, link: &Self::Link, manner: u64) -> &'static str;

    fn mend(&mut self, link: &Self::Link);

    /// A node is about to end without a word.
    fn bury(&mut self, _: &Self::Link) {}

    /// Ends all that was done to the service and to these ways.
    async fn clear(&mut self, links: &[&Self::Link]);

    /// Something else happens, mostly to the service. Of six kinds 1 to 5 touch no node.
    async fn befall(schedule: &mut Schedule<Self>, kind: u64);

    /// Adds what only it counted, and says in one number all that it saw.
    fn account(&self, _: &mut Tally) -> u64 {
        0
    }
}

/// How long an agent that has a world waits for the run's store before it goes on.
const COUNT_LIMIT: Duration = Duration::from_secs(5);

/// An agent that lives by itself: takes worlds as they come until its run is closed.
pub(crate) struct Living<L> {
    pub(crate) name: String,
    node: Arc<Node>,
    pub(crate) link: L,
    task: JoinHandle<()>,
    world: watch::Receiver<Option<LastWorld>>,
    pub(crate) cut: bool,
}

impl<L> Living<L> {
    fn start(book: &Book, name: &str, node: Node, link: L) -> Self {
        let node = Arc::new(node);
        let (sender, world) = watch::channel(None);
        let (book, own) = (book.clone(), Arc::clone(&node));
        let named = name.to_owned();
        let task = tokio::spawn(async move {
            loop {
                match own.next_world(Some(29500), None).await {
                    Ok(world) => {
                        book.world(&named, &world);
                        let _ = sender.send(Some(world.place.clone()));
                        book.counts(&world.place);
                        let store = own.round_store(&world, true);
                        book.counted(&named, &world.place, store.add("count", 1, false, COUNT_LIMIT).await);
                    }
                    Err(Error::Timeout { .. }) => continue,
                    // The service was away when its time was over.
                    Err(Error::Unavailable { .. }) => {
                        sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                    Err(error) => {
                        let seen = own.subscribe().borrow().clone();
                        return book.ended(&named, &error, &seen);
                    }
                }
                if let Some((_, change)) = own.wait_change(None).await {
                    book.write(format!("{named}: {:?}: {}", change.kind, change.why));
                    if change.kind == ChangeKind::Closed {
                        let _ = sender.send(None);
                    }
                }
            }
        });
        Self { name: name.to_owned(), node, link, task, world, cut: false }
    }

    /// Ends without a word.
    fn kill(self) {
        self.task.abort();
    }

    fn state(&self) -> State {
        self.node.subscribe().borrow().state
    }
}

/// A schedule under way.
pub(crate) struct Schedule<G: Ground> {
    pub(crate) book: Book,
    random: StdRng,
    pub(crate) ground: G,
    pub(crate) agents: Vec<Living<G::Link>>,
    started: u64,
    nnodes: String,
    /// The settings about sizes.
    sizing: Vec<(&'static str, String)>,
    weather: Weather,
    tally: Tally,
    /// Which start of the job this is.
    submission: u64,
}

impl<G: Ground> Schedule<G> {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    pub(crate) fn seconds(&mut self, most: f64) -> Duration {
        let part = u32::try_from(self.random.next_u64() % 10_000).unwrap();
        Duration::from_secs_f64(most * f64::from(part) / 10_000.0)
    }

    pub(crate) async fn start(&mut self) {
        self.start_of(self.submission).await;
    }

    /// A node of this submission starts.
    async fn start_of(&mut self, submission: u64) {
        self.started += 1;
        let name = format!("n{}", self.started);
        let seed = self.random.next_u64();
        let labels = [("topology", "x"), ("topology", "y")];
        let label = labels[usize::try_from(self.below(2)).unwrap()];
        let submission = submission.to_string();
        self.book.ledger().submissions.insert(name.clone(), submission.clone());
        let times = [
            ("last_call_timeout", "2"),
            ("rejoin_timeout", "8"),
            ("reuse_delay", "2"),
            ("submission", submission.as_str()),
            label,
        ];
        let sizing = self.sizing.iter().map(|(key, value)| (*key, value.as_str()));
        let more: Vec<_> = times.into_iter().chain(sizing).collect();
        let settings = settings(&name, &self.nnodes, &more);
        self.book.write(format!("{name}: starts"));
        let link = self.ground.link(&name, seed);
        let place = self.ground.place(&name, &link).await;
        let joining = Node::join(G::backend(&link), settings, Entropy::seeded(seed), place);
        match timeout(Duration::from_secs(60), joining).await {
            Ok(Ok(node)) => self.agents.push(Living::start(&self.book, &name, node, link)),
            Ok(Err(Error::Mismatch { message })) => {
                self.book.write(format!("{name}: is refused at once: {message}"));
            }
            Ok(Err(error)) => self.book.broken(format!("{name} did not join: {error}")),
            Err(_) => self.book.broken(format!("{name}: joining hangs")),
        }
    }

    pub(crate) fn one(&mut self) -> Option<usize> {
        let count = self.agents.len() as u64;
        (count > 0).then(|| usize::try_from(self.below(count)).unwrap())
    }

    async fn step(&mut self) {
        let pause = self.seconds(4.0);
        sleep(pause).await;
        let kind = match self.weather {
            Weather::Stormy => self.below(16),
            Weather::ServiceOnly => [7, 8, 9, 10, 11, 15][usize::try_from(self.below(6)).unwrap()],
        };
        match kind {
            2 => {
                if let Some(index) = self.one() {
                    let gone = self.take(index);
                    self.happened("deaths");
                    self.book.write(format!("{}: killed", gone.name));
                    self.ground.bury(&gone.link);
                    gone.kill();
                }
            }
            3 => {
                if let Some(index) = self.one() {
                    let gone = self.take(index);
                    self.happened("departures");
                    self.book.write(format!("{}: leaves", gone.name));
                    gone.task.abort();
                    let limit = self.seconds(3.0);
                    gone.node.leave(Some(limit)).await;
                }
            }
            4 | 5 => {
                if let Some(index) = self.one() {
                    let manner = self.random.next_u64();
                    let living = &mut self.agents[index];
                    living.cut = !living.cut;
                    let word = if living.cut {
                        *self.tally.entry("partitions").or_default() += 1;
                        self.book.ledger().away.insert(living.name.clone());
                        self.ground.cut(&living.link, manner)
                    } else {
                        self.ground.mend(&living.link);
                        "reaches the service again"
                    };
                    self.book.write(format!("{}: {word}", living.name));
                }
            }
            6..=11 => G::befall(self, kind - 6).await,
            12 => {
                if let Some(index) = self.one() {
                    let gone = self.take(index);
                    self.book.write(format!("{}: is about to leave", gone.name));
                    gone.node.mark_leaving(Duration::from_secs(1)).await;
                    let grace = self.seconds(2.0);
                    sleep(grace).await;
                    self.book.write(format!("{}: is killed in its grace period", gone.name));
                    self.ground.bury(&gone.link);
                    gone.kill();
                }
            }
            13 => self.close_by_somebody().await,
            15 => self.start_another_job().await,
            _ => self.start().await,
        }
    }

    /// Takes out an agent that is about to end.
    fn take(&mut self, index: usize) -> Living<G::Link> {
        let gone = self.agents.remove(index);
        self.book.ledger().away.insert(gone.name.clone());
        if self.ground.is_hosted_by(&gone.link) {
            self.wiped(&format!("{}: the service will end with it", gone.name));
        }
        gone
    }

    pub(crate) fn happened(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// The service loses everything now.
    pub(crate) fn wiped(&mut self, how: &str) {
        self.book.write(how);
        self.happened("wipes");
        self.book.wiped();
    }

    /// Where nobody dies, what happened to the service is over before the next thing happens.
    pub(crate) async fn settled_weather(&self) {
        if self.weather == Weather::ServiceOnly {
            sleep(TTL * 5).await;
        }
    }

    /// Somebody closes the run in the middle of everything, and the job is started again.
    async fn close_by_somebody(&mut self) {
        // Not too often: what happens to a run is more than its ends.
        let Some(index) = self.one().filter(|_| self.submission < 3) else { return };
        let closer = Arc::clone(&self.agents[index].node);
        self.book.write(format!("{}: closes", self.agents[index].name));
        self.book.closing();
        // Of a closing that it knows already the service may know nothing any more.
        let news = closer.subscribe().borrow().closed.is_none();
        let limit = self.seconds(4.0);
        let acknowledged = closer.close(Outcome::Failed, "the storm", Some(limit)).await;
        let record = closer.subscribe().borrow().closed.clone();
        self.book.write(format!("closed: {acknowledged}"));
        if let Some(closed) = record.filter(|_| acknowledged && news)
            && let Some(round) = self.stored_round().await.filter(|round| round.life == closed.life)
        {
            self.book.closed(&closed.life, round.round);
        }
        self.submission += 1;
        self.start().await;
    }

    /// The same run id is used for another submission, while the first one runs. Where nobody dies, an outage ends the
    /// leases of both, and then the second one is refused.
    async fn start_another_job(&mut self) {
        self.happened("other jobs");
        let before = self.agents.len();
        self.start_of(self.submission + 1).await;
        if self.weather == Weather::Stormy || self.agents.len() == before {
            return;
        }
        let kind = 2 + 2 * self.below(2);
        G::befall(self, kind).await;
        let rival = self.agents.pop().expect("a node that has just started");
        let Living { name, node, mut task, .. } = rival;
        if timeout(Duration::from_secs(60), &mut task).await.is_err() {
            self.book.broken(format!("{name} is not refused: {:?}", *node.subscribe().borrow()));
            task.abort();
        }
        node.leave(None).await;
    }

    /// Takes out the agents that have ended.
    fn remove_ended(&mut self) {
        let ended = self.book.ledger().ends.clone();
        while let Some(index) = self.agents.iter().position(|living| ended.contains(&living.name)) {
            drop(self.take(index));
        }
    }

    /// If the node that hosted the service is gone, starts another one, of the submission that the run belongs to: without
    /// a service no node is refused.
    async fn serve_again(&mut self) {
        if self.ground.is_served() {
            return;
        }
        let is_member = |living: &&Living<G::Link>| living.node.subscribe().borrow().world.is_some();
        // A node that was cut off for long may be in a world of an earlier life.
        let owner = self.agents.iter().rfind(is_member).or(self.agents.first());
        let submission = owner.map(|living| self.book.ledger().submissions[&living.name].parse());
        self.start_of(submission.map_or(self.submission, |number| number.expect("a number"))).await;
    }

    /// Waits until the nodes that are left are of one submission, of which more may start.
    async fn settle_submissions(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            self.remove_ended();
            self.serve_again().await;
            let submissions: BTreeSet<String> = {
                let ledger = self.book.ledger();
                self.agents.iter().map(|living| ledger.submissions[&living.name].clone()).collect()
            };
            if submissions.len() < 2 {
                if let Some(one) = submissions.first() {
                    self.submission = one.parse().expect("a number");
                }
                return;
            }
            if Instant::now() > deadline {
                self.book.broken(format!("nodes of the submissions {submissions:?} wait for each other"));
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// What stands at `ctl/round` now.
    async fn stored_round(&self) -> Option<RoundRecord> {
        let key = keys().round();
        let found = self.ground.observer().range(Range::new(Keys::one(key.as_str()))).await.ok()?;
        RoundRecord::decode(&key, &found.items.first()?.value).ok()
    }

    /// Whoever has heard nothing for longer than its lease lives must know that it may be lost, and its owner that the
    /// node is lost which hosts the service.
    pub(crate) fn check_uncertain(&mut self, silence: Duration) {
        if silence < TTL * 2 {
            return;
        }
        let mut losses = 0;
        for living in &self.agents {
            let snapshot = living.node.subscribe().borrow().clone();
            let hosted = snapshot.world.as_ref().and_then(|world| world.host.clone());
            let elsewhere = !self.ground.is_hosted_by(&living.link) && snapshot.closed.is_none();
            if let Some(host) = hosted.filter(|_| elsewhere) {
                losses += 1;
                if snapshot.host_lost.as_ref().is_none_or(|lost| lost.host != host) {
                    self.book.broken(format!("{} is not told that {host} is lost", living.name));
                }
            }
            if matches!(living.state(), State::Member | State::Seeking | State::Spare) {
                let state = living.state();
                self.book.broken(format!("{} is {state:?} after {silence:?} of silence", living.name));
            }
        }
        for _ in 0..losses {
            self.happened("times a host's loss was told");
        }
    }

    /// All faults end; then, within the configured times, everybody who is left has settled.
    async fn settle(&mut self) {
        let links: Vec<_> = self.agents.iter().map(|living| &living.link).collect();
        self.ground.clear(&links).await;
        for living in &mut self.agents {
            living.cut = false;
        }
        self.book.write("all faults end");
        // Who is to learn of a closing has done so when what happened last was noticed.
        sleep(TTL * 3).await;
        self.settle_submissions().await;
        // What they had open is closed by then.
        sleep(Duration::from_millis(1)).await;
        while self.book.sizes().largest(self.agents.len()).is_none() || !self.ground.is_served() {
            self.start().await;
        }
        // Who hosts the service goes last.
        let ground = &self.ground;
        self.agents.sort_by_key(|living| ground.is_hosted_by(&living.link));
        // What happened last may not have been noticed yet.
        sleep(TTL * 2).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let unsettled = self.unsettled();
            if unsettled.is_empty() {
                self.check_ranks().await;
                self.check_count().await;
                break;
            }
            if Instant::now() > deadline {
                for living in &self.agents {
                    self.book.write(format!("{}: {:?}", living.name, *living.node.subscribe().borrow()));
                }
                self.book.broken(format!("not settled a minute after the last fault: {unsettled}"));
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn unsettled(&self) -> String {
        let expected = self.book.sizes().largest(self.agents.len()).map_or(0, |size| size as usize);
        let mut worlds = BTreeSet::new();
        let mut members = 0;
        for living in &self.agents {
            let seen = living.node.subscribe().borrow().clone();
            let is_restoring = seen.round.is_some_and(|round| round.phase == Phase::Restoring);
            if seen.state == State::Member && !is_restoring && living.node.num_nodes_waiting() == 0 {
                members += 1;
                worlds.extend(living.world.borrow().as_ref().map(|world| (world.life.clone(), world.round)));
            }
        }
        let states: Vec<_> =
            self.agents.iter().map(|living| (living.name.as_str(), living.state())).collect();
        if members == expected && worlds.len() == 1 {
            String::new()
        } else {
            format!("{members} of {expected} members in {} worlds: {states:?}", worlds.len())
        }
    }

    /// Each rank was given once, and everybody reads the same plan.
    async fn check_ranks(&self) {
        let members = || self.agents.iter().filter(|living| living.state() == State::Member);
        let places: Vec<LastWorld> = members().filter_map(|living| living.world.borrow().clone()).collect();
        let mut ranks: Vec<u32> = places.iter().map(|place| place.rank).collect();
        ranks.sort_unstable();
        let size = u32::try_from(ranks.len()).unwrap();
        if ranks.iter().copied().ne(0..size) || places.iter().any(|place| place.size != size) {
            self.book.broken(format!("the places are not one each of {size}: {places:?}"));
        }
        let mut plans = BTreeSet::new();
        for living in members() {
            let Some(facts) = living.node.subscribe().borrow().world.clone() else { continue };
            match living.node.members(&facts, TTL).await {
                Ok(members) => {
                    plans.insert(members.iter().map(|entry| (entry.rank, entry.id)).collect::<Vec<_>>());
                }
                Err(error) => self.book.broken(format!("{} cannot read the plan: {error}", living.name)),
            }
        }
        if plans.len() != 1 || plans.iter().any(|plan| plan.len() != ranks.len()) {
            self.book.broken(format!("there is not one plan of {size}: {plans:?}"));
        }
    }

    /// The members have each counted themselves in the store of their world, once.
    async fn check_count(&self) {
        let members: Vec<_> = self.agents.iter().filter(|living| living.state() == State::Member).collect();
        let names = members.iter().map(|living| living.name.clone()).collect();
        let Some((living, facts)) = members.iter().find_map(|living| {
            let facts = living.node.subscribe().borrow().world.clone()?;
            Some((living, facts))
        }) else {
            return;
        };
        // The last of them may have its world since a moment only.
        sleep(COUNT_LIMIT).await;
        let store = living.node.round_store(&facts, true);
        match store.get_now(&["count"], COUNT_LIMIT).await {
            Ok(held) => {
                let text = held.into_iter().flatten().next().unwrap_or_else(|| b"0".to_vec());
                let sum = String::from_utf8(text).expect("text").parse().expect("a number");
                self.book.sum(&facts.place, &names, sum);
            }
            Err(error) => self.book.broken(format!("the count cannot be read: {error}")),
        }
    }

    /// Everybody in the world asks for its exit barrier, and goes; nobody starts again because of it.
    async fn finish(&mut self) {
        let members: Vec<_> = self.agents.iter().filter(|living| living.state() == State::Member).collect();
        for living in &members {
            let facts = living.node.subscribe().borrow().world.clone().expect("a member's world");
            let store = living.node.round_store(&facts, true);
            self.book.write(format!("{}: finishes", living.name));
            if let Err(error) = store.add("barrier", 1, true, Duration::from_secs(30)).await {
                self.book.broken(format!("{} cannot finish: {error}", living.name));
            }
        }
        let Some((last, others)) = members.split_last() else { return };
        for living in others {
            self.book.write(format!("{}: leaves, finished", living.name));
            living.task.abort();
            living.node.leave(None).await;
        }
        sleep(TTL * 2).await;
        if let Some((_, change)) = last.node.change() {
            self.book.broken(format!("{} was told though all had finished: {}", last.name, change.why));
        }
    }

    /// The run is closed by one, all others end with it, and in time nothing is left of it.
    async fn close(&mut self) {
        let Some(closer) = self
            .agents
            .iter()
            .find(|living| living.state() == State::Member)
            .map(|living| Arc::clone(&living.node))
        else {
            return;
        };
        let world = closer.subscribe().borrow().world.clone().expect("a member's world");
        self.book.closing();
        self.book.closed(&world.place.life, world.place.round);
        self.book.write("closing");
        if !closer.close(Outcome::Failed, "the end", None).await {
            self.book.broken("closing was not acknowledged".into());
        }
        for living in &mut self.agents {
            let seen = living.node.subscribe().borrow().clone();
            let of_this_life =
                seen.node.is_some() && seen.round.is_some_and(|round| round.life == world.place.life);
            let ended = timeout(Duration::from_secs(10), &mut living.task).await.is_ok();
            // Who came too late for that life waits for the next one.
            if of_this_life && !ended {
                self.book.broken(format!("{} did not end when the run was closed", living.name));
            }
            if !living.node.leave(None).await {
                self.book.broken(format!("{} could not leave a closed run", living.name));
            }
        }
        if !self.ground.is_served() {
            return;
        }
        sleep(Duration::from_secs(1_000)).await;
        let left = self.ground.observer().range(Range::new(Keys::prefix("/"))).await.expect("a range").items;
        if let Some(item) = left.first() {
            let key = String::from_utf8_lossy(&item.key).into_owned();
            self.book.broken(format!("{} keys are left of the run, such as {key}", left.len()));
        }
    }
}

pub(crate) fn keys() -> RunKeys {
    RunKeys::new("default", "run")
}

/// Between two attempts to watch; after each that fails twice as long.
const WITNESS_PAUSE: Duration = Duration::from_millis(50);

/// Looks at what stands in the store: decisions follow from each other, each is whole, and none follows a closing.
async fn witness(client: Arc<dyn Backend>, book: Book) {
    let keys = keys();
    let mut restored = BTreeSet::new();
    let mut pause = WITNESS_PAUSE;
    loop {
        let (mut last, mut closed): (Option<RoundRecord>, bool) = (None, false);
        let Ok(mut watch) = client.watch(keys.control(), 0).await else {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
            continue;
        };
        pause = WITNESS_PAUSE;
        while let Ok(changes) = watch.next().await {
            let is_closed = |event: &Event| event.key() == keys.closed().as_bytes();
            // A new life is begun in the transaction that puts the closing away.
            let reopened: BTreeSet<i64> = changes
                .events
                .iter()
                .filter(|event| is_closed(event) && matches!(event, Event::Delete { .. }))
                .map(Event::revision)
                .collect();
            for event in changes.events {
                if is_closed(&event) {
                    closed = matches!(event, Event::Put(_));
                }
                if matches!(&event, Event::Delete { key, .. } if key == keys.round().as_bytes()) {
                    // Nobody renewed the run's lease for a minute: that is as good as a wipe.
                    last = None;
                    book.wiped();
                }
                let Event::Put(item) = event else { continue };
                if item.key == keys.round().as_bytes() {
                    let round = RoundRecord::decode("ctl/round", &item.value).expect("a record");
                    if closed && !reopened.contains(&item.mod_revision) {
                        book.broken(format!("round {} was written into a closed run", round.round));
                    }
                    if let Some(last) = last.as_ref().filter(|last| last.life == round.life) {
                        let same = (last.round, &last.world) == (round.round, &round.world);
                        if round.round < last.round || (round.round == last.round && !same) {
                            book.broken(format!("round {} follows round {}", round.round, last.round));
                        }
                        if same && last.change.is_some() && round.change != last.change {
                            book.broken(format!("the change of round {} was taken back", round.round));
                        }
                    }
                    if round.phase == Phase::Restoring {
                        restored.insert(round.world.clone());
                    }
                    if restored.contains(&round.world) {
                        // Its nodes come back one by one, or not at all.
                        last = Some(round);
                        continue;
                    }
                    check_plan(client.as_ref(), &keys, &round, item.mod_revision, &book).await;
                    last = Some(round);
                }
            }
        }
    }
}

/// With the round its whole plan is there.
async fn check_plan(client: &dyn Backend, keys: &RunKeys, round: &RoundRecord, revision: i64, book: &Book) {
    if !round.has_world() || book.ledger().wiped {
        return;
    }
    let plan = keys.plan(&round.life, round.round, &round.attempt);
    let range = Range { revision, ..Range::new(Keys::prefix(plan.as_str())) };
    // Compacted, or wiped just now.
    let Ok(found) = client.range(range).await else { return };
    let shards = found.items.iter().map(|item| PlanShard::decode(&plan, &item.value).expect("a shard"));
    let mut ranks: Vec<u32> = shards.flat_map(|shard| shard.nodes).map(|entry| entry.rank).collect();
    ranks.sort_unstable();
    if ranks.iter().copied().ne(0..round.size) && !book.ledger().wiped {
        book.broken(format!(
            "round {} of {} was committed with the ranks {ranks:?}",
            round.round, round.size
        ));
    }
}

/// In half of the runs, rules about the sizes of worlds.
fn sizing(chance: u64, min: u32, max: u32) -> Sizing {
    match chance % 6 {
        0 => Sizing { sizes: vec![min, max], ..Sizing::default() },
        1 if max >= 2 && (max.is_multiple_of(2) || max > min) => {
            Sizing { node_unit: Some(2), ..Sizing::default() }
        }
        2 => Sizing { wanted: Some(min.midpoint(max)), ..Sizing::default() },
        _ => Sizing::default(),
    }
}

/// The settings that stand for these rules.
fn texts(sizing: &Sizing) -> Vec<(&'static str, String)> {
    let list = sizing.sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(":");
    let sizes = (!list.is_empty()).then_some(("sizes", list));
    let unit = sizing.node_unit.map(|unit| ("node_unit", unit.to_string()));
    let wanted = sizing.wanted.map(|wanted| ("wanted", wanted.to_string()));
    sizes.into_iter().chain(unit).chain(wanted).collect()
}

async fn run<G: Ground>(seed: u64, weather: Weather) -> Report {
    let mut random = StdRng::seed_from_u64(seed);
    let min = 1 + u32::try_from(random.next_u64() % 3).unwrap();
    let max = min + u32::try_from(random.next_u64() % 3).unwrap();
    let ground = G::prepare(&mut random, weather).await;
    let sizing = sizing(random.next_u64(), min, max);
    let book = Book::new(min, max, sizing.clone());
    let mut schedule = Schedule {
        book: book.clone(),
        random,
        ground,
        agents: Vec::new(),
        started: 0,
        nnodes: format!("{min}:{max}"),
        sizing: texts(&sizing),
        weather,
        tally: Tally::new(),
        submission: 1,
    };
    let witness = tokio::spawn(witness(schedule.ground.observer(), book.clone()));
    let smallest = book.sizes().smallest();
    let first = if weather == Weather::ServiceOnly { max } else { smallest };
    for _ in 0..first {
        schedule.start().await;
    }
    if weather == Weather::ServiceOnly {
        sleep(Duration::from_secs(10)).await;
    }
    let settled = book.ledger().worlds.len();
    let steps = 6 + schedule.below(10);
    for _ in 0..steps {
        schedule.step().await;
    }
    schedule.settle().await;
    let rounds = book.ledger().worlds.len();
    if weather == Weather::ServiceOnly && rounds != settled {
        book.broken(format!("{} rounds were formed though nobody died", rounds - settled));
    }
    if schedule.below(2) == 0 {
        schedule.finish().await;
    }
    schedule.close().await;
    witness.abort();
    let ledger = std::mem::take(&mut *book.ledger());
    let mut tally = schedule.tally;
    tally.insert("schedules", 1);
    tally.insert("refusals", ledger.refusals);
    tally.insert("rounds", ledger.worlds.len());
    tally.insert("places", ledger.worlds.values().map(|(_, _, ranks)| ranks.len()).sum());
    let mut hasher = DefaultHasher::new();
    (schedule.ground.account(&mut tally), &ledger.trace).hash(&mut hasher);
    Report { trace: ledger.trace, broken: ledger.broken, tally, fingerprint: hasher.finish() }
}

/// Runs one schedule to its end.
pub(crate) fn simulate<G: Ground>(seed: u64, weather: Weather) -> Report {
    let chance = RngSeed::from_bytes(&seed.to_le_bytes());
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).rng_seed(chance).build();
    runtime.expect("a runtime").block_on(run::<G>(seed, weather))
}
