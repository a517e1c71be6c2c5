//! The operations that the protocol needs from the rendezvous service: ranges, transactions, leases and watches, with
//! the semantics of etcd.
//!
//! A call of [`Backend`] is one attempt on one service. It has a deadline, does not retry, and reports whether a
//! failed write may have been applied ([`crate::error::Applied`]). [`retry`] defines what is retried and how often,
//! and [`watcher`] reopens an interrupted watch. Two implementations pass the conformance suite: [`etcd`] is a client
//! of an etcd, and [`memory`] is an in-process engine.

pub mod etcd;
pub mod limits;
pub mod memory;
pub mod monotonic;
pub mod pages;
pub mod refusals;
pub mod retry;
mod txn;
pub mod watcher;

use std::{fmt::Debug, time::Duration};

use async_trait::async_trait;

pub use self::txn::{Compare, Get, Operation, OperationResult, Txn, TxnParts, TxnResult};
use crate::error::Result;

/// The ID of a lease in etcd. 0 stands for no lease.
pub type LeaseId = i64;

/// A revision of etcd: the number of the last write. It starts again in an etcd that lost its data.
pub type Revision = i64;

/// A key with its value and the metadata that etcd keeps of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The revision at which the key was created, since it was last absent.
    pub create_revision: Revision,
    /// The revision of its last change.
    pub mod_revision: Revision,
    /// How often the key was written since it was created. 1 after its creation.
    pub version: i64,
    /// The lease that it is attached to, or 0.
    pub lease: LeaseId,
}

/// The keys of a request: one key, or all keys in a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// One key.
    One(Vec<u8>),
    /// All keys with this prefix.
    Prefix(Vec<u8>),
    /// All keys `from <= key < to`.
    Span(Vec<u8>, Vec<u8>),
}

impl Keys {
    /// One key.
    pub fn one(key: impl Into<Vec<u8>>) -> Self {
        Self::One(key.into())
    }

    /// All keys with this prefix.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        Self::Prefix(prefix.into())
    }

    /// The first key after these keys.
    pub fn end(&self) -> Vec<u8> {
        match self {
            Self::Span(_, to) => to.clone(),
            Self::One(key) => [key.as_slice(), &[0]].concat(),
            Self::Prefix(prefix) => {
                let mut to = prefix.clone();
                while let Some(last) = to.pop() {
                    if let Some(next) = last.checked_add(1) {
                        to.push(next);
                        break;
                    }
                }
                to
            }
        }
    }
}

/// A read. Linearizable.
#[derive(Clone, Debug)]
pub struct Range {
    /// The keys to read.
    pub keys: Keys,
    /// The revision to read at. 0 is the latest.
    pub revision: Revision,
    /// The maximum number of keys. 0 stands for no limit. `more` in the result tells whether there were more.
    pub limit: i64,
    /// Leave the values out.
    pub keys_only: bool,
}

impl Range {
    /// Reads all of these keys with their values at the latest revision.
    pub fn new(keys: Keys) -> Self {
        Self { keys, revision: 0, limit: 0, keys_only: false }
    }
}

/// The header of every response to a read or a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The etcd cluster that responded.
    pub cluster_id: u64,
    /// The revision of the service when it responded.
    pub revision: Revision,
}

/// The result of a [`Range`], sorted by key.
#[derive(Clone, Debug, Default)]
pub struct RangeResult {
    /// The header.
    pub header: Header,
    /// The keys that were found.
    pub items: Vec<KeyValue>,
    /// Whether there were more keys than `limit`.
    pub more: bool,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was written. Contains its present state.
    Put(KeyValue),
    /// The key was deleted, by a request or with its lease, at this revision.
    Delete {
        /// The key.
        key: Vec<u8>,
        /// The revision of the deletion.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(item) => item.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// The changes that a watch reports together: all changes of one or more revisions, in order. A revision is never
/// divided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The latest revision that this watch has seen.
    pub revision: Revision,
    /// The changes.
    pub events: Vec<Event>,
}

/// One open watch. Dropping it ends it.
#[async_trait]
pub trait WatchStream: Send + Debug {
    /// Waits for the next changes. Cancel-safe.
    ///
    /// # Errors
    /// [`crate::Error::Compacted`] if the start revision was compacted. [`crate::Error::Unavailable`] if the stream
    /// broke or the connection was given up, which ends this watch.
    async fn next(&mut self) -> Result<Changes>;

    /// The last revision that this watch has seen. The next watch must start at the revision after it. Before the first
    /// changes it is the one before the first revision that the watch will report.
    fn revision(&self) -> Revision;

    /// The number of the connection that the watch uses, see [`Backend::connection`].
    fn connection(&self) -> u64;
}

/// The status that a service reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its version, for example `3.5.21`.
    pub version: String,
    /// The id of its cluster.
    pub cluster_id: u64,
    /// The id of the etcd member that answered.
    pub member_id: u64,
    /// The ID of the leader. 0 if the member knows no leader.
    pub leader: u64,
    /// The size of the database in bytes.
    pub db_size: i64,
    /// Alarms and errors that it reports, for example `NOSPACE`.
    pub errors: Vec<String>,
}

/// The lifetime of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseLife {
    /// The TTL.
    pub granted: Duration,
    /// The remaining time.
    pub remaining: Duration,
}

/// One attempt of each operation that the protocol needs. Every call has a separate deadline, can be canceled by
/// dropping it, and fails with [`crate::Error::Unavailable`] if the service does not respond.
#[async_trait]
pub trait Backend: Send + Sync + Debug + 'static {
    /// Reads keys.
    async fn range(&self, range: Range) -> Result<RangeResult>;

    /// Executes a transaction.
    async fn txn(&self, txn: Txn) -> Result<TxnResult>;

    /// Grants a lease with an ID that the caller has chosen (not 0). Returns the TTL that the service granted.
    ///
    /// # Errors
    /// [`crate::Error::LeaseExists`], which means success after a repeated attempt.
    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Duration>;

    /// Renews a lease once. Returns its new TTL.
    ///
    /// # Errors
    /// [`crate::Error::LeaseNotFound`] if it has expired.
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration>;

    /// Revokes a lease and deletes the keys that are attached to it.
    ///
    /// # Errors
    /// [`crate::Error::LeaseNotFound`] if it has already expired.
    async fn lease_revoke(&self, id: LeaseId) -> Result<()>;

    /// The TTL with which a lease was granted or last renewed, and the remaining time. `None` if the lease does not
    /// exist, or if this backend does not know.
    async fn lease_life(&self, _id: LeaseId) -> Result<Option<LeaseLife>> {
        Ok(None)
    }

    /// Watches keys from a revision on (0: from now). Returns when the service has created the watch.
    async fn watch(&self, keys: Keys, start: Revision) -> Result<Box<dyn WatchStream>>;

    /// The status that the service reports.
    async fn status(&self) -> Result<Status>;

    /// Logs in if the service requires a password. Waits at most `patience` for a service that accepts the request, and
    /// then until the response arrives, because the service checks the passwords one after the other.
    ///
    /// # Errors
    /// [`crate::Error::Denied`] if the user or the password is wrong, [`crate::Error::Setting`] if the password cannot
    /// be read, and [`crate::Error::Unavailable`].
    async fn log_in(&self, _patience: Duration) -> Result<()> {
        Ok(())
    }

    /// The endpoint in use, for messages.
    fn endpoint(&self) -> String;

    /// The number of the connection in use. It changes when the backend gives up a connection and opens another one.
    fn connection(&self) -> u64;
}

/// The TTL in whole seconds, as etcd has them. It is rounded up, so that no lease is shorter than requested.
fn whole_seconds(ttl: Duration) -> i64 {
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
