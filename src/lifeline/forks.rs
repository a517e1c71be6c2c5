//! Closes the sockets of lifelines in forked children. A child that kept one open would hide its parent's death: the
//! stream would not end, and the port would not refuse.
//!
//! The child only closes its descriptors. A `shutdown` would end the streams of its parent. Programs that a child
//! executes inherit none, because all sockets are opened with `CLOEXEC`.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{
        OnceLock,
        atomic::{AtomicI32, Ordering},
    },
};

/// How many sockets of one process are closed in its children. For further sockets, the lease decides.
const SLOTS: usize = 4096;
/// How many slots are tried for a socket, beginning with the slot at its descriptor's number. Open descriptors have small,
/// different numbers, so the first slot is almost always free.
const TRIES: usize = 64;
const EMPTY: RawFd = -1;

static OPEN: [AtomicI32; SLOTS] = [const { AtomicI32::new(EMPTY) }; SLOTS];

/// A socket that forked children close.
#[derive(Debug)]
pub(super) struct ClosedInChildren<S> {
    // Dropped before the socket. Otherwise a child could close the file that gets the number of the socket next.
    _slot: Option<Slot>,
    /// The socket.
    pub(super) socket: S,
}

impl<S: AsRawFd> ClosedInChildren<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { _slot: Slot::of(socket.as_raw_fd()), socket }
    }
}

#[derive(Debug)]
struct Slot(usize);

impl Slot {
    fn of(descriptor: RawFd) -> Option<Self> {
        if !handles_forks() {
            return None;
        }
        let first = usize::try_from(descriptor).ok()?;
        let take = |slot: &usize| {
            OPEN[*slot].compare_exchange(EMPTY, descriptor, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        (first..first + TRIES).map(|slot| slot % SLOTS).find(take).map(Self)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        OPEN[self.0].store(EMPTY, Ordering::Relaxed);
    }
}

/// Registers the handler at the first call. False if the system rejects it.
fn handles_forks() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| {
        // SAFETY: the handler only uses atomics and `close`, which are async-signal-safe, and this library is never
        // unloaded: Python keeps extension modules.
        unsafe { libc::pthread_atfork(None, None, Some(close_in_child)) == 0 }
    })
}

extern "C" fn close_in_child() {
    for slot in &OPEN {
        let descriptor = slot.swap(EMPTY, Ordering::Relaxed);
        if descriptor != EMPTY {
            // SAFETY: the descriptor was open in the parent when it forked, because its slot is emptied before it is
            // closed. No task of the runtime runs in the child, so nothing uses or closes it there.
            unsafe { libc::close(descriptor) };
        }
    }
}
