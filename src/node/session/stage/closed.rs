//! The state of a node whose run is closed: it renews the leases of the closed run until it leaves.

use tokio::time::Instant;

use super::Membership;
use crate::{backend::LeaseId, protocol::records::ClosedRecord};

/// A node in a closed run.
pub(in super::super) struct Closed {
    pub(in super::super) record: ClosedRecord,
    /// The lease of the closing record and that of the run.
    pub(in super::super) leases: Vec<LeaseId>,
    pub(in super::super) renew_at: Instant,
    /// `None` if the node was not in the run.
    pub(in super::super) membership: Option<Box<Membership>>,
}

impl Closed {
    /// When to renew the leases.
    pub(in super::super) fn renew_at(&self) -> Option<Instant> {
        (!self.leases.is_empty()).then_some(self.renew_at)
    }
}
