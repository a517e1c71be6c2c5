//! Nodes that join an etcd with passwords, each with its own login, as if they ran on separate machines. Prints; asserts
//! nothing. `cargo bench --bench logins -- NODES...` for other numbers of nodes.
//!
//! - How long one check of a password takes (bcrypt), and the floor: that, times the nodes, over the cores.
//! - How long it takes until all nodes have joined and have their world.
//! - After a restart of that etcd, which ends all tokens: how many logins are answered within the reconnect window, how
//!   long all of them take, and how many nodes lost their world.
//!
//! The nodes are tasks of this process, so that they and etcd share the cores of one machine.
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

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use etcd::Etcd;
use etcd_client::{Client, ConnectOptions};
use lattice_rdzv::{
    node::{Node, State},
    protocol::policy::Policy,
    settings::Settings,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const NODES: [usize; 3] = [64, 256, 1024];
const PASSWORD: &str = "a password";
/// The time limit of the logins after the restart.
const LIMIT: Duration = Duration::from_secs(400);

fn main() {
    let named: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let all = if named.is_empty() { NODES.to_vec() } else { named };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("{}", machine::describe());
    for nodes in all {
        runtime.block_on(measure(nodes));
    }
}

async fn measure(count: usize) {
    let Some(mut etcd) = Etcd::prepare("http", &[]) else { return };
    etcd.spawn();
    etcd.served().await;
    let mut auth = etcd.require_passwords(PASSWORD, "/lattice/rdzv/").await;

    let mut checks = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        auth.authenticate("node".into(), PASSWORD.into()).await.unwrap();
        checks.push(began.elapsed());
    }
    checks.sort();
    let cores = u32::try_from(machine::cores()).unwrap();
    let floor = checks[0] * u32::try_from(count).unwrap() / cores;
    println!(
        "{count} nodes: one login alone {} to {} ms; floor of {count} on {cores} cores {:.1} s",
        checks[0].as_millis(),
        checks[4].as_millis(),
        floor.as_secs_f64()
    );

    let began = Instant::now();
    let mut joining = JoinSet::new();
    for number in 0..count {
        // A file for each: clients of one process with the same credentials share one login.
        let file = etcd.directory().join(format!("password-{number}"));
        std::fs::write(&file, PASSWORD).unwrap();
        let settings = settings(etcd.endpoint(), count, number, &file.display().to_string());
        joining.spawn(async move {
            let node = nodes::join(settings, None).await;
            let joined = began.elapsed();
            node.next_world(None, None).await.unwrap();
            (node, joined, began.elapsed())
        });
    }
    let (mut nodes, mut joined, mut in_world) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    while let Some(one) = joining.join_next().await {
        let (node, at, world_at) = one.unwrap();
        nodes.push(node);
        joined = joined.max(at);
        in_world = in_world.max(world_at);
    }
    println!(
        "  all joined after {:.1} s, all have their world after {:.1} s, {} logins",
        joined.as_secs_f64(),
        in_world.as_secs_f64(),
        answered(&etcd)
    );
    restart(&mut etcd, &nodes).await;
    for node in &nodes {
        node.leave(Some(Duration::from_millis(1))).await;
    }
}

async fn restart(etcd: &mut Etcd, nodes: &[Node]) {
    // Otherwise etcd replays its log, the logins included, and knows all tokens.
    let root = ConnectOptions::new().with_user("root", "root");
    let root = Client::connect([etcd.endpoint()], Some(root)).await.unwrap();
    root.maintenance_client().defragment().await.unwrap();
    etcd.kill();
    etcd.spawn();
    etcd.served().await;
    let began = Instant::now();
    let (window, _) = Policy::lease_times(nodes[0].settings().lease_ttl);
    let (mut within, mut last) = (0, 0);
    while last < nodes.len() && began.elapsed() < LIMIT {
        last = answered(etcd);
        if began.elapsed() < window {
            within = last;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let took = began.elapsed();
    // A loss is announced after the window.
    sleep(window).await;
    let changed = nodes.iter().filter(|node| node.num_nodes_waiting() != 0).count();
    let uncertain = nodes.iter().filter(|node| node.subscribe().borrow().state != State::Member).count();
    println!(
        "  restart: {within} of {} logins answered within the reconnect window of {:.1} s, {last} after {:.1} s; \
         {changed} nodes received a change of their world, {uncertain} are not certain members",
        nodes.len(),
        window.as_secs_f64(),
        took.as_secs_f64()
    );
}

fn settings(endpoint: &str, count: usize, number: usize, file: &str) -> Settings {
    nodes::settings([
        ("endpoint", endpoint),
        ("run_id", "logins"),
        ("nnodes", &count.to_string()),
        ("node_name", &format!("node-{number}")),
        ("user", "node"),
        ("password_file", file),
    ])
}

/// How many logins an etcd has answered since it was started, by its own count.
fn answered(etcd: &Etcd) -> usize {
    let address = etcd.endpoint().trim_start_matches("http://");
    let Ok(mut stream) = TcpStream::connect(address) else { return 0 };
    let mut text = String::new();
    let asked = write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    if asked.and_then(|()| stream.read_to_string(&mut text)).is_err() {
        return 0;
    }
    let of_logins = |line: &&str| {
        line.starts_with("grpc_server_handled_total{grpc_code=\"OK\"")
            && line.contains("grpc_method=\"Authenticate\"")
    };
    let line = text.lines().find(of_logins).unwrap_or_default();
    line.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default()
}
