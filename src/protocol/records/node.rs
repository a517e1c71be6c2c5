//! The record of a node, and the world that the node was in.

use serde::{Deserialize, Serialize};

use super::{Record, RoundRecord};
use crate::protocol::{
    identity::number_of,
    sizing::{Sizing, WorldSizes},
};

/// The last world that a node was in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorldMembership {
    /// The life of the world.
    pub life: String,
    /// The round of the world.
    pub round: u64,
    /// Distinguishes worlds of the same round number.
    pub world: String,
    /// The rank of the node.
    pub rank: u32,
    /// The size of the world.
    pub size: u32,
}

impl WorldMembership {
    /// Orders worlds that a service has lost. The one with the highest round number is restored. Among worlds of the
    /// same number their names decide, because any fixed rule will do.
    pub fn order(&self) -> (u64, &str, &str) {
        (self.round, &self.life, &self.world)
    }

    /// The number that its name was made from. `None` if another program wrote the name.
    pub fn number(&self) -> Option<u64> {
        number_of(&self.world)
    }

    /// Whether another node's last world is this one.
    pub fn is_same_world(&self, other: &Self) -> bool {
        self.order() == other.order()
    }

    /// Whether this is the world of a round's record.
    pub fn is_of(&self, round: &RoundRecord) -> bool {
        self.order() == (round.round, &round.life, &round.world)
    }
}

/// The record of a node, at `nodes/<id>`. It is attached to the node's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The name of the node.
    pub name: String,
    /// The address at which other nodes reach it.
    pub address: String,
    /// The port that it would serve as master.
    pub port: u16,
    /// Its place, for example a rack or a zone.
    pub topology: Option<String>,
    /// Its index among the nodes of the job, by which new nodes get their ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Its `min_nodes`.
    pub min: u32,
    /// Its `max_nodes`.
    pub max: u32,
    /// Which sizes of a world are allowed.
    #[serde(default, skip_serializing_if = "Sizing::is_default")]
    pub sizing: Sizing,
    /// The lowest round that it requests.
    pub seeks: u64,
    /// The world that it was in when it wrote this record.
    pub world: Option<WorldMembership>,
    /// Whether it is about to leave.
    pub leaving: bool,
    /// Whether it hosts the service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hosts: bool,
    /// The submission of the job that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<String>,
    /// The port for lifelines. Absent if the node has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifeline: Option<u16>,
    /// How often this process was reported dead in the run although it was alive.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub false_alarms: u64,
}
impl Record for NodeRecord {}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl NodeRecord {
    /// The sizes that a world may have.
    pub fn sizes(&self) -> WorldSizes<'_> {
        WorldSizes { min: self.min, max: self.max, sizing: &self.sizing }
    }
}
