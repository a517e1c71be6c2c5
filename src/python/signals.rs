//! The relay of signals: notifies the nodes of this process of a signal within a millisecond, without Python.
//!
//! Problem: Python runs a signal's handler only between two bytecodes of its main thread, which may be in a long
//! native call. Design: Python's C handler writes each signal's number to the descriptor of `signal.set_wakeup_fd`.
//! This module reads the other end and marks the nodes that registered for the signal as leaving. There is one relay
//! per process. Its descriptor stays open until the process ends, so a late signal is never written to another file
//! that reuses the number.

use std::{
    fs::File,
    io::Write as _,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use pyo3::prelude::*;
use tokio::io::AsyncReadExt as _;

use super::{
    node::say_leaving,
    runtime::{Process, in_runtime},
};
use crate::{lock::lock, node::Node};

/// How long a node tries to notify its peers.
const MARK_LIMIT: Duration = Duration::from_secs(1);

/// The relay of one process.
#[derive(Debug, Default)]
pub(super) struct Relay {
    /// The descriptor to which Python writes, after it was requested.
    descriptor: Mutex<Option<OwnedFd>>,
    routes: Arc<Mutex<Routes>>,
}

#[derive(Debug, Default)]
struct Routes {
    /// The previous owner of the signals. It still receives every byte.
    forward_to: Option<File>,
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

/// Returns the descriptor to which Python must write signals. The relay forwards each byte to `forward_to`, unless
/// that is -1.
pub(super) fn descriptor(py: Python<'_>, forward_to: RawFd) -> PyResult<RawFd> {
    let relay = &Process::current().relay;
    lock(&relay.routes).forward_to = duplicate(forward_to)?;
    let mut descriptor = lock(&relay.descriptor);
    if let Some(descriptor) = &*descriptor {
        return Ok(descriptor.as_raw_fd());
    }
    in_runtime(py, || {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        tokio::spawn(follow_signals(tokio::net::UnixStream::from_std(read)?, Arc::clone(&relay.routes)));
        Ok(descriptor.insert(write.into()).as_raw_fd())
    })
}

/// A duplicate of another library's descriptor; `None` for -1.
fn duplicate(descriptor: RawFd) -> PyResult<Option<File>> {
    if descriptor < 0 {
        return Ok(None);
    }
    // SAFETY: it is not -1, and it is borrowed only for the next call, during which the caller keeps it open. If it
    // is closed anyway, duplicating it is an error.
    let theirs = unsafe { BorrowedFd::borrow_raw(descriptor) };
    Ok(Some(theirs.try_clone_to_owned()?.into()))
}

async fn follow_signals(mut stream: tokio::net::UnixStream, routes: Arc<Mutex<Routes>>) {
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

/// Sends SIGTERM to this process when an operator requests that the node leaves: whatever the program does on SIGTERM, such
/// as saving a checkpoint, it does then.
pub(super) fn follow_drain(node: &Arc<Node>) {
    let mut snapshot = node.subscribe();
    tokio::spawn(async move {
        if snapshot.wait_for(|seen| seen.drained.is_some()).await.is_ok() {
            // SAFETY: both calls take no pointers, and a process may send itself any signal.
            unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
        }
    });
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
