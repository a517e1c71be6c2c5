//! Putting back: what this node wrote through a store that remembers it ([`journal`](super::journal)), written again
//! into a service that came back empty.

use super::{
    Progress, Store,
    changes::{Add, Append, Put, PutBack},
    journal::{Journal, Lacking, Piece},
    slots::Written,
};
use crate::{
    backend::LeaseId,
    error::{Error, Result},
};

impl Store {
    /// Journals a write. If the service came back empty between the write and its answer, it is put back at once: the
    /// session may have called [`Self::put_back_now`] already.
    pub(super) fn record(&self, name: &str, written: Option<Written>, piece: Piece) {
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
        if !added.is_empty() {
            let amount = added.values().fold(0_i64, |sum, amount| sum.saturating_add(*amount));
            let change = Add { place: place.clone(), amount, finished: None };
            let lease = match self.until_over(self.inner.write(&change, &progress)).await {
                Ok((_, written)) => under(written),
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
