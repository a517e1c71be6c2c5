//! What a node reports at its end of a lifeline: its ID, and the worlds that it is in.

use crate::protocol::identity::NodeId;

/// The present identity of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Presence {
    /// Its ID. `None` before it is in a world.
    pub(super) own: Option<NodeId>,
    /// The names of its present world and of the one before. The lifelines of the old world stay open until those of
    /// the new one are.
    worlds: [Option<u64>; 2],
    /// Whether it has left in an orderly way.
    pub(super) has_left: bool,
}

impl Presence {
    pub(super) fn enter(&mut self, own: NodeId, world: u64) {
        if self.worlds[0] != Some(world) {
            self.worlds = [Some(world), self.worlds[0]];
        }
        self.own = Some(own);
    }

    /// Its id, and its present world.
    pub(super) fn present(&self) -> Option<(NodeId, u64)> {
        self.own.zip(self.worlds[0])
    }

    pub(super) fn is_in(&self, world: u64) -> bool {
        self.worlds.contains(&Some(world))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_world_is_known_until_the_one_after_the_next() {
        let mut presence = Presence::default();
        let own = NodeId::from_random(2);
        for world in [1, 2, 2] {
            presence.enter(own, world);
        }
        assert!(presence.is_in(1) && presence.is_in(2) && !presence.is_in(3));
        presence.enter(own, 3);
        assert!(!presence.is_in(1) && presence.is_in(2) && presence.is_in(3));
    }
}
