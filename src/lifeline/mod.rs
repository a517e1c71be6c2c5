//! Lifelines: connections between members, whose end shows at once that a process has died.
//!
//! The kernel closes the sockets of a process that dies, whatever the cause is. Each member keeps a connection to the
//! members of the next two ranks ([`crate::protocol::neighbors`]). If a connection ends without a goodbye, its peer
//! becomes *suspected*. Silence is not evidence. [`confirm`] then asks at the address of the suspected node again, and
//! only a refusal by TCP counts as death. This module knows no service: other modules decide the consequences of a
//! death.
//!
//! The connection is plain TCP and carries only IDs. A client that connects to the port can cause questions, and
//! nothing more.

mod confirm;
mod dialer;
mod ends;
mod forks;
mod frame;
mod lines;
mod listener;
mod open;
mod presence;
mod probe;
mod stream;

use std::{
    fmt::Debug,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use tokio::{
    net::{TcpListener, lookup_host},
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

pub use self::{
    confirm::Verdict,
    open::{Absence, absence, open},
};
use self::{
    ends::Ends,
    forks::ClosedInChildren,
    frame::{Frame, Kind},
    lines::Lines,
    presence::Presence,
};
use crate::{
    discovery::is_own_address,
    protocol::{identity::NodeId, records::Neighbor},
};

/// A lifeline that ended without a goodbye.
#[derive(Clone, Debug)]
pub struct Suspicion {
    /// The random name of the world that it belonged to.
    pub world: u64,
    /// The other node.
    pub neighbor: Neighbor,
    /// The address from which that node had greeted.
    pub address: SocketAddr,
    /// What was seen, in words.
    pub sign: String,
    /// When it was seen.
    pub at: Instant,
}

/// The lifelines of one node. A simulation has others than [`TcpLifelines`].
#[async_trait]
pub trait Lifelines: Debug + Send {
    /// The port that other members connect to.
    fn port(&self) -> u16;

    /// This node is in a world, under this ID. From now on it responds to the nodes that watch it there.
    fn enter(&mut self, own: NodeId, world: u64);

    /// Watches these members of the world that was entered last. The lifelines of the previous world that lead to other
    /// members are closed when those of this world are open.
    fn watch(&mut self, neighbors: Vec<Neighbor>);

    /// The next lifeline that ends without a goodbye. Cancel-safe.
    async fn suspicion(&mut self) -> Suspicion;

    /// Asks nodes whether they are alive.
    fn questions(&self) -> Arc<dyn Questions>;

    /// Says goodbye on all lifelines, so that the end of this process is not mistaken for its death.
    async fn say_goodbye(self: Box<Self>);
}

/// Asks nodes whether they are alive.
#[async_trait]
pub trait Questions: Debug + Send + Sync {
    /// Asks the node of a lifeline that ended, at the address that it had.
    async fn confirm(&self, suspicion: &Suspicion, own: NodeId) -> Verdict;

    /// The address at which this node greets. `None` if it does not. The world is that of the asking node.
    async fn greet(&self, neighbor: &Neighbor, own: NodeId, world: u64) -> Option<SocketAddr>;

    /// Whether lifelines with other nodes than this one have ended at about the same time.
    fn others_ended(&self, accused: NodeId) -> bool;

    /// Whether a service, `host:port`, refuses connections, and is on the machine of its node: at the address of that node,
    /// or both are on this machine. Otherwise something in between may refuse them.
    async fn is_refused(&self, service: &str, address: &str) -> bool;
}

/// Asks over TCP.
#[derive(Debug)]
struct TcpQuestions {
    ends: Arc<Ends>,
}

#[async_trait]
impl Questions for TcpQuestions {
    async fn confirm(&self, suspicion: &Suspicion, own: NodeId) -> Verdict {
        let Suspicion { world, neighbor, address, .. } = suspicion;
        probe::confirm(*address, Frame { kind: Kind::Probe, world: *world, from: own, to: neighbor.id }).await
    }

    async fn greet(&self, neighbor: &Neighbor, own: NodeId, world: u64) -> Option<SocketAddr> {
        let address = lookup_host((neighbor.address.as_str(), neighbor.port)).await.ok()?.next()?;
        let question = Frame { kind: Kind::Probe, world, from: own, to: neighbor.id };
        (probe::confirm(address, question).await == Verdict::Alive).then_some(address)
    }

    fn others_ended(&self, accused: NodeId) -> bool {
        self.ends.has_others(accused)
    }

    async fn is_refused(&self, service: &str, address: &str) -> bool {
        let (Ok(service), Ok(own)) = (lookup_host(service).await, lookup_host((address, 0)).await) else {
            return false;
        };
        let own: Vec<IpAddr> = own.map(|address| address.ip()).collect();
        // A machine may have several addresses, and its name may be a loopback address on itself.
        let node_is_here = own.iter().any(|ip| is_own_address(*ip));
        let serves = |service: &SocketAddr| {
            own.contains(&service.ip()) || (node_is_here && is_own_address(service.ip()))
        };
        let Some(service) = service.into_iter().find(serves) else {
            return false;
        };
        probe::is_refused_twice(service).await
    }
}

/// Lifelines over TCP. Dropping them closes them without a goodbye, as the death of the process does.
#[derive(Debug)]
pub struct TcpLifelines {
    port: u16,
    presence: watch::Sender<Presence>,
    ends: Arc<Ends>,
    suspicions: mpsc::UnboundedReceiver<Suspicion>,
    lines: Lines,
    _listener: JoinSet<()>,
}

/// Waits until the value is as wanted. Never returns if its sender is gone, because then the owner was dropped, and
/// this task with it.
async fn until<T>(value: &mut watch::Receiver<T>, is_wanted: impl FnMut(&T) -> bool) {
    if value.wait_for(is_wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl TcpLifelines {
    /// Listens on this port of all addresses. 0 lets the kernel choose. Must be called in a runtime.
    ///
    /// # Errors
    /// If the port is in use, or not permitted.
    pub fn listen(port: u16) -> io::Result<Self> {
        Self::on(listener::bind(port)?)
    }

    /// Listens on this socket. Must be called in a runtime.
    fn on(listener: std::net::TcpListener) -> io::Result<Self> {
        let port = listener.local_addr()?.port();
        let listener = ClosedInChildren::new(TcpListener::from_std(listener)?);
        let (presence, seen) = watch::channel(Presence::default());
        let ends = Arc::new(Ends::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(listener::accept(listener, seen, Arc::clone(&ends)));
        let (sender, suspicions) = mpsc::unbounded_channel();
        let lines = Lines::new(Arc::clone(&ends), sender);
        Ok(Self { port, presence, ends, suspicions, lines, _listener: accepting })
    }

    /// Waits until the lifelines of the present world are open on both sides.
    pub async fn opened(&self) {
        self.lines.opened().await;
    }
}

#[async_trait]
impl Lifelines for TcpLifelines {
    fn port(&self) -> u16 {
        self.port
    }

    fn enter(&mut self, own: NodeId, world: u64) {
        self.presence.send_modify(|presence| presence.enter(own, world));
    }

    fn watch(&mut self, neighbors: Vec<Neighbor>) {
        let present = self.presence.borrow().present();
        if let Some((own, world)) = present {
            self.lines.watch(own, world, neighbors);
        }
    }

    async fn suspicion(&mut self) -> Suspicion {
        match self.suspicions.recv().await {
            Some(suspicion) => suspicion,
            None => std::future::pending().await, // impossible: `lines` holds a sender
        }
    }

    fn questions(&self) -> Arc<dyn Questions> {
        Arc::new(TcpQuestions { ends: Arc::clone(&self.ends) })
    }

    async fn say_goodbye(self: Box<Self>) {
        self.presence.send_modify(|presence| presence.has_left = true);
        self.lines.say_goodbye().await;
    }
}
