//! Policies and records for the tests of decisions.

use std::time::Duration;

use super::{identity::NodeId, policy::Policy, records::NodeRecord, roster::Moment, sizing::Sizing};
use crate::settings::Reaction;

/// A policy for at most 4 nodes with a TTL of 10 s, in which a round forms without a wait.
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
        lease_ttl: Duration::from_secs(10),
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

/// The record of a node that has just joined.
pub(super) fn record() -> NodeRecord {
    NodeRecord {
        name: "n".into(),
        address: "10.0.0.1".into(),
        port: 4000,
        topology: None,
        index: None,
        min: 1,
        max: 4,
        sizing: Sizing::default(),
        seeks: 0,
        world: None,
        leaving: false,
        hosts: false,
        submission: None,
        lifeline: None,
        false_alarms: 0,
    }
}
