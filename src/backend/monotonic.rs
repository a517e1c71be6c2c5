//! A backend whose responses never go back in time.
//!
//! A service that was restored from an older backup, or lost its data, accepts reads and writes as if nothing had
//! happened. All reads and transactions of a [`Backend`] are linearizable. Therefore a response that was requested
//! after another one was received cannot have a lower revision or come from another cluster, unless the data of the
//! service was replaced: a *setback*. [`Monotonic`] does not return such a response. The attempt fails with an unknown
//! outcome, the setback is counted, and the owner, the session of the node, finds out what happened to the run
//! ([`Monotonic::judge`]). Until then, calls through [`Monotonic::guarded`] fail without an effect, because the service
//! may hold data that the run has replaced.
//!
//! The revision alone cannot reveal a setback after other clients have raised it above the highest revision that this
//! client has seen. It cannot reveal a backup either that was restored with `--bump-revision` under the same cluster
//! ID. A store that finds a key that it wrote at an earlier version reports it ([`Monotonic::report`]).

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    Backend, Changes, Header, Keys, LeaseId, LeaseLife, Range, RangeResult, Revision, Status, Txn, TxnResult,
    WatchStream,
};
use crate::{
    error::{Applied, Error, Result},
    lock::lock,
};

/// What has been acknowledged so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    /// The newest data that a response or a watch has shown. The cluster ID is 0 until there was one.
    newest: Header,
    setbacks: u64,
}

impl Known {
    /// Whether a response to a request that was sent when `self` was known shows other or older data.
    fn is_set_back_by(&self, header: Header) -> bool {
        self.newest.cluster_id != 0
            && (header.cluster_id != self.newest.cluster_id || header.revision < self.newest.revision)
    }
}

/// A backend that does not return a response that is older than an earlier one.
#[derive(Debug)]
pub struct Monotonic {
    backend: Arc<dyn Backend>,
    known: Arc<Mutex<Known>>,
    setbacks: watch::Sender<u64>,
    judged: watch::Sender<u64>,
}

impl Monotonic {
    /// Wraps this backend, of which nothing is known yet.
    pub fn new(backend: Arc<dyn Backend>) -> Arc<Self> {
        let (setbacks, judged) = (watch::Sender::new(0), watch::Sender::new(0));
        Arc::new(Self { backend, known: Arc::default(), setbacks, judged })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// The number of setbacks, and a way to wait for the next one.
    pub fn setbacks(&self) -> watch::Receiver<u64> {
        self.setbacks.subscribe()
    }

    /// The number of setbacks that were judged.
    pub fn judged(&self) -> u64 {
        *self.judged.borrow()
    }

    /// Marks the first `setbacks` setbacks as judged. Guarded calls succeed again, unless there are more setbacks.
    pub fn judge(&self, setbacks: u64) {
        self.judged.send_if_modified(|judged| {
            let news = *judged < setbacks;
            *judged = setbacks.max(*judged);
            news
        });
    }

    /// This backend, with calls that fail until all setbacks have been judged.
    pub fn guarded(self: &Arc<Self>) -> Arc<dyn Backend> {
        Arc::new(Guarded(Arc::clone(self)))
    }

    /// Checks and records a response to a request that was sent when `before` was known.
    fn accept(&self, before: Known, header: Header, applied: Applied) -> Result<()> {
        let mut known = self.known();
        if known.setbacks != before.setbacks {
            // It is unknown whether the response is of the data before or after that setback.
            drop(known);
            return Err(self.unavailable("the service lost data while this request was in flight", applied));
        }
        if before.is_set_back_by(header) {
            let newest = known.newest;
            *known = Known { newest: header, setbacks: known.setbacks + 1 };
            self.setbacks.send_replace(known.setbacks);
            drop(known);
            let cause = format!(
                "its data was replaced: it is at revision {} of cluster {:x} and had acknowledged revision {} of cluster \
                 {:x}, so it lost its data or was restored from an older backup",
                header.revision, header.cluster_id, newest.revision, newest.cluster_id
            );
            tracing::warn!("the service at `{}` cannot be trusted yet: {cause}", self.backend.endpoint());
            return Err(self.unavailable(&cause, applied));
        }
        known.newest =
            Header { cluster_id: header.cluster_id, revision: header.revision.max(known.newest.revision) };
        Ok(())
    }

    /// Reports that a key that only this node writes has an earlier version than the acknowledged one. So the data was
    /// replaced, whatever its revision is.
    pub fn report(&self, key: &str) {
        let mut known = self.known();
        if known.setbacks == self.judged() {
            known.setbacks += 1;
            self.setbacks.send_replace(known.setbacks);
            drop(known);
            tracing::warn!(
                "the service at `{}` cannot be trusted yet: it was restored from an older backup, because it holds an \
                 earlier version than it had acknowledged of the key `{key}`",
                self.backend.endpoint()
            );
        }
    }

    fn unavailable(&self, cause: &str, applied: Applied) -> Error {
        Error::Unavailable { endpoint: self.backend.endpoint(), cause: cause.to_owned(), applied }
    }
}

#[async_trait]
impl Backend for Monotonic {
    async fn range(&self, range: Range) -> Result<RangeResult> {
        let before = *self.known();
        let answer = self.backend.range(range).await?;
        self.accept(before, answer.header, Applied::No)?;
        Ok(answer)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult> {
        let before = *self.known();
        let answer = self.backend.txn(txn).await?;
        self.accept(before, answer.header, Applied::Unknown)?;
        Ok(answer)
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Duration> {
        self.backend.lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration> {
        self.backend.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.backend.lease_revoke(id).await
    }

    async fn lease_life(&self, id: LeaseId) -> Result<Option<LeaseLife>> {
        self.backend.lease_life(id).await
    }

    async fn watch(&self, keys: Keys, start: Revision) -> Result<Box<dyn WatchStream>> {
        let setbacks = self.known().setbacks;
        let stream = self.backend.watch(keys, start).await?;
        Ok(Box::new(Followed { stream, known: Arc::clone(&self.known), setbacks }))
    }

    async fn status(&self) -> Result<Status> {
        self.backend.status().await
    }

    async fn log_in(&self, patience: Duration) -> Result<()> {
        self.backend.log_in(patience).await
    }

    fn endpoint(&self) -> String {
        self.backend.endpoint()
    }

    fn connection(&self) -> u64 {
        self.backend.connection()
    }
}

/// A watch. Its changes are committed, and therefore every later response includes them.
#[derive(Debug)]
struct Followed {
    stream: Box<dyn WatchStream>,
    known: Arc<Mutex<Known>>,
    /// How many setbacks there were when the watch was opened. After later ones it shows other data.
    setbacks: u64,
}

#[async_trait]
impl WatchStream for Followed {
    async fn next(&mut self) -> Result<Changes> {
        let changes = self.stream.next().await?;
        if let Some(last) = changes.events.last() {
            let mut known = lock(&self.known);
            if known.setbacks == self.setbacks {
                known.newest.revision = known.newest.revision.max(last.revision());
            }
        }
        Ok(changes)
    }

    fn revision(&self) -> Revision {
        self.stream.revision()
    }

    fn connection(&self) -> u64 {
        self.stream.connection()
    }
}

/// See [`Monotonic::guarded`].
#[derive(Debug)]
struct Guarded(Arc<Monotonic>);

impl Guarded {
    fn check(&self) -> Result<()> {
        if self.0.known().setbacks == self.0.judged() {
            return Ok(());
        }
        let cause = "it lost its data or was restored from an older backup; the run is being restored";
        Err(self.0.unavailable(cause, Applied::No))
    }
}

#[async_trait]
impl Backend for Guarded {
    async fn range(&self, range: Range) -> Result<RangeResult> {
        self.check()?;
        self.0.range(range).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult> {
        self.check()?;
        self.0.txn(txn).await
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Duration> {
        self.0.lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration> {
        self.0.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.0.lease_revoke(id).await
    }

    async fn watch(&self, keys: Keys, start: Revision) -> Result<Box<dyn WatchStream>> {
        self.0.watch(keys, start).await
    }

    async fn status(&self) -> Result<Status> {
        self.0.status().await
    }

    fn endpoint(&self) -> String {
        self.0.endpoint()
    }

    fn connection(&self) -> u64 {
        self.0.connection()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{
        Operation,
        memory::{Call, Fate, MemoryService},
    };

    fn known(cluster_id: u64, revision: Revision) -> Known {
        Known { newest: Header { cluster_id, revision }, setbacks: 0 }
    }

    #[test]
    fn older_data_and_other_clusters_are_setbacks() {
        let cases = [
            (known(0, 0), 7, 1, false),
            (known(7, 5), 7, 5, false),
            (known(7, 5), 7, 6, false),
            (known(7, 5), 7, 4, true),
            (known(7, 5), 8, 9, true),
        ];
        for (before, cluster_id, revision, expected) in cases {
            let header = Header { cluster_id, revision };
            assert_eq!(before.is_set_back_by(header), expected, "{before:?} {header:?}");
        }
    }

    async fn put(backend: &dyn Backend, key: &str) -> Result<TxnResult> {
        backend.txn(Txn::new(Operation::put(key, "", 0))).await
    }

    async fn read(backend: &dyn Backend) -> Result<RangeResult> {
        backend.range(Range::new(Keys::prefix("k"))).await
    }

    #[tokio::test(start_paused = true)]
    async fn answer_of_older_data_is_not_returned_and_guarded_calls_wait_for_the_judgment() {
        let service = MemoryService::new();
        let backend = Monotonic::new(Arc::new(service.connect()));
        let guarded = backend.guarded();
        put(backend.as_ref(), "k1").await.unwrap();
        let backup = service.backup();
        put(guarded.as_ref(), "k2").await.unwrap();
        put(guarded.as_ref(), "k3").await.unwrap();
        service.restore(backup);
        let unknown =
            |end: Result<TxnResult>| matches!(end, Err(Error::Unavailable { applied: Applied::Unknown, .. }));
        assert!(unknown(put(guarded.as_ref(), "k4").await));
        assert_eq!(*backend.setbacks().borrow(), 1);
        let error = put(guarded.as_ref(), "k5").await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { applied: Applied::No, .. }), "{error}");
        let keys: Vec<_> =
            read(backend.as_ref()).await.unwrap().items.into_iter().map(|item| item.key).collect();
        assert_eq!(keys, [b"k1", b"k4"], "the session reads what the backup holds");
        backend.judge(1);
        assert_eq!(read(guarded.as_ref()).await.unwrap().items.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_in_flight_during_a_setback_is_not_returned() {
        let service = MemoryService::new();
        let link = Arc::new(service.connect());
        let backend = Monotonic::new(Arc::clone(&link) as _);
        let backup = service.backup();
        put(backend.as_ref(), "k1").await.unwrap();
        let mut first = true;
        link.interfere(Some(Box::new(move |_: Call| {
            let request_delay = Duration::from_millis(if std::mem::take(&mut first) { 100 } else { 0 });
            Fate { request_delay, ..Fate::default() }
        })));
        let others = async {
            service.restore(backup);
            assert!(read(backend.as_ref()).await.is_err());
            // The revision is soon above the acknowledged one again.
            put(backend.as_ref(), "k2").await.unwrap();
            put(backend.as_ref(), "k3").await.unwrap();
        };
        let (late, ()) = tokio::join!(put(backend.as_ref(), "k4"), others);
        assert!(matches!(late, Err(Error::Unavailable { applied: Applied::Unknown, .. })), "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_watch_has_shown_is_acknowledged() {
        let service = MemoryService::new();
        let backend = Monotonic::new(Arc::new(service.connect()));
        read(backend.as_ref()).await.unwrap();
        let backup = service.backup();
        let mut watch = backend.watch(Keys::prefix("k"), 0).await.unwrap();
        put(&service.connect(), "k1").await.unwrap();
        watch.next().await.unwrap();
        service.restore(backup);
        assert!(read(backend.as_ref()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_overtake_each_other_are_not_a_setback() {
        let service = MemoryService::new();
        let link = Arc::new(service.connect());
        let backend = Monotonic::new(Arc::clone(&link) as _);
        put(backend.as_ref(), "k1").await.unwrap();
        let mut first = true;
        link.interfere(Some(Box::new(move |_: Call| {
            let (request, answer) = if std::mem::take(&mut first) { (0, 100) } else { (10, 0) };
            let [request_delay, answer_delay] = [request, answer].map(Duration::from_millis);
            Fate { request_delay, answer_delay, ..Fate::default() }
        })));
        let (slow, fast) = tokio::join!(read(backend.as_ref()), put(backend.as_ref(), "k2"));
        assert!(slow.unwrap().header.revision < fast.unwrap().header.revision);
        assert_eq!(*backend.setbacks().borrow(), 0);
    }
}
