//! Many nodes without Python, all in this process, each with a separate connection, on an etcd and on the embedded server.
//! Each result stands beside its floor: the calls to the service without which it cannot be had, made by the bare client in
//! the same run. Prints; asserts nothing. `cargo bench --bench fleet -- NODES... [--kills N]`
//!
//! - *form*: all nodes start at once, until each has its world. Floor: each client connects, grants a lease, opens a watch,
//!   and writes a key. One further client gets an event for each of these keys, and then writes another key. Each client
//!   gets that event, and reads the key.
//! - *told*: a node dies, until the last other node knows. No node requests the next world before that, because the nodes share
//!   the cores of one machine. Floor: one write, and a second one by a client that watches the first, until the last client has
//!   the event of the second.
//! - *re-formed*: from another death until the last other node has its next world. Each requests it as soon as it knows.
//! - *re-formed from the first told*: the same from the moment when the first node knows. Above 2,000 nodes, a node leaves instead.
//!
//! Nodes and service share the cores of one machine.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a measurement that cannot be made ends, and it is for a person"
)]

#[path = "../tests/core/support/etcd.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod etcd;
mod machine;
mod nodes;
mod server_process;

use std::{sync::Arc, time::Duration};

use etcd::Etcd;
use etcd_client::{Client, LeaseGrantOptions, PutOptions, WatchOptions};
use lattice_rdzv::{
    node::Node,
    protocol::{
        keys::RunKeys,
        records::{CoordinatorRecord, Record as _},
    },
    settings::Settings,
};
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, sleep},
};

const NODES: [usize; 1] = [1000];
const KILLS: usize = 20;
/// With more nodes, their lifelines alone would need more open files than usual machines allow.
const MOST_WITH_LIFELINES: usize = 2000;
/// The sizes of a node's record and of a shard of a plan, in bytes.
const RECORD: usize = 200;
const SHARD: usize = 2048;
/// After this time, all lifelines of a world are open, and its coordinator has greeted all members.
const QUIET: Duration = Duration::from_secs(4);

fn main() {
    machine::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if server_process::is_server() {
        runtime.block_on(server_process::serve());
        return;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| text.parse::<usize>().ok();
    let kills = arguments.iter().position(|each| each == "--kills");
    let named = kills.and_then(|at| arguments.get(at + 1)).and_then(number).unwrap_or(KILLS);
    let counts = arguments.iter().enumerate().filter(|(at, _)| kills.is_none_or(|kills| *at != kills + 1));
    let mut counts: Vec<usize> = counts.filter_map(|(_, text)| number(text)).collect();
    if counts.is_empty() {
        counts = NODES.to_vec();
    }
    println!("{}", machine::describe());
    for count in counts {
        runtime.block_on(async {
            if let Some(etcd) = Etcd::start().await {
                measure("etcd", etcd.endpoint(), count, named).await;
            }
            let (_server, endpoint) = server_process::start().await;
            measure("embedded", &endpoint, count, named).await;
        });
    }
}

async fn measure(service: &str, endpoint: &str, count: usize, kills: usize) {
    let lifelines = count <= MOST_WITH_LIFELINES;
    println!("{service}, {count} nodes{}", if lifelines { "" } else { " without lifelines" });
    let floor = form_floor(endpoint, count).await;
    let (mut nodes, took) = form(endpoint, count, lifelines).await;
    line("form", took, floor);
    if !lifelines {
        let mut formed = Vec::new();
        for _ in 0..kills {
            let victim = victim(endpoint, &nodes).await;
            formed.push(lose(&mut nodes, &[victim], End::Leaves, Next::AtOnce).await.formed_from_first());
        }
        series("re-formed from the first told, after one node leaves", &mut formed, None);
        return;
    }
    let floor = told_floor(endpoint, count, kills).await;
    let (mut told, mut formed, mut from_first) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..kills {
        let one = victim(endpoint, &nodes).await;
        told.push(lose(&mut nodes, &[one], End::Dies, Next::AfterAll).await.told);
        let one = victim(endpoint, &nodes).await;
        let times = lose(&mut nodes, &[one], End::Dies, Next::AtOnce).await;
        formed.push(times.formed);
        from_first.push(times.formed_from_first());
    }
    series("told of the death of one node", &mut told, Some(floor));
    series("re-formed after it", &mut formed, None);
    series("re-formed from the first told", &mut from_first, None);
    let coordinator = coordinator(endpoint, &nodes).await;
    let times = lose(&mut nodes, &[coordinator], End::Dies, Next::AtOnce).await;
    println!(
        "  the coordinator dies: told after {}, re-formed after {}",
        text(times.told),
        text(times.formed)
    );
    let tenth: Vec<usize> = (0..nodes.len() / 10).collect();
    let times = lose(&mut nodes, &tenth, End::Dies, Next::AtOnce).await;
    println!(
        "  {} nodes die at once: told after {}, re-formed after {}",
        tenth.len(),
        text(times.told),
        text(times.formed)
    );
}

/// The position of a node that is not the coordinator.
async fn victim(endpoint: &str, nodes: &[Arc<Node>]) -> usize {
    if coordinator(endpoint, nodes).await + 1 == nodes.len() { 0 } else { nodes.len() - 1 }
}

fn text(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

fn line(what: &str, time: Duration, floor: Duration) {
    let ratio = time.as_secs_f64() / floor.as_secs_f64();
    println!("  {what}: {}, floor {}, ratio {ratio:.2}", text(time), text(floor));
}

fn series(what: &str, times: &mut [Duration], floor: Option<Duration>) {
    times.sort();
    let (p50, p99) = (times[times.len() / 2], times[(times.len() * 99).div_ceil(100) - 1]);
    let floor = floor.map_or_else(String::new, |floor| {
        format!(", floor {}, ratio {:.2}", text(floor), p50.as_secs_f64() / floor.as_secs_f64())
    });
    println!("  {what}: p50 {}, p99 {} of {}{floor}", text(p50), text(p99), times.len());
}

fn settings(endpoint: &str, count: usize, number: usize) -> Settings {
    nodes::settings([
        ("endpoint", endpoint),
        ("run_id", "fleet"),
        ("nnodes", &format!("1:{count}")),
        ("node_name", &format!("node-{number}")),
    ])
}

/// Starts all nodes. Returns them with the time until the last one had its world.
async fn form(endpoint: &str, count: usize, lifelines: bool) -> (Vec<Arc<Node>>, Duration) {
    let began = Instant::now();
    let all = (0..count).map(|number| settings(endpoint, count, number)).collect();
    (nodes::form(all, lifelines).await, began.elapsed())
}

/// The position of the coordinator.
async fn coordinator(endpoint: &str, nodes: &[Arc<Node>]) -> usize {
    let mut client = Client::connect([endpoint], None).await.unwrap();
    let key = RunKeys::new("default", "fleet").coordinator();
    loop {
        let answer = client.get(key.as_str(), None).await.unwrap();
        let record = answer.kvs().first().map(|item| CoordinatorRecord::decode(&key, item.value()).unwrap());
        let found = record.and_then(|record| nodes.iter().position(|node| node.id() == Some(record.node)));
        if let Some(found) = found {
            return found;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// When a node that knows of a death requests the next world.
#[derive(Clone, Copy)]
enum Next {
    /// When all know.
    AfterAll,
    AtOnce,
}

/// How nodes go.
#[derive(Clone, Copy)]
enum End {
    Dies,
    Leaves,
}

/// When the other nodes knew of a loss, and had their next world.
struct Times {
    told_first: Duration,
    told: Duration,
    formed: Duration,
}

impl Times {
    fn formed_from_first(&self) -> Duration {
        self.formed.saturating_sub(self.told_first)
    }
}

/// Ends these nodes at once.
async fn lose(nodes: &mut Vec<Arc<Node>>, victims: &[usize], end: End, next: Next) -> Times {
    sleep(QUIET).await;
    let (mut dead, mut rest) = (Vec::new(), Vec::new());
    for (number, node) in nodes.drain(..).enumerate() {
        if victims.contains(&number) { dead.push(node) } else { rest.push(node) }
    }
    let ready = Arc::new(Barrier::new(rest.len() + 1));
    let all_know = Arc::new(Barrier::new(rest.len()));
    let mut waiting = JoinSet::new();
    for node in &rest {
        let (node, ready, all_know) = (Arc::clone(node), Arc::clone(&ready), Arc::clone(&all_know));
        waiting.spawn(async move {
            ready.wait().await;
            node.wait_change(None).await;
            let told = Instant::now();
            if matches!(next, Next::AfterAll) {
                all_know.wait().await;
            }
            node.next_world(None, None).await.unwrap();
            (told, Instant::now())
        });
    }
    ready.wait().await;
    let began = Instant::now();
    if matches!(end, End::Leaves) {
        for node in &dead {
            node.leave(None).await;
        }
    }
    drop(dead);
    let times = waiting.join_all().await;
    *nodes = rest;
    let told = || times.iter().map(|(told, _)| *told - began);
    let formed = times.iter().map(|(_, formed)| *formed - began).max().unwrap();
    Times { told_first: told().min().unwrap(), told: told().max().unwrap(), formed }
}

/// Repeats a call while etcd refuses it, because too many calls are pending.
async fn patiently<T, F>(call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) if error.to_string().contains("too many requests") => {
                sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// All clients connect, grant a lease, open a watch, and write a key of the size of a record. One further client watches these
/// keys, as the coordinator does. When it has seen all of them, it writes a key of the size of a shard. Each client gets that
/// event, and reads the key.
async fn form_floor(endpoint: &str, count: usize) -> Duration {
    let began = Instant::now();
    let mut coordinator = Client::connect([endpoint], None).await.unwrap();
    let mut records = coordinator.watch("floor/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    records.message().await.unwrap().unwrap();
    let mut clients = JoinSet::new();
    for number in 0..count {
        let endpoint = endpoint.to_owned();
        clients.spawn(async move {
            let mut client = Client::connect([endpoint], None).await.unwrap();
            let lease = i64::try_from(number + 1).unwrap();
            patiently(|| {
                let mut client = client.clone();
                async move { client.lease_grant(600, Some(LeaseGrantOptions::new().with_id(lease))).await }
            })
            .await;
            let mut watch = client.watch("floor-round", None).await.unwrap();
            watch.message().await.unwrap().unwrap();
            patiently(|| {
                let (mut client, options) = (client.clone(), PutOptions::new().with_lease(lease));
                async move { client.put(format!("floor/{number}"), "x".repeat(RECORD), Some(options)).await }
            })
            .await;
            watch.message().await.unwrap().unwrap();
            patiently(|| {
                let mut client = client.clone();
                async move { client.get("floor-round", None).await }
            })
            .await;
            (client, watch)
        });
    }
    let mut seen = 0;
    while seen < count {
        seen += records.message().await.unwrap().unwrap().events().len();
    }
    coordinator.put("floor-round", "x".repeat(SHARD), None).await.unwrap();
    let clients = clients.join_all().await;
    let took = began.elapsed();
    drop(clients);
    took
}

/// The median of the time between a first write and the last event of a second one.
async fn told_floor(endpoint: &str, count: usize, times: usize) -> Duration {
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let endpoint = endpoint.to_owned();
        clients.spawn(async move {
            let mut client = Client::connect([endpoint], None).await.unwrap();
            let mut watch = client.watch("floor-round", None).await.unwrap();
            watch.message().await.unwrap().unwrap();
            (client, watch)
        });
    }
    let mut watching = clients.join_all().await;
    let mut coordinator = Client::connect([endpoint], None).await.unwrap();
    let mut evidence = coordinator.watch("floor-lost", None).await.unwrap();
    evidence.message().await.unwrap().unwrap();
    let mut observer = Client::connect([endpoint], None).await.unwrap();
    let mut all = Vec::new();
    for _ in 0..times {
        let mut telling = JoinSet::new();
        for (client, mut watch) in watching.drain(..) {
            telling.spawn(async move {
                watch.message().await.unwrap().unwrap();
                (Instant::now(), client, watch)
            });
        }
        let began = Instant::now();
        observer.put("floor-lost", "x".repeat(200), None).await.unwrap();
        evidence.message().await.unwrap().unwrap();
        coordinator.put("floor-round", "x".repeat(200), None).await.unwrap();
        let mut last = began;
        for (at, client, watch) in telling.join_all().await {
            last = last.max(at);
            watching.push((client, watch));
        }
        all.push(last - began);
    }
    all.sort();
    all[all.len() / 2]
}
