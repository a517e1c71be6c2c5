//! A client that counts what it sends and receives.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use lattice_rdzv::{
    Result,
    backend::{
        Backend, Changes, Event, KeyValue, Keys, LeaseId, Operation, OperationResult, Range, RangeResult,
        Revision, Status, Txn, TxnResult, WatchStream,
    },
};

/// How often each kind of event happened.
pub(crate) type Counts = BTreeMap<&'static str, usize>;

/// What one node sent and received.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) counts: Counts,
    /// Whether the node was coordinator, and watched all nodes.
    pub(crate) decided: bool,
}

impl Ledger {
    fn count(&mut self, what: &'static str, times: usize) {
        *self.counts.entry(what).or_default() += times;
    }

    fn received(&mut self, items: &[KeyValue]) {
        self.count("bytes", items.iter().map(|item| item.key.len() + item.value.len()).sum());
    }
}

/// The client.
#[derive(Clone)]
pub(crate) struct Counted {
    inner: Arc<dyn Backend>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Counted {
    pub(crate) fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, ledger: Arc::default() }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Counted").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for Counted {
    async fn range(&self, range: Range) -> Result<RangeResult> {
        // Only the service knows the size, however few keys are requested.
        let listing = matches!(range.keys, Keys::Prefix(_) | Keys::Span(..));
        self.ledger().count(if listing { "listings" } else { "reads" }, 1);
        let answer = self.inner.range(range).await?;
        self.ledger().received(&answer.items);
        Ok(answer)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult> {
        let what = if txn.operations().iter().any(Operation::writes) { "proposals" } else { "reads" };
        self.ledger().count(what, 1);
        let answer = self.inner.txn(txn).await?;
        for result in &answer.results {
            if let OperationResult::Get(items) = result {
                self.ledger().received(items);
            }
        }
        Ok(answer)
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Duration> {
        self.ledger().count("grants", 1);
        self.inner.lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration> {
        self.ledger().count("renewals", 1);
        self.inner.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.ledger().count("revocations", 1);
        self.inner.lease_revoke(id).await
    }

    async fn watch(&self, keys: Keys, start: Revision) -> Result<Box<dyn WatchStream>> {
        {
            let mut ledger = self.ledger();
            ledger.count("watches", 1);
            ledger.decided |= matches!(&keys, Keys::Prefix(prefix) if prefix.ends_with(b"/nodes/"));
        }
        let inner = self.inner.watch(keys, start).await?;
        Ok(Box::new(CountedWatch { inner, ledger: Arc::clone(&self.ledger) }))
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

struct CountedWatch {
    inner: Box<dyn WatchStream>,
    ledger: Arc<Mutex<Ledger>>,
}

impl fmt::Debug for CountedWatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CountedWatch").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl WatchStream for CountedWatch {
    async fn next(&mut self) -> Result<Changes> {
        let changes = self.inner.next().await?;
        let mut ledger = self.ledger.lock().unwrap();
        ledger.count("events", changes.events.len());
        for event in &changes.events {
            match event {
                Event::Put(item) => ledger.received(std::slice::from_ref(item)),
                Event::Delete { key, .. } => ledger.count("bytes", key.len()),
            }
        }
        drop(ledger);
        Ok(changes)
    }

    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn connection(&self) -> u64 {
        self.inner.connection()
    }
}
