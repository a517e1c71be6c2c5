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

use tokio::{runtime::Handle, sync::watch};

use super::joined::Joined;
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
    pub(super) fn leave(&'static self, node: Arc<Joined>, limit: Option<Duration>, runtime: &Handle) {
        self.leaving.send_modify(|leaving| *leaving += 1);
        runtime.spawn(async move {
            node.core.leave(limit).await;
            self.leaving.send_modify(|leaving| *leaving -= 1);
        });
    }

    /// Takes the nodes that exist.
    pub(super) fn take(&self) -> Vec<Arc<Joined>> {
        std::mem::take(&mut *lock(&self.joined)).iter().filter_map(Weak::upgrade).collect()
    }

    /// How many are leaving.
    pub(super) fn leaving(&self) -> watch::Receiver<usize> {
        self.leaving.subscribe()
    }
}
