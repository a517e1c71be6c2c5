//! Schedules in which a node hosts the service. When no node hosts it, the next node that starts does.

use std::sync::Arc;

use lattice_rdzv::{backend::Backend, hosting::Host, node::Place, server::ServerOptions};
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::{
    cluster::{Cluster, Clustered, Way},
    nodes::{TTL, place},
    schedule::{Ground, Schedule, Tally, Weather, keys},
};

/// The network, and the node whose machine hosts the service.
pub(crate) struct Hosted {
    cluster: Cluster,
    host: String,
}

impl Clustered for Hosted {
    fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

impl Ground for Hosted {
    type Link = Way;

    async fn prepare(random: &mut StdRng, weather: Weather) -> Self {
        Self { cluster: Cluster::prepare(random, weather).await.unserved(), host: String::new() }
    }

    fn link(&mut self, name: &str, seed: u64) -> Way {
        self.cluster.link(name, seed)
    }

    fn backend(link: &Way) -> Arc<dyn Backend> {
        Cluster::backend(link)
    }

    async fn place(&mut self, name: &str, link: &Way) -> Place {
        if self.is_served() {
            return place(name);
        }
        let Cluster { network, .. } = &self.cluster;
        network.light(true);
        let contents = Some(self.cluster.empty());
        let options = ServerOptions { contents, ..ServerOptions::default() };
        let host =
            Host::on(self.cluster.network.listen(), "http://service:2379".to_owned(), &keys(), options)
                .unwrap();
        let host = host.confirm(link.backend.as_ref(), 0, Instant::now() + TTL).await.unwrap();
        assert!(host.is_some(), "{name} reaches itself");
        name.clone_into(&mut self.host);
        Place { host, ..place(name) }
    }

    fn is_hosted_by(&self, Way { machine, .. }: &Way) -> bool {
        *machine == self.host
    }

    fn is_served(&self) -> bool {
        self.cluster.network.is_served()
    }

    fn observer(&self) -> Arc<dyn Backend> {
        self.cluster.observer()
    }

    fn cut(&mut self, link: &Way, manner: u64) -> &'static str {
        if self.is_hosted_by(link) {
            return "hosts the service, which it always reaches";
        }
        self.cluster.cut(link, manner)
    }

    fn reconnect(&mut self, link: &Way) {
        self.cluster.reconnect(link);
    }

    fn bury(&mut self, link: &Way) {
        if !self.is_hosted_by(link) {
            return self.cluster.bury(link);
        }
        if self.cluster.below(2) == 0 {
            self.cluster.network.light(false);
        }
    }

    async fn clear(&mut self, links: &[&Way]) {
        self.cluster.clear(links).await;
    }

    async fn befall(schedule: &mut Schedule<Self>, kind: u64) {
        match kind {
            0 | 1 => schedule.trouble_a_way().await,
            2 | 4 => schedule.pause_service().await,
            3 => schedule.pause_everything().await,
            _ => schedule.start().await,
        }
    }

    fn account(&self, tally: &mut Tally) -> u64 {
        self.cluster.account(tally)
    }
}
