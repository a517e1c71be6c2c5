//! A run as an operator sees it: the types that the command, the page, and Python show. Serialized, they are the JSON
//! that `docs/status.schema.json` describes. Fields are only added. A reader that finds an unknown `schema` must not
//! guess.
//!
//! Times are seconds since 1970 by the reader's clock, except those that the coordinator wrote, which are by its clock.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    backend::Status,
    protocol::{
        records::{ChangeKind, ChangeRecord, ClosedRecord, Outcome},
        sizing::Sizing,
    },
};

/// The version of the JSON.
pub const SCHEMA: u32 = 1;

/// The answer to the question that an operator asks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A world runs, and no change of it is known.
    Formed,
    /// The next world is being formed, and the verdict says what it waits for.
    Forming,
    /// Nothing will change without outside intervention, or a stated limit has passed.
    Stuck,
    /// The run is closed.
    Closed,
    /// The run does not exist.
    Absent,
    /// The service did not respond, so nothing is known.
    Unreachable,
}

/// A node, or a member that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// In the world, which runs.
    Member,
    /// Waits for the next round.
    Waiting,
    /// The change was announced to it, and it has not requested the next round.
    Told,
    /// Waits because there is no place for it.
    Spare,
    /// Has announced that it leaves.
    Leaving,
    /// Has finished and waits for the end of the run.
    Finished,
    /// Is present and not counted.
    Excluded,
    /// A member of the world whose record is gone.
    Missing,
}

impl NodeState {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Member,
        Self::Waiting,
        Self::Told,
        Self::Spare,
        Self::Leaving,
        Self::Finished,
        Self::Excluded,
        Self::Missing,
    ];
}

/// What is awaited, why, and what can be done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The state of the run.
    pub state: State,
    /// The exit status of `lattice-rdzv status`.
    pub exit_status: u8,
    /// The state in one sentence.
    pub sentence: String,
    /// The reason in the coordinator's words.
    pub reason: String,
    /// Since when the run is in this state.
    pub since: Option<f64>,
    /// The nodes that the run waits for, the first 20.
    pub waits_for: Vec<Awaited>,
    /// How many nodes the run waits for, with or without a name.
    pub waits_for_count: usize,
    /// What happens next without outside intervention.
    pub next: Option<Next>,
    /// The command that would change the state.
    pub command: Option<String>,
    /// Further facts that may explain the state.
    pub notes: Vec<String>,
}

/// A node that the run waits for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Awaited {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: Option<String>,
    /// Its rank in the last world.
    pub rank: Option<u32>,
    /// Since when it is awaited.
    pub since: Option<f64>,
    /// The evidence that it is missing or late.
    pub evidence: String,
    /// Its last sign of life: when it last renewed its lease.
    pub last_seen: Option<f64>,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Next {
    /// The event.
    pub what: String,
    /// When. None if it depends on a node.
    pub at: Option<f64>,
    /// The setting that determines when.
    pub limit: Option<&'static str>,
}

/// The rendezvous service.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ServiceStatus {
    /// The endpoint in use.
    pub endpoint: String,
    /// The version that it reports.
    pub version: Option<String>,
    /// How long the read of the run took.
    pub latency_seconds: Option<f64>,
    /// Whether it has a leader.
    pub has_leader: Option<bool>,
    /// The alarms and errors that it reports, or the reason why it was not reached.
    pub errors: Vec<String>,
}

impl ServiceStatus {
    /// Takes over what the service reports about itself.
    pub(super) fn describe(&mut self, status: Status) {
        self.version = Some(status.version);
        self.has_leader = Some(status.leader != 0);
        self.errors = status.errors;
    }
}

/// The run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunFacts {
    /// Its id.
    pub id: String,
    /// Its tenant.
    pub tenant: String,
    /// The life of the run, which distinguishes jobs with this ID.
    pub life: Option<String>,
    /// Its state: `forming`, `running`, `restoring`, `changing`, or `closed`.
    pub phase: Option<&'static str>,
    /// Since when.
    pub phase_since: Option<f64>,
    /// The number of the round; 0 if none was formed.
    pub round: Option<u64>,
    /// The size of the world.
    pub size: Option<u32>,
    /// The smallest number of nodes.
    pub min_nodes: Option<u32>,
    /// The largest number of nodes.
    pub max_nodes: Option<u32>,
    /// The allowed sizes.
    pub sizing: Option<Sizing>,
    /// Why the round was formed.
    pub why: Option<String>,
    /// The address of rank 0.
    pub master_address: Option<String>,
    /// The port of rank 0.
    pub master_port: Option<u16>,
    /// The node that hosts the service.
    pub host: Option<String>,
    /// The submission of the world.
    pub submission: Option<String>,
    /// The change that was announced.
    pub change: Option<ChangeRecord>,
    /// How the run was closed.
    pub closed: Option<ClosedFacts>,
    /// The coordinator.
    pub coordinator: Option<CoordinatorFacts>,
}

/// How a run was closed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClosedFacts {
    /// The job that was closed.
    pub life: String,
    /// The node or operator that closed it.
    pub by: String,
    /// The reason.
    pub why: String,
    /// The outcome.
    pub outcome: Outcome,
    /// The submission.
    pub submission: Option<String>,
}

impl From<&ClosedRecord> for ClosedFacts {
    fn from(record: &ClosedRecord) -> Self {
        let ClosedRecord { life, by, why, outcome, submission } = record.clone();
        Self { life, by, why, outcome, submission }
    }
}

/// The coordinator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CoordinatorFacts {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// When it last renewed its lease.
    pub last_seen: Option<f64>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeStatus {
    /// Its name in the world, or else its own.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its rank in the world.
    pub rank: Option<u32>,
    /// Its state.
    pub state: NodeState,
    /// Why it is in this state, if that needs an explanation.
    pub why: Option<String>,
    /// Since when, if that is known.
    pub since: Option<f64>,
    /// Its address. Empty if it is missing.
    pub address: String,
    /// The port that it would serve as master.
    pub port: u16,
    /// Its topology label.
    pub topology: Option<String>,
    /// Its index.
    pub index: Option<u32>,
    /// When it last renewed its lease. Read for suspects, and for a node that the caller named.
    pub last_seen: Option<f64>,
    /// How often its process was reported dead although it was alive.
    pub false_alarms: u64,
}

/// A member that a round lost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// Its name.
    pub name: String,
    /// How the loss was noticed, if more is known than that the lease ended.
    pub evidence: Option<String>,
    /// How long the loss took to be announced, if that is known: from the end of a connection to the member, or, without
    /// evidence, from the last renewal of its lease.
    pub told_seconds: Option<f64>,
}

/// A round that was formed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundStatus {
    /// Its number.
    pub round: u64,
    /// When it was formed.
    pub formed_at: Option<u64>,
    /// How long it took: from the change, or from the first node that waited.
    pub took_seconds: f64,
    /// How long there was no world before it: from the announced change to this world. None for a first world. The time
    /// until the program trains again is not part of it.
    pub stood_still_seconds: Option<f64>,
    /// How long after rank 0 received this world the program trained. None if the program does not report it.
    pub resumed_after_seconds: Option<f64>,
    /// How many nodes it has.
    pub size: u32,
    /// How many of them are new.
    pub newcomers: u32,
    /// The kind of change that ended the round before. None for a first world and in rounds of earlier releases.
    pub cause: Option<ChangeKind>,
    /// The reason in words.
    pub why: String,
    /// The coordinator that formed it.
    pub coordinator: String,
    /// The first names by rank.
    pub names: Vec<String>,
    /// The members of the round before that were lost.
    pub lost: Vec<Loss>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunStatus {
    /// The version of this structure.
    pub schema: u32,
    /// The answer.
    pub verdict: Verdict,
    /// When the run was read.
    pub at: f64,
    /// The service.
    pub service: ServiceStatus,
    /// The run.
    pub run: RunFacts,
    /// How many nodes are in each state.
    pub counts: BTreeMap<NodeState, usize>,
    /// All nodes: members by rank, then the others by name.
    pub nodes: Vec<NodeStatus>,
    /// The rounds of this life, the oldest first, at most 100.
    pub rounds: Vec<RoundStatus>,
    /// The records that cannot be read.
    pub unreadable: Vec<String>,
}

impl RunStatus {
    /// Sets when nodes last renewed their leases, by their ids.
    pub(super) fn set_last_seen(&mut self, seen: &BTreeMap<String, f64>) {
        let nodes = self.nodes.iter_mut().map(|node| (Some(&node.id), &mut node.last_seen));
        let awaited = self.verdict.waits_for.iter_mut().map(|one| (one.id.as_ref(), &mut one.last_seen));
        let coordinator = self.run.coordinator.iter_mut().map(|one| (Some(&one.id), &mut one.last_seen));
        for (id, last_seen) in nodes.chain(awaited).chain(coordinator) {
            *last_seen = id.and_then(|id| seen.get(id)).copied();
        }
    }
}

/// The exit status of `lattice-rdzv status` for a state.
pub fn exit_status(state: State, outcome: Option<Outcome>) -> u8 {
    match (state, outcome) {
        (State::Formed, _) => 0,
        (State::Forming, _) => 3,
        (State::Stuck, _) => 4,
        (State::Absent, _) => 5,
        (State::Closed, Some(Outcome::Succeeded)) => 6,
        (State::Closed, _) => 7,
        (State::Unreachable, _) => 8,
    }
}
