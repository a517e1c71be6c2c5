//! Schedules on a simulated network: the real client and the real server over [`Network`].

use std::{sync::Arc, time::Duration};

use etcd_client::{Client, KvClient};
use hyper_util::rt::TokioIo;
use lattice_rdzv::{
    backend::{
        Backend,
        etcd::{Channels, EtcdBackend, EtcdOptions},
        limits::Limits,
    },
    protocol::returning::CLOSED_LIFETIME,
    run::Entropy,
    server::{Bounds, Contents, Server, ServerOptions},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{advance, sleep};
use tonic::{codegen::http::Uri, transport::Endpoint};
use tower::service_fn;

use super::{
    nodes::TTL,
    schedule::{Ground, Schedule, Tally, Weather},
    wires::Network,
};

/// A machine without faults, from which the run is observed.
const OBSERVER: &str = "observer";
const SERVICE: &str = "http://service:2379";
/// One loss of data in this number comes with an outage that is longer than a closing is kept.
const LONG_OUTAGES: u64 = 20;
const OTHERS_WRITES: usize = 500;

/// The network and the service.
pub(crate) struct Cluster {
    pub(super) network: Network,
    random: StdRng,
    entropy: Entropy,
    pub(super) contents: Contents,
    server: Option<Server>,
    noise: bool,
}

/// The machine of a node, and its client.
pub(crate) struct Way {
    pub(super) machine: String,
    pub(super) backend: Arc<EtcdBackend>,
}

/// Makes the channels for a client's calls from this machine: tonic's own channels, whose connections are wires.
fn channels(network: &Network, machine: &str) -> Channels {
    let (network, machine) = (network.clone(), machine.to_owned());
    Arc::new(move |endpoint| {
        let (network, machine) = (network.clone(), machine.clone());
        endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
            let (network, machine) = (network.clone(), machine.clone());
            async move { network.dial(&machine).await.map(TokioIo::new) }
        }))
    })
}

impl Cluster {
    fn backend_of(&self, machine: &str, seed: u64) -> EtcdBackend {
        let limits = Limits::for_ttl(TTL);
        let options = EtcdOptions { limits, seed, ..EtcdOptions::new([SERVICE]) };
        EtcdBackend::connect_over(options, Some(channels(&self.network, machine))).unwrap()
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    /// Leaves the port without a server.
    pub(super) fn unserved(mut self) -> Self {
        self.server = None;
        self.network.close_door();
        self
    }

    /// Ends the process of the server, together with its machine or in an orderly way.
    async fn end(&mut self) -> &'static str {
        let Some(server) = self.server.take() else { return "down" };
        let manner = self.below(3);
        if manner == 0 {
            server.stop().await;
        } else if manner == 2 {
            self.network.light(false);
            drop(server);
        } else {
            drop(server);
        }
        self.network.close_door();
        // By then, what the process had open is closed.
        sleep(Duration::from_millis(1)).await;
        ["stopped", "killed", "gone with its machine"][usize::try_from(manner).unwrap()]
    }

    /// Starts the server again.
    fn begin(&mut self) {
        self.network.light(true);
        let options = ServerOptions { contents: Some(self.contents.clone()), ..ServerOptions::default() };
        self.server = Some(Server::start_on(self.network.listen(), options).unwrap());
    }

    /// The data of a new process of the service.
    pub(super) fn empty(&mut self) -> Contents {
        self.contents = Contents::new(Bounds::default(), &self.entropy);
        self.contents.clone()
    }

    async fn keys(&self) -> KvClient {
        let channel = channels(&self.network, OBSERVER)(&Endpoint::from_static(SERVICE));
        let client = Client::from_channel(etcd_client::Channel::Tonic(channel), None).await;
        client.unwrap().kv_client()
    }

    /// Another run writes enough that no revision distinguishes the new data from the data that was lost.
    async fn others_write(&self) {
        let mut keys = self.keys().await;
        for _ in 0..OTHERS_WRITES {
            keys.put("other", "", None).await.unwrap();
        }
    }

    pub(super) async fn compact(&self) {
        let mut keys = self.keys().await;
        if let Ok(found) = keys.get("none", None).await {
            let revision = found.header().map_or(1, etcd_client::ResponseHeader::revision);
            let _ = keys.compact(revision, None).await;
        }
    }
}

impl Ground for Cluster {
    type Link = Way;

    async fn prepare(random: &mut StdRng, weather: Weather) -> Self {
        let (network, entropy) = (Network::new(random.next_u64()), Entropy::seeded(random.next_u64()));
        let contents = Contents::new(Bounds::default(), &entropy);
        let noise = weather == Weather::Stormy && random.next_u64().is_multiple_of(2);
        let random = StdRng::seed_from_u64(random.next_u64());
        let mut cluster = Self { network, random, entropy, contents, server: None, noise };
        cluster.begin();
        cluster
    }

    fn link(&mut self, name: &str, seed: u64) -> Way {
        if self.noise {
            self.network.lose(name, Some(100));
        }
        Way { machine: name.to_owned(), backend: Arc::new(self.backend_of(name, seed)) }
    }

    fn backend(link: &Way) -> Arc<dyn Backend> {
        Arc::clone(&link.backend) as _
    }

    fn observer(&self) -> Arc<dyn Backend> {
        Arc::new(self.backend_of(OBSERVER, 0))
    }

    fn cut(&mut self, Way { machine, .. }: &Way, manner: u64) -> &'static str {
        match manner % 4 {
            0 => {
                self.network.cut(machine, true, true);
                "cut off"
            }
            1 => {
                self.network.cut(machine, true, false);
                "cannot send to the service"
            }
            2 => {
                self.network.cut(machine, false, true);
                "cannot receive from the service"
            }
            _ => {
                self.network.cut(machine, true, true);
                self.network.forget(machine);
                "cut off by a firewall that forgets its connections"
            }
        }
    }

    fn reconnect(&mut self, Way { machine, .. }: &Way) {
        self.network.cut(machine, false, false);
    }

    fn bury(&mut self, Way { machine, .. }: &Way) {
        // In half of the deaths, the machine dies, which closes no connection.
        if self.below(2) == 0 {
            self.network.cut(machine, true, true);
        }
    }

    async fn clear(&mut self, links: &[&Way]) {
        for Way { machine, .. } in links {
            self.network.cut(machine, false, false);
            self.network.slow(machine, Duration::ZERO);
            self.network.lose(machine, None);
        }
    }

    async fn befall(schedule: &mut Schedule<Self>, kind: u64) {
        match kind {
            0 => schedule.trouble_a_way().await,
            1 => {
                let how = schedule.ground.end().await;
                schedule.wiped(&format!("service: {how}, and what it held with it"));
                schedule.ground.empty();
                // Sometimes for longer than a closing is kept, and others use the service first.
                let long = schedule.below(LONG_OUTAGES) == 0;
                let time = schedule.seconds(3.0) + if long { CLOSED_LIFETIME } else { Duration::ZERO };
                sleep(time).await;
                schedule.ground.begin();
                if long {
                    schedule.happened("long outages");
                    schedule.book.write("service: is back, and others were faster");
                    schedule.ground.others_write().await;
                }
                schedule.settled_weather().await;
            }
            2 => schedule.pause_service().await,
            3 => schedule.pause_everything().await,
            4 => {
                let how = schedule.ground.end().await;
                let time = schedule.seconds(15.0);
                schedule.book.write(format!("service: {how} for {:.1} s", time.as_secs_f64()));
                schedule.happened("restarts");
                sleep(time).await;
                schedule.ground.begin();
                schedule.settled_weather().await;
            }
            _ => {
                schedule.book.write("service: compacted");
                schedule.ground.compact().await;
            }
        }
    }

    fn account(&self, tally: &mut Tally) -> u64 {
        let (segments, connections) = self.network.traffic();
        tally.insert("segments", segments);
        tally.insert("connections", connections);
        self.network.fingerprint()
    }
}

/// Faults of the parts of a cluster, whichever machine hosts the service.
pub(crate) trait Clustered: Ground<Link = Way> {
    fn cluster(&self) -> &Cluster;
}

impl Clustered for Cluster {
    fn cluster(&self) -> &Cluster {
        self
    }
}

impl<G: Clustered> Schedule<G> {
    /// Pauses the process of the service, and cuts off its machine.
    pub(super) async fn pause_service(&mut self) {
        let time = self.seconds(15.0);
        self.book.write(format!("service: paused for {:.1} s", time.as_secs_f64()));
        self.happened("pauses of the service");
        let Cluster { network, contents, .. } = self.ground.cluster();
        network.light(false);
        contents.pause(true);
        sleep(time).await;
        self.check_uncertain(time);
        let Cluster { network, contents, .. } = self.ground.cluster();
        contents.pause(false);
        network.light(true);
        self.settled_weather().await;
    }

    /// Pauses all processes.
    pub(super) async fn pause_everything(&mut self) {
        let time = self.seconds(15.0);
        self.book.write(format!("everything: paused for {:.1} s", time.as_secs_f64()));
        self.happened("pauses of everything");
        advance(time).await;
        self.settled_weather().await;
    }

    /// Disturbs the connection between one node and the service.
    pub(super) async fn trouble_a_way(&mut self) {
        let Some(index) = self.one().filter(|index| !self.ground.is_hosted_by(&self.agents[*index].link))
        else {
            return;
        };
        let (name, machine) = (self.agents[index].name.clone(), self.agents[index].link.machine.clone());
        let network = self.ground.cluster().network.clone();
        match self.below(4) {
            0 => {
                let slow = self.seconds(0.6);
                self.happened("slow ways");
                self.book.write(format!("{name}: its way is {} ms longer", slow.as_millis()));
                network.slow(&machine, slow);
            }
            1 => {
                self.happened("lossy ways");
                self.book.write(format!("{name}: every eighth segment is lost"));
                network.lose(&machine, Some(8));
            }
            2 => {
                self.happened("half-open connections");
                self.book.write(format!("{name}: a firewall forgets its connections"));
                network.forget(&machine);
            }
            _ => {
                let time = self.seconds(10.0);
                self.happened("held packets");
                self.book.write(format!("{name}: its packets are held for {:.1} s", time.as_secs_f64()));
                let cut = self.agents[index].cut;
                network.cut(&machine, true, true);
                sleep(time).await;
                if !cut {
                    network.cut(&machine, false, false);
                }
            }
        }
    }
}
