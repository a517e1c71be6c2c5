//! The stores of a run and of its rounds.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Node, snapshot::WorldFacts};
use crate::{
    backend::retry::RetryPolicy,
    error::{Error, Result},
    protocol::{identity::NodeId, records::WorldMembership},
    store::{Store, StoreContext, StoreView},
};

impl Node {
    /// The store of a world's round. With `put_back`, it writes its own keys again after the service lost its data.
    pub fn round_store(&self, world: &WorldFacts, put_back: bool) -> Arc<Store> {
        let WorldMembership { life, round, .. } = &world.place;
        self.shared.follow(world.node, life, Some(world.place.clone()), |view| {
            let store = Store::new(self.store_context(world.node, life, Some(*round), view));
            (Arc::new(if put_back { store.put_back() } else { store }), put_back)
        })
    }

    /// The run-wide store, as soon as the node is in the run and knows its life.
    ///
    /// # Errors
    /// [`Error::Timeout`] if that takes too long, [`Error::Closed`], and the errors that end a session.
    pub async fn run_store(&self, limit: Duration) -> Result<Arc<Store>> {
        let began = Instant::now();
        let mut snapshot = self.shared.subscribe();
        loop {
            let seen = snapshot.borrow_and_update().clone();
            let life = match (&seen.world, &seen.round) {
                (Some(world), _) => Some(&world.place.life),
                (None, Some(round)) => Some(&round.life),
                (None, None) => None,
            };
            if let (Some(node), Some(life), None) = (seen.node, life, &seen.end) {
                return Ok(self.shared.follow(node, life, None, |view| {
                    (Arc::new(Store::new(self.store_context(node, life, None, view))), false)
                }));
            }
            if let Some(closed) = &seen.closed {
                return Err(closed.error(self.run_id()));
            }
            if let Some(error) = seen.end {
                return Err(error);
            }
            let Ok(changed) = timeout_at(began + limit, snapshot.changed()).await else {
                let what = format!("run `{}` has not begun, so it has no store yet", self.run_id());
                return Err(seen.trouble.unwrap_or(Error::Timeout { what, after: began.elapsed() }));
            };
            changed.map_err(|_| Error::Left)?;
        }
    }

    fn store_context(
        &self,
        node: NodeId,
        life: &str,
        round: Option<u64>,
        view: watch::Receiver<StoreView>,
    ) -> StoreContext {
        let resets = view.borrow().resets;
        let told = match round {
            Some(_) => Arc::new(AtomicU64::new(resets)),
            None => Arc::clone(self.run_resets_told.get_or_init(|| Arc::new(AtomicU64::new(resets)))),
        };
        StoreContext {
            backend: self.context.monotonic.guarded(),
            monotonic: Arc::clone(&self.context.monotonic),
            record_missing: Arc::clone(&self.context.record_missing),
            keys: self.context.keys.clone(),
            node,
            life: life.to_owned(),
            round,
            view,
            slots: self.shared.slots(node),
            takes: Arc::clone(&self.takes),
            told,
            retry: RetryPolicy::default(),
            limits: self.context.limits,
            seed: self.context.entropy.bits(),
        }
    }
}
