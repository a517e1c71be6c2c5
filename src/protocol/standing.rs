//! What a node is in the round that it reads, and whether the world that it was given is still valid.

use super::{
    identity::NodeId,
    records::{
        ChangeKind, ChangeRecord, ClosedRecord, Outcome, Phase, PlanShard, RoundRecord, WorldMembership,
    },
};

/// What a node is in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No world is committed yet.
    Waiting,
    /// A member, with this rank.
    Member(u32),
    /// Not in it.
    Excluded,
}

/// What `node` is in `round`, given its shard of the plan.
pub fn standing(node: NodeId, round: &RoundRecord, shard: Option<&PlanShard>) -> Standing {
    if !round.has_world() {
        return Standing::Waiting;
    }
    let entry = shard.and_then(|shard| shard.nodes.iter().find(|entry| entry.id == node));
    entry.map_or(Standing::Excluded, |entry| Standing::Member(entry.rank))
}

/// Whether a node that was given the world `place` must read the plan of this round. `read` is the attempt of the plan
/// that it read last.
pub fn has_unread_plan(round: &RoundRecord, place: Option<&WorldMembership>, read: Option<&str>) -> bool {
    let mine = place.is_some_and(|place| place.is_of(round));
    // The service was restored from an older backup. No node is moved back, however long it takes to restore the later
    // world.
    let older = place.is_some_and(|place| round.life == place.life && round.round < place.round);
    // While a world is restored, a newer one may appear. Its members are known after that.
    let restoring = round.phase == Phase::Restoring;
    round.has_world() && !mine && !older && !restoring && read != Some(round.attempt.as_str())
}

/// Why the world that a node was given is about to be replaced, or was replaced, according to the control records that
/// it reads. `None` for earlier records, because a node may know its round before it reads the records of
/// earlier ones.
pub fn change_of(
    world: &WorldMembership,
    round: Option<&RoundRecord>,
    closed: Option<&ClosedRecord>,
) -> Option<ChangeRecord> {
    if let Some(closed) = closed.filter(|closed| closed.life == world.life) {
        return (closed.outcome != Outcome::Succeeded).then(|| ChangeRecord {
            kind: ChangeKind::Closed,
            why: closed.summary(),
            names: vec![closed.by.clone()],
        });
    }
    let round = round.filter(|round| round.life == world.life)?;
    if world.is_of(round) {
        return round.change.clone();
    }
    (round.round >= world.round).then(|| ChangeRecord {
        kind: ChangeKind::Replaced,
        why: format!("round {} was formed: {}", round.round, round.why),
        names: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_reads_each_plan_that_may_name_it_once() {
        let round = |life: &str, number, world: &str, attempt: &str| RoundRecord {
            round: number,
            world: world.to_owned(),
            size: 2,
            phase: Phase::Running,
            ..RoundRecord::forming(life.to_owned(), 1, 2, attempt.to_owned())
        };
        let place = WorldMembership { life: "l".into(), round: 3, world: "w3".into(), rank: 0, size: 2 };
        let member = Some(&place);
        let next = round("l", 4, "w4", "a4");
        let forming = RoundRecord { world: String::new(), size: 0, phase: Phase::Forming, ..next.clone() };
        let restoring = RoundRecord { phase: Phase::Restoring, ..next.clone() };
        let cases = [
            ("no world yet", forming, None, None, false),
            ("the first world", next.clone(), None, None, true),
            ("a plan that it has read", next.clone(), None, Some("a4"), false),
            ("the plan of one world, written again", next.clone(), None, Some("a3"), true),
            ("its own world", round("l", 3, "w3", "a3"), member, None, false),
            ("the next world", next, member, Some("a3"), true),
            ("an older world from a backup", round("l", 2, "w2", "a2"), member, None, false),
            ("a world of another life", round("m", 1, "w1", "a1"), member, None, true),
            ("a world that is restored", restoring, member, None, false),
        ];
        for (case, round, place, read, expected) in cases {
            assert_eq!(has_unread_plan(&round, place, read), expected, "{case}");
        }
    }

    #[test]
    fn closing_without_a_reason_has_no_colon_in_its_message() {
        let place = WorldMembership { life: "l".into(), round: 3, world: "w3".into(), rank: 0, size: 2 };
        let closed = |why: &str| ClosedRecord {
            life: "l".into(),
            by: "n1".into(),
            why: why.into(),
            outcome: Outcome::Failed,
            submission: None,
        };
        let message = |why| change_of(&place, None, Some(&closed(why))).map(|change| change.why);
        assert_eq!(message("").as_deref(), Some("closed as failed by `n1`"));
        assert_eq!(message("out of memory").as_deref(), Some("closed as failed by `n1`: out of memory"));
    }
}
