//! All size and time limits of the service and the protocol.

use std::time::Duration;

/// The bounds of a backend and of those who use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long one attempt may take, from its sending to its answer. At most a quarter of the TTL: a renewal is sent
    /// at a third of it, and a second one, to another etcd member, must still be in time.
    pub attempt_timeout: Duration,
    /// How long connecting may take. Part of the attempt, and short, because a machine that is gone answers nothing.
    pub connect_timeout: Duration,
    /// Operations in one transaction. etcd takes 128; the rest is for what a caller adds to each.
    pub operations_per_transaction: usize,
    /// Bytes of keys and values in one transaction. etcd takes 1.5 MiB of request, its encoding included.
    pub bytes_per_transaction: usize,
    /// Keys in one page of a listing, so that no answer is larger than a client takes.
    pub page: i64,
    /// The largest answer taken. gRPC's default of 4 MiB refuses the listing of a large run.
    pub answer_bytes: usize,
}

impl Limits {
    /// The limits under a lease of this TTL.
    pub fn for_ttl(ttl: Duration) -> Self {
        let attempt_timeout = ttl / 4;
        Self {
            attempt_timeout,
            connect_timeout: Duration::from_secs(1).min(attempt_timeout),
            operations_per_transaction: 120,
            bytes_per_transaction: 1_000_000,
            page: 1_000,
            answer_bytes: 64 * 1024 * 1024,
        }
    }
}

impl Default for Limits {
    /// The limits under the default TTL of 10 s.
    fn default() -> Self {
        Self::for_ttl(Duration::from_secs(10))
    }
}
