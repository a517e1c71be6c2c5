//! Divides a world into shards, so that a node reads the few kilobytes that name it, and not the whole world.

use std::collections::BTreeMap;

use super::{
    identity::NodeId,
    records::{Neighbor, PlanEntry, PlanShard, Record},
};

/// The maximum size of a shard. A node reads one shard in each round, and a shard of this size names some 25 nodes.
pub const SHARD_BYTES: usize = 2 * 1024;

/// Divides a world into the fewest shards (a power of two) of at most [`SHARD_BYTES`] each, or of one node each. An
/// entry is in the shard in which its node looks for it: [`super::identity::NodeId::shard`].
pub fn shards(world: &[PlanEntry], neighbors: &BTreeMap<NodeId, Vec<Neighbor>>) -> Vec<PlanShard> {
    let mut count: u32 = 1;
    loop {
        let mut cut: Vec<PlanShard> = (0..count).map(|_| PlanShard::default()).collect();
        for entry in world {
            if let Some(shard) = cut.get_mut(entry.id.shard(count) as usize) {
                shard.nodes.push(entry.clone());
                if let Some(watched) = neighbors.get(&entry.id) {
                    shard.neighbors.insert(entry.id, watched.clone());
                }
            }
        }
        let fits = |shard: &PlanShard| shard.nodes.len() <= 1 || shard.encode().len() <= SHARD_BYTES;
        if cut.iter().all(fits) || count >= 1 << 20 {
            return cut;
        }
        count *= 2;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::identity::NodeId;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_node_finds_itself_in_its_shard(ids in proptest::collection::btree_set(any::<u64>(), 1..400)) {
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
            let cut = shards(&world, &BTreeMap::new());
            let count = u32::try_from(cut.len()).unwrap();
            for entry in &world {
                prop_assert!(cut[entry.id.shard(count) as usize].nodes.contains(entry));
            }
            prop_assert_eq!(cut.iter().map(|shard| shard.nodes.len()).sum::<usize>(), world.len());
            for shard in &cut {
                prop_assert!(shard.encode().len() <= SHARD_BYTES || shard.nodes.len() == 1);
            }
        }
    }
}
