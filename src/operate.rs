//! The acts of an operator on a run, without joining it: close the run, request that a node leaves, or report
//! that one is lost.
//!
//! Each is one transaction that compares what was read, and is repeated if that has changed. A response that was lost is
//! recognized by the record that the first attempt wrote.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    backend::{
        Backend, Compare, Operation, Txn,
        retry::{Backoff, RetryPolicy, retry},
    },
    error::{Error, Result},
    node::suspecting::{Answer, Suspect},
    protocol::{
        identity::NodeId,
        keys::RunKeys,
        reading::RecordGet,
        records::{ClosedRecord, DrainRecord, Outcome, Record as _, RoundRecord},
        returning::CLOSED_LIFETIME,
    },
    run::Entropy,
    settings::RunName,
    status::Source,
};

/// The result of closing a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The run is closed by this call.
    Closed(ClosedRecord),
    /// The run was closed before.
    Already(ClosedRecord),
    /// There is no run.
    Absent,
}

/// An operator at a service.
#[derive(Debug)]
pub struct Operator {
    backend: Arc<dyn Backend>,
    keys: RunKeys,
    by: String,
    entropy: Entropy,
}

impl Operator {
    /// Connects. `by` names the operator, for messages.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn connect(source: &Source, run: &RunName, by: String) -> Result<Self> {
        let keys = RunKeys::new(&run.tenant, &run.run_id);
        let backend = source.connect(&keys).await?;
        Ok(Self::over(backend, keys, by, source.entropy.clone()))
    }

    /// An operator of the run with these keys, over a connection that exists.
    pub fn over(backend: Arc<dyn Backend>, keys: RunKeys, by: String, entropy: Entropy) -> Self {
        Self { backend, keys, by, entropy }
    }

    /// Closes the run for good.
    ///
    /// # Errors
    /// The error of reading or writing that remains when `limit` has passed.
    pub async fn close(&self, outcome: Outcome, why: &str, limit: Duration) -> Result<Closing> {
        let lease = NodeId::from_random(self.entropy.bits()).first_lease();
        let mut granted = false;
        let mut backoff = Backoff::new(RetryPolicy::default(), self.entropy.bits());
        let deadline = Instant::now() + limit;
        let end = loop {
            match self.try_close(outcome, why, lease, &mut granted).await {
                Ok(Some(closing)) => break Ok(closing),
                Ok(None) => {}
                Err(error) if !error.is_transient() || Instant::now() >= deadline => break Err(error),
                Err(_) => sleep(backoff.next_delay()).await,
            }
        };
        // After an error, an attempt whose answer was lost may still be applied, and revoking its lease would undo the closing.
        if granted && matches!(end, Ok(Closing::Already(_) | Closing::Absent)) {
            // If this fails, the lease expires.
            let _ = self.backend.lease_revoke(lease).await;
        }
        end
    }

    /// One attempt. `None` if the round has changed in between.
    async fn try_close(
        &self,
        outcome: Outcome,
        why: &str,
        lease: i64,
        granted: &mut bool,
    ) -> Result<Option<Closing>> {
        let keys = &self.keys;
        let (mut txn, round) = RecordGet::<RoundRecord>::first(keys.round());
        let closed = RecordGet::<ClosedRecord>::next(&mut txn, keys.closed());
        let (closed_lease, revision) = (txn.get(keys.closed()), txn.get(keys.round()));
        let read = self.backend.txn(txn).await?;
        if let Some(record) = closed.record(&read)? {
            let own = closed_lease.item(&read).is_some_and(|item| item.lease == lease);
            return Ok(Some(if own { Closing::Closed(record) } else { Closing::Already(record) }));
        }
        let Some(round) = round.record(&read)? else { return Ok(Some(Closing::Absent)) };
        let record = ClosedRecord {
            life: round.life,
            by: self.by.clone(),
            why: why.to_owned(),
            outcome,
            submission: round.submission,
        };
        *granted = true;
        match self.backend.lease_grant(lease, CLOSED_LIFETIME).await {
            Ok(_) | Err(Error::LeaseExists { .. }) => {}
            Err(error) => return Err(error),
        }
        let revision = revision.item(&read).map_or(0, |item| item.mod_revision);
        let txn = Txn::new(Operation::put(keys.closed(), record.encode(), lease))
            .when([Compare::absent(keys.closed()), Compare::ModRevision(keys.round().into(), revision)]);
        let written = self.backend.txn(txn).await?;
        Ok(written.succeeded.then_some(Closing::Closed(record)))
    }

    /// Requests that a node leaves as on SIGTERM. Returns false if the node is not in the run.
    ///
    /// # Errors
    /// The error of reading or writing that remains when `limit` has passed.
    pub async fn drain(&self, id: NodeId, why: &str, limit: Duration) -> Result<bool> {
        let request = DrainRecord { by: self.by.clone(), why: why.to_owned() };
        let (seed, deadline) = (self.entropy.bits(), Instant::now() + limit);
        retry(RetryPolicy::default(), seed, deadline, || self.try_drain(id, &request)).await
    }

    /// Requests the coordinator's verdict on whether a member is dead, or with `force`, declares it dead.
    ///
    /// # Errors
    /// The error of reading or writing that remains when `limit` has passed.
    pub async fn report_lost(&self, id: NodeId, why: &str, force: bool, limit: Duration) -> Result<Answer> {
        let suspect = Suspect { backend: self.backend.as_ref(), keys: &self.keys, id, by: &self.by, why };
        if force { suspect.declare_lost(limit).await } else { suspect.ask(limit).await }
    }

    /// One attempt. It can be repeated, because the record is equal each time.
    async fn try_drain(&self, id: NodeId, request: &DrainRecord) -> Result<bool> {
        let key = self.keys.node(id);
        let (txn, node) = Txn::read(key.as_str());
        let read = self.backend.txn(txn).await?;
        let Some(lease) = node.item(&read).map(|item| item.lease) else { return Ok(false) };
        let txn = Txn::new(Operation::put(self.keys.drain(id), request.encode(), lease))
            .when([Compare::Exists(key.as_str().into())]);
        match self.backend.txn(txn).await {
            Ok(written) => Ok(written.succeeded),
            Err(Error::LeaseNotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
