//! Which lifelines of this node ended without a goodbye, and when. If several end at once, the cause may be this node.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::{lock::lock, protocol::identity::NodeId};

/// Lifelines that end within this time are considered to end at once.
const AT_ONCE: Duration = Duration::from_millis(100);

/// The last ends.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<BTreeMap<NodeId, Instant>>);

impl Ends {
    /// Records that a lifeline with this node has ended now.
    pub(super) fn note(&self, node: NodeId) {
        let now = Instant::now();
        let mut ends = lock(&self.0);
        ends.retain(|_, ended| now.duration_since(*ended) < AT_ONCE);
        ends.insert(node, now);
    }

    /// Whether lifelines with other nodes have ended at about the same time.
    pub(super) fn has_others(&self, accused: NodeId) -> bool {
        let now = Instant::now();
        let ends = lock(&self.0);
        ends.iter().any(|(node, ended)| *node != accused && now.duration_since(*ended) < AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ends_of_other_nodes_count_for_a_tenth_of_a_second() {
        let (ends, one, other) = (Ends::default(), NodeId::from_random(2), NodeId::from_random(4));
        ends.note(one);
        assert!(!ends.has_others(one), "two lifelines with one node are one sign");
        assert!(ends.has_others(other));
        tokio::time::advance(AT_ONCE).await;
        assert!(!ends.has_others(other));
    }
}
