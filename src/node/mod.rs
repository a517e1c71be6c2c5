//! One node of a run: its handle. Behind it a session ([`session`]) holds the lease and follows the run; the handle asks
//! it for things and waits for what it publishes. Every wait here has a limit and may be cancelled by dropping it.

mod address;
mod board;
mod connect;
mod control;
mod followers;
mod holder;
mod leaving;
mod members;
mod ports;
mod reach;
mod session;
mod shared;
mod stores;
mod waiting;
mod worlds;

use std::sync::{Arc, OnceLock, atomic::AtomicU64};

use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
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
    backend::Backend,
    error::{Error, Result},
    hosting::Host,
    protocol::identity::NodeId,
    run::{Context, Entropy},
    settings::Settings,
    store::Takes,
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
