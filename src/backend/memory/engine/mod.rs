//! An in-memory store with etcd's semantics as a plain value: revisions, history, transactions, leases, compaction
//! and the log from which watches are served.
//!
//! Everything is a function of the arguments, including the time (`now`, since an origin that the owner chooses).
//! There is no I/O, no clock and no randomness, and all maps are ordered, so that a simulation is repeatable. The
//! behavior follows etcd's sources (`server/etcdserver/apply.go`, `lease/lessor.go`, `storage/mvcc`). It covers more
//! of etcd's API than [`crate::backend::Backend`] needs, because [`crate::server`] serves the engine with that API.
//!
//! Its memory is bounded ([`Bounds`]): history is compacted automatically, and requests that would exceed a bound are
//! rejected.

mod check;
mod history;
mod leases;
mod read;
mod refusal;
mod requests;
mod sizes;
mod span;
mod transaction;

use std::{collections::BTreeMap, time::Duration};

use self::{
    history::{Change, Version, size},
    leases::Leases,
    transaction::Chosen,
};
pub use self::{
    refusal::Refusal,
    requests::{
        Action, Batch, Condition, Delete, Done, Found, LeaseView, Order, Outcome, Put, Read, Relation,
        SortBy, Target, Transaction, Usage, Within,
    },
    span::Span,
};
use crate::backend::{LeaseId, Revision};

/// etcd's default `--max-txn-ops`.
pub const MAX_OPERATIONS: usize = 128;
/// etcd's default `--max-request-bytes`.
pub const MAX_REQUEST_BYTES: usize = 3 * 512 * 1024;
/// The shortest lease of an etcd with default flags: one and a half election time-outs, rounded up.
pub const MINIMUM_TTL_SECONDS: i64 = 2;
/// About what a key costs beside its bytes and those of its value: maps, revisions, its place in the log.
const KEY_OVERHEAD_BYTES: usize = 256;

/// What the engine answers.
pub type Answer<T> = Result<T, Refusal>;

/// How much the engine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Keys, values and leases that are there; beyond it writes are refused, as by an etcd that reached its quota.
    pub live_bytes: usize,
    /// What was overwritten or deleted; beyond it the oldest is compacted away.
    pub history_bytes: usize,
    /// Revisions that a watch can be served from; beyond it the oldest are compacted away.
    pub history_revisions: usize,
    /// Shorter leases become that long.
    pub minimum_ttl_seconds: i64,
}

impl Default for Bounds {
    /// A run of 10,000 nodes lives on 50 MB; a node that was away for a TTL must still find what it missed.
    fn default() -> Self {
        Self {
            live_bytes: 1 << 30,
            history_bytes: 64 << 20,
            history_revisions: 100_000,
            minimum_ttl_seconds: MINIMUM_TTL_SECONDS,
        }
    }
}

/// The store.
#[derive(Clone, Debug)]
pub struct Engine {
    revision: Revision,
    compacted: Revision,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    log: BTreeMap<Revision, Vec<Change>>,
    leases: Leases,
    bounds: Bounds,
    usage: Usage,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Engine {
    /// An empty store, at revision 1 as etcd's is.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            revision: 1,
            // So that a first compaction at 0 is one, as it is to etcd.
            compacted: -1,
            keys: BTreeMap::new(),
            log: BTreeMap::new(),
            leases: Leases::default(),
            bounds,
            usage: Usage::default(),
        }
    }

    /// The number of the last write.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read; 0 before the first compaction.
    pub fn compacted(&self) -> Revision {
        self.compacted.max(0)
    }

    /// How much it holds.
    pub fn usage(&self) -> Usage {
        Usage { leases: self.leases.len(), history_revisions: self.log.len(), ..self.usage }
    }

    /// How much it may hold.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Write one key.
    pub fn put(&mut self, put: &Put) -> Answer<Done> {
        check::check_put(put)?;
        self.check_lease(put)?;
        self.check_present(put)?;
        self.check_space(size(&put.key, None) + put.value.len())?;
        let mut changes = Vec::new();
        let outcome = self.write(put, &mut changes);
        Ok(self.done(true, vec![outcome], changes))
    }

    /// Delete keys.
    pub fn delete(&mut self, delete: &Delete) -> Answer<Done> {
        delete.span.check()?;
        let mut changes = Vec::new();
        let outcome = self.remove(delete, &mut changes);
        Ok(self.done(true, vec![outcome], changes))
    }

    /// Grant a lease. Returns the TTL it got.
    pub fn grant(&mut self, now: Duration, id: LeaseId, ttl_seconds: i64) -> Answer<Duration> {
        self.check_space(KEY_OVERHEAD_BYTES)?;
        let ttl = self.leases.grant(now, id, ttl_seconds.max(self.bounds.minimum_ttl_seconds))?;
        self.usage.live_bytes += KEY_OVERHEAD_BYTES;
        Ok(ttl)
    }

    /// Renew a lease. Returns its TTL.
    pub fn keep_alive(&mut self, now: Duration, id: LeaseId) -> Answer<Duration> {
        self.leases.keep_alive(now, id)
    }

    /// End a lease and delete its keys, in one revision.
    pub fn revoke(&mut self, id: LeaseId) -> Answer<()> {
        let keys = self.leases.remove(id)?;
        self.usage.live_bytes = self.usage.live_bytes.saturating_sub(KEY_OVERHEAD_BYTES);
        let mut changes = Vec::new();
        for key in keys {
            self.push(&key, None);
            changes.push(Change::Delete(key));
        }
        self.commit(changes);
        Ok(())
    }

    /// Revoke what is over, at most so many. Returns how many.
    pub fn expire(&mut self, now: Duration, most: usize) -> usize {
        let mut ended = 0;
        while ended < most
            && let Some(id) = self.leases.first_over(now)
            && self.revoke(id).is_ok()
        {
            ended += 1;
        }
        ended
    }

    /// When the next lease will be over.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.leases.next_deadline()
    }

    /// Give every lease its full TTL, as a restarted etcd or its new leader does.
    pub fn renew_all(&mut self, now: Duration) {
        self.leases.renew_all(now);
    }

    /// Give time back that nobody could renew in: to each lease of which it was more than a third. Returns how many.
    pub fn give_back(&mut self, now: Duration, lost: Duration) -> usize {
        self.leases.give_back(now, lost)
    }

    /// What is known of a lease.
    pub fn lease(&self, now: Duration, id: LeaseId) -> Option<LeaseView> {
        self.leases.view(now, id)
    }

    /// The ids of all leases.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.ids()
    }

    fn done(&mut self, succeeded: bool, outcomes: Vec<Outcome>, changes: Vec<Change>) -> Done {
        self.commit(changes);
        Done { revision: self.revision, succeeded, outcomes }
    }
}
