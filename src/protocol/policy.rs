//! How long, how many, and what to ignore: the numbers that decisions are based on.

use std::time::Duration;

use super::sizing::{Sizing, WorldSizes};
use crate::{backend::retry::LONGEST_BACKOFF, settings::Reaction};

/// The policy of a coordinator. Times are durations on its own monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The minimum number of nodes of a world.
    pub min_nodes: u32,
    /// The maximum number of nodes of a world.
    pub max_nodes: u32,
    /// Which sizes between them are allowed.
    pub sizing: Sizing,
    /// How long to wait for more than `min_nodes` nodes if a member of the last world is among the nodes that wait for
    /// the round.
    pub settle_time: Duration,
    /// How long to wait for more than `min_nodes` nodes if all nodes are new.
    pub last_call_timeout: Duration,
    /// How long the members of the last world have to request the next round after a change was announced.
    pub rejoin_timeout: Duration,
    /// How long new nodes wait before a running world is asked to grow, so that nodes that arrive one after another
    /// cause only one restart. There is no wait if the world would be full.
    pub grow_delay: Duration,
    /// How long an absent node can take to reconnect before it counts as lost, if it may be recovering from an
    /// interruption: the lease's TTL, a quarter of it (one attempt), and the longest backoff.
    pub return_window: Duration,
    /// The TTL of the nodes' leases. For messages only.
    pub lease_ttl: Duration,
    /// The maximum age of the last acknowledgment of the coordinator's own lease at which a loss is confirmed at once.
    pub trusted_silence: Duration,
    /// Whether the loss of a member changes the world.
    pub on_member_loss: Reaction,
    /// Whether new nodes change the world.
    pub on_newcomer: Reaction,
}

/// After a departure, forming waits until no node has departed for this time. etcd expires the leases of a lost rack one by
/// one, 750 to 1,000 per second.
pub const GATHER_QUIET: Duration = Duration::from_millis(200);

/// The same wait after deaths that observers have reported. They report nodes that died at the same time within
/// milliseconds.
pub const GATHER_SEEN: Duration = Duration::from_millis(20);

/// The maximum time for which forming waits for departures to end.
pub const GATHER_LIMIT: Duration = Duration::from_secs(1);

/// The number of nodes per second for which time to request the next round is added to `rejoin_timeout`.
pub const REJOINS_PER_SECOND: u32 = 750;

impl Policy {
    /// The sizes that a world may have.
    pub fn sizes(&self) -> WorldSizes<'_> {
        WorldSizes { min: self.min_nodes, max: self.max_nodes, sizing: &self.sizing }
    }

    /// The times that follow from the TTL of a lease: reconnect window and maximum renewal age.
    pub fn lease_times(ttl: Duration) -> (Duration, Duration) {
        (ttl + ttl / 4 + LONGEST_BACKOFF, ttl / 2)
    }

    /// How long a world of `size` nodes has to request the next round.
    pub fn rejoin_time(&self, size: u32) -> Duration {
        self.rejoin_timeout + Duration::from_secs(1) * size / REJOINS_PER_SECOND
    }
}
