//! The request of an operator that a node leaves.

use serde::{Deserialize, Serialize};

use super::Record;

/// The request that a node leaves as on SIGTERM, at `ctl/drain/<id>`. It is attached to that node's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    /// The operator.
    pub by: String,
    /// The reason.
    pub why: String,
}
impl Record for DrainRecord {}
