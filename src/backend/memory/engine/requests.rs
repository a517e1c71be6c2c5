//! The engine's requests and results: values without behavior.

use std::{cmp::Ordering, time::Duration};

use super::Span;
use crate::backend::{Event, KeyValue, LeaseId, Revision};

/// By what a read is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortBy {
    /// The key.
    #[default]
    Key,
    /// How often it was written.
    Version,
    /// Its create revision.
    Create,
    /// Its mod revision.
    Mod,
    /// Its value.
    Value,
    /// Something that etcd does not have: refused, as by 3.6 and later.
    Unknown,
}

/// In which order a read is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// None was asked for. By anything but the key it is still ascending, but within what the limit let through.
    #[default]
    Unsaid,
    /// The least first.
    Ascending,
    /// The greatest first.
    Descending,
    /// One that etcd does not have: refused, as by 3.6 and later.
    Unknown,
}

/// Only keys whose revisions are within these; 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Within {
    /// The least mod revision.
    pub min_mod: Revision,
    /// The greatest mod revision.
    pub max_mod: Revision,
    /// The least create revision.
    pub min_create: Revision,
    /// The greatest create revision.
    pub max_create: Revision,
}

impl Within {
    pub(super) fn contains(self, item: &KeyValue) -> bool {
        let within = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
        within(item.mod_revision, self.min_mod, self.max_mod)
            && within(item.create_revision, self.min_create, self.max_create)
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
    /// Only say how many there are.
    pub count_only: bool,
    /// By what to sort.
    pub sort_by: SortBy,
    /// In which order.
    pub order: Order,
    /// Which of them.
    pub within: Within,
}

impl Read {
    /// All of these keys, now.
    pub fn all(span: Span) -> Self {
        Self {
            span,
            revision: 0,
            limit: 0,
            keys_only: false,
            count_only: false,
            sort_by: SortBy::default(),
            order: Order::default(),
            within: Within::default(),
        }
    }
}

/// What a read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The keys.
    pub items: Vec<KeyValue>,
    /// How many there are in the span, whatever the limit and [`Read::within`].
    pub count: usize,
    /// Whether the limit cut it.
    pub more: bool,
    /// The store's revision when it was read.
    pub revision: Revision,
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

impl Condition {
    pub(super) fn holds(&self, item: &KeyValue) -> bool {
        self.relation.holds(match &self.target {
            Target::Version(version) => item.version.cmp(version),
            Target::CreateRevision(revision) => item.create_revision.cmp(revision),
            Target::ModRevision(revision) => item.mod_revision.cmp(revision),
            Target::Lease(lease) => item.lease.cmp(lease),
            Target::Value(value) => item.value.cmp(value),
        })
    }
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

/// A delete.
#[derive(Clone, Debug)]
pub struct Delete {
    /// Which keys.
    pub span: Span,
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
    Delete(Delete),
    /// A transaction within it, whose conditions are judged by what was there before the whole began.
    Transaction(Transaction),
    /// None at all: refused.
    Nothing,
}

impl Action {
    fn size(&self) -> usize {
        /// About what a message, its tags and lengths add to the bytes of one operation's key and value.
        const OVERHEAD_BYTES: usize = 16;
        OVERHEAD_BYTES
            + match self {
                Self::Put(put) => put.key.len() + put.value.len(),
                Self::Read(read) => read.span.size(),
                Self::Delete(delete) => delete.span.size(),
                Self::Transaction(transaction) => transaction.size(),
                Self::Nothing => 0,
            }
    }

    fn writes(&self) -> bool {
        match self {
            Self::Put(_) | Self::Delete(_) => true,
            Self::Read(_) | Self::Nothing => false,
            Self::Transaction(transaction) => transaction.writes(),
        }
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

impl Transaction {
    /// About how many bytes it takes as a message.
    pub fn size(&self) -> usize {
        let conditions = self.when.iter().map(|condition| {
            let value = if let Target::Value(value) = &condition.target { value.len() } else { 0 };
            condition.span.size() + value
        });
        conditions.chain(self.then.iter().chain(&self.otherwise).map(Action::size)).sum()
    }

    /// Whether it could change anything.
    pub fn writes(&self) -> bool {
        self.then.iter().chain(&self.otherwise).any(Action::writes)
    }
}

/// The answer to one [`Action`], with the revision that the store had after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of a put: what was there, if that was asked for.
    Put(Revision, Option<KeyValue>),
    /// Of a read.
    Read(Found),
    /// Of a delete: how many keys went, and what was there, if that was asked for.
    Deleted(Revision, usize, Vec<KeyValue>),
    /// Of a transaction within: whether its conditions held, and one for each action of its branch.
    Transaction(bool, Vec<Outcome>),
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
    /// The keys that hang on it, sorted.
    pub keys: Vec<Vec<u8>>,
}

/// Changes, and how far they go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes, revision by revision; a revision is never cut in two.
    pub events: Vec<Event>,
    /// The first revision that was not looked at.
    pub next: Revision,
}

/// How much the engine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Keys that are there.
    pub keys: usize,
    /// About how many bytes they and the leases take.
    pub live_bytes: usize,
    /// About how many bytes the history takes: what was overwritten or deleted, and not compacted yet.
    pub history_bytes: usize,
    /// How many revisions a watch can be served from.
    pub history_revisions: usize,
    /// Leases that are there.
    pub leases: usize,
}
