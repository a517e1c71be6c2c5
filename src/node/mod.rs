//! The handle of one node of a run. The session ([`session`]) holds the lease and follows the run. The handle sends it
//! requests and waits for what it publishes. Every wait here has a limit and may be canceled by dropping it.

mod address;
mod board;
mod connect;
mod control;
mod followers;
mod holder;
mod leaving;
mod loss;
mod members;
mod observer;
mod ports;
mod reach;
mod resuming;
mod session;
mod shared;
mod snapshot;
mod stores;
pub mod suspecting;
mod waiting;
mod worlds;

use std::{
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tracing::Instrument as _;

pub use self::{
    address::local_address,
    connect::{Found, Search, check_service},
    resuming::Resumption,
    snapshot::{HostLost, Snapshot, State, WorldFacts},
};
use self::{
    session::{Command, Session},
    shared::Shared,
};
use crate::{
    backend::Backend,
    error::{Error, Result},
    hosting::Host,
    lifeline::Lifelines,
    protocol::identity::NodeId,
    run::{Context, Entropy},
    settings::Settings,
    store::Takes,
};

/// One node of a run. If it is dropped, its session ends without notifying the other nodes, and its lease expires.
/// Prefer [`Node::leave`].
#[derive(Debug)]
pub struct Node {
    context: Arc<Context>,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    session: JoinHandle<()>,
    /// Attributes of the node's log lines.
    span: tracing::Span,
    line_interval: Duration,
    left: OnceLock<bool>,
    takes: Arc<Takes>,
    /// How many resets were reported to the user of the run-wide store, if there is one.
    run_resets_told: OnceLock<Arc<AtomicU64>>,
    address: String,
    host: Mutex<Option<Host>>,
}

/// The address of a node, and its other resources.
#[derive(Debug)]
pub struct Place {
    /// The address at which it would serve as master.
    pub address: String,
    /// The port at which it would serve as master.
    pub port: u16,
    /// The service, if this node hosts it. It serves as long as the node exists, and at the end until the other nodes
    /// have left.
    pub host: Option<Host>,
    /// Its lifelines. Without them, its death is detected when its lease expires.
    pub lifelines: Option<Box<dyn Lifelines>>,
}

impl Node {
    /// Joins the run of the settings: acquires a lease and writes the node's record, which requests a world.
    ///
    /// # Errors
    /// At once: [`Error::Denied`], [`Error::NotEtcd`], [`Error::Record`], [`Error::Mismatch`], and [`Error::Closed`] if
    /// this very submission has succeeded. If the service is unavailable for `connect_timeout`: [`Error::Unavailable`].
    /// After `join_timeout`: [`Error::Closed`] if the ID of the run could not be used again.
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

    /// As [`Self::join`], with the service that was found and the lease that it has granted.
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
        let Place { address, port, host, lifelines } = place;
        let began = Instant::now();
        let context = Arc::new(context);
        let shared = Arc::new(Shared::new());
        let (commands, received) = mpsc::channel(16);
        let (own, shared_too) = (Arc::clone(&context), Arc::clone(&shared));
        let session = Session::new(own, shared_too, received, address.clone(), port, lifelines);
        // Every log line of the node has its run, name and round.
        let (run, name) = (&context.settings.run.run_id, &context.settings.node_name);
        let span = tracing::error_span!("node", %run, node = %name, round = tracing::field::Empty);
        let session = tokio::spawn(session.run().instrument(span.clone()));
        let node = Self {
            span,
            line_interval: waiting::NEXT_LINES,
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
        // The service may become unavailable while the node waits for the ID of a closed run. The limit starts then.
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
                return Err(node.join_error(began, seen.trouble));
            }
        }
    }

    fn join_error(&self, began: Instant, trouble: Option<Error>) -> Error {
        trouble.unwrap_or_else(|| Error::Timeout {
            what: format!("run `{}` is closed, and its id could not be used again yet", self.run_id()),
            after: began.elapsed(),
        })
    }

    /// The present snapshot, and a way to wait for the next one.
    pub fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.shared.subscribe()
    }

    /// Its present ID, or the ID that it had in its last world. `None` while it joins the run.
    pub fn id(&self) -> Option<NodeId> {
        let snapshot = self.shared.subscribe();
        let snapshot = snapshot.borrow();
        snapshot.node.or_else(|| snapshot.world.as_ref().map(|world| world.node))
    }

    /// Its name. In a world with another node of the same name, it has a suffix such as `#2`.
    pub fn name(&self) -> String {
        let snapshot = self.shared.subscribe();
        let world = snapshot.borrow().world.clone();
        world.map_or_else(|| self.context.settings.node_name.clone(), |world| world.name.clone())
    }

    /// The run's id.
    pub fn run_id(&self) -> &str {
        &self.context.settings.run.run_id
    }

    /// Whether [`Self::leave`] has ended, because the node has left or the time limit has passed.
    pub fn has_left(&self) -> bool {
        self.left.get().is_some()
    }

    /// The settings with which it joined.
    pub fn settings(&self) -> &Settings {
        &self.context.settings
    }

    /// The address at which other nodes reach this one.
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
