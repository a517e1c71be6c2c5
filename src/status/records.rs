//! The records of a run as a reader knows them, and the roster that follows from them. Pure. [`super::reading`] and
//! [`super::watching`] fill them in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::picture::ServiceStatus;
use crate::{
    backend::{KeyValue, LeaseId, Revision},
    error::Result,
    protocol::{
        clocks::ClocksRecord,
        decide::{Action, Decision, decide},
        identity::NodeId,
        keys::RunKeys,
        policy::Policy,
        records::{
            ClosedRecord, CoordinatorRecord, HistoryRecord, LostRecord, NodeRecord, Phase, PlanEntry, Record,
            ResumedRecord, RoundRecord,
        },
        roster::Roster,
    },
    settings::Reaction,
};

/// A coordinator that has not done what is due for this time is considered stuck.
pub const OVERDUE: Duration = Duration::from_secs(10);

/// What a reader observed besides the records.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The run's id.
    pub run_id: String,
    /// Its tenant.
    pub tenant: String,
    /// The time since 1970.
    pub now: Duration,
    /// The service.
    pub service: ServiceStatus,
}

/// A node's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenNode {
    /// The record.
    pub record: NodeRecord,
    /// The revision at which it was created.
    pub created: Revision,
    /// The lease that it is attached to.
    pub lease: LeaseId,
}

/// The records of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunRecords {
    /// `ctl/coordinator`, with its lease.
    pub coordinator: Option<(CoordinatorRecord, LeaseId)>,
    /// `ctl/round`.
    pub round: Option<RoundRecord>,
    /// `ctl/closed`.
    pub closed: Option<ClosedRecord>,
    /// `clocks`.
    pub clocks: Option<ClocksRecord>,
    /// `nodes/`.
    pub nodes: BTreeMap<NodeId, SeenNode>,
    /// The plan of the round.
    pub world: Vec<PlanEntry>,
    /// `finished/` of this life.
    pub finished: BTreeSet<NodeId>,
    /// `lost/` of this round: the evidence that members are dead.
    pub lost: BTreeMap<NodeId, LostRecord>,
    /// `history/` of this life.
    pub history: BTreeMap<u64, HistoryRecord>,
    /// `resumed/` of this life: how long after each round was received the program trained, in seconds.
    pub resumed: BTreeMap<u64, f64>,
    /// `closed/`: each life with the revision at which it was put away.
    pub past_lives: BTreeMap<String, Revision>,
    /// The records that cannot be read, by key.
    pub unreadable: BTreeMap<String, String>,
}

impl RunRecords {
    /// Decodes a record; keeps the error if that fails.
    pub(super) fn decode<R: Record>(&mut self, item: &KeyValue) -> Option<R> {
        let key = String::from_utf8_lossy(&item.key).into_owned();
        let decoded: Result<R> = R::decode(&key, &item.value);
        match decoded {
            Ok(record) => {
                self.unreadable.remove(&key);
                Some(record)
            }
            Err(error) => {
                self.unreadable.insert(key, error.to_string());
                None
            }
        }
    }

    /// Takes in a node's record.
    pub(super) fn put_node(&mut self, item: &KeyValue) {
        let Some(record) = self.decode::<NodeRecord>(item) else { return };
        if let Some(id) = RunKeys::node_of(&item.key) {
            self.nodes.insert(id, SeenNode { record, created: item.create_revision, lease: item.lease });
        }
    }

    /// Takes in the evidence that a member is dead.
    pub(super) fn put_lost(&mut self, item: &KeyValue) {
        if let (Some(id), Some(record)) = (RunKeys::node_of(&item.key), self.decode::<LostRecord>(item)) {
            self.lost.insert(id, record);
        }
    }

    /// Takes over which lives have ended, by the keys of their closings.
    pub(super) fn put_past_lives(&mut self, closings: &[KeyValue]) {
        let life = |item: &KeyValue| Some(String::from_utf8_lossy(&item.key).rsplit('/').next()?.to_owned());
        self.past_lives =
            closings.iter().filter_map(|item| Some((life(item)?, item.create_revision))).collect();
    }

    /// Takes in the record of a round that was formed.
    pub(super) fn put_history(&mut self, item: &KeyValue) {
        if let Some(record) = self.decode::<HistoryRecord>(item) {
            self.history.insert(record.round, record);
        }
    }

    /// Takes in the report that the program trains in a round.
    pub(super) fn put_resumed(&mut self, item: &KeyValue) {
        if let Some(record) = self.decode::<ResumedRecord>(item) {
            self.resumed.insert(record.round, record.after_seconds);
        }
    }

    /// The life of the run: that of its round, or the closed one.
    pub fn life(&self) -> Option<&str> {
        let closed = self.closed.as_ref().map(|closed| closed.life.as_str());
        self.round.as_ref().map(|round| round.life.as_str()).or(closed)
    }

    /// Whether the run has any record.
    pub fn exists(&self) -> bool {
        self.round.is_some()
            || self.closed.is_some()
            || self.coordinator.is_some()
            || !self.nodes.is_empty()
            || !self.unreadable.is_empty()
    }

    /// The clocks, if they are those of the round that was read.
    pub fn current_clocks(&self) -> Option<&ClocksRecord> {
        let round = self.round.as_ref()?;
        let is_current = |clocks: &&ClocksRecord| {
            (&clocks.life, clocks.round, &clocks.world) == (&round.life, round.round, &round.world)
        };
        self.clocks.as_ref().filter(is_current)
    }

    /// The policy of the coordinator as far as it is known. Without its record, the durations of waits are unknown, and
    /// each wait counts as over.
    fn policy(&self, round: &RoundRecord) -> Policy {
        if let Some(clocks) = &self.clocks {
            return clocks.waits.policy(round.min, round.max, round.sizing.clone());
        }
        let zero = Duration::ZERO;
        Policy {
            min_nodes: round.min,
            max_nodes: round.max,
            sizing: round.sizing.clone(),
            settle_time: zero,
            last_call_timeout: zero,
            rejoin_timeout: zero,
            grow_delay: zero,
            return_window: zero,
            trusted_silence: zero,
            lease_ttl: zero,
            on_member_loss: Reaction::Restart,
            on_newcomer: Reaction::Restart,
        }
    }
}

/// What a coordinator with these records would see and decide. Moments count from 1970.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The roster.
    pub roster: Roster,
    /// The policy.
    pub policy: Policy,
    /// The time.
    pub now: Duration,
    /// The decision.
    pub decision: Decision,
    /// Whether the coordinator's clocks are known. Otherwise the times are not.
    pub has_clocks: bool,
}

impl Scene {
    /// Decides as the coordinator does. `None` if there is no round.
    pub fn of(records: &RunRecords, now: Duration) -> Option<Self> {
        let round = records.round.as_ref()?;
        let policy = records.policy(round);
        let mut roster = Roster { past_lives: records.past_lives.clone(), ..Roster::default() };
        roster.set_round(now, round.clone(), records.world.clone());
        for id in &records.finished {
            roster.put_finished(*id);
        }
        for (id, node) in &records.nodes {
            roster.put_node(*id, node.record.clone(), node.created);
            // A member of an earlier round that is not in this one was excluded, and returns under another ID.
            let place = node.record.world.as_ref();
            let excluded = place.is_some_and(|place| place.life == round.life && place.round < round.round);
            if excluded && !roster.world.contains_key(id) {
                roster.left_out.insert(*id);
            }
        }
        roster.acknowledged = now;
        roster.mark_absent_members(now, true, &policy);
        let absent: Vec<NodeId> = roster.absences.keys().copied().collect();
        let clocks = records.current_clocks();
        if let Some(clocks) = clocks {
            clocks.apply(&mut roster, absent);
        }
        for (id, evidence) in &records.lost {
            roster.put_lost(*id, evidence.clone(), true);
        }
        roster.observe(now, &policy);
        let decision = decide(&roster, now, &policy);
        Some(Self { roster, policy, now, decision, has_clocks: clocks.is_some() })
    }

    /// Whether the run needs another world.
    pub fn is_forming(&self) -> bool {
        let acts =
            matches!(self.decision.action, Action::Restore { .. } | Action::EndRestoring | Action::BeginLife);
        acts || self.roster.round.as_ref().is_none_or(|round| {
            !round.has_world() || round.change.is_some() || round.phase == Phase::Restoring
        })
    }

    /// Whether the coordinator should have acted [`OVERDUE`] ago.
    pub fn is_overdue(&self) -> bool {
        let is_act = |action: &Action| !matches!(action, Action::Wait | Action::Renew);
        let Some(earlier) = self.now.checked_sub(OVERDUE) else { return false };
        self.settled_at().is_some_and(|at| at < earlier)
            && is_act(&self.decision.action)
            && is_act(&decide(&self.roster, earlier, &self.policy).action)
    }

    /// The latest of the times at which conditions began to hold.
    fn settled_at(&self) -> Option<Duration> {
        let roster = &self.roster;
        let newcomers = roster.newcomers_since.filter(|_| roster.has_world());
        let clocks = [roster.wanted_since, roster.enough_since, newcomers, roster.change_told];
        let absences = roster.absences.values().map(|absence| absence.since);
        clocks.into_iter().flatten().chain(absences).max().filter(|_| self.has_clocks)
    }
}
