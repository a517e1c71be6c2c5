//! The term of a coordinator, and writing during it. Every write compares the create revision and the value of
//! `ctl/coordinator`, the last known mod revision of `ctl/round`, and that the run is not closed. After another node became
//! coordinator, a write therefore changes nothing, however late it arrives, and even if the service lost its data
//! since.

use tokio::time::Instant;

use crate::{
    backend::{
        Compare, KeyValue, Operation, Revision, Txn,
        retry::{Backoff, RetryPolicy},
    },
    error::{Applied, Error, Result},
    protocol::{
        keys::RunKeys,
        records::{CoordinatorRecord, Record},
    },
    run::Context,
};

/// What a coordinator writes, for messages.
pub(super) const COORDINATOR_WRITES: &str = "what the coordinator writes";

/// A term of a coordinator.
#[derive(Clone, Debug)]
pub struct TermFence {
    /// The record at `ctl/coordinator`.
    pub record: CoordinatorRecord,
    value: Vec<u8>,
    create_revision: Revision,
}

/// The result of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was applied at this revision.
    Done(Revision),
    /// Another node became coordinator, or the run is closed.
    TermLost(&'static str),
    /// `ctl/round` has changed, or another condition does not hold, so everything must be read again.
    Stale,
    /// There was nothing to write.
    Skipped,
}

impl TermFence {
    /// The term of this item at `ctl/coordinator`.
    ///
    /// # Errors
    /// [`Error::Record`] if it cannot be read.
    pub fn of(key: &str, item: &KeyValue) -> Result<Self> {
        let record = CoordinatorRecord::decode(key, &item.value)?;
        Ok(Self { record, value: item.value.clone(), create_revision: item.create_revision })
    }

    /// The revision at which this term began.
    pub fn since(&self) -> Revision {
        self.create_revision
    }

    /// The conditions that this term has not ended.
    pub fn holds(&self, keys: &RunKeys) -> Vec<Compare> {
        let key = keys.coordinator();
        vec![
            Compare::CreateRevision(key.clone().into(), self.create_revision),
            Compare::Value(key.into(), self.value.clone()),
        ]
    }

    fn is(&self, item: Option<&KeyValue>) -> bool {
        item.is_some_and(|item| item.value == self.value && item.create_revision == self.create_revision)
    }

    /// Writes with the fencing check, and repeats the attempt for the length of the reconnect window. `round` is the
    /// value that the write puts at `ctl/round`. It identifies an attempt whose response was lost.
    ///
    /// # Errors
    /// Errors that another attempt would not avoid. [`Error::LeaseNotFound`] if the run's lease is gone.
    pub async fn write(
        &self,
        context: &Context,
        round_revision: Revision,
        round: Option<&[u8]>,
        then: Vec<Operation>,
    ) -> Result<Written> {
        self.write_if(context, round_revision, round, Vec::new(), then).await
    }

    /// As [`Self::write`], but only if these conditions hold too. If one of them does not, the result is
    /// [`Written::Stale`].
    ///
    /// # Errors
    /// As those of [`Self::write`].
    pub(super) async fn write_if(
        &self,
        context: &Context,
        round_revision: Revision,
        round: Option<&[u8]>,
        further: Vec<Compare>,
        then: Vec<Operation>,
    ) -> Result<Written> {
        let keys = &context.keys;
        let fence =
            [Compare::ModRevision(keys.round().into(), round_revision), Compare::absent(keys.closed())];
        let (txn, coordinator_now) = Txn::read_if_refused(keys.coordinator());
        let mut txn = txn.when(self.holds(&context.keys)).when(further).when(fence).then(then);
        let round_now = txn.get_if_refused(keys.round());
        let closed_now = txn.get_if_refused(keys.closed());
        let mut backoff = Backoff::new(RetryPolicy::default(), context.entropy.bits());
        // Not forever, because meanwhile the other duties of the term wait, and the content of the write becomes
        // outdated.
        let deadline = Instant::now() + context.policy.return_window;
        let mut maybe_applied = false;
        loop {
            let answer = match context.backend.txn(txn.clone()).await {
                Ok(answer) => answer,
                Err(error) if error.is_transient() && Instant::now() < deadline => {
                    let unknown = matches!(error, Error::Unavailable { applied: Applied::Unknown, .. });
                    maybe_applied |= unknown;
                    context.refusals.note(COORDINATOR_WRITES, &error);
                    tracing::debug!(%error, "a coordinator's write will be repeated");
                    tokio::time::sleep(backoff.next_delay()).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            context.refusals.clear(COORDINATOR_WRITES);
            if answer.succeeded {
                return Ok(Written::Done(answer.header.revision));
            }
            if let (true, Some(round), Some(item)) = (maybe_applied, round, round_now.item(&answer))
                && item.value == round
            {
                return Ok(Written::Done(item.mod_revision));
            }
            if !self.is(coordinator_now.item(&answer)) {
                return Ok(Written::TermLost("another node became coordinator"));
            }
            if closed_now.is_found(&answer) {
                return Ok(Written::TermLost("the run is closed"));
            }
            return Ok(Written::Stale);
        }
    }

    /// Resigns, if this term has not ended. One attempt, which may be repeated.
    ///
    /// # Errors
    /// The error of the attempt.
    pub async fn resign(&self, context: &Context) -> Result<()> {
        let resigning = Txn::new(Operation::delete(context.keys.coordinator()));
        context.backend.txn(resigning.when(self.holds(&context.keys))).await.map(|_| ())
    }
}
