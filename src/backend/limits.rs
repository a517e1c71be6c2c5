//! The limits of requests: attempt, connection, transaction, page, and response.

use std::time::Duration;

/// The limits of a backend and its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The maximum duration of one attempt, from the request to the response. At most a quarter of the TTL: a renewal
    /// is sent after a third of the TTL, and a second renewal, to another etcd member, must still be in time.
    pub attempt_timeout: Duration,
    /// The maximum duration of connecting. It is part of the attempt and short, because a machine that is gone does not
    /// respond.
    pub connect_timeout: Duration,
    /// The maximum number of operations in one transaction. etcd accepts 128. The difference is for operations that a
    /// caller adds.
    pub operations_per_transaction: usize,
    /// The maximum number of bytes of keys and values in one transaction. etcd accepts requests of 1.5 MiB, including
    /// the encoding.
    pub bytes_per_transaction: usize,
    /// The number of keys in one page of a listing, so that no response is larger than a client accepts.
    pub page: i64,
    /// The maximum size of a response. gRPC's default of 4 MiB would reject the listing of a large run.
    pub answer_bytes: usize,
}

impl Limits {
    /// The limits for leases of this TTL.
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
    /// The limits for the default TTL of 10 s.
    fn default() -> Self {
        Self::for_ttl(Duration::from_secs(10))
    }
}
