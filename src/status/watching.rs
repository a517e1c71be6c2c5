//! Follows one run by watches. Reads everything once, and then only what a new round needs: its plan.
//!
//! It also requests the state of the service every few seconds, because a watch does not show whether the service still
//! responds, and the watch of a service that restarted without its data stays silent. It reads everything again if the
//! data were replaced, when the service responds again, and about once a minute, because etcd has lost events of watches.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};

use super::{
    picture::{RunStatus, ServiceStatus},
    reading::Reader,
    records::{Observation, RunRecords},
    verdict::{judge, unreachable},
};
use crate::{
    backend::{
        Event, Header, Keys, Range, Revision,
        watcher::{Watched, Watcher},
    },
    error::Result,
    protocol::{clocks::ClocksRecord, keys::RunKeys},
};

/// Changes that arrive within this time are combined in one status.
const GATHER: Duration = Duration::from_millis(10);
/// How often the state of the service is requested.
const SERVICE_INTERVAL: Duration = Duration::from_secs(3);

/// The average time between two reads of everything.
const READ_INTERVAL: Duration = Duration::from_secs(60);

/// How long the leases of suspects are read.
const LAST_SEEN_LIMIT: Duration = Duration::from_secs(1);

/// A run that is followed.
#[derive(Debug)]
pub struct Watching {
    reader: Reader,
    watchers: Vec<Watcher>,
    records: RunRecords,
    revision: Revision,
    service: ServiceStatus,
    service_due: Instant,
    /// The newest data that was seen. An older response shows that the data were replaced.
    newest: Header,
    trouble: Option<String>,
    /// When everything is read again: now, if events may be missing from the records.
    read_due: Instant,
    shown: bool,
}

impl Watching {
    /// Opens the watches, then reads the run.
    ///
    /// # Errors
    /// Those of watching and reading.
    pub async fn begin(reader: Reader) -> Result<Self> {
        let keys = &reader.keys;
        let watched = [
            keys.control(),
            Keys::one(keys.clocks()),
            Keys::prefix(keys.nodes()),
            Keys::prefix(keys.all_finished()),
            Keys::prefix(keys.all_lost()),
            Keys::prefix(keys.all_history()),
            Keys::prefix(keys.all_resumed()),
        ];
        let mut watchers: Vec<Watcher> =
            watched.into_iter().map(|keys| Watcher::open(Arc::clone(&reader.backend), keys, 0)).collect();
        for watcher in &mut watchers {
            watcher.ready().await?;
        }
        let newest = newest_header(&reader).await?;
        let began = Instant::now();
        let (records, revision) = reader.records().await?;
        let latency = began.elapsed().as_secs_f64();
        let mut service = ServiceStatus { latency_seconds: Some(latency), ..reader.observation().service };
        reader.ask_service(&mut service).await;
        let service_due = Instant::now() + SERVICE_INTERVAL;
        let read_due = Instant::now() + reader.entropy.about(READ_INTERVAL);
        Ok(Self {
            reader,
            watchers,
            records,
            revision,
            service,
            service_due,
            newest,
            trouble: None,
            read_due,
            shown: false,
        })
    }

    /// The status: the first time at once, then after the next change, or when `limit` has passed. Returns whether
    /// something changed. Cancel-safe, except that a wait starts again.
    ///
    /// # Errors
    /// Errors of reading that another attempt would not avoid.
    pub async fn next(&mut self, limit: Duration) -> Result<(RunStatus, bool)> {
        let deadline = Instant::now() + limit;
        let mut changed = !std::mem::replace(&mut self.shown, true);
        while !changed {
            tokio::select! {
                biased;
                event = next_of(&mut self.watchers) => {
                    let (index, watched) = event?;
                    changed = self.apply(index, watched).await?;
                }
                () = sleep_until(self.service_due) => changed = self.check_service().await?,
                () = sleep_until(deadline) => break,
            }
        }
        if changed {
            let gathered = Instant::now() + GATHER;
            loop {
                tokio::select! {
                    biased;
                    event = next_of(&mut self.watchers) => {
                        let (index, watched) = event?;
                        self.apply(index, watched).await?;
                    }
                    () = sleep_until(gathered) => break,
                }
            }
        }
        Ok((self.status().await, changed))
    }

    async fn status(&mut self) -> RunStatus {
        let mut observation = self.reader.observation();
        observation.service = self.service.clone();
        if let Some(trouble) = &self.trouble {
            let mut status = unreachable(&observation, trouble);
            let known =
                judge(&self.records, &Observation { service: ServiceStatus::default(), ..observation });
            status.verdict.notes.push(format!("last known: {}", known.verdict.sentence));
            status.run = known.run;
            status.nodes = known.nodes;
            status.counts = known.counts;
            status.rounds = known.rounds;
            return status;
        }
        let mut status = judge(&self.records, &observation);
        let added = self.reader.add_last_seen(&self.records, &[], &mut status);
        // Without it, the status is complete otherwise.
        let _ = timeout(LAST_SEEN_LIMIT, added).await;
        status
    }

    async fn check_service(&mut self) -> Result<bool> {
        let before = (self.trouble.is_some(), self.service.has_leader, self.service.errors.clone());
        let asked = async {
            let status = match self.reader.backend.status().await {
                Err(error) if error.is_transient() => return Err(error),
                // A service that refuses to describe itself is not in trouble.
                status => status.ok(),
            };
            Ok((status, newest_header(&self.reader).await?))
        };
        let asked = timeout(SERVICE_INTERVAL, asked).await;
        let mut is_read = false;
        self.trouble = match asked {
            Ok(Ok((status, header))) => {
                let is_another =
                    header.cluster_id != self.newest.cluster_id || header.revision < self.newest.revision;
                self.newest = header;
                if is_another {
                    self.read_due = Instant::now();
                }
                if let Some(status) = status {
                    self.service.describe(status);
                }
                if self.service.has_leader == Some(false) {
                    Some("it has no leader, so it has no quorum".to_owned())
                } else if Instant::now() >= self.read_due {
                    match self.read_again().await {
                        Err(error) if !error.is_transient() => return Err(error),
                        Err(error) => Some(error.to_string()),
                        Ok(differs) => {
                            is_read = differs;
                            None
                        }
                    }
                } else {
                    None
                }
            }
            Ok(Err(error)) if error.is_transient() => Some(error.to_string()),
            Ok(Err(error)) => return Err(error),
            Err(_) => Some(format!("no response within {} s", SERVICE_INTERVAL.as_secs())),
        };
        if self.trouble.is_some() {
            self.read_due = Instant::now();
        }
        self.service.endpoint = self.reader.backend.endpoint();
        self.service_due = Instant::now() + SERVICE_INTERVAL;
        let now = (self.trouble.is_some(), self.service.has_leader, self.service.errors.clone());
        Ok(is_read || before != now)
    }

    /// Reads everything again, and continues all watches from there. Returns whether that was not known.
    async fn read_again(&mut self) -> Result<bool> {
        let began = Instant::now();
        let (records, revision) = self.reader.records().await?;
        let differs = self.records != records;
        (self.records, self.revision) = (records, revision);
        self.read_due = Instant::now() + self.reader.entropy.about(READ_INTERVAL);
        self.service.latency_seconds = Some(began.elapsed().as_secs_f64());
        for watcher in &mut self.watchers {
            watcher.restart(revision + 1);
        }
        Ok(differs)
    }

    /// Applies a report. Returns whether a key of the run changed.
    async fn apply(&mut self, index: usize, watched: Watched) -> Result<bool> {
        let Watched::Changes(changes) = watched else {
            if let Some(watcher) = self.watchers.get_mut(index) {
                watcher.restart(0);
            }
            self.must_read_again();
            return Ok(false);
        };
        self.trouble = None;
        self.newest.revision = self.newest.revision.max(changes.revision);
        let before = self.world();
        let mut any = false;
        let read = self.revision;
        for event in changes.events.iter().filter(|event| event.revision() > read) {
            self.apply_event(event);
            any = true;
        }
        if self.world() != before {
            // At the newest revision, because other watches may have reported later changes already.
            let revision = self.newest.revision.max(self.revision);
            match self.reader.read_life(&mut self.records, revision).await {
                Err(error) if error.is_transient() => {
                    self.trouble = Some(error.to_string());
                    self.must_read_again();
                }
                read => read?,
            }
        }
        Ok(any)
    }

    /// Has everything read again at once, or as soon as the service responds.
    fn must_read_again(&mut self) {
        self.read_due = Instant::now();
        self.service_due = self.read_due;
    }

    /// What the plan belongs to.
    fn world(&self) -> (Option<String>, Option<String>) {
        let round = self.records.round.as_ref();
        (self.records.life().map(str::to_owned), round.map(|round| round.attempt.clone()))
    }

    fn apply_event(&mut self, event: &Event) {
        let keys = &self.reader.keys;
        let key = event.key();
        let is_below = |prefix: String| key.starts_with(prefix.as_bytes());
        // Keys of other lives are not part of the picture.
        let is_of_life = |prefix: fn(&RunKeys, &str) -> String| {
            self.records.life().is_some_and(|life| is_below(prefix(keys, life)))
        };
        match event {
            Event::Put(item) if is_below(keys.nodes()) => self.records.put_node(item),
            Event::Put(item) if key == keys.clocks().as_bytes() => {
                self.records.clocks = self.records.decode::<ClocksRecord>(item);
            }
            Event::Put(item) if is_below(keys.all_lost()) => {
                let round = self.records.round.as_ref();
                if round.map(|round| keys.lost(&round.life, round.round)).is_some_and(is_below) {
                    self.records.put_lost(item);
                }
            }
            Event::Put(_) if is_of_life(RunKeys::finished_life) => {
                self.records.finished.extend(RunKeys::node_of(key));
            }
            Event::Put(item) if is_of_life(RunKeys::history) => self.records.put_history(item),
            Event::Put(item) if is_of_life(RunKeys::resumed) => self.records.put_resumed(item),
            Event::Put(item) => self.reader.put_control(&mut self.records, item),
            Event::Delete { .. } => {
                self.records.unreadable.remove(&*String::from_utf8_lossy(key));
                if is_below(keys.nodes()) {
                    if let Some(id) = RunKeys::node_of(key) {
                        self.records.nodes.remove(&id);
                    }
                } else if is_below(keys.all_lost()) {
                    if let Some(id) = RunKeys::node_of(key) {
                        self.records.lost.remove(&id);
                    }
                } else if key == keys.coordinator().as_bytes() {
                    self.records.coordinator = None;
                } else if key == keys.round().as_bytes() {
                    self.records.round = None;
                } else if key == keys.closed().as_bytes() {
                    self.records.closed = None;
                } else if key == keys.clocks().as_bytes() {
                    self.records.clocks = None;
                }
            }
        }
    }
}

/// The header of a read of the run.
async fn newest_header(reader: &Reader) -> Result<Header> {
    let read = Range { limit: 1, keys_only: true, ..Range::new(reader.keys.control()) };
    Ok(reader.backend.range(read).await?.header)
}

/// The first report of any watch, and of which one.
async fn next_of(watchers: &mut [Watcher]) -> Result<(usize, Watched)> {
    let waits = watchers.iter_mut().enumerate().map(|(index, watcher)| {
        Box::pin(async move { watcher.next().await.map(|watched| (index, watched)) })
    });
    let waits: Vec<_> = waits.collect();
    futures_util::future::select_all(waits).await.0
}
