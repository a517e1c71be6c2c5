//! The list of all runs, shared by all browsers that show it and by metrics.
//!
//! New runs are found by listing, because a watch of all keys of a tenant would receive everything that the runs store.
//! The runs themselves are followed by watches, at most [`MOST_LIVE`] of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    frames,
    live::{Live, Shown, Status},
    pace::Failures,
};
use crate::{
    backend::Revision,
    error::{Error, Result},
    lock::lock,
    server::stopped,
    settings::RunName,
    status::{ListedRun, RunStatus},
};

/// The largest number of runs that are followed.
pub(super) const MOST_LIVE: usize = 100;
/// The largest number of closed runs that are shown. They do not change.
const MOST_CLOSED: usize = 100;
/// How many closed runs are read at the same time.
const READ_AT_ONCE: usize = 16;
/// The shortest time between two listings.
const LIST_INTERVAL: Duration = Duration::from_secs(2);
const LONGEST_LIST_INTERVAL: Duration = Duration::from_secs(30);
/// Changes of several runs within this time are one change of the list.
const GATHER: Duration = Duration::from_millis(20);
/// How often the list is sent at least, so that the page knows that it is current.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long the list is kept after the last browser.
const LINGER: Duration = Duration::from_secs(5);
/// How long the list is kept after metrics were read, so that the next scrape finds it.
const KEPT_FOR_METRICS: Duration = Duration::from_secs(150);
/// How long a scrape waits for the runs to be read.
const SCRAPE_LIMIT: Duration = Duration::from_secs(4);

/// The list of runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    /// The event of each run that was read.
    pub(super) runs: BTreeMap<RunName, Bytes>,
    /// The status of each run that was read.
    pub(super) known: Vec<Arc<Status>>,
    /// How many live runs were not read, because there are too many.
    pub(super) unread: usize,
    /// How many runs there are, as an event. None until all that are shown were read.
    pub(super) count: Option<Bytes>,
    /// Why the list is not current, as an event.
    pub(super) problem: Option<Bytes>,
}

/// Lists runs while a browser shows the list.
#[derive(Debug)]
pub(super) struct Overview {
    live: Arc<Live>,
    listed: watch::Sender<Listed>,
    state: Mutex<State>,
    stopping: watch::Receiver<bool>,
}

#[derive(Debug, Default)]
struct State {
    runs: bool,
    kept_until: Option<Instant>,
}

impl Overview {
    pub(super) fn new(live: Arc<Live>, stopping: watch::Receiver<bool>) -> Arc<Self> {
        Arc::new(Self {
            live,
            listed: watch::Sender::new(Listed::default()),
            state: Mutex::default(),
            stopping,
        })
    }

    /// Follows the list until the receiver is dropped.
    pub(super) fn follow(self: &Arc<Self>) -> watch::Receiver<Listed> {
        let mut state = lock(&self.state);
        let receiver = self.listed.subscribe();
        if !std::mem::replace(&mut state.runs, true) {
            self.listed.send_replace(Listed::default());
            let overview = Arc::clone(self);
            tokio::spawn(async move {
                let mut stopping = overview.stopping.clone();
                tokio::select! {
                    biased;
                    () = stopped(&mut stopping) => {}
                    () = overview.keep_listing() => {}
                }
            });
        }
        receiver
    }

    /// All runs that are shown, for metrics, and how many live runs are not: at most [`MOST_LIVE`] are read. None if the runs
    /// cannot be listed.
    pub(super) async fn picture(self: &Arc<Self>) -> Option<(Vec<RunStatus>, usize)> {
        lock(&self.state).kept_until = Some(Instant::now() + KEPT_FOR_METRICS);
        let mut listed = self.follow();
        let ready = listed.wait_for(|listed| listed.count.is_some() || listed.problem.is_some());
        // If not all runs are read in time, those that were read are counted.
        let _ = timeout(SCRAPE_LIMIT, ready).await;
        let listed = listed.borrow().clone();
        let runs = listed.known.iter().map(|status| status.run.clone());
        listed.problem.is_none().then(|| (runs.collect(), listed.unread))
    }

    async fn keep_listing(&self) {
        let mut followed: BTreeMap<RunName, watch::Receiver<Shown>> = BTreeMap::new();
        let mut closed = BTreeMap::new();
        let mut changes = self.live.changes();
        let mut failures = Failures::default();
        let mut summaries = Summaries::default();
        let mut unused = None;
        let mut not_shown = NotShown::default();
        let mut trouble_since = None;
        while !self.is_over(&mut unused) {
            let began = Instant::now();
            let (pause, problem) = match self.list(&mut followed, &mut closed).await {
                Ok(more) => {
                    failures.reset();
                    trouble_since = None;
                    not_shown = more;
                    ((began.elapsed() * 20).clamp(LIST_INTERVAL, LONGEST_LIST_INTERVAL), None)
                }
                Err(error) => {
                    let since = *trouble_since.get_or_insert(self.live.source.now().as_secs_f64());
                    (failures.next_pause(), Some(frames::problem(since, &error.to_string())))
                }
            };
            let next = Instant::now() + pause;
            while Instant::now() < next {
                self.publish(&followed, &closed, not_shown, problem.clone(), &mut summaries);
                tokio::select! {
                    biased;
                    () = sleep_until(next.min(Instant::now() + HEARTBEAT)) => {}
                    _ = changes.changed() => sleep(GATHER).await,
                }
            }
        }
    }

    /// Lists the runs, follows those that are not closed, and reads the closed ones once. Returns how many runs are not
    /// shown.
    async fn list(
        &self,
        followed: &mut BTreeMap<RunName, watch::Receiver<Shown>>,
        closed: &mut ClosedRuns,
    ) -> Result<NotShown> {
        let limit = self.live.source.limit().max(LONGEST_LIST_INTERVAL);
        let listed = timeout(limit, self.live.source.list()).await.unwrap_or_else(|_| {
            Err(Error::Timeout { what: "a list of all runs".to_owned(), after: limit })
        })?;
        let shown = Selection::of(&listed);
        followed.retain(|run, _| shown.live.contains(run));
        closed.retain(|run, (revision, _)| shown.closed.get(run) == Some(revision));
        for run in shown.live {
            followed.entry(run.clone()).or_insert_with(|| self.live.follow(run));
        }
        let mut unread = Vec::new();
        for (run, revision) in shown.closed {
            if !closed.contains_key(run) {
                unread.push((run.clone(), revision));
            }
        }
        let read = unread.into_iter().map(|(run, revision)| async move {
            let status = self.read(&run).await?;
            Some((run, (revision, status)))
        });
        let read: Vec<_> = stream::iter(read).buffer_unordered(READ_AT_ONCE).collect().await;
        closed.extend(read.into_iter().flatten());
        Ok(shown.not_shown)
    }

    /// The status of a closed run. If it cannot be read, the next listing tries again.
    async fn read(&self, run: &RunName) -> Option<Arc<Status>> {
        let status = async { self.live.source.reader(run).await?.status(&[]).await };
        let mut status =
            status.await.inspect_err(|error| tracing::debug!("a closed run is not read: {error}")).ok()?;
        self.live.source.label(&mut status.service);
        let event = frames::summary(&status);
        Some(Arc::new(Status { run: status, event }))
    }

    fn publish(
        &self,
        followed: &BTreeMap<RunName, watch::Receiver<Shown>>,
        closed: &ClosedRuns,
        not_shown: NotShown,
        mut problem: Option<Bytes>,
        summaries: &mut Summaries,
    ) {
        let mut runs: BTreeMap<RunName, Bytes> =
            closed.iter().map(|(run, (_, status))| (run.clone(), status.event.clone())).collect();
        let mut known: Vec<Arc<Status>> = closed.values().map(|(_, status)| Arc::clone(status)).collect();
        for (run, shown) in followed {
            let shown = shown.borrow();
            if let Some(status) = &shown.status {
                runs.insert(run.clone(), summaries.of(run, status));
                known.push(Arc::clone(status));
            }
            problem = problem.or_else(|| shown.problem.clone());
        }
        summaries.0.retain(|run, _| followed.contains_key(run));
        let is_complete = problem.is_none() && runs.len() == followed.len() + closed.len();
        let at = self.live.source.now().as_secs_f64();
        let count = is_complete.then(|| frames::runs(at, runs.len(), not_shown.live + not_shown.closed));
        self.listed.send_replace(Listed { runs, known, unread: not_shown.live, count, problem });
    }

    fn is_over(&self, unused: &mut Option<Instant>) -> bool {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if self.listed.receiver_count() > 0 || state.kept_until.is_some_and(|until| now < until) {
            *unused = None;
            return false;
        }
        let is_over = unused.get_or_insert(now).elapsed() >= LINGER;
        state.runs = !is_over;
        is_over
    }
}

/// The closed runs that were read, each with the revision of its closing. Another job can use a run id again.
type ClosedRuns = BTreeMap<RunName, (Revision, Arc<Status>)>;

/// The events of the runs' newest statuses, made once for each status.
#[derive(Debug, Default)]
struct Summaries(BTreeMap<RunName, (Arc<Status>, Bytes)>);

impl Summaries {
    fn of(&mut self, run: &RunName, status: &Arc<Status>) -> Bytes {
        match self.0.get(run) {
            Some((known, event)) if Arc::ptr_eq(known, status) => event.clone(),
            _ => {
                let event = frames::summary(&status.run);
                self.0.insert(run.clone(), (Arc::clone(status), event.clone()));
                event
            }
        }
    }
}

/// How many runs are not shown, because there are too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct NotShown {
    live: usize,
    closed: usize,
}

/// The runs that are shown. Pure.
#[derive(Debug, PartialEq, Eq)]
struct Selection<'a> {
    live: BTreeSet<&'a RunName>,
    closed: BTreeMap<&'a RunName, Revision>,
    not_shown: NotShown,
}

impl<'a> Selection<'a> {
    fn of(listed: &'a [(RunName, ListedRun)]) -> Self {
        let live_runs = || listed.iter().filter(|(_, run)| run.closed.is_none()).map(|(name, _)| name);
        let live: BTreeSet<_> = live_runs().take(MOST_LIVE).collect();
        let closed = listed.iter().filter_map(|(name, run)| Some((name, run.closed?)));
        let closed: BTreeMap<_, _> = closed.take(MOST_CLOSED).collect();
        let all_live = live_runs().count();
        let not_shown =
            NotShown { live: all_live - live.len(), closed: listed.len() - all_live - closed.len() };
        Self { live, closed, not_shown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_a_hundred_live_runs_are_followed_and_closed_runs_do_not_take_their_places() {
        let listed: Vec<(RunName, ListedRun)> = (0..350)
            .map(|number| {
                let run_id = format!("run-{number:03}");
                let name = RunName { tenant: "t".into(), run_id: run_id.clone() };
                (name, ListedRun { run_id, closed: (number < 200).then_some(number) })
            })
            .collect();
        let shown = Selection::of(&listed);
        assert_eq!((shown.live.len(), shown.closed.len()), (100, 100));
        assert_eq!(shown.not_shown, NotShown { live: 50, closed: 100 });
        assert_eq!(shown.live.first().map(|run| run.run_id.as_str()), Some("run-200"));
        let few = Selection::of(&listed[199..202]);
        assert_eq!((few.live.len(), few.closed.len(), few.not_shown), (2, 1, NotShown::default()));
    }
}
