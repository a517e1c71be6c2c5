//! What a coordinator does next, and why: one pure function of what it knows and of the time.

use std::{collections::BTreeSet, time::Duration};

use super::{
    cooldown::{self, FailureRecord},
    identity::NodeId,
    policy::{GATHER_LIMIT, GATHER_QUIET, Policy},
    ranking,
    records::{ChangeKind, ChangeRecord, LastWorld, NAMES, Phase, PlanEntry, RoundRecord, some_names},
    roster::{Moment, Roster},
    submission::{self, RefusalRecord, refuse},
};
use crate::settings::Reaction;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Renew the coordinator's own lease, and decide again once that is acknowledged: a break that ended a member's
    /// lease may be about to end this one.
    Renew,
    /// There is no round: begin a life.
    BeginLife,
    /// Put back the world of before the store was lost.
    Restore {
        /// Its life, round and size; the rank is nobody's.
        world: LastWorld,
        /// Those of its nodes that are back.
        members: Vec<PlanEntry>,
        /// The submission that they are of, if they name one.
        submission: Option<String>,
    },
    /// The world that was put back has waited for its nodes for long enough.
    EndRestoring,
    /// Refuse nodes of another submission.
    Refuse(RefusalRecord),
    /// Count only these failures from now on: the nodes of the others have stayed long enough.
    Forgive(Vec<FailureRecord>),
    /// Tell the world's nodes to form again.
    Tell(ChangeRecord),
    /// Commit a world.
    Form(Form),
    /// Close the run as ended: those who are left can never be enough.
    Close,
}

/// A world to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The number of the round.
    pub round: u64,
    /// The world by rank.
    pub members: Vec<PlanEntry>,
    /// The submission that they are of, if they name one.
    pub submission: Option<String>,
    /// How often in a row nodes have failed.
    pub failures: Vec<FailureRecord>,
    /// How many of them were not in the last world.
    pub newcomers: u32,
    /// How long nodes waited for it.
    pub took: Duration,
}

/// What to do, why, and when time alone could change the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub action: Action,
    /// Why, in words that go into logs and records.
    pub reason: String,
    /// When to decide again if nothing happens before.
    pub wake: Option<Moment>,
}

impl Decision {
    fn now(action: Action, reason: impl Into<String>) -> Self {
        Self { action, reason: reason.into(), wake: None }
    }

    fn wait(reason: impl Into<String>, wake: Option<Moment>) -> Self {
        Self { action: Action::Wait, reason: reason.into(), wake }
    }

    fn or_at(mut self, moment: Option<Moment>) -> Self {
        self.wake = self.wake.into_iter().chain(moment).min();
        self
    }
}

/// Decides.
pub fn decide(roster: &Roster, now: Moment, policy: &Policy) -> Decision {
    if let Some(decision) = restore(roster) {
        return decision;
    }
    let Some(round) = &roster.round else { return Decision::now(Action::BeginLife, "the run is new") };
    if round.has_world() && round.phase == Phase::Restoring {
        return end_restoring(roster, now);
    }
    let look_at = match refuse(roster, now, policy) {
        Ok(refusal) => return refusal,
        Err(look_at) => look_at,
    };
    let forms = !round.has_world() || round.change.is_some();
    let next = if forms { form(roster, round, now, policy) } else { tell(roster, round, now, policy) };
    match cooldown::forgive(roster, now) {
        Ok(failures) if next.action == Action::Wait => {
            Decision::now(Action::Forgive(failures), "nodes that had failed have stayed long enough")
        }
        Ok(_) => next.or_at(look_at),
        Err(forgive_at) => next.or_at(look_at).or_at(forgive_at),
    }
}

/// A world that is newer than what stands in the store: the store has lost it, with everything or back to a backup.
fn restore(roster: &Roster) -> Option<Decision> {
    let round = roster.round.as_ref().filter(|round| round.has_world());
    let is_newer = |world: &LastWorld| match round {
        None => true,
        Some(round) if round.phase == Phase::Restoring => {
            world.order() > (round.round, &round.life, &round.world)
        }
        // A world that runs gives way to a later one of its own life only: of another's it is the rightful heir.
        Some(round) => world.life == round.life && world.round > round.round,
    };
    if roster.committed {
        return None;
    }
    let records = || {
        let of_this_life = roster.nodes.iter().filter(|(_, node)| roster.is_of_this_life(node));
        of_this_life.filter_map(|(id, node)| Some((*id, &node.record, node.record.world.as_ref()?)))
    };
    let newer = records().filter(|(_, _, world)| is_newer(world));
    let (_, _, world) = newer.max_by_key(|(_, _, world)| world.order())?;
    let members = records().filter(|(_, _, own)| own.is_same_world(world));
    let members = members.map(|(id, record, own)| PlanEntry {
        id,
        name: record.name.clone(),
        label: record.topology.clone(),
        rank: own.rank,
    });
    let members: Vec<PlanEntry> = members.collect();
    let submission = roster.submission_of(members.iter().map(|entry| &entry.id)).map(str::to_owned);
    Some(Decision::now(
        Action::Restore { world: world.clone(), members, submission },
        match round {
            Some(older) if older.phase != Phase::Restoring => format!(
                "the service went back to round {}; round {} of {} nodes is put back",
                older.round, world.round, world.size
            ),
            _ => {
                format!(
                    "the service came back empty; round {} of {} nodes is put back",
                    world.round, world.size
                )
            }
        },
    ))
}

fn end_restoring(roster: &Roster, now: Moment) -> Decision {
    let size = roster.round.as_ref().map_or(0, |round| round.size) as usize;
    let back = roster.world.keys().filter(|id| roster.nodes.contains_key(id)).count();
    let until = roster.restoring_until.unwrap_or(now);
    let reason = format!("{back} of {size} nodes are back");
    // Also when all are back: a node that was not in this world may bring one that is newer.
    if now >= until {
        Decision::now(Action::EndRestoring, reason)
    } else {
        Decision::wait(reason, Some(until))
    }
}

fn tell(roster: &Roster, round: &RoundRecord, now: Moment, policy: &Policy) -> Decision {
    let tell = |kind, why: String, names: Vec<String>| {
        Decision::now(Action::Tell(ChangeRecord { kind, why: why.clone(), names }), why)
    };
    let names =
        |ids: &[NodeId]| ids.iter().map(|id| roster.name(*id).to_owned()).take(NAMES).collect::<Vec<_>>();
    let listed = |ids: &[NodeId]| some_names(ids.iter().map(|id| roster.name(*id)));
    let mut wake: Option<Moment> = None;
    let mut wake_at = |moment: Moment| wake = Some(wake.map_or(moment, |earlier| earlier.min(moment)));

    let members = roster.active_members().count();
    let heed_loss = policy.on_member_loss == Reaction::Restart || members == 0;
    let mut lost = Vec::new();
    let mut left = Vec::new();
    for (id, absence) in &roster.absences {
        if absence.announced {
            left.push(*id);
        } else if now >= absence.believed {
            lost.push(*id);
        } else {
            wake_at(absence.believed);
        }
    }
    // Ranks of a world that was put back, whose nodes never returned: nobody knows their names.
    let nameless = (round.size as usize).saturating_sub(roster.world.len());
    if heed_loss && nameless > 0 {
        let why = format!("lost {nameless} nodes that did not return after the service came back empty");
        return tell(ChangeKind::Lost, why, Vec::new());
    }
    // While losses keep coming the latest is always younger than the last renewal: those before it are told all the same.
    let (proven, unproven): (Vec<NodeId>, Vec<NodeId>) = lost
        .into_iter()
        .partition(|id| roster.absences.get(id).is_none_or(|absence| roster.acknowledged >= absence.since));
    if heed_loss && !proven.is_empty() {
        return tell(ChangeKind::Lost, format!("lost {}", listed(&proven)), names(&proven));
    }
    if heed_loss && !unproven.is_empty() {
        return Decision::now(Action::Renew, format!("{} may be lost", listed(&unproven)));
    }
    let announced = roster.world.keys().filter(|id| {
        !roster.finished.contains(id) && roster.nodes.get(id).is_some_and(|node| node.record.leaving)
    });
    left.extend(announced.copied());
    if !left.is_empty() {
        return tell(ChangeKind::Leaving, format!("{} leaving", listed(&left)), names(&left));
    }
    let seeking: Vec<NodeId> =
        roster.active_members().filter(|(_, record)| record.seeks > round.round).map(|(id, _)| id).collect();
    if !seeking.is_empty() {
        let why = format!("{} asked for another round", listed(&seeking));
        return tell(ChangeKind::Seeking, why, names(&seeking));
    }
    let cooling = cooldown::cooling(roster, policy, now);
    let mut newcomers = roster.newcomers(policy);
    newcomers.retain(|newcomer| !cooling.contains_key(&newcomer.id));
    let room = roster.room(policy);
    // Nobody is asked to start again beside nodes that are done; unless they all went without closing the run.
    let ending = roster.is_finishing() && (members > 0 || roster.finished_here().next().is_some());
    if policy.on_newcomer == Reaction::Restart && !newcomers.is_empty() && room > 0 && !ending {
        let ids: Vec<NodeId> = newcomers.iter().map(|newcomer| newcomer.id).collect();
        let due = roster.newcomers_since.unwrap_or(now) + policy.grow_delay;
        if now >= due || newcomers.len() >= room {
            let verb = if ids.len() == 1 { "wants" } else { "want" };
            return tell(ChangeKind::Newcomers, format!("{} {verb} to join", listed(&ids)), names(&ids));
        }
        wake_at(due);
    }
    let waits = cooldown::describe(&cooling);
    let wake = wake.into_iter().chain(cooling.values().map(|wait| wait.until)).min();
    Decision::wait(format!("round {} runs with {members} nodes{waits}", round.round), wake)
}

fn form(roster: &Roster, round: &RoundRecord, now: Moment, policy: &Policy) -> Decision {
    let cooling = cooldown::cooling(roster, policy, now);
    let waits = cooldown::describe(&cooling);
    let mut seekers = roster.seekers(policy);
    seekers.retain(|id| !cooling.contains_key(id));
    let (min, max) = (policy.min_nodes as usize, policy.max_nodes as usize);
    let staying: Vec<NodeId> =
        roster.active_members().filter(|(_, record)| record.seeks <= round.round).map(|(id, _)| id).collect();

    let mut dropped = Vec::new();
    if !staying.is_empty() {
        let due = roster.change_told.unwrap_or(now) + policy.rejoin_time(round.size);
        if now < due {
            let waiting = format!(
                "waiting for {} to seek again",
                some_names(staying.iter().map(|id| roster.name(*id)))
            );
            return Decision::wait(waiting, Some(due));
        }
        dropped = staying;
    }

    let finished_here = roster.finished_here().next().is_some();
    let member_seeks = seekers.iter().any(|id| roster.world.contains_key(id));
    if roster.is_finishing() && seekers.len() < min {
        if member_seeks {
            let why = format!(
                "{} nodes have finished, and the {} left are fewer than min_nodes = {min}",
                roster.finished.len(),
                seekers.len()
            );
            return Decision::now(Action::Close, why);
        }
        return Decision::wait("the world has finished; waiting for its closing", None);
    }
    if finished_here && !member_seeks {
        return Decision::wait("the world has finished; waiting for its closing", None);
    }

    if let (Some(host), None) = (&round.host, roster.host()) {
        // A world without it would lose its service as soon as that node's process ends.
        return Decision::wait(format!("waiting for `{host}`, which hosts the service, to come back"), None);
    }
    if let Some((first, last)) = roster.departures.filter(|_| round.has_world()) {
        let due = (last + GATHER_QUIET).min(first + GATHER_LIMIT);
        if now < due {
            return Decision::wait("waiting for departures to come to an end", Some(due));
        }
    }
    if seekers.len() < min {
        return Decision::wait(format!("{} of at least {min} nodes are here", seekers.len()), None);
    }
    if seekers.len() < max {
        let patience = if member_seeks { policy.settle_time } else { policy.last_call_timeout };
        let due = roster.enough_since.unwrap_or(now) + patience;
        if now < due {
            let here = format!("{} of at most {max} nodes are here{waits}", seekers.len());
            return Decision::wait(here, Some(due));
        }
    }

    let last: Vec<PlanEntry> = roster.world.values().cloned().collect();
    let kept: BTreeSet<NodeId> = seekers.iter().filter(|id| roster.world.contains_key(id)).copied().collect();
    let mut newcomers = roster.newcomers(policy);
    newcomers.retain(|newcomer| seekers.contains(&newcomer.id));
    let members = ranking::rank(&last, &kept, newcomers, policy.max_nodes);
    let newcomers = u32::try_from(members.len() - kept.len()).unwrap_or(u32::MAX);
    let took = now.saturating_sub(roster.wanted_since.unwrap_or(now));
    let mut reason = match &round.change {
        Some(change) => change.why.clone(),
        None => "first world".to_owned(),
    };
    // A loss breaks the workers of the rest, who may ask for another round before the lease of the lost one ends.
    let told = round.change.as_ref().map_or(&[][..], |change| change.names.as_slice());
    let silent =
        roster.absences.iter().filter(|(_, absence)| !absence.announced).map(|(id, _)| roster.name(*id));
    let untold: Vec<&str> = silent.filter(|name| !told.iter().any(|known| known == name)).collect();
    if !untold.is_empty() {
        reason = format!("{reason}; lost {}", some_names(untold));
    }
    if !dropped.is_empty() {
        let names = some_names(dropped.iter().map(|id| roster.name(*id)));
        reason = format!("{reason}; dropped for not seeking again in time: {names}");
    }
    reason.push_str(&waits);
    let number = roster.highest_round.max(round.round) + 1;
    let named = roster.submission_of(members.iter().map(|entry| &entry.id)).map(str::to_owned);
    let submission = named.or_else(|| round.submission.clone().filter(|_| !kept.is_empty()));
    // Another submission begins anew.
    let same_job = !submission::are_rivals(round.submission.as_deref(), submission.as_deref());
    let failures = if same_job { cooldown::failures(roster, now) } else { Vec::new() };
    let form = Form { round: number, members, submission, failures, newcomers, took };
    Decision::now(Action::Form(form), reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        fixtures::{self, id},
        records::NodeRecord,
    };

    const TTL: Duration = Duration::from_secs(3);

    fn policy() -> Policy {
        let (return_window, trusted_silence) = Policy::lease_times(TTL);
        Policy {
            settle_time: Duration::from_millis(500),
            last_call_timeout: Duration::from_secs(30),
            grow_delay: Duration::from_secs(30),
            return_window,
            trusted_silence,
            ..fixtures::policy(2)
        }
    }

    fn seconds(number: f64) -> Moment {
        Duration::from_secs_f64(number)
    }

    fn record(number: u64) -> NodeRecord {
        NodeRecord {
            name: format!("n{number}"),
            address: "h".into(),
            port: 1,
            topology: None,
            min: 2,
            max: 4,
            seeks: 0,
            world: None,
            leaving: false,
            hosts: false,
            submission: None,
        }
    }

    fn round(number: u64, size: u32) -> RoundRecord {
        RoundRecord {
            round: number,
            world: "w".into(),
            size,
            phase: if size == 0 { Phase::Forming } else { Phase::Running },
            ..RoundRecord::forming("l".into(), 2, 4, "a".into())
        }
    }

    /// A run whose nodes 1..=`size` are in round 1, at time 0.
    fn running(size: u64) -> Roster {
        let mut roster = Roster::default();
        for number in 1..=size {
            roster.put_node(id(number), record(number), i64::try_from(number).unwrap());
            roster.observe(Moment::ZERO, &policy());
        }
        let world = (1..=size)
            .map(|number| PlanEntry {
                id: id(number),
                name: format!("n{number}"),
                label: None,
                rank: u32::try_from(number - 1).unwrap(),
            })
            .collect();
        roster.set_round(Moment::ZERO, round(1, u32::try_from(size).unwrap()), world);
        roster.observe(Moment::ZERO, &policy());
        roster
    }

    fn told(roster: &mut Roster, now: Moment) -> ChangeRecord {
        let Action::Tell(change) = decide(roster, now, &policy()).action else {
            panic!("expected a change, not {:?}", decide(roster, now, &policy()))
        };
        let mut round = roster.round.clone().unwrap();
        round.change = Some(change.clone());
        let world = roster.world.values().cloned().collect();
        roster.set_round(now, round, world);
        roster.observe(now, &policy());
        change
    }

    fn seek(roster: &mut Roster, now: Moment, number: u64) {
        seek_round(roster, now, number, 2);
    }

    fn seek_round(roster: &mut Roster, now: Moment, number: u64, seeks: u64) {
        roster.put_node(id(number), NodeRecord { seeks, ..record(number) }, 1);
        roster.observe(now, &policy());
    }

    fn formed(roster: &Roster, now: Moment) -> Vec<(u32, String)> {
        match decide(roster, now, &policy()).action {
            Action::Form(form) => form.members.into_iter().map(|entry| (entry.rank, entry.name)).collect(),
            other => panic!("expected a world, not {other:?}"),
        }
    }

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
    fn a_full_house_forms_at_once_and_min_nodes_after_the_last_call() {
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
    fn a_loss_is_told_after_one_renewal_and_the_rest_keep_their_ranks() {
        let mut roster = running(3);
        roster.acknowledged = seconds(9.0);
        roster.remove_node(seconds(10.0), id(1), &policy());
        roster.observe(seconds(10.0), &policy());
        assert_eq!(decide(&roster, seconds(10.0), &policy()).action, Action::Renew);
        roster.acknowledged = seconds(10.0);
        let change = told(&mut roster, seconds(10.0));
        assert_eq!((change.kind, change.why.as_str()), (ChangeKind::Lost, "lost n1"));
        seek(&mut roster, seconds(10.5), 2);
        assert_eq!(decide(&roster, seconds(10.9), &policy()).action, Action::Wait, "n3 has not sought again");
        seek(&mut roster, seconds(11.0), 3);
        let due = decide(&roster, seconds(11.0), &policy()).wake.unwrap();
        assert_eq!(due, seconds(11.5), "a member seeks, so it settles quickly");
        assert_eq!(formed(&roster, due), [(0, "n3".to_owned()), (1, "n2".to_owned())]);
    }

    #[test]
    fn losses_that_keep_coming_do_not_put_off_telling_those_before_the_renewal() {
        let mut roster = running(4);
        roster.acknowledged = seconds(9.0);
        roster.remove_node(seconds(10.0), id(1), &policy());
        roster.acknowledged = seconds(10.1);
        roster.remove_node(seconds(10.2), id(2), &policy());
        roster.observe(seconds(10.2), &policy());
        assert_eq!(told(&mut roster, seconds(10.2)).names, ["n1"]);
    }

    #[test]
    fn a_loss_during_a_break_is_believed_only_after_the_return_window() {
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
    fn a_new_coordinator_believes_absences_at_once_only_if_it_saw_the_last_one() {
        for (trusted, told_at) in [(true, Moment::ZERO), (false, policy().return_window)] {
            let mut roster = Roster { acknowledged: Moment::ZERO, ..running(3) };
            roster.nodes.remove(&id(2));
            roster.count_absent(Moment::ZERO, trusted, &policy());
            roster.observe(Moment::ZERO, &policy());
            let decision = decide(&roster, Moment::ZERO, &policy());
            assert_eq!(decision.wake, (!trusted).then_some(told_at), "{decision:?}");
            roster.acknowledged = told_at;
            assert_eq!(told(&mut roster, told_at).names, ["n2"]);
        }
        let mut roster = running(3);
        roster.nodes.remove(&id(2));
        roster.disturbed = Some(Moment::ZERO);
        roster.count_absent(Moment::ZERO, true, &policy());
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

    #[test]
    fn who_does_not_seek_again_in_time_is_dropped_and_named() {
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
    fn a_loss_that_was_not_told_is_named_all_the_same() {
        let mut roster = running(3);
        seek(&mut roster, seconds(1.0), 2);
        told(&mut roster, seconds(1.0));
        seek(&mut roster, seconds(1.1), 3);
        roster.remove_node(seconds(3.0), id(1), &policy());
        roster.observe(seconds(3.0), &policy());
        let decision = decide(&roster, seconds(4.0), &policy());
        assert!(matches!(decision.action, Action::Form(_)));
        assert_eq!(decision.reason, "n2 asked for another round; lost n1");
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

    #[test]
    fn a_world_that_the_store_lost_is_put_back_before_anything_else() {
        let world = |rank| LastWorld { life: "old".into(), round: 7, world: "w".into(), rank, size: 3 };
        let mut roster = Roster::default();
        roster.set_round(Moment::ZERO, round(0, 0), vec![]);
        roster.observe(Moment::ZERO, &policy());
        roster.put_node(id(9), record(9), 9);
        roster.observe(seconds(1.0), &policy());
        let back = |number: u64, rank| NodeRecord { seeks: 0, world: Some(world(rank)), ..record(number) };
        roster.put_node(id(2), back(2, 1), 10);
        roster.observe(seconds(2.0), &policy());
        let older = LastWorld { round: 6, ..world(0) };
        roster.put_node(id(3), NodeRecord { world: Some(older), ..record(3) }, 11);
        roster.observe(seconds(2.0), &policy());
        let Action::Restore { world: restored, members, .. } =
            decide(&roster, seconds(2.0), &policy()).action
        else {
            panic!("expected a restore");
        };
        assert_eq!((restored.round, restored.size, members.len(), members[0].rank), (7, 3, 1, 1));

        let put_back = RoundRecord { life: "old".into(), phase: Phase::Restoring, ..round(7, 3) };
        roster.set_round(seconds(2.0), put_back, members);
        roster.observe(seconds(2.0), &policy());
        roster.restoring_until = Some(seconds(7.0));
        assert_eq!(
            decide(&roster, seconds(6.0), &policy()).action,
            Action::Wait,
            "nothing is told meanwhile"
        );
        assert_eq!(decide(&roster, seconds(7.0), &policy()).action, Action::EndRestoring);
    }

    #[test]
    fn a_later_world_of_the_life_is_put_back_over_one_that_runs_unless_this_term_made_that() {
        let world =
            |life: &str, round| LastWorld { life: life.into(), round, world: "x".into(), rank: 0, size: 2 };
        let with = |world: LastWorld| {
            let mut roster = running(2);
            roster.put_node(id(1), NodeRecord { seeks: world.round, world: Some(world), ..record(1) }, 1);
            roster.observe(seconds(1.0), &policy());
            roster
        };
        let restored = |roster: &Roster| match decide(roster, seconds(1.0), &policy()).action {
            Action::Restore { world, members, .. } => Some((world.round, members.len())),
            _ => None,
        };
        assert_eq!(restored(&with(world("l", 3))), Some((3, 1)));
        assert_eq!(restored(&Roster { committed: true, ..with(world("l", 3)) }), None);
        assert_eq!(restored(&with(world("l", 1))), None, "of one number the one that runs goes on");
        assert_eq!(restored(&with(world("k", 3))), None, "another life's is not put over it");

        let mut roster = with(world("l", 3));
        let Action::Restore { members, .. } = decide(&roster, seconds(1.0), &policy()).action else {
            panic!("expected a restore");
        };
        let back = RoundRecord { phase: Phase::Restoring, world: "x".into(), ..round(3, 2) };
        roster.set_round(seconds(1.0), back, members);
        let other = LastWorld { rank: 1, ..world("l", 3) };
        roster.put_node(id(2), NodeRecord { seeks: 3, world: Some(other), ..record(2) }, 2);
        let running = RoundRecord { world: "x".into(), ..round(3, 2) };
        let members = roster.world.values().cloned().collect();
        roster.set_round(seconds(2.0), running, members);
        seek_round(&mut roster, seconds(3.0), 1, 4);
        seek_round(&mut roster, seconds(3.0), 2, 4);
        told(&mut roster, seconds(3.0));
        assert_eq!(
            formed(&roster, seconds(4.0)).len(),
            2,
            "who returned to its world is not left out of the next"
        );
    }

    #[test]
    fn a_node_of_a_life_that_is_over_neither_counts_nor_brings_it_back() {
        let mut roster = Roster::default();
        roster.past_lives.insert("old".into(), 50);
        roster.set_round(Moment::ZERO, round(0, 0), vec![]);
        roster.observe(Moment::ZERO, &policy());
        let world = LastWorld { life: "old".into(), round: 7, world: "w".into(), rank: 0, size: 1 };
        roster.put_node(id(1), NodeRecord { world: Some(world), ..record(1) }, 60);
        roster.observe(Moment::ZERO, &policy());
        roster.put_node(id(2), record(2), 40);
        roster.observe(Moment::ZERO, &policy());
        assert!(roster.seekers(&policy()).is_empty());
        assert_eq!(decide(&roster, seconds(100.0), &policy()).action, Action::Wait);
    }
}
