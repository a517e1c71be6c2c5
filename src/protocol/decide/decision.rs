//! What a coordinator does next, and why: the result of [`decide`](super::decide).

use std::time::Duration;

use crate::protocol::{
    records::{ChangeRecord, FailureRecord, PlanEntry, RefusalRecord, WorldMembership},
    roster::Moment,
};

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Renew the coordinator's own lease, and decide again once that is acknowledged, because an interruption that
    /// ended a member's lease may be about to end this one.
    Renew,
    /// `ctl/round` does not exist, so begin a life.
    BeginLife,
    /// Restore the world that the service has lost.
    Restore {
        /// Its life, round and size. Its `rank` is that of an arbitrary member; ignore it.
        world: WorldMembership,
        /// Its nodes that have returned.
        members: Vec<PlanEntry>,
        /// The submission of these nodes, if they name one.
        submission: Option<String>,
    },
    /// End restoring: the reconnect window is over.
    EndRestoring,
    /// Refuse nodes of another submission.
    Refuse(RefusalRecord),
    /// Keep only these failures: the nodes of the others have stayed long enough.
    KeepFailures(Vec<FailureRecord>),
    /// Announce to the nodes of the world that another one will be formed.
    AnnounceChange(ChangeRecord),
    /// Commit a world.
    Form(Form),
    /// Close the run as ended, because the remaining nodes can never be enough.
    Close,
}

/// A world to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The number of the round.
    pub round: u64,
    /// The world by rank.
    pub members: Vec<PlanEntry>,
    /// The submission of these nodes, if they name one.
    pub submission: Option<String>,
    /// How often in a row nodes have failed.
    pub failures: Vec<FailureRecord>,
    /// How many members were not in the last world.
    pub newcomers: u32,
    /// How long the run was without a valid world.
    pub took: Duration,
}

/// The condition that a run without a valid world waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Members of a restored world that have not returned.
    Restored,
    /// Members of the last world that have not requested the next round.
    Members,
    /// Finished nodes, which will close the run.
    Closing,
    /// The node that hosts the service.
    Host,
    /// The end of a series of departures.
    Departures,
    /// Nodes that the smallest size still needs.
    MissingNodes,
    /// More nodes than the smallest size needs.
    MoreNodes,
}

/// What to do, why, and when time alone could change the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// The reason, in words for logs and records.
    pub reason: String,
    /// When to decide again if nothing happens before.
    pub wake: Option<Moment>,
    /// The condition that the next world waits for, if there is one.
    pub waits_for: Option<WaitsFor>,
}

impl Decision {
    pub(in crate::protocol) fn act(action: Action, reason: impl Into<String>) -> Self {
        Self { action, reason: reason.into(), wake: None, waits_for: None }
    }

    pub(crate) fn wait(reason: impl Into<String>, wake: Option<Moment>) -> Self {
        Self { action: Action::Wait, reason: reason.into(), wake, waits_for: None }
    }

    pub(crate) fn wait_for(condition: WaitsFor, reason: impl Into<String>, wake: Option<Moment>) -> Self {
        Self { waits_for: Some(condition), ..Self::wait(reason, wake) }
    }

    /// Decides again at this moment at the latest.
    pub(super) fn wake_by(mut self, moment: Option<Moment>) -> Self {
        self.wake = self.wake.into_iter().chain(moment).min();
        self
    }
}
