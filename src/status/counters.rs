//! Counters of runs, which are fed with pictures of all runs and never fall while a run lives.
//!
//! Problem: a run keeps the history of its last 100 rounds only, so a sum over the history falls when a round is dropped.
//! Design: each round is added once, by its number. Counters begin at zero, like those of any process: rounds that formed
//! before the accumulator began are not counted, because the start of another reader would otherwise look like an increase.
//! A run that is missing in one picture has the same counters again in the next one, apart from false alarms.
//!
//! At most [`MOST_RUNS`] live runs are counted. A run keeps its place until it is closed or gone.

use std::collections::BTreeMap;

use super::picture::{Loss, RoundStatus, RunStatus, State};
use crate::protocol::records::ChangeKind;

/// The maximum number of live runs that have separate series.
pub const MOST_RUNS: usize = 100;
/// The bounds of the time that a round takes to form, in seconds.
const FORMATION_SECONDS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
/// The bounds of the time until a loss is announced, in seconds.
const TOLD_SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0];

/// The tenant and the id of a run.
pub(super) type Name = (String, String);

/// How a loss became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// A connection between members ended, and the member refused another one.
    Connection,
    /// The lease of the member ended.
    Lease,
}

impl From<&Loss> for Evidence {
    fn from(loss: &Loss) -> Self {
        if loss.evidence.is_some() { Self::Connection } else { Self::Lease }
    }
}

/// The distribution of a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// The upper bound of each bucket, and the number of values up to it.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all values.
    pub sum: f64,
    /// The number of all values.
    pub count: u64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        Self { buckets: bounds.iter().map(|bound| (*bound, 0)).collect(), sum: 0.0, count: 0 }
    }

    fn add(&mut self, value: f64) {
        for (bound, count) in &mut self.buckets {
            *count += u64::from(value <= *bound);
        }
        self.sum += value;
        self.count += 1;
    }
}

/// What was counted of one run.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Rounds by the change that ended the round before. None: no world ran before.
    pub rounds: BTreeMap<Option<ChangeKind>, u64>,
    /// The times that rounds took to form.
    pub formation: Histogram,
    /// The times until losses were announced.
    pub told: BTreeMap<Evidence, Histogram>,
    /// How long training stood still, with the present standstill.
    pub standstill_seconds: f64,
    /// How often a node was reported dead that was alive.
    pub false_alarms: u64,
    life: Option<String>,
    last_round: u64,
    /// The standstill of the rounds that were counted.
    formed_standstill: f64,
    /// How many false alarms the nodes of a name have reported.
    reported_alarms: BTreeMap<String, u64>,
}

impl Counters {
    /// Counters of a run that is seen for the first time. False alarms until now are not counted.
    fn new(run: &RunStatus) -> Self {
        let told = [Evidence::Connection, Evidence::Lease].map(|kind| (kind, Histogram::new(TOLD_SECONDS)));
        Self {
            rounds: BTreeMap::new(),
            formation: Histogram::new(FORMATION_SECONDS),
            told: told.into(),
            standstill_seconds: 0.0,
            false_alarms: 0,
            life: None,
            last_round: 0,
            formed_standstill: 0.0,
            reported_alarms: alarms_by_name(run),
        }
    }

    fn observe(&mut self, run: &RunStatus, began: f64) {
        if self.life != run.run.life {
            self.life.clone_from(&run.run.life);
            self.last_round = 0;
        }
        let known = self.last_round;
        for round in run.rounds.iter().filter(|round| round.round > known) {
            self.last_round = round.round;
            if let Some(since_began) = time_since(began, round) {
                self.add_round(round, since_began);
            }
        }
        let present = self.formed_standstill + present_standstill(run, began);
        // The reader's clock and the coordinator's differ, so that a finished standstill can be shorter than it seemed.
        self.standstill_seconds = self.standstill_seconds.max(present);
        for (name, count) in alarms_by_name(run) {
            let reported = self.reported_alarms.insert(name, count).unwrap_or(0);
            // If the count of a name has decreased, it belongs to another process.
            self.false_alarms += if count < reported { count } else { count - reported };
        }
    }

    /// Adds a round that formed `since_began` seconds after the accumulator began.
    fn add_round(&mut self, round: &RoundStatus, since_began: f64) {
        *self.rounds.entry(round.cause).or_insert(0) += 1;
        self.formation.add(round.took_seconds);
        self.formed_standstill += round.stood_still_seconds.unwrap_or(0.0).min(since_began);
        for loss in &round.lost {
            if let (Some(seconds), Some(told)) = (loss.told_seconds, self.told.get_mut(&loss.into())) {
                told.add(seconds);
            }
        }
    }
}

/// How many seconds after `began` the round formed, at most. None if it formed before, or if it is not known when. A round
/// has whole seconds, and formed within the second that it names.
#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
fn time_since(began: f64, round: &RoundStatus) -> Option<f64> {
    let formed = round.formed_at? as f64;
    (formed >= began.floor()).then_some(formed + 1.0 - began)
}

/// For how long a change of the world has been announced and the next world has not formed.
fn present_standstill(run: &RunStatus, began: f64) -> f64 {
    let since = run.run.phase_since.filter(|_| run.run.phase == Some("changing"));
    since.map_or(0.0, |since| (run.at - since.max(began)).max(0.0))
}

fn alarms_by_name(run: &RunStatus) -> BTreeMap<String, u64> {
    let mut alarms = BTreeMap::new();
    for node in run.nodes.iter().filter(|node| node.false_alarms > 0) {
        *alarms.entry(node.name.clone()).or_insert(0) += node.false_alarms;
    }
    alarms
}

/// The counters of all live runs, up to [`MOST_RUNS`].
#[derive(Clone, Debug)]
pub struct Accumulator {
    began: f64,
    counters: BTreeMap<Name, Counters>,
}

impl Accumulator {
    /// Counts what happens from this time on, in seconds since 1970.
    pub fn new(began: f64) -> Self {
        Self { began, counters: BTreeMap::new() }
    }

    /// Takes in a picture of all runs.
    pub fn observe(&mut self, runs: &[RunStatus]) {
        let named: BTreeMap<Name, &RunStatus> = runs.iter().map(|run| (name(run), run)).collect();
        self.counters.retain(|name, _| named.get(name).is_some_and(|run| is_live(run)));
        for (name, run) in named.into_iter().filter(|(_, run)| is_live(run) && is_read(run)) {
            if self.counters.len() < MOST_RUNS {
                self.counters.entry(name.clone()).or_insert_with(|| Counters::new(run));
            }
            if let Some(counters) = self.counters.get_mut(&name) {
                counters.observe(run, self.began);
            }
        }
    }

    /// The counters of a run, if it is counted.
    pub fn of(&self, run: &RunStatus) -> Option<&Counters> {
        self.counters.get(&name(run))
    }
}

fn name(run: &RunStatus) -> Name {
    (run.run.tenant.clone(), run.run.id.clone())
}

/// Whether the service responded.
pub(super) fn is_read(run: &RunStatus) -> bool {
    run.verdict.state != State::Unreachable
}

/// Whether the run is neither closed nor gone.
pub(super) fn is_live(run: &RunStatus) -> bool {
    !matches!(run.verdict.state, State::Closed | State::Absent)
}
