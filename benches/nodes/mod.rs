//! Nodes of a benchmark, each of which searches its service and connects by itself, as an agent does.

#![allow(dead_code, reason = "each benchmark uses its own part of this")]

use std::{collections::BTreeMap, sync::Arc};

use lattice_rdzv::{
    lifeline::{self, Lifelines},
    node::{Node, Place, Search},
    protocol::keys::RunKeys,
    run::Entropy,
    settings::{Arguments, Origin, Settings},
};
use tokio::task::JoinSet;

/// Settings of a node with these values.
pub(crate) fn settings<const N: usize>(values: [(&str, &str); N]) -> Settings {
    let values = values.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Settings::resolve(&Arguments { values: values.into(), origin: Origin::Argument }, &BTreeMap::new())
        .unwrap()
}

/// Starts a node for each of these settings, all at once, and waits until each has its world.
pub(crate) async fn form(all: Vec<Settings>, lifelines: bool) -> Vec<Arc<Node>> {
    let mut joining = JoinSet::new();
    for settings in all {
        joining.spawn(async move {
            let lifelines = if lifelines { lifeline::open(&settings) } else { None };
            let node = Arc::new(join(settings, lifelines).await);
            node.next_world(None, None).await.unwrap();
            node
        });
    }
    joining.join_all().await
}

/// Connects, and joins the run of the settings.
pub(crate) async fn join(settings: Settings, lifelines: Option<Box<dyn Lifelines>>) -> Node {
    let entropy = Entropy::from_system();
    let keys = RunKeys::new(&settings.run.tenant, &settings.run.run_id);
    let environment = BTreeMap::new();
    let search = Search::of_node(&settings, &environment, &keys, &entropy);
    let (found, _) = search.connect_or_host().await.unwrap_or_else(|error| panic!("{error}"));
    let place = Place { address: "127.0.0.1".to_owned(), port: 29500, host: None, lifelines };
    Node::join_found(found, settings.clone(), entropy, place).await.unwrap()
}
