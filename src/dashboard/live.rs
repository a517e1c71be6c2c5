//! The runs that browsers show. Each is followed once, however many browsers show it, and only while one does.
//!
//! A browser that reads slowly must not make the process keep what it has not read. So the newest status of a run is a
//! value that is replaced (a `watch` channel) and not a queue: a slow browser skips states.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    frames,
    pace::{self, Failures},
    source::RunSource,
};
use crate::{
    error::{Applied, Error, Result},
    lock::lock,
    server::stopped,
    settings::RunName,
    status::{RunStatus, Watching, picture::State, records::Observation, verdict::unreachable},
};

/// How long a run is followed after the last browser has left it, so that a reload does not read the run again.
const LINGER: Duration = Duration::from_secs(5);

/// The known state of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    /// The newest status. None until the run was read.
    pub(super) status: Option<Arc<Status>>,
    /// Why the status is not current, as an event.
    pub(super) problem: Option<Bytes>,
    /// When `status` was last confirmed, as an event.
    pub(super) checked: Bytes,
    /// Since when the run could not be read.
    pub(super) trouble_since: Option<f64>,
}

impl Shown {
    /// Adds since when the service does not respond, if the status says that it does not.
    fn note_trouble(&self, status: &mut RunStatus) -> Option<f64> {
        if status.verdict.state != State::Unreachable {
            return None;
        }
        let since = self.trouble_since.or(Some(status.at));
        status.verdict.since = since;
        since
    }
}

/// A status, and the event that shows it.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) run: RunStatus,
    pub(super) event: Bytes,
}

/// A run that is followed.
#[derive(Debug)]
struct Followed {
    shown: watch::Sender<Shown>,
}

/// The result of publishing a status.
#[derive(Clone, Copy, Debug)]
struct Published {
    /// The size of the event that is shown.
    bytes: usize,
    /// Whether it differs from the previous one.
    is_new: bool,
}

/// All runs of one source.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) source: RunSource,
    runs: Mutex<BTreeMap<RunName, Arc<Followed>>>,
    /// Counts the changes of all followed runs.
    changes: watch::Sender<u64>,
    stopping: watch::Receiver<bool>,
}

impl Live {
    pub(super) fn new(source: RunSource, stopping: watch::Receiver<bool>) -> Arc<Self> {
        Arc::new(Self { source, runs: Mutex::default(), changes: watch::Sender::new(0), stopping })
    }

    /// Follows a run until the receiver is dropped.
    pub(super) fn follow(self: &Arc<Self>, run: &RunName) -> watch::Receiver<Shown> {
        let mut runs = lock(&self.runs);
        if let Some(followed) = runs.get(run) {
            return followed.shown.subscribe();
        }
        let (shown, receiver) = watch::channel(Shown::default());
        let followed = Arc::new(Followed { shown });
        runs.insert(run.clone(), Arc::clone(&followed));
        drop(runs);
        let (live, run) = (Arc::clone(self), run.clone());
        tokio::spawn(async move {
            let mut stopping = live.stopping.clone();
            tokio::select! {
                biased;
                () = stopped(&mut stopping) => {}
                () = live.keep_following(&run, &followed) => {}
            }
        });
        receiver
    }

    /// How many runs are followed.
    pub(super) fn count(&self) -> usize {
        lock(&self.runs).len()
    }

    /// A counter that changes with each followed run.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ends when no browser has shown it for [`LINGER`].
    async fn keep_following(&self, run: &RunName, followed: &Followed) {
        let mut unused = None;
        let mut failures = Failures::default();
        loop {
            let ended = self.follow_once(run, followed, &mut unused, &mut failures).await;
            let Err(error) = ended else { return };
            self.publish_failure(run, followed, &error);
            sleep(failures.next_pause()).await;
            if self.is_over(run, followed, &mut unused) {
                return;
            }
        }
    }

    /// Follows while a browser shows it.
    ///
    /// # Errors
    /// Those of reading and watching.
    async fn follow_once(
        &self,
        run: &RunName,
        followed: &Followed,
        unused: &mut Option<Instant>,
        failures: &mut Failures,
    ) -> Result<()> {
        let limit = self.source.limit();
        let begin = async { Watching::begin(self.source.reader(run).await?).await };
        let mut watching = timeout(limit, begin).await.unwrap_or_else(|_| {
            Err(Error::Unavailable {
                endpoint: self.source.endpoint(),
                cause: format!("no response within {:.1} s", limit.as_secs_f64()),
                applied: Applied::No,
            })
        })?;
        let mut tick = pace::FIRST_TICK;
        loop {
            let (mut status, _) = watching.next(tick).await?;
            failures.reset();
            self.source.label(&mut status.service);
            let sent = self.publish(followed, status);
            if self.is_over(run, followed, unused) {
                return Ok(());
            }
            tick = pace::tick(sent.bytes);
            if sent.is_new {
                sleep(pace::pause(sent.bytes)).await;
            }
        }
    }

    /// Publishes a status if it differs from the one that is shown.
    fn publish(&self, followed: &Followed, mut status: RunStatus) -> Published {
        let before = followed.shown.borrow().clone();
        let trouble_since = before.note_trouble(&mut status);
        let known = before.status.filter(|known| {
            before.problem.is_none() && !pace::is_due(&known.run, known.event.len(), &status)
        });
        let checked = frames::checked(status.at);
        let is_new = known.is_none();
        let status = known.unwrap_or_else(|| {
            let event = frames::status(&status);
            Arc::new(Status { run: status, event })
        });
        let bytes = status.event.len();
        followed.shown.send_replace(Shown { status: Some(status), problem: None, checked, trouble_since });
        if is_new {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
        Published { bytes, is_new }
    }

    /// Shows that the run cannot be read, together with its last known status.
    fn publish_failure(&self, run: &RunName, followed: &Followed, error: &Error) {
        let now = self.source.now();
        let mut shown = followed.shown.borrow().clone();
        shown.checked = frames::checked(now.as_secs_f64());
        if let Error::Unavailable { .. } | Error::NotFound { .. } | Error::Timeout { .. } = error {
            let mut observation = Observation {
                run_id: run.run_id.clone(),
                tenant: run.tenant.clone(),
                now,
                ..Observation::default()
            };
            observation.service.endpoint = self.source.endpoint();
            let mut status = unreachable(&observation, &error.to_string());
            if let Some(known) = shown.status.as_ref().map(|known| &known.run) {
                status.run.clone_from(&known.run);
                status.counts.clone_from(&known.counts);
                status.nodes.clone_from(&known.nodes);
                status.rounds.clone_from(&known.rounds);
                status.service.version.clone_from(&known.service.version);
            }
            shown.trouble_since = shown.note_trouble(&mut status);
            let event = frames::status(&status);
            shown.status = Some(Arc::new(Status { run: status, event }));
            shown.problem = None;
        } else {
            let since = *shown.trouble_since.get_or_insert(now.as_secs_f64());
            shown.problem = Some(frames::problem(since, &error.to_string()));
        }
        followed.shown.send_replace(shown);
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Whether no browser has shown it for [`LINGER`]. If so, the run is forgotten.
    fn is_over(&self, run: &RunName, followed: &Followed, unused: &mut Option<Instant>) -> bool {
        let mut runs = lock(&self.runs);
        if followed.shown.receiver_count() > 0 {
            *unused = None;
            return false;
        }
        let is_over = unused.get_or_insert_with(Instant::now).elapsed() >= LINGER;
        if is_over {
            runs.remove(run);
        }
        is_over
    }
}
