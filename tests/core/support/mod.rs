//! What several modules of tests use.

pub(crate) mod book;
pub(crate) mod census;
pub(crate) mod choices;
pub(crate) mod cluster;
pub(crate) mod embedded;
pub(crate) mod etcd;
pub(crate) mod hosted;
pub(crate) mod lines;
pub(crate) mod memory;
pub(crate) mod nodes;
pub(crate) mod runs;
pub(crate) mod schedule;
pub(crate) mod tapped;
pub(crate) mod unfinished;
pub(crate) mod wires;

use etcd::PATIENCE;

/// Waits for a future, and fails with a description of what was awaited.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
