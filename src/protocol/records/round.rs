//! Records that the coordinator writes: its term, the round, the plan of the round, and the history.

use serde::{Deserialize, Serialize};

use super::Record;
use crate::protocol::{
    cooldown::FailureRecord,
    identity::NodeId,
    sizing::{Sizing, WorldSizes},
    submission::RefusalRecord,
};

/// Who decides, at `ctl/coordinator`; goes with that node's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// This term of office, and no other.
    pub nonce: String,
    /// The run's `min_nodes`.
    pub min: u32,
    /// The run's `max_nodes`.
    pub max: u32,
    /// Which sizes of a world are allowed.
    #[serde(default, skip_serializing_if = "Sizing::is_default")]
    pub sizing: Sizing,
}
impl Record for CoordinatorRecord {}

impl CoordinatorRecord {
    /// The sizes that a world may have.
    pub fn sizes(&self) -> WorldSizes<'_> {
        WorldSizes { min: self.min, max: self.max, sizing: &self.sizing }
    }
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No world of this life is committed yet.
    Forming,
    /// A world is.
    Running,
    /// The world of before a loss of the store was put back; its nodes may return.
    Restoring,
}

/// What kind of change makes a world's nodes form again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// A member's lease ended.
    Lost,
    /// A member says that it is about to go.
    Leaving,
    /// A member asks for the next round.
    Seeking,
    /// Nodes wait that would fit in.
    Newcomers,
    /// The run was closed without success.
    Closed,
    /// A later round was formed without this node.
    Replaced,
}

/// That the world is about to be replaced, and why. Told once a round, never taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// Of which kind.
    pub kind: ChangeKind,
    /// The reason in words.
    pub why: String,
    /// The first names concerned.
    pub names: Vec<String>,
}

/// The round that a run is in, at `ctl/round`. Writing it commits a world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Which job under this run id.
    pub life: String,
    /// The number of the round; 0 while none was formed.
    pub round: u64,
    /// Which world of that number: after the loss of a store two can have been formed that did not know of each other.
    pub world: String,
    /// Which attempt at this round's plan counts.
    pub attempt: String,
    /// Into how many shards it is cut.
    pub shards: u32,
    /// How many nodes the world has; 0 while forming.
    pub size: u32,
    /// Where rank 0 is reached.
    pub master_address: String,
    /// The port that rank 0 serves.
    pub master_port: u16,
    /// The run's `min_nodes`.
    pub min: u32,
    /// The run's `max_nodes`.
    pub max: u32,
    /// Which sizes of a world are allowed.
    #[serde(default, skip_serializing_if = "Sizing::is_default")]
    pub sizing: Sizing,
    /// What the run is doing.
    pub phase: Phase,
    /// Why the round was formed.
    pub why: String,
    /// The node that hosts the service, if one does: the world is lost with it, whoever else is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The submission of the world's nodes, if they name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<String>,
    /// That nodes of other submissions are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusalRecord>,
    /// How often in a row nodes have failed, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureRecord>,
    /// That the world is about to be replaced.
    pub change: Option<ChangeRecord>,
}
impl Record for RoundRecord {}

impl RoundRecord {
    /// A round without a world.
    pub fn forming(life: String, min: u32, max: u32, attempt: String) -> Self {
        Self {
            life,
            round: 0,
            world: String::new(),
            attempt,
            shards: 0,
            size: 0,
            master_address: String::new(),
            master_port: 0,
            min,
            max,
            sizing: Sizing::default(),
            phase: Phase::Forming,
            why: String::new(),
            host: None,
            submission: None,
            refused: None,
            failures: Vec::new(),
            change: None,
        }
    }

    /// The sizes that a world may have.
    pub fn sizes(&self) -> WorldSizes<'_> {
        WorldSizes { min: self.min, max: self.max, sizing: &self.sizing }
    }

    /// Whether nodes that are not in the world are spares: it is full, or it waits for the nodes of the next size.
    pub fn has_spares(&self) -> bool {
        self.has_world() && (self.size >= self.max || self.sizes().is_restricted())
    }

    /// Whether a world is committed.
    pub fn has_world(&self) -> bool {
        self.size > 0
    }

    /// Whether a service that holds `found` as `ctl/round` has lost this record, which it held before.
    pub fn is_lost_in(&self, found: Option<&Self>) -> bool {
        found.is_none_or(|found| found.life == self.life && found.round < self.round)
    }
}

/// One node of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// The node.
    pub id: NodeId,
    /// Its name, unique in the world.
    pub name: String,
    /// Its topology label.
    pub label: Option<String>,
    /// Its rank.
    pub rank: u32,
}

/// A shard of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanShard {
    /// The nodes whose id hashes to it.
    pub nodes: Vec<PlanEntry>,
}
impl Record for PlanShard {}

/// Why and how a round was formed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// The round.
    pub round: u64,
    /// Why it was formed.
    pub why: String,
    /// How long the run was without a world, in seconds: from the change, or from the first node that sought.
    pub took_seconds: f64,
    /// How many nodes it has.
    pub size: u32,
    /// How many of them are new in it.
    pub newcomers: u32,
    /// Who formed it.
    pub coordinator: String,
    /// The first names, by rank.
    pub names: Vec<String>,
    /// When it was formed, in seconds since 1970 by the clock of the coordinator's machine. For messages only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formed_at: Option<u64>,
}
impl Record for HistoryRecord {}
