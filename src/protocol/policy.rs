//! How long, how many, and what to ignore: the numbers that decisions are made with.

use std::time::Duration;

use super::sizing::{Sizing, WorldSizes};
use crate::{backend::retry::LONGEST_BACKOFF, settings::Reaction};

/// What a coordinator decides by. Times are durations of its own monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The fewest nodes of a world.
    pub min_nodes: u32,
    /// The most nodes of a world.
    pub max_nodes: u32,
    /// Which sizes between them are allowed.
    pub sizing: Sizing,
    /// How long to wait for more than `min_nodes` when a member of the last world is among those that seek.
    pub settle_time: Duration,
    /// How long to wait for more than `min_nodes` when everybody is new.
    pub last_call_timeout: Duration,
    /// How long the members of the last world have to seek again after a change was told.
    pub rejoin_timeout: Duration,
    /// How long newcomers wait before a running world is asked to grow, so that nodes that arrive one by one cost one
    /// restart. Not waited for once the world would be full.
    pub grow_delay: Duration,
    /// How long an absent node can take to reconnect before it counts as lost, if it may be recovering from an
    /// interruption: the lease's TTL, a quarter of it (one attempt), and the longest backoff.
    pub return_window: Duration,
    /// How old the last acknowledgement of the coordinator's own lease may be for a loss to be believed at once.
    pub trusted_silence: Duration,
    /// Whether the loss of a member changes the world.
    pub on_member_loss: Reaction,
    /// Whether newcomers change the world.
    pub on_newcomer: Reaction,
}

/// After a departure, forming waits until none has been seen for so long: etcd ends the leases of a lost rack one by
/// one, 750 to 1,000 a second.
pub const GATHER_QUIET: Duration = Duration::from_millis(200);

/// Forming waits no longer than this for departures to come to an end.
pub const GATHER_LIMIT: Duration = Duration::from_secs(1);

/// Nodes a second that are given to seek again, on top of `rejoin_timeout`.
pub const REJOINS_PER_SECOND: u32 = 750;

impl Policy {
    /// The sizes that a world may have.
    pub fn sizes(&self) -> WorldSizes<'_> {
        WorldSizes { min: self.min_nodes, max: self.max_nodes, sizing: &self.sizing }
    }

    /// The times that follow from a lease's TTL: return window and trusted silence.
    pub fn lease_times(ttl: Duration) -> (Duration, Duration) {
        (ttl + ttl / 4 + LONGEST_BACKOFF, ttl / 2)
    }

    /// How long a world of `size` nodes has to seek again.
    pub fn rejoin_time(&self, size: u32) -> Duration {
        self.rejoin_timeout + Duration::from_secs(1) * size / REJOINS_PER_SECOND
    }
}
