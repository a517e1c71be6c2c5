//! Rules about a world that the service has lost. Its members know it, and it is restored from their records.

use super::{Action, Decision, WaitsFor};
use crate::protocol::{
    records::{Phase, PlanEntry, RoundRecord, WorldMembership},
    roster::{Moment, Roster},
};

/// Rule: a node's record names a world that is newer than `ctl/round`. The service has lost that world, together with
/// everything else or because it was restored from an older backup.
pub(super) fn restore_lost_world(roster: &Roster) -> Option<Decision> {
    let round = roster.round.as_ref().filter(|round| round.has_world());
    let is_newer = |world: &WorldMembership| match round {
        None => true,
        Some(round) if round.phase == Phase::Restoring => {
            world.order() > (round.round, &round.life, &round.world)
        }
        // Only a later world of the same life replaces a running world.
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
    Some(Decision::act(
        Action::Restore { world: world.clone(), members, submission },
        match round {
            Some(older) if older.phase != Phase::Restoring => format!(
                "the service went back to round {}; restoring round {} ({} nodes)",
                older.round, world.round, world.size
            ),
            _ => {
                format!("the service lost its data; restoring round {} ({} nodes)", world.round, world.size)
            }
        },
    ))
}

/// Rule: a world that was restored waits for its nodes until the reconnect window ends. This also holds if all of them
/// have returned, because a node of another world may return and know a newer world.
pub(super) fn finish_restoring(roster: &Roster, round: &RoundRecord, now: Moment) -> Option<Decision> {
    if !round.has_world() || round.phase != Phase::Restoring {
        return None;
    }
    let back = roster.world.keys().filter(|id| roster.nodes.contains_key(id)).count();
    let reason = format!("{back} of {} nodes are back", round.size);
    let until = roster.restoring_until.unwrap_or(now);
    Some(if now >= until {
        Decision::act(Action::EndRestoring, reason)
    } else {
        Decision::wait_for(WaitsFor::Restored, reason, Some(until))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        decide::{decide, fixtures::*},
        fixtures::id,
        records::NodeRecord,
    };

    #[test]
    fn world_that_the_service_lost_is_restored_before_anything_else() {
        let world = |rank| WorldMembership { life: "old".into(), round: 7, world: "w".into(), rank, size: 3 };
        let mut roster = Roster::default();
        roster.set_round(Moment::ZERO, round(0, 0), vec![]);
        roster.observe(Moment::ZERO, &policy());
        roster.put_node(id(9), record(9), 9);
        roster.observe(seconds(1.0), &policy());
        let back = |number: u64, rank| NodeRecord { seeks: 0, world: Some(world(rank)), ..record(number) };
        roster.put_node(id(2), back(2, 1), 10);
        roster.observe(seconds(2.0), &policy());
        let older = WorldMembership { round: 6, ..world(0) };
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
            "nothing is announced meanwhile"
        );
        assert_eq!(decide(&roster, seconds(7.0), &policy()).action, Action::EndRestoring);
    }

    #[test]
    fn later_world_of_the_life_replaces_a_running_one_unless_this_term_formed_that() {
        let world = |life: &str, round| WorldMembership {
            life: life.into(),
            round,
            world: "x".into(),
            rank: 0,
            size: 2,
        };
        let with = |world: WorldMembership| {
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
        assert_eq!(
            restored(&with(world("l", 1))),
            None,
            "of two worlds with one number, the running one continues"
        );
        assert_eq!(restored(&with(world("k", 3))), None, "another life's is not put over it");

        let mut roster = with(world("l", 3));
        let Action::Restore { members, .. } = decide(&roster, seconds(1.0), &policy()).action else {
            panic!("expected a restore");
        };
        let back = RoundRecord { phase: Phase::Restoring, world: "x".into(), ..round(3, 2) };
        roster.set_round(seconds(1.0), back, members);
        let other = WorldMembership { rank: 1, ..world("l", 3) };
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
            "a node that returned to its world is not excluded from the next"
        );
    }

    #[test]
    fn node_of_a_life_that_has_ended_neither_counts_nor_restores_it() {
        let mut roster = Roster::default();
        roster.past_lives.insert("old".into(), 50);
        roster.set_round(Moment::ZERO, round(0, 0), vec![]);
        roster.observe(Moment::ZERO, &policy());
        let world = WorldMembership { life: "old".into(), round: 7, world: "w".into(), rank: 0, size: 1 };
        roster.put_node(id(1), NodeRecord { world: Some(world), ..record(1) }, 60);
        roster.observe(Moment::ZERO, &policy());
        roster.put_node(id(2), record(2), 40);
        roster.observe(Moment::ZERO, &policy());
        assert_eq!(roster.seekers(&policy()).count(), 0);
        assert_eq!(decide(&roster, seconds(100.0), &policy()).action, Action::Wait);
    }
}
