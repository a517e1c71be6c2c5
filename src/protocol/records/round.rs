//! Records that the coordinator writes: its term, the round, the plan of the round, and the history.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FailureRecord, Record, RefusalRecord};
use crate::protocol::{
    identity::NodeId,
    sizing::{Sizing, WorldSizes},
};

/// The coordinator, at `ctl/coordinator`. The record is attached to the lease of its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Identifies this term.
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

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No world of this life has been committed yet.
    Forming,
    /// A world is committed.
    Running,
    /// The world from before a loss of the service's data was restored, and its nodes may return.
    Restoring,
}

/// The kind of change that makes the nodes of a world form another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The lease of a member ended.
    Lost,
    /// A member has announced that it leaves.
    Leaving,
    /// A member requests the next round.
    Seeking,
    /// New nodes wait for which there are places.
    Newcomers,
    /// The run was closed without success.
    Closed,
    /// A later round was formed without this node.
    Replaced,
}

/// The change that replaces a world, and the reason. It is announced once in a round and never withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// The kind of the change.
    pub kind: ChangeKind,
    /// The reason in words.
    pub why: String,
    /// The first names of the nodes concerned.
    pub names: Vec<String>,
}

/// The round of a run, at `ctl/round`. Writing this record commits a world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// The life of the run, which distinguishes jobs with the same run ID.
    pub life: String,
    /// The number of the round. 0 until a round was formed.
    pub round: u64,
    /// Distinguishes worlds of the same number. After a loss of the service's data, two worlds can be formed
    /// independently.
    pub world: String,
    /// The attempt at this round's plan that counts.
    pub attempt: String,
    /// The number of shards of the plan.
    pub shards: u32,
    /// The number of nodes of the world. 0 while forming.
    pub size: u32,
    /// The address of rank 0.
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
    /// The state of the run.
    pub phase: Phase,
    /// Why the round was formed.
    pub why: String,
    /// The node that hosts the service, if one does. The world is lost with it, whichever other nodes are present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The address of that node, as in its record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<String>,
    /// The submission of the world's nodes, if they name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<String>,
    /// The refusal of nodes of other submissions, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusalRecord>,
    /// How often in a row nodes of each name have failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureRecord>,
    /// The change that is about to replace the world, if one was announced.
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
            host_address: None,
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

    /// Whether nodes that are not in the world are spares, because it is full or waits for the nodes of the next size.
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

/// A member that another one watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbor {
    /// The node.
    pub id: NodeId,
    /// Its rank.
    pub rank: u32,
    /// The address of the node.
    pub address: String,
    /// The port that its lifelines use.
    pub port: u16,
}

/// A shard of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanShard {
    /// The nodes whose IDs belong to this shard.
    pub nodes: Vec<PlanEntry>,
    /// The members that each of them watches by lifelines.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub neighbors: BTreeMap<NodeId, Vec<Neighbor>>,
}
impl Record for PlanShard {}

/// Why and how a round was formed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// The round.
    pub round: u64,
    /// Why it was formed.
    pub why: String,
    /// How long the run was without a world, in seconds: from the change, or from the first request for the round.
    pub took_seconds: f64,
    /// How many nodes it has.
    pub size: u32,
    /// How many of them were not in the previous world.
    pub newcomers: u32,
    /// The coordinator that formed it.
    pub coordinator: String,
    /// The first names of the nodes, by rank.
    pub names: Vec<String>,
    /// When it was formed, in seconds since 1970 by the clock of the coordinator's machine. For messages only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formed_at: Option<u64>,
    /// The change that ended the previous round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<ChangeRecord>,
    /// The members of the previous round that were lost, the first 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LossRecord>,
}
impl Record for HistoryRecord {}

/// A member that a round lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRecord {
    /// Its name.
    pub name: String,
    /// What another node saw. None if its lease ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// How long the loss took to be announced. See [`losses`](crate::protocol::losses::losses).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_seconds: Option<f64>,
}
