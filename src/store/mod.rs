//! The key-value stores of a run: one for each round, and a run-wide one that outlives rounds.
//!
//! Every write is applied exactly once, whatever the network does ([`writing`]). Waiting takes one read and one watch
//! ([`waiting`]). [`values`] defines the layout of the keys, and [`changes`] what each write does; both are pure.
//! [`queues`] are separate from the keys. All values are attached to the run's lease and are deleted with it.
//!
//! If the service loses its data, a store ends its pending calls, because it cannot know what happened to their keys. A
//! store that restores its writes ([`Store::put_back`]) remembers them instead ([`journal`]), writes them again when
//! the session requests that ([`mod@put_back`]), and keeps waiting. A store reads what it needs to know of its node
//! from a [`StoreView`], which the node's session keeps current. A store does not renew leases and does not
//! follow rounds.

mod changes;
mod context;
mod journal;
mod next;
mod progress;
mod put_back;
mod queues;
mod slots;
mod takes;
mod values;
mod waiting;
mod writing;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use tokio::time::timeout;

use self::{
    changes::{Add, Append, Change, CompareSet, Delete, Set},
    context::Inner,
    journal::{Journal, Piece},
    next::Written,
    progress::Progress,
    values::{Contents, Place, argument, name_of},
};
pub use self::{
    context::{StoreContext, StoreView},
    slots::Slots,
    takes::{Item, Takes},
};
use crate::{
    backend::{Keys, limits::Limits},
    error::{Error, Result},
};

/// How many transactions of one `multi_set` are in flight at once. Each has at most about a megabyte.
const TRANSACTIONS_AT_ONCE: usize = 4;

/// The number of service keys that are written to set one key of a store.
const OPERATIONS_PER_SET: usize = 2;

/// A key-value space. Keys are text, and values are bytes. Clones are the same store.
///
/// Every call ends within its time limit, with [`Error::Timeout`] if necessary. Attempts that fail are repeated until
/// then. A call that is dropped may still be applied, once.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
    journal: Option<Arc<Journal>>,
}

impl Store {
    /// The store of a round, or the run-wide store if the context has no round.
    pub fn new(context: StoreContext) -> Self {
        Self { inner: Arc::new(Inner::new(context)), journal: None }
    }

    /// Returns this store, but one that remembers what is written through it or its clones from now on, and whose
    /// pending calls keep waiting when the service loses its data.
    #[must_use]
    pub fn put_back(self) -> Self {
        Self { journal: Some(Arc::default()), ..self }
    }

    /// Runs a call within its limits. A store without a journal reports a reset once: by its pending calls, or by its
    /// next call. The data of the store is gone, and its owner must not mistake the present data for it.
    async fn call<T>(
        &self,
        progress: &Progress,
        limit: Duration,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let resets = self.inner.context.view.borrow().resets;
        if self.journal.is_none() && self.inner.mark_reported(resets) {
            return Err(Error::StoreReset { what: progress.what.clone() });
        }
        // The session restores only the stores of the present round. Any other store does it here.
        self.restore_missing();
        self.bounded(resets, progress, limit, call).await
    }

    /// Runs a call within its limits. A reset ends the call, unless the store restores its writes.
    async fn bounded<T>(
        &self,
        resets: u64,
        progress: &Progress,
        limit: Duration,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        if let Some(error) = &self.inner.context.view.borrow().over {
            return Err(error.clone());
        }
        tokio::select! {
            biased;
            // Checked before the call, because a call that continues after a reset would start again on data that it
            // was not made for.
            error = self.inner.ended(resets, self.journal.is_some(), &progress.what) => Err(error),
            end = timeout(limit, call) => end.unwrap_or_else(|_| Err(progress.timed_out(limit))),
        }
    }

    fn journal(&self) -> Option<&Journal> {
        self.journal.as_deref()
    }

    /// Writes to these keys after this node has restored what it had written to them before.
    async fn write<C: Change>(
        &self,
        names: &[&str],
        change: &C,
        progress: &Progress,
    ) -> Result<(C::Output, Option<Written>)> {
        self.restored(names, progress).await?;
        self.inner.write(change, progress).await
    }

    /// Sets the key to this value, whatever it held.
    pub async fn set(&self, key: &str, value: &[u8], limit: Duration) -> Result<()> {
        let progress = Progress::new(format!("set {key}"));
        let change = Set { items: vec![(self.inner.place(key)?, value.to_vec())] };
        let ((), written) = self.call(&progress, limit, self.write(&[key], &change, &progress)).await?;
        self.record(key, written, Piece::Content(value.to_vec()));
        Ok(())
    }

    /// Waits for a key. Returns `None` only with `until_change`, if the world is about to change and the key does not
    /// exist.
    pub async fn get(&self, key: &str, until_change: bool, limit: Duration) -> Result<Option<Vec<u8>>> {
        let progress = Progress::new(format!("get {key}"));
        let mut contents = Contents::new(vec![self.inner.place(key)?]);
        self.call(&progress, limit, self.inner.wait(&mut contents, self.journal(), until_change, &progress))
            .await?;
        contents.value(key)
    }

    /// Returns what the keys hold now.
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
        self.call(&progress, limit, self.inner.read(&mut contents, self.journal(), &progress)).await?;
        in_order(&contents, keys)
    }

    /// Waits for all of the keys with one read and one watch. With `until_change` the watch is opened first. Returns
    /// `None` only with `until_change`, for keys that do not exist when the world is about to change.
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
        self.call(&progress, limit, self.inner.wait(&mut contents, self.journal(), until_change, &progress))
            .await?;
        in_order(&contents, keys)
    }

    /// Sets many keys in as few transactions as possible, a few of them at a time. Each transaction is applied
    /// once. If this call fails, some of them may have been applied.
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
        // If a key is named twice, its last value counts, because one transaction may not put a key twice.
        let last: BTreeMap<&str, &Vec<u8>> = items.iter().map(|(key, value)| (key.as_ref(), value)).collect();
        let mut placed = Vec::with_capacity(last.len());
        for (name, value) in last {
            placed.push((self.inner.place(name)?, value.clone()));
        }
        let changes = batches(placed, &self.inner.context.limits);
        // Not all at a time: they would share the connection, and possibly none would be done within the time of an
        // attempt.
        let writes: Vec<_> = changes.iter().map(|change| self.inner.write(change, &progress)).collect();
        let writes = async {
            self.restored(&names, &progress).await?;
            iter(writes).buffered(TRANSACTIONS_AT_ONCE).try_collect::<Vec<_>>().await
        };
        let written = self.call(&progress, limit, writes).await?;
        for (change, ((), written)) in changes.into_iter().zip(written) {
            for (place, value) in change.items {
                self.record(&place.name, written, Piece::Content(value));
            }
        }
        Ok(())
    }

    /// Adds to a counter and returns its new value. An absent key counts as 0, and a content must be a number. With
    /// `finished`, the same transaction marks this node as finished.
    ///
    /// # Errors
    /// [`Error::Argument`] if the key does not hold a number, if the sum exceeds 64 bits, or for `finished` in the
    /// run-wide store. Also the errors of every write.
    pub async fn add(&self, key: &str, amount: i64, finished: bool, limit: Duration) -> Result<i64> {
        let progress = Progress::new(format!("add {key}"));
        let mark = if finished { Some(self.finished()?) } else { None };
        let change = Add { place: self.inner.place(key)?, amount, finished: mark, claimed: false };
        let (total, written) = self.call(&progress, limit, self.write(&[key], &change, &progress)).await?;
        self.record(key, written, Piece::Added(amount, finished));
        Ok(total)
    }

    /// The key that marks this node as finished.
    fn finished(&self) -> Result<String> {
        let StoreContext { keys, node, life, round, .. } = &self.inner.context;
        let round =
            round.ok_or_else(|| argument("`finished` is of a round's store, this is the run-wide one"))?;
        Ok(keys.finished_node(life, round, *node))
    }

    /// Puts `desired` if the key holds `expected`, or if it is absent and `expected` is empty. Returns what the key
    /// holds afterwards, or `expected` if the key is absent and `expected` is not empty.
    pub async fn compare_set(
        &self,
        key: &str,
        expected: &[u8],
        desired: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>> {
        Ok(self.swap(key, expected, desired, limit).await?.1)
    }

    /// Does what [`Self::compare_set`] does, and also returns whether it put `desired`.
    pub async fn swap(
        &self,
        key: &str,
        expected: &[u8],
        desired: &[u8],
        limit: Duration,
    ) -> Result<(bool, Vec<u8>)> {
        let progress = Progress::new(format!("compare_set {key}"));
        let change = CompareSet {
            place: self.inner.place(key)?,
            expected: expected.to_vec(),
            desired: desired.to_vec(),
        };
        let (held, written) = self.call(&progress, limit, self.write(&[key], &change, &progress)).await?;
        self.record(key, written, Piece::Content(desired.to_vec()));
        Ok(held)
    }

    /// Appends to a content. An absent key is created.
    pub async fn append(&self, key: &str, value: &[u8], limit: Duration) -> Result<()> {
        let progress = Progress::new(format!("append {key}"));
        let change = Append { place: self.inner.place(key)?, value: value.to_vec() };
        let ((), written) = self.call(&progress, limit, self.write(&[key], &change, &progress)).await?;
        self.record(key, written, Piece::Appended(value.to_vec()));
        Ok(())
    }

    /// Deletes a key. Returns whether it existed. Its queue remains.
    pub async fn delete(&self, key: &str, limit: Duration) -> Result<bool> {
        let progress = Progress::new(format!("delete {key}"));
        let change = Delete { place: self.inner.place(key)? };
        let (there, _) = self.call(&progress, limit, self.write(&[key], &change, &progress)).await?;
        if let Some(journal) = &self.journal {
            journal.forget(key);
        }
        Ok(there)
    }

    /// Waits until all of the keys exist. A key whose queue is not empty counts as existing, as in torch's `TCPStore`.
    pub async fn wait<K: AsRef<str> + Sync>(&self, keys: &[K], limit: Duration) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let progress = Progress::new(format!("wait {}", several(keys)));
        let mut contents = Contents::with_queues(self.inner.places(keys)?);
        self.call(&progress, limit, self.inner.wait(&mut contents, self.journal(), false, &progress)).await
    }

    /// Returns whether all of the keys exist now. A key whose queue is not empty counts as existing.
    pub async fn check<K: AsRef<str> + Sync>(&self, keys: &[K], limit: Duration) -> Result<bool> {
        if keys.is_empty() {
            return Ok(true);
        }
        let progress = Progress::new(format!("check {}", several(keys)));
        let mut contents = Contents::with_queues(self.inner.places(keys)?);
        self.call(&progress, limit, self.inner.read(&mut contents, self.journal(), &progress)).await?;
        Ok(contents.is_complete())
    }

    /// How many keys exist, without queues.
    pub async fn count(&self, limit: Duration) -> Result<u64> {
        let names = self.names("count", limit).await?;
        Ok(u64::try_from(names.len()).unwrap_or(u64::MAX))
    }

    /// The existing keys, sorted, without queues.
    pub async fn list(&self, limit: Duration) -> Result<Vec<String>> {
        self.names("list", limit).await
    }

    async fn names(&self, what: &str, limit: Duration) -> Result<Vec<String>> {
        let progress = Progress::new(what);
        let base = self.inner.base.as_str();
        let items = self
            .call(&progress, limit, self.inner.all(Keys::prefix(base), self.journal(), &progress))
            .await?
            .1;
        let mut names: Vec<_> = items.iter().filter_map(|item| name_of(base, &item.key)).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// Groups contents into transactions that the service accepts.
fn batches(items: Vec<(Place, Vec<u8>)>, limits: &Limits) -> Vec<Set> {
    // One operation is for the slot.
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

/// The values of keys in the requested order.
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
