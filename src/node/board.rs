//! What a session publishes and its handle reads: a snapshot, and the one number that torch polls ten times a second.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use super::snapshot::{Snapshot, WorldFacts};
use crate::{
    lock::lock,
    protocol::{
        records::{ChangeKind, ChangeRecord, WorldMembership},
        standing::change_of,
    },
};

/// The snapshot of a session, and what its handle has done with it.
pub(super) struct Board {
    snapshot: watch::Sender<Snapshot>,
    returned: Mutex<Option<Returned>>,
    waiting: AtomicU32,
    left: AtomicBool,
}

/// The world that was returned to the owner last.
struct Returned {
    world: WorldMembership,
    at: Instant,
    /// Whether the program has reported that it trains in this world.
    is_resumed: bool,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            snapshot: watch::Sender::new(Snapshot::default()),
            returned: Mutex::default(),
            waiting: AtomicU32::new(0),
            left: AtomicBool::new(false),
        }
    }

    /// The present snapshot, and a way to wait for the next one.
    pub(super) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    /// The present snapshot.
    pub(super) fn snapshot(&self) -> watch::Ref<'_, Snapshot> {
        self.snapshot.borrow()
    }

    /// Publishes a snapshot if it differs from the last one, and returns the last one. A session publishes after each
    /// of its steps, and every receiver is another thread.
    pub(super) fn publish(&self, snapshot: &Snapshot) -> Option<Snapshot> {
        if *self.snapshot.borrow() == *snapshot {
            return None;
        }
        // Under the lock, and before any receiver is notified. Of the session and the handle, the one that counts last
        // must have both snapshots, and a receiver that is notified of a change must find it counted.
        let returned = lock(&self.returned);
        self.count_waiting(returned.as_ref().map(|returned| &returned.world), snapshot);
        Some(self.snapshot.send_replace(snapshot.clone()))
    }

    /// Records that the session has left and that the service has acknowledged it.
    pub(super) fn mark_left(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Whether the session has left and the service has acknowledged it.
    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// The world that was returned to the owner last.
    pub(super) fn returned(&self) -> Option<WorldMembership> {
        lock(&self.returned).as_ref().map(|returned| returned.world.clone())
    }

    /// Takes the report that the program trains in the world that was returned last: this world, and the time since then.
    /// There is one for each world.
    pub(super) fn take_resumption(&self) -> Option<(WorldMembership, Duration)> {
        let mut returned = lock(&self.returned);
        let returned = returned.as_mut().filter(|returned| !returned.is_resumed)?;
        returned.is_resumed = true;
        Some((returned.world.clone(), returned.at.elapsed()))
    }

    /// Marks this world as returned to the owner. A change of it may be known already, so waiting callers are notified.
    pub(super) fn set_returned(&self, world: WorldMembership) {
        {
            let mut returned = lock(&self.returned);
            self.count_waiting(Some(&world), &self.snapshot.borrow());
            *returned = Some(Returned { world, at: Instant::now(), is_resumed: false });
        }
        self.snapshot.send_modify(|_| ());
    }

    /// Why the world that was returned last is about to be replaced.
    pub(super) fn change(&self) -> Option<(WorldMembership, ChangeRecord)> {
        let world = self.returned();
        change_of_returned(world.as_ref(), &self.snapshot.borrow())
    }

    fn count_waiting(&self, returned: Option<&WorldMembership>, snapshot: &Snapshot) {
        let changing = change_of_returned(returned, snapshot).is_some();
        self.waiting.store(u32::from(changing), Ordering::Release);
    }

    /// 1 if there is a change, else 0: one atomic read.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Acquire)
    }
}

/// Why the world that was returned last is about to be replaced, or was replaced.
fn change_of_returned(
    returned: Option<&WorldMembership>,
    snapshot: &Snapshot,
) -> Option<(WorldMembership, ChangeRecord)> {
    let world = returned?;
    change_for(world, snapshot).map(|change| (world.clone(), change))
}

/// Why this world is about to be replaced, or was replaced.
pub(super) fn change_for(world: &WorldMembership, snapshot: &Snapshot) -> Option<ChangeRecord> {
    let closed = snapshot.closed.as_ref();
    let lost = snapshot.host_lost.as_ref().filter(|_| closed.is_none()).map(|lost| ChangeRecord {
        kind: ChangeKind::Lost,
        why: format!("lost {}, which hosts the service: {}", lost.host, lost.evidence),
        names: vec![lost.host.clone()],
    });
    change_of(world, snapshot.round.as_ref(), closed).or(lost).or_else(|| {
        let later = snapshot.world.as_ref().filter(|later| !later.place.is_same_world(world));
        let formed =
            |later: &Arc<WorldFacts>| format!("round {} was formed: {}", later.place.round, later.why);
        let why = snapshot.excluded.clone().or_else(|| later.map(formed)).filter(|_| closed.is_none())?;
        Some(ChangeRecord { kind: ChangeKind::Replaced, why, names: Vec::new() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returning_a_world_that_has_changed_already_wakes_the_waiters() {
        let board = Board::new();
        board.publish(&Snapshot { excluded: Some("lost n1".to_owned()), ..Snapshot::default() });
        let mut waiter = board.subscribe();
        waiter.borrow_and_update();
        assert!(board.change().is_none(), "no world was returned yet");

        let world = WorldMembership { life: "life".into(), round: 1, world: "w".into(), rank: 0, size: 2 };
        board.set_returned(world);
        assert!(waiter.has_changed().unwrap(), "a caller that waits for a change is woken");
        assert_eq!(board.change().unwrap().1.kind, ChangeKind::Replaced);
    }

    #[test]
    fn unchanged_snapshot_wakes_no_waiter() {
        let board = Board::new();
        let snapshot = Snapshot { resets: 1, ..Snapshot::default() };
        board.publish(&snapshot);
        let mut waiter = board.subscribe();
        waiter.borrow_and_update();
        board.publish(&snapshot);
        assert!(!waiter.has_changed().unwrap());
    }
}
