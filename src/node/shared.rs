//! The facts that a session publishes: on a [`Board`] for its handle, and to the stores of the node that follow it
//! ([`Followers`]).

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    board::Board,
    followers::Followers,
    snapshot::{Snapshot, State},
};
use crate::{
    error::Error,
    protocol::{
        identity::NodeId,
        records::{ChangeRecord, WorldMembership},
    },
    store::{Slots, Store, StoreView},
};

/// The state that a session shares with its handle.
pub(super) struct Shared {
    board: Board,
    stores: Followers,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self { board: Board::new(), stores: Followers::default() }
    }

    /// The present snapshot, and a way to wait for the next one.
    pub(super) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.board.subscribe()
    }

    /// Publishes what the session knows to the handle and to the stores.
    pub(super) fn publish(&self, snapshot: &Snapshot) {
        if let Some(last) = self.board.publish(snapshot) {
            self.stores.update(snapshot, last.resets != snapshot.resets);
        }
    }

    /// Ends the session from outside.
    pub(super) fn end(&self, error: Error) {
        let last = self.board.snapshot().clone();
        self.publish(&Snapshot { state: State::Left, node: None, end: Some(error), ..last });
    }

    /// Records that the session has left and that the service has acknowledged it.
    pub(super) fn mark_left(&self) {
        self.board.mark_left();
    }

    /// Whether the session has left and the service has acknowledged it.
    pub(super) fn has_left(&self) -> bool {
        self.board.has_left()
    }

    /// The world that was returned to the owner last.
    pub(super) fn returned(&self) -> Option<WorldMembership> {
        self.board.returned()
    }

    /// Records that this world was returned to the owner.
    pub(super) fn set_returned(&self, world: WorldMembership) {
        self.board.set_returned(world);
    }

    /// The world that was returned last and the time since then, once for each world.
    pub(super) fn take_resumption(&self) -> Option<(WorldMembership, Duration)> {
        self.board.take_resumption()
    }

    /// Why the world that was returned last is about to be replaced.
    pub(super) fn change(&self) -> Option<(WorldMembership, ChangeRecord)> {
        self.board.change()
    }

    /// 1 if there is a change, else 0: one atomic read.
    pub(super) fn waiting(&self) -> u32 {
        self.board.waiting()
    }

    /// Registers a store that follows the session.
    pub(super) fn follow(
        &self,
        node: NodeId,
        life: &str,
        round: Option<WorldMembership>,
        make: impl FnOnce(watch::Receiver<StoreView>) -> (Arc<Store>, bool),
    ) -> Arc<Store> {
        self.stores.follow(&self.board, node, life, round, make)
    }

    /// The slots of one of this node's IDs.
    pub(super) fn slots(&self, node: NodeId) -> Arc<Slots> {
        self.stores.slots(node)
    }

    /// Releases the stores of earlier rounds than that of this world.
    pub(super) fn release_stores_before(&self, world: &WorldMembership) {
        self.stores.release_before(world);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("state", &self.board.snapshot().state).finish_non_exhaustive()
    }
}
