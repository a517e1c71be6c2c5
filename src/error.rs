//! The error type of the crate. A message names the problem, the value, the expected value, and its source. The Python
//! layer converts each variant to one exception class.

use std::time::Duration;

/// The result of every function of this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether a write that ended with an error may still have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was refused or never sent.
    No,
    /// The response was lost. It may have been applied, or may be applied seconds from now.
    Unknown,
}

/// The errors of this crate. Cloneable, because a node reports one failure to all of its callers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is missing or wrong. The message names the setting, the value, its source, and the accepted values.
    #[error("{message}")]
    Setting {
        /// The whole message.
        message: String,
    },

    /// No service was found, because no name exists that could be that of a service.
    #[error("{message}")]
    NotFound {
        /// The whole message: the sources that were searched, and what to do.
        message: String,
    },

    /// The service could not be reached, did not respond in time, or cannot serve at the moment. Another attempt may
    /// succeed.
    #[error("the service at `{endpoint}` is not available: {cause}")]
    Unavailable {
        /// The endpoint that was tried last.
        endpoint: String,
        /// The error of the attempt.
        cause: String,
        /// Whether a write may have been applied.
        applied: Applied,
    },

    /// The process at the endpoint does not serve etcd's v3 API.
    #[error(
        "the server at `{endpoint}` is not an etcd v3 service (expected etcd 3.4 or newer, on its client port): {cause}"
    )]
    NotEtcd {
        /// The endpoint.
        endpoint: String,
        /// Its response.
        cause: String,
    },

    /// The service denies access: a wrong password, a missing permission, or a certificate that it does not accept.
    #[error("the service at `{endpoint}` denied access: {cause}")]
    Denied {
        /// The endpoint.
        endpoint: String,
        /// Its reason.
        cause: String,
    },

    /// The lease does not exist, or no longer exists.
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

    /// The requested revision was compacted.
    #[error("revision is compacted; the oldest that can be read is {oldest}")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: i64,
    },

    /// The requested revision does not exist yet on the member that responded.
    #[error("the revision asked for is a future one")]
    FutureRevision,

    /// The service rejects the request as invalid: too large, too many operations, or a duplicate key.
    #[error("the service at `{endpoint}` rejects the request: {cause}")]
    Rejected {
        /// The endpoint.
        endpoint: String,
        /// Its reason.
        cause: String,
    },

    /// A record differs from what this version writes: it is not JSON, a field is missing, or it has a future major
    /// version.
    #[error("the record at `{key}` cannot be read: {why}")]
    Record {
        /// Its key.
        key: String,
        /// What is wrong with it, and what was expected.
        why: String,
    },

    /// This node's settings differ from those of the run that it wants to join.
    #[error("{message}")]
    Mismatch {
        /// The whole message: the setting, its value here and in the run, and what to do.
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

    /// A time limit has passed.
    #[error("timed out after {:.1} s: {what}", after.as_secs_f64())]
    Timeout {
        /// What was awaited, and what was found instead.
        what: String,
        /// The time limit.
        after: Duration,
    },

    /// The service lost the keys of the store. It does not restore them: they are gone, and the present keys were
    /// written since.
    #[error(
        "the keys of this store are gone: the rendezvous service lost its data or was restored from an older backup, and \
         `{what}` is the first call that notices; begin with an empty store"
    )]
    StoreReset {
        /// The call.
        what: String,
    },

    /// A write may or may not have been applied, and this can no longer be determined.
    #[error("the outcome of `{what}` is unknown: {why}")]
    OutcomeUnknown {
        /// The write.
        what: String,
        /// Why it cannot be determined.
        why: String,
    },

    /// An argument of a call is invalid for every service: an empty key, or an amount to add to something that is not a
    /// number.
    #[error("{message}")]
    Argument {
        /// The whole message: the call, the value, and what was expected.
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
