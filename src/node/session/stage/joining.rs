//! The state of a node that joins the run: it has a lease, which it keeps alive, and makes attempts at one transaction.
//! If the run is closed, it begins the next life of the run id, or waits until it may do that.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{HeldLease, Outside};
use crate::{
    backend::{Compare, Header, LeaseId, Operation, Revision, Txn},
    error::Result,
    grant::Granted,
    node::control::{Control, ControlGet, Versioned},
    protocol::{
        closing::{Reuse, reuse},
        identity::{NodeId, nonce},
        records::{ClosedRecord, CoordinatorRecord, NodeRecord, Record, RoundRecord},
    },
    run::Context,
};

/// A node that joins. Its ID and lease are equal in all attempts, because an attempt that was given up may still be
/// applied. It takes another ID only after the service has reported that the lease does not exist, because then no
/// attempt can be applied.
pub(in super::super) struct Joining {
    pub(in super::super) id: NodeId,
    pub(in super::super) lease: HeldLease,
    pub(in super::super) outside: Outside,
}

/// The result of an attempt to join.
pub(in super::super) enum Joined {
    /// The node has joined.
    In {
        /// The records under `ctl/`.
        control: Box<Control>,
        /// The header of the response.
        header: Header,
        /// The mod revision of its record.
        revision: Revision,
    },
    /// The life that the node was in is closed.
    Closed(ClosedRecord, LeaseId),
    /// The run is closed. Try again after this time at the latest, or when the closing record is deleted.
    Later(Box<Versioned<ClosedRecord>>, Duration),
    /// The run is closed as succeeded, and this is the submission that succeeded.
    AlreadyDone(ClosedRecord),
    /// A record has changed in between. Try again now.
    Again,
}

/// Acquires a lease for a new ID. The first time it is the lease that was granted when the node connected, unless too
/// much time has passed. Nothing was attempted under that lease, so it can simply expire.
pub(in super::super) async fn take_lease(context: &Arc<Context>) -> Result<(NodeId, HeldLease)> {
    let granted = context.take_granted().filter(Granted::is_fresh);
    let Granted { id, sent, ttl } = if let Some(granted) = granted {
        granted
    } else {
        let id = NodeId::from_random(context.entropy.bits());
        let ttl = context.settings.lease_ttl;
        Granted::request(context.backend.as_ref(), id, ttl, Instant::now()).await?
    };
    Ok((id, HeldLease::start(context, id.first_lease(), ttl, sent)))
}

impl Joining {
    /// Writes the record unless the run is closed. `closed` is a closing record that is known to be current, of another
    /// life than the past one of this node. Repeatable.
    pub(in super::super) async fn attempt(
        &mut self,
        context: &Context,
        record: &NodeRecord,
        closed: Option<Versioned<ClosedRecord>>,
    ) -> Result<Joined> {
        if let Some(closed) = closed {
            return self.reuse(context, record, closed).await;
        }
        let past_life = self.outside.past_life.as_deref();
        let keys = &context.keys;
        let node = keys.node(self.id);
        let (txn, control) = ControlGet::first(keys);
        // An attempt that was given up may be applied later. It must not restore an old record.
        let when = [Compare::absent(keys.closed()), Compare::absent(node.as_str())];
        let put = Operation::put(node.as_str(), record.encode(), self.id.first_lease());
        let mut txn = txn.when(when).then([put]);
        let own = txn.get_if_refused(node);
        let past = past_life.map(|life| keys.closed_life(life)).map(|key| (txn.get(key.as_str()), key));
        let answer = context.backend.txn(txn).await?;
        let control = control.control(keys, &answer)?;
        let of_past_life =
            control.closed.as_ref().filter(|closed| Some(closed.record.life.as_str()) == past_life);
        if let Some(closed) = of_past_life {
            return Ok(Joined::Closed(closed.record.clone(), closed.lease));
        }
        if let Some((past, key)) = past
            && let Some(item) = past.item(&answer)
        {
            return Ok(Joined::Closed(ClosedRecord::decode(&key, &item.value)?, item.lease));
        }
        if answer.succeeded {
            let revision = answer.header.revision;
            return Ok(Joined::In { control: Box::new(control), header: answer.header, revision });
        }
        if own.is_found(&answer) && control.closed.is_none() {
            // An earlier attempt, whose response was lost.
            let revision = own.revision(&answer);
            return Ok(Joined::In { control: Box::new(control), header: answer.header, revision });
        }
        let Some(closed) = control.closed.clone() else { return Ok(Joined::Again) };
        if own.is_found(&answer) {
            // The node had joined before the closing, without knowing it.
            return Ok(Joined::Closed(closed.record, closed.lease));
        }
        self.reuse(context, record, closed).await
    }

    async fn reuse(
        &mut self,
        context: &Context,
        record: &NodeRecord,
        closed: Versioned<ClosedRecord>,
    ) -> Result<Joined> {
        let now = Instant::now();
        let since = match &self.outside.closed_since {
            Some((life, since)) if *life == closed.record.life => *since,
            _ => {
                self.outside.closed_since = Some((closed.record.life.clone(), now));
                let ClosedRecord { outcome, by, .. } = &closed.record;
                let outcome = outcome.as_str();
                tracing::info!(
                    "the run was closed as {outcome} by `{by}`; a new job starts under its id after at most {} s \
                     (`reuse_delay`), or at once with another `submission`",
                    context.settings.reuse_delay.as_secs_f64()
                );
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

    /// Begins a new life after a closed one. The same transaction moves the closing record away and replaces all records
    /// under `ctl/`.
    async fn begin_life(
        &self,
        context: &Context,
        record: &NodeRecord,
        closed: &Versioned<ClosedRecord>,
    ) -> Result<Joined> {
        let keys = &context.keys;
        let settings = &context.settings;
        let run_lease: LeaseId = NodeId::from_random(context.entropy.bits()).first_lease();
        context.backend.lease_grant(run_lease, context.run_lease_ttl()).await?;
        let (life, attempt) = (nonce(context.entropy.bits()), nonce(context.entropy.bits()));
        let forming = RoundRecord::forming(life, settings.min_nodes, settings.max_nodes, attempt);
        let round = RoundRecord { sizing: settings.sizing.clone(), ..forming };
        let term = new_term(context, self.id);
        let node_lease = self.id.first_lease();
        let past = keys.closed_life(&closed.record.life);
        let begins = Txn::new(Operation::put(past, closed.record.encode(), closed.lease)).then([
            Operation::delete(keys.closed()),
            Operation::put(keys.round(), round.encode(), run_lease),
            Operation::put(keys.coordinator(), term.encode(), node_lease),
            Operation::put(keys.node(self.id), record.encode(), node_lease),
        ]);
        let unchanged = Compare::ModRevision(keys.closed().into(), closed.revision);
        let answer = context.backend.txn(begins.when([unchanged])).await?;
        if answer.succeeded {
            let name = &closed.record.by;
            let outcome = closed.record.outcome.as_str();
            tracing::info!("the run was closed as {outcome} by `{name}`; a new job starts under its id");
        }
        // The next attempt to join reads whether this attempt or that of another node was applied.
        Ok(Joined::Again)
    }
}

/// A new term of a node as coordinator.
pub(in super::super) fn new_term(context: &Context, node: NodeId) -> CoordinatorRecord {
    CoordinatorRecord {
        node,
        name: context.settings.node_name.clone(),
        nonce: nonce(context.entropy.bits()),
        min: context.settings.min_nodes,
        max: context.settings.max_nodes,
        sizing: context.settings.sizing.clone(),
    }
}
