//! What a session knows of `ctl/`, and the watch that keeps it up to date.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{
    backend::{
        Event, Revision,
        retry::RetryPolicy,
        watcher::{Watched, Watcher},
    },
    error::{Applied, Error, Result},
    node::control::Control,
    run::Context,
};

/// A watch on `ctl/`.
struct Watch {
    watcher: Watcher,
    /// When to continue after a failure.
    not_before: Instant,
    /// The last failure, which is logged once.
    trouble: Option<String>,
}

/// What was read from `ctl/`, and what the watch has reported since.
#[derive(Default)]
pub(super) struct Known {
    pub(super) control: Control,
    watch: Option<Watch>,
    /// Notified when the watch is interrupted.
    interrupted: Arc<Notify>,
    /// The revision of the last read. Events up to it are older than what is known.
    read_revision: Revision,
    /// The coordinator that was logged last.
    coordinator_name: Option<String>,
}

impl Known {
    /// What remains known when a membership ends: everything except the watch and the coordinator.
    pub(super) fn without_watch(self) -> Self {
        let control = Control { coordinator: None, ..self.control };
        Self { control, watch: None, ..self }
    }

    /// Sets the revision at which `ctl/` was read.
    pub(super) fn set_read_revision(&mut self, revision: Revision) {
        self.read_revision = revision;
    }

    /// Watches from this revision on, or from now if it is 0.
    pub(super) fn watch_from(&mut self, context: &Context, revision: Revision) {
        let now = Instant::now();
        if let Some(watch) = &mut self.watch {
            watch.watcher.restart(revision);
            watch.not_before = now;
        } else {
            let (policy, seed) = (RetryPolicy::default(), context.entropy.bits());
            let backend = Arc::clone(&context.backend);
            let watcher = Watcher::with_policy(backend, context.keys.control(), revision, policy, seed)
                .notifying(Arc::clone(&self.interrupted));
            self.watch = Some(Watch { watcher, not_before: now, trouble: None });
        }
    }

    /// Opens the watch before the read that joining makes. A watch from the revision of that read would be slow: etcd
    /// serves a watch that begins in the past from a loop that runs ten times a second (`syncWatchersLoop`), and while
    /// nodes join each revision is soon in the past.
    pub(super) async fn watch_from_now(&mut self, context: &Context) -> Result<()> {
        self.watch_from(context, 0);
        let Some(watch) = &mut self.watch else { return Ok(()) };
        let limit = 2 * context.limits.attempt_timeout;
        match tokio::time::timeout(limit, watch.watcher.ready()).await {
            Ok(ready) => ready,
            Err(_) => Err(Error::Unavailable {
                endpoint: context.backend.endpoint(),
                cause: format!("no watch could be opened within {:.1} s", limit.as_secs_f64()),
                applied: Applied::No,
            }),
        }
    }

    /// Whether there is a watch.
    pub(super) fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// The connection of the open watch. 0 if there is none.
    pub(super) fn watch_connection(&self) -> u64 {
        self.watch.as_ref().map_or(0, |watch| watch.watcher.resumed_on())
    }

    /// Notified when the watch is interrupted, which its reports do not show.
    pub(super) fn interrupted(&self) -> Arc<Notify> {
        Arc::clone(&self.interrupted)
    }

    /// The next report of the watch. Never returns if there is none. Cancel-safe.
    pub(super) async fn next_report(&mut self) -> Result<Watched> {
        match &mut self.watch {
            Some(watch) => {
                sleep_until(watch.not_before).await;
                watch.watcher.next().await
            }
            None => std::future::pending().await,
        }
    }

    /// Continues to watch after this time.
    pub(super) fn pause_watch(&mut self, time: Duration) {
        if let Some(watch) = &mut self.watch {
            watch.not_before = Instant::now() + time;
        }
    }

    /// Logs a failure of the watch, unless it equals the last one.
    pub(super) fn log_watch_trouble(&mut self, error: &Error) {
        let Some(watch) = &mut self.watch else { return };
        let trouble = error.to_string();
        if watch.trouble.as_ref() != Some(&trouble) {
            tracing::warn!("watching the run failed and is retried: {trouble}");
            watch.trouble = Some(trouble);
        }
    }

    /// The watch works again, so its next failure is logged.
    pub(super) fn clear_watch_trouble(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.trouble = None;
        }
    }

    /// Applies an event. Returns whether it is newer than the last read.
    pub(super) fn apply(&mut self, context: &Context, event: &Event) -> Result<bool> {
        let is_new = event.revision() > self.read_revision;
        if is_new {
            self.control.apply(&context.keys, event)?;
        }
        Ok(is_new)
    }

    /// Logs the name of the coordinator if it has changed.
    pub(super) fn log_coordinator(&mut self, name: &str) {
        if self.coordinator_name.as_deref() != Some(name) {
            tracing::info!("the coordinator is `{name}`");
            self.set_coordinator_name(name);
        }
    }

    /// Sets the name that is not logged again.
    pub(super) fn set_coordinator_name(&mut self, name: &str) {
        self.coordinator_name = Some(name.to_owned());
    }
}
