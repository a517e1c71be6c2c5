//! Putting back: what this node wrote through a store that remembers it ([`journal`](super::journal)), written again
//! into a service that came back empty.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    Progress, Store,
    changes::{Add, Append, Claim, Put, PutBack},
    journal::{Journal, Lacking, Piece},
    next::Written,
    values::Place,
    writing::{lease, moved_or},
};
use crate::{
    backend::{LeaseId, retry::retry},
    error::{Error, Result},
    protocol::identity::NodeId,
};

/// How long a claim on a counter may last: a node that dies with it holds the others off for no longer.
const CLAIM_TTL: Duration = Duration::from_secs(10);

impl Store {
    /// Journals a write. If the service came back empty between the write and its answer, it is put back at once: the
    /// session may have called [`Self::put_back_now`] already.
    pub(super) fn record(&self, name: &str, written: Option<Written>, piece: Piece) {
        let (Some(journal), Some(written)) = (&self.journal, written) else { return };
        journal.record(name, written.lease, piece);
        self.restore_what_is_lacking();
    }

    /// Restores in the background what the present service lacks of this store's own writes, if it lacks something.
    pub(super) fn restore_what_is_lacking(&self) {
        let Some(journal) = &self.journal else { return };
        let lease = self.inner.context.view.borrow().run_lease;
        if lease == 0 || journal.first_lacking(&[], lease).is_none() {
            return;
        }
        // A task of its own: a call may be dropped, and what is being restored must not be dropped half way.
        let store = self.clone();
        tokio::spawn(async move {
            if let Err(error) = store.put_back_now().await {
                tracing::warn!("what this node wrote could not be restored: {error}");
            }
        });
    }

    /// Writes again what a service that came back empty lacks of this store's own writes. The session calls it after
    /// each reset, once this node's record and the run's lease are there; repeating it writes nothing twice. It goes
    /// on until it is done or the node id is no more.
    ///
    /// Not to be dropped while it runs: what was in flight then may be put back twice by the next.
    ///
    /// # Errors
    /// That the node id is no more.
    pub async fn put_back_now(&self) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let _turn = journal.turn.lock().await;
        let mut view = self.inner.context.view.clone();
        let (mut backoff, mut warned) = (self.inner.backoff(), BTreeSet::new());
        loop {
            let lease = lease(&mut view).await?;
            let lacking = journal.lacking(lease);
            if lacking.is_empty() {
                return Ok(());
            }
            let mut failed = false;
            for part in lacking {
                let name = part.name.clone();
                let Err(error) = self.put_back_key(journal, part, lease).await else { continue };
                if let Some(over) = &view.borrow().over {
                    return Err(over.clone());
                }
                failed = true;
                if warned.insert(name.clone()) {
                    tracing::warn!("the key `{name}` cannot be restored yet, which is tried on: {error}");
                }
            }
            if failed {
                moved_or(&mut view, &mut backoff).await?;
            }
        }
    }

    /// Waits until all that this node had written to these keys before the service lost its data is there again.
    pub(super) async fn restored(&self, names: &[&str], progress: &Progress) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let mut view = self.inner.context.view.clone();
        let mut restored = journal.restored();
        loop {
            restored.mark_unchanged();
            let lease = lease(&mut view).await?;
            let Some(name) = journal.first_lacking(names, lease) else { return Ok(()) };
            progress.note(&format!("what this node had written to `{name}` is being restored"));
            tokio::select! {
                biased;
                moved = view.changed() => moved.map_err(|_| Error::Left)?,
                // The sender is in this store's journal, so this cannot fail.
                _ = restored.changed() => {}
            }
        }
    }

    /// Adds to a counter that others may be adding to all the time. One is added blindly, and never waits. Other amounts
    /// depend on the total, which others would change over and over again, so a claim holds them off for that moment.
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
            // Others have it, or this lease is about to expire.
            let Ok(claimed) = timeout(CLAIM_TTL / 2, self.inner.write(&claim, progress)).await else {
                continue;
            };
            claimed?;
            let added = self.inner.write(&add, progress).await;
            // The claim went with the add. If that failed it goes with its lease, now or when it expires.
            let _ = backend.lease_revoke(lease).await;
            return added.map(|(_, written)| written);
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
        if !added.is_empty() {
            let amount = added.values().fold(0_i64, |sum, amount| sum.saturating_add(*amount));
            let lease = match self.until_over(self.add_again(&place, amount, &progress)).await {
                Ok(written) => under(written),
                Err(error @ Error::Argument { .. }) => {
                    tracing::warn!(%error, key = name, "the key has become something else: not added to again");
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

    /// Runs without a limit, but not after the node id is no more.
    async fn until_over<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        tokio::select! {
            biased;
            error = self.inner.ended(0, true, "put back") => Err(error),
            end = call => end,
        }
    }
}
