//! The record of a node, and the world that the node was in.

use serde::{Deserialize, Serialize};

use super::{Record, RoundRecord};
use crate::protocol::sizing::{Sizing, WorldSizes};

/// The world that a node was in last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWorld {
    /// Its life.
    pub life: String,
    /// Its round.
    pub round: u64,
    /// Which world of that number.
    pub world: String,
    /// The node's rank.
    pub rank: u32,
    /// The world's size.
    pub size: u32,
}

impl LastWorld {
    /// Of worlds that a store has lost, the one with the highest number is put back; of two with the same number their
    /// names decide, for any fixed rule will do.
    pub fn order(&self) -> (u64, &str, &str) {
        (self.round, &self.life, &self.world)
    }

    /// Whether another node's last world is this one.
    pub fn is_same_world(&self, other: &Self) -> bool {
        self.order() == other.order()
    }

    /// Whether this is the world that a round's record speaks of.
    pub fn is_of(&self, round: &RoundRecord) -> bool {
        self.order() == (round.round, &round.life, &round.world)
    }
}

/// A node, at `nodes/<id>`; goes with its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What people call it.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// The port that it would serve as master.
    pub port: u16,
    /// Where it stands, for example a rack or a zone.
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
    /// It wants a world of this round or a later one.
    pub seeks: u64,
    /// The world it was in when it wrote this.
    pub world: Option<LastWorld>,
    /// It is about to go.
    pub leaving: bool,
    /// It hosts the service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hosts: bool,
    /// Which submission of the job it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<String>,
}
impl Record for NodeRecord {}

impl NodeRecord {
    /// The sizes that a world may have.
    pub fn sizes(&self) -> WorldSizes<'_> {
        WorldSizes { min: self.min, max: self.max, sizing: &self.sizing }
    }
}
