//! Closing the run and leaving it.

use std::sync::Arc;

use tokio::time::Instant;

use super::{CLOSING_RENEWAL, RESTORE_PAUSE, Session};
use crate::{
    backend::{Compare, LeaseId, Operation, Txn, retry::LONGEST_BACKOFF},
    error::{Error, Result},
    node::{control::Control, shared::WorldFacts},
    protocol::{
        records::{ChangeKind, ChangeRecord, ClosedRecord, NodeRecord, Phase, Record, RoundRecord},
        returning::CLOSED_LIFETIME,
        submission::are_rivals,
    },
};

impl Session {
    /// The others can see that this node is about to go, or there is nobody left whom it concerns.
    pub(super) fn answer_marks(&mut self) {
        let said = self.identity.as_ref().is_none_or(|identity| identity.record.leaving);
        if said || self.closed.is_some() {
            for mark in self.marks.drain(..) {
                let _ = mark.send(());
            }
        }
    }

    /// Nobody who asked for the closing waits for it any more.
    pub(super) fn forget_abandoned_closing(&mut self) {
        let Some(closing) = &mut self.closing else { return };
        closing.askers.retain(|asker| !asker.is_closed());
        if closing.askers.is_empty() && !closing.due {
            self.closing = None;
        }
    }

    /// Closes the life that this node is in, if it still is the run's.
    pub(super) async fn close(&mut self) -> Result<()> {
        let Some(closing) = &self.closing else { return Ok(()) };
        let answer = |session: &mut Self, closed: bool| {
            for asker in session.closing.take().into_iter().flat_map(|closing| closing.askers) {
                let _ = asker.send(closed);
            }
        };
        let (Some(identity), Some(life)) = (&self.identity, self.life.clone()) else {
            answer(self, false);
            return Ok(());
        };
        let keys = &self.context.keys;
        let own_lease = closing.granted.then_some(closing.lease);
        let then = [keys.round(), keys.closed(), keys.closed_life(&life)].map(Operation::get).to_vec();
        let read = self.context.backend.txn(Txn { then, ..Txn::default() }).await?;
        let control = match Control::of(keys, (0..2).flat_map(|index| read.found(index))) {
            Ok(control) => control,
            Err(error) => {
                answer(self, false);
                return Err(error);
            }
        };
        if let Some(closed) = control.closed.as_ref().filter(|closed| closed.record.life == life).cloned() {
            self.revoke_unused(own_lease, closed.lease);
            self.be_closed(closed.record, closed.lease);
            answer(self, true);
            return Ok(());
        }
        if let [moved, ..] = read.found(2) {
            // The next life has begun, and has moved the closing of this one there. Every attempt of this node compares
            // that `ctl/round` is of this life, so none can be applied any more.
            self.revoke_unused(own_lease, moved.lease);
        }
        if control.round_record().is_none_or(|round| round.life != life) {
            if self.world.is_some() {
                // The store has lost the run, or another life has begun: coming back tells which.
                self.doubt = true;
                self.retry_at = Some(Instant::now() + RESTORE_PAUSE);
            } else {
                answer(self, false);
            }
            return Ok(());
        }
        let submission = control.round_record().and_then(|round| round.submission.as_deref());
        if self.world.is_none() && are_rivals(submission, self.context.settings.submission.as_deref()) {
            // It waits in a run of another job, which is not its own to close.
            answer(self, false);
            return Ok(());
        }
        let moved_on =
            |world: &Arc<WorldFacts>| control.round_record().filter(|round| !world.place.is_of(round));
        if let Some(round) = self.world.as_ref().and_then(moved_on) {
            if self.read_world.as_ref() == Some(&round.world) {
                // The others have formed without this node, which waits in its own world for its exit barrier.
                answer(self, false);
            } else {
                // Whether it is in that world its shard tells.
                self.control.round = control.round;
                self.retry_at = Some(Instant::now() + RESTORE_PAUSE);
            }
            return Ok(());
        }
        let record = ClosedRecord {
            life,
            by: self.context.settings.node_name.clone(),
            why: closing.why.clone(),
            outcome: closing.outcome,
            submission: self.context.settings.submission.clone(),
        };
        let lease = closing.lease;
        if let Some(closing) = &mut self.closing {
            closing.granted = true;
        }
        match self.context.backend.lease_grant(lease, CLOSED_LIFETIME).await {
            Ok(_) | Err(Error::LeaseExists { .. }) => {}
            Err(error) => return Err(error),
        }
        let txn = Txn {
            when: vec![
                Compare::Exists(keys.node(identity.id).into()),
                Compare::absent(keys.closed()),
                Compare::ModRevision(keys.round().into(), control.round_revision()),
            ],
            then: vec![Operation::put(keys.closed(), record.encode(), lease)],
            otherwise: vec![Operation::get(keys.node(identity.id))],
        };
        let written = self.context.backend.txn(txn).await?;
        if written.succeeded {
            self.be_closed(record, lease);
            answer(self, true);
        } else if written.found(0).is_empty() && self.end.is_some() {
            answer(self, false);
        } else if written.found(0).is_empty() {
            // The lease is lost, or this node was dropped: coming back tells which, and whether the run is still its own.
            self.doubt = true;
        }
        Ok(())
    }

    /// Revokes the lease of this node's own attempts at closing, if the run's closing is attached to another one.
    fn revoke_unused(&self, own: Option<LeaseId>, closing: LeaseId) {
        if let Some(own) = own.filter(|own| *own != closing) {
            self.give_back(own);
        }
    }

    pub(super) async fn renew_closing(&mut self) {
        self.renew_closing_at = Instant::now() + CLOSING_RENEWAL;
        for lease in self.closing_leases.clone() {
            if let Err(error) = self.context.backend.lease_keep_alive(lease).await {
                tracing::debug!(%error, "renewing the closing failed");
                if error.is_transient() {
                    self.renew_closing_at = Instant::now() + LONGEST_BACKOFF;
                }
            }
        }
    }

    /// Leaves: tells the others, gives office and lease back.
    pub(super) async fn go(&mut self) -> Result<()> {
        let Some(identity) = &self.identity else {
            self.gone();
            return Ok(());
        };
        let (id, lease) = (identity.id, identity.lease.borrow().lease);
        let serving = self.serving.as_ref().map(|serving| serving.office.clone());
        let keys = self.context.keys.clone();
        let finished =
            self.world.as_ref().map(|world| keys.finished_node(&world.place.life, world.place.round, id));
        let mut then = [keys.coordinator(), keys.round(), keys.closed()].map(Operation::get).to_vec();
        then.extend(finished.map(Operation::get));
        let read = self.context.backend.txn(Txn { then, ..Txn::default() }).await?;
        // Records that cannot be read keep nobody from leaving.
        let control = Control::of(&keys, (0..3).flat_map(|index| read.found(index))).unwrap_or_default();
        let told = self.change_by_leaving(&control, !read.found(3).is_empty());
        let office =
            serving.or_else(|| control.coordinator.clone().filter(|office| office.record.node == id));
        self.stop_serving();
        let mut said = told.is_none();
        if let Some(office) = &office {
            let mut when = office.holds(&self.context);
            let mut then = vec![Operation::delete(keys.node(id)), Operation::delete(keys.coordinator())];
            if let (Some(change), Some(round)) = (told, &control.round) {
                when.push(Compare::ModRevision(keys.round().into(), round.revision));
                when.push(Compare::absent(keys.closed()));
                let record = RoundRecord { change: Some(change), ..round.record.clone() };
                then.push(Operation::put(keys.round(), record.encode(), round.lease));
            }
            let answer = self.context.backend.txn(Txn { when, then, otherwise: Vec::new() }).await?;
            let mine = control.coordinator.as_ref().is_some_and(|now| now.record == office.record);
            if !answer.succeeded && mine {
                // `ctl/round` moved, or the run was closed, in between: read again.
                return Ok(());
            }
            // Otherwise another has the office by now, and is told as any other would be.
            said |= answer.succeeded;
        }
        if !said {
            let record = NodeRecord { leaving: true, ..self.desired() };
            let txn = Txn {
                when: vec![Compare::Exists(keys.node(id).into())],
                then: vec![Operation::put(keys.node(id), record.encode(), lease)],
                otherwise: Vec::new(),
            };
            match self.context.backend.txn(txn).await {
                Ok(_) | Err(Error::LeaseNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match self.context.backend.lease_revoke(lease).await {
            Ok(()) | Err(Error::LeaseNotFound { .. }) => self.gone(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What the others must be told when this node goes: nothing if the world is not its own, was told of a change
    /// already, or has this node as finished.
    pub(super) fn change_by_leaving(&self, control: &Control, finished: bool) -> Option<ChangeRecord> {
        let world = &self.world.as_ref()?.place;
        let round = control.round_record()?;
        let mine = world.is_of(round) && round.phase == Phase::Running;
        if finished || !mine || round.change.is_some() || control.closed.is_some() {
            return None;
        }
        let name = self.context.settings.node_name.clone();
        Some(ChangeRecord { kind: ChangeKind::Leaving, why: format!("{name} leaving"), names: vec![name] })
    }

    pub(super) fn gone(&mut self) {
        self.shared.set_gone();
        self.publish_end();
        for done in self.leaves.drain(..) {
            let _ = done.send(());
        }
    }
}
