//! Getting into a run: one lease and one transaction; and what to do about a run id whose last life is closed.

use std::time::Duration;

use tokio::time::Instant;

use super::control::{Control, Kept};
use crate::{
    backend::{Compare, Header, LeaseId, Operation, Revision, Txn},
    error::Result,
    grant::Granted,
    protocol::{
        closing::{Reuse, reuse},
        identity::{NodeId, nonce},
        records::{ClosedRecord, CoordinatorRecord, NodeRecord, Record, RoundRecord},
    },
    run::Context,
};

/// A join under way: its id and lease survive repeated attempts.
#[derive(Clone, Debug)]
pub(super) struct Joining {
    pub(super) id: NodeId,
    pub(super) sent: Instant,
    pub(super) ttl: Duration,
}

/// What became of an attempt to join.
pub(super) enum Joined {
    /// The node is in.
    In {
        /// What stands under `ctl/`.
        control: Box<Control>,
        /// The head of the answer.
        header: Header,
        /// The mod revision of its record.
        revision: Revision,
    },
    /// The life that the node was in is closed.
    Closed(ClosedRecord, LeaseId),
    /// The run is closed; try again after so long at the latest, or once that closing is gone.
    Later(Box<Kept<ClosedRecord>>, Duration),
    /// The run is closed as succeeded, and this is the submission that succeeded.
    AlreadyDone(ClosedRecord),
    /// Something moved in between: try again now.
    Again,
}

impl Joining {
    /// Takes a lease for a new id: at first, unless that took too long, the one that was granted when the node connected.
    /// Nothing was attempted under that lease, so it may as well expire.
    pub(super) async fn begin(context: &Context) -> Result<Self> {
        let granted = context.take_granted().filter(Granted::is_fresh);
        let Granted { id, sent, ttl } = match granted {
            Some(granted) => granted,
            None => {
                let id = NodeId::from_random(context.entropy.bits());
                let ttl = context.settings.lease_ttl;
                Granted::request(context.backend.as_ref(), id, ttl, Instant::now()).await?
            }
        };
        Ok(Self { id, sent, ttl })
    }

    /// Puts the record unless the run is closed: `closed` is the closing that is known to stand, and of another life than
    /// the past one of this node. Repeatable.
    pub(super) async fn attempt(
        &self,
        context: &Context,
        record: &NodeRecord,
        past_life: Option<&str>,
        closed: Option<Kept<ClosedRecord>>,
        closed_since: &mut Option<(String, Instant)>,
    ) -> Result<Joined> {
        if let Some(closed) = closed {
            return self.reuse(context, record, closed, closed_since).await;
        }
        let keys = &context.keys;
        let node = keys.node(self.id);
        let mut read = [keys.coordinator(), keys.round(), keys.closed()].map(Operation::get).to_vec();
        let mut then = read.clone();
        then.push(Operation::put(node.clone(), record.encode(), self.id.first_lease()));
        read.push(Operation::get(node.clone()));
        let past = past_life.map(|life| keys.closed_life(life));
        then.extend(past.clone().map(Operation::get));
        read.extend(past.clone().map(Operation::get));
        // An attempt that was given up may land later: then it must not put back what this node said first.
        let when = vec![Compare::absent(keys.closed()), Compare::absent(node)];
        let answer = context.backend.txn(Txn { when, then, otherwise: read }).await?;
        let control = Control::of(keys, (0..3).flat_map(|index| answer.found(index)))?;
        let of_past_life =
            control.closed.as_ref().filter(|closed| Some(closed.record.life.as_str()) == past_life);
        if let Some(closed) = of_past_life {
            return Ok(Joined::Closed(closed.record.clone(), closed.lease));
        }
        if let (Some(past), [item, ..]) = (past, answer.found(4)) {
            return Ok(Joined::Closed(ClosedRecord::decode(&past, &item.value)?, item.lease));
        }
        if answer.succeeded {
            let revision = answer.header.revision;
            return Ok(Joined::In { control: Box::new(control), header: answer.header, revision });
        }
        if let ([own, ..], None) = (answer.found(3), &control.closed) {
            // An earlier attempt, whose answer was lost.
            let revision = own.mod_revision;
            return Ok(Joined::In { control: Box::new(control), header: answer.header, revision });
        }
        let Some(closed) = control.closed.clone() else { return Ok(Joined::Again) };
        if !answer.found(3).is_empty() {
            // It was in before the closing, without having known.
            return Ok(Joined::Closed(closed.record, closed.lease));
        }
        self.reuse(context, record, closed, closed_since).await
    }

    async fn reuse(
        &self,
        context: &Context,
        record: &NodeRecord,
        closed: Kept<ClosedRecord>,
        closed_since: &mut Option<(String, Instant)>,
    ) -> Result<Joined> {
        let now = Instant::now();
        let since = match closed_since {
            Some((life, since)) if *life == closed.record.life => *since,
            _ => {
                *closed_since = Some((closed.record.life.clone(), now));
                let ClosedRecord { outcome, by, .. } = &closed.record;
                let outcome = outcome.as_str();
                tracing::info!("found the run closed as {outcome} by `{by}`; its id may be used again");
                now
            }
        };
        let settings = &context.settings;
        match reuse(&closed.record, settings.submission.as_deref(), now - since, settings.reuse_delay) {
            Reuse::AlreadyDone => Ok(Joined::AlreadyDone(closed.record)),
            Reuse::Wait(time) => Ok(Joined::Later(Box::new(closed), time)),
            Reuse::Begin => self.begin_life(context, record, &closed).await,
        }
    }

    /// Begins a new life where another is closed: its closing moves away, and everything of the new life is put over the
    /// old in the same transaction.
    async fn begin_life(
        &self,
        context: &Context,
        record: &NodeRecord,
        closed: &Kept<ClosedRecord>,
    ) -> Result<Joined> {
        let keys = &context.keys;
        let settings = &context.settings;
        let run_lease: LeaseId = NodeId::from_random(context.entropy.bits()).first_lease();
        context.backend.lease_grant(run_lease, context.run_lease_ttl()).await?;
        let (life, attempt) = (nonce(context.entropy.bits()), nonce(context.entropy.bits()));
        let forming = RoundRecord::forming(life, settings.min_nodes, settings.max_nodes, attempt);
        let round = RoundRecord { sizing: settings.sizing.clone(), ..forming };
        let office = office(context, self.id);
        let node_lease = self.id.first_lease();
        let txn = Txn {
            when: vec![Compare::ModRevision(keys.closed().into(), closed.revision)],
            then: vec![
                Operation::put(keys.closed_life(&closed.record.life), closed.record.encode(), closed.lease),
                Operation::delete(keys.closed()),
                Operation::put(keys.round(), round.encode(), run_lease),
                Operation::put(keys.coordinator(), office.encode(), node_lease),
                Operation::put(keys.node(self.id), record.encode(), node_lease),
            ],
            otherwise: Vec::new(),
        };
        let answer = context.backend.txn(txn).await?;
        if answer.succeeded {
            let name = &closed.record.by;
            let outcome = closed.record.outcome.as_str();
            tracing::info!(
                "the run was closed as {outcome} by `{name}`; its id is used again, for a new life"
            );
        }
        // Won, lost, or won by an attempt whose answer was lost: joining reads again what stands there now.
        Ok(Joined::Again)
    }
}

/// A new term of office of `node`.
pub(super) fn office(context: &Context, node: NodeId) -> CoordinatorRecord {
    CoordinatorRecord {
        node,
        name: context.settings.node_name.clone(),
        nonce: nonce(context.entropy.bits()),
        min: context.settings.min_nodes,
        max: context.settings.max_nodes,
        sizing: context.settings.sizing.clone(),
    }
}
