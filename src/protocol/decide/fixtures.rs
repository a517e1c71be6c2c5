//! Runs that the tests of the rules begin with.

use std::time::Duration;

use super::{Action, decide};
use crate::protocol::{
    fixtures::{self, id},
    policy::Policy,
    records::{ChangeRecord, NodeRecord, Phase, PlanEntry, RoundRecord},
    roster::{Moment, Roster},
};

const TTL: Duration = Duration::from_secs(3);

pub(super) fn policy() -> Policy {
    let (return_window, trusted_silence) = Policy::lease_times(TTL);
    Policy {
        settle_time: Duration::from_millis(500),
        last_call_timeout: Duration::from_secs(30),
        grow_delay: Duration::from_secs(30),
        return_window,
        lease_ttl: TTL,
        trusted_silence,
        ..fixtures::policy(2)
    }
}

pub(super) fn seconds(number: f64) -> Moment {
    Duration::from_secs_f64(number)
}

pub(super) fn record(number: u64) -> NodeRecord {
    NodeRecord { name: format!("n{number}"), min: 2, ..fixtures::record() }
}

pub(super) fn round(number: u64, size: u32) -> RoundRecord {
    RoundRecord {
        round: number,
        world: "w".into(),
        size,
        phase: if size == 0 { Phase::Forming } else { Phase::Running },
        ..RoundRecord::forming("l".into(), 2, 4, "a".into())
    }
}

/// A run whose nodes 1..=`size` are in round 1, at time 0.
pub(super) fn running(size: u64) -> Roster {
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

pub(super) fn told(roster: &mut Roster, now: Moment) -> ChangeRecord {
    let Action::AnnounceChange(change) = decide(roster, now, &policy()).action else {
        panic!("expected a change, not {:?}", decide(roster, now, &policy()))
    };
    let mut round = roster.round.clone().unwrap();
    round.change = Some(change.clone());
    let world = roster.world.values().cloned().collect();
    roster.set_round(now, round, world);
    roster.observe(now, &policy());
    change
}

pub(super) fn seek(roster: &mut Roster, now: Moment, number: u64) {
    seek_round(roster, now, number, 2);
}

pub(super) fn seek_round(roster: &mut Roster, now: Moment, number: u64, seeks: u64) {
    roster.put_node(id(number), NodeRecord { seeks, ..record(number) }, 1);
    roster.observe(now, &policy());
}

pub(super) fn formed(roster: &Roster, now: Moment) -> Vec<(u32, String)> {
    match decide(roster, now, &policy()).action {
        Action::Form(form) => form.members.into_iter().map(|entry| (entry.rank, entry.name)).collect(),
        other => panic!("expected a world, not {other:?}"),
    }
}
