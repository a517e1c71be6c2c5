//! Runs an engine on tokio's clock: it is shared, leases expire, and watches are woken.
//!
//! The engine has one lock, which is held for one request or one batch of expired leases. No task waits while it
//! holds the lock. A watch reads its events from the engine's log at its own pace ([`Live::look`]), so a slow reader
//! does not delay other clients. If history is compacted past its position, it receives an error.

use std::{
    fmt,
    future::pending,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    engine::{Answer, Batch, Engine, Span},
    watchers::{WatchNotifier, Watchers},
};
use crate::{backend::Revision, lock::lock};

/// How many leases are expired while other callers wait. The remaining leases follow after the other callers.
const LEASES_AT_ONCE: usize = 500;
/// How often an engine that compensates for pauses checks whether it was paused.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// The engine, its clock, and its watches.
pub struct Live {
    state: Mutex<State>,
    origin: Instant,
    /// Notified when a lease ends earlier than the expiry task expects, and when this is dropped.
    sooner: Arc<Notify>,
    /// Whether leases are extended by time in which this process did not run.
    gives_time_back: bool,
}

struct State {
    engine: Engine,
    watchers: Watchers,
    /// Whether no lease expires at present.
    frozen: bool,
    /// When this process was last known to run.
    alive: Duration,
    /// When the expiry task will wake up by itself.
    armed: Option<Duration>,
    expiry: Option<JoinHandle<()>>,
}

impl Live {
    /// An engine whose leases always expire in time, like those of etcd.
    pub fn new(engine: Engine) -> Arc<Self> {
        Arc::new(Self::of(engine, false))
    }

    /// An engine that extends leases by the time in which its process was paused, because no node could renew them.
    pub fn looking_after_itself(engine: Engine) -> Arc<Self> {
        Arc::new(Self::of(engine, true))
    }

    fn of(engine: Engine, gives_time_back: bool) -> Self {
        let state = State {
            engine,
            watchers: Watchers::default(),
            frozen: false,
            alive: Duration::ZERO,
            armed: None,
            expiry: None,
        };
        Self { state: Mutex::new(state), origin: Instant::now(), sooner: Arc::default(), gives_time_back }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// One access of a client. Expired leases are removed before it, and watches are notified after it.
    pub fn access<T>(self: &Arc<Self>, access: impl FnOnce(&mut Engine, Duration) -> T) -> T {
        let mut state = lock(&self.state);
        let now = self.now();
        let answer = state.change(|state| {
            self.expire(state, now);
            access(&mut state.engine, now)
        });
        self.arm(&mut state);
        answer
    }

    /// Reads the engine without a change: no lease expires, and no watch is notified.
    pub fn look<T>(&self, look: impl FnOnce(&Engine, Duration) -> T) -> T {
        let state = lock(&self.state);
        look(&state.engine, self.now())
    }

    /// Changes the engine itself. No lease expires before the change, and all watches are notified after it. The change
    /// also returns whether the engine is frozen from now on, that is, whether no lease expires by itself.
    pub fn reshape<T>(&self, change: impl FnOnce(&mut Engine, Duration) -> (T, bool)) -> T {
        let mut state = lock(&self.state);
        let now = self.now();
        let (answer, frozen) = state.change(|state| change(&mut state.engine, now));
        state.frozen = frozen;
        state.watchers.wake_all();
        drop(state);
        self.sooner.notify_one();
        answer
    }

    /// Watches these keys from a revision on (0: from now). Each change of one of them is added to the notifier under
    /// this number, until the returned value is dropped.
    pub fn watch(
        self: &Arc<Self>,
        span: Span,
        start: Revision,
        notifier: &Arc<WatchNotifier>,
        watch: i64,
    ) -> Watching {
        let mut state = lock(&self.state);
        let number = state.watchers.add(&span, Arc::clone(notifier), watch);
        let end = state.engine.revision() + 1;
        drop(state);
        let position = if start > 0 { start } else { end };
        Watching { live: Arc::clone(self), span, number, position, followed: position >= end }
    }

    /// The number of watches.
    pub fn watches(&self) -> usize {
        lock(&self.state).watchers.len()
    }

    /// Expires leases, a bounded number at a time. Returns whether there may be more.
    fn expire(&self, state: &mut State, now: Duration) -> bool {
        if self.gives_time_back {
            // Twice the heartbeat, so that a task that wakes up late is not mistaken for a pause.
            let lost = now.saturating_sub(state.alive);
            if lost > HEARTBEAT * 2 {
                let leases = state.engine.give_back(now, lost);
                if leases > 0 {
                    tracing::warn!(
                        leases,
                        "the server was paused, so it extends its leases by that time: {} ms",
                        lost.as_millis()
                    );
                }
            }
            state.alive = now;
        }
        let ended = state.engine.expire(now, LEASES_AT_ONCE);
        if ended > 0 {
            tracing::debug!(ended, "leases ended");
        }
        ended == LEASES_AT_ONCE
    }

    /// Ensures that the next lease expires in time.
    fn arm(self: &Arc<Self>, state: &mut State) {
        let Some(deadline) = state.engine.next_deadline() else { return };
        // The task ends with the runtime that it was started on, which may differ from the runtime of this call.
        if state.expiry.as_ref().is_none_or(JoinHandle::is_finished) {
            state.armed = Some(deadline);
            state.expiry = Some(tokio::spawn(expire_in_time(Arc::downgrade(self), Arc::clone(&self.sooner))));
        } else if state.armed.is_none_or(|armed| deadline < armed) {
            self.sooner.notify_one();
        }
    }

    /// The step of the expiry task: expires leases. Returns when to check again.
    fn look_at_leases(&self) -> Option<Instant> {
        let mut state = lock(&self.state);
        let now = self.now();
        let mut next = None;
        if !state.frozen {
            let more = state.change(|state| self.expire(state, now));
            next = if more { Some(now) } else { state.engine.next_deadline() };
        }
        if self.gives_time_back {
            next = next.map(|next| next.min(now + HEARTBEAT));
        }
        state.armed = next;
        next.map(|next| self.origin + next)
    }
}

impl State {
    /// Makes a change, and notifies the watches of the changed keys.
    fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let since = self.engine.revision();
        let answer = change(self);
        if self.engine.revision() == since {
            return answer;
        }
        if self.engine.compacted() > since + 1 {
            // The keys of the first of several revisions are already forgotten.
            self.watchers.notify_all(since + 1);
        } else {
            for (key, revision) in self.engine.changed_keys(since) {
                self.watchers.notify_watches(key, revision);
            }
        }
        answer
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.sooner.notify_one();
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        let mut debug = formatter.debug_struct("Live");
        debug
            .field("revision", &state.engine.revision())
            .field("watches", &state.watchers.len())
            .finish_non_exhaustive()
    }
}

/// A registered watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watching {
    live: Arc<Live>,
    span: Span,
    number: u64,
    /// The first revision that was not reported yet.
    position: Revision,
    /// Whether the watch has received everything up to some moment after its notifier was registered. The notifier has
    /// all later changes.
    followed: bool,
}

impl Watching {
    /// The first revision that was not reported yet.
    pub fn position(&self) -> Revision {
        self.position
    }

    fn from(&self, engine: &Engine, news: Option<Revision>) -> Revision {
        let end = engine.revision() + 1;
        if self.followed { self.position.max(news.unwrap_or(end)) } else { self.position }
    }

    /// The approximate number of bytes that [`Self::read`] returns, including the previous state of the keys if that is
    /// requested.
    pub fn bytes(
        &self,
        engine: &Engine,
        news: Option<Revision>,
        revisions: usize,
        bytes: usize,
        previous: bool,
    ) -> usize {
        engine.changes_bytes(&self.span, self.from(engine, news), revisions, bytes, previous)
    }

    /// Reads what was not reported yet, bounded as [`Engine::changes`] is. `news` is the first revision that the
    /// notifier has reported since the last read. Earlier revisions did not change the keys of this watch. They are
    /// skipped, and it does not matter whether they were compacted.
    pub fn read(
        &mut self,
        engine: &Engine,
        news: Option<Revision>,
        revisions: usize,
        bytes: usize,
    ) -> Answer<Batch> {
        let end = engine.revision() + 1;
        let batch = engine.changes(&self.span, self.from(engine, news), revisions, bytes)?;
        self.position = batch.next;
        self.followed = batch.next >= end;
        Ok(batch)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        lock(&self.live.state).watchers.remove(&self.span, self.number);
    }
}

/// Revokes leases when they expire, even without any calls, so that watches are notified in time. Ends with the engine.
async fn expire_in_time(live: Weak<Live>, sooner: Arc<Notify>) {
    loop {
        let deadline = {
            let Some(live) = live.upgrade() else { return };
            live.look_at_leases()
        };
        let next = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = sooner.notified() => {}
            () = next => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{
        LeaseId,
        memory::engine::{Bounds, Put, Refusal},
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// Whether leases of 6 s and of 60 s exist after 7 s in which nothing ran, and the remaining time of the second.
    async fn after_a_pause(live: Arc<Live>) -> (bool, Duration) {
        live.access(|engine, now| engine.grant(now, 1, 6).and_then(|_| engine.grant(now, 2, 60))).unwrap();
        tokio::time::advance(SECOND * 7).await;
        live.access(|engine, now| (engine.lease(now, 1).is_some(), engine.lease(now, 2).unwrap().remaining))
    }

    fn put(key: &str, value: Vec<u8>, lease: LeaseId) -> Put {
        Put { key: key.into(), value, lease, ..Put::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn watch_of_compacted_changes_ends_with_an_error() {
        let live = Live::new(Engine::new(Bounds { history_bytes: 1_000, ..Bounds::default() }));
        live.access(|engine, now| {
            engine.grant(now, 1, 6).unwrap();
            engine.grant(now, 2, 6).unwrap();
            engine.put(&put("a", b"1".to_vec(), 1)).unwrap();
            engine.put(&put("b", vec![0; 4_000], 2)).unwrap();
        });
        let notifier = Arc::new(WatchNotifier::default());
        let mut watching = live.watch(Span::one(b"a"), 0, &notifier, 7);
        live.look(|engine, _| watching.read(engine, None, 100, 1_000)).unwrap();
        // Both leases expire at the same time, and the second has more keys than the history holds.
        tokio::time::sleep(SECOND * 7).await;
        let news = notifier.take();
        let read = live.look(|engine, _| watching.read(engine, news.get(&7).copied(), 100, 1_000));
        assert!(matches!(read, Err(Refusal::Compacted { .. })), "{news:?}: {read:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn pause_that_was_long_for_a_lease_is_given_back() {
        let live = Live::looking_after_itself(Engine::default());
        assert_eq!(after_a_pause(Arc::clone(&live)).await, (true, SECOND * 53));
        // While the process runs, leases expire.
        tokio::time::sleep(SECOND * 7).await;
        assert!(live.look(|engine, now| engine.lease(now, 1)).is_none());
        assert_eq!(
            after_a_pause(Live::new(Engine::default())).await,
            (false, SECOND * 53),
            "etcd gives nothing"
        );
    }
}
