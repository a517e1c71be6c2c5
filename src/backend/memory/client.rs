//! A client of an in-process service, with simulated faults between the client and the service.

use std::{
    fmt,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{oneshot, watch},
    task::yield_now,
    time::{Instant, sleep, timeout_at},
};

use super::{
    CLUSTER_ID, ENDPOINT, MEMBER_ID, Mode, Shared, VERSION,
    convert::{header, refused, result, transaction, unavailable},
    engine::{Engine, LeaseView, MAX_REQUEST_BYTES, Read, Refusal, Span},
    live::Watching,
    watchers::WatchNotifier,
};
use crate::{
    backend::{
        Backend, Changes, Keys, LeaseId, LeaseLife, Range, RangeResult, Revision, Status, Txn, TxnResult,
        WatchStream, whole_seconds,
    },
    error::{Applied, Error, Result},
    lock::lock,
};

/// The kind of a call for which a fault is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`Backend::range`].
    Range,
    /// [`Backend::txn`].
    Txn,
    /// [`Backend::lease_grant`].
    LeaseGrant,
    /// [`Backend::lease_keep_alive`].
    LeaseKeepAlive,
    /// [`Backend::lease_revoke`].
    LeaseRevoke,
    /// [`Backend::watch`].
    Watch,
    /// [`Backend::status`].
    Status,
}

impl Call {
    /// Whether it changes the service in a way that must not happen twice.
    pub fn writes(self) -> bool {
        matches!(self, Self::Txn | Self::LeaseGrant | Self::LeaseRevoke)
    }

    fn applied_if_lost(self) -> Applied {
        if self.writes() { Applied::Unknown } else { Applied::No }
    }
}

/// What the network does to one call. By default, it does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// How long the request is in flight. If this is longer than an attempt may take, the request still arrives, as a
    /// delayed write.
    pub request_delay: Duration,
    /// Whether the request is lost.
    pub request_lost: bool,
    /// How long the response is in flight.
    pub answer_delay: Duration,
    /// Whether the response is lost after the request was served.
    pub answer_lost: bool,
}

/// Decides the fate of each call, for example from a seed.
pub type Interference = Box<dyn FnMut(Call) -> Fate + Send>;

/// One client of a [`super::MemoryService`].
#[derive(Debug)]
pub struct MemoryBackend {
    shared: Arc<Shared>,
    link: Arc<Link>,
    attempt_timeout: Duration,
}

/// The connection between one client and the service.
struct Link {
    state: Mutex<LinkState>,
    /// Counts its changes, which pending calls and watches wait for.
    changes: watch::Sender<u64>,
}

struct LinkState {
    cut: bool,
    connection: u64,
    lose_answers: usize,
    interference: Option<Interference>,
}

impl LinkState {
    fn new() -> Self {
        Self { cut: false, connection: 1, lose_answers: 0, interference: None }
    }
}

impl Link {
    fn change(&self, change: impl FnOnce(&mut LinkState)) {
        change(&mut lock(&self.state));
        self.changes.send_modify(|count| *count += 1);
    }

    /// Switches to another connection, only once however many calls failed on this one.
    fn give_up(&self, connection: u64) {
        self.change(|state| {
            if state.connection == connection {
                state.connection += 1;
            }
        });
    }

    fn fate(&self, call: Call) -> Fate {
        let mut state = lock(&self.state);
        let mut fate = state.interference.as_mut().map_or_else(Fate::default, |interfere| interfere(call));
        if call.writes() && state.lose_answers > 0 {
            state.lose_answers -= 1;
            fate.answer_lost = true;
        }
        fate
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        let mut debug = formatter.debug_struct("Link");
        debug.field("cut", &state.cut).field("connection", &state.connection).finish_non_exhaustive()
    }
}

impl MemoryBackend {
    pub(super) fn new(shared: Arc<Shared>, attempt_timeout: Duration) -> Self {
        let link = Link { state: Mutex::new(LinkState::new()), changes: watch::Sender::new(0) };
        Self { shared, link: Arc::new(link), attempt_timeout }
    }

    /// Disconnects this client. Its calls wait until their deadlines and its watches are silent, until
    /// [`Self::reconnect`].
    pub fn cut(&self) {
        self.link.change(|state| state.cut = true);
    }

    /// Lets this client reach the service again. A pending call whose deadline has not passed succeeds.
    pub fn reconnect(&self) {
        self.link.change(|state| state.cut = false);
    }

    /// Loses the responses of the next `writes` transactions, grants, and revocations. They are applied, but the caller
    /// receives [`Error::Unavailable`] with [`Applied::Unknown`].
    pub fn lose_answers(&self, writes: usize) {
        self.link.change(|state| state.lose_answers = writes);
    }

    /// Lets this function decide what happens to every call from now on.
    pub fn interfere(&self, interference: Option<Interference>) {
        self.link.change(|state| state.interference = interference);
    }

    async fn call<T, A>(&self, call: Call, access: A) -> Result<T>
    where
        T: Send + 'static,
        A: FnOnce(&mut Engine, Duration) -> Result<T, Refusal> + Send + 'static,
    {
        Ok(self.attempt(call, access).await?.0)
    }

    /// One attempt: the result, and the epoch to which it belongs.
    async fn attempt<T, A>(&self, call: Call, access: A) -> Result<(T, u64)>
    where
        T: Send + 'static,
        A: FnOnce(&mut Engine, Duration) -> Result<T, Refusal> + Send + 'static,
    {
        let connection = self.connection();
        let deadline = Instant::now() + self.attempt_timeout;
        let answer = timeout_at(deadline, self.exchange(call, access)).await.unwrap_or_else(|_| {
            let cause = format!("no answer within {:?}", self.attempt_timeout);
            Err(unavailable(&cause, call.applied_if_lost()))
        });
        if let Err(Error::Unavailable { .. }) = answer {
            self.link.give_up(connection);
        }
        answer
    }

    async fn exchange<T, A>(&self, call: Call, access: A) -> Result<(T, u64)>
    where
        T: Send + 'static,
        A: FnOnce(&mut Engine, Duration) -> Result<T, Refusal> + Send + 'static,
    {
        let fate = self.link.fate(call);
        // Other nodes run meanwhile, as they would while a request is in flight.
        yield_now().await;
        if fate.request_lost {
            return pending().await;
        }
        let (shared, link) = (Arc::clone(&self.shared), Arc::clone(&self.link));
        let (answer, epoch) = if fate.request_delay.is_zero() {
            deliver(&shared, &link, access).await?
        } else {
            // A request in flight no longer depends on the caller, which may give up or be dropped.
            let (sender, receiver) = oneshot::channel();
            tokio::spawn(async move {
                sleep(fate.request_delay).await;
                // The caller may have gone, and then no receiver is left.
                let _ = sender.send(deliver(&shared, &link, access).await);
            });
            receiver.await.unwrap_or_else(|_| Err(unavailable("the runtime ended", Applied::Unknown)))?
        };
        if fate.answer_lost {
            return pending().await;
        }
        if !fate.answer_delay.is_zero() {
            sleep(fate.answer_delay).await;
            while_cut(&self.link).await;
            if lock(&self.shared.state).epoch != epoch {
                return Err(unavailable("the connection was broken", call.applied_if_lost()));
            }
        }
        Ok((answer.map_err(refused)?, epoch))
    }
}

/// Delivers a request to the service: waits while the link is cut or the service is paused.
async fn deliver<T, A>(shared: &Arc<Shared>, link: &Link, access: A) -> Result<(Result<T, Refusal>, u64)>
where
    A: FnOnce(&mut Engine, Duration) -> Result<T, Refusal>,
{
    let mut access = Some(access);
    let mut modes = shared.mode_changes.subscribe();
    loop {
        while_cut(link).await;
        let served = shared.access(|engine, now| access.take().map(|access| access(engine, now)))?;
        if let Some((Some(answer), epoch)) = served {
            return Ok((answer, epoch));
        }
        if modes.changed().await.is_err() {
            return pending().await;
        }
    }
}

async fn while_cut(link: &Link) {
    let mut changes = link.changes.subscribe();
    while lock(&link.state).cut && changes.changed().await.is_ok() {}
}

#[async_trait]
impl Backend for MemoryBackend {
    async fn range(&self, range: Range) -> Result<RangeResult> {
        let read = Read {
            revision: range.revision,
            limit: usize::try_from(range.limit).unwrap_or(0),
            keys_only: range.keys_only,
            ..Read::all(Span::try_from(&range.keys).map_err(refused)?)
        };
        self.call(Call::Range, move |engine, _| {
            let found = engine.read(&read)?;
            Ok(RangeResult { header: header(found.revision), items: found.items, more: found.more })
        })
        .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult> {
        let transaction = transaction(txn).map_err(refused)?;
        if transaction.writes() && transaction.size() > MAX_REQUEST_BYTES {
            return Err(refused(Refusal::TooLarge));
        }
        self.call(Call::Txn, move |engine, _| {
            let done = engine.transact(&transaction)?;
            let results = done.outcomes.into_iter().map(result).collect();
            Ok(TxnResult { header: header(done.revision), succeeded: done.succeeded, results })
        })
        .await
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Duration> {
        let seconds = whole_seconds(ttl);
        self.call(Call::LeaseGrant, move |engine, now| engine.grant(now, id, seconds)).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration> {
        self.call(Call::LeaseKeepAlive, move |engine, now| engine.keep_alive(now, id)).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.call(Call::LeaseRevoke, move |engine, _| engine.revoke(id)).await
    }

    async fn lease_life(&self, id: LeaseId) -> Result<Option<LeaseLife>> {
        let life = |view: LeaseView| LeaseLife { granted: view.granted, remaining: view.remaining };
        self.call(Call::Status, move |engine, now| Ok(engine.lease(now, id).map(life))).await
    }

    async fn watch(&self, keys: Keys, start: Revision) -> Result<Box<dyn WatchStream>> {
        let connection = self.connection();
        let span = Span::try_from(&keys).map_err(refused)?;
        let (revision, epoch) = self.attempt(Call::Watch, |engine, _| Ok(engine.revision())).await?;
        let notifier = Arc::new(WatchNotifier::default());
        // From the revision of the response, because other clients may have written since.
        let start = if start > 0 { start } else { revision + 1 };
        let watching = self.shared.live.watch(span, start, &notifier, 0);
        let (shared, link) = (Arc::clone(&self.shared), Arc::clone(&self.link));
        let changes = link.changes.subscribe();
        Ok(Box::new(MemoryWatch { shared, link, changes, connection, epoch, watching, notifier }))
    }

    async fn status(&self) -> Result<Status> {
        self.call(Call::Status, |engine, _| {
            Ok(Status {
                version: VERSION.to_owned(),
                cluster_id: CLUSTER_ID,
                member_id: MEMBER_ID,
                leader: MEMBER_ID,
                db_size: i64::try_from(engine.usage().live_bytes + engine.usage().history_bytes)
                    .unwrap_or(i64::MAX),
                errors: Vec::new(),
            })
        })
        .await
    }

    fn endpoint(&self) -> String {
        ENDPOINT.to_owned()
    }

    fn connection(&self) -> u64 {
        lock(&self.link.state).connection
    }
}

#[derive(Debug)]
struct MemoryWatch {
    shared: Arc<Shared>,
    link: Arc<Link>,
    changes: watch::Receiver<u64>,
    connection: u64,
    epoch: u64,
    watching: Watching,
    notifier: Arc<WatchNotifier>,
}

impl MemoryWatch {
    /// The changes that can be reported now, if there are any.
    fn read_changes(&mut self) -> Result<Option<Changes>> {
        let LinkState { cut, connection, .. } = *lock(&self.link.state);
        if connection != self.connection {
            return Err(unavailable("the connection was given up", Applied::No));
        }
        if cut {
            return Ok(None);
        }
        let state = lock(&self.shared.state);
        if state.epoch != self.epoch {
            drop(state);
            self.link.give_up(self.connection);
            return Err(unavailable("the watch was broken", Applied::No));
        }
        if state.mode == Mode::Paused {
            return Ok(None);
        }
        let Self { watching, notifier, .. } = self;
        let read = |engine: &Engine, _| {
            watching.read(engine, notifier.take().into_values().next(), usize::MAX, usize::MAX)
        };
        let batch = self.shared.live.look(read).map_err(refused)?;
        Ok((!batch.events.is_empty()).then_some(Changes { revision: batch.next - 1, events: batch.events }))
    }
}

#[async_trait]
impl WatchStream for MemoryWatch {
    async fn next(&mut self) -> Result<Changes> {
        loop {
            self.changes.mark_unchanged();
            if let Some(changes) = self.read_changes()? {
                return Ok(changes);
            }
            tokio::select! {
                biased;
                () = self.notifier.wait() => {}
                _ = self.changes.changed() => {}
            }
        }
    }

    fn revision(&self) -> Revision {
        self.watching.position() - 1
    }

    fn connection(&self) -> u64 {
        self.connection
    }
}
