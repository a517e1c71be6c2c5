//! A store with etcd's semantics as a plain value: revisions, history, transactions, leases, compaction and the log
//! that watches are served from.
//!
//! Everything is a function of what is passed in, the time included (`now`, since an origin of the owner's choice):
//! no I/O, no clock, no randomness, and ordered maps only, so that a simulation is repeatable. What etcd does is from
//! its sources (`server/etcdserver/apply.go`, `api/v3rpc/key.go`, `lease/lessor.go`, `storage/mvcc`), its error texts
//! from `rpctypes/error.go`. It is richer than [`super::Backend`] asks for where etcd's own API is, because the engine
//! is also served behind that API. It does not nest transactions.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

use crate::backend::{Event, KeyValue, Keys, LeaseId, Revision};

/// etcd's default `--max-txn-ops`.
pub const MAX_OPERATIONS: usize = 128;
/// etcd's default `--max-request-bytes`.
pub const MAX_REQUEST_BYTES: usize = 3 * 512 * 1024;
/// The shortest lease of an etcd with default flags: one and a half election time-outs, rounded up.
pub const MINIMUM_TTL_SECONDS: i64 = 2;
/// etcd's `MaxLeaseTTL`.
const MAXIMUM_TTL_SECONDS: i64 = 9_000_000_000;
/// About what a message, its tags and lengths add to the bytes of one operation's key and value.
const OPERATION_OVERHEAD_BYTES: usize = 16;

/// Why the engine does not do what was asked; each has etcd's own text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The revision is compacted.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision is beyond the store's.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// No such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound(LeaseId),
    /// A lease of that id exists.
    #[error("etcdserver: lease already exists")]
    LeaseExists(LeaseId),
    /// The TTL is beyond what etcd accepts.
    #[error("etcdserver: too large lease TTL")]
    TtlTooLarge,
    /// An empty key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// A put that keeps a value or a lease, of a key that is not there.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// A value with a put that keeps the present one.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// A lease with a put that keeps the present one.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// One key twice among the writes of one branch.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// More than [`MAX_OPERATIONS`].
    #[error("etcdserver: too many operations in txn request")]
    TooManyOperations,
    /// More than [`MAX_REQUEST_BYTES`].
    #[error("etcdserver: request is too large")]
    TooLarge,
}

/// What the engine answers.
pub type Answer<T> = Result<T, Refusal>;

/// All keys `from <= key`, and `< to` where there is one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

impl Span {
    /// One key.
    pub fn one(key: &[u8]) -> Self {
        let mut to = key.to_vec();
        to.push(0);
        Self { from: key.to_vec(), to: Some(to) }
    }

    /// All keys with this prefix.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut to = prefix.to_vec();
        while let Some(last) = to.pop() {
            if last < u8::MAX {
                to.push(last + 1);
                return Self { from: prefix.to_vec(), to: Some(to) };
            }
        }
        Self { from: prefix.to_vec(), to: None }
    }

    /// What `key` and `range_end` of etcd's requests mean: an empty end is the one key, a zero byte is no end.
    pub fn of_request(key: &[u8], range_end: &[u8]) -> Self {
        match range_end {
            [] => Self::one(key),
            [0] => Self { from: key.to_vec(), to: None },
            _ => Self { from: key.to_vec(), to: Some(range_end.to_vec()) },
        }
    }

    /// Whether a key is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.from.as_slice() <= key && self.to.as_ref().is_none_or(|to| key < to.as_slice())
    }

    fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }

    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let to = self.to.as_ref().map_or(Bound::Unbounded, |to| Bound::Excluded(to.as_slice()));
        (Bound::Included(self.from.as_slice()), to)
    }

    fn size(&self) -> usize {
        self.from.len() + self.to.as_ref().map_or(0, Vec::len) + OPERATION_OVERHEAD_BYTES
    }
}

impl TryFrom<&Keys> for Span {
    type Error = Refusal;

    fn try_from(keys: &Keys) -> Answer<Self> {
        match keys {
            Keys::One(key) | Keys::Span(key, _) if key.is_empty() => Err(Refusal::EmptyKey),
            Keys::One(key) => Ok(Self::one(key)),
            Keys::Prefix(prefix) => Ok(Self::prefix(prefix)),
            Keys::Span(from, to) => Ok(Self { from: from.clone(), to: Some(to.clone()) }),
        }
    }
}

/// A read.
#[derive(Clone, Debug)]
pub struct Read {
    /// Which keys.
    pub span: Span,
    /// At which revision; 0 is the newest.
    pub revision: Revision,
    /// At most so many; 0 is all.
    pub limit: usize,
    /// Leave the values out.
    pub keys_only: bool,
}

impl Read {
    /// All of these keys, now.
    pub fn all(span: Span) -> Self {
        Self { span, revision: 0, limit: 0, keys_only: false }
    }
}

/// What a read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The keys, sorted.
    pub items: Vec<KeyValue>,
    /// How many there are without the limit.
    pub count: usize,
}

impl Found {
    /// Whether the limit cut it.
    pub fn more(&self) -> bool {
        self.count > self.items.len()
    }
}

/// What a condition looks at, and the value to compare it with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// How often the key was written since its creation.
    Version(i64),
    /// Its create revision.
    CreateRevision(Revision),
    /// Its mod revision.
    ModRevision(Revision),
    /// Its lease.
    Lease(LeaseId),
    /// Its value; of a key that is not there, no relation holds.
    Value(Vec<u8>),
}

/// How what is there must stand to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same.
    Equal,
    /// Another.
    NotEqual,
    /// Greater.
    Greater,
    /// Less.
    Less,
}

impl Relation {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering == Ordering::Equal,
            Self::NotEqual => ordering != Ordering::Equal,
            Self::Greater => ordering == Ordering::Greater,
            Self::Less => ordering == Ordering::Less,
        }
    }
}

/// One condition of a transaction; it must hold for every key of the span.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Which keys.
    pub span: Span,
    /// What of them.
    pub target: Target,
    /// How it must be.
    pub relation: Relation,
}

/// A put.
#[derive(Clone, Debug, Default)]
pub struct Put {
    /// The key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// Its lease, or 0.
    pub lease: LeaseId,
    /// Keep the present value.
    pub ignore_value: bool,
    /// Keep the present lease.
    pub ignore_lease: bool,
    /// Answer with what was there.
    pub previous: bool,
}

/// One action of a transaction.
#[derive(Clone, Debug)]
pub enum Action {
    /// Write.
    Put(Put),
    /// Read.
    Read(Read),
    /// Delete.
    Delete {
        /// Which keys.
        span: Span,
        /// Answer with what was there.
        previous: bool,
    },
}

impl Action {
    fn size(&self) -> usize {
        match self {
            Self::Put(put) => put.key.len() + put.value.len() + OPERATION_OVERHEAD_BYTES,
            Self::Read(read) => read.span.size(),
            Self::Delete { span, .. } => span.size(),
        }
    }

    fn writes(&self) -> bool {
        !matches!(self, Self::Read(_))
    }
}

/// If all of `when` hold then `then`, otherwise `otherwise`.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// The conditions.
    pub when: Vec<Condition>,
    /// What to do if they hold.
    pub then: Vec<Action>,
    /// What to do if one does not.
    pub otherwise: Vec<Action>,
}

/// The answer to one [`Action`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of a put: what was there, if that was asked for.
    Put(Option<KeyValue>),
    /// Of a read.
    Read(Found),
    /// Of a delete: how many keys went, and what was there, if that was asked for.
    Deleted(usize, Vec<KeyValue>),
}

/// The answer to a [`Transaction`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The store's revision after it; if it wrote, the mod revision of everything it wrote.
    pub revision: Revision,
    /// Whether the conditions held.
    pub succeeded: bool,
    /// One for each action of the branch taken.
    pub outcomes: Vec<Outcome>,
}

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// The TTL it was granted.
    pub granted: Duration,
    /// How long it still has.
    pub remaining: Duration,
    /// The keys that hang on it.
    pub keys: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    deadline: Duration,
    keys: BTreeSet<Vec<u8>>,
}

/// What a key was from one revision on: `None` where it was deleted.
#[derive(Clone, Debug)]
struct Version {
    since: Revision,
    item: Option<KeyValue>,
}

/// The store.
#[derive(Clone, Debug)]
pub struct Engine {
    revision: Revision,
    compacted: Revision,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    log: BTreeMap<Revision, Vec<Event>>,
    leases: BTreeMap<LeaseId, Lease>,
    deadlines: BTreeSet<(Duration, LeaseId)>,
    minimum_ttl_seconds: i64,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new(MINIMUM_TTL_SECONDS)
    }
}

impl Engine {
    /// An empty store, at revision 1 as etcd's is. Shorter leases than `minimum_ttl_seconds` become that long.
    pub fn new(minimum_ttl_seconds: i64) -> Self {
        Self {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: BTreeMap::new(),
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            minimum_ttl_seconds,
        }
    }

    /// The number of the last write.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read; 0 before the first compaction.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// About how many bytes the live keys and their history take.
    pub fn size(&self) -> usize {
        let version = |version: &Version| version.item.as_ref().map_or(0, |item| item.value.len());
        self.keys.iter().map(|(key, versions)| key.len() + versions.iter().map(version).sum::<usize>()).sum()
    }

    /// Read keys.
    pub fn read(&self, read: &Read) -> Answer<Found> {
        self.check_read(read)?;
        Ok(self.find(read))
    }

    /// What a key was at a revision.
    pub fn at(&self, key: &[u8], revision: Revision) -> Option<&KeyValue> {
        at(self.keys.get(key)?, revision)
    }

    /// Do a transaction.
    pub fn transact(&mut self, transaction: &Transaction) -> Answer<Done> {
        check_shape(transaction)?;
        let succeeded = transaction.when.iter().all(|condition| self.holds(condition));
        let actions = if succeeded { &transaction.then } else { &transaction.otherwise };
        for action in actions {
            match action {
                Action::Put(put) => self.check_put(put)?,
                Action::Read(read) => self.check_read(read)?,
                Action::Delete { .. } => {}
            }
        }
        // Nothing below can fail: a transaction applies whole or not at all.
        let mut events = Vec::new();
        let outcomes = actions.iter().map(|action| self.apply(action, &mut events)).collect();
        self.commit(events);
        Ok(Done { revision: self.revision, succeeded, outcomes })
    }

    /// Forget what was before `revision`, which itself can still be read and watched.
    pub fn compact(&mut self, revision: Revision) -> Answer<()> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted { oldest: self.compacted });
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.compacted = revision;
        self.log = self.log.split_off(&revision);
        self.keys.retain(|_, versions| {
            let kept = versions.partition_point(|version| version.since <= revision);
            versions.drain(..kept.saturating_sub(1));
            // A tombstone that nothing can read any more.
            if versions.first().is_some_and(|first| first.item.is_none() && first.since <= revision) {
                versions.remove(0);
            }
            !versions.is_empty()
        });
        Ok(())
    }

    /// The changes of these keys at `from` and later, revision by revision.
    pub fn changes(&self, span: &Span, from: Revision) -> Answer<Vec<Event>> {
        if from < self.compacted {
            return Err(Refusal::Compacted { oldest: self.compacted });
        }
        let events = self.log.range(from..).flat_map(|(_, events)| events);
        Ok(events.filter(|event| span.contains(event.key())).cloned().collect())
    }

    /// The keys that changed after `revision`, once for each change.
    pub fn changed_keys(&self, revision: Revision) -> impl Iterator<Item = &[u8]> {
        self.log.range(revision + 1..).flat_map(|(_, events)| events).map(Event::key)
    }

    /// Grant a lease. Returns the TTL it got.
    pub fn grant(&mut self, now: Duration, id: LeaseId, ttl_seconds: i64) -> Answer<Duration> {
        if ttl_seconds > MAXIMUM_TTL_SECONDS {
            return Err(Refusal::TtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Refusal::LeaseExists(id));
        }
        let seconds = ttl_seconds.max(self.minimum_ttl_seconds).max(1);
        let ttl = Duration::from_secs(seconds.unsigned_abs());
        let deadline = now + ttl;
        self.leases.insert(id, Lease { ttl, deadline, keys: BTreeSet::new() });
        self.deadlines.insert((deadline, id));
        Ok(ttl)
    }

    /// Renew a lease. Returns its TTL.
    pub fn keep_alive(&mut self, now: Duration, id: LeaseId) -> Answer<Duration> {
        let lease = self.leases.get_mut(&id).ok_or(Refusal::LeaseNotFound(id))?;
        // etcd refuses one that is over but not revoked yet.
        if lease.deadline <= now {
            return Err(Refusal::LeaseNotFound(id));
        }
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now + lease.ttl;
        self.deadlines.insert((lease.deadline, id));
        Ok(lease.ttl)
    }

    /// End a lease and delete its keys, in one revision.
    pub fn revoke(&mut self, id: LeaseId) -> Answer<()> {
        let lease = self.leases.remove(&id).ok_or(Refusal::LeaseNotFound(id))?;
        self.deadlines.remove(&(lease.deadline, id));
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for key in lease.keys {
            if let Some(versions) = self.keys.get_mut(&key) {
                versions.push(Version { since: revision, item: None });
                events.push(Event::Delete { key, revision });
            }
        }
        self.commit(events);
        Ok(())
    }

    /// Revoke what is over.
    pub fn expire(&mut self, now: Duration) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now || self.revoke(id).is_err() {
                break;
            }
        }
    }

    /// When the next lease will be over.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Give every lease its full TTL, as a restarted etcd or its new leader does.
    pub fn renew_all(&mut self, now: Duration) {
        self.deadlines.clear();
        for (id, lease) in &mut self.leases {
            lease.deadline = now + lease.ttl;
            self.deadlines.insert((lease.deadline, *id));
        }
    }

    /// What is known of a lease.
    pub fn lease(&self, now: Duration, id: LeaseId) -> Option<LeaseView> {
        let lease = self.leases.get(&id)?;
        let remaining = lease.deadline.saturating_sub(now);
        Some(LeaseView { granted: lease.ttl, remaining, keys: lease.keys.iter().cloned().collect() })
    }

    /// The ids of all leases.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    fn commit(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision += 1;
            self.log.insert(self.revision, events);
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        let found = self.find(&Read::all(condition.span.clone())).items;
        let holds = |item: &KeyValue| {
            let ordering = match &condition.target {
                Target::Version(version) => item.version.cmp(version),
                Target::CreateRevision(revision) => item.create_revision.cmp(revision),
                Target::ModRevision(revision) => item.mod_revision.cmp(revision),
                Target::Lease(lease) => item.lease.cmp(lease),
                Target::Value(value) => item.value.cmp(value),
            };
            condition.relation.holds(ordering)
        };
        if found.is_empty() {
            return !matches!(condition.target, Target::Value(_)) && holds(&KeyValue::default());
        }
        found.iter().all(holds)
    }

    fn check_put(&self, put: &Put) -> Answer<()> {
        let absent = || self.at(&put.key, Revision::MAX).is_none();
        if (put.ignore_value || put.ignore_lease) && absent() {
            return Err(Refusal::KeyNotFound);
        }
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Refusal::LeaseNotFound(put.lease));
        }
        Ok(())
    }

    fn check_read(&self, read: &Read) -> Answer<()> {
        if read.revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        if read.revision > 0 && read.revision < self.compacted {
            return Err(Refusal::Compacted { oldest: self.compacted });
        }
        Ok(())
    }

    fn find(&self, read: &Read) -> Found {
        let mut found = Found::default();
        if read.span.is_empty() {
            return found;
        }
        let revision = if read.revision > 0 { read.revision } else { Revision::MAX };
        for (_, versions) in self.keys.range::<[u8], _>(read.span.bounds()) {
            let Some(item) = at(versions, revision) else { continue };
            found.count += 1;
            if read.limit == 0 || found.items.len() < read.limit {
                let value = if read.keys_only { Vec::new() } else { item.value.clone() };
                found.items.push(KeyValue { key: item.key.clone(), value, ..*item });
            }
        }
        found
    }

    fn apply(&mut self, action: &Action, events: &mut Vec<Event>) -> Outcome {
        match action {
            Action::Put(put) => Outcome::Put(self.put(put, events)),
            Action::Read(read) => Outcome::Read(self.find(read)),
            Action::Delete { span, previous } => self.delete(span, *previous, events),
        }
    }

    fn put(&mut self, put: &Put, events: &mut Vec<Event>) -> Option<KeyValue> {
        let revision = self.revision + 1;
        let previous = self.at(&put.key, Revision::MAX).cloned();
        let (create_revision, version, old_lease) = previous
            .as_ref()
            .map_or((revision, 1, 0), |item| (item.create_revision, item.version + 1, item.lease));
        let value = match &previous {
            Some(item) if put.ignore_value => item.value.clone(),
            _ => put.value.clone(),
        };
        let lease = if put.ignore_lease { old_lease } else { put.lease };
        if lease != old_lease {
            self.detach(old_lease, &put.key);
            if let Some(lease) = self.leases.get_mut(&lease) {
                lease.keys.insert(put.key.clone());
            }
        }
        let key = put.key.clone();
        let item = KeyValue { key, value, create_revision, mod_revision: revision, version, lease };
        events.push(Event::Put(item.clone()));
        self.keys.entry(put.key.clone()).or_default().push(Version { since: revision, item: Some(item) });
        previous.filter(|_| put.previous)
    }

    fn delete(&mut self, span: &Span, previous: bool, events: &mut Vec<Event>) -> Outcome {
        let revision = self.revision + 1;
        let items = self.find(&Read::all(span.clone())).items;
        for item in &items {
            self.detach(item.lease, &item.key);
            if let Some(versions) = self.keys.get_mut(&item.key) {
                versions.push(Version { since: revision, item: None });
            }
            events.push(Event::Delete { key: item.key.clone(), revision });
        }
        let count = items.len();
        Outcome::Deleted(count, if previous { items } else { Vec::new() })
    }

    fn detach(&mut self, lease: LeaseId, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.remove(key);
        }
    }
}

fn at(versions: &[Version], revision: Revision) -> Option<&KeyValue> {
    let after = versions.partition_point(|version| version.since <= revision);
    versions.get(after.checked_sub(1)?)?.item.as_ref()
}

/// What etcd refuses before it looks at the store; of both branches, whichever will be taken.
fn check_shape(transaction: &Transaction) -> Answer<()> {
    let Transaction { when, then, otherwise } = transaction;
    if when.len().max(then.len()).max(otherwise.len()) > MAX_OPERATIONS {
        return Err(Refusal::TooManyOperations);
    }
    let actions = || then.iter().chain(otherwise);
    let spans = actions().filter_map(|action| match action {
        Action::Put(_) => None,
        Action::Read(Read { span, .. }) | Action::Delete { span, .. } => Some(span),
    });
    // An empty start without an end is a prefix of nothing, that is to say every key.
    let empty = |span: &Span| span.from.is_empty() && span.to.is_some();
    if when.iter().map(|condition| &condition.span).chain(spans).any(empty) {
        return Err(Refusal::EmptyKey);
    }
    for action in actions() {
        if let Action::Put(put) = action {
            if put.key.is_empty() {
                return Err(Refusal::EmptyKey);
            }
            if put.ignore_value && !put.value.is_empty() {
                return Err(Refusal::ValueProvided);
            }
            if put.ignore_lease && put.lease != 0 {
                return Err(Refusal::LeaseProvided);
            }
        }
    }
    check_duplicates(then)?;
    check_duplicates(otherwise)?;
    let conditions = when.iter().map(|condition| {
        let value = if let Target::Value(value) = &condition.target { value.len() } else { 0 };
        condition.span.size() + value
    });
    let size = conditions.chain(actions().map(Action::size)).sum::<usize>();
    if size > MAX_REQUEST_BYTES && actions().any(Action::writes) {
        return Err(Refusal::TooLarge);
    }
    Ok(())
}

/// One key may be put once in a branch, and not be put and deleted. Deleting it twice is fine. Here etcd looks only at
/// spans that have an end, and dies (3.5.21: "unexpected error during txn with writes", again after each restart) if what
/// it then deletes is to keep its value. So this is stricter.
fn check_duplicates(actions: &[Action]) -> Answer<()> {
    let mut put = BTreeSet::new();
    for action in actions {
        if let Action::Put(Put { key, .. }) = action
            && !put.insert(key.as_slice())
        {
            return Err(Refusal::DuplicateKey);
        }
    }
    for action in actions {
        if let Action::Delete { span, .. } = action
            && !span.is_empty()
            && put.range::<[u8], _>(span.bounds()).next().is_some()
        {
            return Err(Refusal::DuplicateKey);
        }
    }
    Ok(())
}
