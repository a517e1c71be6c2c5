//! Members that programs and operators suspect. The coordinator requests that its node checks them, or writes that
//! their state is unknown.

use std::sync::Arc;

use super::{Inquiry, Suspicious, Term};
use crate::{backend::Event, protocol::records::SuspectVerdict};

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
