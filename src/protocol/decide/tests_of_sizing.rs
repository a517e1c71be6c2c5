//! Tests of the sizes of worlds, through all rules.

use std::time::Duration;

use super::{Action, decide, fixtures};
use crate::protocol::{
    fixtures::id,
    policy::Policy,
    records::{ChangeKind, NodeRecord, PlanEntry, RoundRecord},
    roster::{Moment, Roster},
    sizing::Sizing,
};

/// A run of 1 to 8 nodes with rules about sizes.
struct Run {
    roster: Roster,
    policy: Policy,
    labels: &'static [&'static str],
}

fn seconds(number: u64) -> Moment {
    Duration::from_secs(number)
}

impl Run {
    fn new(sizing: Sizing, labels: &'static [&'static str]) -> Self {
        let policy = Policy { min_nodes: 1, max_nodes: 8, sizing, ..fixtures::policy() };
        let mut run = Self { roster: Roster::default(), policy, labels };
        run.roster.set_round(Moment::ZERO, RoundRecord::forming("l".into(), 1, 8, "a".into()), Vec::new());
        run
    }

    fn record(&self, number: u64) -> NodeRecord {
        let label = usize::try_from(number - 1).ok().and_then(|index| self.labels.get(index));
        NodeRecord {
            min: 1,
            max: 8,
            sizing: self.policy.sizing.clone(),
            topology: label.map(|label| (*label).to_owned()),
            ..fixtures::record(number)
        }
    }

    fn put(&mut self, now: Moment, number: u64, seeks: u64) {
        let record = NodeRecord { seeks, ..self.record(number) };
        self.roster.put_node(id(number), record, i64::try_from(number).unwrap());
        self.roster.observe(now, &self.policy);
    }

    /// Adds nodes that arrive at the same time.
    fn arrive(&mut self, now: Moment, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            self.put(now, number, 0);
        }
    }

    fn reason(&self, now: Moment) -> String {
        let decision = decide(&self.roster, now, &self.policy);
        assert_eq!(decision.action, Action::Wait, "{}", decision.reason);
        decision.reason
    }

    /// Forms the next world. Returns the names by rank, and the reason.
    fn form(&mut self, now: Moment) -> (String, String) {
        let decision = decide(&self.roster, now, &self.policy);
        let Action::Form(form) = decision.action else { panic!("expected a world, not {decision:?}") };
        let round = RoundRecord {
            round: form.round,
            world: format!("w{}", form.round),
            size: u32::try_from(form.members.len()).unwrap(),
            ..RoundRecord::forming("l".into(), 1, 8, "a".into())
        };
        let names: Vec<String> = form.members.iter().map(|entry| entry.name.clone()).collect();
        self.roster.set_round(now, round, form.members);
        self.roster.committed = true;
        self.roster.observe(now, &self.policy);
        (names.join(" "), decision.reason)
    }

    fn announced(&mut self, now: Moment) -> ChangeKind {
        let decision = decide(&self.roster, now, &self.policy);
        let Action::AnnounceChange(change) = decision.action else { panic!("no change: {decision:?}") };
        let kind = change.kind;
        let round = RoundRecord { change: Some(change), ..self.roster.round.clone().unwrap() };
        let world: Vec<PlanEntry> = self.roster.world.values().cloned().collect();
        self.roster.set_round(now, round, world);
        self.roster.observe(now, &self.policy);
        kind
    }

    /// A member is lost, and other nodes request the next round.
    fn lose(&mut self, now: Moment, number: u64, others: &[u64]) {
        self.roster.acknowledged = now;
        self.roster.remove_node(now, id(number), &self.policy);
        self.roster.observe(now, &self.policy);
        assert_eq!(self.announced(now), ChangeKind::Lost);
        let next = self.roster.round.as_ref().unwrap().round + 1;
        for other in others {
            self.put(now, *other, next);
        }
    }
}

fn list(sizes: &[u32]) -> Sizing {
    Sizing { sizes: sizes.to_vec(), ..Sizing::default() }
}

#[test]
fn world_has_the_largest_size_that_the_nodes_fill_and_the_newest_are_spares() {
    for sizing in [list(&[2, 4, 8]), Sizing { node_unit: Some(2), ..Sizing::default() }] {
        let mut run = Run::new(sizing.clone(), &[]);
        run.arrive(seconds(0), 1..=1);
        assert_eq!(run.reason(seconds(99)), "1 node here, 0 used, the next size is 2");
        run.arrive(seconds(0), 2..=3);
        assert_eq!(run.reason(seconds(29)), "3 nodes here, 2 used, the next size is 4");
        run.arrive(seconds(1), 4..=5);
        assert_eq!(run.form(seconds(30)).0, "n1 n2 n3 n4", "{sizing:?}");
        run.arrive(seconds(31), 6..=8);
        if sizing.node_unit.is_some() {
            continue;
        }
        assert_eq!(run.announced(seconds(31)), ChangeKind::Newcomers, "they fill the largest size");
    }
}

#[test]
fn loss_shrinks_to_the_next_size_and_names_the_members_that_become_spares() {
    let mut run = Run::new(list(&[2, 4, 8]), &[]);
    run.arrive(seconds(0), 1..=4);
    assert_eq!(run.form(seconds(30)).0, "n1 n2 n3 n4");
    run.lose(seconds(40), 1, &[2, 3, 4]);
    assert_eq!(run.reason(seconds(40)), "waiting for departures to come to an end");
    let (names, reason) = run.form(seconds(42));
    assert_eq!(names, "n3 n2", "n2 keeps its rank");
    let end = "lost n1: no renewal for 3 s; 3 nodes here, 2 used, the next size is 4, so these members become spares: n4";
    assert_eq!(reason, end);
}

#[test]
fn newcomers_are_announced_only_when_they_complete_a_larger_size_with_the_spares() {
    let mut run = Run::new(list(&[2, 4, 8]), &[]);
    run.arrive(seconds(0), 1..=3);
    assert_eq!(run.form(seconds(30)).0, "n1 n2");
    assert_eq!(run.reason(seconds(1_000)), "round 1 runs with 2 nodes", "the spare alone completes nothing");
    run.arrive(seconds(1_000), 4..=4);
    assert_eq!(run.reason(seconds(1_029)), "round 1 runs with 2 nodes");
    assert_eq!(run.announced(seconds(1_030)), ChangeKind::Newcomers);
    run.put(seconds(1_031), 1, 2);
    run.put(seconds(1_031), 2, 2);
    run.arrive(seconds(1_031), 5..=5);
    assert_eq!(run.form(seconds(1_032)).0, "n1 n2 n3 n4");
}

#[test]
fn with_topology_nodes_that_break_up_a_group_are_spares() {
    let mut run = Run::new(list(&[2, 4]), &["x", "y", "x", "y", "y", "y"]);
    run.arrive(seconds(0), 1..=6);
    assert_eq!(run.form(seconds(1)).0, "n2 n4 n5 n6", "the whole group, not the first to arrive");
}

#[test]
fn first_world_waits_for_the_wanted_number_and_later_ones_do_not() {
    let wanted = || Sizing { wanted: Some(3), ..Sizing::default() };
    let mut run = Run::new(wanted(), &[]);
    run.arrive(seconds(0), 1..=2);
    assert_eq!(run.reason(seconds(1)), "2 of at most 8 nodes are here, and the first world wants 3");
    run.arrive(seconds(1), 3..=3);
    assert_eq!(run.form(seconds(1)).0, "n1 n2 n3", "at once");
    run.lose(seconds(2), 1, &[2, 3]);
    assert_eq!(run.form(seconds(4)).0, "n3 n2", "two are enough for a later round");

    let mut run = Run::new(wanted(), &[]);
    run.arrive(seconds(0), 1..=2);
    assert_eq!(run.form(seconds(30)).0, "n1 n2", "after `last_call_timeout` with what is allowed");
}

#[test]
fn spare_does_not_get_the_place_of_a_member_that_may_return_from_an_interruption() {
    let mut run = Run::new(list(&[2, 4]), &[]);
    run.arrive(seconds(0), 1..=3);
    assert_eq!(run.form(seconds(30)).0, "n1 n2");
    // The last acknowledged renewal is too old for a loss to be confirmed at once.
    run.roster.remove_node(seconds(60), id(2), &run.policy);
    run.roster.observe(seconds(60), &run.policy);
    assert_eq!(run.reason(seconds(60)), "round 1 runs with 1 nodes");
    let confirmed = seconds(60) + run.policy.return_window;
    assert_eq!(decide(&run.roster, seconds(60), &run.policy).wake, Some(confirmed));
    run.roster.acknowledged = confirmed;
    assert_eq!(run.announced(confirmed), ChangeKind::Lost);
}

#[test]
fn node_of_other_sizes_is_not_counted() {
    let mut run = Run::new(list(&[2, 4]), &[]);
    run.arrive(seconds(0), 1..=1);
    let other = NodeRecord { sizing: list(&[2, 8]), ..run.record(2) };
    run.roster.put_node(id(2), other, 2);
    run.roster.observe(seconds(0), &run.policy);
    assert_eq!(run.reason(seconds(99)), "1 node here, 0 used, the next size is 2");
}
