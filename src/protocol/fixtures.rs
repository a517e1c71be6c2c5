//! What the tests of decisions begin with.

use std::time::Duration;

use super::{identity::NodeId, policy::Policy, roster::Moment, sizing::Sizing};
use crate::settings::Reaction;

/// A policy for at most 4 nodes under a TTL of 10 s, under which a round forms without a wait.
pub(super) fn policy(min_nodes: u32) -> Policy {
    let (return_window, trusted_silence) = Policy::lease_times(Duration::from_secs(10));
    Policy {
        min_nodes,
        max_nodes: 4,
        sizing: Sizing::default(),
        settle_time: Duration::ZERO,
        last_call_timeout: Duration::ZERO,
        rejoin_timeout: Duration::from_secs(90),
        grow_delay: Duration::ZERO,
        return_window,
        trusted_silence,
        on_member_loss: Reaction::Restart,
        on_newcomer: Reaction::Restart,
    }
}

pub(super) fn id(number: u64) -> NodeId {
    NodeId::from_random(number << 1)
}

pub(super) fn seconds(number: u64) -> Moment {
    Duration::from_secs(number)
}
