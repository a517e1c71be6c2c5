//! Closing the run.

use super::{RESTORE_PAUSE, Session, stage::Stage};
use crate::{
    backend::{Compare, LeaseId, Operation, Txn},
    error::{Error, Result},
    node::control::Control,
    protocol::{
        records::{ClosedRecord, Record, are_rivals},
        returning::CLOSED_LIFETIME,
    },
};

impl Session {
    /// Closes the life that this node is in, if that is still the life of the run.
    pub(super) async fn close(&mut self) -> Result<()> {
        let Some(closing) = &mut self.owner.closing else { return Ok(()) };
        if matches!(self.stage, Stage::Closed(_)) {
            // What this node has read since the last attempt shows that the run is closed.
            self.owner.answer_closing(true);
            return Ok(());
        }
        let Some(membership) = self.stage.membership_mut() else {
            self.owner.answer_closing(false);
            return Ok(());
        };
        let Some(life) = membership.life.name.clone() else {
            self.owner.answer_closing(false);
            return Ok(());
        };
        let keys = &self.context.keys;
        let own_lease = closing.granted.then_some(closing.lease);
        let (mut txn, round) = Txn::read(keys.round());
        let closed = txn.get(keys.closed());
        let moved = txn.get(keys.closed_life(&life));
        let read = self.context.backend.txn(txn).await?;
        let control = match Control::of(keys, [round, closed].iter().filter_map(|get| get.item(&read))) {
            Ok(control) => control,
            Err(error) => {
                self.owner.answer_closing(false);
                return Err(error);
            }
        };
        if let Some(closed) = control.closed.as_ref().filter(|closed| closed.record.life == life).cloned() {
            self.revoke_unused(own_lease, closed.lease);
            self.handle_run_closed(closed.record, closed.lease);
            self.owner.answer_closing(true);
            return Ok(());
        }
        if let Some(moved) = moved.item(&read) {
            // The next life has begun and has moved the closing record there. Each attempt of this node compares that
            // `ctl/round` belongs to this life, so none can be applied any more.
            self.revoke_unused(own_lease, moved.lease);
        }
        let Some(membership) = self.stage.membership_mut() else { return Ok(()) };
        let round = control.round_record().filter(|round| round.life == life);
        let Some(round) = round else {
            if membership.world.is_some() {
                // The service has lost the run, or another life has begun: a resync reads which.
                membership.needs_resync = true;
                self.retry.pause(RESTORE_PAUSE);
            } else {
                self.owner.answer_closing(false);
            }
            return Ok(());
        };
        let submission = self.context.settings.submission.clone();
        if membership.world.is_none() && are_rivals(round.submission.as_deref(), submission.as_deref()) {
            // It waits in the run of another job, which it may not close.
            self.owner.answer_closing(false);
            return Ok(());
        }
        if membership.place().is_some_and(|place| !place.is_of(round)) {
            if membership.read_attempt.as_ref() == Some(&round.attempt) {
                // The round was formed without this node, which waits in its own world for its exit barrier.
                self.owner.answer_closing(false);
            } else {
                // Its shard of the plan shows whether it is in that world.
                self.known.control.round = control.round;
                self.retry.pause(RESTORE_PAUSE);
            }
            return Ok(());
        }
        let Some(closing) = &mut self.owner.closing else { return Ok(()) };
        let record = ClosedRecord {
            life,
            by: self.context.settings.node_name.clone(),
            why: closing.why.clone(),
            outcome: closing.outcome,
            submission,
        };
        let lease = closing.lease;
        closing.granted = true;
        match self.context.backend.lease_grant(lease, CLOSED_LIFETIME).await {
            Ok(_) | Err(Error::LeaseExists { .. }) => {}
            Err(error) => return Err(error),
        }
        let node = keys.node(membership.id);
        let mut txn = Txn::new(Operation::put(keys.closed(), record.encode(), lease)).when([
            Compare::Exists(node.as_str().into()),
            Compare::absent(keys.closed()),
            Compare::ModRevision(keys.round().into(), control.round_revision()),
        ]);
        let own = txn.get_if_refused(node);
        let written = self.context.backend.txn(txn).await?;
        if written.succeeded {
            self.handle_run_closed(record, lease);
            self.owner.answer_closing(true);
        } else if !own.is_found(&written) {
            match &mut self.stage {
                // The lease is lost, or this node was excluded: a resync reads which, and whether it may still close the
                // run.
                Stage::In(membership) => membership.needs_resync = true,
                _ => self.owner.answer_closing(false),
            }
        }
        Ok(())
    }

    /// Revokes the lease of this node's own attempts at closing if the closing record is attached to another one.
    fn revoke_unused(&self, own: Option<LeaseId>, closing: LeaseId) {
        if let Some(own) = own.filter(|own| *own != closing) {
            self.revoke_later(own);
        }
    }
}
