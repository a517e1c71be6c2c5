//! The relay of signals: notifies the nodes of this process of a signal within a millisecond, without Python.
//!
//! Problem: Python runs a signal's handler only between two bytecodes of its main thread, which may be in a long
//! native call. Design: Python's C handler writes each signal's number to the descriptor of `signal.set_wakeup_fd`.
//! The relay reads the other end and marks the nodes that registered for the signal as leaving.

use std::{
    fs::File,
    io::Write as _,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::io::AsyncReadExt as _;

use crate::{lock::lock, node::Node, protocol::records::after_colon};

/// How long a node tries to notify its peers.
const MARK_LIMIT: Duration = Duration::from_secs(1);

/// The relay of one process.
#[derive(Debug, Default)]
pub(super) struct Relay {
    /// The descriptor to which Python writes, after it was requested.
    pub(super) descriptor: Mutex<Option<OwnedFd>>,
    pub(super) routes: Arc<Mutex<Routes>>,
}

#[derive(Debug, Default)]
pub(super) struct Routes {
    /// The previous owner of the signals. It still receives every byte.
    pub(super) forward_to: Option<File>,
    /// The nodes, each with the signals that mark it as leaving.
    nodes: Vec<(Weak<Node>, Vec<i32>)>,
}

impl Relay {
    /// Marks this node as leaving when one of these signals arrives.
    pub(super) fn follow(&self, node: &Arc<Node>, signals: Vec<i32>) {
        let node = Arc::downgrade(node);
        let mut routes = lock(&self.routes);
        routes.nodes.retain(|(other, _)| other.strong_count() > 0 && !other.ptr_eq(&node));
        routes.nodes.push((node, signals));
    }
}

/// Reads the numbers of signals until the stream ends.
pub(super) async fn follow_signals(mut stream: tokio::net::UnixStream, routes: Arc<Mutex<Routes>>) {
    let mut bytes = [0; 64];
    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
        let Some(received) = bytes.get(..count) else { return };
        let mut routes = lock(&routes);
        if let Some(forward_to) = &mut routes.forward_to {
            // Non-blocking, as `signal.set_wakeup_fd` requires: a byte is lost if its reader has no room for it.
            let _ = forward_to.write(received);
        }
        for (node, signals) in &routes.nodes {
            let signal = received.iter().map(|byte| i32::from(*byte)).find(|signal| signals.contains(signal));
            if let (Some(signal), Some(node)) = (signal, node.upgrade()) {
                // A separate task, because the next byte must not wait for the service.
                tokio::spawn(async move {
                    say_leaving(&node, &name_of(signal));
                    node.mark_leaving(MARK_LIMIT).await;
                });
            }
        }
    }
}

fn say_leaving(node: &Node, why: &str) {
    tracing::info!(
        target: "lattice_rdzv::node",
        "`{}` announces to run `{}` that it is about to leave{}", node.name(), node.run_id(), after_colon(why)
    );
}

/// Returns the name of a signal.
fn name_of(signal: i32) -> String {
    match signal {
        libc::SIGTERM => "SIGTERM".to_owned(),
        libc::SIGINT => "SIGINT".to_owned(),
        libc::SIGHUP => "SIGHUP".to_owned(),
        libc::SIGQUIT => "SIGQUIT".to_owned(),
        libc::SIGUSR1 => "SIGUSR1".to_owned(),
        libc::SIGUSR2 => "SIGUSR2".to_owned(),
        other => format!("signal {other}"),
    }
}
