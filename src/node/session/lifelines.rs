//! The lifelines of a session: what it sends them, and what it does when one ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{Session, inquiring::Inquirer, lifeline_events::LifelineEvent, stage::Stage};
use crate::{
    coordinator::{Inquiries, Inquiry},
    lifeline::{Lifelines, Suspicion},
    node::observer::{Observer, Settled},
    protocol::{
        identity::NodeId,
        records::{Neighbor, WorldMembership},
    },
    settings::Reaction,
};

/// The lifelines of a node, and its observers.
#[derive(Debug)]
pub(super) struct Watching {
    lifelines: Box<dyn Lifelines>,
    /// The members to watch in the world that was entered last, once the owner has that world. If they were connected
    /// earlier, this would delay the worlds of other nodes on a busy machine.
    neighbors: Option<Vec<Neighbor>>,
    observers: JoinSet<LifelineEvent>,
    /// The members that are under observation.
    observed: BTreeSet<NodeId>,
    /// Suspicions that were not settled in an earlier world, or before this node took another lease.
    unsettled: Vec<Suspicion>,
    /// The requests of the coordinator's task of this node.
    inquiries: (Inquiries, mpsc::UnboundedReceiver<Inquiry>),
    /// The addresses at which members have greeted for the coordinator.
    greeted: Arc<BTreeMap<NodeId, SocketAddr>>,
    /// The greeting of members that is in progress.
    greeting: Option<AbortHandle>,
    /// Whether the address of the service is being checked.
    asks_host: bool,
}

impl Watching {
    pub(super) fn new(lifelines: Box<dyn Lifelines>) -> Self {
        Self {
            lifelines,
            neighbors: None,
            observers: JoinSet::new(),
            observed: BTreeSet::new(),
            unsettled: Vec::new(),
            inquiries: mpsc::unbounded_channel(),
            greeted: Arc::default(),
            greeting: None,
            asks_host: false,
        }
    }

    /// Where the coordinator's task of this node puts its requests.
    pub(super) fn inquiries(&self) -> Inquiries {
        self.inquiries.0.clone()
    }

    /// Waits for an event. Cancel-safe.
    pub(super) async fn next_event(&mut self) -> LifelineEvent {
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.observers.join_next() => if let Ok(event) = ended {
                    return event;
                },
                suspicion = self.lifelines.suspicion() => return LifelineEvent::Suspicions(vec![suspicion]),
                Some(inquiry) = self.inquiries.1.recv() => return LifelineEvent::Inquiry(inquiry),
            }
        }
    }
}

/// Waits for an event of the lifelines, without end if there are none. Cancel-safe.
pub(super) async fn next_lifeline_event(watching: &mut Option<Watching>) -> LifelineEvent {
    match watching {
        Some(watching) => watching.next_event().await,
        None => std::future::pending().await,
    }
}

impl Session {
    /// This node has entered a world, in which it watches these members.
    pub(super) fn enter_lifelines(&mut self, neighbors: Vec<Neighbor>) {
        let (Stage::In(membership), Some(watching)) = (&self.stage, &mut self.watching) else { return };
        let Some(world) = membership.place().and_then(WorldMembership::number) else { return };
        watching.lifelines.enter(membership.id, world);
        watching.neighbors = Some(neighbors);
        self.observe_unsettled();
    }

    /// Examines again what could not be settled with the previous world or lease of this node.
    pub(super) fn observe_unsettled(&mut self) {
        let Some(watching) = &mut self.watching else { return };
        for suspicion in std::mem::take(&mut watching.unsettled) {
            self.observe(suspicion);
        }
    }

    /// The owner of this node has the world that was entered last.
    pub(super) fn connect_lifelines(&mut self) {
        let Some(watching) = &mut self.watching else { return };
        if let Some(neighbors) = watching.neighbors.take() {
            watching.lifelines.watch(neighbors);
        }
    }

    pub(super) fn handle_lifeline_event(&mut self, event: LifelineEvent) {
        match event {
            LifelineEvent::Suspicions(suspicions) => {
                for suspicion in suspicions {
                    self.observe(suspicion);
                }
            }
            LifelineEvent::Inquiry(inquiry) => self.inquire(inquiry),
            LifelineEvent::Greeted { greeted, again } => {
                if let Some(watching) = &mut self.watching {
                    watching.greeted = Arc::new(greeted);
                }
                if let (Some(greeting), Some(inquirer)) = (again, self.inquirer()) {
                    self.replace_greeting(inquirer.greet(greeting));
                }
            }
            LifelineEvent::Settled(suspicion, settled) => self.handle_settled(suspicion, settled),
            LifelineEvent::HostAsked { is_refused } => {
                if let Some(watching) = &mut self.watching {
                    watching.asks_host = false;
                }
                if is_refused {
                    let endpoint = self.context.backend.endpoint();
                    self.lose_host(format!("its connection ended, then `{endpoint}` refused"));
                }
            }
        }
    }

    /// Has an observer examine a suspicion, unless one does already, or the run ignores losses.
    fn observe(&mut self, suspicion: Suspicion) {
        let (Stage::In(membership), Some(watching)) = (&self.stage, &mut self.watching) else { return };
        let Some(place) = membership.place() else { return };
        let ignores = self.context.settings.on_member_loss == Reaction::Ignore;
        let accused = suspicion.neighbor.id;
        if ignores || !watching.observed.insert(accused) {
            return;
        }
        let observer = Observer {
            context: Arc::clone(&self.context),
            own: membership.id,
            place: place.clone(),
            lease: membership.lease.keeper.state(),
            questions: watching.lifelines.questions(),
            suspicion,
        };
        watching.observers.spawn(async move {
            let (suspicion, settled) = observer.examine().await;
            LifelineEvent::Settled(suspicion, settled)
        });
    }

    /// Does what the coordinator's task of this node requests.
    fn inquire(&mut self, inquiry: Inquiry) {
        let (Some(inquirer), Some(watching)) = (self.inquirer(), &mut self.watching) else { return };
        if matches!(inquiry, Inquiry::Greet(_)) {
            self.replace_greeting(inquirer.inquire(inquiry));
        } else {
            watching.observers.spawn(inquirer.inquire(inquiry));
        }
    }

    /// Starts a greeting, and ends the earlier one.
    fn replace_greeting(&mut self, greeting: impl Future<Output = LifelineEvent> + Send + 'static) {
        let Some(watching) = &mut self.watching else { return };
        if let Some(earlier) = watching.greeting.replace(watching.observers.spawn(greeting)) {
            earlier.abort();
        }
    }

    /// Asks for the coordinator, if this node is a member with lifelines.
    fn inquirer(&self) -> Option<Inquirer> {
        let (Stage::In(membership), Some(watching)) = (&self.stage, &self.watching) else { return None };
        // A coordinator may send a request before its own node has entered the world. A question names the world, but
        // does not need it.
        let world = membership.place().and_then(WorldMembership::number).unwrap_or(0);
        Some(Inquirer {
            questions: watching.lifelines.questions(),
            own: membership.id,
            world,
            greeted: Arc::clone(&watching.greeted),
            backend: Arc::clone(&self.context.backend),
        })
    }

    /// The watch was interrupted. If a node hosts the service, checks the address of that node. Each failure to open the watch
    /// again calls this again, because a process may still accept connections for a moment while it ends.
    pub(super) fn question_host(&mut self) {
        let (Stage::In(membership), Some(watching)) = (&self.stage, &mut self.watching) else { return };
        let address = membership.world.as_ref().and_then(|world| world.host_address.clone());
        let is_due = !self.context.hosts && self.lost.host.is_none() && !watching.asks_host;
        let Some(address) = address.filter(|_| is_due) else { return };
        watching.asks_host = true;
        let endpoint = self.context.backend.endpoint();
        let service =
            endpoint.rsplit_once("://").map_or(endpoint.as_str(), |(_, service)| service).to_owned();
        let questions = watching.lifelines.questions();
        watching.observers.spawn(async move {
            LifelineEvent::HostAsked { is_refused: questions.is_refused(&service, &address).await }
        });
    }

    fn handle_settled(&mut self, suspicion: Suspicion, settled: Settled) {
        let Some(watching) = &mut self.watching else { return };
        watching.observed.remove(&suspicion.neighbor.id);
        match settled {
            Settled::Dead { was_coordinator: true } => {
                if let Stage::In(membership) = &mut self.stage {
                    // The watch reports the deletion of the term, if it has not done so yet.
                    membership.candidacy.campaign_at = Some(Instant::now());
                }
            }
            Settled::Dead { was_coordinator: false } | Settled::Dropped(_) => {}
            Settled::OtherWorld { examined } => {
                let place = self.stage.membership().and_then(|membership| membership.place());
                let world = place.and_then(WorldMembership::number);
                // If this node is in a later world already, the observer did not know it.
                if world.is_some() && world != examined {
                    self.observe(suspicion);
                } else {
                    watching.unsettled.push(suspicion);
                }
            }
            Settled::LeaseReplaced => {
                let membership = self.stage.membership();
                if membership.is_some_and(|membership| membership.lease.state().alive) {
                    self.observe(suspicion);
                } else {
                    watching.unsettled.push(suspicion);
                }
            }
        }
    }

    /// Says goodbye on all lifelines. Call this when the other nodes can read that this node has left.
    pub(super) async fn close_lifelines(&mut self) {
        if let Some(Watching { lifelines, .. }) = self.watching.take() {
            lifelines.say_goodbye().await;
        }
    }
}
