//! How nodes of this process leave: one that the program has dropped, and all when the interpreter exits.

use std::{sync::Arc, time::Duration};

use pyo3::prelude::*;
use tokio::time::timeout;

use super::{
    joined::Joined,
    runtime::{Process, block_on},
};

/// Lets a node leave in the background, unless it has left, or the runtime has ended.
pub(super) fn abandon(process: &'static Process, node: &Arc<Joined>) {
    if node.core.has_left() {
        return;
    }
    // If the runtime cannot be used, the lease expires.
    let Ok(Some(ongoing)) = process.enter() else { return };
    tracing::info!(
        target: "lattice_rdzv::node",
        "run `{}`: node `{}` leaves because the program dropped it without leaving",
        node.core.run_id(),
        node.core.name()
    );
    process.members.leave(Arc::clone(node), None, &ongoing.handle);
}

/// Leaves the runs of all nodes of this process, at the same time. If a signal ends the wait, the nodes keep leaving until
/// the runtime ends, and another call waits for them.
pub(super) fn leave_all(py: Python<'_>, limit: Duration) -> PyResult<()> {
    let process = Process::current();
    let members = &process.members;
    let nodes = members.take();
    let Some(ongoing) = process.enter()? else { return Ok(()) };
    for node in nodes {
        members.leave(node, Some(limit), &ongoing.handle);
    }
    drop(ongoing);
    let mut leaving = members.leaving();
    block_on(py, async {
        // Nodes that have not left by then end with the runtime, and their leases expire.
        let _ = timeout(limit, leaving.wait_for(|leaving| *leaving == 0)).await;
    })
}
