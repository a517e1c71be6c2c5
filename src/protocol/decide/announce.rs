//! Rules while a world runs: which change is announced to its nodes. A round announces one change.

use super::{Action, Decision, facts::Facts};
use crate::{
    protocol::{
        identity::NodeId,
        records::{ChangeKind, ChangeRecord, nodes_text},
        roster::Moment,
    },
    settings::Reaction,
};

/// The rules in their order of precedence, one for each kind of change.
const RULES: [fn(&Facts<'_>) -> Option<Decision>; 4] =
    [announce_lost, announce_leaving, announce_seeking, announce_newcomers];

/// Announces a change, or lets the world run.
pub(super) fn announce_change(facts: &Facts<'_>) -> Decision {
    RULES.iter().find_map(|rule| rule(facts)).unwrap_or_else(|| keep_running(facts))
}

/// Rule `lost`: the record of a member is gone, and its failure is confirmed. A member whose loss the coordinator saw after
/// its own last renewal is confirmed by the next one. Further losses do not delay those that are already confirmed.
fn announce_lost(facts: &Facts<'_>) -> Option<Decision> {
    let Facts { roster, round, now, .. } = *facts;
    if facts.policy.on_member_loss != Reaction::Restart && facts.members() > 0 {
        return None;
    }
    // The members of a restored world that did not return are not known by name.
    let nameless = (round.size as usize).saturating_sub(roster.world.len());
    if nameless > 0 {
        let nodes = nodes_text(nameless);
        let why = format!("lost {nodes} that did not return after the service lost its data");
        return Some(announce(ChangeKind::Lost, why, Vec::new()));
    }
    let lost = roster.absences.iter().filter(|(_, absence)| !absence.announced && now >= absence.confirm_at);
    let (proven, unproven): (Vec<_>, Vec<_>) =
        lost.partition(|(_, absence)| roster.acknowledged >= absence.since);
    let ids = |absences: Vec<(&NodeId, _)>| absences.into_iter().map(|(id, _)| *id).collect::<Vec<_>>();
    let (proven, unproven) = (ids(proven), ids(unproven));
    if !proven.is_empty() {
        let why = format!("lost {}", facts.describe_lost(&proven));
        return Some(announce(ChangeKind::Lost, why, facts.names(&proven)));
    }
    let unproven = (!unproven.is_empty()).then(|| facts.list(&unproven))?;
    Some(Decision::act(Action::Renew, format!("{unproven} may be lost")))
}

/// Rule `leaving`: a member is leaving, or has left after it had marked its record so.
fn announce_leaving(facts: &Facts<'_>) -> Option<Decision> {
    let roster = facts.roster;
    let gone = roster.absences.iter().filter(|(_, absence)| absence.announced).map(|(id, _)| id);
    let here = roster.world.keys().filter(|id| {
        !roster.finished.contains(id) && roster.nodes.get(id).is_some_and(|node| node.record.leaving)
    });
    let leaving: Vec<NodeId> = gone.chain(here).copied().collect();
    let listed = (!leaving.is_empty()).then(|| facts.list(&leaving))?;
    Some(announce(ChangeKind::Leaving, format!("{listed} leaving"), facts.names(&leaving)))
}

/// Rule `seeking`: a member requests the next round.
fn announce_seeking(facts: &Facts<'_>) -> Option<Decision> {
    let listed = (!facts.seeking.is_empty()).then(|| facts.list(&facts.seeking))?;
    let why = format!("{listed} requested the next round");
    Some(announce(ChangeKind::Seeking, why, facts.names(&facts.seeking)))
}

/// Rule `newcomers`: new nodes wait, and the time to admit them has come.
fn announce_newcomers(facts: &Facts<'_>) -> Option<Decision> {
    growth_due(facts).filter(|due| facts.now >= *due)?;
    let ids: Vec<NodeId> = facts.newcomers.iter().map(|newcomer| newcomer.id).collect();
    let verb = if ids.len() == 1 { "wants" } else { "want" };
    let why = format!("{} {verb} to join", facts.list(&ids));
    Some(announce(ChangeKind::Newcomers, why, facts.names(&ids)))
}

/// When the world is to grow, if new nodes wait that complete a larger size: `grow_delay` after the first moment at which
/// they did, or at once if they complete the largest size. A world of which nodes have finished does not grow, unless all
/// of them left without closing the run.
fn growth_due(facts: &Facts<'_>) -> Option<Moment> {
    let Facts { roster, now, policy, .. } = *facts;
    if policy.on_newcomer != Reaction::Restart || facts.newcomers.is_empty() {
        return None;
    }
    let size = roster.larger_size(facts.newcomers.len(), now, policy)?;
    if roster.is_finishing() && (facts.members() > 0 || roster.finished_here().next().is_some()) {
        return None;
    }
    let due = roster.newcomers_since.unwrap_or(now) + policy.grow_delay;
    Some(if policy.sizes().next_above(size).is_none() { due.min(now) } else { due })
}

/// No rule applies. Time alone confirms a loss, lets the world grow, or ends the wait of a node that failed too often.
fn keep_running(facts: &Facts<'_>) -> Decision {
    let absences = facts.roster.absences.values();
    let confirmed = absences.filter(|absence| !absence.announced).map(|absence| absence.confirm_at);
    let waits = facts.cooling.values().map(|wait| wait.until);
    let wake = confirmed.filter(|at| facts.now < *at).chain(growth_due(facts)).chain(waits).min();
    let (round, members) = (facts.round.round, facts.members());
    Decision::wait(format!("round {round} runs with {members} nodes{}", facts.cooling_text()), wake)
}

fn announce(kind: ChangeKind, why: String, names: Vec<String>) -> Decision {
    Decision::act(Action::AnnounceChange(ChangeRecord { kind, why: why.clone(), names }), why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        decide::{decide, fixtures::*},
        fixtures::id,
        roster::Roster,
    };

    #[test]
    fn loss_is_announced_after_one_renewal_and_the_other_nodes_keep_their_ranks() {
        let mut roster = running(3);
        roster.acknowledged = seconds(9.0);
        roster.remove_node(seconds(10.0), id(1), &policy());
        roster.observe(seconds(10.0), &policy());
        assert_eq!(decide(&roster, seconds(10.0), &policy()).action, Action::Renew);
        roster.acknowledged = seconds(10.0);
        let change = told(&mut roster, seconds(10.0));
        assert_eq!((change.kind, change.why.as_str()), (ChangeKind::Lost, "lost n1: no renewal for 3 s"));
        seek(&mut roster, seconds(10.5), 2);
        assert_eq!(decide(&roster, seconds(10.9), &policy()).action, Action::Wait, "n3 has not sought again");
        seek(&mut roster, seconds(11.0), 3);
        let due = decide(&roster, seconds(11.0), &policy()).wake.unwrap();
        assert_eq!(due, seconds(11.5), "a member seeks, so it settles quickly");
        assert_eq!(formed(&roster, due), [(0, "n3".to_owned()), (1, "n2".to_owned())]);
    }

    #[test]
    fn further_losses_do_not_delay_the_announcement_of_those_before_the_renewal() {
        let mut roster = running(4);
        roster.acknowledged = seconds(9.0);
        roster.remove_node(seconds(10.0), id(1), &policy());
        roster.acknowledged = seconds(10.1);
        roster.remove_node(seconds(10.2), id(2), &policy());
        roster.observe(seconds(10.2), &policy());
        assert_eq!(told(&mut roster, seconds(10.2)).names, ["n1"]);
    }

    #[test]
    fn loss_during_an_interruption_is_confirmed_only_after_the_return_window() {
        let mut roster = running(3);
        roster.acknowledged = seconds(5.0);
        roster.remove_node(seconds(10.0), id(1), &policy());
        roster.observe(seconds(10.0), &policy());
        roster.acknowledged = seconds(10.1);
        let waiting = decide(&roster, seconds(10.2), &policy());
        assert_eq!(
            (waiting.action, waiting.wake),
            (Action::Wait, Some(seconds(10.0) + policy().return_window))
        );
        roster.put_node(id(1), record(1), 9);
        roster.observe(seconds(11.0), &policy());
        assert_eq!(decide(&roster, seconds(60.0), &policy()).action, Action::Wait);
    }

    #[test]
    fn new_coordinator_confirms_absences_at_once_only_if_it_observed_the_last_one() {
        for (trusted, told_at) in [(true, Moment::ZERO), (false, policy().return_window)] {
            let mut roster = Roster { acknowledged: Moment::ZERO, ..running(3) };
            roster.nodes.remove(&id(2));
            roster.mark_absent_members(Moment::ZERO, trusted, &policy());
            roster.observe(Moment::ZERO, &policy());
            let decision = decide(&roster, Moment::ZERO, &policy());
            assert_eq!(decision.wake, (!trusted).then_some(told_at), "{decision:?}");
            roster.acknowledged = told_at;
            assert_eq!(told(&mut roster, told_at).names, ["n2"]);
        }
        let mut roster = running(3);
        roster.nodes.remove(&id(2));
        roster.disturbed = Some(Moment::ZERO);
        roster.mark_absent_members(Moment::ZERO, true, &policy());
        let decision = decide(&roster, Moment::ZERO, &policy());
        assert_eq!(decision.wake, Some(policy().return_window), "a break has only just ended");
    }

    #[test]
    fn newcomers_wait_for_the_grow_delay_unless_the_world_would_be_full() {
        let mut roster = running(2);
        roster.put_node(id(3), record(3), 3);
        roster.observe(seconds(5.0), &policy());
        assert_eq!(decide(&roster, seconds(34.9), &policy()).wake, Some(seconds(35.0)));
        assert_eq!(told(&mut roster.clone(), seconds(35.0)).kind, ChangeKind::Newcomers);
        roster.put_node(id(4), record(4), 4);
        roster.observe(seconds(6.0), &policy());
        assert_eq!(told(&mut roster, seconds(6.0)).names, ["n3", "n4"]);
    }
}
