//! Divides a world into shards, so that a node reads the few kilobytes that name it, and not the whole world.

use std::collections::BTreeMap;

use super::{
    identity::NodeId,
    records::{Neighbor, PlanEntry, PlanShard, Record, json_bytes},
};

/// The maximum size of a shard. A node reads one shard in each round, and a shard of this size names some 25 nodes.
pub const SHARD_BYTES: usize = 2 * 1024;
/// The maximum number of shards of a plan, as a power of two.
const MOST_DOUBLINGS: u32 = 20;

/// Divides a world into the fewest shards (a power of two) of at most [`SHARD_BYTES`] each, or of one node each. An
/// entry is in the shard in which its node looks for it: [`super::identity::NodeId::shard`].
pub fn shards(world: &[PlanEntry], neighbors: &BTreeMap<NodeId, Vec<Neighbor>>) -> Vec<PlanShard> {
    let count = count(world, neighbors);
    let mut cut: Vec<PlanShard> = (0..count).map(|_| PlanShard::default()).collect();
    for entry in world {
        if let Some(shard) = cut.get_mut(entry.id.shard(count) as usize) {
            shard.nodes.push(entry.clone());
            if let Some(watched) = neighbors.get(&entry.id) {
                shard.neighbors.insert(entry.id, watched.clone());
            }
        }
    }
    cut
}

/// How many shards the world needs. Each entry is encoded once for this, however many divisions do not fit.
fn count(world: &[PlanEntry], neighbors: &BTreeMap<NodeId, Vec<Neighbor>>) -> u32 {
    let frame = PlanShard::default().encode().len() + r#","neighbors":{}"#.len();
    let entry_bytes = |entry: &PlanEntry| {
        let watched = neighbors.get(&entry.id).map_or(0, |watched| json_bytes(&(entry.id, watched)));
        json_bytes(entry) + 1 + watched
    };
    let entries: Vec<(NodeId, usize)> = world.iter().map(|entry| (entry.id, entry_bytes(entry))).collect();
    let fits = |count: u32| {
        let mut shards = vec![(0, frame); count as usize];
        for (id, bytes) in &entries {
            if let Some((nodes, total)) = shards.get_mut(id.shard(count) as usize) {
                *nodes += 1;
                *total += bytes;
            }
        }
        shards.iter().all(|(nodes, bytes)| *nodes <= 1 || *bytes <= SHARD_BYTES)
    };
    (0..MOST_DOUBLINGS)
        .map(|doublings| 1 << doublings)
        .find(|count| fits(*count))
        .unwrap_or(1 << MOST_DOUBLINGS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{fixtures, neighbors::neighbors, records::NodeRecord};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_node_finds_itself_in_its_shard(
            ids in proptest::collection::btree_set(any::<u64>(), 1..400),
            with_lifelines in any::<bool>(),
        ) {
            let world: Vec<PlanEntry> = ids
                .iter()
                .enumerate()
                .map(|(rank, bits)| PlanEntry {
                    id: NodeId::from_random(*bits),
                    name: format!("node-{rank}"),
                    label: None,
                    rank: u32::try_from(rank).unwrap(),
                })
                .collect();
            let record = NodeRecord { lifeline: with_lifelines.then_some(40_000), ..fixtures::record() };
            let cut = shards(&world, &neighbors(&world, |_| Some(&record)));
            let count = u32::try_from(cut.len()).unwrap();
            for entry in &world {
                prop_assert!(cut[entry.id.shard(count) as usize].nodes.contains(entry));
            }
            prop_assert_eq!(cut.iter().map(|shard| shard.nodes.len()).sum::<usize>(), world.len());
            let is_small = |shard: &PlanShard| shard.encode().len() <= SHARD_BYTES || shard.nodes.len() == 1;
            prop_assert!(cut.iter().all(is_small));
            let bytes: usize = cut.iter().map(|shard| shard.encode().len()).sum();
            prop_assert!(cut.len() == 1 || bytes > cut.len() * SHARD_BYTES / 8, "no more shards than necessary");
        }
    }
}
