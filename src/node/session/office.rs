//! Becoming coordinator, and ceasing to be.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Closing, Serving, Session};
use crate::{
    backend::{Compare, Operation, Txn, retry::LONGEST_BACKOFF},
    coordinator,
    coordinator::{End, Office},
    error::Result,
    node::{control::Control, joining::office},
    protocol::{
        policy::REJOINS_PER_SECOND,
        records::{Outcome, Record},
    },
};

impl Session {
    pub(super) fn examine_coordinator(&mut self) {
        let Some(identity) = &self.identity else { return };
        let Some(office) = self.control.coordinator.clone() else {
            if self.campaign_at.is_none() {
                let size = self.control.round_record().map_or(0, |round| round.size);
                let spread = Duration::from_secs(1) * size / REJOINS_PER_SECOND;
                let spread = spread.clamp(Duration::from_millis(20), Duration::from_secs(5));
                self.campaign_at = Some(Instant::now() + self.context.entropy.part_of(spread));
            }
            return;
        };
        self.campaign_at = None;
        let name = &office.record.name;
        if self.coordinator_name.as_ref() != Some(name) {
            tracing::info!("coordinator: `{name}` decides");
            self.coordinator_name = Some(name.clone());
        }
        if office.record.node != identity.id {
            self.stop_serving();
        } else if !self.ended_terms.contains(&office.record.nonce)
            && self.serving.as_ref().is_none_or(|serving| serving.office.record != office.record)
        {
            self.serve(office);
        }
    }

    /// This node's own office, if it still stands though its term is over: nobody else would decide meanwhile.
    pub(super) fn office_to_give_back(&self) -> Option<&Office> {
        let office = self.control.coordinator.as_ref()?;
        let own = self.identity.as_ref().is_some_and(|identity| identity.id == office.record.node);
        (own && self.ended_terms.contains(&office.record.nonce)).then_some(office)
    }

    pub(super) async fn resign(&mut self) -> Result<()> {
        if let Some(office) = self.office_to_give_back() {
            office.resign(&self.context).await?;
            // Whatever stands there now, it is not this office.
            self.control.coordinator = None;
            self.campaign_at = Some(Instant::now() + LONGEST_BACKOFF);
        }
        Ok(())
    }

    pub(super) async fn campaign(&mut self) -> Result<()> {
        let Some(identity) = &self.identity else { return Ok(()) };
        let keys = &self.context.keys;
        let record = office(&self.context, identity.id);
        let lease = identity.lease.borrow().lease;
        let txn = Txn {
            when: vec![
                Compare::absent(keys.coordinator()),
                Compare::Exists(keys.node(identity.id).into()),
                Compare::absent(keys.closed()),
            ],
            then: vec![
                Operation::put(keys.coordinator(), record.encode(), lease),
                Operation::get(keys.coordinator()),
            ],
            otherwise: vec![
                Operation::get(keys.node(identity.id)),
                Operation::get(keys.coordinator()),
                Operation::get(keys.closed()),
            ],
        };
        let answer = self.context.backend.txn(txn).await?;
        self.campaign_at = None;
        if !answer.succeeded && answer.found(0).is_empty() {
            self.doubt = true;
            return Ok(());
        }
        let seen = Control::of(keys, (1..3).flat_map(|index| answer.found(index)))?;
        let trusted_before = identity.saw_office;
        self.control.coordinator = seen.coordinator;
        if answer.succeeded {
            if let Some(office) = self.control.coordinator.clone() {
                self.coordinator_name = Some(office.record.name.clone());
                self.start_serving(office, trusted_before);
            }
        } else {
            // What refused this may be ahead of the watch: left aside, it would be tried again at once, for ever.
            self.control.closed = seen.closed;
            self.examine();
        }
        Ok(())
    }

    pub(super) fn serve(&mut self, office: Office) {
        let trusted = self.identity.as_ref().is_some_and(|identity| identity.saw_office);
        self.start_serving(office, trusted);
    }

    pub(super) fn start_serving(&mut self, office: Office, trusted: bool) {
        self.stop_serving();
        let Some(identity) = &mut self.identity else { return };
        identity.saw_office = true;
        tracing::debug!(nonce = office.record.nonce, trusted, "taking office");
        let task = tokio::spawn(coordinator::serve(
            Arc::clone(&self.context),
            office.clone(),
            identity.keeper.state(),
            identity.keeper.handle(),
            trusted,
        ));
        let had_round = self.control.round.is_some();
        self.serving = Some(Serving { office, task, had_round });
    }

    pub(super) fn stop_serving(&mut self) {
        if let Some(serving) = self.serving.take() {
            self.ended_terms.insert(serving.office.record.nonce.clone());
        }
    }

    pub(super) fn term_ended(&mut self, end: Option<End>) {
        if let Some(serving) = self.serving.take() {
            self.ended_terms.insert(serving.office.record.nonce.clone());
        }
        self.campaign_at = Some(Instant::now() + LONGEST_BACKOFF);
        match end {
            Some(End::Close(why)) if self.closing.is_none() => {
                self.closing =
                    Some(Closing { due: true, ..Closing::new(&self.context, Outcome::Ended, why) });
            }
            Some(End::Failed(error)) => tracing::warn!("coordinator: giving the office up: {error}"),
            Some(_) | None => {}
        }
    }
}
