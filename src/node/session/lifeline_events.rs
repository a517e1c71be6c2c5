//! What happens to the lifelines of a session.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use crate::{
    coordinator::Inquiry,
    lifeline::Suspicion,
    node::observer::Settled,
    protocol::{identity::NodeId, records::Neighbor},
};

/// The longest delay of a greeting.
const LAST_GREETING_DELAY: Duration = Duration::from_secs(32);

/// An event of the lifelines.
#[derive(Debug)]
pub(super) enum LifelineEvent {
    /// Lifelines have ended without a goodbye, or members that greeted before refuse.
    Suspicions(Vec<Suspicion>),
    /// A request of the coordinator's task of this node.
    Inquiry(Inquiry),
    /// Members have greeted at these addresses.
    Greeted {
        greeted: BTreeMap<NodeId, SocketAddr>,
        /// The next greeting, if some have not responded.
        again: Option<Greeting>,
    },
    /// An observer has settled a suspicion.
    Settled(Suspicion, Settled),
    /// The service, which a node hosts, was checked for whether it still accepts connections.
    HostAsked {
        /// It refuses them at the address of its node.
        is_refused: bool,
    },
}

/// A greeting of all members of a world that is due after a delay.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) members: Vec<Neighbor>,
    pub(super) delay: Duration,
}

impl Greeting {
    /// The next greeting, if members are missing in these addresses and not all delays have passed.
    pub(super) fn again(self, greeted: &BTreeMap<NodeId, SocketAddr>) -> Option<Self> {
        let is_complete = self.members.iter().all(|member| greeted.contains_key(&member.id));
        let delay = self.delay * 2;
        (!is_complete && delay <= LAST_GREETING_DELAY).then_some(Self { delay, ..self })
    }
}
