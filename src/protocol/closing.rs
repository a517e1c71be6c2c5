//! What a node that starts does about a closed run. The run ID may be used again, for a new life.

use std::time::Duration;

use super::records::{ClosedRecord, Outcome};

/// The action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Begin a new life now.
    Begin,
    /// The closed life is of this very submission, and it succeeded, so there is nothing left to do.
    AlreadyDone,
    /// Begin a new life after this time, if the closing still exists then.
    Wait(Duration),
}

/// Decides for a node that finds the run closed, has never been in that life, and has seen the closing for `seen_for`.
pub fn reuse(
    closed: &ClosedRecord,
    submission: Option<&str>,
    seen_for: Duration,
    reuse_delay: Duration,
) -> Reuse {
    match submission {
        Some(own) if closed.submission.as_deref() != Some(own) => Reuse::Begin,
        Some(_) if closed.outcome == Outcome::Succeeded => Reuse::AlreadyDone,
        _ if seen_for >= reuse_delay => Reuse::Begin,
        _ => Reuse::Wait(reuse_delay.saturating_sub(seen_for)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_submission_begins_at_once_the_same_one_only_after_a_failure_and_a_delay() {
        let closed = |outcome| ClosedRecord {
            life: "l".into(),
            by: "n".into(),
            why: String::new(),
            outcome,
            submission: Some("first".into()),
        };
        let delay = Duration::from_secs(30);
        let (done, failed) = (closed(Outcome::Succeeded), closed(Outcome::Failed));
        assert_eq!(reuse(&done, Some("second"), Duration::ZERO, delay), Reuse::Begin);
        assert_eq!(reuse(&done, Some("first"), delay, delay), Reuse::AlreadyDone);
        assert_eq!(reuse(&failed, Some("first"), Duration::ZERO, delay), Reuse::Wait(delay));
        assert_eq!(reuse(&failed, Some("first"), delay, delay), Reuse::Begin);
        assert_eq!(reuse(&done, None, Duration::from_secs(10), delay), Reuse::Wait(Duration::from_secs(20)));
        assert_eq!(reuse(&done, None, delay, delay), Reuse::Begin);
    }
}
