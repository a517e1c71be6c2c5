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
pub mod refusals;
pub mod retry;
mod txn;
pub mod watcher;

use std::{fmt::Debug, time::Duration};

use async_trait::async_trait;

pub use self::txn::{Compare, Get, Operation, OperationResult, Txn, TxnParts, TxnResult};
use crate::error::Result;

/// etcd's lease number; 0 where there is none.
pub type LeaseId = i64;

/// etcd's revision: the number of the write that a store is at. Begins again in a wiped store.
pub type Revision = i64;

/// A key with its value and etcd's bookkeeping of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The revision at which the key was created, in its present life.
    pub create_revision: Revision,
    /// The revision of its last change.
    pub mod_revision: Revision,
    /// How often it was written since it was created; 1 after its creation.
    pub version: i64,
    /// The lease it hangs on, or 0.
    pub lease: LeaseId,
}

/// Which keys: one, or all that begin with a prefix.
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
}

/// A read. Linearizable.
#[derive(Clone, Debug)]
pub struct Range {
    /// Which keys.
    pub keys: Keys,
    /// At which revision; 0 is the newest.
    pub revision: Revision,
    /// At most so many; 0 is all. The answer's `more` says whether there were more.
    pub limit: i64,
    /// Leave the values out.
    pub keys_only: bool,
}

impl Range {
    /// All of these keys with their values, now.
    pub fn new(keys: Keys) -> Self {
        Self { keys, revision: 0, limit: 0, keys_only: false }
    }
}

/// What stands in the head of every answer to a read or a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The etcd cluster that answered.
    pub cluster_id: u64,
    /// The store's revision when it answered.
    pub revision: Revision,
}

/// The answer to a [`Range`], sorted by key.
#[derive(Clone, Debug, Default)]
pub struct RangeResult {
    /// The head.
    pub header: Header,
    /// What was found.
    pub items: Vec<KeyValue>,
    /// Whether `limit` cut the answer.
    pub more: bool,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was written: what it is now.
    Put(KeyValue),
    /// The key went, by a delete or with its lease, at this revision.
    Delete {
        /// The key.
        key: Vec<u8>,
        /// The revision at which it went.
        revision: Revision,
    },
}

impl Event {
    /// The key it is about.
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

/// What a watch reports at once: all changes of one or more revisions, in order. A revision is never cut in two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The store's revision as far as this watch has seen it.
    pub revision: Revision,
    /// The changes.
    pub events: Vec<Event>,
}

/// One open watch. Dropping it ends it.
#[async_trait]
pub trait WatchStream: Send + Debug {
    /// The next changes; cancel-safe.
    ///
    /// # Errors
    /// [`crate::Error::Compacted`] if the start revision is gone; [`crate::Error::Unavailable`] if the stream broke
    /// or the connection was given up, after which this watch is over.
    async fn next(&mut self) -> Result<Changes>;

    /// How far this watch has seen: whoever opens the next one goes on at the revision after it. Before the first
    /// changes it is the one before the first that the watch will report.
    fn revision(&self) -> Revision;

    /// The number of the connection that it stands on, see [`Backend::connection`].
    fn connection(&self) -> u64;
}

/// What a service says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its version, for example `3.5.21`.
    pub version: String,
    /// The id of its cluster.
    pub cluster_id: u64,
    /// The id of the etcd member that answered.
    pub member_id: u64,
    /// The id of the leader, 0 if it knows none.
    pub leader: u64,
    /// The store's size in bytes.
    pub db_size: i64,
    /// Alarms and errors that it reports, for example `NOSPACE`.
    pub errors: Vec<String>,
}

/// One attempt of each thing the protocol asks of a store. Every call has a deadline of its own, may be cancelled by
/// dropping it, and fails with [`crate::Error::Unavailable`] when the service does not answer.
#[async_trait]
pub trait Backend: Send + Sync + Debug + 'static {
    /// Read keys.
    async fn range(&self, range: Range) -> Result<RangeResult>;

    /// Do a transaction.
    async fn txn(&self, txn: Txn) -> Result<TxnResult>;

    /// Grant a lease of the caller's own id (not 0). Returns the TTL that the service gave.
    ///
    /// # Errors
    /// [`crate::Error::LeaseExists`], which after a repeated attempt means success.
    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Duration>;

    /// Renew a lease once. Returns the TTL it now has.
    ///
    /// # Errors
    /// [`crate::Error::LeaseNotFound`] if it is over.
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration>;

    /// End a lease and delete what hangs on it.
    ///
    /// # Errors
    /// [`crate::Error::LeaseNotFound`] if it is over already.
    async fn lease_revoke(&self, id: LeaseId) -> Result<()>;

    /// Watch keys from a revision on (0: from now). Returns once the service has created the watch.
    async fn watch(&self, keys: Keys, start: Revision) -> Result<Box<dyn WatchStream>>;

    /// What the service says of itself.
    async fn status(&self) -> Result<Status>;

    /// Logs in, if the service asks for a password. Waits at most `patience` for a service that takes the login, and
    /// then for as long as the answer takes, because the service checks one password after the other.
    ///
    /// # Errors
    /// [`crate::Error::Denied`] if the user or the password is wrong, [`crate::Error::Setting`] if the password cannot
    /// be read, and [`crate::Error::Unavailable`].
    async fn log_in(&self, _patience: Duration) -> Result<()> {
        Ok(())
    }

    /// The endpoint in use, for messages.
    fn endpoint(&self) -> String;

    /// The number of the connection in use: it changes when the backend gives one up and turns to another.
    fn connection(&self) -> u64;
}

/// etcd's TTLs are whole seconds; a part of one counts as one, so that no lease is shorter than was asked.
fn whole_seconds(ttl: Duration) -> i64 {
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
