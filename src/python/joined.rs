//! A node, as its worlds and stores share it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use pyo3::PyResult;

use super::errors::RendezvousError;
use crate::node::Node;

/// One node of this process, as its worlds and stores share it.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) core: Arc<Node>,
    /// Whether a call of `next_world` is in progress.
    awaits_world: AtomicBool,
}

impl Joined {
    pub(super) fn new(core: Node) -> Self {
        Self { core: Arc::new(core), awaits_world: AtomicBool::new(false) }
    }
}

/// The single call of `next_world` that is in progress for a node.
pub(super) struct AwaitsWorld(pub(super) Arc<Joined>);

impl AwaitsWorld {
    pub(super) fn begin(joined: &Arc<Joined>) -> PyResult<Self> {
        if joined.awaits_world.swap(true, Ordering::AcqRel) {
            return Err(RendezvousError::new_err(format!(
                "another thread or task is waiting in `next_world` of this node; only one may, because the call gives \
                 up the node's present world: {}",
                joined.core.name()
            )));
        }
        Ok(Self(Arc::clone(joined)))
    }
}

impl Drop for AwaitsWorld {
    fn drop(&mut self) {
        self.0.awaits_world.store(false, Ordering::Release);
    }
}
