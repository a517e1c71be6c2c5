//! A member that a program or an operator suspects.

use crate::{
    backend::{Backend, Compare, KeyValue, LeaseId, Operation, Revision, Txn},
    protocol::{
        identity::NodeId,
        keys::RunKeys,
        records::{Record, SuspectRecord, SuspectVerdict},
    },
};

/// A suspicion without a verdict.
#[derive(Clone, Debug)]
pub struct Suspicious {
    pub(super) id: NodeId,
    /// The suspicion.
    pub record: SuspectRecord,
    key: String,
    revision: Revision,
    run_lease: LeaseId,
}

impl Suspicious {
    /// The suspicion of this item. `None` if it has a verdict or cannot be read.
    pub(super) fn of(item: &KeyValue, run_lease: LeaseId) -> Option<Self> {
        let id = RunKeys::node_of(&item.key)?;
        let key = String::from_utf8_lossy(&item.key).into_owned();
        match SuspectRecord::decode(&key, &item.value) {
            Ok(record) if record.verdict.is_none() => {
                Some(Self { id, record, key, revision: item.mod_revision, run_lease })
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!("a suspicion is ignored: {error}");
                None
            }
        }
    }

    /// Writes why the member is not reported dead. If this fails, the suspicion remains without a verdict.
    pub async fn answer(self, backend: &dyn Backend, verdict: SuspectVerdict) {
        let record = SuspectRecord { verdict: Some(verdict), ..self.record };
        let txn = Txn::new(Operation::put(self.key.as_str(), record.encode(), self.run_lease))
            .when([Compare::ModRevision(self.key.into(), self.revision)]);
        if let Err(error) = backend.txn(txn).await {
            tracing::debug!(%error, "the verdict about a suspect is not written");
        }
    }
}
