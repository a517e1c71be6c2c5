//! Leaving the run.

use super::{
    Session,
    stage::{Membership, Stage},
};
use crate::{
    backend::{Compare, LeaseId, Operation, Txn},
    error::{Error, Result},
    node::control::{Control, ControlGet},
    protocol::records::{ChangeKind, ChangeRecord, NodeRecord, Phase, Record, RoundRecord},
};

impl Session {
    /// Leaves the run: announces the departure, ends the term as coordinator, and revokes the lease.
    pub(super) async fn leave_run(&mut self) -> Result<()> {
        if let Stage::Joining(joining) = &self.stage {
            // An attempt may have written the record already.
            let lease = joining.lease.id();
            self.revoke(lease).await?;
        }
        let Some(membership) = self.stage.membership_mut() else {
            self.finish_leaving();
            return Ok(());
        };
        let (id, lease) = (membership.id, membership.lease.id());
        let serving = membership.candidacy.task.as_ref().map(|task| task.term.clone());
        let keys = &self.context.keys;
        let finished = membership.place().map(|place| keys.finished_node(&place.life, place.round, id));
        let (mut txn, control) = ControlGet::first(keys);
        let finished = finished.map(|key| txn.get(key));
        let read = self.context.backend.txn(txn).await?;
        // A record that cannot be read does not prevent a node from leaving.
        let control = control.control(keys, &read).unwrap_or_default();
        let finished = finished.is_some_and(|finished| finished.is_found(&read));
        let name = self.context.settings.node_name.clone();
        let change = change_by_leaving(membership, name, &control, finished);
        let term = serving.or_else(|| control.coordinator.clone().filter(|term| term.record.node == id));
        membership.candidacy.stop_coordinator();
        let mut announced = change.is_none();
        if let Some(term) = &term {
            let mut txn = Txn::new(Operation::delete(keys.node(id)))
                .then([Operation::delete(keys.coordinator())])
                .when(term.holds(&self.context.keys));
            if let (Some(change), Some(round)) = (change, &control.round) {
                let unchanged = Compare::ModRevision(keys.round().into(), round.revision);
                let record = RoundRecord { change: Some(change), ..round.record.clone() };
                let put = Operation::put(keys.round(), record.encode(), round.lease);
                txn = txn.when([unchanged, Compare::absent(keys.closed())]).then([put]);
            }
            let answer = self.context.backend.txn(txn).await?;
            let mine = control.coordinator.as_ref().is_some_and(|now| now.record == term.record);
            if !answer.succeeded && mine {
                // `ctl/round` has changed, or the run was closed, in between: read again.
                return Ok(());
            }
            // Otherwise another node is coordinator by now, and this node announces its departure as any other node
            // does.
            announced |= answer.succeeded;
        }
        if !announced {
            let world = membership.place().cloned();
            let record = NodeRecord { leaving: true, ..self.owner.desired_record(&self.context, world) };
            let exists = Compare::Exists(keys.node(id).into());
            let txn = Txn::new(Operation::put(keys.node(id), record.encode(), lease)).when([exists]);
            match self.context.backend.txn(txn).await {
                Ok(_) | Err(Error::LeaseNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.revoke(lease).await?;
        self.close_lifelines().await;
        self.finish_leaving();
        Ok(())
    }

    /// Revokes a lease, and returns when the service has acknowledged that it does not exist any more.
    async fn revoke(&mut self, lease: LeaseId) -> Result<()> {
        match self.context.backend.lease_revoke(lease).await {
            Ok(()) | Err(Error::LeaseNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn finish_leaving(&mut self) {
        self.shared.mark_left();
        self.publish_end();
        self.owner.answer_leaves();
    }
}

/// The change that is announced to the other nodes when this node leaves. `None` if `ctl/round` is not that of its
/// world or announces a change already, or if this node has finished.
fn change_by_leaving(
    membership: &Membership,
    name: String,
    control: &Control,
    finished: bool,
) -> Option<ChangeRecord> {
    let round = control.round_record()?;
    let mine = membership.place()?.is_of(round) && round.phase == Phase::Running;
    if finished || !mine || round.change.is_some() || control.closed.is_some() {
        return None;
    }
    Some(ChangeRecord { kind: ChangeKind::Leaving, why: format!("{name} leaving"), names: vec![name] })
}
