//! Which submission of a job a run belongs to, and which nodes belong to another one.
//!
//! A run serves one submission at a time. Nodes of another submission never get a place while the run belongs to the
//! first: they may be a second job that was started with the same run ID by mistake. But they may also be the same job,
//! submitted again while the pods of the first submission still end. So the coordinator refuses these nodes
//! ([`super::decide`]) only if nodes of the first submission are still present after a while. Nodes without a
//! submission are never refused.

use super::{
    identity::NodeId,
    records::{NodeRecord, Phase, RoundRecord, are_rivals},
    roster::{Moment, Present, Roster, Seen},
};

impl Roster {
    /// The submission that the run belongs to. A world keeps the run for its own submission as long as a node of that
    /// submission is present, or a member may still return from an interruption. After that, and before the first
    /// world, the run belongs to the submission of the node that arrived first.
    pub(super) fn find_owner(&self, now: Moment) -> Option<String> {
        let round = self.round.as_ref().filter(|round| round.has_world());
        let known = round.and_then(|round| {
            let submission = round.submission.as_deref().or_else(|| self.submission_of_members());
            submission.filter(|submission| self.is_held(round, submission, now))
        });
        known.or_else(|| self.first_submission()).map(str::to_owned)
    }

    fn submission_of_members(&self) -> Option<&str> {
        let mut members = self.present().filter(|seen| seen.is_member);
        members.find_map(|seen| seen.node.record.submission.as_deref())
    }

    /// The submission of the first of these nodes that names one.
    pub fn submission_of<'id>(&self, ids: impl IntoIterator<Item = &'id NodeId>) -> Option<&str> {
        ids.into_iter().find_map(|id| self.nodes.get(id)?.record.submission.as_deref())
    }

    fn is_held(&self, round: &RoundRecord, submission: &str, now: Moment) -> bool {
        // A member whose absence was not announced, or is not confirmed yet, may return.
        let mut absences = self.absences.values();
        let returning =
            absences.any(|one| !one.announced && (round.change.is_none() || now < one.confirm_at));
        round.phase == Phase::Restoring || returning || self.nodes_of(submission).next().is_some()
    }

    /// The nodes of a submission that mean to stay.
    pub(super) fn nodes_of<'a>(&'a self, submission: &'a str) -> impl Iterator<Item = &'a NodeRecord> {
        let stays = |node: &&Present| !node.record.leaving && self.is_of_this_life(node);
        let records = self.nodes.values().filter(stays).map(|node| &node.record);
        records.filter(move |record| record.submission.as_deref() == Some(submission))
    }

    fn first_submission(&self) -> Option<&str> {
        let nodes = self.nodes.iter().filter(|(_, node)| !node.record.leaving && self.is_of_this_life(node));
        let named =
            nodes.filter_map(|(id, node)| Some((node.created, id, node.record.submission.as_deref()?)));
        named.min().map(|(_, _, submission)| submission)
    }

    /// Whether this record names another submission than the run's. For a member, this does not count, because a world
    /// that an earlier version formed may have members of several submissions.
    pub fn is_of_other_submission(&self, record: &NodeRecord) -> bool {
        are_rivals(self.owner.as_deref(), record.submission.as_deref())
    }

    /// The nodes of other submissions that wait and were not refused yet.
    pub(super) fn rivals(&self) -> impl Iterator<Item = &Present> {
        let refused = self.round.as_ref().and_then(|round| round.refused.as_ref());
        let waits = move |Seen { node, is_member, .. }: &Seen<'_>| {
            let submission = node.record.submission.as_deref();
            !is_member
                && !node.record.leaving
                && self.is_of_other_submission(&node.record)
                && self.is_of_this_life(node)
                && refused.is_none_or(|refused| !refused.refuses(submission, node.created))
        };
        self.present().filter(waits).map(|seen| seen.node)
    }

    /// Whether nodes of another submission wait while nodes of the run's own mean to stay.
    pub(super) fn is_contested(&self) -> bool {
        let owner = self.owner.as_deref();
        owner.is_some_and(|owner| self.nodes_of(owner).next().is_some()) && self.rivals().next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        decide::{Action, Decision, decide},
        fixtures::{self, id, policy, seconds},
        records::{ChangeKind, ChangeRecord, PlanEntry},
    };

    /// Adds a node of a submission, or of none.
    fn put(roster: &mut Roster, now: Moment, number: u64, submission: &str, leaving: bool) {
        let record = NodeRecord {
            name: format!("n{number}"),
            leaving,
            submission: Some(submission.to_owned()).filter(|submission| !submission.is_empty()),
            ..fixtures::record()
        };
        roster.put_node(id(number), record, i64::try_from(number).unwrap());
        observe(roster, now);
    }

    fn observe(roster: &mut Roster, now: Moment) {
        roster.acknowledged = now;
        roster.observe(now, &policy(1));
    }

    /// A run whose nodes 1 and 2 are in round 1, whose record names this submission.
    fn running(nodes: [&str; 2], named: Option<&str>) -> Roster {
        let mut roster = Roster::default();
        let mut world = Vec::new();
        for (number, submission) in (1..).zip(nodes) {
            put(&mut roster, Moment::ZERO, number, submission, false);
            let rank = u32::try_from(number - 1).unwrap();
            world.push(PlanEntry { id: id(number), name: format!("n{number}"), label: None, rank });
        }
        let round = RoundRecord {
            round: 1,
            world: "w".into(),
            size: 2,
            phase: Phase::Running,
            submission: named.map(str::to_owned),
            ..RoundRecord::forming("l".into(), 1, 4, "a".into())
        };
        roster.set_round(Moment::ZERO, round, world);
        observe(&mut roster, Moment::ZERO);
        roster
    }

    #[test]
    fn only_nodes_that_both_name_a_submission_can_be_rivals() {
        for (one, other, rivals) in [
            (None, None, false),
            (None, Some("a"), false),
            (Some("a"), Some("a"), false),
            (Some("a"), Some("b"), true),
        ] {
            assert_eq!(
                (are_rivals(one, other), are_rivals(other, one)),
                (rivals, rivals),
                "{one:?} {other:?}"
            );
        }
    }

    #[test]
    fn another_submission_is_refused_if_nodes_of_the_first_remain_for_a_return_window() {
        // This also applies to a world that an earlier version formed, whose round names no submission.
        for named in [Some("one"), None] {
            let mut roster = running(["one", "one"], named);
            put(&mut roster, seconds(5), 3, "two", false);
            let waiting = decide(&roster, seconds(5), &policy(1));
            let due = seconds(5) + policy(1).return_window;
            assert_eq!(
                (waiting.action, waiting.wake),
                (Action::Wait, Some(due)),
                "and it does not grow the world"
            );
            observe(&mut roster, due);
            let Decision { action: Action::Refuse(refusal), reason, .. } = decide(&roster, due, &policy(1))
            else {
                panic!("expected a refusal");
            };
            assert_eq!(reason, "refused n3: the run belongs to submission `one` with the nodes n1, n2");
            assert!(refusal.refuses(Some("two"), 3) && !refusal.refuses(Some("two"), 4));
            assert!(!refusal.refuses(Some("one"), 3) && !refusal.refuses(None, 3));
            let message = refusal.message("the-run", "two");
            for part in ["`the-run`", "`one`", "n1, n2", "`two`", "--rdzv-id"] {
                assert!(message.contains(part), "{message}");
            }
            let refused = RoundRecord { refused: Some(refusal), ..roster.round.clone().unwrap() };
            let world = roster.world.values().cloned().collect();
            roster.set_round(due, refused, world);
            observe(&mut roster, due);
            assert_eq!(decide(&roster, due, &policy(1)).action, Action::Wait, "once is enough");
            assert_eq!(roster.seekers(&policy(1)).count(), 0, "nor does it get a place until it is gone");
        }
    }

    #[test]
    fn resubmission_waits_while_the_first_submission_ends_and_then_has_the_run() {
        let mut roster = running(["one", "one"], Some("one"));
        put(&mut roster, seconds(5), 3, "two", false);
        put(&mut roster, seconds(6), 1, "one", true);
        put(&mut roster, seconds(6), 2, "one", true);
        assert_eq!((roster.owner.as_deref(), roster.contested_since), (Some("two"), None));
        roster.remove_node(seconds(7), id(1), &policy(1));
        roster.remove_node(seconds(7), id(2), &policy(1));
        observe(&mut roster, seconds(60));
        assert!(matches!(decide(&roster, seconds(60), &policy(1)).action, Action::AnnounceChange(_)));
        let change =
            ChangeRecord { kind: ChangeKind::Leaving, why: "n1, n2 leaving".into(), names: Vec::new() };
        let told = RoundRecord { change: Some(change), ..roster.round.clone().unwrap() };
        let world = roster.world.values().cloned().collect();
        roster.set_round(seconds(60), told, world);
        observe(&mut roster, seconds(62));
        let Action::Form(form) = decide(&roster, seconds(62), &policy(1)).action else { panic!("no world") };
        assert_eq!((form.members.len(), form.submission.as_deref()), (1, Some("two")));
    }

    #[test]
    fn run_keeps_its_submission_while_members_may_return_from_an_outage() {
        let mut roster = running(["one", "one"], Some("one"));
        roster.acknowledged = Moment::ZERO;
        roster.remove_node(seconds(40), id(1), &policy(1));
        roster.remove_node(seconds(40), id(2), &policy(1));
        put(&mut roster, seconds(40), 3, "two", false);
        let confirm_at = seconds(40) + policy(1).return_window;
        for (now, told) in [(seconds(40), false), (seconds(41), true), (confirm_at, true)] {
            let mut roster = roster.clone();
            if told {
                let change = ChangeRecord {
                    kind: ChangeKind::Seeking,
                    why: "told before the outage".into(),
                    names: Vec::new(),
                };
                let told = RoundRecord { change: Some(change), ..roster.round.clone().unwrap() };
                let world = roster.world.values().cloned().collect();
                roster.set_round(now, told, world);
            }
            observe(&mut roster, now);
            let decision = decide(&roster, now, &policy(1));
            if now < confirm_at {
                assert_eq!(
                    (decision.action, decision.wake),
                    (Action::Wait, Some(confirm_at)),
                    "told: {told}"
                );
                assert_eq!(roster.owner.as_deref(), Some("one"));
                assert_eq!(roster.contested_since, None, "and no node is refused for nodes that are away");
            } else {
                assert!(matches!(decision.action, Action::Form(_)), "{decision:?}");
            }
        }
    }

    #[test]
    fn before_the_first_world_the_run_belongs_to_the_first_node_with_a_submission() {
        let mut roster = Roster::default();
        roster.set_round(Moment::ZERO, RoundRecord::forming("l".into(), 1, 4, "a".into()), Vec::new());
        put(&mut roster, seconds(1), 3, "two", false);
        put(&mut roster, seconds(1), 2, "one", false);
        put(&mut roster, seconds(1), 1, "", false);
        let Action::Form(form) = decide(&roster, seconds(2), &policy(1)).action else { panic!("no world") };
        let names: Vec<_> = form.members.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!((names.as_slice(), form.submission.as_deref()), (["n1", "n2"].as_slice(), Some("one")));
    }

    #[test]
    fn restored_world_is_of_the_submission_that_its_nodes_name() {
        let mut roster = running(["one", "one"], Some("one"));
        let world = roster.world.values().cloned().collect();
        let restoring =
            RoundRecord { phase: Phase::Restoring, submission: None, ..roster.round.clone().unwrap() };
        roster.set_round(Moment::ZERO, restoring, world);
        put(&mut roster, seconds(1), 3, "two", false);
        assert_eq!(roster.owner.as_deref(), Some("one"));
        assert!(roster.seekers(&policy(1)).all(|seeker| seeker.is_member));
    }
}
