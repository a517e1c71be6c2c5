//! What the error message contains about a call that times out or whose outcome is unknown.

use std::{sync::Mutex, time::Duration};

use crate::{error::Error, lock::lock};

/// What a call is doing, for its error message.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) what: String,
    awaited: Mutex<String>,
    cause: Mutex<String>,
}

impl Progress {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), awaited: Mutex::default(), cause: Mutex::default() }
    }

    /// Records the last failure.
    pub(super) fn note(&self, cause: &str) {
        cause.clone_into(&mut lock(&self.cause));
    }

    /// Records what the call waits for, and that no failure is known.
    pub(super) fn awaiting(&self, what: String) {
        *lock(&self.awaited) = what;
        lock(&self.cause).clear();
    }

    pub(super) fn timed_out(&self, after: Duration) -> Error {
        let mut what = format!("`{}`", self.what);
        for (label, part) in [("", lock(&self.awaited)), ("the last attempt: ", lock(&self.cause))] {
            if !part.is_empty() {
                what = format!("{what}; {label}{}", *part);
            }
        }
        Error::Timeout { what, after }
    }

    pub(super) fn unknown(&self, why: &str) -> Error {
        Error::OutcomeUnknown { what: self.what.clone(), why: why.to_owned() }
    }
}
