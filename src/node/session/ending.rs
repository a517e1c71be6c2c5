//! The end of a membership, and of the session.

use std::sync::Arc;

use super::{
    Session,
    stage::{Membership, Outside, Over, Stage},
};
use crate::{
    backend::LeaseId,
    error::Error,
    protocol::records::{ClosedRecord, are_rivals},
};

impl Session {
    /// Moves the membership out of the state. The lease of a node that was joining is revoked.
    pub(super) fn take_membership(&mut self) -> Option<Box<Membership>> {
        let stage = std::mem::take(&mut self.stage);
        if let Stage::Joining(joining) = &stage {
            self.revoke_later(joining.lease.id());
        }
        stage.into_membership()
    }

    /// Revokes a lease that is no longer needed. If that fails, it expires.
    pub(super) fn revoke_later(&self, lease: LeaseId) {
        let context = Arc::clone(&self.context);
        tokio::spawn(async move {
            let _ = context.backend.lease_revoke(lease).await;
        });
    }

    /// Ends the membership, or the attempt to join, and revokes its lease. When the node joins again, it has another id.
    pub(super) fn leave_membership(&mut self) {
        self.known = std::mem::take(&mut self.known).without_watch();
        let past_life = match self.take_membership() {
            Some(membership) => {
                self.revoke_later(membership.lease.id());
                if let Some(place) = membership.place() {
                    // Higher than every round that it has seen, even if the service has lost that round.
                    self.owner.lowest_round = place.round + 1;
                }
                membership.life.name.clone()
            }
            None => None,
        };
        self.stage = Stage::Outside(Outside { past_life, ..Outside::default() });
    }

    /// The next round was formed without this node.
    pub(super) fn handle_exclusion(&mut self, why: String) {
        tracing::warn!("no longer a member: {why}");
        let world = self.stage.membership().and_then(|membership| membership.world.clone());
        self.leave_membership();
        if let Some(world) = world {
            if self.shared.returned().is_some_and(|returned| returned.is_same_world(&world.place)) {
                self.lost.excluded = Some(why);
            } else {
                // The owner never received this world and still waits for one.
                self.owner.seeks = true;
            }
        }
    }

    /// Whether this record closes a run of another submission, in which this node only waited.
    pub(super) fn is_of_another_job(&self, closed: &ClosedRecord) -> bool {
        let own = self.context.settings.submission.as_deref();
        let has_world = self.stage.membership().is_some_and(|membership| membership.world.is_some());
        !has_world && are_rivals(closed.submission.as_deref(), own)
    }

    /// The closed run belongs to another submission. Joins again, to begin a run of this node's submission.
    pub(super) fn start_over(&mut self, closed: &ClosedRecord) {
        let other = closed.submission.as_deref().unwrap_or_default();
        tracing::info!("the run of submission `{other}` is closed; this node begins a new one");
        self.leave_membership();
        self.stage = Stage::default();
    }

    /// Ends the session with this error.
    pub(super) fn end_with(&mut self, error: Error) {
        let membership = self.take_membership();
        self.stage = Stage::Over(Box::new(Over { error, membership }));
    }

    /// Ends the session because a record under `ctl/` cannot be read. The node decides nothing any more. A closed run
    /// remains closed.
    pub(super) fn end_with_unreadable_record(&mut self, error: Error) {
        if matches!(self.stage, Stage::Closed(_)) {
            return;
        }
        tracing::error!("{error}");
        if let Some(membership) = self.stage.membership_mut() {
            membership.candidacy.stop_coordinator();
        }
        self.end_with(error);
    }
}
