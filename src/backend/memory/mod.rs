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
    sync::{Arc, Mutex},
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
use crate::{
    error::{Applied, Result},
    lock::lock,
};

const ENDPOINT: &str = "memory";
/// The etcd whose semantics the engine has.
const VERSION: &str = "3.5.21";
/// A service that lost its data and has the same flags keeps its cluster ID and member ID, as etcd does.
const CLUSTER_ID: u64 = 0xcdf8_181e_3c8c_2d11;
const MEMBER_ID: u64 = 0x8e9e_05c5_2164_694d;
/// A quarter of the default TTL, as in the limits of a real backend.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(2500);

/// One service, and its state. Clones are the same service.
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
    /// Counts the changes of mode, which pending calls wait for.
    mode_changes: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    /// Counts how often all watches broke.
    epoch: u64,
}

impl Default for MemoryService {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryService {
    /// A running service without data.
    pub fn new() -> Self {
        Self::with_engine(Engine::default())
    }

    /// A running service with this engine.
    pub fn with_engine(engine: Engine) -> Self {
        Self::over(Live::new(engine))
    }

    /// The service of a server in this process, for readers in the process.
    pub(crate) fn over(live: Arc<Live>) -> Self {
        let shared = Shared {
            live,
            state: Mutex::new(State { mode: Mode::Running, epoch: 0 }),
            mode_changes: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Adds a client, with attempts of 2.5 s.
    pub fn connect(&self) -> MemoryBackend {
        self.connect_with(ATTEMPT_TIMEOUT)
    }

    /// Adds a client whose attempts may take this long.
    pub fn connect_with(&self, attempt_timeout: Duration) -> MemoryBackend {
        MemoryBackend::new(Arc::clone(&self.shared), attempt_timeout)
    }

    /// Loses all data: no keys, revision 1, no leases, but the same cluster ID. All watches break.
    pub fn wipe(&self) {
        self.shared.reshape(|state, engine, _| {
            *engine = Engine::new(engine.bounds());
            state.epoch += 1;
        });
    }

    /// A copy of the present data, for [`Self::restore`].
    pub fn backup(&self) -> Engine {
        self.shared.live.look(|engine, _| engine.clone())
    }

    /// Returns to the data of a backup, as etcd's `snapshot restore` does. Every lease of the backup has its full TTL,
    /// and all watches break.
    pub fn restore(&self, backup: Engine) {
        self.shared.reshape(|state, engine, now| {
            *engine = backup;
            engine.renew_all(now);
            state.epoch += 1;
        });
    }

    /// Refuses every call and breaks every watch, until [`Self::start`].
    pub fn stop(&self) {
        self.shared.reshape(|state, _, _| {
            state.mode = Mode::Stopped;
            state.epoch += 1;
        });
    }

    /// Serves again after [`Self::stop`], with the previous data. Every lease has its full TTL, as after a restart of
    /// etcd.
    pub fn start(&self) {
        self.shared.reshape(|state, engine, now| {
            state.mode = Mode::Running;
            engine.renew_all(now);
        });
    }

    /// Does not respond, like a process that received SIGSTOP, until [`Self::resume`].
    pub fn pause(&self) {
        self.shared.reshape(|state, _, _| state.mode = Mode::Paused);
    }

    /// Continues after [`Self::pause`]. Leases that expired meanwhile are revoked first, as in etcd.
    pub fn resume(&self) {
        self.shared.reshape(|state, engine, now| {
            state.mode = Mode::Running;
            engine.expire(now, usize::MAX);
        });
    }

    /// Compacts the history before `revision`.
    ///
    /// # Errors
    /// [`crate::Error::Compacted`] if that was already compacted, [`crate::Error::FutureRevision`] if the revision does
    /// not exist yet.
    pub fn compact(&self, revision: Revision) -> Result<()> {
        self.shared.reshape(|_, engine, _| engine.compact(revision)).map_err(refused)
    }

    /// The latest revision.
    pub fn revision(&self) -> Revision {
        self.shared.live.look(|engine, _| engine.revision())
    }
}

impl Shared {
    /// Changes the service itself. All watches and pending calls are notified.
    fn reshape<T>(&self, change: impl FnOnce(&mut State, &mut Engine, Duration) -> T) -> T {
        let mut state = lock(&self.state);
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

    /// One access of a client, with its epoch. `None` while the service is paused.
    fn access<T>(&self, access: impl FnOnce(&mut Engine, Duration) -> T) -> Result<Option<(T, u64)>> {
        let state = lock(&self.state);
        match state.mode {
            Mode::Stopped => Err(unavailable("connection refused", Applied::No)),
            Mode::Paused => Ok(None),
            Mode::Running => Ok(Some((self.live.access(access), state.epoch))),
        }
    }
}
