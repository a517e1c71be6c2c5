//! The record of a run that is closed.

use serde::{Deserialize, Serialize};

use super::{Record, after_colon};
use crate::error::Error;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The job is done.
    Succeeded,
    /// The job failed for good.
    Failed,
    /// The run was ended without success or failure, for example by an operator.
    Ended,
}

impl Outcome {
    /// The name of the outcome.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Ended => "ended",
        }
    }
}

/// The closing of a life, at `ctl/closed`, later at `closed/<life>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedRecord {
    /// The life.
    pub life: String,
    /// The name of the node that closed it.
    pub by: String,
    /// The reason.
    pub why: String,
    /// How the run ended.
    pub outcome: Outcome,
    /// The submission that was closed, for example the uid of a Kubernetes Job.
    pub submission: Option<String>,
}
impl Record for ClosedRecord {}

impl ClosedRecord {
    /// The outcome, the node that closed the run, and the reason, if there is one.
    pub(crate) fn summary(&self) -> String {
        format!("closed as {} by `{}`{}", self.outcome.as_str(), self.by, after_colon(&self.why))
    }

    /// A message with the run and its [`summary`](Self::summary).
    pub fn message(&self, run_id: &str) -> String {
        format!("run `{run_id}` was {}", self.summary())
    }

    /// The error that ends every call on the run.
    pub fn error(&self, run_id: &str) -> Error {
        Error::Closed {
            outcome: self.outcome.as_str().to_owned(),
            by: self.by.clone(),
            why: self.why.clone(),
            message: self.message(run_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_without_a_reason_ends_with_the_name() {
        let closed = |why: &str| ClosedRecord {
            life: "l".into(),
            by: "n1".into(),
            why: why.into(),
            outcome: Outcome::Succeeded,
            submission: None,
        };
        assert_eq!(closed("").message("r"), "run `r` was closed as succeeded by `n1`");
        assert_eq!(closed("done").message("r"), "run `r` was closed as succeeded by `n1`: done");
    }
}
