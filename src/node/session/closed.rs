//! What a node does in a closed run: it renews the leases of the run until it leaves.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Session,
    stage::{Closed, Stage},
};
use crate::{
    backend::{LeaseId, retry::LONGEST_BACKOFF},
    protocol::records::ClosedRecord,
};

/// How often the nodes that are still present renew the lease of the closing record and that of the run.
const RENEWAL: Duration = Duration::from_secs(20);

/// The first of these renewals is sent at a random moment within this time, so that N nodes do not send 2 N renewals at
/// once, and nodes that leave soon send none. When the run is closed, the lease of the run has at least half of its
/// time left.
const FIRST_RENEWAL: Duration = Duration::from_secs(10);

impl Session {
    /// The run is closed by this record, which is attached to this lease (0 if the record is gone). The membership
    /// remains until the node leaves. The coordinator's task ends.
    pub(super) fn handle_run_closed(&mut self, record: ClosedRecord, lease: LeaseId) {
        if !matches!(self.stage, Stage::Closed(_)) {
            tracing::info!("{}", record.message(&self.context.settings.run.run_id));
        }
        let mut membership = self.take_membership();
        if let Some(membership) = &mut membership {
            membership.candidacy.stop_coordinator();
        }
        let run_lease = membership.as_ref().map_or(0, |membership| membership.life.run_lease);
        let leases = [lease, run_lease].into_iter().filter(|lease| *lease != 0).collect();
        let renew_at = Instant::now() + self.context.entropy.part_of(FIRST_RENEWAL);
        self.stage = Stage::Closed(Box::new(Closed { record, leases, renew_at, membership }));
        // A node that knows that its life is closed does not restore it.
        self.accept_setbacks();
    }

    pub(super) async fn renew_closing(&mut self) {
        let Stage::Closed(closed) = &mut self.stage else { return };
        closed.renew_at = Instant::now() + RENEWAL;
        for lease in closed.leases.clone() {
            if let Err(error) = self.context.backend.lease_keep_alive(lease).await {
                tracing::debug!(%error, "renewing the closing failed");
                if error.is_transient() {
                    closed.renew_at = Instant::now() + LONGEST_BACKOFF;
                }
            }
        }
    }
}
