//! Nodes on the memory service, for tests of scenarios.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lattice_rdzv::{
    Result,
    backend::memory::{MemoryBackend, MemoryService},
    node::{Node, Place},
    run::Entropy,
    settings::{Arguments, Origin, Settings},
};

/// The TTL of the leases of all nodes.
pub(crate) const TTL: Duration = Duration::from_secs(3);

/// Settings of a node called `name`, with these over the defaults of a test.
pub(crate) fn settings(name: &str, nnodes: &str, more: &[(&str, &str)]) -> Settings {
    let mut values = BTreeMap::from(
        [("run_id", "run"), ("nnodes", nnodes), ("node_name", name), ("lease_ttl", "3"), ("grow_delay", "1")]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    for (key, value) in more {
        values.insert((*key).to_owned(), (*value).to_owned());
    }
    Settings::resolve(&Arguments { values, origin: Origin::Argument }, &BTreeMap::new())
        .expect("good settings")
}

/// The address of a node of this name.
pub(crate) fn place(name: &str) -> Place {
    Place { address: format!("{name}.test"), port: 29500, host: None, lifelines: None }
}

/// A node with its connection, whose faults a test controls.
pub(crate) struct Agent {
    pub(crate) link: Arc<MemoryBackend>,
    pub(crate) node: Node,
}

impl Agent {
    /// Joins. The seed decides all random choices of the node.
    pub(crate) async fn join(service: &MemoryService, settings: Settings, seed: u64) -> Result<Self> {
        Self::join_over(Arc::new(service.connect_with(TTL / 4)), settings, seed).await
    }

    /// As [`Self::join`], over a connection that may have faults already.
    pub(crate) async fn join_over(link: Arc<MemoryBackend>, settings: Settings, seed: u64) -> Result<Self> {
        let entropy = Entropy::seeded(seed);
        let place = place(&settings.node_name);
        let node = Node::join(Arc::clone(&link) as _, settings, entropy, place).await?;
        Ok(Self { link, node })
    }
}

/// Nodes of these names, which join one after the other.
pub(crate) async fn joined(service: &MemoryService, nnodes: &str, names: &[&str]) -> Vec<Agent> {
    let mut agents = Vec::new();
    for (name, seed) in names.iter().zip(1u64..) {
        let settings = settings(name, nnodes, &[("last_call_timeout", "2")]);
        agents.push(Agent::join(service, settings, seed).await.expect("joined"));
    }
    agents
}
