//! A client of the memory service with which a test observes and changes the traffic.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use lattice_rdzv::{
    Error, Result,
    backend::{
        Backend, Changes, Event, Keys, LeaseId, Range, RangeResult, Revision, Status, Txn, TxnResult,
        WatchStream, memory::MemoryBackend,
    },
};

/// What happens to one message, if the test decides about it.
type Rule<M, F> = Option<Box<dyn FnMut(&M) -> F + Send>>;

/// What a test does about the traffic. Everything else is passed on.
#[derive(Default)]
pub(crate) struct Tap {
    /// Whether an event of a watch is lost, as etcd has lost some.
    pub(crate) loses: Rule<Event, bool>,
    /// The error of a transaction, which is then not sent.
    pub(crate) refuses: Rule<Txn, Option<Error>>,
    /// The error of a read.
    pub(crate) fails: Rule<Range, Option<Error>>,
    /// The error of opening a watch.
    pub(crate) denies: Rule<Keys, Option<Error>>,
    /// Each lease for which a renewal was requested.
    pub(crate) renewed: Vec<LeaseId>,
    /// Each lease for which a grant was requested.
    pub(crate) granted: Vec<LeaseId>,
    /// Whether each event of a watch is a separate report, as each revision is with etcd.
    pub(crate) splits: bool,
    /// How many watches were opened.
    pub(crate) watches: usize,
}

/// The client.
#[derive(Clone)]
pub(crate) struct Tapped {
    pub(crate) inner: Arc<MemoryBackend>,
    tap: Arc<Mutex<Tap>>,
}

impl Tapped {
    pub(crate) fn new(inner: MemoryBackend) -> Self {
        Self { inner: Arc::new(inner), tap: Arc::default() }
    }

    pub(crate) fn tap(&self) -> MutexGuard<'_, Tap> {
        self.tap.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tapped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tapped").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for Tapped {
    async fn range(&self, range: Range) -> Result<RangeResult> {
        let failure = self.tap().fails.as_mut().and_then(|fails| fails(&range));
        match failure {
            Some(error) => Err(error),
            None => self.inner.range(range).await,
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult> {
        let refusal = self.tap().refuses.as_mut().and_then(|refuses| refuses(&txn));
        match refusal {
            Some(error) => Err(error),
            None => self.inner.txn(txn).await,
        }
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Duration> {
        self.tap().granted.push(id);
        self.inner.lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration> {
        self.tap().renewed.push(id);
        self.inner.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.inner.lease_revoke(id).await
    }

    async fn watch(&self, keys: Keys, start: Revision) -> Result<Box<dyn WatchStream>> {
        let denial = self.tap().denies.as_mut().and_then(|denies| denies(&keys));
        if let Some(error) = denial {
            return Err(error);
        }
        self.tap().watches += 1;
        let inner = self.inner.watch(keys, start).await?;
        Ok(Box::new(TappedWatch { inner, tap: Arc::clone(&self.tap), later: VecDeque::new() }))
    }

    async fn status(&self) -> Result<Status> {
        self.inner.status().await
    }

    fn endpoint(&self) -> String {
        self.inner.endpoint()
    }

    fn connection(&self) -> u64 {
        self.inner.connection()
    }
}

#[derive(Debug)]
struct TappedWatch {
    inner: Box<dyn WatchStream>,
    tap: Arc<Mutex<Tap>>,
    /// Reports that have arrived.
    later: VecDeque<Changes>,
}

impl fmt::Debug for Tap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tap").finish_non_exhaustive()
    }
}

#[async_trait]
impl WatchStream for TappedWatch {
    async fn next(&mut self) -> Result<Changes> {
        loop {
            if let Some(changes) = self.later.pop_front() {
                return Ok(changes);
            }
            let mut changes = self.inner.next().await?;
            let mut tap = self.tap.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(loses) = &mut tap.loses {
                changes.events.retain(|event| !loses(event));
            }
            if tap.splits {
                let single = |event: Event| Changes { revision: event.revision(), events: vec![event] };
                self.later.extend(changes.events.into_iter().map(single));
            } else if !changes.events.is_empty() {
                return Ok(changes);
            }
        }
    }

    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn connection(&self) -> u64 {
        self.inner.connection()
    }
}
