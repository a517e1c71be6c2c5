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
mod leases;
mod refusal;
mod requests;
mod sizes;
mod span;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use self::leases::Leases;
pub use self::{
    refusal::Refusal,
    requests::{
        Action, Batch, Condition, Delete, Done, Found, LeaseView, Order, Outcome, Put, Read, Relation,
        SortBy, Target, Transaction, Usage, Within,
    },
    span::Span,
};
use crate::backend::{Event, KeyValue, LeaseId, Revision};

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

/// What a key was from one revision on: `None` where it was deleted.
#[derive(Clone, Debug)]
struct Version {
    since: Revision,
    item: Option<Arc<KeyValue>>,
}

/// One line of the log.
#[derive(Clone, Debug)]
enum Change {
    Put(Arc<KeyValue>),
    Delete(Vec<u8>),
}

impl Change {
    fn key(&self) -> &[u8] {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete(key) => key,
        }
    }

    fn event(&self, revision: Revision) -> Event {
        match self {
            Self::Put(item) => Event::Put(KeyValue::clone(item)),
            Self::Delete(key) => Event::Delete { key: key.clone(), revision },
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Put(item) => size(&item.key, Some(item)),
            Self::Delete(key) => size(key, None),
        }
    }
}

/// A transaction with its branches chosen, by what was there before it.
struct Chosen<'a> {
    succeeded: bool,
    actions: &'a [Action],
    /// One for each transaction among the actions.
    within: Vec<Chosen<'a>>,
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

    /// Read keys.
    pub fn read(&self, read: &Read) -> Answer<Found> {
        check::check_read(read)?;
        // Below 0 is the newest to etcd here, and compacted within a transaction.
        if read.revision > 0 {
            self.check_read(read)?;
        }
        Ok(self.find(read))
    }

    /// What a key was at a revision; nothing where that is compacted.
    pub fn at(&self, key: &[u8], revision: Revision) -> Option<&KeyValue> {
        if revision < self.compacted {
            return None;
        }
        Some(at(self.keys.get(key)?, revision)?.as_ref())
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

    /// Do a transaction.
    pub fn transact(&mut self, transaction: &Transaction) -> Answer<Done> {
        self.transact_within(transaction, |_| Ok(()))
    }

    /// Do a transaction if there is room for an answer of about so many bytes.
    pub fn transact_within(
        &mut self,
        transaction: &Transaction,
        room: impl FnOnce(usize) -> Answer<()>,
    ) -> Answer<Done> {
        check::check(transaction)?;
        let chosen = self.choose(transaction);
        let added = self.check_puts(&chosen)?;
        self.check_reads(&chosen)?;
        room(self.transaction_bytes(&chosen))?;
        if added > 0 {
            self.check_space(added)?;
        }
        // Nothing below can fail: a transaction applies whole or not at all.
        let mut changes = Vec::new();
        let outcomes = self.carry_out(&chosen, &mut changes);
        Ok(self.done(chosen.succeeded, outcomes, changes))
    }

    /// Forget what was before `revision`, which itself can still be read and watched.
    pub fn compact(&mut self, revision: Revision) -> Answer<()> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted { oldest: self.compacted() });
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.forget(revision);
        Ok(())
    }

    /// The changes of these keys at `from` and later, revision by revision: of so many revisions at most, and no more
    /// revisions once there are so many bytes.
    pub fn changes(&self, span: &Span, from: Revision, revisions: usize, bytes: usize) -> Answer<Batch> {
        if from < self.compacted {
            return Err(Refusal::Compacted { oldest: self.compacted() });
        }
        let mut batch = Batch { events: Vec::new(), next: from.max(self.revision + 1) };
        let mut taken = 0;
        for (looked_at, (&revision, changes)) in self.log.range(from..).enumerate() {
            if looked_at >= revisions || taken >= bytes {
                batch.next = revision;
                break;
            }
            for change in changes.iter().filter(|change| span.contains(change.key())) {
                taken += change.size();
                batch.events.push(change.event(revision));
            }
        }
        Ok(batch)
    }

    /// The keys that changed after `revision`, once for each change, with its revision.
    pub fn changed_keys(&self, revision: Revision) -> impl Iterator<Item = (&[u8], Revision)> {
        let later = self.log.range(revision + 1..);
        later.flat_map(|(revision, changes)| changes.iter().map(|change| (change.key(), *revision)))
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

    fn commit(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.revision += 1;
            self.log.insert(self.revision, changes);
            self.bound_history();
        }
    }

    /// Compacts a quarter of the history away, and again while there is still too much of it.
    fn bound_history(&mut self) {
        while (self.usage.history_bytes > self.bounds.history_bytes
            || self.log.len() > self.bounds.history_revisions)
            && let Some((&oldest, _)) = self.log.first_key_value()
            && self.compacted < self.revision
        {
            let quarter = Revision::try_from(self.log.len() / 4).unwrap_or(1).max(1);
            self.forget((oldest + quarter).min(self.revision));
        }
    }

    fn forget(&mut self, revision: Revision) {
        self.compacted = revision;
        // Only what was changed until then has anything to forget; of earlier compactions nothing is left to.
        let changed: BTreeSet<Vec<u8>> = self
            .log
            .range(..=revision)
            .flat_map(|(_, changes)| changes)
            .map(|change| change.key().to_vec())
            .collect();
        self.log = self.log.split_off(&revision);
        for key in changed {
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            let kept = versions.partition_point(|version| version.since <= revision);
            let mut forgotten: Vec<_> = versions.drain(..kept.saturating_sub(1)).collect();
            // A tombstone that nothing can read any more.
            if versions.first().is_some_and(|first| first.item.is_none() && first.since <= revision) {
                forgotten.push(versions.remove(0));
            }
            if versions.is_empty() {
                self.keys.remove(&key);
            }
            for version in forgotten {
                let bytes = size(&key, version.item.as_deref());
                self.usage.history_bytes = self.usage.history_bytes.saturating_sub(bytes);
            }
        }
    }

    fn choose<'a>(&self, transaction: &'a Transaction) -> Chosen<'a> {
        let succeeded = transaction.when.iter().all(|condition| self.holds(condition));
        let actions = if succeeded { &transaction.then } else { &transaction.otherwise };
        let within = actions.iter().filter_map(|action| match action {
            Action::Transaction(within) => Some(self.choose(within)),
            _ => None,
        });
        Chosen { succeeded, actions, within: within.collect() }
    }

    fn holds(&self, condition: &Condition) -> bool {
        let mut items = self.items(&condition.span, Revision::MAX).peekable();
        if items.peek().is_none() {
            return !matches!(condition.target, Target::Value(_)) && condition.holds(&KeyValue::default());
        }
        items.all(|item| condition.holds(item))
    }

    /// Refuses what cannot be written. Returns about how many bytes are added.
    fn check_puts(&self, chosen: &Chosen<'_>) -> Answer<usize> {
        let mut within = chosen.within.iter();
        let mut added = 0;
        for action in chosen.actions {
            match action {
                Action::Put(put) => {
                    self.check_present(put)?;
                    self.check_lease(put)?;
                    added += size(&put.key, None) + put.value.len();
                }
                Action::Transaction(_) => {
                    added += within.next().map_or(Ok(0), |within| self.check_puts(within))?;
                }
                Action::Read(_) | Action::Delete(_) | Action::Nothing => {}
            }
        }
        Ok(added)
    }

    fn check_reads(&self, chosen: &Chosen<'_>) -> Answer<()> {
        let mut within = chosen.within.iter();
        for action in chosen.actions {
            match action {
                Action::Read(read) => self.check_read(read)?,
                Action::Transaction(_) => within.next().map_or(Ok(()), |within| self.check_reads(within))?,
                Action::Put(_) | Action::Delete(_) | Action::Nothing => {}
            }
        }
        Ok(())
    }

    fn check_present(&self, put: &Put) -> Answer<()> {
        let absent = || self.at(&put.key, Revision::MAX).is_none();
        if (put.ignore_value || put.ignore_lease) && absent() { Err(Refusal::KeyNotFound) } else { Ok(()) }
    }

    fn check_lease(&self, put: &Put) -> Answer<()> {
        if put.lease != 0 && !self.leases.contains(put.lease) {
            return Err(Refusal::LeaseNotFound(put.lease));
        }
        Ok(())
    }

    fn check_space(&self, added: usize) -> Answer<()> {
        if self.usage.live_bytes + added > self.bounds.live_bytes { Err(Refusal::NoSpace) } else { Ok(()) }
    }

    fn check_read(&self, read: &Read) -> Answer<()> {
        if read.revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        if read.revision != 0 && read.revision < self.compacted {
            return Err(Refusal::Compacted { oldest: self.compacted() });
        }
        Ok(())
    }

    /// What was there at a revision, sorted by key.
    fn items(&self, span: &Span, revision: Revision) -> impl Iterator<Item = &Arc<KeyValue>> {
        let keys = (!span.is_empty()).then(|| self.keys.range::<[u8], _>(span.bounds()));
        keys.into_iter().flatten().filter_map(move |(_, versions)| at(versions, revision))
    }

    /// Reads, within a transaction that began at [`Self::revision`] too.
    fn find(&self, read: &Read) -> Found {
        let revision = if read.revision > 0 { read.revision } else { Revision::MAX };
        let mut items = self.items(&read.span, revision);
        let mut found = Found { revision: self.revision, ..Found::default() };
        if read.count_only {
            found.count = items.count();
            return found;
        }
        // As etcd does: an order that was not asked for sorts only what the limit let through.
        let selects = read.order != Order::Unsaid || read.within != Within::default();
        let most = if selects || read.limit == 0 { usize::MAX } else { read.limit.saturating_add(1) };
        let mut taken: Vec<_> = items.by_ref().take(most).collect();
        found.count = taken.len() + items.count();
        taken.retain(|item| read.within.contains(item));
        sort(&mut taken, read.sort_by, read.order);
        found.more = read.limit > 0 && taken.len() > read.limit;
        if found.more {
            taken.truncate(read.limit);
        }
        let item = |item: &Arc<KeyValue>| {
            let value = if read.keys_only { Vec::new() } else { item.value.clone() };
            KeyValue { key: item.key.clone(), value, ..**item }
        };
        found.items = taken.into_iter().map(item).collect();
        found
    }

    fn carry_out(&mut self, chosen: &Chosen<'_>, changes: &mut Vec<Change>) -> Vec<Outcome> {
        let mut within = chosen.within.iter();
        let mut outcomes = Vec::with_capacity(chosen.actions.len());
        for action in chosen.actions {
            outcomes.push(match action {
                Action::Put(put) => self.write(put, changes),
                Action::Read(read) => {
                    let mut found = self.find(read);
                    found.revision = self.after(changes);
                    Outcome::Read(found)
                }
                Action::Delete(delete) => self.remove(delete, changes),
                Action::Transaction(_) => {
                    let Some(within) = within.next() else { continue };
                    Outcome::Transaction(within.succeeded, self.carry_out(within, changes))
                }
                // Was refused before.
                Action::Nothing => continue,
            });
        }
        outcomes
    }

    /// The revision that the store is at after these changes.
    fn after(&self, changes: &[Change]) -> Revision {
        self.revision + Revision::from(!changes.is_empty())
    }

    fn write(&mut self, put: &Put, changes: &mut Vec<Change>) -> Outcome {
        let revision = self.revision + 1;
        let previous =
            self.keys.get(&put.key).and_then(|versions| at(versions, Revision::MAX)).map(Arc::clone);
        let (create_revision, version, old_lease) = previous
            .as_ref()
            .map_or((revision, 1, 0), |item| (item.create_revision, item.version + 1, item.lease));
        let value = match &previous {
            Some(item) if put.ignore_value => item.value.clone(),
            _ => put.value.clone(),
        };
        let lease = if put.ignore_lease { old_lease } else { put.lease };
        if lease != old_lease {
            self.leases.detach(old_lease, &put.key);
            self.leases.attach(lease, &put.key);
        }
        let key = put.key.clone();
        let item = Arc::new(KeyValue { key, value, create_revision, mod_revision: revision, version, lease });
        changes.push(Change::Put(Arc::clone(&item)));
        self.push(&put.key, Some(item));
        Outcome::Put(revision, previous.filter(|_| put.previous).map(|item| KeyValue::clone(&item)))
    }

    fn remove(&mut self, delete: &Delete, changes: &mut Vec<Change>) -> Outcome {
        let items: Vec<_> = self.items(&delete.span, Revision::MAX).map(Arc::clone).collect();
        for item in &items {
            self.leases.detach(item.lease, &item.key);
            self.push(&item.key, None);
            changes.push(Change::Delete(item.key.clone()));
        }
        let previous = if delete.previous { items.as_slice() } else { &[] };
        let previous = previous.iter().map(|item| KeyValue::clone(item)).collect();
        Outcome::Deleted(self.after(changes), items.len(), previous)
    }

    /// What a key is from the next revision on.
    fn push(&mut self, key: &[u8], item: Option<Arc<KeyValue>>) {
        let Usage { keys, live_bytes, history_bytes, .. } = &mut self.usage;
        let versions = match self.keys.get_mut(key) {
            Some(versions) => versions,
            None => self.keys.entry(key.to_vec()).or_default(),
        };
        if let Some(previous) = versions.last().and_then(|version| version.item.as_deref()) {
            let bytes = size(key, Some(previous));
            *live_bytes = live_bytes.saturating_sub(bytes);
            *history_bytes += bytes;
            *keys -= 1;
        }
        match &item {
            Some(item) => {
                *live_bytes += size(key, Some(item));
                *keys += 1;
            }
            None => *history_bytes += size(key, None),
        }
        versions.push(Version { since: self.revision + 1, item });
    }
}

fn at(versions: &[Version], revision: Revision) -> Option<&Arc<KeyValue>> {
    let after = versions.partition_point(|version| version.since <= revision);
    versions.get(after.checked_sub(1)?)?.item.as_ref()
}

fn size(key: &[u8], item: Option<&KeyValue>) -> usize {
    KEY_OVERHEAD_BYTES + key.len() + item.map_or(0, |item| item.value.len())
}

fn sort(items: &mut [&Arc<KeyValue>], by: SortBy, order: Order) {
    let compare = |a: &&Arc<KeyValue>, b: &&Arc<KeyValue>| match by {
        SortBy::Key | SortBy::Unknown => a.key.cmp(&b.key),
        SortBy::Version => a.version.cmp(&b.version),
        SortBy::Create => a.create_revision.cmp(&b.create_revision),
        SortBy::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortBy::Value => a.value.cmp(&b.value),
    };
    let reversed = |a: &&Arc<KeyValue>, b: &&Arc<KeyValue>| -> Ordering { compare(b, a) };
    match order {
        Order::Descending => items.sort_by(reversed),
        Order::Ascending | Order::Unsaid | Order::Unknown => items.sort_by(compare),
    }
}
