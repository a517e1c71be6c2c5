//! Bounds the memory that clients can make the server buffer: incomplete requests, unsent responses, watched keys and
//! open calls.
//!
//! Each kind has a total and a share for each connection, so that one connection cannot use all of it. Small messages
//! have a separate pool, so that clients that exhaust the pool of large messages do not block the renewals and short
//! reads of other clients. A request that does not fit is rejected with etcd's text for an overloaded server, and
//! clients repeat it later. A watch waits. A [`Permit`] returns its bytes when it is dropped.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// A message of at most this many bytes is small.
const SMALL_BYTES: usize = 4096;
/// The cost of an open call: its stream, headers, buffers and tasks.
const CALL_BYTES: usize = 8 * 1024;

/// The purposes for which memory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Messages of at most [`SMALL_BYTES`].
    Small,
    /// Larger ones.
    Large,
    /// The state of watches.
    Watches,
    /// Open calls.
    Calls,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Small, Self::Large, Self::Watches, Self::Calls];

    /// Bytes of all connections, and of one. One connection can read the maximum that a client accepts in one
    /// response (64 MiB), and have 10,000 calls open, because each wait of a run's store is one.
    const fn bounds(self) -> (usize, usize) {
        const MIB: usize = 1 << 20;
        match self {
            Self::Small => (64 * MIB, 8 * MIB),
            Self::Large => (256 * MIB, 96 * MIB),
            Self::Watches => (128 * MIB, 32 * MIB),
            Self::Calls => (512 * MIB, 80 * MIB),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Small | Self::Large => "messages that are not sent or not complete",
            Self::Watches => "watches",
            Self::Calls => "open calls",
        }
    }
}

/// The maximum that clients can make a server buffer, in addition to its data and 128 KiB for each connection: the buffers of
/// sockets and frames, and what a client has sent and is not read.
pub(super) const MOST_BYTES: usize = {
    let (mut sum, mut index) = (0, 0);
    while index < Kind::ALL.len() {
        sum += Kind::ALL[index].bounds().0;
        index += 1;
    }
    sum
};

/// The memory of a server.
#[derive(Debug)]
pub(super) struct Budget([Arc<Semaphore>; 4]);

impl Default for Budget {
    fn default() -> Self {
        Self(Kind::ALL.map(|kind| Arc::new(Semaphore::new(kind.bounds().0))))
    }
}

impl Budget {
    /// Returns the share of one connection.
    pub(super) fn share(self: &Arc<Self>) -> Arc<Share> {
        let own = Kind::ALL.map(|kind| Arc::new(Semaphore::new(kind.bounds().1)));
        Arc::new(Share { total: Arc::clone(self), own, login: Arc::default() })
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        let free: usize = self.0.iter().map(|pool| pool.available_permits()).sum();
        MOST_BYTES.saturating_sub(free)
    }
}

/// The memory that one connection can use.
#[derive(Debug)]
pub(super) struct Share {
    total: Arc<Budget>,
    own: [Arc<Semaphore>; 4],
    /// One login at a time.
    pub(super) login: Arc<tokio::sync::Mutex<()>>,
}

/// Bytes that are in use until the permit is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _own: OwnedSemaphorePermit,
    _total: OwnedSemaphorePermit,
}

impl Share {
    /// Takes bytes for a message.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if they are not free.
    pub(super) fn message(&self, bytes: usize) -> Result<Permit, Status> {
        self.take(kind_of(bytes), bytes)
    }

    /// Whether a message of this size can ever fit.
    pub(super) fn can_hold(bytes: usize) -> bool {
        bytes <= Kind::Large.bounds().1
    }

    /// Waits until a message of this size would fit. Cancel-safe.
    pub(super) async fn room_for_message(&self, bytes: usize) {
        let kind = kind_of(bytes);
        let (total, own) = kind.bounds();
        let wanted = permits(bytes.min(total).min(own));
        // The pools are never closed. Both permits are returned at once, and the waiting task tries again.
        let _own = self.own[kind as usize].acquire_many(wanted).await;
        let _total = self.total.0[kind as usize].acquire_many(wanted).await;
    }

    /// Takes bytes for the state of a watch.
    ///
    /// # Errors
    /// As [`Self::message`].
    pub(super) fn watch(&self, bytes: usize) -> Result<Permit, Status> {
        self.take(Kind::Watches, bytes)
    }

    /// Takes the cost of one open call.
    ///
    /// # Errors
    /// As [`Self::message`].
    pub(super) fn call(&self) -> Result<Permit, Status> {
        self.take(Kind::Calls, CALL_BYTES)
    }

    fn take(&self, kind: Kind, bytes: usize) -> Result<Permit, Status> {
        let take = |pool: &Arc<Semaphore>| Arc::clone(pool).try_acquire_many_owned(permits(bytes)).ok();
        let (total, own) = kind.bounds();
        let refused = |whose: &str, bound: usize| {
            let bound = bound >> 20;
            let what = kind.words();
            Status::resource_exhausted(format!(
                "etcdserver: too many requests: {bytes} more bytes for {what} exceed the {bound} MiB of {whose}"
            ))
        };
        Ok(Permit {
            _own: take(&self.own[kind as usize]).ok_or_else(|| refused("one connection", own))?,
            _total: take(&self.total.0[kind as usize]).ok_or_else(|| refused("all connections", total))?,
        })
    }
}

fn kind_of(bytes: usize) -> Kind {
    if bytes <= SMALL_BYTES { Kind::Small } else { Kind::Large }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn one_connection_leaves_room_for_others_and_all_together_have_a_bound() {
        let budget = Arc::new(Budget::default());
        let shares: Vec<_> = (0..4).map(|_| budget.share()).collect();
        let first = shares[0].message(90 * MIB).unwrap();
        let error = shares[0].message(7 * MIB).unwrap_err();
        assert!(error.message().contains("96 MiB of one connection"), "{error}");
        let _second = shares[1].message(90 * MIB).unwrap();
        let error = shares[2].message(90 * MIB).unwrap_err();
        assert!(error.message().contains("256 MiB of all connections"), "{error}");
        assert!(shares[2].message(SMALL_BYTES).is_ok(), "small messages have a pool of their own");
        drop(first);
        let third = shares[2].message(90 * MIB).unwrap();
        assert_eq!(budget.used(), 180 * MIB);
        drop(third);
        assert!(shares[3].message(97 * MIB).is_err());
        assert_eq!(budget.used(), 90 * MIB, "a refusal keeps nothing");
    }
}
