//! The facts that the rules read. Each is computed once for a decision.

use std::collections::{BTreeMap, BTreeSet};

use crate::protocol::{
    cooldown::{self, Cooling},
    identity::NodeId,
    policy::Policy,
    ranking::Newcomer,
    records::{NAMES, RoundRecord, some_names},
    roster::{Moment, Roster, Seen},
};

/// The number of lost members whose evidence is described.
const MOST_EVIDENCE: usize = 3;

/// The state of a run that has a round.
pub(super) struct Facts<'a> {
    pub(super) roster: &'a Roster,
    pub(super) round: &'a RoundRecord,
    pub(super) now: Moment,
    pub(super) policy: &'a Policy,
    /// The nodes that request the next round, but have to wait because nodes of their names failed too often.
    pub(super) cooling: BTreeMap<NodeId, Cooling>,
    /// The members among the nodes that the next world can be made of.
    pub(super) kept: BTreeSet<NodeId>,
    /// The new nodes that the next world can be made of, in the order of their IDs.
    pub(super) newcomers: Vec<Newcomer<'a>>,
    /// Whether one of all these nodes names a submission.
    pub(super) names_submission: bool,
    /// The members that are present and request the next round.
    pub(super) seeking: Vec<NodeId>,
    /// The members that are present and do not request the next round.
    pub(super) staying: Vec<NodeId>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(roster: &'a Roster, round: &'a RoundRecord, now: Moment, policy: &'a Policy) -> Self {
        let cooling = cooldown::cooling(roster, policy, now);
        let (mut kept, mut newcomers, mut names_submission) = (Vec::new(), Vec::new(), false);
        for Seen { id, node, is_member } in roster.seekers(policy) {
            names_submission |= node.record.submission.is_some();
            if is_member {
                kept.push(id);
            } else if !cooling.contains_key(&id) {
                newcomers.push(node.newcomer(id));
            }
        }
        let kept = kept.into_iter().collect();
        let (mut seeking, mut staying) = (Vec::new(), Vec::new());
        for (id, record) in roster.active_members() {
            if record.seeks > round.round { &mut seeking } else { &mut staying }.push(id);
        }
        Self { roster, round, now, policy, cooling, kept, newcomers, names_submission, seeking, staying }
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

    /// Which members were lost, and by what evidence: "n1: connection reset, then refused at 10.0.3.17:40112 (seen by n0);
    /// n2, n3: no renewal for 10 s".
    pub(super) fn describe_lost(&self, ids: &[NodeId]) -> String {
        let (seen, lapsed): (Vec<NodeId>, Vec<NodeId>) =
            ids.iter().partition(|id| self.roster.lost.contains_key(id));
        let (described, more) = seen.split_at(seen.len().min(MOST_EVIDENCE));
        let evidence = described.iter().filter_map(|id| {
            Some(format!("{}: {}", self.roster.name(*id), self.roster.lost.get(id)?.evidence()))
        });
        let more = (!more.is_empty()).then(|| format!("{}: as these", self.list(more)));
        let ttl = self.policy.lease_ttl.as_secs_f64();
        let lapsed = (!lapsed.is_empty()).then(|| format!("{}: no renewal for {ttl} s", self.list(&lapsed)));
        evidence.chain(more).chain(lapsed).collect::<Vec<_>>().join("; ")
    }

    /// Whether no node can still arrive that the settle time is for: each member requests the next round, or has left, has
    /// finished, or is dead by evidence; and each other node that could be in the next world requests it, too.
    pub(super) fn is_complete(&self) -> bool {
        let roster = self.roster;
        if self.kept.is_empty() {
            return false;
        }
        let is_gone = |id: &NodeId| {
            let announced = roster.absences.get(id).is_some_and(|absence| absence.announced);
            let leaving = roster.nodes.get(id).is_some_and(|node| node.record.leaving);
            announced || leaving || roster.finished.contains(id) || roster.lost.contains_key(id)
        };
        // Both are in the order of the IDs, like the world and the nodes.
        let (mut kept, mut newcomers) = (self.kept.iter().peekable(), self.newcomers.iter().peekable());
        let mut members = roster.world.keys().filter(|id| kept.next_if_eq(id).is_none());
        let mut others = roster
            .present()
            .filter(|seen| !seen.is_member && newcomers.next_if(|newcomer| newcomer.id == seen.id).is_none());
        members.all(is_gone) && others.all(|seen| self.cooling.contains_key(&seen.id) || is_gone(&seen.id))
    }

    /// The first names of these nodes, for a record.
    pub(super) fn names(&self, ids: &[NodeId]) -> Vec<String> {
        ids.iter().map(|id| self.roster.name(*id).to_owned()).take(NAMES).collect()
    }
}
