//! The lifelines from this node to the members that it watches.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    Suspicion,
    dialer::{Charge, Dialer},
    ends::Ends,
};
use crate::protocol::{identity::NodeId, records::Neighbor};

/// How long lifelines that only the previous world had stay open while those of the present world cannot be opened.
const OVERLAP_LIMIT: Duration = Duration::from_secs(30);

/// How long a goodbye may take.
const GOODBYE_LIMIT: Duration = Duration::from_millis(200);

/// The lifeline to one member.
#[derive(Debug)]
struct Line {
    neighbor: Neighbor,
    wanted: watch::Sender<Option<Charge>>,
    settled: watch::Receiver<Option<u64>>,
}

impl Line {
    /// Whether it leads to this member, whatever its rank is.
    fn leads_to(&self, member: &Neighbor) -> bool {
        let Neighbor { id, address, port, rank: _ } = &self.neighbor;
        (id, address, port) == (&member.id, &member.address, &member.port)
    }
}

/// All lifelines of a node. Dropping them closes them without a goodbye, as the death of the process does.
#[derive(Debug)]
pub(super) struct Lines {
    ends: Arc<Ends>,
    suspicions: mpsc::UnboundedSender<Suspicion>,
    world: Option<u64>,
    present: Vec<Line>,
    /// Those that only earlier worlds had.
    previous: Vec<Line>,
    tasks: JoinSet<()>,
}

impl Lines {
    pub(super) fn new(ends: Arc<Ends>, suspicions: mpsc::UnboundedSender<Suspicion>) -> Self {
        Self {
            ends,
            suspicions,
            world: None,
            present: Vec::new(),
            previous: Vec::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Watches these members in a world. A lifeline that leads to one of them already is used again. The others end when
    /// those of this world are open.
    pub(super) fn watch(&mut self, own: NodeId, world: u64, neighbors: Vec<Neighbor>) {
        if self.world.replace(world) == Some(world) {
            return;
        }
        while self.tasks.try_join_next().is_some() {}
        let mut before = std::mem::take(&mut self.present);
        for neighbor in neighbors {
            let line = before.iter().position(|line| line.leads_to(&neighbor));
            let line = line.map(|at| before.swap_remove(at));
            let charge = Charge { own, world, neighbor };
            let line = match line {
                Some(line) => {
                    line.wanted.send_replace(Some(charge));
                    line
                }
                None => self.open(charge),
            };
            self.present.push(line);
        }
        self.previous.retain(|line| !line.wanted.is_closed());
        self.previous.extend(before);
        if !self.previous.is_empty() {
            let opened = self.opened();
            let previous: Vec<_> = self.previous.iter().map(|line| line.wanted.clone()).collect();
            self.tasks.spawn(async move {
                let _ = timeout(OVERLAP_LIMIT, opened).await;
                for wanted in previous {
                    wanted.send_replace(None);
                }
            });
        }
    }

    fn open(&mut self, charge: Charge) -> Line {
        let neighbor = charge.neighbor.clone();
        let (wanted, receiver) = watch::channel(Some(charge));
        let (settled, is_settled) = watch::channel(None);
        let (suspicions, ends) = (self.suspicions.clone(), Arc::clone(&self.ends));
        self.tasks.spawn(Dialer { wanted: receiver, settled, suspicions, ends }.run());
        Line { neighbor, wanted, settled: is_settled }
    }

    /// Waits until each lifeline of the present world is open, or will not be opened because its member has left.
    pub(super) fn opened(&self) -> impl Future<Output = ()> + use<> {
        let world = self.world;
        let lines: Vec<_> = self.present.iter().map(|line| line.settled.clone()).collect();
        async move {
            for mut settled in lines {
                // An error means that its task has ended.
                let _ = settled.wait_for(|settled| *settled == world).await;
            }
        }
    }

    /// Closes all of them with a goodbye, within a limit.
    pub(super) async fn say_goodbye(mut self) {
        for line in self.present.iter().chain(&self.previous) {
            line.wanted.send_replace(None);
        }
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(GOODBYE_LIMIT, ended).await;
    }
}
