//! The suspicion that a member is dead, written by a node or an operator that cannot confirm it.

use serde::{Deserialize, Serialize};

use super::Record;

/// The suspicion that a member of a round is dead, at `suspects/<life>/<round>/<id>`. The coordinator asks that node, and
/// either the death is reported, or the verdict is written here. It changes nothing by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspectRecord {
    /// The node or operator that suspects it.
    pub by: String,
    /// What they saw.
    pub why: String,
    /// Why the coordinator does not report the member dead. `None` until it has asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<SuspectVerdict>,
}
impl Record for SuspectRecord {}

/// The answer about a member that is not reported dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SuspectVerdict {
    /// It has greeted the coordinator.
    Alive,
    /// Its address does not show whether it is dead, or it never greeted the coordinator.
    Unknown,
}
