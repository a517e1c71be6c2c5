//! A watch that outlives its streams.
//!
//! A stream of a watch ends with its connection: after a restart of the service, a failover to another etcd member, or
//! a broken network. [`Watcher`] opens the next stream at the revision after the last one that it saw. So its owner
//! receives every change once and in order, or learns that the history was compacted and that it must list the keys
//! again.
//!
//! It cannot know whether the service still has the same data. If the service lost its data or was restored from an
//! older backup, it accepts the new stream, which misses everything without an error until the old revision is reached
//! again. Therefore the owner reads everything again, and restarts the watch from there, whenever its lease was renewed
//! on another connection.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    Backend, Changes, Keys, Revision, WatchStream,
    retry::{Backoff, RetryPolicy},
};
use crate::{
    error::{Error, Result},
    run::Entropy,
};

/// What a [`Watcher`] reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Changes, in order.
    Changes(Changes),
    /// Changes were compacted before they could be reported. List the keys again, then call [`Watcher::restart`].
    Compacted,
}

/// A watch that is resumed when its stream breaks. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    backend: Arc<dyn Backend>,
    keys: Keys,
    backoff: Backoff,
    /// The first revision not seen yet. 0 until a stream has reported the revision that it starts with.
    next_revision: Revision,
    stream: Option<Box<dyn WatchStream>>,
    /// No stream is opened before this time. It is a field and not a local sleep, so that `next` may be canceled.
    not_before: Option<Instant>,
    /// Notified when the stream broke or could not be opened.
    interrupted: Option<Arc<Notify>>,
}

impl Watcher {
    /// Watches keys from a revision on (0: from now). The stream is opened by the first [`Self::next`].
    pub fn open(backend: Arc<dyn Backend>, keys: Keys, start: Revision) -> Self {
        Self::with_policy(backend, keys, start, RetryPolicy::default(), Entropy::from_system().bits())
    }

    /// As [`Self::open`], with the pauses between attempts to open a stream. The seed decides their random part.
    pub fn with_policy(
        backend: Arc<dyn Backend>,
        keys: Keys,
        start: Revision,
        policy: RetryPolicy,
        seed: u64,
    ) -> Self {
        Self {
            backend,
            keys,
            backoff: Backoff::new(policy, seed),
            next_revision: start,
            stream: None,
            not_before: None,
            interrupted: None,
        }
    }

    /// Notifies this each time the stream broke, or could not be opened, and will be opened again.
    #[must_use]
    pub fn notifying(self, interrupted: Arc<Notify>) -> Self {
        Self { interrupted: Some(interrupted), ..self }
    }

    /// The number of the connection that the present stream was opened on, or 0 if there is none. See
    /// [`Backend::connection`].
    pub fn resumed_on(&self) -> u64 {
        self.stream.as_ref().map_or(0, |stream| stream.connection())
    }

    /// Continues at this revision, after [`Watched::Compacted`] or if the data of the service was replaced.
    pub fn restart(&mut self, revision: Revision) {
        self.stream = None;
        self.next_revision = revision;
    }

    /// Opens the stream if there is none, with any number of attempts. Cancel-safe.
    ///
    /// # Errors
    /// Errors that another attempt would not avoid: access denied, request rejected, not an etcd.
    pub async fn ready(&mut self) -> Result<()> {
        while self.stream.is_none() {
            if let Some(instant) = self.not_before {
                sleep_until(instant).await;
            }
            match self.backend.watch(self.keys.clone(), self.next_revision).await {
                Ok(stream) => {
                    if self.next_revision == 0 {
                        self.next_revision = stream.revision() + 1;
                    }
                    self.stream = Some(stream);
                    self.not_before = None;
                }
                Err(error) => self.after(error)?,
            }
        }
        Ok(())
    }

    /// The next report. Cancel-safe. Does not return while the service is unavailable.
    ///
    /// # Errors
    /// Errors that another attempt would not avoid: access denied, request rejected, not an etcd.
    pub async fn next(&mut self) -> Result<Watched> {
        loop {
            self.ready().await?;
            let Some(stream) = self.stream.as_mut() else { continue };
            let report = stream.next().await;
            if let Some(watched) = self.take_in(report)? {
                return Ok(watched);
            }
        }
    }

    /// The next report if it has already arrived. Does not open a stream.
    pub fn next_arrived(&mut self) -> Option<Result<Watched>> {
        let report = self.stream.as_mut()?.next().now_or_never()?;
        self.take_in(report).transpose()
    }

    /// Converts a report of the stream for the owner. `None` if the stream broke and will be opened again.
    fn take_in(&mut self, report: Result<Changes>) -> Result<Option<Watched>> {
        match report {
            Ok(changes) => {
                self.backoff.reset();
                self.next_revision = self.next_revision.max(changes.revision + 1);
                Ok(Some(Watched::Changes(changes)))
            }
            Err(Error::Compacted { .. }) => {
                self.stream = None;
                Ok(Some(Watched::Compacted))
            }
            Err(error) => self.after(error).map(|()| None),
        }
    }

    /// After a failed attempt or a broken stream: schedules the next attempt, or returns the error if it is not
    /// transient.
    fn after(&mut self, error: Error) -> Result<()> {
        self.stream = None;
        if !error.is_transient() {
            return Err(error);
        }
        let delay = self.backoff.next_delay();
        tracing::debug!(%error, ?delay, "the watch will be opened again");
        self.not_before = Some(Instant::now() + delay);
        if let Some(interrupted) = &self.interrupted {
            interrupted.notify_one();
        }
        Ok(())
    }
}
