//! What a coordinator knows of its run: which nodes there are, what they ask for, and since when. It is told what the
//! store says, with the time on its own monotonic clock; [`super::decide`] reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    cooldown::{self, FailureRecord},
    identity::NodeId,
    policy::{GATHER_LIMIT, Policy},
    ranking::Newcomer,
    records::{NodeRecord, Phase, PlanEntry, RoundRecord},
};
use crate::backend::Revision;

/// Time on the coordinator's monotonic clock, since it took office.
pub type Moment = Duration;

/// How far ahead of what is known a record may say that rounds are. More is nonsense, and would leave no numbers.
const BELIEVED_ROUNDS: u64 = 1_000_000;

/// A node that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// What it says.
    pub record: NodeRecord,
    /// When it arrived.
    pub created: Revision,
}

/// A member of the world that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absence {
    /// Since when.
    pub since: Moment,
    /// When to believe that it will not come back from a break.
    pub believed: Moment,
    /// It had said that it would go.
    pub announced: bool,
}

/// What a coordinator knows.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// The round that the run is in.
    pub round: Option<RoundRecord>,
    /// The world of that round.
    pub world: BTreeMap<NodeId, PlanEntry>,
    /// The nodes that are there.
    pub nodes: BTreeMap<NodeId, Present>,
    /// The nodes of this life that have asked for their exit barrier, in whatever round.
    pub finished: BTreeSet<NodeId>,
    /// Members of earlier worlds that the next one left out: each comes back under another id, if it does.
    pub left_out: BTreeSet<NodeId>,
    /// The members that are away.
    pub absences: BTreeMap<NodeId, Absence>,
    /// Lives that are over, each with the revision at which it was put away. What was there before is not of this one.
    pub past_lives: BTreeMap<String, Revision>,
    /// Since when this coordinator has seen each member in worlds, without a gap.
    pub member_since: BTreeMap<NodeId, Moment>,
    /// When this coordinator learned of the last failure of each name that has failed.
    pub failed_at: BTreeMap<String, Moment>,
    /// The submission that the run belongs to.
    pub owner: Option<String>,
    /// When the last renewal of the coordinator's own lease that was acknowledged had been sent.
    pub acknowledged: Moment,
    /// When a silence between the coordinator and the service ended that was longer than is trusted.
    pub disturbed: Option<Moment>,
    /// Whether this coordinator has committed a world of its own making.
    pub committed: bool,
    /// The highest round number seen anywhere.
    pub highest_round: u64,
    /// When the change of the world was told, or was first seen here.
    pub change_told: Option<Moment>,
    /// When the world that was put back shall count as complete.
    pub restoring_until: Option<Moment>,
    /// The first and the last of the departures that followed each other closely.
    pub departures: Option<(Moment, Moment)>,
    /// Since when `min_nodes` seek.
    pub enough_since: Option<Moment>,
    /// Since when a newcomer waits that would fit in.
    pub newcomers_since: Option<Moment>,
    /// Since when nodes of another submission wait while nodes of the run's own mean to stay.
    pub contested_since: Option<Moment>,
    /// Since when the run has no world that holds, and somebody wants one.
    pub wanted_since: Option<Moment>,
}

impl Roster {
    /// Takes over what stands at `ctl/round`, with the world that it commits.
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

    /// A name that has failed waits from when the end of its world was told, as far as that is known.
    fn note_failures(&mut self, now: Moment, failures: &[FailureRecord]) {
        let known = self.round.as_ref().map_or(&[][..], |round| round.failures.as_slice());
        let told = self.change_told.unwrap_or(now);
        let since = |failure: &FailureRecord| {
            let since = self.failed_at.get(&failure.name).filter(|_| known.contains(failure));
            (failure.name.clone(), since.copied().unwrap_or(told))
        };
        self.failed_at = failures.iter().map(since).collect();
    }

    /// A node is there, or says something new.
    pub fn put_node(&mut self, id: NodeId, record: NodeRecord, created: Revision) {
        let seen = record.world.as_ref().map_or(0, |world| world.round).max(record.seeks.saturating_sub(1));
        if seen <= self.highest_round.saturating_add(BELIEVED_ROUNDS) {
            self.highest_round = self.highest_round.max(seen);
        }
        self.absences.remove(&id);
        self.return_to_world(id, &record);
        self.nodes.insert(id, Present { record, created });
    }

    /// While a world is put back, its nodes bring their ranks with them.
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

    /// A node is gone.
    pub fn remove_node(&mut self, now: Moment, id: NodeId, policy: &Policy) {
        let Some(gone) = self.nodes.remove(&id) else { return };
        self.left_out.remove(&id);
        let under_way = self.departures.filter(|(_, last)| now.saturating_sub(*last) <= GATHER_LIMIT);
        self.departures = Some((under_way.map_or(now, |(first, _)| first), now));
        if self.world.contains_key(&id) && !self.finished.contains(&id) {
            let wait = if self.is_disturbed(now, policy) { policy.return_window } else { Duration::ZERO };
            let announced = gone.record.leaving;
            self.absences.insert(id, Absence { since: now, believed: now + wait, announced });
        }
    }

    /// The name of the node that hosts the service, if one does and means to stay.
    pub fn host(&self) -> Option<&str> {
        let hosts = |node: &&Present| node.record.hosts && !node.record.leaving;
        self.nodes.values().find(hosts).map(|node| node.record.name.as_str())
    }

    /// A member has asked for its exit barrier.
    pub fn put_finished(&mut self, id: NodeId) {
        self.finished.insert(id);
        self.absences.remove(&id);
    }

    /// Whether there is, or was just now, a break in the contact with the service: who is away then may merely not be
    /// back yet.
    fn is_disturbed(&self, now: Moment, policy: &Policy) -> bool {
        now.saturating_sub(self.acknowledged) > policy.trusted_silence
            || self.disturbed.is_some_and(|ended| now.saturating_sub(ended) < policy.return_window)
    }

    /// Members of the world that a new coordinator does not find. They may be returning from the break that brought it
    /// into office, unless that is `trusted`: it saw the office before under the lease that it still has.
    pub fn count_absent(&mut self, now: Moment, trusted: bool, policy: &Policy) {
        let believed = trusted && !self.is_disturbed(now, policy);
        let wait = if believed { Duration::ZERO } else { policy.return_window };
        let absent =
            self.world.keys().filter(|id| !self.nodes.contains_key(id) && !self.finished.contains(id));
        for id in absent.copied().collect::<Vec<_>>() {
            self.absences.entry(id).or_insert(Absence { since: now, believed: now + wait, announced: false });
        }
    }

    /// Brings the clocks in step with what is known: each runs from when its condition began to hold. To be called after
    /// what was told at one time, and before anything is decided.
    pub fn observe(&mut self, now: Moment, policy: &Policy) {
        let since = |clock: &mut Option<Moment>, holds: bool| {
            *clock = if holds { Some(clock.unwrap_or(now)) } else { None };
        };
        self.owner = self.find_owner(now);
        let contested = self.is_contested();
        let seekers = self.seekers(policy);
        let enough = policy.sizes().largest(seekers.len()).is_some();
        let cooling = cooldown::cooling(self, policy, now);
        let is_new = |id: &&NodeId| !self.world.contains_key(id) && !cooling.contains_key(id);
        let grows = self.larger_size(seekers.iter().filter(is_new).count(), now, policy).is_some();
        let wanted = self.change_told.is_some() || (!seekers.is_empty() && !self.has_world());
        since(&mut self.contested_since, contested);
        since(&mut self.enough_since, enough);
        since(&mut self.newcomers_since, grows);
        since(&mut self.wanted_since, wanted);
    }

    /// Whether a world is committed.
    pub fn has_world(&self) -> bool {
        self.round.as_ref().is_some_and(RoundRecord::has_world)
    }

    /// The name by which a node is known in the world, or calls itself.
    pub fn name(&self, id: NodeId) -> &str {
        let planned = self.world.get(&id).map(|entry| entry.name.as_str());
        planned.or_else(|| self.nodes.get(&id).map(|node| node.record.name.as_str())).unwrap_or("?")
    }

    /// The members that are there, not finished and not about to go.
    pub fn active_members(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        self.world.keys().filter(|id| !self.finished.contains(id)).filter_map(|id| {
            let node = self.nodes.get(id).filter(|node| !node.record.leaving)?;
            Some((*id, &node.record))
        })
    }

    /// The size to which so many new nodes let the world grow, if that is larger than the number of members that are here or
    /// may still return from an interruption. A new node does not get the place of a member that returns.
    pub fn larger_size(&self, newcomers: usize, now: Moment, policy: &Policy) -> Option<u32> {
        let returns = |id: &NodeId| {
            let absence = self.absences.get(id);
            absence.is_some_and(|absence| !absence.announced && now < absence.believed)
        };
        let here = self.world.keys().filter(|id| self.nodes.contains_key(id) || returns(id)).count();
        policy.sizes().largest(here + newcomers).filter(|size| *size as usize > here)
    }

    /// The nodes that have finished and are still here.
    pub fn finished_here(&self) -> impl Iterator<Item = &NodeId> {
        self.finished.iter().filter(|id| self.nodes.contains_key(id))
    }

    /// Whether nodes of this world, or such as are still here, have finished: then the run is about to end.
    pub fn is_finishing(&self) -> bool {
        self.finished.iter().any(|id| self.world.contains_key(id)) || self.finished_here().next().is_some()
    }

    /// The nodes that a next world can be made of.
    pub fn seekers(&self, policy: &Policy) -> BTreeSet<NodeId> {
        let seeks = |(id, node): (&NodeId, &Present)| {
            let eligible = node.record.sizes() == policy.sizes()
                && !node.record.leaving
                && !self.finished.contains(id)
                && !self.left_out.contains(id)
                && !self.is_rival(*id, &node.record)
                && self.is_of_this_life(node);
            (eligible && self.seeks(*id, &node.record)).then_some(*id)
        };
        self.nodes.iter().filter_map(seeks).collect()
    }

    /// The seekers that were not in the last world.
    pub fn newcomers(&self, policy: &Policy) -> Vec<Newcomer> {
        let ids = self.seekers(policy).into_iter().filter(|id| !self.world.contains_key(id));
        ids.filter_map(|id| self.newcomer(id)).collect()
    }

    /// A node that is there, as a newcomer to a world.
    pub fn newcomer(&self, id: NodeId) -> Option<Newcomer> {
        let node = self.nodes.get(&id)?;
        Some(Newcomer {
            id,
            name: node.record.name.clone(),
            label: node.record.topology.clone(),
            index: node.record.index,
            arrived: node.created,
        })
    }

    /// Whether a record was written in this life, and not by a node of one that is over.
    pub fn is_of_this_life(&self, node: &Present) -> bool {
        let past_world =
            node.record.world.as_ref().is_some_and(|world| self.past_lives.contains_key(&world.life));
        let before = self.past_lives.values().any(|closed| node.created < *closed);
        !past_world && !before
    }

    fn seeks(&self, id: NodeId, record: &NodeRecord) -> bool {
        let Some(round) = self.round.as_ref().filter(|round| round.has_world()) else { return true };
        if self.world.contains_key(&id) {
            return record.seeks > round.round;
        }
        // A node that was dropped, or was in a life that the store has lost, and does not know it yet asks for nothing.
        record.world.as_ref().is_none_or(|world| record.seeks > world.round)
    }
}
