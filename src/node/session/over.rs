//! The state of a node whose session an error has ended.

use super::{Session, membership::Membership, stage::Stage};
use crate::error::Error;

/// A node that does nothing except close the run and leave it.
pub(super) struct Over {
    pub(super) error: Error,
    /// A node that is in a world keeps its membership until it leaves, because its work continues.
    pub(super) membership: Option<Box<Membership>>,
}

impl Session {
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
