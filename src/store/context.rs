//! What the parts of a store share: its context, what it learns from its node's session, and its keys.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use super::{slots::Slots, takes::Takes, values::Place};
use crate::{
    backend::{
        Backend, Compare, Get, LeaseId, Txn,
        limits::Limits,
        monotonic::Monotonic,
        retry::{Backoff, RetryPolicy},
    },
    error::{Error, Result},
    protocol::{identity::NodeId, keys::RunKeys},
};

/// What a store learns from its node's session, always current.
///
/// The session moves `resets` and `run_lease` before it puts this node's record into a service that came back empty:
/// until then every write of a store is refused there, and so no write is taken for one of the store before.
#[derive(Clone, Debug, Default)]
pub struct StoreView {
    /// The run's lease; 0 while it is not known. Never the number of an earlier one.
    pub run_lease: LeaseId,
    /// How often the service has lost its data since the node joined.
    pub resets: u64,
    /// Whether the world of this store's round is known to be about to change. Of a round's store only.
    pub changed: bool,
    /// Whether this store's life is closed. Then another life may have the run's `ctl/round`, while this store lives on
    /// until its lease expires.
    pub closed: bool,
    /// Why this node id is no more, if it is: every call ends with this.
    pub over: Option<Error>,
}

/// What a store stands on.
#[derive(Clone, Debug)]
pub struct StoreContext {
    /// The service.
    pub backend: Arc<dyn Backend>,
    /// Where a store reports that the service's data was replaced.
    pub monotonic: Arc<Monotonic>,
    /// The run's keys.
    pub keys: RunKeys,
    /// This node.
    pub node: NodeId,
    /// The run's life.
    pub life: String,
    /// The round; `None` for the run-wide store.
    pub round: Option<u64>,
    /// What the session knows.
    pub view: watch::Receiver<StoreView>,
    /// The slots of this node id: one pool for all of its stores.
    pub slots: Arc<Slots>,
    /// The items that this node has taken from queues and not delivered yet.
    pub takes: Arc<Takes>,
    /// How many resets the owner of this store has been told of. The run-wide stores of one node share it.
    pub told: Arc<AtomicU64>,
    /// The waits between attempts.
    pub retry: RetryPolicy,
    /// The bounds of the service.
    pub limits: Limits,
    /// Decides the random part of the waits.
    pub seed: u64,
}

/// What all parts of a store share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) context: StoreContext,
    /// What the keys of this store begin with.
    pub(super) base: String,
    /// Makes each call's waits its own.
    calls: AtomicU64,
}

impl Inner {
    pub(super) fn new(context: StoreContext) -> Self {
        let base = match context.round {
            Some(round) => context.keys.round_store(&context.life, round),
            None => context.keys.run_store(&context.life),
        };
        Self { context, base, calls: AtomicU64::new(0) }
    }

    /// Begins a transaction that is executed only if the keys under the run's lease are the run's present data, and this
    /// node is in the run. The read shows, if it is refused, whether this node's record exists. A service that lost
    /// its data has no record of this node until the session has restored it. One that was restored from an older backup
    /// has a `ctl/round` under that lease until a session discards it.
    pub(super) fn presence(&self, view: &StoreView) -> (Txn, Get) {
        let keys = &self.context.keys;
        let node = keys.node(self.context.node);
        let (txn, record) = Txn::read_if_refused(node.as_str());
        let of_run = Compare::Lease(keys.round().into(), view.run_lease);
        (txn.when([Compare::Exists(node.into())]).when((!view.closed).then_some(of_run)), record)
    }

    pub(super) fn seed(&self) -> u64 {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        self.context.seed ^ call.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(self.context.retry, self.seed())
    }

    pub(super) fn place(&self, name: &str) -> Result<Place> {
        Place::new(&self.base, name)
    }

    pub(super) fn places<K: AsRef<str>>(&self, names: &[K]) -> Result<Vec<Place>> {
        names.iter().map(|name| self.place(name.as_ref())).collect()
    }

    /// Whether the owner of this store was not told yet of the last of these resets. From here on it was.
    pub(super) fn tells(&self, resets: u64) -> bool {
        self.context.told.fetch_max(resets, Ordering::Relaxed) < resets
    }

    /// Ends when the node id is no more or, unless the store puts back, when the service lost its data.
    pub(super) async fn ended(&self, resets: u64, puts_back: bool, what: &str) -> Error {
        let mut view = self.context.view.clone();
        let ended = view.wait_for(|view| view.over.is_some() || (!puts_back && view.resets != resets));
        match ended.await.as_deref() {
            Ok(StoreView { over: Some(error), .. }) => error.clone(),
            Ok(StoreView { resets, .. }) => {
                self.tells(*resets);
                Error::StoreReset { what: what.to_owned() }
            }
            Err(_) => Error::Left,
        }
    }
}
