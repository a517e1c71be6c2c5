//! The nodes of this process: which of them are still in a run, and which are leaving.
//!
//! Problem: a node that disappears without a message costs its peers a lease TTL, and a node that no variable refers to
//! any more would stay a member forever. Design: the list holds weak references only. A dropped node leaves in a
//! background task, because its finalizer may run in any thread and must not wait for the network. The exit hook waits
//! for these tasks and lets the remaining nodes leave at the same time.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use pyo3::prelude::*;
use tokio::{sync::watch, time::timeout};

use super::{
    node::Joined,
    runtime::{Ongoing, Process, block_on},
};
use crate::lock::lock;

/// The nodes of one process.
#[derive(Debug)]
pub(super) struct Members {
    joined: Mutex<Vec<Weak<Joined>>>,
    /// How many are leaving.
    leaving: watch::Sender<usize>,
}

impl Default for Members {
    fn default() -> Self {
        Self { joined: Mutex::default(), leaving: watch::Sender::new(0) }
    }
}

impl Members {
    pub(super) fn add(&self, node: &Arc<Joined>) {
        let mut joined = lock(&self.joined);
        joined.retain(|other| other.strong_count() > 0);
        joined.push(Arc::downgrade(node));
    }

    /// Starts a separate task in which a node leaves, and which only the end of the runtime can interrupt.
    fn leave(&'static self, node: Arc<Joined>, limit: Option<Duration>, ongoing: &Ongoing) {
        self.leaving.send_modify(|leaving| *leaving += 1);
        ongoing.handle.spawn(async move {
            node.core.leave(limit).await;
            self.leaving.send_modify(|leaving| *leaving -= 1);
        });
    }
}

impl Process {
    /// Lets a node leave in the background, unless it has left, or the runtime has ended.
    pub(super) fn abandon(&'static self, node: &Arc<Joined>) {
        if node.core.has_left() {
            return;
        }
        // If the runtime cannot be used, the lease expires.
        let Ok(Some(ongoing)) = self.enter() else { return };
        tracing::info!(
            target: "lattice_rdzv::node",
            "run `{}`: node `{}` leaves because the program dropped it without leaving",
            node.core.run_id(),
            node.core.name()
        );
        self.members.leave(Arc::clone(node), None, &ongoing);
    }
}

/// Leaves the runs of all nodes of this process, at the same time. If a signal ends the wait, the nodes keep leaving until
/// the runtime ends, and another call waits for them.
pub(super) fn leave_all(py: Python<'_>, limit: Duration) -> PyResult<()> {
    let process = Process::current();
    let members = &process.members;
    let nodes: Vec<_> =
        std::mem::take(&mut *lock(&members.joined)).iter().filter_map(Weak::upgrade).collect();
    let Some(ongoing) = process.enter()? else { return Ok(()) };
    for node in nodes {
        members.leave(node, Some(limit), &ongoing);
    }
    drop(ongoing);
    let mut leaving = members.leaving.subscribe();
    block_on(py, async {
        // Nodes that have not left by then end with the runtime, and their leases expire.
        let _ = timeout(limit, leaving.wait_for(|leaving| *leaving == 0)).await;
    })
}
