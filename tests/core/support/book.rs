//! Records what all agents of a schedule report, and checks what must hold of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use lattice_rdzv::{
    Error,
    node::{Snapshot, WorldFacts},
    protocol::{
        records::WorldMembership,
        sizing::{Sizing, WorldSizes},
    },
};
use tokio::time::Instant;

/// What the nodes of a world report: size, master, and which node has which rank.
type World = (u32, String, BTreeMap<u32, String>);

/// The reports of all agents.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) trace: Vec<String>,
    pub(crate) broken: Vec<String>,
    /// By life, round and name.
    pub(crate) worlds: BTreeMap<(String, u64, String), World>,
    /// The submission of each agent.
    pub(crate) submissions: BTreeMap<String, String>,
    /// How many agents of a world began to count themselves in its store, and the numbers that they received.
    counts: BTreeMap<(String, u64, String), (i64, BTreeSet<i64>)>,
    /// The agents that received their number, by world.
    acknowledged: BTreeMap<(String, u64, String), BTreeSet<String>>,
    /// The last round of each life that was closed, unless the service lost its data since.
    closed: BTreeMap<String, u64>,
    /// Whether the service lost all data. Then there may be two worlds of one number that were formed independently,
    /// and a life whose closing was forgotten.
    pub(crate) wiped: bool,
    /// Whether a node has requested that the run is closed. Only then may the life of an agent end by itself.
    closing: bool,
    /// How many nodes were refused.
    pub(crate) refusals: usize,
    /// The agents that have ended.
    pub(crate) ends: BTreeSet<String>,
    /// Agents that died, left, or were cut off at some time. Their records may be gone, and then the run may pass to
    /// another submission.
    pub(crate) away: BTreeSet<String>,
}

#[derive(Clone)]
pub(crate) struct Book {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) began: Instant,
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) sizing: Sizing,
}

impl Book {
    pub(crate) fn new(min: u32, max: u32, sizing: Sizing) -> Self {
        Self { ledger: Arc::default(), began: Instant::now(), min, max, sizing }
    }

    /// The sizes that a world may have.
    pub(crate) fn sizes(&self) -> WorldSizes<'_> {
        WorldSizes { min: self.min, max: self.max, sizing: &self.sizing }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub(crate) fn write(&self, line: impl std::fmt::Display) {
        let at = self.began.elapsed().as_secs_f64();
        self.ledger().trace.push(format!("{at:9.3} {line}"));
    }

    pub(crate) fn broken(&self, what: String) {
        self.write(format!("BROKEN {what}"));
        self.ledger().broken.push(what);
    }

    /// A node was given a world.
    pub(crate) fn world(&self, name: &str, world: &WorldFacts) {
        let WorldMembership { life, round, rank, size, .. } = &world.place;
        self.write(format!("{name}: round {round} rank {rank} of {size} ({})", world.why));
        let mut wrong = Vec::new();
        {
            let mut ledger = self.ledger();
            if ledger.closed.get(life).is_some_and(|last| round > last) {
                wrong.push(format!("round {round} was formed in a closed life"));
            }
            let key = key(&world.place);
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
            let submission = ledger.submissions.get(name).cloned();
            let members = ledger.members_of(&world.place).into_iter();
            let mut others = members.filter(|other| ledger.submissions.get(other) != submission.as_ref());
            if let Some(other) = others.next() {
                wrong.push(format!("round {round} has {name} and {other}, which are of two submissions"));
            }
            if *rank >= *size || self.sizes().largest(*size as usize) != Some(*size) {
                wrong.push(format!("rank {rank} of {size} in a run of {}", self.sizes()));
            }
            if *rank == 0 && world.master_address != format!("{name}.test") {
                wrong.push(format!("rank 0 is {name}, and the master {}", world.master_address));
            }
        }
        for what in wrong {
            self.broken(what);
        }
    }

    /// A node is about to count itself in its world's store.
    pub(crate) fn counts(&self, world: &WorldMembership) {
        self.ledger().counts.entry(key(world)).or_default().0 += 1;
    }

    /// The result: each number is given once, and only numbers that were requested.
    pub(crate) fn counted(&self, name: &str, world: &WorldMembership, count: Result<i64, Error>) {
        let number = match count {
            Ok(number) => number,
            Err(error) => return self.write(format!("{name}: does not count: {error}")),
        };
        self.write(format!("{name}: is number {number} of round {}", world.round));
        let wrong = {
            let mut ledger = self.ledger();
            let wiped = ledger.wiped;
            ledger.acknowledged.entry(key(world)).or_default().insert(name.to_owned());
            let (begun, given) = ledger.counts.entry(key(world)).or_default();
            let once = given.insert(number);
            let right = once && (1..=*begun).contains(&number);
            (!wiped && !right).then(|| format!("{number} of {begun}"))
        };
        if let Some(wrong) = wrong {
            self.broken(format!("{name} counted as {wrong} in round {}", world.round));
        }
    }

    /// The final value of the counter of a world. Whatever happened to the service, it contains everything that was
    /// acknowledged to the remaining members, and nothing twice.
    pub(crate) fn sum(&self, world: &WorldMembership, members: &BTreeSet<String>, sum: i64) {
        let wrong = {
            let mut ledger = self.ledger();
            let acknowledged = ledger.acknowledged.entry(key(world)).or_default();
            let least = i64::try_from(acknowledged.intersection(members).count()).unwrap();
            let (most, _) = ledger.counts.entry(key(world)).or_default();
            (sum < least || sum > *most).then(|| format!("{sum}, not {least} to {most}"))
        };
        if let Some(wrong) = wrong {
            self.broken(format!("the counter of round {} is at {wrong}", world.round));
        }
    }

    pub(crate) fn closing(&self) {
        self.ledger().closing = true;
    }

    pub(crate) fn closed(&self, life: &str, round: u64) {
        self.ledger().closed.entry(life.to_owned()).or_insert(round);
    }

    pub(crate) fn wiped(&self) {
        let mut ledger = self.ledger();
        ledger.wiped = true;
        ledger.closed.clear();
    }

    pub(crate) fn ended(&self, name: &str, error: &Error, seen: &Snapshot) {
        self.write(format!("{name}: ends: {error}"));
        if matches!(error, Error::Mismatch { .. }) {
            return self.refused(name, seen);
        }
        let closing = {
            let mut ledger = self.ledger();
            ledger.ends.insert(name.to_owned());
            ledger.closing
        };
        if !(closing && matches!(error, Error::Closed { .. })) {
            self.broken(format!("{name} ended, but the run was not closed: {error}"));
        }
    }

    /// A node was refused: it belongs to another submission than the run and every remaining member of the world. When
    /// no member is left, the run passes to the submission of the node that waits longest.
    fn refused(&self, name: &str, seen: &Snapshot) {
        let wrong = {
            let mut ledger = self.ledger();
            ledger.ends.insert(name.to_owned());
            ledger.refusals += 1;
            let own = ledger.submissions.get(name);
            let round = seen.round.as_ref();
            let of_run = round.and_then(|round| round.refused.as_ref()).map(|refused| &refused.submission);
            let world = round.map(|round| (round.life.clone(), round.round, round.world.clone()));
            let members = world.map(|world| ledger.members(&world)).unwrap_or_default();
            let is_there = |member: &String| !ledger.ends.contains(member) && !ledger.away.contains(member);
            let mut present = members.into_iter().filter(is_there);
            let alike = present.find(|member| ledger.submissions.get(member) == own);
            match (of_run, alike) {
                (Some(of_run), None) if Some(of_run) != own => None,
                (of_run, alike) => {
                    Some(format!("{name} of {own:?} was refused by {of_run:?}, with the member {alike:?}"))
                }
            }
        };
        if let Some(wrong) = wrong {
            self.broken(wrong);
        }
    }
}

impl Ledger {
    fn members_of(&self, world: &WorldMembership) -> Vec<String> {
        self.members(&key(world))
    }

    /// The names of the nodes that were given a place in a world.
    fn members(&self, world: &(String, u64, String)) -> Vec<String> {
        let ranks = self.worlds.get(world).map(|(_, _, ranks)| ranks);
        let names = ranks.into_iter().flat_map(BTreeMap::values);
        names.filter_map(|identity| identity.split(' ').next()).map(str::to_owned).collect()
    }
}

fn key(world: &WorldMembership) -> (String, u64, String) {
    (world.life.clone(), world.round, world.world.clone())
}
