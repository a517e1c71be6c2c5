//! The report that a member is dead: the read before the decision, and the transaction that reports the death.

use std::time::Duration;

use crate::{
    backend::{Backend, Compare, LeaseId, Operation, Revision, Txn},
    coordinator::TermFence,
    error::Result,
    node::control::ControlGet,
    protocol::{
        accusing::{Accusation, Accused, Deed, Found, accuse},
        identity::NodeId,
        keys::RunKeys,
        records::{LostRecord, NodeRecord, Record, WorldMembership},
    },
};

/// The accuser and the accused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accuser<'run> {
    pub(crate) backend: &'run dyn Backend,
    pub(crate) keys: &'run RunKeys,
    pub(crate) accused: NodeId,
    /// The node that accuses. `None` for an operator.
    pub(crate) own: Option<NodeId>,
}

/// What the service held about the accused before the accused was asked.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) deed: Deed,
    /// The name of the accused.
    pub(crate) name: String,
    /// The lease of its record. 0 if the record is gone.
    pub(crate) lease: LeaseId,
    /// The lease of the run.
    pub(crate) run_lease: LeaseId,
    pub(crate) round_revision: Revision,
    /// The world in which it is accused.
    pub(crate) world: WorldMembership,
    revision: Revision,
    term: Option<TermFence>,
}

/// The consequence of what was read.
#[derive(Debug)]
pub(crate) enum Reading {
    /// The accused may be asked.
    Confirm(Box<Before>),
    /// Nothing, for this reason.
    Drop(&'static str),
    /// Another world has formed.
    OtherWorld,
    /// Ask again later.
    Later,
}

impl Accuser<'_> {
    /// Reads what the service holds about the accused. `world` is the world of the accuser. An operator refers to the
    /// present world.
    pub(crate) async fn read(&self, world: Option<&WorldMembership>) -> Result<Reading> {
        let Self { keys, accused, .. } = *self;
        // An operator refers to the present round, which is read first.
        let present;
        let world = match world {
            Some(world) => world,
            None => match self.present_world().await? {
                Some(found) => {
                    present = found;
                    &present
                }
                None => return Ok(Reading::Drop("there is no round")),
            },
        };
        let (mut txn, control) = ControlGet::first(keys);
        let finished = txn.get(keys.finished_node(&world.life, world.round, accused));
        let record = txn.get(keys.node(accused));
        let own = self.own.map(|own| txn.get(keys.node(own)));
        let lost = txn.get(keys.lost_node(&world.life, world.round, accused));
        let answer = self.backend.txn(txn).await?;
        let control = control.control(keys, &answer)?;
        let found = Found {
            round: control.round_record(),
            coordinator: control.coordinator.as_ref().map(|term| &term.record),
            is_closed: control.closed.is_some(),
            accused: match (finished.is_found(&answer), record.is_found(&answer), lost.is_found(&answer)) {
                (true, _, _) => Accused::Finished,
                (false, true, _) => Accused::Present,
                (false, false, false) => Accused::Absent,
                (false, false, true) => Accused::Reported,
            },
            observer_has_record: own.is_none_or(|own| own.is_found(&answer)),
        };
        let deed = match accuse(accused, world, &found) {
            Accusation::Drop(why) => return Ok(Reading::Drop(why)),
            Accusation::OtherWorld => return Ok(Reading::OtherWorld),
            Accusation::Later => return Ok(Reading::Later),
            Accusation::Confirm(deed) => deed,
        };
        let item = record.item(&answer);
        let known = item.and_then(|item| NodeRecord::decode(&keys.node(accused), &item.value).ok());
        Ok(Reading::Confirm(Box::new(Before {
            deed,
            name: known.map_or_else(|| accused.to_string(), |record| record.name),
            lease: item.map_or(0, |item| item.lease),
            run_lease: control.round.as_ref().map_or(0, |round| round.lease),
            round_revision: control.round_revision(),
            world: world.clone(),
            revision: record.revision(&answer),
            term: control.coordinator,
        })))
    }

    async fn present_world(&self) -> Result<Option<WorldMembership>> {
        let (txn, control) = ControlGet::first(self.keys);
        let control = control.control(self.keys, &self.backend.txn(txn).await?)?;
        let round = control.round_record().filter(|round| round.has_world());
        Ok(round.map(|round| WorldMembership {
            life: round.life.clone(),
            round: round.round,
            world: round.world.clone(),
            rank: 0,
            size: round.size,
        }))
    }

    /// Reports that the accused is dead, and revokes its lease. `after` is the time since the end of its lifeline.
    /// Returns false if something has changed since it was read.
    pub(crate) async fn report(
        &self,
        before: &Before,
        by: &str,
        why: &str,
        after: Option<Duration>,
    ) -> Result<bool> {
        let Self { keys, accused, .. } = *self;
        let WorldMembership { life, round, .. } = &before.world;
        let lost = keys.lost_node(life, *round, accused);
        let evidence = LostRecord {
            name: before.name.clone(),
            by: by.to_owned(),
            why: why.to_owned(),
            lease: before.lease,
            after_ms: after.and_then(|after| u64::try_from(after.as_millis()).ok()),
        };
        let put = Operation::put(lost.as_str(), evidence.encode(), before.run_lease);
        let mut txn = Txn::new(put)
            .when([
                Compare::ModRevision(keys.round().into(), before.round_revision),
                Compare::ModRevision(keys.node(accused).into(), before.revision),
                Compare::absent(keys.closed()),
                Compare::absent(keys.finished_node(life, *round, accused)),
            ])
            .when(self.own.map(|own| Compare::Exists(keys.node(own).into())));
        match before.deed {
            Deed::PutEvidence => txn = txn.when([Compare::absent(lost)]),
            Deed::DeleteRecord { with_coordinator } => {
                txn = txn.then([Operation::delete(keys.node(accused))]);
                if let Some(term) = before.term.as_ref().filter(|_| with_coordinator) {
                    txn = txn.when(term.holds(keys)).then([Operation::delete(keys.coordinator())]);
                }
            }
        }
        let is_written = self.backend.txn(txn).await?.succeeded;
        if is_written && before.lease != 0 {
            tracing::info!("lost {}: {why}", before.name);
            // The lease that the record was attached to, and never a later lease of that node.
            let _ = self.backend.lease_revoke(before.lease).await;
        }
        Ok(is_written)
    }
}
