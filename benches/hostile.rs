//! The memory of `serve` while hostile clients attack it for a minute. The server runs in a separate process. Prints the
//! peak and the bound, and fails if the peak exceeds it. `cargo bench --bench hostile -- SECONDS` changes the duration.
//!
//! All attacks run at once: clients that do not read large answers, watches of keys of 1.4 MB, requests that are never
//! completed, many watches and open calls on one connection, and connections that send the preface and nothing else.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot be made ends")]

#[path = "../tests/core/support/unfinished.rs"]
mod unfinished;

mod server_process;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{
    Client,
    proto::{PbRangeRequest, PbRangeResponse},
};
use server_process::memory_bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tonic::{
    codegen::{Bytes, Service as _, http},
    transport::{Channel, Endpoint},
};
use unfinished::Unfinished;

/// The cost of a connection besides its calls: the buffers of sockets and frames, and what was sent and is not read.
const CONNECTION_BYTES: usize = 128 * 1024;
const SECONDS: u64 = 60;
/// The keys that the server keeps for the attack on responses.
const KEPT_KEYS: usize = 50;
const KEPT_BYTES: usize = 1_400_000;
/// Clients of each attack.
const CLIENTS: usize = 8;
/// Connections that send the preface and stay silent.
const SILENT: usize = 500;
/// The memory of the program itself, of its threads, and of what an allocator keeps.
const BASE_BYTES: usize = 128 << 20;
/// While it is encoded, a response exists twice, and each of the server's two threads encodes one.
const ENCODING_BYTES: usize = 2 * KEPT_KEYS * KEPT_BYTES;

type Done = Arc<AtomicU64>;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if server_process::is_server() {
        runtime.block_on(server_process::serve());
    } else {
        let seconds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(SECONDS);
        runtime.block_on(attack(Duration::from_secs(seconds)));
    }
}

async fn metric(endpoint: &str, name: &str) -> usize {
    let mut stream = TcpStream::connect(endpoint.trim_start_matches("http://")).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix(&format!("lattice_rdzv_{name} ")));
    assert!(line.is_some(), "no `{name}` in {answer}");
    line.unwrap().parse().unwrap()
}

async fn channel(endpoint: &str) -> Channel {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).unwrap();
    endpoint.initial_stream_window_size(1 << 16).connect().await.unwrap()
}

/// Requests everything and reads nothing.
async fn take_no_answers(endpoint: String, done: Done) {
    loop {
        let channel = channel(&endpoint).await;
        let mut held = Vec::new();
        for _ in 0..200 {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            if grpc.ready().await.is_err() {
                break;
            }
            let all =
                PbRangeRequest { key: b"kept/".to_vec(), range_end: b"kept0".to_vec(), ..Default::default() };
            let codec = tonic_prost::ProstCodec::<PbRangeRequest, PbRangeResponse>::default();
            let request = tonic::Request::new(futures_util::stream::iter([all]));
            let path = "/etcdserverpb.KV/Range".parse().unwrap();
            held.push(grpc.streaming(request, path, codec).await);
            done.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Watches keys of 1.4 MB.
async fn watch_long_keys(endpoint: String, done: Done) {
    loop {
        let Ok(mut client) = Client::connect([&endpoint], None).await else { continue };
        let mut watches = Vec::new();
        for index in 0..200 {
            watches.push(client.watch(format!("{index}{}", "k".repeat(1_400_000)), None).await);
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Opens watches without end.
async fn watch_much(endpoint: String, done: Done) {
    loop {
        let Ok(mut client) = Client::connect([&endpoint], None).await else { continue };
        let mut watches = Vec::new();
        for index in 0..9_000 {
            watches.push(client.watch(format!("key/{index}"), None).await);
            done.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Sends requests without their last bytes.
async fn finish_nothing(endpoint: String, done: Done) {
    let length = 1_900_000_u32;
    let mut message = vec![0];
    message.extend(length.to_be_bytes());
    message.resize(1_890_000, 1);
    let message = Bytes::from(message);
    loop {
        let channel = channel(&endpoint).await;
        let mut calls = JoinSet::new();
        for _ in 0..200 {
            let (mut channel, message, done) = (channel.clone(), message.clone(), Arc::clone(&done));
            calls.spawn(async move {
                if std::future::poll_fn(|context| channel.poll_ready(context)).await.is_err() {
                    return;
                }
                let request = http::Request::post("http://here/etcdserverpb.KV/Put")
                    .header("content-type", "application/grpc")
                    .body(tonic::body::Body::new(Unfinished(Some(message))))
                    .unwrap();
                let _ = channel.call(request).await;
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        let _ = tokio::time::timeout(Duration::from_secs(10), async {
            while calls.join_next().await.is_some() {}
        })
        .await;
    }
}

async fn attack(time: Duration) {
    let (child, endpoint) = server_process::start().await;
    let mut client = Client::connect([&endpoint], None).await.unwrap();
    for index in 0..KEPT_KEYS {
        client.put(format!("kept/{index}"), vec![b'x'; KEPT_BYTES], None).await.unwrap();
    }
    println!("before                             {:5} MiB", memory_bytes(&child, "VmRSS") >> 20);
    let mut attacks = JoinSet::new();
    let mut counts = Vec::new();
    macro_rules! attack {
        ($name:literal, $attack:ident) => {
            let done = Done::default();
            for _ in 0..CLIENTS {
                attacks.spawn($attack(endpoint.clone(), Arc::clone(&done)));
            }
            counts.push(($name, done));
        };
    }
    attack!("unread answers of 70 MB", take_no_answers);
    attack!("watches of keys of 1.4 MB", watch_long_keys);
    attack!("watches of short keys", watch_much);
    attack!("requests that are not completed", finish_nothing);
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        let mut stream = TcpStream::connect(endpoint.trim_start_matches("http://")).await.unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            .await
            .unwrap();
        silent.push(stream);
    }
    let (began, mut writes, mut slowest) = (Instant::now(), 0_u64, Duration::ZERO);
    let (mut most_buffered, mut bound) = (0, 0);
    while began.elapsed() < time {
        // A correct client, which writes and reads little, as a node does.
        let wrote = Instant::now();
        client.put("well-meant", "1", None).await.unwrap();
        writes += 1;
        slowest = slowest.max(wrote.elapsed());
        most_buffered = most_buffered.max(metric(&endpoint, "buffered_bytes").await);
        let connections = metric(&endpoint, "connections").await;
        bound = bound.max(metric(&endpoint, "buffered_bytes_limit").await + connections * CONNECTION_BYTES);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let kept = metric(&endpoint, "live_bytes").await + metric(&endpoint, "history_bytes").await;
    let bound = bound + kept + ENCODING_BYTES + BASE_BYTES;
    let peak = memory_bytes(&child, "VmHWM");
    for (name, done) in &counts {
        println!("{name:34} {:5} requests", done.load(Ordering::Relaxed));
    }
    println!("buffered, counted by the server    {:5} MiB at most", most_buffered >> 20);
    println!("peak                               {:5} MiB", peak >> 20);
    println!("bound                              {:5} MiB", bound >> 20);
    println!("and it serves: {writes} writes, the slowest took {:.0} ms", slowest.as_secs_f64() * 1000.0);
    attacks.abort_all();
    assert!(peak <= bound, "the peak of {peak} bytes exceeds the bound of {bound} bytes");
}
