//! How often a live node is taken for dead while its machine is under load and is paused: many nodes without Python, with
//! lifelines, in one process, on the embedded server. Prints; asserts nothing.
//! `cargo bench --bench alarms -- NODES MINUTES`
//!
//! Half of the time, twice as many threads as cores compute. Every 45 s, the process of all nodes is stopped for 2 s. Each
//! announced change is an alarm, because no node leaves.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a measurement that cannot be made ends, and it is for a person"
)]

mod machine;
mod nodes;
mod server_process;

use std::{
    hint::black_box,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const NODES: usize = 1000;
const MINUTES: usize = 10;
const LOAD: Duration = Duration::from_secs(15);
const PAUSES: &str = "while sleep 45; do kill -STOP $PPID; sleep 2; kill -CONT $PPID; done";

fn main() {
    machine::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if server_process::is_server() {
        runtime.block_on(server_process::serve());
        return;
    }
    let numbers: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let count = numbers.first().copied().unwrap_or(NODES);
    let minutes = numbers.get(1).copied().unwrap_or(MINUTES);
    println!("{}", machine::describe());
    runtime.block_on(measure(count, minutes));
}

async fn measure(count: usize, minutes: usize) {
    let (_server, endpoint) = server_process::start().await;
    let settings = |number: usize| {
        nodes::settings([
            ("endpoint", &endpoint),
            ("run_id", "alarms"),
            ("nnodes", &count.to_string()),
            ("node_name", &format!("node-{number}")),
        ])
    };
    let nodes = nodes::form((0..count).map(settings).collect(), true).await;
    let alarms = Arc::new(AtomicUsize::new(0));
    let mut following = JoinSet::new();
    for node in &nodes {
        let (node, alarms) = (Arc::clone(node), Arc::clone(&alarms));
        following.spawn(async move {
            while let Some((world, change)) = node.wait_change(None).await {
                println!("  {}: round {} ends: {}", node.name(), world.round, change.why);
                alarms.fetch_add(1, Ordering::Relaxed);
                node.next_world(None, None).await.unwrap();
            }
        });
    }
    let ended = Arc::new(AtomicBool::new(false));
    let load = compute(&ended);
    let pauses = Killed(Command::new("sh").args(["-c", PAUSES]).spawn().unwrap());
    let began = Instant::now();
    sleep(Duration::from_secs(60) * u32::try_from(minutes).unwrap()).await;
    let node_minutes = began.elapsed().as_secs_f64() / 60.0 * f64::from(u32::try_from(count).unwrap());
    drop(pauses);
    ended.store(true, Ordering::Relaxed);
    for thread in load {
        thread.join().unwrap();
    }
    let announced = alarms.load(Ordering::Relaxed);
    let reported: u64 = nodes.iter().map(|node| node.subscribe().borrow().false_alarms).sum();
    println!(
        "{count} nodes, {node_minutes:.0} node-minutes: {announced} changes announced, {reported} live nodes reported dead"
    );
    if announced == 0 && reported == 0 {
        // Events at a rate of r do not occur in a time t with a probability of exp(-r t), which is 5 % for r = 3 / t.
        println!("with a confidence of 95 %, less than one in {:.0} node-minutes", node_minutes / 3.0);
    }
}

/// Starts threads that compute for [`LOAD`] and then pause for as long, until `ended`.
fn compute(ended: &Arc<AtomicBool>) -> Vec<thread::JoinHandle<()>> {
    let start = |_| {
        let ended = Arc::clone(ended);
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let began = Instant::now();
                while began.elapsed() < LOAD {
                    black_box((0..1_000_000_u64).fold(0, |sum, each| black_box(sum + each)));
                }
                thread::sleep(LOAD);
            }
        })
    };
    (0..2 * machine::cores()).map(start).collect()
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
