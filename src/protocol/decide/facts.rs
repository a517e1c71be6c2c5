//! The facts that the rules read. Each is computed once for a decision.

use std::collections::{BTreeMap, BTreeSet};

use crate::protocol::{
    cooldown::{self, Cooling},
    identity::NodeId,
    policy::Policy,
    ranking::Newcomer,
    records::{NAMES, RoundRecord, some_names},
    roster::{Moment, Roster},
};

/// The state of a run that has a round.
pub(super) struct Facts<'a> {
    pub(super) roster: &'a Roster,
    pub(super) round: &'a RoundRecord,
    pub(super) now: Moment,
    pub(super) policy: &'a Policy,
    /// The nodes that seek, but have to wait because nodes of their name failed too often.
    pub(super) cooling: BTreeMap<NodeId, Cooling>,
    /// The members among the nodes that the next world can be made of.
    pub(super) kept: BTreeSet<NodeId>,
    /// The new nodes that the next world can be made of.
    pub(super) newcomers: Vec<Newcomer>,
    /// The members that are present and request the next round.
    pub(super) seeking: Vec<NodeId>,
    /// The members that are present and do not request the next round.
    pub(super) staying: Vec<NodeId>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(roster: &'a Roster, round: &'a RoundRecord, now: Moment, policy: &'a Policy) -> Self {
        let cooling = cooldown::cooling(roster, policy, now);
        let mut newcomers = Vec::new();
        let mut kept = BTreeSet::new();
        for id in roster.seekers(policy) {
            if roster.world.contains_key(&id) {
                kept.insert(id);
            } else if !cooling.contains_key(&id) {
                newcomers.extend(roster.newcomer(id));
            }
        }
        let (mut seeking, mut staying) = (Vec::new(), Vec::new());
        for (id, record) in roster.active_members() {
            if record.seeks > round.round { &mut seeking } else { &mut staying }.push(id);
        }
        Self { roster, round, now, policy, cooling, kept, newcomers, seeking, staying }
    }

    /// Whether the run needs another world: there is none yet, or a change of the present one was announced.
    pub(super) fn is_forming(&self) -> bool {
        !self.round.has_world() || self.round.change.is_some()
    }

    /// How many members are present, not finished, and not leaving.
    pub(super) fn members(&self) -> usize {
        self.seeking.len() + self.staying.len()
    }

    /// How many nodes the next world can be made of.
    pub(super) fn candidates(&self) -> usize {
        self.kept.len() + self.newcomers.len()
    }

    /// The largest size that these nodes fill.
    pub(super) fn size(&self) -> Option<u32> {
        self.policy.sizes().largest(self.candidates())
    }

    /// Which nodes wait because they failed too often, as the end of a reason.
    pub(super) fn cooling_text(&self) -> String {
        cooldown::describe(&self.cooling)
    }

    /// The first names of these nodes, and how many more there are.
    pub(super) fn list(&self, ids: &[NodeId]) -> String {
        some_names(ids.iter().map(|id| self.roster.name(*id)))
    }

    /// The first names of these nodes, for a record.
    pub(super) fn names(&self, ids: &[NodeId]) -> Vec<String> {
        ids.iter().map(|id| self.roster.name(*id).to_owned()).take(NAMES).collect()
    }
}
