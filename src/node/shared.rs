//! The facts that a session publishes: on a [`Board`] for its handle, and to the stores of the node that follow it
//! ([`Followers`]).

use std::sync::Arc;

use tokio::{sync::watch, time::Instant};

use super::{board::Board, followers::Followers};
use crate::{
    backend::LeaseId,
    error::Error,
    protocol::{
        identity::NodeId,
        records::{ChangeRecord, ClosedRecord, LastWorld, RoundRecord},
    },
    store::{Slots, Store, StoreView},
};

/// What a node is at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It has not reached the run yet, or is on its way back into it as new.
    #[default]
    Joining,
    /// It waits for a world.
    Seeking,
    /// It waits, and the world is full.
    Spare,
    /// It is in a world.
    Member,
    /// Its lease may be over: it decides nothing, and trains on.
    Uncertain,
    /// The run is closed.
    Closed,
    /// It has left.
    Left,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Seeking => "seeking",
            Self::Spare => "spare",
            Self::Member => "member",
            Self::Uncertain => "uncertain",
            Self::Closed => "closed",
            Self::Left => "left",
        }
    }
}

/// A world, as one of its nodes has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldFacts {
    /// The node's id in it.
    pub node: NodeId,
    /// What the node is called in it.
    pub name: String,
    /// Life, round, rank and size.
    pub place: LastWorld,
    /// Where rank 0 is reached.
    pub master_address: String,
    /// The port that rank 0 serves.
    pub master_port: u16,
    /// Why the round was formed.
    pub why: String,
    /// The node that hosts the service, if one does.
    pub host: Option<String>,
}

/// That the node which hosts the service has been silent for longer than a lease lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLost {
    /// Its name.
    pub host: String,
    /// Since when it counts as lost.
    pub since: Instant,
}

/// What a session knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What the node is.
    pub state: State,
    /// Its present id; none while it is not in the run.
    pub node: Option<NodeId>,
    /// The last world that it is in, returned to its owner or not.
    pub world: Option<Arc<WorldFacts>>,
    /// `ctl/round`.
    pub round: Option<RoundRecord>,
    /// The closing of this node's life.
    pub closed: Option<ClosedRecord>,
    /// Why the node is no longer in the world that it was in.
    pub dropped: Option<String>,
    /// That its world has lost the service with the node that hosts it.
    pub host_lost: Option<HostLost>,
    /// Why the session is over.
    pub end: Option<Error>,
    /// What the service last failed with, while it does.
    pub trouble: Option<Error>,
    /// The run's lease; 0 while there is none.
    pub run_lease: LeaseId,
    /// How often the service has lost its data.
    pub resets: u64,
}

/// The meeting point of a session and its handle.
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

    /// The session was ended from outside.
    pub(super) fn end(&self, error: Error) {
        let last = self.board.snapshot().clone();
        self.publish(&Snapshot { state: State::Left, node: None, end: Some(error), ..last });
    }

    /// Notes that the session has left and that the service has acknowledged it.
    pub(super) fn set_gone(&self) {
        self.board.set_gone();
    }

    /// Whether the session has left and the service has acknowledged it.
    pub(super) fn is_gone(&self) -> bool {
        self.board.is_gone()
    }

    /// The world that was returned to the owner last.
    pub(super) fn returned(&self) -> Option<LastWorld> {
        self.board.returned()
    }

    /// Notes that this world was returned to the owner.
    pub(super) fn set_returned(&self, world: LastWorld) {
        self.board.set_returned(world);
    }

    /// Why the world that was returned last is about to be replaced.
    pub(super) fn change(&self) -> Option<(LastWorld, ChangeRecord)> {
        self.board.change()
    }

    /// 1 if there is a change, else 0: one atomic read.
    pub(super) fn waiting(&self) -> u32 {
        self.board.waiting()
    }

    /// Lets a store follow the session.
    pub(super) fn follow(
        &self,
        node: NodeId,
        life: &str,
        round: Option<LastWorld>,
        make: impl FnOnce(watch::Receiver<StoreView>) -> (Arc<Store>, bool),
    ) -> Arc<Store> {
        self.stores.follow(&self.board, node, life, round, make)
    }

    /// The slots of one of this node's ids.
    pub(super) fn slots(&self, node: NodeId) -> Arc<Slots> {
        self.stores.slots(node)
    }

    /// Releases the stores of earlier rounds than that of this world.
    pub(super) fn release_stores_before(&self, world: &LastWorld) {
        self.stores.release_before(world);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("state", &self.board.snapshot().state).finish_non_exhaustive()
    }
}
