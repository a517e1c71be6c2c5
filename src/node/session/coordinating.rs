//! Becoming coordinator, and ceasing to be coordinator.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::{
    Session,
    lifelines::Watching,
    stage::{CoordinatorTask, Stage, new_term},
};
use crate::{
    backend::{Compare, Operation, Txn, retry::LONGEST_BACKOFF},
    coordinator,
    coordinator::{End, TermFence},
    error::Result,
    node::control::Control,
    protocol::{
        policy::REJOINS_PER_SECOND,
        records::{Outcome, Record},
    },
};

impl Session {
    /// Starts or stops the coordinator's task, or schedules a campaign, as `ctl/coordinator` requires.
    pub(super) fn reconcile_coordinator(&mut self) {
        let Stage::In(membership) = &mut self.stage else { return };
        let Some(term) = self.known.control.coordinator.clone() else {
            if membership.candidacy.campaign_at.is_none() {
                let size = self.known.control.round_record().map_or(0, |round| round.size);
                let spread = Duration::from_secs(1) * size / REJOINS_PER_SECOND;
                let spread = spread.clamp(Duration::from_millis(20), Duration::from_secs(5));
                membership.candidacy.campaign_in(self.context.entropy.part_of(spread));
            }
            return;
        };
        membership.candidacy.campaign_at = None;
        self.known.log_coordinator(&term.record.name);
        let served = membership.candidacy.task.as_ref().map(|task| &task.term.record);
        if term.record.node != membership.id {
            membership.candidacy.stop_coordinator();
        } else if !membership.candidacy.has_ended(&term) && served != Some(&term.record) {
            let trusted = membership.lease.observed_coordinator;
            self.start_coordinator(term, trusted);
        }
    }

    pub(super) async fn resign(&mut self) -> Result<()> {
        let Stage::In(membership) = &mut self.stage else { return Ok(()) };
        if let Some(term) = membership.term_to_resign(&self.known.control) {
            term.resign(&self.context).await?;
            // Whatever `ctl/coordinator` names now, it is not this term.
            self.known.control.coordinator = None;
            membership.candidacy.campaign_in(LONGEST_BACKOFF);
        }
        Ok(())
    }

    pub(super) async fn campaign(&mut self) -> Result<()> {
        let Stage::In(membership) = &mut self.stage else { return Ok(()) };
        let keys = &self.context.keys;
        let record = new_term(&self.context, membership.id);
        let put = Operation::put(keys.coordinator(), record.encode(), membership.lease.id());
        let mut txn = Txn::new(put).when([
            Compare::absent(keys.coordinator()),
            Compare::Exists(keys.node(membership.id).into()),
            Compare::absent(keys.closed()),
        ]);
        // After the put, whose revision identifies the term.
        let coordinator = txn.get(keys.coordinator());
        let own = txn.get_if_refused(keys.node(membership.id));
        let closed = txn.get_if_refused(keys.closed());
        let answer = self.context.backend.txn(txn).await?;
        membership.candidacy.campaign_at = None;
        if !answer.succeeded && !own.is_found(&answer) {
            membership.needs_resync = true;
            return Ok(());
        }
        let seen = Control::of(keys, [coordinator, closed].iter().filter_map(|get| get.item(&answer)))?;
        let trusted_before = membership.lease.observed_coordinator;
        self.known.control.coordinator = seen.coordinator;
        if answer.succeeded {
            if let Some(term) = self.known.control.coordinator.clone() {
                self.known.set_coordinator_name(&term.record.name);
                self.start_coordinator(term, trusted_before);
            }
        } else {
            // The records that prevented this may be newer than the reports of the watch. Without them, the node would
            // campaign again at once.
            self.known.control.closed = seen.closed;
            self.reconcile();
        }
        Ok(())
    }

    fn start_coordinator(&mut self, term: TermFence, trusted: bool) {
        let Stage::In(membership) = &mut self.stage else { return };
        membership.candidacy.stop_coordinator();
        membership.lease.observed_coordinator = true;
        tracing::debug!(nonce = term.record.nonce, trusted, "becoming coordinator");
        // Without lifelines, inquiries have no effect.
        let inquiries =
            self.watching.as_ref().map_or_else(|| mpsc::unbounded_channel().0, Watching::inquiries);
        let serving = coordinator::serve(
            Arc::clone(&self.context),
            term.clone(),
            membership.lease.keeper.state(),
            membership.lease.keeper.handle(),
            trusted,
            inquiries,
        );
        let task = tokio::spawn(serving.in_current_span());
        let had_round = self.known.control.round.is_some();
        membership.candidacy.task = Some(CoordinatorTask { term, task, had_round });
    }

    /// The coordinator's task has ended by itself.
    pub(super) fn handle_term_end(&mut self, end: Option<End>) {
        if let Some(membership) = self.stage.membership_mut() {
            membership.candidacy.stop_coordinator();
            membership.candidacy.campaign_in(LONGEST_BACKOFF);
        }
        match end {
            Some(End::Close(why)) => self.owner.require_closing(&self.context, Outcome::Ended, why),
            Some(End::Failed(error)) => tracing::warn!("coordinator: resigning after an error: {error}"),
            Some(_) | None => {}
        }
    }
}
