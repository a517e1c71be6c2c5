//! What a node does after an interruption: one read, one decision ([`plan_recovery`]), and the actions that it requires.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    RESTORE_PAUSE, Session,
    stage::{HeldLease, Stage, StoredRecord},
};
use crate::{
    backend::{Compare, Header, KeyValue, Operation, Txn},
    error::Result,
    node::control::{Control, ControlGet},
    protocol::{
        identity::NodeId,
        reading::RecordGet,
        records::{ClosedRecord, LostRecord, Outcome, Record, WorldMembership},
        returning::{Found, Recovery, is_earlier_data, plan_recovery},
    },
};

impl Session {
    /// Reads what an interruption has changed, and reacts to it.
    pub(super) async fn resync(&mut self) -> Result<()> {
        let setbacks = *self.setbacks.borrow_and_update();
        let Stage::In(membership) = &mut self.stage else { return Ok(()) };
        let keys = &self.context.keys;
        let (mut txn, control) = ControlGet::first(keys);
        let own = txn.get(keys.node(membership.id));
        // The watch may have been closed with the event of this key.
        let drain = txn.get(keys.drain(membership.id));
        let life_key = membership.life.name.as_ref().map(|life| keys.closed_life(life));
        let closed_life = life_key.map(|key| RecordGet::<ClosedRecord>::next(&mut txn, key));
        let lost_key =
            membership.place().map(|place| keys.lost_node(&place.life, place.round, membership.id));
        let lost = lost_key.map(|key| RecordGet::<LostRecord>::next(&mut txn, key));
        let answer = self.context.backend.txn(txn).await?;
        let own = own.item(&answer);
        let control = match control.control(keys, &answer) {
            Ok(control) => control,
            Err(error) => {
                self.end_with_unreadable_record(error);
                return Ok(());
            }
        };
        if let Some(Ok(Some(evidence))) = lost.map(|lost| lost.record(&answer)) {
            self.owner.false_alarms.note(evidence);
        }
        let lease = membership.lease.state();
        let found = Found {
            header: answer.header,
            closed: control.closed_record().cloned(),
            closed_life: closed_life.map_or(Ok(None), |closed| closed.record(&answer))?,
            round: control.round_record().cloned(),
            run_lease: control.round.as_ref().map_or(0, |round| round.lease),
            record: own.is_some(),
            lease: lease.alive && own.is_none_or(|item| item.lease == lease.lease),
        };
        let before = membership.before(self.context.monotonic.judged() < setbacks);
        if is_earlier_data(&before, &found) {
            return self.discard(&control).await;
        }
        if let Some(request) = drain.item(&answer) {
            self.handle_drain(request);
        }
        let next = plan_recovery(&before, &found);
        tracing::debug!(?next, "after an interruption");
        match next {
            Recovery::Continue => self.resume(control, answer.header, own),
            Recovery::Reregister | Recovery::Restore => {
                self.handle_run_lease_change(if next == Recovery::Reregister { found.run_lease } else { 0 });
                self.reregister(control, answer.header, own).await?;
            }
            Recovery::Rejoin(why) => {
                self.known.control = control;
                self.handle_exclusion(why.to_owned());
            }
            Recovery::Closed(Some(record)) if self.is_of_another_job(&record) => self.start_over(&record),
            Recovery::Closed(record) => {
                let lease = control.closed.as_ref().map_or(0, |closed| closed.lease);
                let record = record.unwrap_or_else(|| ClosedRecord {
                    life: before.life.unwrap_or_default(),
                    by: "?".into(),
                    why: "the run has ended, and its records are gone".into(),
                    outcome: Outcome::Ended,
                    submission: None,
                });
                self.handle_run_closed(record, lease);
            }
        }
        if !matches!(&self.stage, Stage::In(membership) if membership.needs_resync) {
            self.context.monotonic.judge(setbacks);
        }
        Ok(())
    }

    /// Nothing of this node was lost.
    fn resume(&mut self, control: Control, header: Header, own: Option<&KeyValue>) {
        let Stage::In(membership) = &mut self.stage else { return };
        membership.needs_resync = false;
        membership.lease.silence = Duration::ZERO;
        membership.record_header(header);
        if let Some(own) = own {
            membership.adopt_stored_record(own);
        }
        // The service may have lost the world of this node although its lease still exists. Then its record restores
        // the world.
        let round = control.round_record();
        let lost = |place: &WorldMembership| {
            round.is_none_or(|round| round.life != place.life || round.round < place.round)
        };
        membership.record.is_stale |= membership.place().is_some_and(lost);
        self.follow_from(control, header);
    }

    /// Follows `ctl/` from this read on.
    fn follow_from(&mut self, control: Control, header: Header) {
        self.known.control = control;
        self.known.set_read_revision(header.revision);
        self.known.watch_from(&self.context, header.revision + 1);
        if self.known.control.round.is_some() {
            self.reconcile();
            return;
        }
        // The node has already acted on the missing round.
        if let Stage::In(membership) = &mut self.stage {
            membership.candidacy.end_term_of_lost_round();
        }
        self.reconcile_coordinator();
    }

    /// Deletes the `ctl/round` of an older backup, unless it has changed since it was read. All keys that are attached
    /// to its lease are then invalid, because each write and read of a store compares the lease of `ctl/round`. The run
    /// is then restored from the records of its nodes, as after the loss of all data.
    async fn discard(&mut self, read: &Control) -> Result<()> {
        let place = self.stage.membership().and_then(|membership| membership.place());
        let (Some(stale), Some(place)) = (&read.round, place) else { return Ok(()) };
        let key = self.context.keys.round();
        let unchanged = Compare::ModRevision(key.as_str().into(), stale.revision);
        let txn = Txn::new(Operation::delete(key)).when([unchanged]);
        // The next resync reads whether this write or that of another node was applied.
        self.retry.pause(RESTORE_PAUSE);
        if self.context.backend.txn(txn).await?.succeeded {
            tracing::warn!(
                "the service was restored from an older backup, at round {} of this run; that data is discarded, and round \
                 {} is restored from its nodes",
                stale.record.round,
                place.round
            );
            self.retry.end_pause();
        }
        Ok(())
    }

    /// Takes another lease and writes the record again, unless `ctl/round` has changed since it was read.
    async fn reregister(&mut self, read: Control, header: Header, own: Option<&KeyValue>) -> Result<()> {
        let Stage::In(membership) = &mut self.stage else { return Ok(()) };
        let context = &self.context;
        let record = self.owner.desired_record(context, membership.place().cloned());
        let lease = NodeId::from_random(context.entropy.bits()).first_lease();
        let sent = Instant::now();
        let ttl = context.backend.lease_grant(lease, context.settings.lease_ttl).await?;
        let keys = &context.keys;
        let key = keys.node(membership.id);
        let stored_revision = own.map_or(0, |item| item.mod_revision);
        let put = Txn::new(Operation::put(key.as_str(), record.encode(), lease)).when([
            Compare::ModRevision(keys.round().into(), read.round_revision()),
            Compare::absent(keys.closed()),
            Compare::ModRevision(key.into(), stored_revision),
        ]);
        // A report of this node's death was wrong, and would still count at its next absence.
        let reported =
            membership.place().map(|place| keys.lost_node(&place.life, place.round, membership.id));
        let put = put.then(reported.map(Operation::delete));
        let answer = context.backend.txn(put).await?;
        if !answer.succeeded {
            self.revoke_later(lease);
            self.retry.pause(RESTORE_PAUSE);
            return Ok(());
        }
        membership.candidacy.stop_coordinator();
        membership.lease = HeldLease::start(context, lease, ttl, sent);
        membership.record = StoredRecord { record, revision: answer.header.revision, is_stale: false };
        membership.needs_resync = false;
        membership.record_header(header);
        let world = membership.place().map_or(0, |place| place.round);
        tracing::warn!(
            "the lease had expired, but no loss was announced; this node is back in round {world}"
        );
        self.observe_unsettled();
        self.follow_from(read, header);
        Ok(())
    }
}
