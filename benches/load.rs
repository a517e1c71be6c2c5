//! The embedded server with ten thousand clients, which run in this process, while the server runs in another one.
//! Prints the results and asserts nothing. `cargo bench --bench load -- CLIENTS` sets another number of clients.
//!
//! - The cost of a connected client for the server: a connection, a watch, and a lease that it renews.
//! - The time until all clients have received a change, while one of them is stuck.
//! - The time that is needed if all leases expire at once, and whether the server responds afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement that cannot be made ends, and it is for a person"
)]

mod machine;
mod server_process;

use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, LeaseGrantOptions, PutOptions, WatchOptions, WatchStream};
use tokio::{process::Child, task::JoinSet};

const CLIENTS: usize = 10_000;
/// The number of clients that connect at once.
const AT_ONCE: usize = 100;
const STUCK_WRITES: usize = 400;
const STUCK_BYTES: usize = 500_000;

fn main() {
    let most = machine::raise_open_files();
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    if server_process::is_server() {
        runtime.block_on(server_process::serve());
    } else {
        let asked = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(CLIENTS);
        let clients = asked.min(usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(200));
        if clients < asked {
            println!("only {clients} clients: this machine lets a process open {most} files");
        }
        runtime.block_on(load(clients));
    }
}

fn memory_kilobytes(child: &Child) -> usize {
    server_process::memory_bytes(child, "VmRSS") / 1024
}

async fn client(endpoint: String, number: usize) -> (Client, WatchStream) {
    let mut client = Client::connect([endpoint], None).await.unwrap();
    let lease = i64::try_from(number + 1).unwrap();
    client.lease_grant(600, Some(LeaseGrantOptions::new().with_id(lease))).await.unwrap();
    let options = PutOptions::new().with_lease(lease);
    client.put(format!("nodes/{number}"), "x".repeat(200), Some(options)).await.unwrap();
    let watch = client.watch("ctl/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    (client, told_created(watch).await)
}

async fn told_created(mut watch: WatchStream) -> WatchStream {
    watch.message().await.unwrap().unwrap();
    watch
}

async fn load(count: usize) {
    let (child, endpoint) = server_process::start().await;
    let before = memory_kilobytes(&child);
    let began = Instant::now();
    let mut connecting = JoinSet::new();
    let mut clients = Vec::new();
    for number in 0..count {
        connecting.spawn(client(endpoint.clone(), number));
        if connecting.len() >= AT_ONCE {
            clients.push(connecting.join_next().await.unwrap().unwrap());
        }
    }
    while let Some(client) = connecting.join_next().await {
        clients.push(client.unwrap());
    }
    let each = (memory_kilobytes(&child) - before) / count.max(1);
    println!("{count} clients connected           {:.1} s, {each} KB each", began.elapsed().as_secs_f64());

    let (mut writer, stuck) = clients.pop().unwrap();
    let mut watching = JoinSet::new();
    let mut connections = Vec::new();
    let began = Instant::now();
    for (client, mut watch) in clients {
        connections.push(client);
        watching.spawn(async move {
            watch.message().await.unwrap().unwrap();
            (watch, Instant::now())
        });
    }
    writer.put("ctl/round", "1", None).await.unwrap();
    let mut watches = Vec::new();
    let mut last = began;
    while let Some(told) = watching.join_next().await {
        let (watch, at) = told.unwrap();
        last = last.max(at);
        watches.push(watch);
    }
    println!("all of them told of a change      {:.2} s", (last - began).as_secs_f64());

    // The other clients also watch `ctl/`. These watches end, but their connections remain.
    drop(watches);
    let began = Instant::now();
    for _ in 0..STUCK_WRITES {
        writer.put("ctl/large", "x".repeat(STUCK_BYTES), None).await.unwrap();
    }
    let megabytes = STUCK_WRITES * STUCK_BYTES / 1_000_000;
    let grown = memory_kilobytes(&child) / 1024;
    println!(
        "one stuck watcher, {megabytes} MB written {:.1} s, the server has {grown} MB",
        began.elapsed().as_secs_f64()
    );
    drop(stuck);

    let leases = i64::try_from(count).unwrap();
    for lease in 1..=leases {
        writer.lease_revoke(lease).await.unwrap();
    }
    let mut granting = JoinSet::new();
    for (index, mut client) in connections.into_iter().enumerate() {
        granting.spawn(async move {
            let lease = i64::try_from(index + 1).unwrap();
            client.lease_grant(15, Some(LeaseGrantOptions::new().with_id(lease))).await.unwrap();
            let options = PutOptions::new().with_lease(lease);
            client.put(format!("nodes/{index}"), "", Some(options)).await.unwrap();
            client
        });
    }
    let connections = granting.join_all().await;
    let watch = writer.watch("nodes/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    let mut watch = told_created(watch).await;
    let (mut gone, mut first) = (0, None);
    while gone < connections.len() {
        let answer = watch.message().await.unwrap().unwrap();
        first.get_or_insert_with(Instant::now);
        gone += answer.events().iter().filter(|event| event.event_type() == EventType::Delete).count();
    }
    let took = first.map_or(Duration::ZERO, |first| first.elapsed());
    println!(
        "{gone} leases ended                {:.2} s from the first told to the last",
        took.as_secs_f64()
    );
    let began = Instant::now();
    writer.put("ctl/round", "2", None).await.unwrap();
    println!("and it serves                     {:.1} ms a write", began.elapsed().as_secs_f64() * 1000.0);
}
