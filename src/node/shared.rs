//! What a session publishes and its handle reads: a snapshot, and the one number that torch polls ten times a second.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use tokio::{sync::watch, time::Instant};

use crate::{
    backend::LeaseId,
    error::Error,
    protocol::{
        identity::NodeId,
        records::{ChangeKind, ChangeRecord, ClosedRecord, LastWorld, RoundRecord},
        standing::change_of,
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
    /// How often the service came back empty.
    pub resets: u64,
}

/// A store that follows its node's session.
struct Follower {
    node: NodeId,
    life: String,
    round: Option<LastWorld>,
    view: watch::Sender<StoreView>,
    put_back: Option<Arc<Store>>,
}

/// The meeting point of a session and its handle.
pub(super) struct Shared {
    snapshot: watch::Sender<Snapshot>,
    returned: Mutex<Option<LastWorld>>,
    waiting: AtomicU32,
    gone: AtomicBool,
    followers: Mutex<Vec<Follower>>,
    /// The slots of each id that this node has had: an id's writes must never begin anew.
    slots: Mutex<BTreeMap<NodeId, Arc<Slots>>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            snapshot: watch::Sender::new(Snapshot::default()),
            returned: Mutex::default(),
            waiting: AtomicU32::new(0),
            gone: AtomicBool::new(false),
            followers: Mutex::default(),
            slots: Mutex::default(),
        }
    }

    /// What is known now, and a way to wait for news.
    pub(super) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    /// Tells everybody, if it is news: a session publishes at each of its turns, and whoever waits is another thread.
    pub(super) fn publish(&self, snapshot: &Snapshot) {
        if *self.snapshot.borrow() == *snapshot {
            return;
        }
        let resets = self.snapshot.borrow().resets;
        {
            // Under the lock, and before anybody is told: of the session and the handle, who counts last must have seen
            // both's news, and who is told of a change must find it counted.
            let returned = lock(&self.returned);
            self.count_waiting(returned.as_ref(), snapshot);
            self.snapshot.send_replace(snapshot.clone());
        }
        let mut followers = lock(&self.followers);
        followers.retain(|follower| !follower.view.is_closed());
        for follower in followers.iter() {
            follower.view.send_if_modified(|view| {
                let new = view_of(follower, snapshot);
                let changed = !same_view(view, &new);
                *view = new;
                changed
            });
            if let (true, Some(store)) = (snapshot.resets != resets, &follower.put_back) {
                let store = Arc::clone(store);
                tokio::spawn(async move {
                    if let Err(error) = store.put_back_now().await {
                        tracing::warn!("the store's keys were not all put back: {error}");
                    }
                });
            }
        }
    }

    /// The session was ended from outside.
    pub(super) fn end(&self, error: Error) {
        let last = self.snapshot.borrow().clone();
        self.publish(&Snapshot { state: State::Left, node: None, end: Some(error), ..last });
    }

    /// The session has left as one should: the service knows.
    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Whether it has.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// The world that its owner has.
    pub(super) fn returned(&self) -> Option<LastWorld> {
        lock(&self.returned).clone()
    }

    /// Its owner has this world now. What is known of it may be a change already, which is news to who waits for one.
    pub(super) fn set_returned(&self, world: LastWorld) {
        {
            let mut returned = lock(&self.returned);
            *returned = Some(world);
            self.count_waiting(returned.as_ref(), &self.snapshot.borrow());
        }
        self.snapshot.send_modify(|_| ());
    }

    /// Why the world that its owner has is about to be replaced.
    pub(super) fn change(&self) -> Option<(LastWorld, ChangeRecord)> {
        change_of_returned(lock(&self.returned).as_ref(), &self.snapshot.borrow())
    }

    fn count_waiting(&self, returned: Option<&LastWorld>, snapshot: &Snapshot) {
        let changing = change_of_returned(returned, snapshot).is_some();
        self.waiting.store(u32::from(changing), Ordering::Release);
    }

    /// 1 if there is a change, else 0: one atomic read.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Acquire)
    }

    /// Lets a store follow: its view, always current while the store lives.
    pub(super) fn follow(
        &self,
        node: NodeId,
        life: &str,
        round: Option<LastWorld>,
        make: impl FnOnce(watch::Receiver<StoreView>) -> (Arc<Store>, bool),
    ) -> Arc<Store> {
        // First the lock: what is published from here on finds the follower, what was published before is in its view.
        let mut followers = lock(&self.followers);
        let (view, receiver) = watch::channel(StoreView::default());
        let mut follower = Follower { node, life: life.to_owned(), round, view, put_back: None };
        follower.view.send_replace(view_of(&follower, &self.snapshot.borrow()));
        let (store, put_back) = make(receiver);
        if put_back {
            follower.put_back = Some(Arc::clone(&store));
        }
        followers.retain(|follower| !follower.view.is_closed());
        followers.push(follower);
        store
    }

    /// The slots of one of this node's ids.
    pub(super) fn slots(&self, node: NodeId) -> Arc<Slots> {
        Arc::clone(lock(&self.slots).entry(node).or_default())
    }

    /// Lets go of the earlier rounds' stores that are put back, which this otherwise keeps alive. Whoever has one still
    /// reads it.
    pub(super) fn release_stores_before(&self, world: &LastWorld) {
        for follower in lock(&self.followers).iter_mut() {
            if let Some(round) = &follower.round
                && (round.life != world.life || round.round < world.round)
            {
                follower.put_back = None;
            }
        }
    }
}

/// Why the world that its owner has is about to be replaced, or was.
fn change_of_returned(
    returned: Option<&LastWorld>,
    snapshot: &Snapshot,
) -> Option<(LastWorld, ChangeRecord)> {
    let world = returned?;
    change_for(world, snapshot).map(|change| (world.clone(), change))
}

/// Why this world is about to be replaced, or was.
fn change_for(world: &LastWorld, snapshot: &Snapshot) -> Option<ChangeRecord> {
    let closed = snapshot.closed.as_ref();
    let lost = snapshot.host_lost.as_ref().filter(|_| closed.is_none()).map(|lost| ChangeRecord {
        kind: ChangeKind::Lost,
        why: format!("lost {}, which hosts the service", lost.host),
        names: vec![lost.host.clone()],
    });
    change_of(world, snapshot.round.as_ref(), closed).or(lost).or_else(|| {
        let later = snapshot.world.as_ref().filter(|later| !later.place.is_same_world(world));
        let formed =
            |later: &Arc<WorldFacts>| format!("round {} was formed: {}", later.place.round, later.why);
        let why = snapshot.dropped.clone().or_else(|| later.map(formed)).filter(|_| closed.is_none())?;
        Some(ChangeRecord { kind: ChangeKind::Replaced, why, names: Vec::new() })
    })
}

fn view_of(follower: &Follower, snapshot: &Snapshot) -> StoreView {
    // Closed with success is no change of the world, but nobody will write the key that is waited for.
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values under these locks are replaced whole, so that none is half written after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("state", &self.snapshot.borrow().state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_that_has_changed_already_is_news_when_its_owner_gets_it() {
        let shared = Shared::new();
        shared.publish(&Snapshot { dropped: Some("lost n1".to_owned()), ..Snapshot::default() });
        let mut waiter = shared.subscribe();
        waiter.borrow_and_update();
        assert!(shared.change().is_none(), "nobody has a world yet");

        let world = LastWorld { life: "life".into(), round: 1, world: "w".into(), rank: 0, size: 2 };
        shared.set_returned(world);
        assert!(waiter.has_changed().unwrap(), "who waits for a change is woken");
        assert_eq!(shared.change().unwrap().1.kind, ChangeKind::Replaced);
    }

    #[test]
    fn what_is_no_news_wakes_nobody() {
        let shared = Shared::new();
        let snapshot = Snapshot { resets: 1, ..Snapshot::default() };
        shared.publish(&snapshot);
        let mut waiter = shared.subscribe();
        waiter.borrow_and_update();
        shared.publish(&snapshot);
        assert!(!waiter.has_changed().unwrap());
    }
}
