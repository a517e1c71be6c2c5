//! What a session knows, as its handle and the stores of the node see it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    backend::LeaseId,
    error::Error,
    protocol::{
        identity::NodeId,
        records::{ClosedRecord, DrainRecord, RoundRecord, WorldMembership},
    },
};

/// The state of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It has not joined the run yet, or is joining again as a new node.
    #[default]
    Joining,
    /// It waits for a world.
    Seeking,
    /// It waits as a spare, because the world is full.
    Spare,
    /// It is in a world.
    Member,
    /// Its lease may have expired. It decides nothing, and keeps training.
    Uncertain,
    /// The run is closed.
    Closed,
    /// It has left.
    Left,
}

impl State {
    /// The name of the state.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Seeking => "seeking",
            Self::Spare => "spare",
            Self::Member => "member",
            Self::Uncertain => "uncertain",
            Self::Closed => "closed",
            Self::Left => "left",
        }
    }
}

/// A world, as one of its nodes sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldFacts {
    /// The node's id in it.
    pub node: NodeId,
    /// The name of the node in it.
    pub name: String,
    /// Life, round, rank and size.
    pub place: WorldMembership,
    /// The address of rank 0.
    pub master_address: String,
    /// The port that rank 0 serves.
    pub master_port: u16,
    /// The reason for which the round was formed.
    pub why: String,
    /// The node that hosts the service, if one does.
    pub host: Option<String>,
    /// The address of that node.
    pub host_address: Option<String>,
}

/// The loss of the node that hosts the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLost {
    /// Its name.
    pub host: String,
    /// Since when it counts as lost.
    pub since: Instant,
    /// The evidence: the silence of the service, or the refusal at its address.
    pub evidence: String,
}

/// The knowledge of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What the node is.
    pub state: State,
    /// Its present ID. `None` while it is not in the run.
    pub node: Option<NodeId>,
    /// The last world that it entered, whether returned to its owner or not.
    pub world: Option<Arc<WorldFacts>>,
    /// `ctl/round`.
    pub round: Option<RoundRecord>,
    /// The closing of this node's life.
    pub closed: Option<ClosedRecord>,
    /// Why the node is no longer in the world that it was in.
    pub excluded: Option<String>,
    /// The loss of the node that hosts the service, if its world has lost it.
    pub host_lost: Option<HostLost>,
    /// The error that ended the session.
    pub end: Option<Error>,
    /// The last error of the service, until it works again.
    pub trouble: Option<Error>,
    /// The run's lease. 0 if there is none.
    pub run_lease: LeaseId,
    /// How often the service has lost its data.
    pub resets: u64,
    /// How often this node was reported dead although it was alive.
    pub false_alarms: u64,
    /// The request of an operator that this node leaves, if there is one.
    pub drained: Option<DrainRecord>,
}

impl Snapshot {
    /// The loss of the node that hosted the service, while the service has not responded since.
    pub fn lost_host(&self) -> Option<&HostLost> {
        self.host_lost.as_ref().filter(|_| self.state == State::Uncertain)
    }

    /// When this node gives up on the lost node that hosted the service. `None` if there is no such loss.
    pub fn gives_up_at(&self, host_timeout: Duration) -> Option<Instant> {
        Some(self.lost_host()?.since + host_timeout)
    }
}
