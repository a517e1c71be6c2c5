//! What the tasks of one node share: the service, the run's keys, the policy of its decisions, and randomness.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::{
    Rng, SeedableRng,
    rand_core::UnwrapErr,
    rngs::{StdRng, SysRng},
};

use tokio::sync::Notify;

use crate::{
    backend::{Backend, limits::Limits, monotonic::Monotonic, refusals::Refusals},
    error::{Error, Result},
    grant::Granted,
    lock::lock,
    protocol::{keys::RunKeys, policy::Policy, records::Record, sizing::WorldSizes},
    settings::Settings,
};

/// A source of randomness. It is passed in, so that a simulation is a function of its seed.
///
/// Each number is read from the generator of the operating system. A generator in the memory of this process would be
/// copied by `fork`, and parent and child would draw equal node IDs, lease IDs, and nonces.
#[derive(Clone, Debug)]
pub struct Entropy(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Seeded(Arc<Mutex<StdRng>>),
}

impl Entropy {
    /// The generator of the operating system.
    pub fn from_system() -> Self {
        Self(Source::System)
    }

    /// A generator that returns equal numbers for equal seeds.
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(seed)))))
    }

    /// 64 random bits.
    pub fn bits(&self) -> u64 {
        match &self.0 {
            // `getrandom` cannot fail on a kernel that has it: Linux 3.17 and newer, each macOS.
            Source::System => UnwrapErr(SysRng).next_u64(),
            // A generator is consistent at any time, even after a panic elsewhere.
            Source::Seeded(generator) => lock(generator).next_u64(),
        }
    }

    /// The wall clock, for messages only: seconds since 1970. A simulation has none.
    pub fn unix_seconds(&self) -> Option<u64> {
        self.unix_time().map(|time| time.as_secs())
    }

    /// The wall clock with milliseconds, for messages only: the time since 1970. A simulation has none.
    pub fn unix_time(&self) -> Option<Duration> {
        match &self.0 {
            Source::System => SystemTime::now().duration_since(UNIX_EPOCH).ok(),
            Source::Seeded(_) => None,
        }
    }

    /// A random time from half of a duration to one and a half times of it, so that not all who wait do so for the same time.
    pub fn about(&self, average: Duration) -> Duration {
        average / 2 + self.part_of(average)
    }

    /// A random part of a duration.
    pub fn part_of(&self, whole: Duration) -> Duration {
        let thousandths = u32::try_from(self.bits() % 1000).unwrap_or(0);
        whole * thousandths / 1000
    }
}

/// What the tasks of one node share.
#[derive(Debug)]
pub struct Context {
    /// The service.
    pub backend: Arc<dyn Backend>,
    /// The wrapper of `backend` that detects setbacks.
    pub monotonic: Arc<Monotonic>,
    /// The keys of the run.
    pub keys: RunKeys,
    /// The settings of the run.
    pub settings: Settings,
    /// The policy of the coordinator.
    pub policy: Policy,
    /// The limits of requests.
    pub limits: Limits,
    /// Randomness.
    pub entropy: Entropy,
    /// Whether this node hosts the service.
    pub hosts: bool,
    /// The present refusals of the service.
    pub refusals: Refusals,
    /// The lease that was granted when the node connected, until the first join takes it.
    pub granted: Mutex<Option<Granted>>,
    /// Where a store reports that this node has no record.
    pub record_missing: Arc<Notify>,
}

impl Context {
    /// The context of one node of one run.
    pub fn new(backend: Arc<dyn Backend>, settings: Settings, entropy: Entropy) -> Self {
        let (return_window, trusted_silence) = Policy::lease_times(settings.lease_ttl);
        let policy = Policy {
            min_nodes: settings.min_nodes,
            max_nodes: settings.max_nodes,
            sizing: settings.sizing.clone(),
            settle_time: settings.settle_time,
            last_call_timeout: settings.last_call_timeout,
            rejoin_timeout: settings.rejoin_timeout,
            grow_delay: settings.grow_delay,
            return_window,
            lease_ttl: settings.lease_ttl,
            trusted_silence,
            on_member_loss: settings.on_member_loss,
            on_newcomer: settings.on_newcomer,
        };
        let monotonic = Monotonic::new(backend);
        Self {
            backend: Arc::clone(&monotonic) as _,
            monotonic,
            keys: RunKeys::new(&settings.run.tenant, &settings.run.run_id),
            policy,
            limits: Limits::for_ttl(settings.lease_ttl),
            settings,
            entropy,
            hosts: false,
            refusals: Refusals::default(),
            granted: Mutex::default(),
            record_missing: Arc::default(),
        }
    }

    /// Takes the lease that was granted when the node connected. Returns it only once.
    pub fn take_granted(&self) -> Option<Granted> {
        lock(&self.granted).take()
    }

    /// The TTL of the run's lease, which is longer than any change of coordinator takes.
    pub fn run_lease_ttl(&self) -> Duration {
        Duration::from_secs(60).max(self.settings.lease_ttl * 6)
    }
}

/// Decodes a record that may be absent.
///
/// # Errors
/// [`Error::Record`] if it exists and cannot be read.
pub(crate) fn decode_found<R: Record>(key: &str, found: &[crate::backend::KeyValue]) -> Result<Option<R>> {
    found.first().map(|item| R::decode(key, &item.value)).transpose()
}

/// The error that the settings of a node differ from those of the run.
pub(crate) fn mismatch(settings: &Settings, run: WorldSizes<'_>, by: &str) -> Option<Error> {
    let own = settings.sizes();
    if own == run {
        return None;
    }
    let hint = if own.sizing != run.sizing {
        " (`--nnodes`, or `nnodes`, and `sizes`, `node_unit` and `wanted`)"
    } else if own.max == 1 && run.max == 1 {
        ""
    } else {
        " (`--nnodes`, or `nnodes`)"
    };
    Some(Error::Mismatch {
        message: format!(
            "run `{}` was begun by {by} with nnodes {run}, but this node has {own}; pass equal values{hint} on all nodes of \
             a run, or use another run id for another job",
            settings.run.run_id
        ),
    })
}
