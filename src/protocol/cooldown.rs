//! How long a node that fails repeatedly waits before it gets another place.
//!
//! Each time such a node joins and fails, two worlds end. So the coordinator counts by name how often in a row the
//! departure of a node ended a world, and the name waits longer each time. The counts are part of `ctl/round` and
//! outlive the coordinator. The times are measured on the coordinator's own clock, and start again with the next
//! coordinator.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    identity::NodeId,
    policy::Policy,
    ranking::base_name,
    records::{ChangeKind, FailureRecord, NAMES, RoundRecord, some_names},
    roster::{Moment, Roster, Seen},
};

/// After this time in worlds, a node's count starts again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);
/// The maximum number of names that are counted. Those with the most failures are kept.
const LONGEST_LIST: usize = 64;

/// The warning for a node of this name while it is outside the world of `round`. It waits only if enough other nodes
/// are present ([`cooling`]), which it does not know.
pub fn wait_of(round: &RoundRecord, name: &str) -> Option<String> {
    let failure = round.failures.iter().find(|failure| failure.name == base_name(name))?;
    let waits = !failure.cooldown().is_zero() && round.has_world();
    waits.then(|| format!("{} (cool-down from round {} on)", failure.warning(round.min), round.round))
}

/// The failures in a row by name, including those that ended the present world.
pub fn failures(roster: &Roster, now: Moment) -> Vec<FailureRecord> {
    let Some(round) = &roster.round else { return Vec::new() };
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for failure in &round.failures {
        counts.insert(&failure.name, failure.count);
    }
    for name in ended_by(roster, round, now) {
        let count = counts.entry(name).or_default();
        *count = count.saturating_add(1);
    }
    let record = |(name, count): (&str, u32)| FailureRecord { name: name.to_owned(), count };
    let mut failures: Vec<FailureRecord> = counts.into_iter().map(record).collect();
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.count));
    failures.truncate(LONGEST_LIST);
    failures
}

/// The names of the nodes whose departure ended the world of `round`.
fn ended_by<'a>(roster: &'a Roster, round: &'a RoundRecord, now: Moment) -> BTreeSet<&'a str> {
    let Some(change) = &round.change else { return BTreeSet::new() };
    match change.kind {
        ChangeKind::Lost | ChangeKind::Leaving => change.names.iter().map(|name| base_name(name)).collect(),
        // The workers of the other nodes fail before the lease of a lost node expires, so these nodes may request the
        // next round first.
        ChangeKind::Seeking => {
            let lost =
                roster.absences.iter().filter(|(_, absence)| absence.announced || now >= absence.confirm_at);
            let leaving = roster.world.keys().filter(|id| {
                !roster.finished.contains(id) && roster.nodes.get(id).is_some_and(|node| node.record.leaving)
            });
            lost.map(|(id, _)| id).chain(leaving).map(|id| base_name(roster.name(*id))).collect()
        }
        ChangeKind::Newcomers | ChangeKind::Closed | ChangeKind::Replaced => BTreeSet::new(),
    }
}

/// A node that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cooling {
    /// The end of the wait.
    pub until: Moment,
    /// The failures that it waits for.
    pub failure: FailureRecord,
}

/// The new nodes that must wait. If fewer than `min_nodes` nodes would remain without them, none of them waits. A node
/// that hosts the service never waits.
pub fn cooling(roster: &Roster, policy: &Policy, now: Moment) -> BTreeMap<NodeId, Cooling> {
    let Some(round) = roster.round.as_ref().filter(|round| round.has_world()) else { return BTreeMap::new() };
    let ended_by = ended_by(roster, round, now);
    let told = roster.change_told.unwrap_or(now);
    let since = |failure: &FailureRecord| {
        let now_ended = ended_by.contains(failure.name.as_str());
        if now_ended { told } else { roster.failed_at.get(&failure.name).copied().unwrap_or(now) }
    };
    let waits: BTreeMap<String, Cooling> = failures(roster, now)
        .into_iter()
        .map(|failure| (since(&failure) + failure.cooldown(), failure))
        .filter(|(until, failure)| now < *until && !failure.cooldown().is_zero())
        .map(|(until, failure)| (failure.name.clone(), Cooling { until, failure }))
        .collect();
    if waits.is_empty() {
        return BTreeMap::new();
    }
    let mut others = BTreeSet::new();
    let mut cooling = BTreeMap::new();
    for Seen { id, node, is_member } in roster.seekers(policy) {
        let wait = waits.get(base_name(&node.record.name));
        match wait.filter(|_| !is_member && !node.record.hosts) {
            Some(wait) => {
                cooling.insert(id, wait.clone());
            }
            None => {
                others.insert(id);
            }
        }
    }
    if round.change.is_none() {
        others.extend(roster.active_members().map(|(id, _)| id));
    }
    if policy.sizes().largest(others.len()).is_none() { BTreeMap::new() } else { cooling }
}

/// The nodes that wait, for reasons and logs. Empty if no node waits.
pub fn describe(cooling: &BTreeMap<NodeId, Cooling>) -> String {
    let messages: BTreeSet<String> = cooling.values().map(|wait| wait.failure.message()).collect();
    if messages.is_empty() {
        return String::new();
    }
    format!("; {}", some_names(messages.iter().map(String::as_str).take(NAMES)))
}

/// The failures that still count after members that have stayed long enough were forgiven theirs. If none is forgiven,
/// when to check again.
pub fn forgive(roster: &Roster, now: Moment) -> Result<Vec<FailureRecord>, Option<Moment>> {
    let running = roster.round.as_ref().filter(|round| round.change.is_none());
    let Some(round) = running.filter(|round| !round.failures.is_empty()) else { return Err(None) };
    let due = |failure: &FailureRecord| {
        let members = roster.active_members().filter(|(id, _)| base_name(roster.name(*id)) == failure.name);
        members.filter_map(|(id, _)| Some(*roster.member_since.get(&id)? + FORGIVEN_AFTER)).min()
    };
    let kept: Vec<FailureRecord> =
        round.failures.iter().filter(|failure| due(failure).is_none_or(|due| now < due)).cloned().collect();
    if kept.len() < round.failures.len() { Ok(kept) } else { Err(kept.iter().filter_map(due).min()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        decide::{Action, decide},
        fixtures::{self, id, policy, seconds},
        records::{ChangeRecord, NodeRecord, Phase, PlanEntry},
        roster::Absence,
    };

    fn record(name: &str, min: u32, seeks: u64) -> NodeRecord {
        NodeRecord { name: name.into(), min, seeks, ..fixtures::record() }
    }

    fn failed(name: &str, count: u32) -> FailureRecord {
        FailureRecord { name: name.into(), count }
    }

    fn told(kind: ChangeKind, names: &[&str]) -> ChangeRecord {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        ChangeRecord { kind, why: "why".into(), names }
    }

    /// A run whose nodes a and b are in round 1, in which `bad` has failed so often before.
    fn running(count: u32, min: u32) -> Roster {
        let mut roster = Roster::default();
        let world = [(1, "a", 0), (2, "b", 1)].map(|(number, name, rank)| {
            roster.put_node(id(number), record(name, min, 0), i64::try_from(number).unwrap());
            PlanEntry { id: id(number), name: name.into(), label: None, rank }
        });
        let round = RoundRecord {
            round: 1,
            world: "w".into(),
            size: 2,
            phase: Phase::Running,
            failures: if count == 0 { Vec::new() } else { vec![failed("bad", count)] },
            ..RoundRecord::forming("l".into(), min, 4, "a".into())
        };
        roster.set_round(seconds(100), round, world.to_vec());
        roster.observe(seconds(100), &policy(min));
        roster
    }

    fn change(roster: &mut Roster, now: Moment, change: Option<ChangeRecord>) {
        let world = roster.world.values().cloned().collect();
        let round = RoundRecord { change, ..roster.round.clone().unwrap() };
        roster.set_round(now, round, world);
    }

    #[test]
    fn two_failures_are_free_and_each_further_one_doubles_the_wait() {
        for (count, expected) in [
            (0, 0),
            (1, 0),
            (2, 0),
            (3, 10),
            (4, 20),
            (5, 40),
            (6, 80),
            (7, 160),
            (8, 300),
            (9, 300),
            (u32::MAX, 300),
        ] {
            assert_eq!(failed("bad", count).cooldown(), seconds(expected), "{count}");
        }
        assert_eq!(failed("bad", 4).message(), "`bad` waits 20 s because it failed 4 times in a row");
    }

    #[test]
    fn only_a_departure_that_ended_the_world_is_a_failure() {
        let absent =
            Absence { since: seconds(101), confirm_at: seconds(110), announced: false, witnessed: true };
        for (kind, names, at, expected) in [
            (ChangeKind::Lost, &["bad#2"][..], 102, vec![failed("bad", 4)]),
            (ChangeKind::Leaving, &["a", "bad"], 102, vec![failed("bad", 4), failed("a", 1)]),
            (ChangeKind::Newcomers, &["bad"], 120, vec![failed("bad", 3)]),
            // Node b is away, and the nodes that lost their connections to it know that. It has failed once that is
            // confirmed.
            (ChangeKind::Seeking, &["a"], 120, vec![failed("bad", 3), failed("b", 1)]),
            (ChangeKind::Seeking, &["a"], 102, vec![failed("bad", 3)]),
        ] {
            let mut roster = running(3, 1);
            roster.absences.insert(id(2), absent);
            change(&mut roster, seconds(102), Some(told(kind, names)));
            assert_eq!(failures(&roster, seconds(at)), expected, "{kind:?} {names:?}");
        }
        assert_eq!(failures(&running(3, 1), seconds(102)), [failed("bad", 3)], "while the world runs");
        assert_eq!(failures(&Roster::default(), seconds(102)), []);
    }

    #[test]
    fn newcomer_of_that_name_neither_grows_the_world_nor_gets_a_place_before_its_time() {
        for (now, waits) in [(119, true), (120, false)] {
            let mut roster = running(4, 2);
            roster.put_node(id(3), record("bad#2", 2, 0), 3);
            roster.observe(seconds(now), &policy(2));
            let decision = decide(&roster, seconds(now), &policy(2));
            if waits {
                assert_eq!((decision.action, decision.wake), (Action::Wait, Some(seconds(120))));
                let reason = "round 1 runs with 2 nodes; `bad` waits 20 s because it failed 4 times in a row";
                assert_eq!(decision.reason, reason);
            } else {
                assert!(matches!(decision.action, Action::AnnounceChange(_)), "{decision:?}");
            }
            // Meanwhile the other nodes form another world, for another reason.
            change(&mut roster, seconds(now), Some(told(ChangeKind::Seeking, &["a"])));
            for (number, name) in [(1, "a"), (2, "b")] {
                roster.put_node(id(number), record(name, 2, 2), i64::try_from(number).unwrap());
            }
            roster.observe(seconds(now), &policy(2));
            let decision = decide(&roster, seconds(now), &policy(2));
            let Action::Form(form) = decision.action else { panic!("no world") };
            assert_eq!(
                (form.members.len(), form.failures),
                (if waits { 2 } else { 3 }, vec![failed("bad", 4)])
            );
            assert_eq!(decision.reason.contains("`bad` waits 20 s"), waits, "{}", decision.reason);
        }
    }

    #[test]
    fn no_node_waits_that_is_needed_or_hosts_the_service_or_has_another_name() {
        for (name, hosts, min, waits) in [
            ("bad", false, 2, true),
            ("bad", false, 3, false),
            ("bad", true, 2, false),
            ("other", false, 2, false),
        ] {
            let mut roster = running(4, min);
            roster.put_node(id(3), NodeRecord { hosts, ..record(name, min, 0) }, 3);
            let cooling = cooling(&roster, &policy(min), seconds(101));
            assert_eq!(cooling.contains_key(&id(3)), waits, "{name} {hosts} {min}");
        }
    }

    #[test]
    fn wait_starts_when_the_end_of_the_world_was_announced_or_with_the_coordinator() {
        let mut roster = running(2, 1);
        roster.put_node(id(3), record("bad", 1, 0), 3);
        change(&mut roster, seconds(200), Some(told(ChangeKind::Lost, &["bad"])));
        let until =
            |roster: &Roster, now| cooling(roster, &policy(1), now).values().next().map(|wait| wait.until);
        roster.put_node(id(1), record("a", 1, 2), 1);
        assert_eq!(until(&roster, seconds(205)), Some(seconds(210)), "the third failure in a row");
        let next = RoundRecord {
            round: 2,
            world: "x".into(),
            change: None,
            failures: failures(&roster, seconds(206)),
            ..roster.round.clone().unwrap()
        };
        let world: Vec<PlanEntry> = roster.world.values().cloned().collect();
        roster.set_round(seconds(206), next.clone(), world.clone());
        assert_eq!(until(&roster, seconds(207)), Some(seconds(210)));
        let mut another = Roster { nodes: roster.nodes.clone(), ..Roster::default() };
        another.set_round(seconds(50), next.clone(), world);
        assert_eq!(until(&another, seconds(51)), Some(seconds(60)), "a new coordinator has its own clock");
        assert_eq!(
            wait_of(&next, "bad#2").as_deref(),
            Some(
                "`bad` failed 3 times in a row, so it waits 10 s while at least 1 other node can form a round (cool-down \
                 from round 2 on)"
            )
        );
        assert_eq!(wait_of(&next, "a"), None);
    }

    #[test]
    fn member_that_stays_for_five_minutes_has_not_failed() {
        let mut roster = running(4, 1);
        assert_eq!(forgive(&roster, seconds(101)), Err(None), "it is not here");
        let mut world: Vec<PlanEntry> = roster.world.values().cloned().collect();
        world.push(PlanEntry { id: id(3), name: "bad".into(), label: None, rank: 2 });
        roster.put_node(id(3), record("bad", 1, 0), 3);
        let round = RoundRecord { round: 2, world: "x".into(), size: 3, ..roster.round.clone().unwrap() };
        roster.set_round(seconds(200), round.clone(), world.clone());
        roster.observe(seconds(200), &policy(1));
        assert_eq!(forgive(&roster, seconds(201)), Err(Some(seconds(500))));
        assert_eq!(decide(&roster, seconds(201), &policy(1)).wake, Some(seconds(500)));
        // Worlds that follow each other count together.
        roster.set_round(seconds(300), RoundRecord { round: 3, world: "y".into(), ..round }, world);
        roster.observe(seconds(500), &policy(1));
        assert_eq!(decide(&roster, seconds(500), &policy(1)).action, Action::KeepFailures(Vec::new()));
    }

    #[test]
    fn list_of_failures_is_bounded() {
        let mut roster = running(0, 1);
        let many: Vec<FailureRecord> = (0..200).map(|number| failed(&format!("n{number}"), number)).collect();
        let round = RoundRecord { failures: many, ..roster.round.clone().unwrap() };
        roster.round = Some(round);
        let kept = failures(&roster, seconds(101));
        assert_eq!((kept.len(), kept[0].count), (LONGEST_LIST, 199));
    }
}
