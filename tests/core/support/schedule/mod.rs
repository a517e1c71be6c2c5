//! One random schedule: the events of a run, and checks that everything that must hold has held. Its [`Ground`] decides
//! on which service it runs, and which faults the service and the connections to it may have.

mod living;
mod settling;
mod witness;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use lattice_rdzv::{
    Error,
    backend::Backend,
    node::{Node, Place},
    protocol::{keys::RunKeys, records::Outcome, sizing::Sizing},
    run::Entropy,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    runtime::{Builder, RngSeed},
    time::{sleep, timeout},
};

use self::{living::Living, witness::witness};
use super::{
    book::Book,
    lines::Sky,
    nodes::{TTL, place, settings},
};

/// How long an agent that has a world waits for the run's store before it continues.
const COUNT_LIMIT: Duration = Duration::from_secs(5);

/// The events of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// All events.
    Stormy,
    /// Only events of the service. No node dies, leaves, or is cut off.
    ServiceOnly,
}

/// The result of a schedule.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) trace: Vec<String>,
    pub(crate) broken: Vec<String>,
    pub(crate) tally: Tally,
    /// A single number for all that happened.
    pub(crate) fingerprint: u64,
}

/// How often each event happened.
pub(crate) type Tally = BTreeMap<&'static str, usize>;

/// What a schedule runs on: a service, the connections to it, and their faults. All of this is random, and depends only
/// on the seed.
pub(crate) trait Ground: Sized + 'static {
    /// The connection of a node to the service.
    type Link;

    async fn prepare(random: &mut StdRng, weather: Weather) -> Self;

    /// Makes the connection of a node that starts.
    fn link(&mut self, name: &str, seed: u64) -> Self::Link;

    fn backend(link: &Self::Link) -> Arc<dyn Backend>;

    /// The address of a node that starts, and what it hosts.
    async fn place(&mut self, name: &str, _: &Self::Link) -> Place {
        place(name)
    }

    /// Whether the service ends with this node.
    fn is_hosted_by(&self, _: &Self::Link) -> bool {
        false
    }

    /// Whether there is a service. If not, the next node that starts hosts one.
    fn is_served(&self) -> bool {
        true
    }

    /// A client without faults.
    fn observer(&self) -> Arc<dyn Backend>;

    /// Cuts a connection in one of several manners, and returns which.
    fn cut(&mut self, link: &Self::Link, manner: u64) -> &'static str;

    fn reconnect(&mut self, link: &Self::Link);

    /// A node is about to end without notifying its peers.
    fn bury(&mut self, _: &Self::Link) {}

    /// Ends all faults of the service and of these connections.
    async fn clear(&mut self, links: &[&Self::Link]);

    /// Another event happens, usually of the service. Of six kinds, 1 to 5 affect no node.
    async fn befall(schedule: &mut Schedule<Self>, kind: u64);

    /// Adds its own counts, and returns a single number for all that it saw.
    fn account(&self, _: &mut Tally) -> u64 {
        0
    }
}

/// A schedule in progress.
pub(crate) struct Schedule<G: Ground> {
    pub(crate) book: Book,
    random: StdRng,
    pub(crate) ground: G,
    /// The lifelines between the nodes.
    sky: Sky,
    pub(crate) agents: Vec<Living<G::Link>>,
    started: u64,
    nnodes: String,
    /// The settings about sizes.
    sizing: Vec<(&'static str, String)>,
    weather: Weather,
    tally: Tally,
    /// The number of the submission of the job.
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

    /// Starts a node of this submission.
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
        // Some nodes have no lifelines.
        let lifelines = (!seed.is_multiple_of(5)).then(|| self.sky.lines(&name));
        let place = Place { lifelines, ..self.ground.place(&name, &link).await };
        let joining = Node::join(G::backend(&link), settings, Entropy::seeded(seed), place);
        match timeout(Duration::from_secs(60), joining).await {
            Ok(Ok(node)) => self.agents.push(Living::start(&self.book, &name, node, link)),
            Ok(Err(Error::Mismatch { message })) => {
                self.book.write(format!("{name}: is refused at once: {message}"));
            }
            Ok(Err(error)) => self.book.broken(format!("{name} did not join: {error}")),
            Err(_) => self.book.broken(format!("{name}: joining does not end")),
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
            Weather::Stormy => self.below(18),
            Weather::ServiceOnly => [7, 8, 9, 10, 11, 15, 16][usize::try_from(self.below(7)).unwrap()],
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
                        self.ground.reconnect(&living.link);
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
            16 => self.break_lifelines(false),
            17 => self.break_lifelines(true),
            _ => self.start().await,
        }
    }

    /// Ends the connections to a live node. If its address `refuses`, it is mistaken for dead.
    fn break_lifelines(&mut self, refuses: bool) {
        let Some(name) = self.sky.break_one(refuses) else { return };
        self.happened(if refuses { "nodes taken for dead" } else { "broken lifelines" });
        self.book
            .write(format!("{name}: its lifelines break{}", if refuses { ", and it refuses" } else { "" }));
        if refuses {
            self.book.ledger().away.insert(name);
        }
    }

    /// Removes an agent that is about to end.
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

    /// The service loses all data now.
    pub(crate) fn wiped(&mut self, how: &str) {
        self.book.write(how);
        self.happened("wipes");
        self.book.wiped();
    }

    /// If no node may die, waits until a fault of the service is over before the next event.
    pub(crate) async fn settled_weather(&self) {
        if self.weather == Weather::ServiceOnly {
            sleep(TTL * 5).await;
        }
    }

    /// Closes the run in the middle of other events, and starts the job again.
    async fn close_by_somebody(&mut self) {
        // Not too often, because most events of a run are not its end.
        let Some(index) = self.one().filter(|_| self.submission < 3) else { return };
        let closer = Arc::clone(&self.agents[index].node);
        self.book.write(format!("{}: closes", self.agents[index].name));
        self.book.closing();
        // The service may have lost a closing that the node knows already.
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

    /// Starts another submission with the same run ID while the first one runs. If no node may die, an outage expires
    /// the leases of both, and then the second submission is refused.
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

    /// Removes the agents that have ended.
    fn remove_ended(&mut self) {
        let ended = self.book.ledger().ends.clone();
        while let Some(index) = self.agents.iter().position(|living| ended.contains(&living.name)) {
            drop(self.take(index));
        }
    }

    /// If the node that hosted the service is gone, starts another one, of the submission that the run belongs to,
    /// because no node is refused without a service.
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
}

pub(crate) fn keys() -> RunKeys {
    RunKeys::new("default", "run")
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

/// The settings for these rules.
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
    let sky = Sky::new(random.next_u64());
    let mut schedule = Schedule {
        book: book.clone(),
        random,
        ground,
        sky: sky.clone(),
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
        book.broken(format!("{} rounds were formed though no node died", rounds - settled));
    }
    if schedule.below(2) == 0 {
        schedule.finish().await;
    }
    schedule.close().await;
    witness.abort();
    let ledger = std::mem::take(&mut *book.ledger());
    let mut tally = schedule.tally;
    tally.insert("schedules", 1);
    tally.insert("deaths seen", sky.found_dead());
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
