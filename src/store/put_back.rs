//! Restores the writes of this node: what it wrote through a store that remembers it ([`journal`](super::journal)) is
//! written again into a service that lost its data.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    Progress, Store,
    changes::{Add, Append, Claim, Put, PutBack},
    journal::{Journal, Missing, Piece},
    next::Written,
    values::Place,
    writing::{lease, moved_or},
};
use crate::{
    backend::{LeaseId, retry::retry},
    error::{Error, Result},
    protocol::identity::NodeId,
};

/// The TTL of a claim on a counter. If a node dies with a claim, the other nodes wait no longer than this.
const CLAIM_TTL: Duration = Duration::from_secs(10);

impl Store {
    /// Journals a write. If the service lost its data between the write and its response, the write is restored at
    /// once, because the session may have called [`Self::put_back_now`] already.
    pub(super) fn record(&self, name: &str, written: Option<Written>, piece: Piece) {
        let (Some(journal), Some(written)) = (&self.journal, written) else { return };
        journal.record(name, written.lease, piece);
        self.restore_missing();
    }

    /// Restores in the background those of this store's writes that the present service does not contain, if there are
    /// any.
    pub(super) fn restore_missing(&self) {
        let Some(journal) = &self.journal else { return };
        let lease = self.inner.context.view.borrow().run_lease;
        if lease == 0 || journal.first_missing(&[], lease).is_none() {
            return;
        }
        // A separate task, because a call may be dropped, but a restoration must not be dropped before it is complete.
        let store = self.clone();
        tokio::spawn(async move {
            if let Err(error) = store.put_back_now().await {
                tracing::warn!("what this node wrote could not be restored: {error}");
            }
        });
    }

    /// Writes again those of this store's writes that a service that lost its data does not contain. The session calls
    /// it after each reset, once this node's record and the run's lease exist. A repeated call writes nothing twice. It
    /// continues until everything is restored or the node ID is no longer valid.
    ///
    /// Do not drop the future while it runs, because the next call might restore a write in flight a second time.
    ///
    /// # Errors
    /// If the node ID is no longer valid.
    pub async fn put_back_now(&self) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let _turn = journal.turn.lock().await;
        let mut view = self.inner.context.view.clone();
        let (mut backoff, mut warned) = (self.inner.backoff(), BTreeSet::new());
        loop {
            let lease = lease(&mut view).await?;
            let missing = journal.missing(lease);
            if missing.is_empty() {
                return Ok(());
            }
            let mut failed = false;
            for part in missing {
                let name = part.name.clone();
                let Err(error) = self.put_back_key(journal, part, lease).await else { continue };
                if let Some(over) = &view.borrow().over {
                    return Err(over.clone());
                }
                failed = true;
                if warned.insert(name.clone()) {
                    tracing::warn!("cannot restore the key `{name}` yet, retrying: {error}");
                }
            }
            if failed {
                moved_or(&mut view, &mut backoff).await?;
            }
        }
    }

    /// Waits until everything that this node wrote to these keys before the service lost its data is restored.
    pub(super) async fn restored(&self, names: &[&str], progress: &Progress) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let mut view = self.inner.context.view.clone();
        let mut restored = journal.restored();
        loop {
            restored.mark_unchanged();
            let lease = lease(&mut view).await?;
            let Some(name) = journal.first_missing(names, lease) else { return Ok(()) };
            progress.note(&format!("the values that this node wrote to `{name}` are being restored"));
            tokio::select! {
                biased;
                moved = view.changed() => moved.map_err(|_| Error::Left)?,
                // The sender is in this store's journal, so this cannot fail.
                _ = restored.changed() => {}
            }
        }
    }

    /// Adds to a counter while other nodes may be adding to it, too. The amount one is added without knowledge of the
    /// total and never waits. Other amounts depend on the total, which other nodes would change again and again.
    /// Therefore a claim makes the other nodes wait for that moment.
    async fn add_again(&self, place: &Place, amount: i64, progress: &Progress) -> Result<Option<Written>> {
        let add = Add { place: place.clone(), amount, finished: None, claimed: amount != 1 };
        if !add.claimed {
            return self.inner.write(&add, progress).await.map(|(_, written)| written);
        }
        loop {
            let lease = NodeId::from_random(self.inner.seed()).first_lease();
            let backend = &self.inner.context.backend;
            let grant = async || backend.lease_grant(lease, CLAIM_TTL).await;
            match retry(self.inner.context.retry, self.inner.seed(), Instant::now() + CLAIM_TTL, grant).await
            {
                Ok(_) | Err(Error::LeaseExists { .. }) => {}
                Err(error) => return Err(error),
            }
            let claim = Claim { place: place.clone(), lease };
            // Another node has the claim, or this lease is about to expire.
            let Ok(claimed) = timeout(CLAIM_TTL / 2, self.inner.write(&claim, progress)).await else {
                continue;
            };
            claimed?;
            let added = self.inner.write(&add, progress).await;
            // The add has deleted the claim. If the add failed, the claim is deleted with its lease, now or when it
            // expires.
            let _ = backend.lease_revoke(lease).await;
            return added.map(|(_, written)| written);
        }
    }

    async fn put_back_key(&self, journal: &Journal, part: Missing, lease: LeaseId) -> Result<()> {
        let Missing { name, content, added, appended, finished } = part;
        let progress = Progress::new(format!("restore {name}"));
        let place = self.inner.place(&name)?;
        let under = |written: Option<Written>| written.map_or(lease, |written| written.lease);
        if let Some(value) = content {
            let change = PutBack { place: place.clone(), value };
            let ((), written) = self.until_over(self.inner.write(&change, &progress)).await?;
            journal.content_is_back(&name, &change.value, under(written));
        }
        if !added.is_empty() {
            let amount = added.values().fold(0_i64, |sum, amount| sum.saturating_add(*amount));
            let lease = match self.until_over(self.add_again(&place, amount, &progress)).await {
                Ok(written) => under(written),
                Err(error @ Error::Argument { .. }) => {
                    tracing::warn!(%error, key = name, "the key no longer holds a counter, so this node's amount is not restored");
                    lease
                }
                Err(error) => return Err(error),
            };
            journal.sum_is_back(&name, &added, lease);
        }
        if !appended.is_empty() {
            let value = appended.values().flatten().copied().collect();
            let change = Append { place, value };
            let ((), written) = self.until_over(self.inner.write(&change, &progress)).await?;
            journal.appended_is_back(&name, &appended, under(written));
        }
        if finished {
            let change = Put { key: self.finished()?, value: Vec::new() };
            let ((), written) = self.until_over(self.inner.write(&change, &progress)).await?;
            journal.finished_is_back(&name, under(written));
        }
        Ok(())
    }

    /// Runs without a time limit, but ends when the node ID is no longer valid.
    async fn until_over<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        tokio::select! {
            biased;
            error = self.inner.ended(0, true, "restore") => Err(error),
            end = call => end,
        }
    }
}
