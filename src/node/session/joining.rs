//! Joining the run: what a node does between its attempts, and when one has succeeded.

use std::time::Duration;

use super::{
    Session,
    checking::next_check,
    stage::{Joined, Joining, Membership, Stage, take_lease},
};
use crate::{
    backend::{Header, Revision},
    error::Result,
    protocol::records::NodeRecord,
};

/// How long a node that waits for the id of a closed run relies on its watch alone, because watches have lost events.
const LONGEST_REUSE_WAIT: Duration = Duration::from_secs(60);

impl Session {
    pub(super) async fn join(&mut self) -> Result<()> {
        if let Stage::Joining(joining) = &mut self.stage
            && !joining.lease.state().alive
        {
            self.stage = Stage::Outside(std::mem::take(&mut joining.outside));
        }
        if matches!(self.stage, Stage::Outside(_)) {
            let (id, lease) = take_lease(&self.context).await?;
            if let Stage::Outside(outside) = std::mem::take(&mut self.stage) {
                self.stage = Stage::Joining(Box::new(Joining { id, lease, outside }));
            }
        }
        let Stage::Joining(joining) = &mut self.stage else { return Ok(()) };
        // The reports of the watch since the last read are still valid, unless it was opened again meanwhile.
        let connection = self.known.watch_connection();
        let is_watched = joining.outside.watched_on.take() == Some(connection)
            && self.context.backend.connection() == connection;
        let closed = if is_watched {
            self.known.control.closed.take()
        } else {
            self.known.watch_from_now(&self.context).await?;
            None
        };
        let record = self.owner.desired_record(&self.context, None);
        match joining.attempt(&self.context, &record, closed).await? {
            Joined::Again => joining.outside.watched_on = Some(self.known.watch_connection()),
            Joined::Later(closed, time) => {
                joining.outside.watched_on = Some(self.known.watch_connection());
                self.known.control.closed = Some(*closed);
                self.retry.pause(time.min(LONGEST_REUSE_WAIT));
            }
            Joined::Closed(closed, lease) => {
                if self.is_of_another_job(&closed) {
                    self.start_over(&closed);
                } else {
                    self.handle_run_closed(closed, lease);
                }
            }
            Joined::AlreadyDone(closed) => return Err(closed.error(&self.context.settings.run.run_id)),
            Joined::In { control, header, revision } => {
                self.known.control = *control;
                if let Some(error) = self.settings_mismatch() {
                    return Err(error);
                }
                self.finish_join(record, revision, header);
            }
        }
        Ok(())
    }

    fn finish_join(&mut self, record: NodeRecord, revision: Revision, header: Header) {
        match std::mem::take(&mut self.stage) {
            Stage::Joining(joining) => {
                let Joining { id, lease, .. } = *joining;
                tracing::debug!(%id, "joined");
                let check_at = next_check(&self.context);
                let membership = Membership::new(id, lease, record, revision, header, check_at);
                self.stage = Stage::In(Box::new(membership));
            }
            other => self.stage = other,
        }
        // A new ID has no data that the service could have lost.
        self.accept_setbacks();
        self.known.set_read_revision(header.revision);
        self.reconcile();
    }

    /// A node that waits until the id of a closed run can be used again joins once another node has begun the next life.
    pub(super) fn retry_if_next_life_has_begun(&mut self) {
        let Stage::Joining(joining) = &self.stage else { return };
        let waits_for =
            joining.outside.closed_since.as_ref().filter(|_| joining.outside.watched_on.is_some());
        let closed = self.known.control.closed_record().map(|closed| &closed.life);
        if waits_for.is_some_and(|(life, _)| Some(life) != closed) {
            self.retry.end_pause();
        }
    }
}
