//! Lifelines of a simulation: which processes are alive, which member watches which, and suspicions that are wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use lattice_rdzv::{
    lifeline::{Lifelines, Questions, Suspicion, Verdict},
    protocol::{identity::NodeId, records::Neighbor},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

const PORT: u16 = 1;
/// The sign of a suspicion that a firewall causes: it resets the connections of a live node, and refuses new ones.
const FIREWALL: &str = "reset by a firewall";

/// The process of a node.
struct Process {
    name: String,
    lives: bool,
    /// The members that watch it, each in a world.
    watchers: BTreeMap<NodeId, (u64, mpsc::UnboundedSender<Suspicion>)>,
}

struct State {
    processes: BTreeMap<NodeId, Process>,
    random: StdRng,
    found_dead: usize,
}

/// All lifelines of a schedule.
#[derive(Clone)]
pub(crate) struct Sky(Arc<Mutex<State>>);

impl std::fmt::Debug for Sky {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Sky")
    }
}

fn suspicion(world: u64, id: NodeId, sign: &str) -> Suspicion {
    let neighbor = Neighbor { id, rank: 0, address: String::new(), port: PORT };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    Suspicion { world, neighbor, address, sign: sign.to_owned(), at: Instant::now() }
}

impl Sky {
    pub(crate) fn new(seed: u64) -> Self {
        let (processes, random) = (BTreeMap::new(), StdRng::seed_from_u64(seed));
        Self(Arc::new(Mutex::new(State { processes, random, found_dead: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The lifelines of a node that starts.
    pub(crate) fn lines(&self, name: &str) -> Box<dyn Lifelines> {
        let (sender, suspicions) = mpsc::unbounded_channel();
        Box::new(Lines {
            sky: self.clone(),
            name: name.to_owned(),
            own: Vec::new(),
            world: 0,
            sender,
            suspicions,
        })
    }

    /// How many deaths observers have confirmed.
    pub(crate) fn found_dead(&self) -> usize {
        self.state().found_dead
    }

    /// Ends a connection to a live node, as if something between the nodes had failed. Returns the name of that node.
    /// If `refuses`, its address refuses connections from then on, as if the node were dead.
    pub(crate) fn break_one(&self, refuses: bool) -> Option<String> {
        let mut state = self.state();
        let chance = state.random.next_u64();
        let watched = |(_, process): &(&NodeId, &Process)| process.lives && !process.watchers.is_empty();
        let live: Vec<NodeId> = state.processes.iter().filter(watched).map(|(id, _)| *id).collect();
        let id = *live.get(usize::try_from(chance % (live.len() as u64).max(1)).unwrap())?;
        let process = &state.processes[&id];
        for (world, watcher) in process.watchers.values() {
            let _ = watcher.send(suspicion(*world, id, if refuses { FIREWALL } else { "connection reset" }));
        }
        Some(process.name.clone())
    }
}

/// The lifelines of one node.
#[derive(Debug)]
struct Lines {
    sky: Sky,
    name: String,
    /// The IDs that it has had. The last one is the present one.
    own: Vec<NodeId>,
    world: u64,
    sender: mpsc::UnboundedSender<Suspicion>,
    suspicions: mpsc::UnboundedReceiver<Suspicion>,
}

#[async_trait]
impl Lifelines for Lines {
    fn port(&self) -> u16 {
        PORT
    }

    fn enter(&mut self, own: NodeId, world: u64) {
        self.world = world;
        if self.own.last() != Some(&own) {
            self.own.push(own);
            let process = Process { name: self.name.clone(), lives: true, watchers: BTreeMap::new() };
            self.sky.state().processes.insert(own, process);
        }
    }

    fn watch(&mut self, neighbors: Vec<Neighbor>) {
        let Some(own) = self.own.last() else { return };
        let neighbors: BTreeSet<NodeId> = neighbors.iter().map(|neighbor| neighbor.id).collect();
        let mut state = self.sky.state();
        for (id, process) in &mut state.processes {
            for earlier in &self.own {
                process.watchers.remove(earlier);
            }
            if neighbors.contains(id) {
                process.watchers.insert(*own, (self.world, self.sender.clone()));
            }
        }
    }

    async fn suspicion(&mut self) -> Suspicion {
        match self.suspicions.recv().await {
            Some(suspicion) => suspicion,
            None => std::future::pending().await,
        }
    }

    fn questions(&self) -> Arc<dyn Questions> {
        Arc::new(self.sky.clone())
    }

    async fn say_goodbye(mut self: Box<Self>) {
        let mut state = self.sky.state();
        for id in &self.own {
            if let Some(process) = state.processes.get_mut(id) {
                process.watchers.clear();
            }
        }
    }
}

impl Drop for Lines {
    /// The process dies, unless it has said goodbye.
    fn drop(&mut self) {
        let mut state = self.sky.state();
        for id in &self.own {
            if let Some(process) = state.processes.get_mut(id) {
                process.lives = false;
                for (world, watcher) in process.watchers.values() {
                    let _ = watcher.send(suspicion(*world, *id, "connection reset"));
                }
            }
        }
    }
}

#[async_trait]
impl Questions for Sky {
    async fn confirm(&self, suspicion: &Suspicion, _: NodeId) -> Verdict {
        let chance = self.state().random.next_u64();
        sleep(Duration::from_millis(chance % 60)).await;
        let mut state = self.state();
        let lives = state.processes.get(&suspicion.neighbor.id).is_some_and(|process| process.lives);
        let verdict = match chance / 60 % 8 {
            0 => Verdict::Unknown,
            _ if lives && suspicion.sign != FIREWALL => Verdict::Alive,
            _ => Verdict::Dead,
        };
        state.found_dead += usize::from(verdict == Verdict::Dead);
        verdict
    }

    async fn greet(&self, neighbor: &Neighbor, _: NodeId, _: u64) -> Option<SocketAddr> {
        let state = self.state();
        let lives = state.processes.get(&neighbor.id).is_some_and(|process| process.lives);
        lives.then_some(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))
    }

    fn others_ended(&self, _: NodeId) -> bool {
        self.state().random.next_u64().is_multiple_of(6)
    }

    async fn is_refused(&self, _: &str, _: &str) -> bool {
        false
    }
}
