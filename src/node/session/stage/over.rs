//! The state of a node whose session an error has ended.

use super::Membership;
use crate::error::Error;

/// A node that does nothing except close the run and leave it.
pub(in super::super) struct Over {
    pub(in super::super) error: Error,
    /// A node that is in a world keeps its membership until it leaves, because its work continues.
    pub(in super::super) membership: Option<Box<Membership>>,
}
