//! What the parts of a store share: the context, the view of the node's session, and the keys.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{Notify, watch};

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

/// What a store learns from the session of its node. It is always current.
///
/// When the service has lost its data, the session updates `resets` and `run_lease` before it writes this node's record
/// again. Until then the service refuses every write of a store. Therefore no write that it accepts is mistaken for a
/// write to the data before the loss.
#[derive(Clone, Debug, Default)]
pub struct StoreView {
    /// The run's lease. 0 while it is not known. Never the ID of an earlier lease.
    pub run_lease: LeaseId,
    /// How often the service has lost its data since the node joined.
    pub resets: u64,
    /// Whether the world of this store's round is about to change. Only for the store of a round.
    pub changed: bool,
    /// Whether the life of this store is closed. Another life may then own the run's `ctl/round`, while this store
    /// remains until its lease expires.
    pub closed: bool,
    /// The error that ended this node ID. Every further call fails with it.
    pub over: Option<Error>,
}

/// What a store is based on.
#[derive(Clone, Debug)]
pub struct StoreContext {
    /// The service.
    pub backend: Arc<dyn Backend>,
    /// Where a store reports that the service's data was replaced.
    pub monotonic: Arc<Monotonic>,
    /// Where a store reports that this node has no record: an observer has reported it dead, or the service lost its data.
    pub record_missing: Arc<Notify>,
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
    /// How many resets were reported to the owner of this store. The run-wide stores of a node share this number.
    pub told: Arc<AtomicU64>,
    /// The pauses between attempts.
    pub retry: RetryPolicy,
    /// The bounds of the service.
    pub limits: Limits,
    /// Decides the random part of the pauses.
    pub seed: u64,
}

/// What all parts of a store share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) context: StoreContext,
    /// The prefix of the keys of this store.
    pub(super) base: String,
    /// Counts the calls, so that each has different pauses.
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

    /// Returns whether the last of these resets was not reported to the owner of this store yet, and marks it as
    /// reported.
    pub(super) fn mark_reported(&self, resets: u64) -> bool {
        self.context.told.fetch_max(resets, Ordering::Relaxed) < resets
    }

    /// Ends when the node ID is no longer valid or, unless the store restores its writes, when the service lost its
    /// data.
    pub(super) async fn ended(&self, resets: u64, puts_back: bool, what: &str) -> Error {
        let mut view = self.context.view.clone();
        let ended = view.wait_for(|view| view.over.is_some() || (!puts_back && view.resets != resets));
        match ended.await.as_deref() {
            Ok(StoreView { over: Some(error), .. }) => error.clone(),
            Ok(StoreView { resets, .. }) => {
                self.mark_reported(*resets);
                Error::StoreReset { what: what.to_owned() }
            }
            Err(_) => Error::Left,
        }
    }
}
