//! What a session publishes and its handle reads: a snapshot, and the one number that torch polls ten times a second.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use tokio::sync::watch;

use super::shared::{Snapshot, WorldFacts};
use crate::protocol::{
    records::{ChangeKind, ChangeRecord, LastWorld},
    standing::change_of,
};

/// The snapshot of a session, and what its handle has done with it.
pub(super) struct Board {
    snapshot: watch::Sender<Snapshot>,
    returned: Mutex<Option<LastWorld>>,
    waiting: AtomicU32,
    gone: AtomicBool,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            snapshot: watch::Sender::new(Snapshot::default()),
            returned: Mutex::default(),
            waiting: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }
    }

    /// What is known now, and a way to wait for news.
    pub(super) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    /// What is known now.
    pub(super) fn snapshot(&self) -> watch::Ref<'_, Snapshot> {
        self.snapshot.borrow()
    }

    /// Publishes a snapshot if it differs from the last one, which it then returns. A session publishes at each of its
    /// turns, and every receiver is another thread.
    pub(super) fn publish(&self, snapshot: &Snapshot) -> Option<Snapshot> {
        if *self.snapshot.borrow() == *snapshot {
            return None;
        }
        // Under the lock, and before any receiver is notified: of the session and the handle, the one that counts last must
        // have both snapshots, and a receiver that is notified of a change must find it counted.
        let returned = lock(&self.returned);
        self.count_waiting(returned.as_ref(), snapshot);
        Some(self.snapshot.send_replace(snapshot.clone()))
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
pub(super) fn change_for(world: &LastWorld, snapshot: &Snapshot) -> Option<ChangeRecord> {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The value is replaced as a whole, so that it is never half written after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_that_has_changed_already_is_news_when_its_owner_gets_it() {
        let board = Board::new();
        board.publish(&Snapshot { dropped: Some("lost n1".to_owned()), ..Snapshot::default() });
        let mut waiter = board.subscribe();
        waiter.borrow_and_update();
        assert!(board.change().is_none(), "nobody has a world yet");

        let world = LastWorld { life: "life".into(), round: 1, world: "w".into(), rank: 0, size: 2 };
        board.set_returned(world);
        assert!(waiter.has_changed().unwrap(), "who waits for a change is woken");
        assert_eq!(board.change().unwrap().1.kind, ChangeKind::Replaced);
    }

    #[test]
    fn what_is_no_news_wakes_nobody() {
        let board = Board::new();
        let snapshot = Snapshot { resets: 1, ..Snapshot::default() };
        board.publish(&snapshot);
        let mut waiter = board.subscribe();
        waiter.borrow_and_update();
        board.publish(&snapshot);
        assert!(!waiter.has_changed().unwrap());
    }
}
