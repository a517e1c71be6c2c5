//! The evidence that a member is dead.

use serde::{Deserialize, Serialize};

use super::Record;
use crate::backend::LeaseId;

/// The evidence that a member of a round is dead, at `lost/<life>/<round>/<id>`. It counts only while that node has no
/// record: a node that is alive deletes the evidence when it writes its record again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRecord {
    /// The name of the member.
    pub name: String,
    /// The name of the node that found it dead.
    pub by: String,
    /// What that node saw.
    pub why: String,
    /// The lease of the record that was deleted, which is revoked. 0 if the record was gone.
    pub lease: LeaseId,
    /// How long after the end of the lifeline this was written, in milliseconds. Absent in records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
}
impl Record for LostRecord {}

impl LostRecord {
    /// "connection reset, then refused at 10.0.3.17:40112 (seen by n16)".
    pub fn evidence(&self) -> String {
        format!("{} (seen by {})", self.why, self.by)
    }
}
