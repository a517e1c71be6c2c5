//! The record of a run that is closed.

use serde::{Deserialize, Serialize};

use super::Record;
use crate::error::Error;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The job is done.
    Succeeded,
    /// The job failed for good.
    Failed,
    /// Somebody or something ended it before either.
    Ended,
}

impl Outcome {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Ended => "ended",
        }
    }
}

/// That a life is closed, at `ctl/closed`, later at `closed/<life>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedRecord {
    /// The life.
    pub life: String,
    /// The name of the node that closed it.
    pub by: String,
    /// Its reason.
    pub why: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Which submission it was, for example the uid of a Kubernetes Job.
    pub submission: Option<String>,
}
impl Record for ClosedRecord {}

impl ClosedRecord {
    /// Who closed the run, how, and why, if a reason was given.
    pub fn message(&self, run_id: &str) -> String {
        let reason = if self.why.is_empty() { String::new() } else { format!(": {}", self.why) };
        format!("run `{run_id}` was closed as {} by `{}`{reason}", self.outcome.as_str(), self.by)
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
    fn a_message_without_a_reason_ends_with_the_name() {
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
