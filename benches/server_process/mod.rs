//! The embedded server in another process: the program of the benchmark itself, started again with one argument.
#![allow(dead_code, reason = "each benchmark uses its own part of this")]

use std::process::Stdio;

use lattice_rdzv::server::{Server, ServerOptions, bind, return_large_blocks};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

const SERVE: &str = "serve";

/// Whether this process was started to serve.
pub(crate) fn is_server() -> bool {
    std::env::args().any(|argument| argument == SERVE)
}

/// Prints the endpoint and serves as `lattice-rdzv serve` does until the process is killed.
pub(crate) async fn serve() {
    return_large_blocks();
    let server = Server::start(bind("127.0.0.1", 0).await.unwrap(), ServerOptions::default()).unwrap();
    println!("{}", server.endpoint());
    std::future::pending::<()>().await;
}

/// Starts the server. Returns its process, which is killed when it is dropped, and the endpoint.
pub(crate) async fn start() -> (Child, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.arg(SERVE).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let endpoint = lines.next_line().await.unwrap().unwrap();
    (child, endpoint)
}

/// A size in the process's status, such as `VmRSS`, or `VmHWM` for its peak.
pub(crate) fn memory_bytes(child: &Child, field: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
