//! What a coordinator reports about the nodes that wait for a round, so that a waiting node can name them without
//! reading the records of all nodes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    decide::{Decision, WaitsFor},
    policy::Policy,
    records::{NAMES, NodeRecord, Record},
    roster::Roster,
    sizing::WorldSizes,
};

/// The nodes that are present while a round is awaited, at `waiting`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingRecord {
    /// How many nodes have the run's settings.
    pub here: usize,
    /// The first of their names.
    pub names: Vec<String>,
    /// How many nodes are not counted.
    pub left_out: usize,
    /// The first of those, each with the reason.
    pub reasons: Vec<String>,
    /// The reason for the wait, in the coordinator's words, unless nodes are merely missing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When the wait ends if nothing else changes, in milliseconds since 1970 by the clock of the coordinator's machine. For
    /// messages only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_ms: Option<u64>,
}

impl Record for WaitingRecord {}

impl WaitingRecord {
    /// Describes the nodes of a run in which at least one waits; `unreadable` further nodes have records that cannot be
    /// read. Nothing if no node waits.
    pub fn of(roster: &Roster, unreadable: usize, policy: &Policy) -> Option<Self> {
        if roster.has_world()
            && roster.change_told.is_none()
            && roster.seekers(policy).all(|seeker| seeker.is_member)
        {
            return None;
        }
        let mut described = Self::default();
        for node in roster.nodes.values() {
            described.count(&node.record, policy.sizes());
        }
        if unreadable > 0 {
            described.left_out += unreadable;
            described.reasons.push(format!("nodes with records that cannot be read: {unreadable}"));
        }
        Some(described)
    }

    /// Adds the reason for the wait, and when it ends if only time is missing. `zero` is the wall clock at the zero of the
    /// coordinator's clock.
    #[must_use]
    pub fn because(mut self, decision: &Decision, zero: Option<Duration>) -> Self {
        let Some(condition) = decision.waits_for else { return self };
        let end = zero.zip(decision.wake);
        self.ends_ms = end.and_then(|(zero, wake)| u64::try_from((zero + wake).as_millis()).ok());
        if !matches!(condition, WaitsFor::MissingNodes | WaitsFor::MoreNodes) {
            self.reason.clone_from(&decision.reason);
        }
        self
    }

    /// Counts a node of a run with these sizes. A node with other sizes is left out.
    pub fn count(&mut self, record: &NodeRecord, sizes: WorldSizes<'_>) {
        if record.sizes() != sizes {
            self.leave_out(format!("{} with nnodes {}", record.name, record.sizes()));
            return;
        }
        self.here += 1;
        if self.names.len() < NAMES {
            self.names.push(record.name.clone());
        }
    }

    /// Adds a node that is not counted.
    pub fn leave_out(&mut self, reason: String) {
        self.left_out += 1;
        if self.reasons.len() < NAMES {
            self.reasons.push(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::{
            identity::NodeId,
            records::{NodeRecord, Phase, PlanEntry, RoundRecord},
            sizing::Sizing,
        },
        settings::Reaction,
    };

    fn policy() -> Policy {
        let (return_window, trusted_silence) = Policy::lease_times(Duration::from_secs(10));
        Policy {
            min_nodes: 2,
            max_nodes: 1_000,
            sizing: Sizing::default(),
            settle_time: Duration::ZERO,
            last_call_timeout: Duration::ZERO,
            rejoin_timeout: Duration::ZERO,
            grow_delay: Duration::ZERO,
            return_window,
            lease_ttl: Duration::from_secs(10),
            trusted_silence,
            on_member_loss: Reaction::Restart,
            on_newcomer: Reaction::Restart,
        }
    }

    fn node(number: u64, max: u32) -> (NodeId, NodeRecord) {
        let text = format!(
            r#"{{"version":1,"name":"n{number}","address":"h","port":1,"min":2,"max":{max},"seeks":0,"leaving":false}}"#
        );
        (NodeId::from_random(number << 1), NodeRecord::decode("nodes/1", text.as_bytes()).unwrap())
    }

    #[test]
    fn waiting_nodes_are_counted_and_the_first_are_named_however_many_there_are() {
        let mut roster = Roster::default();
        for number in 1..=900 {
            let (id, record) = node(number, 1_000);
            roster.put_node(id, record, 1);
        }
        let (id, record) = node(901, 8);
        roster.put_node(id, record, 1);
        let described = WaitingRecord::of(&roster, 2, &policy()).expect("nodes wait");
        assert_eq!((described.here, described.names.len(), described.left_out), (900, NAMES, 3));
        assert_eq!(described.reasons[0], "n901 with nnodes 2:8");
        assert!(described.encode().len() < 1_000, "{}", described.encode().len());
    }

    #[test]
    fn reason_and_end_of_a_wait_are_those_of_the_decision() {
        let zero = Some(Duration::from_secs(1_000));
        let wait = |condition, wake: Option<u64>| {
            let decision = Decision::wait_for(condition, "a reason", wake.map(Duration::from_secs));
            let described = WaitingRecord::default().because(&decision, zero);
            (described.reason, described.ends_ms)
        };
        assert_eq!(wait(WaitsFor::MoreNodes, Some(5)), (String::new(), Some(1_005_000)));
        assert_eq!(wait(WaitsFor::MissingNodes, None), (String::new(), None));
        assert_eq!(wait(WaitsFor::Members, Some(5)), ("a reason".to_owned(), Some(1_005_000)));
        assert_eq!(wait(WaitsFor::Host, None), ("a reason".to_owned(), None));
        let runs = Decision::wait("round 1 runs", Some(Duration::from_secs(5)));
        assert_eq!(WaitingRecord::default().because(&runs, zero), WaitingRecord::default());
    }

    #[test]
    fn nothing_is_described_while_a_world_runs_and_no_node_waits() {
        let mut roster = Roster::default();
        let (id, record) = node(1, 1_000);
        roster.put_node(id, record, 1);
        let forming = RoundRecord::forming("l".into(), 2, 1_000, "a".into());
        let round = RoundRecord { round: 1, world: "w".into(), size: 1, phase: Phase::Running, ..forming };
        let entry = PlanEntry { id, name: "n1".into(), label: None, rank: 0 };
        roster.set_round(Duration::ZERO, round, vec![entry]);
        assert_eq!(WaitingRecord::of(&roster, 0, &policy()), None);
        let (spare, record) = node(2, 1_000);
        roster.put_node(spare, record, 2);
        assert_eq!(WaitingRecord::of(&roster, 0, &policy()).map(|described| described.here), Some(2));
    }
}
