//! Decides which nodes are in the next world, if there are more nodes than places.
//!
//! Members precede new nodes. Among each of them, the nodes of one topology label are a group, and whole groups are
//! chosen first: those of which the world has nodes already, then the largest, then the earliest. A node without a
//! label is a separate group, so without labels the newest nodes are not chosen.

use std::collections::{BTreeMap, BTreeSet};

use super::{identity::NodeId, ranking::Newcomer};

/// Chooses `size` of these nodes, members first.
pub fn select(members: Vec<Newcomer<'_>>, newcomers: Vec<Newcomer<'_>>, size: usize) -> BTreeSet<NodeId> {
    let mut chosen: Vec<Newcomer<'_>> = Vec::new();
    for pool in [members, newcomers] {
        let labels = chosen.iter().filter_map(|node| node.label).collect();
        let room = size.saturating_sub(chosen.len());
        chosen.extend(fill(pool, &labels, room));
    }
    chosen.into_iter().map(|node| node.id).collect()
}

/// Chooses up to `room` nodes of a pool for a world that already has nodes with these labels.
fn fill<'a>(pool: Vec<Newcomer<'a>>, labels: &BTreeSet<&str>, mut room: usize) -> Vec<Newcomer<'a>> {
    let label = |group: &[Newcomer<'a>]| group.first().and_then(|node| node.label);
    let is_new = |group: &[Newcomer<'a>]| label(group).is_none_or(|label| !labels.contains(label));
    let first = |group: &[Newcomer<'_>]| group.first().map(|node| (node.arrived, node.id));
    let mut groups = groups(pool);
    groups.sort_by_key(|group| (is_new(group), std::cmp::Reverse(group.len()), first(group)));
    let mut chosen = Vec::new();
    let mut broken: Vec<Vec<Newcomer<'_>>> = Vec::new();
    for group in groups {
        if group.len() <= room {
            room -= group.len();
            chosen.extend(group);
        } else {
            broken.push(group);
        }
    }
    // No whole group fits into the remaining places, so one group is split.
    let smallest = broken.into_iter().min_by_key(|group| (is_new(group), group.len(), first(group)));
    chosen.extend(smallest.into_iter().flatten().take(room));
    chosen
}

/// The nodes of each label, and each node without a label, by arrival.
fn groups(mut pool: Vec<Newcomer<'_>>) -> Vec<Vec<Newcomer<'_>>> {
    pool.sort_by_key(|node| (node.arrived, node.id));
    let mut labeled: BTreeMap<&str, Vec<Newcomer<'_>>> = BTreeMap::new();
    let mut groups = Vec::new();
    for node in pool {
        match node.label {
            Some(label) => labeled.entry(label).or_default().push(node),
            None => groups.push(vec![node]),
        }
    }
    groups.extend(labeled.into_values());
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes such as `3x`: the third to arrive, with the label `x`. `3-` has none.
    fn nodes(text: &str) -> Vec<Newcomer<'_>> {
        fn node(word: &str) -> Newcomer<'_> {
            let (number, label) = word.split_at(word.len() - 1);
            let number: u64 = number.parse().unwrap();
            Newcomer {
                id: NodeId::from_random(number << 1),
                name: word,
                label: Some(label).filter(|label| *label != "-"),
                index: None,
                arrived: i64::try_from(number).unwrap(),
            }
        }
        text.split_whitespace().map(node).collect()
    }

    #[test]
    fn newest_nodes_stay_out_and_with_topology_those_that_break_up_a_group() {
        for (members, newcomers, size, expected) in [
            // Without labels, by arrival.
            ("", "4- 1- 3- 2-", 2, "1- 2-"),
            ("1- 2- 3-", "4-", 2, "1- 2-"),
            ("5- 6-", "1- 2-", 3, "5- 6- 1-"),
            // A member that is newer than a new node stays.
            ("9- 8-", "1-", 2, "8- 9-"),
            // A whole group, although its nodes are newer.
            ("", "1x 2y 3x 4y 5y", 3, "2y 4y 5y"),
            ("", "1x 2y 3x 4y 5y", 2, "1x 3x"),
            ("1x 2y 3y", "", 2, "2y 3y"),
            // The group that the world has nodes of.
            ("1x 2x", "3y 4y 5x 6x", 4, "1x 2x 5x 6x"),
            // If no whole group fits, the smallest one is split, by arrival.
            ("", "1x 2x 3x 4y 5y", 1, "4y"),
            ("", "1x 2x 3x 4y 5y", 4, "1x 2x 3x 4y"),
            ("1x", "2y", 5, "1x 2y"),
        ] {
            let chosen = select(nodes(members), nodes(newcomers), size);
            let expected: BTreeSet<NodeId> = nodes(expected).into_iter().map(|node| node.id).collect();
            assert_eq!(chosen, expected, "{size} of {members} and {newcomers}");
        }
    }
}
