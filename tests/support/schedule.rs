//! One random schedule: what happens to a run, and whether everything held that must.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use lattice_rdzv::{
    Error,
    backend::{
        Backend as _, Event, Keys, Range,
        memory::{Call, Fate, MemoryBackend, MemoryService},
    },
    node::{State, WorldFacts},
    protocol::{
        keys::RunKeys,
        records::{ChangeKind, LastWorld, Outcome, Phase, PlanShard, Record as _, RoundRecord},
    },
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    runtime::{Builder, RngSeed},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::nodes::{Agent, TTL, settings};

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
    pub(crate) rounds: usize,
    pub(crate) worlds: usize,
    pub(crate) wipes: usize,
}

/// What its nodes say of a world: size, master, and who has which rank.
type World = (u32, String, BTreeMap<u32, String>);

/// What all agents write down.
#[derive(Default)]
struct Ledger {
    trace: Vec<String>,
    broken: Vec<String>,
    /// By life, round and name.
    worlds: BTreeMap<(String, u64, String), World>,
    /// The last round of each life that was closed, and not wiped since.
    closed: BTreeMap<String, u64>,
    /// Whether the service lost everything: then there may be two worlds of one number that do not know of each other,
    /// and a life whose closing was forgotten.
    wiped: bool,
    /// Whether somebody has asked for the run to be closed: only then may an agent's life end by itself.
    closing: bool,
    /// Who has ended.
    ends: BTreeSet<String>,
}

#[derive(Clone)]
struct Book {
    ledger: Arc<Mutex<Ledger>>,
    began: Instant,
    min: u32,
    max: u32,
}

impl Book {
    fn write(&self, line: impl std::fmt::Display) {
        let at = self.began.elapsed().as_secs_f64();
        self.ledger.lock().unwrap().trace.push(format!("{at:9.3} {line}"));
    }

    fn broken(&self, what: String) {
        self.write(format!("BROKEN {what}"));
        self.ledger.lock().unwrap().broken.push(what);
    }

    /// A node was given a world.
    fn world(&self, name: &str, world: &WorldFacts) {
        let LastWorld { life, round, world: label, rank, size } = &world.place;
        self.write(format!("{name}: round {round} rank {rank} of {size} ({})", world.why));
        let mut wrong = Vec::new();
        {
            let mut ledger = self.ledger.lock().unwrap();
            if ledger.closed.get(life).is_some_and(|last| round > last) {
                wrong.push(format!("round {round} was formed in a closed life"));
            }
            let key = (life.clone(), *round, label.clone());
            let mut others = ledger.worlds.keys().filter(|(of, number, _)| (of, number) == (life, round));
            if !ledger.wiped && others.any(|other| *other != key) {
                wrong.push(format!("round {round} was formed twice"));
            }
            let (known_size, master, ranks) = ledger
                .worlds
                .entry(key)
                .or_insert_with(|| (*size, world.master_address.clone(), BTreeMap::new()));
            if known_size != size || *master != world.master_address {
                wrong.push(format!("round {round} has two sizes or masters"));
            }
            let identity = format!("{name} {}", world.node);
            if ranks.insert(*rank, identity.clone()).is_some_and(|old| old != identity) {
                wrong.push(format!("rank {rank} of round {round} was given twice"));
            }
            if *rank >= *size || *size < self.min || *size > self.max {
                wrong.push(format!("rank {rank} of {size} in a run of {}:{}", self.min, self.max));
            }
            if *rank == 0 && world.master_address != format!("{name}.test") {
                wrong.push(format!("rank 0 is {name}, and the master {}", world.master_address));
            }
        }
        for what in wrong {
            self.broken(what);
        }
    }

    fn closing(&self) {
        self.ledger.lock().unwrap().closing = true;
    }

    fn closed(&self, life: &str, round: u64) {
        self.ledger.lock().unwrap().closed.entry(life.to_owned()).or_insert(round);
    }

    fn wiped(&self) {
        let mut ledger = self.ledger.lock().unwrap();
        ledger.wiped = true;
        ledger.closed.clear();
    }

    fn ended(&self, name: &str, error: &Error) {
        self.write(format!("{name}: ends: {error}"));
        let closing = {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.ends.insert(name.to_owned());
            ledger.closing
        };
        if !(closing && matches!(error, Error::Closed { .. })) {
            self.broken(format!("{name} ended, and nobody had closed the run: {error}"));
        }
    }
}

/// An agent that lives by itself: takes worlds as they come until its run is closed.
struct Living {
    name: String,
    agent: Arc<Agent>,
    task: JoinHandle<()>,
    world: watch::Receiver<Option<LastWorld>>,
    cut: bool,
}

impl Living {
    fn start(book: &Book, name: &str, agent: Agent) -> Self {
        let agent = Arc::new(agent);
        let (sender, world) = watch::channel(None);
        let (book, own) = (book.clone(), Arc::clone(&agent));
        let named = name.to_owned();
        let task = tokio::spawn(async move {
            loop {
                match own.node.next_world(Some(29500), None).await {
                    Ok(world) => {
                        book.world(&named, &world);
                        let _ = sender.send(Some(world.place.clone()));
                    }
                    Err(Error::Timeout { .. }) => continue,
                    Err(error) => return book.ended(&named, &error),
                }
                if let Some((_, change)) = own.node.wait_change(None).await {
                    book.write(format!("{named}: {:?}: {}", change.kind, change.why));
                    if change.kind == ChangeKind::Closed {
                        let _ = sender.send(None);
                    }
                }
            }
        });
        Self { name: name.to_owned(), agent, task, world, cut: false }
    }

    /// Ends without a word.
    fn kill(self) {
        self.task.abort();
    }

    fn state(&self) -> State {
        self.agent.node.subscribe().borrow().state
    }
}

/// A schedule under way.
struct Schedule {
    book: Book,
    random: StdRng,
    service: MemoryService,
    agents: Vec<Living>,
    started: u64,
    nnodes: String,
    weather: Weather,
    wipes: usize,
    noise: bool,
    /// Which start of the job this is.
    submission: u64,
}

impl Schedule {
    fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    fn seconds(&mut self, most: f64) -> Duration {
        let part = u32::try_from(self.random.next_u64() % 10_000).unwrap();
        Duration::from_secs_f64(most * f64::from(part) / 10_000.0)
    }

    async fn start(&mut self) {
        self.started += 1;
        let name = format!("n{}", self.started);
        let seed = self.random.next_u64();
        let labels = [("topology", "x"), ("topology", "y")];
        let label = labels[usize::try_from(self.below(2)).unwrap()];
        let submission = self.submission.to_string();
        let times = [
            ("last_call_timeout", "2"),
            ("rejoin_timeout", "8"),
            ("reuse_delay", "2"),
            ("submission", submission.as_str()),
            label,
        ];
        let settings = settings(&name, &self.nnodes, &times);
        self.book.write(format!("{name}: starts"));
        let link = Arc::new(self.service.connect_with(TTL / 4));
        if self.noise {
            let mut random = StdRng::seed_from_u64(seed);
            link.interfere(Some(Box::new(move |call| noise(&mut random, call))));
        }
        match timeout(Duration::from_secs(60), Agent::join_over(link, settings, seed)).await {
            Ok(Ok(agent)) => self.agents.push(Living::start(&self.book, &name, agent)),
            Ok(Err(error)) => self.book.broken(format!("{name} did not join: {error}")),
            Err(_) => self.book.broken(format!("{name}: joining hangs")),
        }
    }

    fn one(&mut self) -> Option<usize> {
        let count = self.agents.len() as u64;
        (count > 0).then(|| usize::try_from(self.below(count)).unwrap())
    }

    async fn step(&mut self) {
        let pause = self.seconds(4.0);
        sleep(pause).await;
        let kind = match self.weather {
            Weather::Stormy => self.below(15),
            Weather::ServiceOnly => 7 + self.below(5),
        };
        match kind {
            2 => {
                if let Some(index) = self.one() {
                    let gone = self.agents.remove(index);
                    self.book.write(format!("{}: killed", gone.name));
                    gone.kill();
                }
            }
            3 => {
                if let Some(index) = self.one() {
                    let gone = self.agents.remove(index);
                    self.book.write(format!("{}: leaves", gone.name));
                    gone.task.abort();
                    let limit = self.seconds(3.0);
                    gone.agent.node.leave(Some(limit)).await;
                }
            }
            4 | 5 => {
                if let Some(index) = self.one() {
                    let living = &mut self.agents[index];
                    living.cut = !living.cut;
                    let cut = living.cut;
                    if cut {
                        living.agent.link.cut();
                    } else {
                        living.agent.link.mend();
                    }
                    let word = if cut { "cut off" } else { "reaches the service again" };
                    self.book.write(format!("{}: {word}", living.name));
                }
            }
            6 => {
                if let Some(index) = self.one() {
                    let lost = usize::try_from(self.below(4)).unwrap();
                    self.book.write(format!("{}: loses {lost} answers", self.agents[index].name));
                    self.agents[index].agent.link.lose_answers(lost);
                }
            }
            7 => {
                self.book.write("service: wiped");
                self.wipes += 1;
                self.book.wiped();
                self.service.wipe();
                if self.weather == Weather::ServiceOnly {
                    sleep(TTL * 5).await;
                }
            }
            8 | 9 => {
                let time = self.seconds(15.0);
                self.book.write(format!("service: paused for {:.1} s", time.as_secs_f64()));
                self.service.pause();
                sleep(time).await;
                self.check_uncertain(time);
                self.service.resume();
                if self.weather == Weather::ServiceOnly {
                    sleep(TTL * 5).await;
                }
            }
            10 => {
                let time = self.seconds(15.0);
                self.book.write(format!("service: down for {:.1} s", time.as_secs_f64()));
                self.service.stop();
                sleep(time).await;
                self.service.start();
            }
            11 => {
                self.book.write("service: compacted");
                let _ = self.service.compact(self.service.revision());
            }
            12 => {
                if let Some(index) = self.one() {
                    let gone = self.agents.remove(index);
                    self.book.write(format!("{}: is about to leave", gone.name));
                    gone.agent.node.mark_leaving(Duration::from_secs(1)).await;
                    let grace = self.seconds(2.0);
                    sleep(grace).await;
                    self.book.write(format!("{}: is killed in its grace period", gone.name));
                    gone.kill();
                }
            }
            13 => self.close_by_somebody().await,
            _ => self.start().await,
        }
    }

    /// Somebody closes the run in the middle of everything, and the job is started again.
    async fn close_by_somebody(&mut self) {
        // Not too often: what happens to a run is more than its ends.
        let Some(index) = self.one().filter(|_| self.submission < 3) else { return };
        let closer = Arc::clone(&self.agents[index].agent);
        self.book.write(format!("{}: closes", self.agents[index].name));
        self.book.closing();
        // Of a closing that it knows already the service may know nothing any more.
        let news = closer.node.subscribe().borrow().closed.is_none();
        let limit = self.seconds(4.0);
        let acknowledged = closer.node.close(Outcome::Failed, "the storm", Some(limit)).await;
        let record = closer.node.subscribe().borrow().closed.clone();
        self.book.write(format!("closed: {acknowledged}"));
        if let Some(closed) = record.filter(|_| acknowledged && news)
            && let Some(round) = self.stored_round().await.filter(|round| round.life == closed.life)
        {
            self.book.closed(&closed.life, round.round);
        }
        self.submission += 1;
        self.start().await;
    }

    /// What stands at `ctl/round` now.
    async fn stored_round(&self) -> Option<RoundRecord> {
        let key = keys().round();
        let found = self.service.connect().range(Range::new(Keys::one(key.as_str()))).await.ok()?;
        RoundRecord::decode(&key, &found.items.first()?.value).ok()
    }

    /// Whoever has heard nothing for longer than its lease lives must know that it may be lost.
    fn check_uncertain(&self, silence: Duration) {
        if silence < TTL * 2 {
            return;
        }
        for living in &self.agents {
            if matches!(living.state(), State::Member | State::Seeking | State::Spare) {
                let state = living.state();
                self.book.broken(format!("{} is {state:?} after {silence:?} of silence", living.name));
            }
        }
    }

    /// All faults end; then, within the configured times, everybody who is left has settled.
    async fn settle(&mut self) {
        for living in &mut self.agents {
            living.agent.link.mend();
            living.agent.link.interfere(None);
            living.cut = false;
        }
        self.book.write("all faults end");
        // Who is to learn of a closing has done so when what happened last was noticed.
        sleep(TTL * 3).await;
        let ended = self.book.ledger.lock().unwrap().ends.clone();
        self.agents.retain(|living| !ended.contains(&living.name));
        while (self.agents.len() as u64) < u64::from(self.book.min) {
            self.start().await;
        }
        // What happened last may not have been noticed yet.
        sleep(TTL * 2).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let unsettled = self.unsettled();
            if unsettled.is_empty() {
                self.check_ranks().await;
                break;
            }
            if Instant::now() > deadline {
                for living in &self.agents {
                    self.book.write(format!(
                        "{}: {:?}",
                        living.name,
                        *living.agent.node.subscribe().borrow()
                    ));
                }
                self.book.broken(format!("not settled a minute after the last fault: {unsettled}"));
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn unsettled(&self) -> String {
        let expected = self.agents.len().min(self.book.max as usize);
        let mut worlds = BTreeSet::new();
        let mut members = 0;
        for living in &self.agents {
            let seen = living.agent.node.subscribe().borrow().clone();
            if seen.state == State::Member && living.agent.node.num_nodes_waiting() == 0 {
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
            let Some(facts) = living.agent.node.subscribe().borrow().world.clone() else { continue };
            match living.agent.node.members(&facts, TTL).await {
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

    /// Everybody in the world asks for its exit barrier, and goes; nobody starts again because of it.
    async fn finish(&mut self) {
        let members: Vec<_> = self.agents.iter().filter(|living| living.state() == State::Member).collect();
        for living in &members {
            let facts = living.agent.node.subscribe().borrow().world.clone().expect("a member's world");
            let store = living.agent.node.round_store(&facts, true);
            self.book.write(format!("{}: finishes", living.name));
            if let Err(error) = store.add("barrier", 1, true, Duration::from_secs(30)).await {
                self.book.broken(format!("{} cannot finish: {error}", living.name));
            }
        }
        for living in members.iter().skip(1) {
            self.book.write(format!("{}: leaves, finished", living.name));
            living.task.abort();
            living.agent.node.leave(None).await;
        }
        sleep(TTL * 2).await;
        let Some(last) = members.first() else { return };
        if let Some((_, change)) = last.agent.node.change() {
            self.book.broken(format!("{} was told though all had finished: {}", last.name, change.why));
        }
    }

    /// The run is closed by one, all others end with it, and in time nothing is left of it.
    async fn close(&mut self) {
        let Some(closer) = self
            .agents
            .iter()
            .find(|living| living.state() == State::Member)
            .map(|living| Arc::clone(&living.agent))
        else {
            return;
        };
        let world = closer.node.subscribe().borrow().world.clone().expect("a member's world");
        self.book.closing();
        self.book.closed(&world.place.life, world.place.round);
        self.book.write("closing");
        if !closer.node.close(Outcome::Failed, "the end", None).await {
            self.book.broken("closing was not acknowledged".into());
        }
        for living in &mut self.agents {
            let seen = living.agent.node.subscribe().borrow().clone();
            let of_this_life =
                seen.node.is_some() && seen.round.is_some_and(|round| round.life == world.place.life);
            let ended = timeout(Duration::from_secs(10), &mut living.task).await.is_ok();
            // Who came too late for that life waits for the next one.
            if of_this_life && !ended {
                self.book.broken(format!("{} did not end when the run was closed", living.name));
            }
            if !living.agent.node.leave(None).await {
                self.book.broken(format!("{} could not leave a closed run", living.name));
            }
        }
        sleep(Duration::from_secs(1_000)).await;
        let left = self.service.connect().range(Range::new(Keys::prefix("/"))).await.expect("a range").items;
        if let Some(item) = left.first() {
            let key = String::from_utf8_lossy(&item.key).into_owned();
            self.book.broken(format!("{} keys are left of the run, such as {key}", left.len()));
        }
    }
}

fn keys() -> RunKeys {
    RunKeys::new("default", "run")
}

/// Looks at what stands in the store: decisions follow from each other, each is whole, and none follows a closing.
async fn witness(service: MemoryService, book: Book) {
    let client = service.connect();
    let keys = keys();
    let mut restored = BTreeSet::new();
    loop {
        let (mut last, mut closed): (Option<RoundRecord>, bool) = (None, false);
        let Ok(mut watch) = client.watch(keys.control(), 0).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
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
                    check_plan(&client, &keys, &round, item.mod_revision, &book).await;
                    last = Some(round);
                }
            }
        }
    }
}

/// With the round its whole plan is there.
async fn check_plan(client: &MemoryBackend, keys: &RunKeys, round: &RoundRecord, revision: i64, book: &Book) {
    if !round.has_world() || book.ledger.lock().unwrap().wiped {
        return;
    }
    let plan = keys.plan(&round.life, round.round, &round.attempt);
    let range = Range { revision, ..Range::new(Keys::prefix(plan.as_str())) };
    // Compacted, or wiped just now.
    let Ok(found) = client.range(range).await else { return };
    let shards = found.items.iter().map(|item| PlanShard::decode(&plan, &item.value).expect("a shard"));
    let mut ranks: Vec<u32> = shards.flat_map(|shard| shard.nodes).map(|entry| entry.rank).collect();
    ranks.sort_unstable();
    if ranks.iter().copied().ne(0..round.size) && !book.ledger.lock().unwrap().wiped {
        book.broken(format!(
            "round {} of {} was committed with the ranks {ranks:?}",
            round.round, round.size
        ));
    }
}

/// A network that is mostly well.
fn noise(random: &mut StdRng, call: Call) -> Fate {
    let mut delay = |most: u64| Duration::from_micros(random.next_u64() % (most * 1000));
    let mut fate = Fate { request_delay: delay(5), answer_delay: delay(5), ..Fate::default() };
    match random.next_u64() % 200 {
        0 => fate.request_lost = true,
        1 => fate.answer_lost = true,
        // Later than any attempt waits: it arrives when its sender has long given it up.
        2 if call.writes() => fate.request_delay = Duration::from_millis(random.next_u64() % 7_000),
        _ => {}
    }
    fate
}

async fn run(seed: u64, weather: Weather) -> Report {
    let mut random = StdRng::seed_from_u64(seed);
    let min = 1 + u32::try_from(random.next_u64() % 3).unwrap();
    let max = min + u32::try_from(random.next_u64() % 3).unwrap();
    let noise = weather == Weather::Stormy && random.next_u64().is_multiple_of(2);
    let book = Book { ledger: Arc::default(), began: Instant::now(), min, max };
    let mut schedule = Schedule {
        book: book.clone(),
        random,
        service: MemoryService::new(),
        agents: Vec::new(),
        started: 0,
        nnodes: format!("{min}:{max}"),
        weather,
        wipes: 0,
        noise,
        submission: 1,
    };
    let witness = tokio::spawn(witness(schedule.service.clone(), book.clone()));
    let first = if weather == Weather::ServiceOnly { max } else { min };
    for _ in 0..first {
        schedule.start().await;
    }
    if weather == Weather::ServiceOnly {
        sleep(Duration::from_secs(10)).await;
    }
    let settled = book.ledger.lock().unwrap().worlds.len();
    let steps = 6 + schedule.below(10);
    for _ in 0..steps {
        schedule.step().await;
    }
    schedule.settle().await;
    let rounds = book.ledger.lock().unwrap().worlds.len();
    if weather == Weather::ServiceOnly && rounds != settled {
        book.broken(format!("{} rounds were formed though nobody died", rounds - settled));
    }
    if schedule.below(2) == 0 {
        schedule.finish().await;
    }
    schedule.close().await;
    witness.abort();
    let ledger = std::mem::take(&mut *book.ledger.lock().unwrap());
    Report {
        worlds: ledger.worlds.values().map(|(_, _, ranks)| ranks.len()).sum(),
        rounds: ledger.worlds.len(),
        wipes: schedule.wipes,
        trace: ledger.trace,
        broken: ledger.broken,
    }
}

/// Runs one schedule to its end.
pub(crate) fn simulate(seed: u64, weather: Weather) -> Report {
    let chance = RngSeed::from_bytes(&seed.to_le_bytes());
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).rng_seed(chance).build();
    runtime.expect("a runtime").block_on(run(seed, weather))
}
