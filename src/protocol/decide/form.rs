//! Rules for the next world, while there is none or a change of the present one was announced. Each rule waits for one
//! condition. When all of them hold, the world forms.

use std::{borrow::Cow, collections::BTreeSet};

use super::{Action, Decision, Form, WaitsFor, facts::Facts};
use crate::protocol::{
    cooldown,
    identity::NodeId,
    policy::{GATHER_LIMIT, GATHER_QUIET, GATHER_SEEN},
    ranking,
    records::{ChangeKind, are_rivals},
    selection,
};

/// The rules in order.
const RULES: [fn(&Facts<'_>) -> Option<Decision>; 5] =
    [wait_for_members, end_finished_run, wait_for_host, wait_for_departures, wait_for_nodes];

/// Forms the next world, or waits for one of its conditions.
pub(super) fn form_world(facts: &Facts<'_>) -> Decision {
    RULES.iter().find_map(|rule| rule(facts)).unwrap_or_else(|| commit_world(facts))
}

/// Rule: members of the last world that are present request the next round, or the time for that has passed. The world
/// then forms without the others.
fn wait_for_members(facts: &Facts<'_>) -> Option<Decision> {
    if facts.staying.is_empty() {
        return None;
    }
    let due = facts.roster.change_told.unwrap_or(facts.now) + facts.policy.rejoin_time(facts.round.size);
    let waiting = || format!("waiting for {} to request the next round", facts.list(&facts.staying));
    (facts.now < due).then(|| Decision::wait_for(WaitsFor::Members, waiting(), Some(due)))
}

/// Rule: no node has finished, or a member and enough nodes seek. Otherwise the run cannot continue: the coordinator closes
/// it if a member seeks, and waits until the finished nodes close it if none does.
fn end_finished_run(facts: &Facts<'_>) -> Option<Decision> {
    let (roster, left) = (facts.roster, facts.candidates());
    let enough = facts.size().is_some();
    if !roster.is_finishing() {
        return None;
    }
    if facts.kept.is_empty() {
        let is_over = !enough || roster.finished_here().next().is_some();
        let why = "the world has finished; waiting for its closing";
        return is_over.then(|| Decision::wait_for(WaitsFor::Closing, why, None));
    }
    let finished = roster.finished.len();
    let min = match facts.policy.sizes() {
        sizes if sizes.is_restricted() => format!("the smallest size, {}", sizes.smallest()),
        sizes => format!("min_nodes = {}", sizes.min),
    };
    let why = || format!("{finished} nodes have finished, and {left} remain, fewer than {min}");
    (!enough).then(|| Decision::act(Action::Close, why()))
}

/// Rule: the node that hosts the service is present. A world without it would lose its service when that node's process
/// ends.
fn wait_for_host(facts: &Facts<'_>) -> Option<Decision> {
    let host = facts.round.host.as_ref().filter(|_| facts.roster.host().is_none())?;
    let why = format!("waiting for `{host}`, which hosts the service, to return");
    Some(Decision::wait_for(WaitsFor::Host, why, None))
}

/// Rule: departures have ended. etcd expires the leases of a lost rack one by one, but observers report deaths at once.
fn wait_for_departures(facts: &Facts<'_>) -> Option<Decision> {
    let (first, last) = facts.roster.departures.filter(|_| facts.round.has_world())?;
    let mut lapsed = facts.roster.absences.keys().filter(|id| !facts.roster.lost.contains_key(id));
    let quiet = if lapsed.next().is_none() { GATHER_SEEN } else { GATHER_QUIET };
    let due = (last + quiet).min(first + GATHER_LIMIT);
    let why = "waiting for departures to come to an end";
    (facts.now < due).then(|| Decision::wait_for(WaitsFor::Departures, why, Some(due)))
}

/// Rule: the nodes that seek fill the largest size, or as many as the first world wants, or any size and the time for more
/// nodes has passed. A world whose nodes are all accounted for does not wait for more.
fn wait_for_nodes(facts: &Facts<'_>) -> Option<Decision> {
    let Facts { round, now, policy, .. } = *facts;
    let (here, sizes) = (facts.candidates(), policy.sizes());
    let Some(size) = facts.size() else {
        let missing = || format!("{here} of at least {} nodes are here", sizes.min);
        let why = sizes.describe(here).unwrap_or_else(missing);
        return Some(Decision::wait_for(WaitsFor::MissingNodes, why, None));
    };
    let wanted = policy.sizing.wanted.filter(|_| !round.has_world());
    if sizes.next_above(size).is_none() || wanted.is_some_and(|wanted| here >= wanted as usize) {
        return None;
    }
    if facts.is_complete() {
        return None;
    }
    let patience = if facts.kept.is_empty() { policy.last_call_timeout } else { policy.settle_time };
    let due = facts.roster.enough_since.unwrap_or(now) + patience;
    let waiting = || {
        let most = || format!("{here} of at most {} nodes are here", sizes.max);
        let here = sizes.describe(here).unwrap_or_else(most);
        let wanted =
            wanted.map_or_else(String::new, |wanted| format!(", and the first world wants {wanted}"));
        format!("{here}{wanted}{}", facts.cooling_text())
    };
    (now < due).then(|| Decision::wait_for(WaitsFor::MoreNodes, waiting(), Some(due)))
}

/// All conditions hold.
fn commit_world(facts: &Facts<'_>) -> Decision {
    let Facts { roster, round, now, .. } = *facts;
    let size = facts.size().unwrap_or(0);
    let (mut kept, mut newcomers) = (Cow::Borrowed(&facts.kept), facts.newcomers.clone());
    if facts.candidates() > size as usize {
        let members = kept.iter().filter_map(|id| Some(roster.nodes.get(id)?.newcomer(*id))).collect();
        let chosen = selection::select(members, newcomers.clone(), size as usize);
        kept.to_mut().retain(|id| chosen.contains(id));
        newcomers.retain(|newcomer| chosen.contains(&newcomer.id));
    }
    let members = ranking::rank(roster.world.values(), &kept, newcomers, size);
    let newcomers = u32::try_from(members.len() - kept.len()).unwrap_or(u32::MAX);
    let took = now.saturating_sub(roster.wanted_since.unwrap_or(now));
    let named = facts.names_submission.then(|| roster.submission_of(members.iter().map(|entry| &entry.id)));
    let named = named.flatten().map(str::to_owned);
    let submission = named.or_else(|| round.submission.clone().filter(|_| !kept.is_empty()));
    // A world of another submission starts without counts of failures.
    let same_job = !are_rivals(round.submission.as_deref(), submission.as_deref());
    let failures = if same_job { cooldown::failures(roster, now) } else { Vec::new() };
    let number = roster.highest_round.max(round.round) + 1;
    let form = Form { round: number, members, submission, failures, newcomers, took };
    Decision::act(Action::Form(form), reason(facts, &kept))
}

/// Why the world forms: the change that was announced, and every other difference from the last world.
fn reason(facts: &Facts<'_>, kept: &BTreeSet<NodeId>) -> String {
    let roster = facts.roster;
    let change = facts.round.change.as_ref();
    let mut reason = change.map_or_else(|| "first world".to_owned(), |change| change.why.clone());
    // A loss breaks the workers of the other nodes, which may request another round before the lease of the lost node ends.
    let announced = change.map_or(&[][..], |change| change.names.as_slice());
    let lost = roster.absences.iter().filter(|(_, absence)| !absence.announced).map(|(id, _)| *id);
    let is_announced = |id: NodeId| announced.iter().any(|known| known == roster.name(id));
    let unannounced: Vec<NodeId> = lost.filter(|id| !is_announced(*id)).collect();
    if !unannounced.is_empty() {
        let lost = format!("lost {}", facts.describe_lost(&unannounced));
        reason = match change {
            Some(change) if change.kind == ChangeKind::Lost => format!("{reason}; {lost}"),
            // The loss is the cause of the request of another node.
            _ => format!("{lost}; {reason}"),
        };
    }
    if !facts.staying.is_empty() {
        let names = facts.list(&facts.staying);
        reason = format!("{reason}; excluded, because they did not request the round in time: {names}");
    }
    let spares: Vec<NodeId> = facts.kept.difference(kept).copied().collect();
    if !spares.is_empty() {
        let sizes = facts.policy.sizes().describe(facts.candidates()).unwrap_or_default();
        reason = format!("{reason}; {sizes}, so these members become spares: {}", facts.list(&spares));
    }
    reason + &facts.cooling_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        decide::{decide, fixtures::*},
        fixtures::id,
        records::{NodeRecord, RoundRecord},
        roster::{Moment, Roster},
    };

    #[test]
    fn no_world_is_formed_without_the_node_that_hosts_the_service() {
        let mut roster = running(3);
        let round = RoundRecord { host: Some("n1".into()), ..roster.round.clone().unwrap() };
        let world = roster.world.values().cloned().collect();
        roster.set_round(Moment::ZERO, round, world);
        roster.acknowledged = seconds(4.9);
        roster.remove_node(seconds(5.0), id(1), &policy());
        roster.acknowledged = seconds(5.1);
        roster.observe(seconds(5.1), &policy());
        told(&mut roster, seconds(5.1));
        for number in [2, 3] {
            roster.put_node(id(number), NodeRecord { seeks: 2, ..record(number) }, 9);
        }
        roster.observe(seconds(6.0), &policy());
        let decision = decide(&roster, seconds(60.0), &policy());
        assert_eq!(decision.action, Action::Wait);
        assert!(decision.reason.contains("`n1`, which hosts"), "{}", decision.reason);

        roster.put_node(id(4), NodeRecord { name: "n1".into(), hosts: true, ..record(4) }, 10);
        roster.observe(seconds(60.0), &policy());
        let Action::Form(form) = decide(&roster, seconds(70.0), &policy()).action else { panic!("no world") };
        assert_eq!(form.members.len(), 3);
    }

    #[test]
    fn full_house_forms_at_once_and_min_nodes_after_the_last_call() {
        let mut roster = Roster::default();
        assert_eq!(decide(&roster, Moment::ZERO, &policy()).action, Action::BeginLife);
        roster.set_round(Moment::ZERO, round(0, 0), vec![]);
        roster.observe(Moment::ZERO, &policy());
        roster.put_node(id(1), record(1), 1);
        roster.observe(seconds(1.0), &policy());
        assert_eq!(decide(&roster, seconds(100.0), &policy()).action, Action::Wait);
        roster.put_node(id(2), record(2), 2);
        roster.observe(seconds(2.0), &policy());
        let waiting = decide(&roster, seconds(3.0), &policy());
        assert_eq!((waiting.action, waiting.wake), (Action::Wait, Some(seconds(32.0))));
        roster.put_node(id(3), record(3), 3);
        roster.observe(seconds(20.0), &policy());
        assert_eq!(
            decide(&roster, seconds(31.9), &policy()).action,
            Action::Wait,
            "arrivals do not restart it"
        );
        assert_eq!(formed(&roster, seconds(32.0)).len(), 3);
        roster.put_node(id(4), record(4), 4);
        roster.observe(seconds(21.0), &policy());
        assert_eq!(formed(&roster, seconds(21.0)).len(), 4);
    }

    #[test]
    fn member_that_does_not_seek_again_in_time_is_excluded_and_named() {
        let mut roster = running(4);
        seek(&mut roster, seconds(1.0), 1);
        assert_eq!(told(&mut roster, seconds(1.0)).kind, ChangeKind::Seeking);
        seek(&mut roster, seconds(2.0), 2);
        seek(&mut roster, seconds(3.0), 3);
        let due = decide(&roster, seconds(3.0), &policy()).wake.unwrap();
        assert!(due > seconds(91.0) && due < seconds(91.1), "{due:?}");
        assert_eq!(formed(&roster, due).len(), 3);
        assert!(decide(&roster, due, &policy()).reason.ends_with("in time: n4"));
    }

    #[test]
    fn loss_that_was_not_announced_is_named_in_the_reason() {
        let mut roster = running(3);
        seek(&mut roster, seconds(1.0), 2);
        told(&mut roster, seconds(1.0));
        seek(&mut roster, seconds(1.1), 3);
        roster.remove_node(seconds(3.0), id(1), &policy());
        roster.observe(seconds(3.0), &policy());
        let decision = decide(&roster, seconds(4.0), &policy());
        assert!(matches!(decision.action, Action::Form(_)));
        assert_eq!(decision.reason, "lost n1: no renewal for 3 s; n2 requested the next round");
    }

    #[test]
    fn finished_members_are_neither_waited_for_nor_lost() {
        let mut roster = running(3);
        roster.put_finished(id(1));
        roster.observe(seconds(1.0), &policy());
        roster.remove_node(seconds(2.0), id(1), &policy());
        roster.observe(seconds(2.0), &policy());
        assert_eq!(decide(&roster, seconds(60.0), &policy()).action, Action::Wait);
        roster.acknowledged = seconds(61.0);
        roster.remove_node(seconds(61.0), id(2), &policy());
        roster.observe(seconds(61.0), &policy());
        told(&mut roster, seconds(61.0));
        seek(&mut roster, seconds(62.0), 3);
        assert_eq!(
            decide(&roster, seconds(62.0), &policy()).action,
            Action::Close,
            "one is fewer than min_nodes"
        );
    }
}
