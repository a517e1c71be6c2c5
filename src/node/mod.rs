//! One node of a run: its handle. Behind it a session ([`session`]) holds the lease and follows the run; the handle asks
//! it for things and waits for what it publishes. Every wait here has a limit and may be cancelled by dropping it.

mod address;
mod board;
mod connect;
mod control;
mod followers;
mod holder;
mod joining;
mod members;
mod ports;
mod reach;
mod session;
mod shared;
mod waiting;

use std::{
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};

pub use self::{
    address::local_address,
    connect::{Found, Search, check_service},
    shared::{HostLost, Snapshot, State, WorldFacts},
};
use self::{
    session::{Command, Session},
    shared::Shared,
};
use crate::{
    backend::{Backend, retry::RetryPolicy},
    error::{Applied, Error, Result},
    hosting::Host,
    protocol::{
        cooldown::wait_of,
        identity::NodeId,
        records::{ChangeRecord, LastWorld, Outcome},
    },
    run::{Context, Entropy},
    settings::Settings,
    store::{Store, StoreContext, StoreView, Takes},
};

/// One node of a run. Dropping it ends its session without a word: its lease lapses. [`Node::leave`] is the polite way.
#[derive(Debug)]
pub struct Node {
    context: Arc<Context>,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    session: JoinHandle<()>,
    left: OnceLock<bool>,
    takes: Arc<Takes>,
    /// How many resets the user of the run-wide store has been told of, once there is one.
    run_resets_told: OnceLock<Arc<AtomicU64>>,
    address: String,
    host: Mutex<Option<Host>>,
}

/// Where a node is, and what it brings along.
#[derive(Debug)]
pub struct Place {
    /// Where it would serve as master.
    pub address: String,
    /// On which port.
    pub port: u16,
    /// The service, if this node hosts it: for as long as the node is there, and the others after the end.
    pub host: Option<Host>,
}

impl Node {
    /// Joins the run that the settings name: takes a lease and puts the node's record, after which it seeks a world.
    ///
    /// # Errors
    /// At once: [`Error::Denied`], [`Error::NotEtcd`], [`Error::Record`], [`Error::Mismatch`], and [`Error::Closed`] if
    /// this very submission has succeeded. After `connect_timeout` of trouble: [`Error::Unavailable`]. After
    /// `join_timeout`: [`Error::Closed`] if the run's id could not be used again.
    pub async fn join(
        backend: Arc<dyn Backend>,
        settings: Settings,
        entropy: Entropy,
        place: Place,
    ) -> Result<Self> {
        let mut context = Context::new(backend, settings, entropy);
        context.hosts = place.host.is_some();
        Self::join_run(context, place).await
    }

    /// Does what [`Self::join`] does, at the service that was found, under the lease that it has granted.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub async fn join_found(
        found: Found,
        settings: Settings,
        entropy: Entropy,
        place: Place,
    ) -> Result<Self> {
        let mut context = Context::new(found.backend, settings, entropy);
        context.hosts = place.host.is_some();
        context.granted = found.granted.into();
        Self::join_run(context, place).await
    }

    async fn join_run(context: Context, place: Place) -> Result<Self> {
        let Place { address, port, host } = place;
        let began = Instant::now();
        let context = Arc::new(context);
        let shared = Arc::new(Shared::new());
        let (commands, received) = mpsc::channel(16);
        let session =
            Session::new(Arc::clone(&context), Arc::clone(&shared), received, address.clone(), port);
        let session = tokio::spawn(session.run());
        let node = Self {
            context,
            shared,
            commands,
            session,
            left: OnceLock::new(),
            takes: Arc::default(),
            run_resets_told: OnceLock::new(),
            address,
            host: Mutex::new(host),
        };
        let settings = &node.context.settings;
        let join_by = began + settings.join_timeout;
        // The service may go away while the node waits for a closed run's id: the limit counts from there.
        let mut troubled_since = None;
        let mut snapshot = node.shared.subscribe();
        loop {
            let seen = snapshot.borrow_and_update().clone();
            if let Some(error) = seen.end {
                return Err(error);
            }
            if seen.node.is_some() {
                return Ok(node);
            }
            troubled_since = seen.trouble.as_ref().map(|_| troubled_since.unwrap_or_else(Instant::now));
            let connect_by = troubled_since.map(|since| since + settings.connection.connect_timeout);
            let deadline = connect_by.map_or(join_by, |connect_by| connect_by.min(join_by));
            if Instant::now() >= deadline || timeout_at(deadline, snapshot.changed()).await.is_err() {
                return Err(node.not_in(began, seen.trouble));
            }
        }
    }

    fn not_in(&self, began: Instant, trouble: Option<Error>) -> Error {
        trouble.unwrap_or_else(|| Error::Timeout {
            what: format!("run `{}` is closed, and its id could not be used again yet", self.run_id()),
            after: began.elapsed(),
        })
    }

    /// Waits for the next world that includes this node and was not returned yet. `port` is where it would serve as
    /// master from now on. Without a limit: `join_timeout`, or for a spare `spare_timeout`.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`], [`Error::Unavailable`] if the service was away when the time was over,
    /// [`Error::Left`], and what ends a session: [`Error::Record`], [`Error::Mismatch`].
    pub async fn next_world(&self, port: Option<u16>, limit: Option<Duration>) -> Result<Arc<WorldFacts>> {
        let world = self.await_world(port, limit).await?;
        self.set_returned(&world);
        Ok(world)
    }

    /// Marks a world of [`Self::await_world`] as returned.
    pub fn set_returned(&self, world: &WorldFacts) {
        self.shared.set_returned(world.place.clone());
    }

    /// The same as [`Self::next_world`], except that the next call returns this world again until it is marked as
    /// returned. A caller can therefore give up at any moment without losing a world.
    ///
    /// # Errors
    /// Those of [`Self::next_world`].
    pub async fn await_world(&self, port: Option<u16>, limit: Option<Duration>) -> Result<Arc<WorldFacts>> {
        let began = Instant::now();
        let mut snapshot = self.shared.subscribe();
        let mut asked = false;
        // A spare's waiting is no waiting for a first place, however often it is taken for one in between.
        let (mut since, mut spare) = (began, false);
        let mut speak_at = began + waiting::FIRST_LINE;
        let never = began + Duration::from_secs(1_000_000_000);
        // A line is read from the service while this waits: the answer may be slow, and a world may form meanwhile.
        let mut line: Option<waiting::Line<'_>> = None;
        loop {
            let seen = snapshot.borrow_and_update().clone();
            if let Some(world) = seen.world.as_ref().filter(|world| self.is_news(&world.place, &seen)) {
                return Ok(Arc::clone(world));
            }
            if let Some(closed) = &seen.closed {
                return Err(closed.error(self.run_id()));
            }
            if let Some(error) = seen.end {
                return Err(error);
            }
            if !asked {
                asked = true;
                if seen.world.is_some() || seen.node.is_none() || port.is_some() {
                    let after = self.shared.returned();
                    self.commands.send(Command::Seek { port, after }).await.map_err(|_| Error::Left)?;
                }
            }
            if spare != (seen.state == State::Spare) {
                spare = !spare;
                since = Instant::now();
            }
            let deadline = self.deadline(&seen, if limit.is_some() { began } else { since }, limit);
            tokio::select! {
                biased;
                changed = snapshot.changed() => changed.map_err(|_| Error::Left)?,
                () = sleep_until(deadline.unwrap_or(never)) => {
                    tokio::select! {
                        biased;
                        // A world that has formed meanwhile is better than the description of its lack.
                        changed = snapshot.changed() => changed.map_err(|_| Error::Left)?,
                        error = self.timed_out(began, seen) => return Err(error),
                    }
                }
                () = sleep_until(speak_at) => {
                    speak_at = Instant::now() + waiting::NEXT_LINES;
                    line = Some(Box::pin(self.log_waiting(seen, spare, deadline)));
                }
                () = waiting::finished(&mut line) => line = None,
            }
        }
    }

    /// Logs which nodes wait or are in its way, as far as the service answers.
    async fn log_waiting(&self, seen: Snapshot, spare: bool, deadline: Option<Instant>) {
        let until = || match deadline {
            Some(deadline) => {
                format!(
                    "for another {:.0} s",
                    deadline.saturating_duration_since(Instant::now()).as_secs_f64()
                )
            }
            None => "without limit".to_owned(),
        };
        if let Some(round) = seen.round.as_ref().filter(|_| spare) {
            let full = waiting::describe_full(&self.context, round).await;
            tracing::warn!("{full}; waiting {}", until());
        } else {
            let who = waiting::describe(&self.context).await;
            let cooldown = self.cooldown(&seen);
            tracing::info!("waiting for a world in run `{}` {}: {who}{cooldown}", self.run_id(), until());
        }
    }

    /// Whether its owner has not had this world, and it is not over already.
    fn is_news(&self, world: &LastWorld, seen: &Snapshot) -> bool {
        let returned = self.shared.returned();
        let newer = returned.is_none_or(|old| !old.is_same_world(world));
        newer && seen.dropped.is_none() && seen.closed.is_none()
    }

    fn deadline(&self, seen: &Snapshot, began: Instant, limit: Option<Duration>) -> Option<Instant> {
        let settings = &self.context.settings;
        let limit = limit.or(match seen.state {
            State::Spare => settings.spare_timeout,
            _ => Some(settings.join_timeout),
        });
        let deadline = limit.map(|limit| began + limit);
        match &seen.host_lost {
            Some(lost) if seen.state == State::Uncertain => {
                let given_up = lost.since + settings.host_timeout;
                Some(deadline.map_or(given_up, |deadline| deadline.min(given_up)))
            }
            _ => deadline,
        }
    }

    /// That this node waits because it has failed before.
    fn cooldown(&self, seen: &Snapshot) -> String {
        let round = seen.round.as_ref().filter(|_| seen.world.is_none());
        let wait = round.and_then(|round| wait_of(round, &self.context.settings.node_name));
        wait.map_or_else(String::new, |wait| format!("; {wait}"))
    }

    async fn timed_out(&self, began: Instant, seen: Snapshot) -> Error {
        let cooldown = self.cooldown(&seen);
        if let Some(HostLost { host, .. }) = seen.host_lost.filter(|_| seen.state == State::Uncertain) {
            let cause = format!(
                "`{host}`, which hosted it, is lost and has not come back within {:.0} s (`host_timeout`); an etcd, or \
                 `lattice-rdzv serve` on a machine that stays, outlives any node",
                self.context.settings.host_timeout.as_secs_f64()
            );
            return Error::Unavailable { endpoint: self.endpoint(), cause, applied: Applied::No };
        }
        if let Some(trouble) = seen.trouble.filter(Error::is_transient) {
            return trouble;
        }
        let who = waiting::describe(&self.context).await;
        let what = format!("no world in run `{}`: {who}{cooldown}", self.run_id());
        Error::Timeout { what, after: began.elapsed() }
    }

    /// 1 if the world that was returned last is about to be replaced, was replaced, or was closed without success; else
    /// 0. One atomic read.
    pub fn num_nodes_waiting(&self) -> u32 {
        self.shared.waiting()
    }

    /// Why, and of which round.
    pub fn change(&self) -> Option<(LastWorld, ChangeRecord)> {
        self.shared.change()
    }

    /// Waits for a change, at most for so long. None also when there can be no more: the run is closed, or this node's
    /// part in it is over.
    pub async fn wait_change(&self, limit: Option<Duration>) -> Option<(LastWorld, ChangeRecord)> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut snapshot = self.shared.subscribe();
        loop {
            let over = {
                let seen = snapshot.borrow_and_update();
                seen.closed.is_some() || seen.end.is_some()
            };
            let change = self.change();
            if change.is_some() || over {
                return change;
            }
            let changed = snapshot.changed();
            let ended = match deadline {
                Some(deadline) => {
                    timeout_at(deadline, changed).await.map_or(true, |changed| changed.is_err())
                }
                None => changed.await.is_err(),
            };
            if ended {
                return self.change();
            }
        }
    }

    /// What is known now, and a way to wait for news.
    pub fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.shared.subscribe()
    }

    /// Tells the others that this node is about to go, while it is still there. Whether they can see it by then.
    pub async fn mark_leaving(&self, limit: Duration) -> bool {
        let (done, answer) = oneshot::channel();
        self.ask(Command::MarkLeaving { done }, answer, limit).await.is_some()
    }

    /// Leaves the run and gives the lease back; whether the service acknowledged it. Idempotent, and several may wait
    /// for it; the shortest limit of theirs counts.
    pub async fn leave(&self, limit: Option<Duration>) -> bool {
        let limit = limit.unwrap_or(self.context.settings.close_timeout);
        let began = Instant::now();
        let left = if let Some(left) = self.left.get() {
            *left
        } else {
            self.return_kept(limit / 2).await;
            self.give_back(limit.saturating_sub(began.elapsed())).await
        };
        self.stop_hosting(limit.saturating_sub(began.elapsed())).await;
        left
    }

    /// Writes the items of queues that no pop delivered back to their queues, for the nodes that stay.
    async fn return_kept(&self, limit: Duration) {
        if self.takes.is_empty() {
            return;
        }
        let returned = match self.run_store(limit).await {
            Ok(store) => store.return_kept(limit).await,
            Err(error) => Err(error),
        };
        if let Err(error) = returned {
            tracing::warn!("items that interrupted `queue_pop` calls took could not be returned: {error}");
        }
    }

    async fn give_back(&self, limit: Duration) -> bool {
        let (done, answer) = oneshot::channel();
        // A session that ended for another's leaving may not have read the command.
        let acknowledged =
            self.ask(Command::Leave { done }, answer, limit).await.is_some() || self.shared.is_gone();
        if self.left.set(acknowledged).is_ok() && !acknowledged {
            self.session.abort();
            self.shared.end(Error::Left);
            tracing::warn!(
                "leaving was not acknowledged within {:.0} s; the lease lapses",
                limit.as_secs_f64()
            );
        }
        self.left.get().copied().unwrap_or(acknowledged)
    }

    /// Ends the service that this node hosts; after the run's end once the others have left, too. Whoever else leaves
    /// meanwhile waits for that.
    async fn stop_hosting(&self, limit: Duration) {
        let Ok(mut host) = tokio::time::timeout(limit, self.host.lock()).await else { return };
        let Some(host) = host.take() else { return };
        let closed = self.shared.subscribe().borrow().closed.is_some();
        if closed {
            host.linger(self.context.backend.as_ref(), &self.context.keys, limit).await;
        }
        host.stop().await;
    }

    /// Closes the run for good; whether it is closed, by whomever. Not if this node is no longer in the life that it
    /// would close.
    pub async fn close(&self, outcome: Outcome, why: &str, limit: Option<Duration>) -> bool {
        let (done, answer) = oneshot::channel();
        let limit = limit.unwrap_or(self.context.settings.close_timeout);
        let command = Command::Close { outcome, why: why.to_owned(), done };
        self.ask(command, answer, limit).await.unwrap_or(false)
    }

    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>, limit: Duration) -> Option<T> {
        let ask = async {
            self.commands.send(command).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(limit, ask).await.ok().flatten()
    }

    /// The store of a world's round. One that puts back writes its own keys again when the service came back empty.
    pub fn round_store(&self, world: &WorldFacts, put_back: bool) -> Arc<Store> {
        let LastWorld { life, round, .. } = &world.place;
        self.shared.follow(world.node, life, Some(world.place.clone()), |view| {
            let store = Store::new(self.store_context(world.node, life, Some(*round), view));
            (Arc::new(if put_back { store.put_back() } else { store }), put_back)
        })
    }

    /// The run-wide store, once the node is in the run and knows its life.
    ///
    /// # Errors
    /// [`Error::Timeout`] if that takes too long, [`Error::Closed`], and what ends a session.
    pub async fn run_store(&self, limit: Duration) -> Result<Arc<Store>> {
        let began = Instant::now();
        let mut snapshot = self.shared.subscribe();
        loop {
            let seen = snapshot.borrow_and_update().clone();
            let life = match (&seen.world, &seen.round) {
                (Some(world), _) => Some(&world.place.life),
                (None, Some(round)) => Some(&round.life),
                (None, None) => None,
            };
            if let (Some(node), Some(life), None) = (seen.node, life, &seen.end) {
                return Ok(self.shared.follow(node, life, None, |view| {
                    (Arc::new(Store::new(self.store_context(node, life, None, view))), false)
                }));
            }
            if let Some(closed) = &seen.closed {
                return Err(closed.error(self.run_id()));
            }
            if let Some(error) = seen.end {
                return Err(error);
            }
            let Ok(changed) = timeout_at(began + limit, snapshot.changed()).await else {
                let what = format!("run `{}` has not begun, so it has no store yet", self.run_id());
                return Err(seen.trouble.unwrap_or(Error::Timeout { what, after: began.elapsed() }));
            };
            changed.map_err(|_| Error::Left)?;
        }
    }

    fn store_context(
        &self,
        node: NodeId,
        life: &str,
        round: Option<u64>,
        view: watch::Receiver<StoreView>,
    ) -> StoreContext {
        let resets = view.borrow().resets;
        let told = match round {
            Some(_) => Arc::new(AtomicU64::new(resets)),
            None => Arc::clone(self.run_resets_told.get_or_init(|| Arc::new(AtomicU64::new(resets)))),
        };
        StoreContext {
            backend: self.context.monotonic.guarded(),
            monotonic: Arc::clone(&self.context.monotonic),
            keys: self.context.keys.clone(),
            node,
            life: life.to_owned(),
            round,
            view,
            slots: self.shared.slots(node),
            takes: Arc::clone(&self.takes),
            told,
            retry: RetryPolicy::default(),
            limits: self.context.limits,
            seed: self.context.entropy.bits(),
        }
    }

    /// The world that [`Self::next_world`] returned last.
    pub fn returned(&self) -> Option<LastWorld> {
        self.shared.returned()
    }

    /// Its present id, or the one it had in its last world; none while it is on its way into the run.
    pub fn id(&self) -> Option<NodeId> {
        let snapshot = self.shared.subscribe();
        let snapshot = snapshot.borrow();
        snapshot.node.or_else(|| snapshot.world.as_ref().map(|world| world.node))
    }

    /// What it is called: in a world that has another node of its name, with `#2` or so.
    pub fn name(&self) -> String {
        let snapshot = self.shared.subscribe();
        let world = snapshot.borrow().world.clone();
        world.map_or_else(|| self.context.settings.node_name.clone(), |world| world.name.clone())
    }

    /// The run's id.
    pub fn run_id(&self) -> &str {
        &self.context.settings.run.run_id
    }

    /// Whether [`Self::leave`] has come to its end: the node has left, or its time was over.
    pub fn has_left(&self) -> bool {
        self.left.get().is_some()
    }

    /// What it was joined with.
    pub fn settings(&self) -> &Settings {
        &self.context.settings
    }

    /// Where other nodes reach this one.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether this node hosts the service for the others.
    pub fn hosts(&self) -> bool {
        self.context.hosts
    }

    /// The endpoint in use.
    pub fn endpoint(&self) -> String {
        self.context.backend.endpoint()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.session.abort();
    }
}
