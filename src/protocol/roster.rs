//! What a coordinator knows of its run: which nodes are present, what they request, and since when. It receives the
//! content of the records, with the time of the coordinator's own monotonic clock. [`super::decide`] reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    identity::NodeId,
    policy::{GATHER_LIMIT, Policy},
    ranking::Newcomer,
    records::{FailureRecord, LostRecord, NodeRecord, Phase, PlanEntry, RoundRecord},
};
use crate::backend::Revision;

/// A time on the monotonic clock of the caller. Only differences count.
pub type Moment = Duration;

/// By how much a record may exceed the known round number. A larger number is nonsense, and would leave no further
/// numbers.
const MOST_ROUNDS_AHEAD: u64 = 1_000_000;

/// A node that is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Its record.
    pub record: NodeRecord,
    /// When it arrived.
    pub created: Revision,
}

impl Present {
    /// The node as a candidate for a world.
    pub fn newcomer(&self, id: NodeId) -> Newcomer<'_> {
        Newcomer {
            id,
            name: &self.record.name,
            label: self.record.topology.as_deref(),
            index: self.record.index,
            arrived: self.created,
        }
    }
}

/// A node that is present, and its part in the world.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'roster> {
    /// The node.
    pub id: NodeId,
    /// What is known of it.
    pub node: &'roster Present,
    /// Whether it is in the world.
    pub is_member: bool,
}

/// A member of the world that is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absence {
    /// When it became absent.
    pub since: Moment,
    /// When its failure is confirmed, because it can no longer be returning from an interruption.
    pub confirm_at: Moment,
    /// Whether it had announced that it leaves.
    pub announced: bool,
    /// Whether this coordinator has seen its record disappear.
    pub witnessed: bool,
}

/// The state of a run as a coordinator knows it.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// The round of the run.
    pub round: Option<RoundRecord>,
    /// The world of that round.
    pub world: BTreeMap<NodeId, PlanEntry>,
    /// The nodes that are present.
    pub nodes: BTreeMap<NodeId, Present>,
    /// The nodes of this life that have entered their exit barrier, in any round.
    pub finished: BTreeSet<NodeId>,
    /// Members of earlier worlds that the next world excluded. Each of them can return only under another ID.
    pub left_out: BTreeSet<NodeId>,
    /// The members that are absent.
    pub absences: BTreeMap<NodeId, Absence>,
    /// The evidence that members of the world are dead. It counts while they are absent.
    pub lost: BTreeMap<NodeId, LostRecord>,
    /// The lives that have ended, each with the revision at which its closing was put away. Earlier records do not
    /// belong to this life.
    pub past_lives: BTreeMap<String, Revision>,
    /// Since when this coordinator has seen each member in worlds, without an interruption.
    pub member_since: BTreeMap<NodeId, Moment>,
    /// When this coordinator learned of the last failure of each name that has failed.
    pub failed_at: BTreeMap<String, Moment>,
    /// The submission that the run belongs to.
    pub owner: Option<String>,
    /// When the last acknowledged renewal of the coordinator's own lease was sent.
    pub acknowledged: Moment,
    /// When the last silence between the coordinator and the service ended that was too long for losses to be
    /// confirmed.
    pub disturbed: Option<Moment>,
    /// Whether this coordinator has committed a world that it formed itself.
    pub committed: bool,
    /// The highest round number that was seen anywhere.
    pub highest_round: u64,
    /// When the change of the world was announced, or was first seen by this coordinator.
    pub change_told: Option<Moment>,
    /// When the restored world counts as complete.
    pub restoring_until: Option<Moment>,
    /// The first and the last departure of a series of departures that followed each other closely.
    pub departures: Option<(Moment, Moment)>,
    /// Since when `min_nodes` nodes request the next round.
    pub enough_since: Option<Moment>,
    /// Since when a new node waits for which there is a place.
    pub newcomers_since: Option<Moment>,
    /// Since when nodes of another submission wait while nodes of the run's own submission mean to stay.
    pub contested_since: Option<Moment>,
    /// Since when the run has no valid world although a node requests one.
    pub wanted_since: Option<Moment>,
}

impl Roster {
    /// Takes over the content of `ctl/round`, with the world that it commits.
    pub fn set_round(&mut self, now: Moment, round: RoundRecord, world: Vec<PlanEntry>) {
        let same = self.round.as_ref().is_some_and(|old| {
            (&old.life, old.round, &old.world) == (&round.life, round.round, &round.world)
        });
        if self.round.as_ref().is_some_and(|old| old.life != round.life) {
            self.finished.clear();
        }
        self.note_failures(now, &round.failures);
        if !same {
            let stay: BTreeSet<NodeId> = world.iter().map(|entry| entry.id).collect();
            self.left_out.extend(self.world.keys());
            self.left_out.retain(|id| !stay.contains(id));
            self.absences.clear();
            self.lost.clear();
            self.departures = None;
            self.change_told = None;
            self.wanted_since = None;
        }
        if round.change.is_some() {
            self.change_told.get_or_insert(now);
        }
        self.highest_round = self.highest_round.max(round.round);
        self.world = world.into_iter().map(|entry| (entry.id, entry)).collect();
        self.member_since.retain(|id, _| self.world.contains_key(id));
        for id in self.world.keys() {
            self.member_since.entry(*id).or_insert(now);
        }
        self.round = Some(round);
    }

    /// The wait of a name that has failed starts when the end of its world was announced, if that is known.
    fn note_failures(&mut self, now: Moment, failures: &[FailureRecord]) {
        let known = self.round.as_ref().map_or(&[][..], |round| round.failures.as_slice());
        let told = self.change_told.unwrap_or(now);
        let since = |failure: &FailureRecord| {
            let since = self.failed_at.get(&failure.name).filter(|_| known.contains(failure));
            (failure.name.clone(), since.copied().unwrap_or(told))
        };
        self.failed_at = failures.iter().map(since).collect();
    }

    /// Adds a node, or updates its record.
    pub fn put_node(&mut self, id: NodeId, record: NodeRecord, created: Revision) {
        let seen = record.world.as_ref().map_or(0, |world| world.round).max(record.seeks.saturating_sub(1));
        if seen <= self.highest_round.saturating_add(MOST_ROUNDS_AHEAD) {
            self.highest_round = self.highest_round.max(seen);
        }
        self.absences.remove(&id);
        self.lost.remove(&id);
        self.return_to_world(id, &record);
        self.nodes.insert(id, Present { record, created });
    }

    /// While a world is restored, its nodes report their ranks in their records.
    fn return_to_world(&mut self, id: NodeId, record: &NodeRecord) {
        let Some(round) = self.round.as_ref().filter(|round| round.phase == Phase::Restoring) else { return };
        let own = record.world.as_ref();
        if let Some(own) = own.filter(|own| own.is_of(round)) {
            let entry =
                PlanEntry { id, name: record.name.clone(), label: record.topology.clone(), rank: own.rank };
            self.world.entry(id).or_insert(entry);
            self.left_out.remove(&id);
        }
    }

    /// Removes a node.
    pub fn remove_node(&mut self, now: Moment, id: NodeId, policy: &Policy) {
        let Some(gone) = self.nodes.remove(&id) else { return };
        self.left_out.remove(&id);
        let under_way = self.departures.filter(|(_, last)| now.saturating_sub(*last) <= GATHER_LIMIT);
        self.departures = Some((under_way.map_or(now, |(first, _)| first), now));
        if self.world.contains_key(&id) && !self.finished.contains(&id) {
            let trusted = self.lost.contains_key(&id) || !self.is_disturbed(now, policy);
            let wait = if trusted { Duration::ZERO } else { policy.return_window };
            let announced = gone.record.leaving;
            self.absences
                .insert(id, Absence { since: now, confirm_at: now + wait, announced, witnessed: true });
        }
    }

    /// The record of the node that hosts the service, if there is one that is not leaving.
    pub fn host(&self) -> Option<&NodeRecord> {
        let hosts = |node: &&Present| node.record.hosts && !node.record.leaving;
        self.nodes.values().find(hosts).map(|node| &node.record)
    }

    /// Records that a member has entered its exit barrier.
    pub fn put_finished(&mut self, id: NodeId) {
        self.finished.insert(id);
        self.absences.remove(&id);
    }

    /// Adds the evidence that a member is dead. If it is `fresh`, the member is not merely returning from an
    /// interruption. The evidence can arrive before or after the event that deletes the member's record.
    pub fn put_lost(&mut self, id: NodeId, evidence: LostRecord, fresh: bool) {
        if !self.world.contains_key(&id) || self.finished.contains(&id) {
            return;
        }
        if let Some(absence) = self.absences.get_mut(&id).filter(|_| fresh) {
            absence.confirm_at = absence.since;
        }
        if fresh || self.absences.contains_key(&id) {
            self.lost.insert(id, evidence);
        }
    }

    /// Whether the contact with the service is interrupted, or was until a moment ago. Absent nodes may then still be
    /// returning.
    pub fn is_disturbed(&self, now: Moment, policy: &Policy) -> bool {
        now.saturating_sub(self.acknowledged) > policy.trusted_silence
            || self.disturbed.is_some_and(|ended| now.saturating_sub(ended) < policy.return_window)
    }

    /// Marks members of the world as absent that a new coordinator does not find. They may be returning from the
    /// interruption that led to its term, unless it is `trusted`: it has seen the previous term under the lease that it
    /// still has.
    pub fn mark_absent_members(&mut self, now: Moment, trusted: bool, policy: &Policy) {
        let is_confirmed = trusted && !self.is_disturbed(now, policy);
        let wait = if is_confirmed { Duration::ZERO } else { policy.return_window };
        let absent =
            self.world.keys().filter(|id| !self.nodes.contains_key(id) && !self.finished.contains(id));
        for id in absent.copied().collect::<Vec<_>>() {
            let absence = Absence { since: now, confirm_at: now + wait, announced: false, witnessed: false };
            self.absences.entry(id).or_insert(absence);
        }
    }

    /// Whether a world is committed.
    pub fn has_world(&self) -> bool {
        self.round.as_ref().is_some_and(RoundRecord::has_world)
    }

    /// The name of a node in the world, or the name that it gives itself.
    pub fn name(&self, id: NodeId) -> &str {
        let planned = self.world.get(&id).map(|entry| entry.name.as_str());
        planned.or_else(|| self.nodes.get(&id).map(|node| node.record.name.as_str())).unwrap_or("?")
    }

    /// The nodes that are present, in the order of their IDs.
    pub fn present(&self) -> impl Iterator<Item = Seen<'_>> {
        // The world has the same order, so both are passed over once.
        let mut members = self.world.keys().peekable();
        self.nodes.iter().map(move |(id, node)| {
            while members.next_if(|member| *member < id).is_some() {}
            Seen { id: *id, node, is_member: members.next_if_eq(&id).is_some() }
        })
    }

    /// The members that are present, not finished, and not leaving.
    pub fn active_members(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        let is_active = |seen: &Seen<'_>| {
            seen.is_member && !seen.node.record.leaving && !self.finished.contains(&seen.id)
        };
        self.present().filter(is_active).map(|seen| (seen.id, &seen.node.record))
    }

    /// The size to which the world can grow with this number of new nodes, if that is larger than the number of members
    /// that are present or may still return from an interruption. A new node does not get the place of a member that returns.
    pub fn larger_size(&self, newcomers: usize, now: Moment, policy: &Policy) -> Option<u32> {
        let returns = |(id, absence): &(&NodeId, &Absence)| {
            let may_return = !absence.announced && now < absence.confirm_at;
            may_return && self.world.contains_key(id) && !self.nodes.contains_key(id)
        };
        let members = self.present().filter(|seen| seen.is_member).count();
        let here = members + self.absences.iter().filter(returns).count();
        policy.sizes().largest(here + newcomers).filter(|size| *size as usize > here)
    }

    /// The nodes that have finished and are still present.
    pub fn finished_here(&self) -> impl Iterator<Item = &NodeId> {
        self.finished.iter().filter(|id| self.nodes.contains_key(id))
    }

    /// Whether nodes of this world, or nodes that are still present, have finished. Then the run is about to end.
    pub fn is_finishing(&self) -> bool {
        self.finished.iter().any(|id| self.world.contains_key(id)) || self.finished_here().next().is_some()
    }

    /// The nodes that the next world can be made of, in the order of their IDs.
    pub fn seekers(&self, policy: &Policy) -> impl Iterator<Item = Seen<'_>> {
        self.present().filter(move |seen| {
            let Seen { id, node, is_member } = seen;
            node.record.sizes() == policy.sizes()
                && !node.record.leaving
                && !self.finished.contains(id)
                && !self.left_out.contains(id)
                && (*is_member || !self.is_of_other_submission(&node.record))
                && self.is_of_this_life(node)
                && self.seeks(&node.record, *is_member)
        })
    }

    /// Whether a record was written in this life, and not by a node of a life that has ended.
    pub fn is_of_this_life(&self, node: &Present) -> bool {
        let past_world =
            node.record.world.as_ref().is_some_and(|world| self.past_lives.contains_key(&world.life));
        let before = self.past_lives.values().any(|closed| node.created < *closed);
        !past_world && !before
    }

    fn seeks(&self, record: &NodeRecord, is_member: bool) -> bool {
        let Some(round) = self.round.as_ref().filter(|round| round.has_world()) else { return true };
        if is_member {
            return record.seeks > round.round;
        }
        // The node does not know yet that it was excluded, or that the service lost its life, so its request does not
        // count.
        record.world.as_ref().is_none_or(|world| record.seeks > world.round)
    }
}
