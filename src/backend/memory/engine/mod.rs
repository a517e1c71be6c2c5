//! The data of a service with etcd's semantics as a plain value: revisions, history, transactions, leases, compaction
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
/// The minimum TTL of an etcd with default flags: one and a half election timeouts, rounded up.
pub const MINIMUM_TTL_SECONDS: i64 = 2;
/// The approximate overhead of a key besides its bytes and those of its value: maps, revisions, its entry in the log.
const KEY_OVERHEAD_BYTES: usize = 256;

/// The result of a request to the engine.
pub type Answer<T> = Result<T, Refusal>;

/// The limits of what the engine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the present keys, values, and leases. Above it, writes are refused, as by an etcd that reached its
    /// quota.
    pub live_bytes: usize,
    /// Bytes of what was overwritten or deleted. Above it, the oldest is compacted.
    pub history_bytes: usize,
    /// Revisions that a watch can be served from. Above it, the oldest are compacted.
    pub history_revisions: usize,
    /// Shorter leases get this TTL.
    pub minimum_ttl_seconds: i64,
}

impl Default for Bounds {
    /// A run of 10,000 nodes needs 50 MB. A node that was disconnected for a TTL must still find what it missed.
    fn default() -> Self {
        Self {
            live_bytes: 1 << 30,
            history_bytes: 64 << 20,
            history_revisions: 100_000,
            minimum_ttl_seconds: MINIMUM_TTL_SECONDS,
        }
    }
}

/// The data of the service.
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
    /// An engine without keys, at revision 1 like an empty etcd.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            revision: 1,
            // So that a first compaction at 0 counts as one, as in etcd.
            compacted: -1,
            keys: BTreeMap::new(),
            log: BTreeMap::new(),
            leases: Leases::default(),
            bounds,
            usage: Usage::default(),
        }
    }

    /// The revision of the last write.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read; 0 before the first compaction.
    pub fn compacted(&self) -> Revision {
        self.compacted.max(0)
    }

    /// The present size of the data.
    pub fn usage(&self) -> Usage {
        Usage { leases: self.leases.len(), history_revisions: self.log.len(), ..self.usage }
    }

    /// The limits of the size.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Writes one key.
    pub fn put(&mut self, put: &Put) -> Answer<Done> {
        check::check_put(put)?;
        self.check_lease(put)?;
        self.check_present(put)?;
        self.check_space(size(&put.key, None) + put.value.len())?;
        let mut changes = Vec::new();
        let outcome = self.write(put, &mut changes);
        Ok(self.done(true, vec![outcome], changes))
    }

    /// Deletes keys.
    pub fn delete(&mut self, delete: &Delete) -> Answer<Done> {
        delete.span.check()?;
        let mut changes = Vec::new();
        let outcome = self.remove(delete, &mut changes);
        Ok(self.done(true, vec![outcome], changes))
    }

    /// Grants a lease. Returns its TTL.
    pub fn grant(&mut self, now: Duration, id: LeaseId, ttl_seconds: i64) -> Answer<Duration> {
        self.check_space(KEY_OVERHEAD_BYTES)?;
        let ttl = self.leases.grant(now, id, ttl_seconds.max(self.bounds.minimum_ttl_seconds))?;
        self.usage.live_bytes += KEY_OVERHEAD_BYTES;
        Ok(ttl)
    }

    /// Renews a lease. Returns its TTL.
    pub fn keep_alive(&mut self, now: Duration, id: LeaseId) -> Answer<Duration> {
        self.leases.keep_alive(now, id)
    }

    /// Revokes a lease and deletes its keys, in one revision.
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

    /// Revokes up to `most` of the leases that have expired. Returns how many.
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

    /// When the next lease will expire.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.leases.next_deadline()
    }

    /// Gives every lease its full TTL, as an etcd does after a restart, or a new leader.
    pub fn renew_all(&mut self, now: Duration) {
        self.leases.renew_all(now);
    }

    /// Extends the leases by time in which no node could renew them, if it was more than a third of their TTL. Returns
    /// how many.
    pub fn give_back(&mut self, now: Duration, lost: Duration) -> usize {
        self.leases.give_back(now, lost)
    }

    /// Describes a lease.
    pub fn lease(&self, now: Duration, id: LeaseId) -> Option<LeaseView> {
        self.leases.view(now, id)
    }

    /// The IDs of all leases.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.ids()
    }

    fn done(&mut self, succeeded: bool, outcomes: Vec<Outcome>, changes: Vec<Change>) -> Done {
        self.commit(changes);
        Done { revision: self.revision, succeeded, outcomes }
    }
}
