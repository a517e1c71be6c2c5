//! An in-process service: the [`engine`] on tokio's clock, with any number of clients.
//!
//! With it, tests and simulations run whole runs without an etcd, thousands of times, with every fault that the
//! protocol must survive: the service is stopped, paused, wiped or compacted ([`MemoryService`]), or one client is
//! cut off, slow, or loses the responses to its writes ([`MemoryBackend`]). On a current-thread runtime with paused
//! time, a schedule is repeatable: all maps are ordered, all selects are biased, and only tokio's time is read.
//!
//! Towards its owner, a client behaves like a client of a real etcd: an attempt has a deadline, a connection on which
//! an attempt failed is given up, and the watches of that connection end.

mod client;
mod convert;
pub mod engine;
pub mod live;
pub mod watchers;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

pub use self::client::{Call, Fate, Interference, MemoryBackend};
use self::{
    convert::{refused, unavailable},
    engine::Engine,
    live::Live,
};
use super::Revision;
use crate::error::{Applied, Result};

const ENDPOINT: &str = "memory";
/// The etcd whose semantics the engine has.
const VERSION: &str = "3.5.21";
/// A service wiped and started with the same flags keeps its cluster id and member id, as etcd does.
const CLUSTER_ID: u64 = 0xcdf8_181e_3c8c_2d11;
const MEMBER_ID: u64 = 0x8e9e_05c5_2164_694d;
/// A quarter of the default TTL, as the limits of a real backend are.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(2500);

/// One store, and the state it is in. Clones are the same service.
#[derive(Clone, Debug)]
pub struct MemoryService {
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Running,
    Paused,
    Stopped,
}

#[derive(Debug)]
struct Shared {
    live: Arc<Live>,
    state: Mutex<State>,
    /// Counts the changes of mode, which calls that hang look at.
    mode_changes: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    /// Counts the times that every watch broke.
    epoch: u64,
}

impl Default for MemoryService {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryService {
    /// An empty store that runs.
    pub fn new() -> Self {
        Self::with_engine(Engine::default())
    }

    /// A store that runs on this engine.
    pub fn with_engine(engine: Engine) -> Self {
        let shared = Shared {
            live: Live::new(engine),
            state: Mutex::new(State { mode: Mode::Running, epoch: 0 }),
            mode_changes: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// One more client, with attempts of 2.5 s.
    pub fn connect(&self) -> MemoryBackend {
        self.connect_with(ATTEMPT_TIMEOUT)
    }

    /// One more client, each of whose attempts may take so long.
    pub fn connect_with(&self, attempt_timeout: Duration) -> MemoryBackend {
        MemoryBackend::new(Arc::clone(&self.shared), attempt_timeout)
    }

    /// Lose everything: an empty store at revision 1, no leases, under the same cluster id; all watches break.
    pub fn wipe(&self) {
        self.shared.reshape(|state, engine, _| {
            *engine = Engine::new(engine.bounds());
            state.epoch += 1;
        });
    }

    /// What the store holds now, for [`Self::restore`].
    pub fn backup(&self) -> Engine {
        self.shared.live.look(|engine, _| engine.clone())
    }

    /// Go back to what the store held, as etcd's `snapshot restore` does: every lease of then has its full TTL, and all
    /// watches break.
    pub fn restore(&self, backup: Engine) {
        self.shared.reshape(|state, engine, now| {
            *engine = backup;
            engine.renew_all(now);
            state.epoch += 1;
        });
    }

    /// Refuse every call and break every watch, until [`Self::start`].
    pub fn stop(&self) {
        self.shared.reshape(|state, _, _| {
            state.mode = Mode::Stopped;
            state.epoch += 1;
        });
    }

    /// Serve again after [`Self::stop`], with what was there; every lease has its full TTL, as after etcd's restart.
    pub fn start(&self) {
        self.shared.reshape(|state, engine, now| {
            state.mode = Mode::Running;
            engine.renew_all(now);
        });
    }

    /// Answer nobody, as a process that was sent SIGSTOP, until [`Self::resume`].
    pub fn pause(&self) {
        self.shared.reshape(|state, _, _| state.mode = Mode::Paused);
    }

    /// Go on after [`Self::pause`]. Leases that came due meanwhile are revoked first, as etcd does on waking.
    pub fn resume(&self) {
        self.shared.reshape(|state, engine, now| {
            state.mode = Mode::Running;
            engine.expire(now, usize::MAX);
        });
    }

    /// Forget what was before `revision`.
    ///
    /// # Errors
    /// [`crate::Error::Compacted`] if that was forgotten before, [`crate::Error::FutureRevision`] if it is not reached
    /// yet.
    pub fn compact(&self, revision: Revision) -> Result<()> {
        self.shared.reshape(|_, engine, _| engine.compact(revision)).map_err(refused)
    }

    /// The store's revision.
    pub fn revision(&self) -> Revision {
        self.shared.live.look(|engine, _| engine.revision())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Two plain values, whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the service itself: everybody looks again.
    fn reshape<T>(&self, change: impl FnOnce(&mut State, &mut Engine, Duration) -> T) -> T {
        let mut state = self.lock();
        let mut after = *state;
        let answer = self.live.reshape(|engine, now| {
            let answer = change(&mut after, engine, now);
            (answer, after.mode != Mode::Running)
        });
        *state = after;
        drop(state);
        self.mode_changes.send_modify(|count| *count += 1);
        answer
    }

    /// One access of a client, with the epoch it was in; or none of it: `None` while the service is paused.
    fn access<T>(&self, access: impl FnOnce(&mut Engine, Duration) -> T) -> Result<Option<(T, u64)>> {
        let state = self.lock();
        match state.mode {
            Mode::Stopped => Err(unavailable("connection refused", Applied::No)),
            Mode::Paused => Ok(None),
            Mode::Running => Ok(Some((self.live.access(access), state.epoch))),
        }
    }
}
