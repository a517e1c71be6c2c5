//! One random schedule: what happens to a run, and whether everything held that must.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use lattice_rdzv::{
    Error,
    backend::{
        Backend as _, Keys, Range,
        memory::{Call, Fate, MemoryService},
    },
    node::{State, WorldFacts},
    protocol::records::{ChangeKind, LastWorld, Outcome},
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
    /// The highest round of each closed life when it was closed.
    closed: BTreeMap<String, u64>,
    /// The lives of the runs that were begun, in the order of their first world.
    ends: BTreeMap<String, String>,
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

    fn closing(&self, life: &str, round: u64) {
        self.ledger.lock().unwrap().closed.entry(life.to_owned()).or_insert(round);
    }

    fn ended(&self, name: &str, error: &Error) {
        self.write(format!("{name}: ends: {error}"));
        self.ledger.lock().unwrap().ends.insert(name.to_owned(), error.to_string());
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
        let times = [("last_call_timeout", "2"), ("rejoin_timeout", "8"), ("reuse_delay", "2"), label];
        let settings = settings(&name, &self.nnodes, &times);
        self.book.write(format!("{name}: starts"));
        let service = self.service.clone();
        let join = timeout(Duration::from_secs(60), Agent::join(&service, settings, seed)).await;
        match join {
            Ok(Ok(agent)) => {
                if self.noise {
                    let mut random = StdRng::seed_from_u64(seed);
                    agent.link.interfere(Some(Box::new(move |call| noise(&mut random, call))));
                }
                self.agents.push(Living::start(&self.book, &name, agent));
            }
            Ok(Err(error)) => self.book.write(format!("{name}: did not join: {error}")),
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
            Weather::Stormy => self.below(12),
            Weather::ServiceOnly => 7 + self.below(5),
        };
        match kind {
            0..=1 => self.start().await,
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
            _ => {
                self.book.write("service: compacted");
                let _ = self.service.compact(self.service.revision());
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
        let ended: Vec<String> = self.book.ledger.lock().unwrap().ends.keys().cloned().collect();
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
        self.book.closing(&world.place.life, world.place.round);
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
    };
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
    schedule.close().await;
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
