//! Which members a member watches: those of the next two ranks, cyclically. Two, so that if two nodes with adjacent
//! ranks die, the node before them detects both deaths.

use std::collections::BTreeMap;

use super::{
    identity::NodeId,
    records::{Neighbor, NodeRecord, PlanEntry},
};

/// How many members each member watches, if there are as many others.
pub const WATCHED: usize = 2;

/// Which members each member of a world watches. A member without lifelines is omitted. It is not replaced by the
/// member after it, which its own neighbors watch.
pub fn neighbors<'record>(
    members: &[PlanEntry],
    record_of: impl Fn(NodeId) -> Option<&'record NodeRecord>,
) -> BTreeMap<NodeId, Vec<Neighbor>> {
    let by_rank = by_rank(members);
    let found: Vec<Option<Neighbor>> = by_rank.iter().map(|member| neighbor(member, &record_of)).collect();
    let next = WATCHED.min(members.len().saturating_sub(1));
    let watched = |position: usize| -> Vec<Neighbor> {
        (1..=next).filter_map(|step| found[(position + step) % found.len()].clone()).collect()
    };
    let each = by_rank.iter().enumerate().map(|(position, member)| (member.id, watched(position)));
    each.filter(|(_, watched)| !watched.is_empty()).collect()
}

/// The members that have lifelines, by rank.
pub fn reachable<'record>(
    members: impl IntoIterator<Item = &'record PlanEntry>,
    record_of: impl Fn(NodeId) -> Option<&'record NodeRecord>,
) -> Vec<Neighbor> {
    by_rank(members).into_iter().filter_map(|member| neighbor(member, &record_of)).collect()
}

/// The members from the rank after this one on, cyclically, without this one. In reverse, the members from the rank
/// before it on. In this order, members are asked whether they died together with this one.
pub fn around(rank: u32, members: &[Neighbor]) -> impl DoubleEndedIterator<Item = &Neighbor> {
    let (before, after) = members.split_at(members.partition_point(|member| member.rank <= rank));
    after.iter().chain(before.iter().filter(move |member| member.rank != rank))
}

fn by_rank<'plan>(members: impl IntoIterator<Item = &'plan PlanEntry>) -> Vec<&'plan PlanEntry> {
    let mut by_rank: Vec<&PlanEntry> = members.into_iter().collect();
    by_rank.sort_unstable_by_key(|member| member.rank);
    by_rank
}

fn neighbor<'record>(
    member: &PlanEntry,
    record_of: impl Fn(NodeId) -> Option<&'record NodeRecord>,
) -> Option<Neighbor> {
    let record = record_of(member.id)?;
    let (id, rank, address) = (member.id, member.rank, record.address.clone());
    Some(Neighbor { id, rank, address, port: record.lifeline? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fixtures;

    fn watched(ranks: &[u32], without: Option<u32>) -> Vec<(u32, Vec<u32>)> {
        let id = |rank: u32| fixtures::id(u64::from(rank) + 1);
        let entry = |&rank: &u32| PlanEntry { id: id(rank), name: format!("n{rank}"), label: None, rank };
        let record = |&rank: &u32| {
            let lifeline = (Some(rank) != without).then_some(4000);
            (id(rank), NodeRecord { lifeline, ..fixtures::record() })
        };
        let members: Vec<PlanEntry> = ranks.iter().map(entry).collect();
        let records: BTreeMap<NodeId, NodeRecord> = ranks.iter().map(record).collect();
        let neighbors = neighbors(&members, |id| records.get(&id));
        let ranks_of = |watched: &Vec<Neighbor>| watched.iter().map(|neighbor| neighbor.rank).collect();
        ranks.iter().filter_map(|&rank| Some((rank, ranks_of(neighbors.get(&id(rank))?)))).collect()
    }

    #[test]
    fn each_member_watches_the_next_two_ranks_whatever_the_order_of_the_plan() {
        let expected = [(2, vec![3, 0]), (0, vec![1, 2]), (3, vec![0, 1]), (1, vec![2, 3])];
        assert_eq!(watched(&[2, 0, 3, 1], None), expected);
    }

    #[test]
    fn members_are_asked_in_the_order_of_ranks_in_both_directions() {
        let id = |rank: u32| fixtures::id(u64::from(rank) + 1);
        let entry = |rank: u32| PlanEntry { id: id(rank), name: format!("n{rank}"), label: None, rank };
        let members: Vec<PlanEntry> = [2, 0, 4, 1, 3].map(entry).to_vec();
        let with = NodeRecord { lifeline: Some(4000), ..fixtures::record() };
        let without = fixtures::record();
        let record_of = |node: NodeId| Some(if node == id(4) { &without } else { &with });
        let reachable = reachable(&members, record_of);
        let forwards: Vec<u32> = around(2, &reachable).map(|neighbor| neighbor.rank).collect();
        let backwards: Vec<u32> = around(2, &reachable).rev().map(|neighbor| neighbor.rank).collect();
        assert_eq!((forwards, backwards), (vec![3, 0, 1], vec![1, 0, 3]));
    }

    #[test]
    fn no_member_watches_itself_or_a_node_twice() {
        assert_eq!(watched(&[], None), []);
        assert_eq!(watched(&[0], None), []);
        assert_eq!(watched(&[0, 1], None), [(0, vec![1]), (1, vec![0])]);
        assert_eq!(watched(&[0, 1, 2], None), [(0, vec![1, 2]), (1, vec![2, 0]), (2, vec![0, 1])]);
    }

    #[test]
    fn member_without_lifelines_is_not_watched() {
        let expected = [(0, vec![2]), (1, vec![2, 3]), (2, vec![3, 0]), (3, vec![0])];
        assert_eq!(watched(&[0, 1, 2, 3], Some(1)), expected);
    }
}
