//! Which nodes a run refuses because they belong to another submission.

use serde::{Deserialize, Serialize};

use super::some_names;
use crate::backend::Revision;

/// Whether two nodes belong to different submissions.
pub fn are_rivals(one: Option<&str>, other: Option<&str>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

/// Part of `ctl/round` if nodes of other submissions are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalRecord {
    /// The submission that the run belongs to.
    pub submission: String,
    /// Nodes whose records were created at this revision or before are refused. Later nodes may wait for their turn.
    pub until: Revision,
    /// The first names of the nodes of that submission.
    pub names: Vec<String>,
}

impl RefusalRecord {
    /// Whether it refuses a node of this submission whose record was created at this revision.
    pub fn refuses(&self, submission: Option<&str>, created: Revision) -> bool {
        created <= self.until && are_rivals(Some(&self.submission), submission)
    }

    /// The message for a node of the submission `own` that is refused.
    pub fn message(&self, run_id: &str, own: &str) -> String {
        format!(
            "run `{run_id}` belongs to submission `{}` with the nodes {}, and this node is of submission `{own}`; one run \
             id serves one job at a time: end the other job, or start this one with another run id (`--rdzv-id`, \
             `run_id`), or, if both are one job, with the same `submission` (LATTICE_RDZV_SUBMISSION) on all nodes",
            self.submission,
            some_names(self.names.iter().map(String::as_str)),
        )
    }
}
