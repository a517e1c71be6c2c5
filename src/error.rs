//! The one error type of the crate. A message says what was wrong, the value, what was expected and where it came
//! from; the Python layer turns each variant into one exception class.

use std::time::Duration;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether a write whose outcome is an error may have been applied all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was refused or never sent.
    No,
    /// The answer was lost: it may have been applied, or may be applied seconds from now.
    Unknown,
}

/// What can go wrong. Cloneable, because one failure is told to every waiter of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is missing or wrong; the message names the setting, the value, where it came from and what is accepted.
    #[error("{message}")]
    Setting {
        /// The whole message.
        message: String,
    },

    /// No service was found: no name that may stand for it exists.
    #[error("{message}")]
    NotFound {
        /// The whole message: what was looked at, and what to do.
        message: String,
    },

    /// The service could not be reached, did not answer in time, or cannot serve at the moment. Worth another try.
    #[error("the service at `{endpoint}` is not available: {cause}")]
    Unavailable {
        /// The endpoint that was tried last.
        endpoint: String,
        /// What the attempt ended with.
        cause: String,
        /// Whether a write may have been applied.
        applied: Applied,
    },

    /// What answers at the endpoint is not etcd's v3 API.
    #[error(
        "what answers at `{endpoint}` is no etcd v3 service (expected etcd 3.4 or newer, on its client port): {cause}"
    )]
    NotEtcd {
        /// The endpoint.
        endpoint: String,
        /// What it answered.
        cause: String,
    },

    /// The service knows us and says no: wrong password, missing permission, a certificate it does not accept.
    #[error("the service at `{endpoint}` refuses us: {cause}")]
    Denied {
        /// The endpoint.
        endpoint: String,
        /// Its reason.
        cause: String,
    },

    /// The lease does not exist (any more).
    #[error("lease {lease:x} does not exist")]
    LeaseNotFound {
        /// The lease.
        lease: i64,
    },

    /// A lease of that id exists already.
    #[error("lease {lease:x} exists already")]
    LeaseExists {
        /// The lease.
        lease: i64,
    },

    /// The revision asked for is compacted away.
    #[error("revision is compacted; the oldest that can be read is {oldest}")]
    Compacted {
        /// The oldest revision that is still there.
        oldest: i64,
    },

    /// The revision asked for does not exist yet on the member that was asked.
    #[error("the revision asked for is a future one")]
    FutureRevision,

    /// The service refuses a request as wrong: too large, too many operations, a duplicate key.
    #[error("the service at `{endpoint}` rejects the request: {cause}")]
    Rejected {
        /// The endpoint.
        endpoint: String,
        /// Its reason.
        cause: String,
    },

    /// A record in the store is not what this version writes: no JSON, a missing field, or a future major version.
    #[error("the record at `{key}` cannot be read: {why}")]
    Record {
        /// Its key.
        key: String,
        /// What is wrong with it, and what was expected.
        why: String,
    },

    /// This node's settings are not those of the run it wants to join.
    #[error("{message}")]
    Mismatch {
        /// The whole message: which setting, ours and the run's, and what to do.
        message: String,
    },

    /// The run is closed.
    #[error("{message}")]
    Closed {
        /// `succeeded`, `failed` or `ended`.
        outcome: String,
        /// The name of the node that closed it.
        by: String,
        /// Its reason.
        why: String,
        /// The whole message.
        message: String,
    },

    /// Something was awaited for as long as it may be.
    #[error("timed out after {:.1} s: {what}", after.as_secs_f64())]
    Timeout {
        /// What was awaited, and what was there instead.
        what: String,
        /// For how long.
        after: Duration,
    },

    /// The store lost its keys. It does not restore them: they are gone, and what is there now was written since.
    #[error(
        "the keys of this store are gone: the rendezvous service lost its data or was restored from an older backup, and \
         `{what}` is the first call that notices; begin with an empty store"
    )]
    StoreReset {
        /// The call.
        what: String,
    },

    /// A write may or may not have been applied, and nothing can tell any more.
    #[error("the outcome of `{what}` is unknown: {why}")]
    OutcomeUnknown {
        /// The write.
        what: String,
        /// Why nothing can tell.
        why: String,
    },

    /// An argument of a call cannot be served, whoever serves it: an empty key, an amount added to what is no number.
    #[error("{message}")]
    Argument {
        /// The whole message: which call, the value, what was expected.
        message: String,
    },

    /// The node has left, or its owner has closed it.
    #[error("this node has left the run")]
    Left,
}

impl Error {
    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::FutureRevision)
    }
}
