//! Leases: which exist, when each expires, and which keys are attached to it. The engine deletes those keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Answer, LeaseView, Refusal};
use crate::backend::LeaseId;

/// etcd's `MaxLeaseTTL`.
const MAXIMUM_TTL_SECONDS: i64 = 9_000_000_000;

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    deadline: Duration,
    keys: BTreeSet<Vec<u8>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
    deadlines: BTreeSet<(Duration, LeaseId)>,
}

impl Leases {
    pub(super) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(super) fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    pub(super) fn grant(&mut self, now: Duration, id: LeaseId, ttl_seconds: i64) -> Answer<Duration> {
        if ttl_seconds > MAXIMUM_TTL_SECONDS {
            return Err(Refusal::TtlTooLarge);
        }
        if self.contains(id) {
            return Err(Refusal::LeaseExists(id));
        }
        let ttl = Duration::from_secs(ttl_seconds.max(1).unsigned_abs());
        let deadline = now + ttl;
        self.leases.insert(id, Lease { ttl, deadline, keys: BTreeSet::new() });
        self.deadlines.insert((deadline, id));
        Ok(ttl)
    }

    pub(super) fn keep_alive(&mut self, now: Duration, id: LeaseId) -> Answer<Duration> {
        let lease = self.leases.get_mut(&id).ok_or(Refusal::LeaseNotFound(id))?;
        // etcd rejects the renewal of a lease that has expired but is not revoked yet.
        if lease.deadline <= now {
            return Err(Refusal::LeaseNotFound(id));
        }
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now + lease.ttl;
        self.deadlines.insert((lease.deadline, id));
        Ok(lease.ttl)
    }

    /// Removes a lease. Returns the keys that were attached to it, sorted.
    pub(super) fn remove(&mut self, id: LeaseId) -> Answer<BTreeSet<Vec<u8>>> {
        let lease = self.leases.remove(&id).ok_or(Refusal::LeaseNotFound(id))?;
        self.deadlines.remove(&(lease.deadline, id));
        Ok(lease.keys)
    }

    /// The lease that expired first.
    pub(super) fn first_over(&self, now: Duration) -> Option<LeaseId> {
        let &(deadline, id) = self.deadlines.first()?;
        (deadline <= now).then_some(id)
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub(super) fn renew_all(&mut self, now: Duration) {
        self.deadlines.clear();
        for (id, lease) in &mut self.leases {
            lease.deadline = now + lease.ttl;
            self.deadlines.insert((lease.deadline, *id));
        }
    }

    /// Extends each lease that lost more than a third of its TTL, at most to its full TTL from now.
    pub(super) fn give_back(&mut self, now: Duration, lost: Duration) -> usize {
        let mut count = 0;
        for (id, lease) in &mut self.leases {
            if lost * 3 > lease.ttl {
                self.deadlines.remove(&(lease.deadline, *id));
                lease.deadline = (lease.deadline + lost).min(now + lease.ttl);
                self.deadlines.insert((lease.deadline, *id));
                count += 1;
            }
        }
        count
    }

    pub(super) fn view(&self, now: Duration, id: LeaseId) -> Option<LeaseView> {
        let lease = self.leases.get(&id)?;
        let remaining = lease.deadline.saturating_sub(now);
        Some(LeaseView { granted: lease.ttl, remaining, keys: lease.keys.iter().cloned().collect() })
    }

    pub(super) fn attach(&mut self, id: LeaseId, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key.to_vec());
        }
    }

    pub(super) fn detach(&mut self, id: LeaseId, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }
}
