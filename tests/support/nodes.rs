//! Nodes on the memory service, as a test tells of them.
#![allow(dead_code, reason = "each test crate uses its own part of this")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lattice_rdzv::{
    Result,
    backend::memory::{MemoryBackend, MemoryService},
    node::{Node, Place},
    run::Entropy,
    settings::{Arguments, Origin, Settings},
};

/// The lease of all nodes here.
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

/// Where a node of this name is.
pub(crate) fn place(name: &str) -> Place {
    Place { address: format!("{name}.test"), port: 29500, host: None }
}

/// A node with the connection that a test plays tricks on.
pub(crate) struct Agent {
    pub(crate) link: Arc<MemoryBackend>,
    pub(crate) node: Node,
}

impl Agent {
    /// Joins; the seed decides everything random about it.
    pub(crate) async fn join(service: &MemoryService, settings: Settings, seed: u64) -> Result<Self> {
        Self::join_over(Arc::new(service.connect_with(TTL / 4)), settings, seed).await
    }

    /// The same over a connection that may have its tricks already.
    pub(crate) async fn join_over(link: Arc<MemoryBackend>, settings: Settings, seed: u64) -> Result<Self> {
        let entropy = Entropy::seeded(seed);
        let place = place(&settings.node_name);
        let node = Node::join(Arc::clone(&link) as _, settings, entropy, place).await?;
        Ok(Self { link, node })
    }
}
