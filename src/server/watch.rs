//! etcd's Watch service: any number of watches on one stream.
//!
//! A stream has no task and no queue of events. It is polled as fast as its client receives, and then reads the next
//! batch from the engine's history. A stuck client therefore costs only its position in history and does not delay
//! other clients. If history is compacted past that position, the watch is canceled with the revision from which it
//! can continue.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use etcd_client::proto::{PbEvent, PbKeyValue, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse};
use futures_util::{Stream, stream::unfold};
use prost::Message;
use tokio::{
    sync::watch::Receiver,
    time::{Interval, MissedTickBehavior, interval_at},
};
use tonic::{Status, Streaming};

use super::{
    api::{Api, Counted, stopped},
    bodies::Meter,
    budget::{Permit, Share},
    kv::key_value,
};
use crate::backend::{
    Event, Revision,
    memory::{
        engine::{Engine, Refusal, Span},
        live::Watching,
        watchers::{News, WatchNotifier},
    },
};

/// How many bytes are read from history at once.
const BATCH_BYTES: usize = 512 * 1024;
const BATCH_REVISIONS: usize = 1000;
/// A response above this size is split into fragments if the client requested that.
const FRAGMENT_BYTES: usize = 1024 * 1024;
/// etcd's interval of unsolicited progress notifications.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// Maximum number of watches of a client. Each of them costs memory.
const MOST_WATCHES: usize = 100_000;
/// The memory of a watch in addition to its keys, which are stored twice: in the watch and in its notifier.
const WATCH_BYTES: usize = 512;
const KEY_COPIES: usize = 2;
/// The watch ID that etcd uses in responses about no watch, or about all watches.
const NO_WATCH: i64 = -1;

/// A watch of a stream.
#[expect(
    clippy::struct_excessive_bools,
    reason = "etcd's options of a watch, none of which depends on another"
)]
struct Watch {
    watching: Watching,
    puts: bool,
    deletes: bool,
    previous: bool,
    progress: bool,
    fragment: bool,
    _permit: Permit,
}

/// The state of a stream.
struct Session {
    api: Arc<Api>,
    requests: Streaming<PbWatchRequest>,
    stopping: Receiver<bool>,
    notifier: Arc<WatchNotifier>,
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
    /// Watches whose history must be read, and the time of their oldest notification.
    due: News,
    /// The client requested the progress of all its watches.
    progress_asked: bool,
    /// The client closed its side of the stream.
    requests_over: bool,
    progress: Interval,
    answers: VecDeque<PbWatchResponse>,
    meter: Meter,
    /// There is no room yet for a response of this size.
    held_up: Option<usize>,
    _counted: Counted,
}

type Answers = Pin<Box<dyn Stream<Item = Result<PbWatchResponse, Status>> + Send>>;

impl Api {
    /// Serves one stream.
    pub(super) fn watch(self: Arc<Self>, requests: Streaming<PbWatchRequest>, meter: Meter) -> Answers {
        let mut progress = interval_at(tokio::time::Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let session = Session {
            requests,
            stopping: self.stopping.clone(),
            notifier: Arc::default(),
            watches: BTreeMap::new(),
            next_id: 0,
            due: News::new(),
            progress_asked: false,
            requests_over: false,
            progress,
            answers: VecDeque::new(),
            meter,
            held_up: None,
            _counted: Counted::new(&self.streams),
            api: self,
        };
        Box::pin(unfold(Some(session), |session| async {
            let mut session = session?;
            match session.next().await {
                Some(Ok(answer)) => Some((Ok(answer), Some(session))),
                Some(Err(status)) => Some((Err(status), None)),
                None => None,
            }
        }))
    }
}

enum Turn {
    Request(Result<Option<PbWatchRequest>, Status>),
    Stopping,
    Due,
    Room,
    Notified,
    Progress,
}

impl Session {
    /// Returns the next response. A client that closed its side sends no more requests, but still receives events, as
    /// with etcd.
    async fn next(&mut self) -> Option<Result<PbWatchResponse, Status>> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                // Responses with events were counted before they were created.
                if answer.events.is_empty() {
                    let bytes = answer.encoded_len();
                    while let Err(status) = self.meter.count(bytes) {
                        tracing::debug!("a watch waits: {status}");
                        self.meter.share.room_for_message(bytes).await;
                    }
                }
                return Some(Ok(answer));
            }
            let due = self.held_up.is_none() && (!self.due.is_empty() || self.progress_asked);
            let turn = tokio::select! {
                biased;
                () = stopped(&mut self.stopping) => Turn::Stopping,
                request = self.requests.message(), if !self.requests_over => Turn::Request(request),
                () = std::future::ready(()), if due => Turn::Due,
                () = self.meter.share.room_for_message(self.held_up.unwrap_or(0)), if self.held_up.is_some() => Turn::Room,
                () = self.notifier.wait() => Turn::Notified,
                _ = self.progress.tick() => Turn::Progress,
            };
            match turn {
                Turn::Stopping => return Some(Err(Status::unavailable("etcdserver: server stopped"))),
                Turn::Request(Ok(Some(request))) => self.take(request),
                Turn::Request(Ok(None)) => self.requests_over = true,
                Turn::Request(Err(status)) => return Some(Err(status)),
                Turn::Due => match self.due.pop_first() {
                    Some((id, since)) => self.queue_next_batch(id, since),
                    None => self.report_progress(),
                },
                Turn::Room => self.held_up = None,
                Turn::Notified => self.drain_notifications(),
                Turn::Progress => self.report_unrequested_progress(),
            }
        }
    }

    /// Collects the watches that were notified. A watch that is already due keeps the time of its oldest
    /// notification.
    fn drain_notifications(&mut self) {
        for (id, revision) in self.notifier.take() {
            self.due.entry(id).or_insert(revision);
        }
    }

    fn take(&mut self, request: PbWatchRequest) {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(request)) => {
                let span = watched(request.key, request.range_end);
                let key_bytes = span.size();
                let permit = self.meter.share.watch(WATCH_BYTES + KEY_COPIES * key_bytes);
                let taken = permit.map_err(|status| status.message().to_owned()).and_then(|permit| {
                    let id = self.number(request.watch_id, &span).map_err(str::to_owned)?;
                    Ok((id, permit))
                });
                let (id, cause, permit) = match taken {
                    Ok((id, permit)) => (id, String::new(), Some(permit)),
                    Err(cause) => (NO_WATCH, cause, None),
                };
                let revision = self.api.access(|engine, _| engine.revision());
                if let Some(permit) = permit {
                    let start = request.start_revision;
                    let start = if start > 0 { start } else { revision + 1 };
                    let watch = Watch {
                        watching: self.api.contents.live.watch(span, start, &self.notifier, id),
                        // etcd's filters: 0 excludes puts, 1 excludes deletes.
                        puts: !request.filters.contains(&0),
                        deletes: !request.filters.contains(&1),
                        previous: request.prev_kv,
                        progress: request.progress_notify,
                        fragment: request.fragment,
                        _permit: permit,
                    };
                    self.watches.insert(id, watch);
                    self.due.insert(id, start);
                }
                self.answers.push_back(PbWatchResponse {
                    header: self.api.header_at(revision),
                    watch_id: id,
                    created: true,
                    canceled: id == NO_WATCH,
                    cancel_reason: cause,
                    ..Default::default()
                });
            }
            Some(PbWatchRequestUnion::CancelRequest(request)) => {
                let id = request.watch_id;
                if self.watches.remove(&id).is_some() {
                    self.due.remove(&id);
                    let header = self.api.header();
                    let answer =
                        PbWatchResponse { header, watch_id: id, canceled: true, ..Default::default() };
                    self.answers.push_back(answer);
                }
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                self.progress_asked = true;
            }
            None => {}
        }
    }

    /// Returns the ID of a new watch, or etcd's reason for rejecting it.
    fn number(&mut self, asked: i64, span: &Span) -> Result<i64, &'static str> {
        if span.is_empty() {
            return Err("mvcc: watcher range is empty");
        }
        if self.watches.len() >= MOST_WATCHES {
            return Err("too many watches on one stream");
        }
        if asked != 0 {
            let taken = self.watches.contains_key(&asked);
            return if taken {
                Err("mvcc: duplicate watch ID provided on the WatchStream")
            } else {
                Ok(asked)
            };
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    /// Reads one batch of a watch from history. If there is more, the watch stays due.
    fn queue_next_batch(&mut self, id: i64, since: Revision) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        let (share, mut permit, mut no_room) = (&self.meter.share, None, None);
        let read = |engine: &Engine, _| {
            let bytes =
                watch.watching.bytes(engine, Some(since), BATCH_REVISIONS, BATCH_BYTES, watch.previous);
            match share.message(bytes) {
                Ok(taken) => permit = Some(taken),
                Err(status) => {
                    no_room = Some((bytes, status));
                    return Ok(None);
                }
            }
            let batch = watch.watching.read(engine, Some(since), BATCH_REVISIONS, BATCH_BYTES)?;
            Ok::<_, Refusal>(Some((watch.messages(engine, batch.events), batch.next, engine.revision())))
        };
        let Ok(read) = self.api.contents.live.look(read) else {
            let compact_revision = self.api.contents.live.look(|engine, _| engine.compacted());
            self.watches.remove(&id);
            // As in etcd, this header contains no revision.
            let header = self.api.header_at(0);
            let answer = PbWatchResponse {
                header,
                watch_id: id,
                canceled: true,
                compact_revision,
                ..Default::default()
            };
            self.answers.push_back(answer);
            return;
        };
        let Some((events, next, revision)) = read else {
            let Some((bytes, status)) = no_room else { return };
            if Share::can_hold(bytes) {
                self.due.entry(id).or_insert(since);
                self.held_up = Some(bytes);
                return;
            }
            self.watches.remove(&id);
            self.answers.push_back(PbWatchResponse {
                header: self.api.header(),
                watch_id: id,
                canceled: true,
                cancel_reason: status.message().to_owned(),
                ..Default::default()
            });
            return;
        };
        if next <= revision {
            self.due.entry(id).or_insert(next);
        }
        let header = self.api.header_at(revision);
        if let (Some(permit), false) = (permit, events.is_empty()) {
            self.meter.hold(permit);
        }
        let pieces = if watch.fragment { fragments(events) } else { vec![events] };
        let last = pieces.len() - 1;
        for (index, events) in pieces.into_iter().enumerate().filter(|(_, events)| !events.is_empty()) {
            let fragment = index < last;
            let answer = PbWatchResponse { header, watch_id: id, fragment, events, ..Default::default() };
            self.answers.push_back(answer);
        }
    }

    /// Reports the progress of all watches when all of them have reached it.
    fn report_progress(&mut self) {
        // A change notifies watches under the engine's lock, so a change without a notification by then is later.
        let revision = self.api.contents.live.look(|engine, _| engine.revision());
        self.drain_notifications();
        if !self.due.is_empty() {
            return;
        }
        self.progress_asked = false;
        self.answers.push_back(self.progress_note(NO_WATCH, revision));
    }

    /// Sends the progress notification that etcd sends every ten minutes to watches that requested it.
    fn report_unrequested_progress(&mut self) {
        let revision = self.api.contents.live.look(|engine, _| engine.revision());
        self.drain_notifications();
        for (id, watch) in &self.watches {
            if watch.progress && !self.due.contains_key(id) {
                self.answers.push_back(self.progress_note(*id, revision));
            }
        }
    }

    fn progress_note(&self, watch_id: i64, revision: Revision) -> PbWatchResponse {
        PbWatchResponse { header: self.api.header_at(revision), watch_id, ..Default::default() }
    }
}

impl Watch {
    /// Returns the events that this watch reports for these changes.
    fn messages(&self, engine: &Engine, events: Vec<Event>) -> Vec<PbEvent> {
        let wanted = |event: &Event| if matches!(event, Event::Put(_)) { self.puts } else { self.deletes };
        events.into_iter().filter(wanted).map(|event| self.message(engine, event)).collect()
    }

    fn message(&self, engine: &Engine, event: Event) -> PbEvent {
        let creates = matches!(&event, Event::Put(item) if item.version == 1);
        let previous = (self.previous && !creates)
            .then(|| engine.at(event.key(), event.revision() - 1).cloned().map(key_value))
            .flatten();
        let (kind, item) = match event {
            Event::Put(item) => (0, key_value(item)),
            Event::Delete { key, revision } => {
                (1, PbKeyValue { key, mod_revision: revision, ..Default::default() })
            }
        };
        PbEvent { r#type: kind, kv: Some(item), prev_kv: previous }
    }
}

/// Converts the key range of a watch request. Without a key, it covers all keys.
fn watched(key: Vec<u8>, range_end: Vec<u8>) -> Span {
    Span::of_request(if key.is_empty() { vec![0] } else { key }, range_end)
}

/// Splits events into pieces of a bounded size. A single event is never split.
fn fragments(events: Vec<PbEvent>) -> Vec<Vec<PbEvent>> {
    let mut pieces = vec![Vec::new()];
    let mut bytes = 0;
    for event in events {
        let size = event.encoded_len();
        if bytes > 0 && bytes + size > FRAGMENT_BYTES {
            pieces.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(piece) = pieces.last_mut() {
            piece.push(event);
        }
    }
    pieces
}
