//! What a coordinator requests from its node, because it does not use lifelines itself: to greet the members of a
//! world, and to find out which members died together with those whose deaths were reported. The node reports those
//! deaths as any observer does.
//!
//! Two members watch each member. If more members with adjacent ranks die at once, no live member watches the others.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Suspicious, Term};
use crate::protocol::{identity::NodeId, neighbors::reachable, records::Neighbor};

/// The request.
#[derive(Clone, Debug)]
pub enum Inquiry {
    /// Greet the members of the present world. A refusal at an address that never greeted is no sign of a death.
    Greet(Vec<Neighbor>),
    /// Ask the members around dead ones, in both directions, until one is alive.
    Walk {
        /// The ranks of the dead members.
        dead: Vec<u32>,
        /// The members of the world, by rank.
        members: Arc<[Neighbor]>,
    },
    /// Ask this member, which a node or an operator suspects.
    Examine(Neighbor, Suspicious),
}

/// Where a coordinator puts its requests. If its node has no lifelines, they have no effect.
pub type Inquiries = mpsc::UnboundedSender<Inquiry>;

impl Term {
    /// The members of the present world that have lifelines, by rank.
    pub(super) fn reachable(&self) -> Vec<Neighbor> {
        reachable(self.roster.world.values(), |id| Some(&self.roster.nodes.get(&id)?.record))
    }

    /// Requests that the other members of the present world are greeted.
    pub(super) fn greet_members(&self) {
        if self.inquiries.is_closed() {
            return;
        }
        let mut members = self.reachable();
        members.retain(|member| member.id != self.fence.record.node);
        let _ = self.inquiries.send(Inquiry::Greet(members));
    }

    /// Requests that the members around dead ones are asked.
    pub(super) fn walk_from(&self, dead: &[NodeId]) {
        let ranks = dead.iter().filter_map(|id| Some(self.roster.world.get(id)?.rank));
        let dead: Vec<u32> = ranks.collect();
        if !dead.is_empty() && !self.inquiries.is_closed() {
            let _ = self.inquiries.send(Inquiry::Walk { dead, members: self.reachable().into() });
        }
    }
}
