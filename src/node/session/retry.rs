//! When failed work is repeated.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    backend::retry::{Backoff, RetryPolicy},
    error::Error,
    run::Context,
};

/// The pause after a failure, and the failure.
pub(super) struct Retry {
    at: Option<Instant>,
    trouble: Option<Error>,
    backoff: Backoff,
}

impl Retry {
    pub(super) fn new(context: &Context) -> Self {
        let backoff = Backoff::new(RetryPolicy::default(), context.entropy.bits());
        Self { at: None, trouble: None, backoff }
    }

    /// When the pause ends. `None` if there is none.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// The last failure, unless work has succeeded since.
    pub(super) fn trouble(&self) -> Option<&Error> {
        self.trouble.as_ref()
    }

    /// Ends the pause, because something has changed.
    pub(super) fn end_pause(&mut self) {
        self.at = None;
    }

    /// Pauses although the work has not failed, because the service has to change first.
    pub(super) fn pause(&mut self, time: Duration) {
        self.at = Some(Instant::now() + time);
    }

    /// Pauses after a failure, each time for longer.
    pub(super) fn back_off(&mut self) {
        let delay = self.backoff.next_delay();
        self.pause(delay);
    }

    /// Work has succeeded. A pause that it requested remains.
    pub(super) fn succeeded(&mut self) {
        self.trouble = None;
        self.backoff.reset();
        self.at = self.at.filter(|at| *at > Instant::now());
    }

    /// Work has failed. Returns whether it is the first failure since a success.
    pub(super) fn failed(&mut self, error: Error) -> bool {
        let first = self.trouble.replace(error).is_none();
        self.back_off();
        first
    }
}
