//! Members that programs and operators suspect. The coordinator requests that its node checks them, or writes that
//! their state is unknown.

use std::sync::Arc;

use super::{Inquiry, Term};
use crate::{
    backend::{Backend, Compare, Event, KeyValue, LeaseId, Operation, Revision, Txn},
    protocol::{
        identity::NodeId,
        keys::RunKeys,
        records::{Record, SuspectRecord, SuspectVerdict},
    },
};

/// A suspicion without a verdict.
#[derive(Clone, Debug)]
pub struct Suspicious {
    id: NodeId,
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

impl Term {
    pub(super) fn apply_suspects(&self, events: &[Event]) {
        let new = events.iter().filter(|event| event.revision() > self.read_revision);
        let suspects = new.filter_map(|event| match event {
            Event::Put(item) => Suspicious::of(item, self.run_lease),
            Event::Delete { .. } => None,
        });
        self.examine(suspects.collect());
    }

    /// Requests a check of suspects. A suspect that has no lifeline, or is not in the world, gets the verdict
    /// `Unknown`.
    pub(super) fn examine(&self, suspects: Vec<Suspicious>) {
        if suspects.is_empty() {
            return;
        }
        let members = self.reachable();
        for suspect in suspects {
            let member = members.iter().find(|member| member.id == suspect.id);
            if let Some(member) = member.filter(|_| !self.inquiries.is_closed()) {
                let _ = self.inquiries.send(Inquiry::Examine(member.clone(), suspect));
            } else {
                let backend = Arc::clone(&self.context.backend);
                tokio::spawn(async move {
                    suspect.answer(backend.as_ref(), SuspectVerdict::Unknown).await;
                });
            }
        }
    }
}
