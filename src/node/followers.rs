//! The stores of a node: each follows the session through its [`StoreView`], and those that restore their writes are
//! kept alive for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use super::{
    board::{Board, change_for},
    snapshot::Snapshot,
};
use crate::{
    error::Error,
    lock::lock,
    protocol::{identity::NodeId, records::WorldMembership},
    store::{Slots, Store, StoreView},
};

/// A store that follows its node's session.
struct Follower {
    node: NodeId,
    life: String,
    round: Option<WorldMembership>,
    view: watch::Sender<StoreView>,
    put_back: Option<Arc<Store>>,
}

/// The stores that follow a session.
#[derive(Default)]
pub(super) struct Followers {
    followers: Mutex<Vec<Follower>>,
    /// The slots of each ID that this node has had, because the slots of an ID must never start again.
    slots: Mutex<BTreeMap<NodeId, Arc<Slots>>>,
}

impl Followers {
    /// Updates the views. After a reset, the stores that restore their writes start to do so.
    pub(super) fn update(&self, snapshot: &Snapshot, reset: bool) {
        let mut followers = lock(&self.followers);
        followers.retain(|follower| !follower.view.is_closed());
        for follower in followers.iter() {
            follower.view.send_if_modified(|view| {
                let new = view_of(follower, snapshot);
                let changed = !same_view(view, &new);
                *view = new;
                changed
            });
            if let Some(store) = follower.put_back.as_ref().filter(|_| reset) {
                let store = Arc::clone(store);
                tokio::spawn(async move {
                    if let Err(error) = store.put_back_now().await {
                        tracing::warn!("the keys of the store were not all restored: {error}");
                    }
                });
            }
        }
    }

    /// Registers a store. Its view is current while the store exists.
    pub(super) fn follow(
        &self,
        board: &Board,
        node: NodeId,
        life: &str,
        round: Option<WorldMembership>,
        make: impl FnOnce(watch::Receiver<StoreView>) -> (Arc<Store>, bool),
    ) -> Arc<Store> {
        // The lock is taken first: then later publications reach the follower, and its view includes all earlier ones.
        let mut followers = lock(&self.followers);
        let (view, receiver) = watch::channel(StoreView::default());
        let mut follower = Follower { node, life: life.to_owned(), round, view, put_back: None };
        follower.view.send_replace(view_of(&follower, &board.snapshot()));
        let (store, put_back) = make(receiver);
        if put_back {
            follower.put_back = Some(Arc::clone(&store));
        }
        followers.retain(|follower| !follower.view.is_closed());
        followers.push(follower);
        store
    }

    /// The slots of one of this node's IDs.
    pub(super) fn slots(&self, node: NodeId) -> Arc<Slots> {
        Arc::clone(lock(&self.slots).entry(node).or_default())
    }

    /// Releases the stores of earlier rounds that restore their writes, which are otherwise kept alive here. A caller that
    /// has one can still read it.
    pub(super) fn release_before(&self, world: &WorldMembership) {
        for follower in lock(&self.followers).iter_mut() {
            if let Some(round) = &follower.round
                && (round.life != world.life || round.round < world.round)
            {
                follower.put_back = None;
            }
        }
    }
}

fn view_of(follower: &Follower, snapshot: &Snapshot) -> StoreView {
    // A closing with success does not change the world, but no node will write the awaited key any more.
    let closed = snapshot.closed.as_ref().is_some_and(|closed| closed.life == follower.life);
    let changed =
        follower.round.as_ref().is_some_and(|world| closed || change_for(world, snapshot).is_some());
    let of_this_life = snapshot.world.as_ref().is_none_or(|world| world.place.life == follower.life);
    let over = match &snapshot.end {
        Some(error) => Some(error.clone()),
        None if snapshot.node != Some(follower.node) => Some(Error::Left),
        None => None,
    };
    StoreView {
        run_lease: if of_this_life { snapshot.run_lease } else { 0 },
        resets: snapshot.resets,
        changed,
        closed,
        over,
    }
}

fn same_view(old: &StoreView, new: &StoreView) -> bool {
    old.run_lease == new.run_lease
        && old.resets == new.resets
        && old.changed == new.changed
        && old.closed == new.closed
        && old.over.is_some() == new.over.is_some()
}
