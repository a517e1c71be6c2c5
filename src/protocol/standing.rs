//! What a node is in the round that it sees, and whether the world it was given still holds.

use super::{
    identity::NodeId,
    records::{ChangeKind, ChangeRecord, ClosedRecord, LastWorld, Outcome, PlanShard, RoundRecord},
};

/// What a node is in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No world is committed yet.
    Waiting,
    /// A member, with this rank.
    Member(u32),
    /// Not in it.
    Outside,
}

/// What `node` is in `round`, given its shard of the plan.
pub fn standing(node: NodeId, round: &RoundRecord, shard: Option<&PlanShard>) -> Standing {
    if !round.has_world() {
        return Standing::Waiting;
    }
    let entry = shard.and_then(|shard| shard.nodes.iter().find(|entry| entry.id == node));
    entry.map_or(Standing::Outside, |entry| Standing::Member(entry.rank))
}

/// Why the world that a node was given is about to be replaced or was, from the control records as it sees them.
/// `None` for older news: a node may see its own round before it sees what went before.
pub fn change_of(
    world: &LastWorld,
    round: Option<&RoundRecord>,
    closed: Option<&ClosedRecord>,
) -> Option<ChangeRecord> {
    if let Some(closed) = closed.filter(|closed| closed.life == world.life) {
        return (closed.outcome != Outcome::Succeeded).then(|| ChangeRecord {
            kind: ChangeKind::Closed,
            why: format!("closed as {} by `{}`: {}", closed.outcome.as_str(), closed.by, closed.why),
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
