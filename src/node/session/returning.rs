//! Coming back after a break: one read, one decision ([`after_break`]), and what it asks for.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{RESTORE_PAUSE, Session};
use crate::{
    backend::{Compare, Header, KeyValue, Operation, Txn},
    error::Result,
    lease::Keeper,
    node::{control::Control, shared::WorldFacts},
    protocol::{
        identity::NodeId,
        records::{ClosedRecord, NodeRecord, Outcome, Record},
        returning::{Before, Found, Return, after_break, is_earlier_data},
    },
    run::decode_found,
};

impl Session {
    /// What a break has done, from one read.
    pub(super) async fn come_back(&mut self) -> Result<()> {
        // Who knows that its life is closed does not bring it back.
        let setbacks = *self.setbacks.borrow_and_update();
        let Some(identity) = self.identity.as_ref().filter(|_| self.closed.is_none()) else {
            self.doubt = false;
            self.context.monotonic.judge(setbacks);
            return Ok(());
        };
        let keys = &self.context.keys;
        let mut then = [keys.coordinator(), keys.round(), keys.closed()].map(Operation::get).to_vec();
        then.push(Operation::get(keys.node(identity.id)));
        let life_key = self.life.as_ref().map(|life| keys.closed_life(life));
        then.extend(life_key.clone().map(Operation::get));
        let answer = self.context.backend.txn(Txn { then, ..Txn::default() }).await?;
        let control = match Control::of(keys, (0..3).flat_map(|index| answer.found(index))) {
            Ok(control) => control,
            Err(error) => {
                self.unreadable(error);
                return Ok(());
            }
        };
        let lease = identity.lease.borrow().clone();
        let found = Found {
            header: answer.header,
            closed: control.closed_record().cloned(),
            closed_life: life_key.map_or(Ok(None), |key| decode_found(&key, answer.found(4)))?,
            round: control.round_record().cloned(),
            run_lease: control.round.as_ref().map_or(0, |round| round.lease),
            record: !answer.found(3).is_empty(),
            lease: lease.alive && answer.found(3).first().is_none_or(|item| item.lease == lease.lease),
        };
        let before = Before {
            life: self.life.clone(),
            run_lease: self.run_lease,
            set_back: self.context.monotonic.judged() < setbacks,
            ..self.before.clone()
        };
        if is_earlier_data(&before, &found) {
            return self.discard(&control).await;
        }
        let next = after_break(&before, &found);
        tracing::debug!(?next, "after a break");
        match next {
            Return::GoOn => {
                self.doubt = false;
                self.before.silence = Duration::ZERO;
                self.control = control;
                self.note(answer.header);
                self.take_record(answer.found(3));
                self.watch_from(answer.header.revision + 1);
                // The store may have lost this node's world while its own lease lived: then its record brings it back.
                let round = self.control.round_record();
                let lost = |world: &Arc<WorldFacts>| {
                    let place = &world.place;
                    round.is_none_or(|round| round.life != place.life || round.round < place.round)
                };
                self.record_due |= self.world.as_ref().is_some_and(lost);
                self.examine_after_break();
            }
            Return::PutAgain | Return::Restore => {
                self.lose_run_lease(if next == Return::PutAgain { found.run_lease } else { 0 });
                self.put_again(&control, answer.header, answer.found(3)).await?;
            }
            Return::JoinAsNew(why) => {
                self.control = control;
                self.drop_out(why.to_owned());
            }
            Return::Closed(Some(record)) if self.is_of_another_job(&record) => self.start_over(&record),
            Return::Closed(record) => {
                let lease = control.closed.as_ref().map_or(0, |closed| closed.lease);
                self.doubt = false;
                let record = record.unwrap_or_else(|| ClosedRecord {
                    life: self.life.clone().unwrap_or_default(),
                    by: "?".into(),
                    why: "the run has ended, and its records are gone".into(),
                    outcome: Outcome::Ended,
                    submission: None,
                });
                self.be_closed(record, lease);
            }
        }
        if !self.doubt {
            self.context.monotonic.judge(setbacks);
        }
        Ok(())
    }

    /// Deletes the `ctl/round` of an older backup, unless it has moved since it was read. All that stands under its lease
    /// is void with that, because each write and read of a store compares the lease of `ctl/round`. The run is then
    /// restored from the records of its nodes, as after the loss of all data.
    async fn discard(&mut self, read: &Control) -> Result<()> {
        let (Some(stale), Some(world)) = (&read.round, &self.world) else { return Ok(()) };
        let key = self.context.keys.round();
        let txn = Txn {
            when: vec![Compare::ModRevision(key.clone().into(), stale.revision)],
            then: vec![Operation::delete(key)],
            otherwise: Vec::new(),
        };
        // Whether this or somebody else's write was applied: the next look tells.
        self.retry_at = Some(Instant::now() + RESTORE_PAUSE);
        if self.context.backend.txn(txn).await?.succeeded {
            tracing::warn!(
                "the service was restored from an older backup, at round {} of this run; that data is discarded, and round \
                 {} is restored from its nodes",
                stale.record.round,
                world.place.round
            );
            self.retry_at = None;
        }
        Ok(())
    }

    /// Takes another lease and puts the record again, unless `ctl/round` has moved since it was read.
    pub(super) async fn put_again(&mut self, read: &Control, header: Header, own: &[KeyValue]) -> Result<()> {
        let record = self.desired();
        let Some(identity) = &mut self.identity else { return Ok(()) };
        let context = &self.context;
        let lease = NodeId::from_random(context.entropy.bits()).first_lease();
        let sent = Instant::now();
        let ttl = context.backend.lease_grant(lease, context.settings.lease_ttl).await?;
        let txn = Txn {
            when: vec![
                Compare::ModRevision(context.keys.round().into(), read.round_revision()),
                Compare::absent(context.keys.closed()),
                Compare::ModRevision(
                    context.keys.node(identity.id).into(),
                    own.first().map_or(0, |item| item.mod_revision),
                ),
            ],
            then: vec![Operation::put(context.keys.node(identity.id), record.encode(), lease)],
            otherwise: Vec::new(),
        };
        let answer = context.backend.txn(txn).await?;
        if !answer.succeeded {
            self.give_back(lease);
            self.retry_at = Some(Instant::now() + RESTORE_PAUSE);
            return Ok(());
        }
        identity.keeper = Keeper::start(context, lease, ttl, sent);
        identity.lease = identity.keeper.state();
        identity.breaks = 0;
        identity.saw_office = false;
        identity.record = record;
        identity.record_revision = answer.header.revision;
        self.doubt = false;
        self.uncertain = false;
        self.control = read.clone();
        self.before.silence = Duration::ZERO;
        self.note(header);
        self.watch_from(header.revision + 1);
        let world = self.world.as_ref().map_or(0, |world| world.place.round);
        tracing::warn!("the lease had ended; nobody was told, and this node is back in round {world}");
        self.stop_serving();
        self.examine_after_break();
        Ok(())
    }

    /// This node's record as it stands: an attempt whose answer was lost may have written it.
    fn take_record(&mut self, found: &[KeyValue]) {
        let (Some(identity), [item, ..]) = (&mut self.identity, found) else { return };
        identity.record_revision = item.mod_revision;
        match NodeRecord::decode(&String::from_utf8_lossy(&item.key), &item.value) {
            Ok(record) => identity.record = record,
            Err(error) => {
                tracing::warn!("this node's own record is not what it wrote, and is written again: {error}");
                self.record_due = true;
            }
        }
    }

    /// As [`Self::examine`], but that there is no round is known by now and has been acted upon.
    pub(super) fn examine_after_break(&mut self) {
        if self.control.round.is_some() {
            self.examine();
        } else {
            self.end_term_of_lost_round();
            self.examine_coordinator();
        }
    }
}
