//! The relay of this process's signals, and the signal that the process sends to itself when an operator drains its node.
//!
//! There is one relay per process. Its descriptor stays open until the process ends, so a late signal is never written to
//! another file that reuses the number.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd as _, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use pyo3::prelude::*;

use super::{
    relay::follow_signals,
    runtime::{Process, in_runtime},
};
use crate::{lock::lock, node::Node};

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
