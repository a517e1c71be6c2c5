//! A run's key-value space: the store of one round, or the run-wide one that outlives rounds.
//!
//! Every write applies once, whatever the network does ([`slots`]); waiting is one read and one watch ([`waiting`]);
//! what lies where is decided in [`values`], what each write does in [`changes`], both pure. All values hang on the
//! run's lease and go with it.
//!
//! A store ends its pending calls when the service comes back empty, because nobody can say what became of the keys
//! they are about. One that puts back ([`Store::put_back`]) remembers its own writes instead ([`journal`]), writes them
//! again when it is told to, and waits on. What a store learns of its node it reads from a [`StoreView`], which the
//! node's session keeps current; a store knows neither leases' renewal nor rounds.

mod changes;
mod journal;
mod slots;
mod values;
mod waiting;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

pub use self::slots::Slots;
use self::{
    changes::{Add, Append, CompareSet, Delete, Put, PutBack, Set, Take},
    journal::{Journal, Lacking, Piece},
    slots::{Written, moved_or},
    values::{Contents, Place, argument, name_of},
};
use crate::{
    backend::{
        Backend, Keys, LeaseId, Range,
        limits::Limits,
        retry::{Backoff, RetryPolicy},
    },
    error::{Error, Result},
    protocol::{identity::NodeId, keys::RunKeys},
};

/// Waits after a write that lost to another's. Short: each loss is somebody's success, and the next attempt is one
/// round trip.
const CONTENTION: RetryPolicy =
    RetryPolicy { first_delay: Duration::from_millis(2), max_delay: Duration::from_millis(100), growth: 2 };

/// The two keys that setting one key of a store writes.
const OPERATIONS_PER_SET: usize = 2;

/// What a store learns from its node's session, always current.
///
/// The session moves `resets` and `run_lease` before it puts this node's record into a service that came back empty:
/// until then every write of a store is refused there, and so no write is taken for one of the store before.
#[derive(Clone, Debug, Default)]
pub struct StoreView {
    /// The run's lease; 0 while it is not known. Never the number of an earlier one.
    pub run_lease: LeaseId,
    /// How often the service came back empty since the node joined.
    pub resets: u64,
    /// Whether the world of this store's round is known to be about to change. Of a round's store only.
    pub changed: bool,
    /// Why this node id is no more, if it is: every call ends with this.
    pub over: Option<Error>,
}

/// What a store stands on.
#[derive(Clone, Debug)]
pub struct StoreContext {
    /// The service.
    pub backend: Arc<dyn Backend>,
    /// The run's keys.
    pub keys: RunKeys,
    /// This node.
    pub node: NodeId,
    /// The run's life.
    pub life: String,
    /// The round; `None` for the run-wide store.
    pub round: Option<u64>,
    /// What the session knows.
    pub view: watch::Receiver<StoreView>,
    /// The slots of this node id: one pool for all of its stores.
    pub slots: Arc<Slots>,
    /// The waits between attempts.
    pub retry: RetryPolicy,
    /// The bounds of the service.
    pub limits: Limits,
    /// Decides the random part of the waits.
    pub seed: u64,
}

/// A key-value space. Keys are text, values bytes. Clones are the same store.
///
/// Every call ends within its time limit, with [`Error::Timeout`] if it must; the failures of single attempts are
/// tried again until then. A call that is dropped may still be applied, once.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
    journal: Option<Arc<Journal>>,
}

/// What all parts of a store share.
#[derive(Debug)]
struct Inner {
    context: StoreContext,
    /// What the keys of this store begin with.
    base: String,
    /// Makes each call's waits its own.
    calls: AtomicU64,
}

impl Inner {
    fn seed(&self) -> u64 {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        self.context.seed ^ call.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.context.retry, self.seed())
    }

    fn place(&self, name: &str) -> Result<Place> {
        Place::new(&self.base, name)
    }

    fn places<K: AsRef<str>>(&self, names: &[K]) -> Result<Vec<Place>> {
        names.iter().map(|name| self.place(name.as_ref())).collect()
    }

    /// Ends when the node id is no more or, unless the store puts back, when the service came back empty.
    async fn ended(&self, resets: u64, puts_back: bool, what: &str) -> Error {
        let mut view = self.context.view.clone();
        let ended = view.wait_for(|view| view.over.is_some() || (!puts_back && view.resets != resets));
        match ended.await.as_deref() {
            Ok(StoreView { over: Some(error), .. }) => error.clone(),
            Ok(_) => Error::StoreReset { what: what.to_owned() },
            Err(_) => Error::Left,
        }
    }
}

/// What a call is doing, for the message of its end.
#[derive(Debug)]
struct Progress {
    what: String,
    awaited: Mutex<String>,
    cause: Mutex<String>,
}

impl Progress {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), awaited: Mutex::default(), cause: Mutex::default() }
    }

    /// What went wrong last.
    fn note(&self, cause: &str) {
        cause.clone_into(&mut lock(&self.cause));
    }

    /// What is awaited, and that nothing is wrong.
    fn awaiting(&self, what: String) {
        *lock(&self.awaited) = what;
        lock(&self.cause).clear();
    }

    fn timed_out(&self, after: Duration) -> Error {
        let mut what = format!("`{}`", self.what);
        for (label, part) in [("", lock(&self.awaited)), ("the last attempt: ", lock(&self.cause))] {
            if !part.is_empty() {
                what = format!("{what}; {label}{}", *part);
            }
        }
        Error::Timeout { what, after }
    }

    fn unknown(&self, why: &str) -> Error {
        Error::OutcomeUnknown { what: self.what.clone(), why: why.to_owned() }
    }
}

fn lock(text: &Mutex<String>) -> MutexGuard<'_, String> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// The store of a round or, without one, of the run.
    pub fn new(context: StoreContext) -> Self {
        let base = match context.round {
            Some(round) => context.keys.round_store(&context.life, round),
            None => context.keys.run_store(&context.life),
        };
        Self { inner: Arc::new(Inner { context, base, calls: AtomicU64::new(0) }), journal: None }
    }

    /// The same store, but one that remembers what is written through it (or its clones) from here on, and whose
    /// pending calls wait on when the service comes back empty.
    #[must_use]
    pub fn put_back(self) -> Self {
        Self { journal: Some(Arc::default()), ..self }
    }

    /// Runs a call within its limits.
    async fn call<T>(
        &self,
        progress: &Progress,
        limit: Duration,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let resets = {
            let view = self.inner.context.view.borrow();
            if let Some(error) = &view.over {
                return Err(error.clone());
            }
            view.resets
        };
        tokio::select! {
            biased;
            // Before the call: one that goes on after a reset would begin anew, on a store it was not made for.
            error = self.inner.ended(resets, self.journal.is_some(), &progress.what) => Err(error),
            end = timeout(limit, call) => end.unwrap_or_else(|_| Err(progress.timed_out(limit))),
        }
    }

    /// Journals a write. If the service came back empty between the write and its answer, it is put back at once: the
    /// session may have called [`Self::put_back_now`] already.
    fn record(&self, name: &str, written: Option<Written>, piece: Piece) {
        let (Some(journal), Some(written)) = (&self.journal, written) else { return };
        journal.record(name, written.lease, piece);
        let present = self.inner.context.view.borrow().run_lease;
        if present != 0 && present != written.lease {
            // A task of its own: the call's time is over, and what is put back must not be dropped half way.
            let store = self.clone();
            tokio::spawn(async move {
                if let Err(error) = store.put_back_now().await {
                    tracing::warn!("what this node wrote could not be put back: {error}");
                }
            });
        }
    }

    /// Puts a content, whatever the key held.
    pub async fn set(&self, key: &str, value: &[u8], limit: Duration) -> Result<()> {
        let progress = Progress::new(format!("set {key}"));
        let change = Set { items: vec![(self.inner.place(key)?, value.to_vec())] };
        let ((), written) = self.call(&progress, limit, self.inner.write(&change, &progress)).await?;
        self.record(key, written, Piece::Content(value.to_vec()));
        Ok(())
    }

    /// Waits for a key. `None` only with `until_change`: the world is about to change, and the key is not there.
    pub async fn get(&self, key: &str, until_change: bool, limit: Duration) -> Result<Option<Vec<u8>>> {
        let progress = Progress::new(format!("get {key}"));
        let mut contents = Contents::new(vec![self.inner.place(key)?]);
        self.call(&progress, limit, self.inner.wait(&mut contents, until_change, &progress)).await?;
        contents.value(key)
    }

    /// What the keys hold now.
    pub async fn get_now<K: AsRef<str> + Sync>(
        &self,
        keys: &[K],
        limit: Duration,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let progress = Progress::new(format!("get_now {}", several(keys)));
        let mut contents = Contents::new(self.inner.places(keys)?);
        self.call(&progress, limit, self.inner.read(&mut contents, &progress)).await?;
        in_order(&contents, keys)
    }

    /// Waits for all of the keys: one read and one watch, which with `until_change` is opened first. `None` only with `until_change`, for keys that are not
    /// there when the world is about to change.
    pub async fn multi_get<K: AsRef<str> + Sync>(
        &self,
        keys: &[K],
        until_change: bool,
        limit: Duration,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let progress = Progress::new(format!("multi_get {}", several(keys)));
        let mut contents = Contents::new(self.inner.places(keys)?);
        self.call(&progress, limit, self.inner.wait(&mut contents, until_change, &progress)).await?;
        in_order(&contents, keys)
    }

    /// Puts many contents, in as few transactions as there may be, in flight together. Each applies once; if this
    /// fails, some may have been applied.
    pub async fn multi_set<K: AsRef<str> + Sync>(
        &self,
        items: &[(K, Vec<u8>)],
        limit: Duration,
    ) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = items.iter().map(|(key, _)| key.as_ref()).collect();
        let progress = Progress::new(format!("multi_set {}", several(&names)));
        // The last value of a key that is named twice: one transaction may not put a key twice.
        let last: BTreeMap<&str, &Vec<u8>> = items.iter().map(|(key, value)| (key.as_ref(), value)).collect();
        let mut placed = Vec::with_capacity(last.len());
        for (name, value) in last {
            placed.push((self.inner.place(name)?, value.clone()));
        }
        let changes = batches(placed, &self.inner.context.limits);
        let writes = try_join_all(changes.iter().map(|change| self.inner.write(change, &progress)));
        let written = self.call(&progress, limit, writes).await?;
        for (change, ((), written)) in changes.into_iter().zip(written) {
            for (place, value) in change.items {
                self.record(&place.name, written, Piece::Content(value));
            }
        }
        Ok(())
    }

    /// Adds to a counter and returns its new value; a key that is absent counts as 0, a content must be a number.
    /// With `finished` the same transaction marks this node as finished.
    ///
    /// # Errors
    /// [`Error::Argument`] if the key holds what is no number, if the sum exceeds 64 bits, or for `finished` in the
    /// run-wide store, besides those of every write.
    pub async fn add(&self, key: &str, amount: i64, finished: bool, limit: Duration) -> Result<i64> {
        let progress = Progress::new(format!("add {key}"));
        let mark = if finished { Some(self.finished()?) } else { None };
        let change = Add { place: self.inner.place(key)?, amount, finished: mark };
        let (total, written) = self.call(&progress, limit, self.inner.write(&change, &progress)).await?;
        self.record(key, written, Piece::Added(amount, finished));
        Ok(total)
    }

    /// The key that says that this node is finished.
    fn finished(&self) -> Result<String> {
        let StoreContext { keys, node, life, round, .. } = &self.inner.context;
        let round =
            round.ok_or_else(|| argument("`finished` is of a round's store, this is the run-wide one"))?;
        Ok(keys.finished_node(life, round, *node))
    }

    /// Puts `desired` if the key holds `expected`, or is absent and `expected` is empty. Returns what it holds
    /// afterwards; `expected` if it is absent and `expected` is not empty.
    pub async fn compare_set(
        &self,
        key: &str,
        expected: &[u8],
        desired: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>> {
        let progress = Progress::new(format!("compare_set {key}"));
        let change = CompareSet {
            place: self.inner.place(key)?,
            expected: expected.to_vec(),
            desired: desired.to_vec(),
        };
        let (held, written) = self.call(&progress, limit, self.inner.write(&change, &progress)).await?;
        self.record(key, written, Piece::Content(desired.to_vec()));
        Ok(held)
    }

    /// Puts more at the end of a content; a key that is absent begins with it.
    pub async fn append(&self, key: &str, value: &[u8], limit: Duration) -> Result<()> {
        let progress = Progress::new(format!("append {key}"));
        let change = Append { place: self.inner.place(key)?, value: value.to_vec() };
        let ((), written) = self.call(&progress, limit, self.inner.write(&change, &progress)).await?;
        self.record(key, written, Piece::Appended(value.to_vec()));
        Ok(())
    }

    /// Deletes a key; whether it was there. Its queue stays.
    pub async fn delete(&self, key: &str, limit: Duration) -> Result<bool> {
        let progress = Progress::new(format!("delete {key}"));
        let change = Delete { place: self.inner.place(key)? };
        let (there, _) = self.call(&progress, limit, self.inner.write(&change, &progress)).await?;
        if let Some(journal) = &self.journal {
            journal.forget(key);
        }
        Ok(there)
    }

    /// Whether all of the keys are there now.
    pub async fn check<K: AsRef<str> + Sync>(&self, keys: &[K], limit: Duration) -> Result<bool> {
        if keys.is_empty() {
            return Ok(true);
        }
        let progress = Progress::new(format!("check {}", several(keys)));
        let mut contents = Contents::new(self.inner.places(keys)?);
        self.call(&progress, limit, self.inner.read(&mut contents, &progress)).await?;
        Ok(contents.is_complete())
    }

    /// How many keys there are, queues aside.
    pub async fn count(&self, limit: Duration) -> Result<u64> {
        let names = self.names("count", limit).await?;
        Ok(u64::try_from(names.len()).unwrap_or(u64::MAX))
    }

    /// The keys there are, sorted, queues aside.
    pub async fn list(&self, limit: Duration) -> Result<Vec<String>> {
        self.names("list", limit).await
    }

    async fn names(&self, what: &str, limit: Duration) -> Result<Vec<String>> {
        let progress = Progress::new(what);
        let base = self.inner.base.as_str();
        let items = self.call(&progress, limit, self.inner.all(Keys::prefix(base), &progress)).await?.1;
        let mut names: Vec<_> = items.iter().filter_map(|item| name_of(base, &item.key)).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Puts an item at the end of a queue.
    pub async fn queue_push(&self, key: &str, value: &[u8], limit: Duration) -> Result<()> {
        let progress = Progress::new(format!("queue_push {key}"));
        let StoreContext { node, slots, .. } = &self.inner.context;
        let item = format!("{}{node}-{:016x}", self.inner.place(key)?.queue(), slots.unique());
        let change = Put { key: item, value: value.to_vec() };
        self.call(&progress, limit, self.inner.write(&change, &progress)).await?;
        Ok(())
    }

    /// Takes the oldest item of a queue. With `block` it waits for one, else an empty queue gives `None`.
    pub async fn queue_pop(&self, key: &str, block: bool, limit: Duration) -> Result<Option<Vec<u8>>> {
        let progress = Progress::new(format!("queue_pop {key}"));
        let queue = Keys::prefix(self.inner.place(key)?.queue());
        self.call(&progress, limit, self.inner.pop(queue, block, &progress)).await
    }

    /// How many items a queue has.
    pub async fn queue_len(&self, key: &str, limit: Duration) -> Result<u64> {
        let progress = Progress::new(format!("queue_len {key}"));
        let queue = Keys::prefix(self.inner.place(key)?.queue());
        let items = self.call(&progress, limit, self.inner.all(queue, &progress)).await?.1;
        Ok(u64::try_from(items.len()).unwrap_or(u64::MAX))
    }

    /// Writes again what a service that came back empty lacks of this store's own writes. The session calls it after
    /// each reset, once this node's record and the run's lease are there; repeating it writes nothing twice. It goes
    /// on until it is done or the node id is no more.
    ///
    /// Not to be dropped while it runs: what was in flight then may be put back twice by the next.
    ///
    /// # Errors
    /// Of a write that no attempt will mend. What was not put back until then is by the next call.
    pub async fn put_back_now(&self) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let _turn = journal.turn.lock().await;
        let mut view = self.inner.context.view.clone();
        loop {
            let lease = {
                let known = view.wait_for(|view| view.over.is_some() || view.run_lease != 0).await;
                let now = known.map_err(|_| Error::Left)?;
                if let Some(error) = &now.over {
                    return Err(error.clone());
                }
                now.run_lease
            };
            let lacking = journal.lacking(lease);
            if lacking.is_empty() {
                return Ok(());
            }
            for part in lacking {
                self.put_back_key(journal, part, lease).await?;
            }
        }
    }

    async fn put_back_key(&self, journal: &Journal, part: Lacking, lease: LeaseId) -> Result<()> {
        let Lacking { name, content, added, appended, finished } = part;
        let progress = Progress::new(format!("put back {name}"));
        let place = self.inner.place(&name)?;
        let under = |written: Option<Written>| written.map_or(lease, |written| written.lease);
        if let Some(value) = content {
            let change = PutBack { place: place.clone(), value };
            let ((), written) = self.until_over(self.inner.write(&change, &progress)).await?;
            journal.content_is_back(&name, &change.value, under(written));
        }
        if let Some((amount, from)) = added {
            let change = Add { place: place.clone(), amount, finished: None };
            let lease = match self.until_over(self.inner.write(&change, &progress)).await {
                Ok((_, written)) => under(written),
                Err(error @ Error::Argument { .. }) => {
                    tracing::warn!(%error, key = name, "the key has become something else: not added to again");
                    lease
                }
                Err(error) => return Err(error),
            };
            journal.sum_is_back(&name, &from, amount, lease);
        }
        if let Some((value, from)) = appended {
            let change = Append { place, value };
            let ((), written) = self.until_over(self.inner.write(&change, &progress)).await?;
            journal.appended_is_back(&name, &from, change.value, under(written));
        }
        if finished {
            let change = Put { key: self.finished()?, value: Vec::new() };
            let ((), written) = self.until_over(self.inner.write(&change, &progress)).await?;
            journal.finished_is_back(&name, under(written));
        }
        Ok(())
    }

    /// Runs without a limit, but not after the node id is no more.
    async fn until_over<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        tokio::select! {
            biased;
            error = self.inner.ended(0, true, "put back") => Err(error),
            end = call => end,
        }
    }
}

impl Inner {
    /// The keys there are, without their values, and the revision of that.
    async fn all(
        &self,
        keys: Keys,
        progress: &Progress,
    ) -> Result<(crate::backend::Revision, Vec<crate::backend::KeyValue>)> {
        let mut backoff = self.backoff();
        let mut view = self.context.view.clone();
        loop {
            view.mark_unchanged();
            match self.pages(keys.clone(), true).await {
                Err(error) if error.is_transient() => {
                    progress.note(&error.to_string());
                    moved_or(&mut view, &mut backoff).await?;
                }
                end => return end,
            }
        }
    }

    /// Takes the oldest item under a prefix.
    async fn pop(&self, queue: Keys, block: bool, progress: &Progress) -> Result<Option<Vec<u8>>> {
        let mut contention = Backoff::new(CONTENTION, self.seed());
        loop {
            let resets = self.context.view.borrow().resets;
            let (revision, items) = self.all(queue.clone(), progress).await?;
            let Some(oldest) = items.into_iter().min_by_key(|item| item.create_revision) else {
                if !block {
                    return Ok(None);
                }
                progress.awaiting("the queue is empty".to_owned());
                self.wait_for_change(queue.clone(), revision, resets, progress).await?;
                continue;
            };
            // Its value is read before it is taken: afterwards, if the answer was lost, it might be compacted away.
            let range = Range::new(Keys::one(oldest.key));
            let found = match self.context.backend.range(range).await {
                Ok(found) => found.items.into_iter().next(),
                Err(error) if error.is_transient() => {
                    progress.note(&error.to_string());
                    None
                }
                Err(error) => return Err(error),
            };
            if let Some(item) = found {
                let change = Take { item };
                if self.write(&change, progress).await?.0 {
                    return Ok(Some(change.item.value));
                }
            }
            sleep(contention.next_delay()).await;
        }
    }
}

/// Groups what is to be set into transactions that the service takes.
fn batches(items: Vec<(Place, Vec<u8>)>, limits: &Limits) -> Vec<Set> {
    // One operation is the slot's.
    let most = (limits.operations_per_transaction.saturating_sub(1) / OPERATIONS_PER_SET).max(1);
    let mut batches: Vec<Set> = Vec::new();
    let mut bytes = 0;
    for (place, value) in items {
        let size = OPERATIONS_PER_SET * place.content().len() + value.len();
        match batches.last_mut() {
            Some(batch) if batch.items.len() < most && bytes + size <= limits.bytes_per_transaction => {
                bytes += size;
                batch.items.push((place, value));
            }
            _ => {
                bytes = size;
                batches.push(Set { items: vec![(place, value)] });
            }
        }
    }
    batches
}

/// The values of keys in the order they were asked for.
fn in_order<K: AsRef<str>>(contents: &Contents, keys: &[K]) -> Result<Vec<Option<Vec<u8>>>> {
    let values = contents.values()?;
    Ok(keys.iter().map(|key| values.get(key.as_ref()).cloned().flatten()).collect())
}

/// Keys in a message: the first, and how many more.
fn several<K: AsRef<str>>(keys: &[K]) -> String {
    let first = keys.first().map_or("", AsRef::as_ref);
    match keys.len() {
        0 | 1 => first.to_owned(),
        more => format!("{first} and {} more", more - 1),
    }
}
