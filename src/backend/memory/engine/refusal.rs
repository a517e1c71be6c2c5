//! The reasons for which the engine rejects a request, with etcd's texts (`rpctypes/error.go`).

use super::Revision;
use crate::backend::LeaseId;

/// The reason for a rejected request, with the text of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The revision is compacted.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision does not exist yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// No such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound(LeaseId),
    /// A lease of that id exists.
    #[error("etcdserver: lease already exists")]
    LeaseExists(LeaseId),
    /// The TTL is greater than etcd accepts.
    #[error("etcdserver: too large lease TTL")]
    TtlTooLarge,
    /// An empty key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// A put that keeps a value or a lease, of a key that does not exist.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// A value with a put that keeps the present one.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// A lease with a put that keeps the present one.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// One key more than once among the writes of one branch.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// More than [`super::MAX_OPERATIONS`].
    #[error("etcdserver: too many operations in txn request")]
    TooManyOperations,
    /// More than [`super::MAX_REQUEST_BYTES`].
    #[error("etcdserver: request is too large")]
    TooLarge,
    /// An order, or something to sort by, that etcd does not have.
    #[error("etcdserver: invalid sort option")]
    InvalidOrder,
    /// More than [`super::Bounds::live_bytes`].
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// The caller has no room for the response.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
}
