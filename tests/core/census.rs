//! What a run costs the service for each of its nodes, in numbers of calls, events, and bytes, while the nodes wait,
//! form a round, form another one after a node has left, close the run, and leave. The test fails if a number for each
//! node grows with the number of nodes. Nothing here is timed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use lattice_rdzv::{
    backend::{
        Backend,
        etcd::{EtcdBackend, EtcdOptions},
        limits::Limits,
        memory::MemoryService,
    },
    node::Node,
    protocol::records::Outcome,
    run::Entropy,
};
use tokio::time::sleep;

use crate::support::{
    census::{Counted, Counts},
    etcd::Etcd,
    nodes::{place, settings},
};

/// A TTL that is long enough that a busy machine delays no renewal, and no attempt of a call is given up.
const TTL: &str = "60";
/// A shard of the plan has at most 2 KiB, and each node reads one in each round.
const SHARD_BYTES: f64 = 2.0 * 1024.0;

/// The costs of a part of a run: the average of all nodes, including the coordinator's own calls, and the cost of the
/// most expensive node, except coordinators.
type Costs = BTreeMap<(&'static str, &'static str), (f64, f64)>;

struct Run {
    links: Vec<Counted>,
    seen: Vec<Counts>,
    costs: Costs,
}

impl Run {
    /// Ends a part of the run.
    fn account(&mut self, part: &'static str) {
        let now: Vec<Counts> = self.links.iter().map(|link| link.ledger().counts.clone()).collect();
        for what in [
            "proposals",
            "reads",
            "listings",
            "watches",
            "grants",
            "revocations",
            "renewals",
            "events",
            "bytes",
        ] {
            let count = |counts: &Counts| counts.get(what).copied().unwrap_or_default();
            let mut most = 0;
            let mut sum = 0;
            for ((link, now), before) in self.links.iter().zip(&now).zip(&self.seen) {
                let cost = count(now) - count(before);
                sum += cost;
                if !link.ledger().decided {
                    most = most.max(cost);
                }
            }
            let number = |count: usize| f64::from(u32::try_from(count).unwrap());
            let average = number(sum) / number(self.links.len());
            self.costs.insert((part, what), (average, number(most)));
        }
        self.seen = now;
    }
}

/// A run of `size` nodes from the first join to its end.
async fn census(size: usize, connect: impl Fn(usize) -> Arc<dyn Backend>) -> Costs {
    let links: Vec<Counted> = (0..size).map(|number| Counted::new(connect(number))).collect();
    let mut run = Run { seen: vec![Counts::new(); size], costs: Costs::new(), links };
    let sizes = format!("{}:{size}", size - 1);
    let join = async |number: usize| {
        let name = format!("n{number:05}");
        let times = [("lease_ttl", TTL), ("last_call_timeout", "600"), ("settle_time", "0.1")];
        let wanted = settings(&name, &sizes, &times);
        let backend = Arc::new(run.links[number].clone());
        let entropy = Entropy::seeded(u64::try_from(number).unwrap());
        Node::join(backend, wanted, entropy, place(&name)).await.expect("joined")
    };
    // One node is missing for long enough that all others log what they wait for.
    let mut nodes = join_all((0..size - 1).map(&join)).await;
    let early = join_all(nodes.iter().map(|node| node.next_world(None, None)));
    let late = async {
        sleep(Duration::from_secs(7)).await;
        let node = join(size - 1).await;
        node.next_world(None, None).await.expect("a world");
        node
    };
    let (worlds, late) = tokio::join!(early, late);
    assert!(worlds.iter().all(|world| world.as_ref().is_ok_and(|world| world.place.size as usize == size)));
    nodes.push(late);
    run.account("wait and form");

    let leaver = run.links.iter().position(|link| !link.ledger().decided).expect("one of many decides");
    assert!(nodes.remove(leaver).leave(None).await);
    let again = nodes.iter().map(async |node| {
        node.wait_change(None).await.expect("a change");
        node.next_world(None, None).await.expect("a world")
    });
    assert!(join_all(again).await.iter().all(|world| world.place.size as usize == size - 1));
    run.account("form again");

    let closed = join_all(nodes.iter().map(|node| node.close(Outcome::Succeeded, "done", None))).await;
    assert!(closed.into_iter().all(|closed| closed));
    let left = join_all(nodes.iter().map(|node| node.leave(None))).await;
    assert!(left.into_iter().all(|left| left));
    run.account("close and leave");
    run.costs
}

/// Compares the costs of a small run and a large one. Rounding and chance may add a quarter and one call.
fn compare(service: &str, (small, cheap): (usize, &Costs), (large, dear): (usize, &Costs)) {
    let mut grown = Vec::new();
    println!("{service}, for each node of {small} and of {large}: on the average, and at most");
    for ((part, what), (average, most)) in dear {
        let (before, most_before) = cheap[&(*part, *what)];
        println!("  {part:16} {what:12} {before:9.2} {average:9.2}   {most_before:7} {most:7}");
        // A lease is renewed after a time, regardless of the number of calls meanwhile.
        if *what == "renewals" {
            continue;
        }
        // Up to some 25 nodes, all are in one shard, which grows with them.
        let slack = if *what == "bytes" { SHARD_BYTES } else { 1.0 };
        if *average > before * 1.25 + slack || *most > most_before * 1.25 + slack {
            grown.push(format!(
                "{part}: {what} from {before:.2} to {average:.2}, at most {most_before} to {most}"
            ));
        }
    }
    let listings = dear.iter().filter(|((_, what), (_, most))| *what == "listings" && *most > 0.0);
    assert_eq!(listings.count(), 0, "{service}: only a coordinator lists the keys of other nodes");
    assert!(
        grown.is_empty(),
        "{service}: what each node costs grows with their number, {small} to {large}: {grown:#?}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_node_of_a_large_run_costs_the_memory_service_more_than_one_of_a_small_run() {
    let mut costs = Vec::new();
    for size in [50, 200, 1_000] {
        let service = MemoryService::new();
        let link = |_| Arc::new(service.connect_with(Duration::from_secs(15))) as Arc<dyn Backend>;
        costs.push((size, census(size, link).await));
        sleep(Duration::from_millis(100)).await;
        assert_eq!(
            service.backup().leases().count(),
            2,
            "{size} nodes: the run's lease and the closing's remain"
        );
    }
    for pair in costs.windows(2) {
        compare("memory service", (pair[0].0, &pair[0].1), (pair[1].0, &pair[1].1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_of_a_large_run_costs_etcd_more_than_one_of_a_small_run() {
    let mut costs = Vec::new();
    for size in [50, 200] {
        let Some(etcd) = Etcd::start().await else { return };
        let url = etcd.endpoint().to_owned();
        let link = |number: usize| {
            let limits = Limits::for_ttl(Duration::from_secs(60));
            let seed = u64::try_from(number).unwrap();
            let options = EtcdOptions { limits, seed, ..EtcdOptions::new([url.clone()]) };
            Arc::new(EtcdBackend::connect(options).unwrap()) as Arc<dyn Backend>
        };
        costs.push((size, census(size, link).await));
    }
    compare("etcd", (costs[0].0, &costs[0].1), (costs[1].0, &costs[1].1));
}
