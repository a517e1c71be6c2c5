//! The engine's requests and results: values without behavior.

use std::{cmp::Ordering, time::Duration};

use super::Span;
use crate::backend::{Event, KeyValue, LeaseId, Revision};

/// The field by which a read is sorted.
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
    /// A field that etcd does not have. It is rejected, as by etcd 3.6 and later.
    Unknown,
}

/// The order in which a read is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// No order was requested. By other fields than the key, the items are sorted in ascending order, after the limit
    /// was applied.
    #[default]
    Unsaid,
    /// Ascending.
    Ascending,
    /// Descending.
    Descending,
    /// An order that etcd does not have. It is rejected, as by etcd 3.6 and later.
    Unknown,
}

/// Limits the revisions of the keys. 0 stands for no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Within {
    /// The minimum mod revision.
    pub min_mod: Revision,
    /// The maximum mod revision.
    pub max_mod: Revision,
    /// The minimum create revision.
    pub min_create: Revision,
    /// The maximum create revision.
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
    /// The keys to read.
    pub span: Span,
    /// The revision to read at. 0 is the latest.
    pub revision: Revision,
    /// The maximum number of keys. 0 stands for no limit.
    pub limit: usize,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only count the keys.
    pub count_only: bool,
    /// The field to sort by.
    pub sort_by: SortBy,
    /// The order.
    pub order: Order,
    /// Limits the revisions of the keys.
    pub within: Within,
}

impl Read {
    /// How many keys are looked at, of which the answer has at most `limit`. As in etcd: if no order was requested, only the
    /// keys within the limit are sorted.
    pub(super) fn most(&self) -> usize {
        let selects = self.order != Order::Unsaid || self.within != Within::default();
        if selects || self.limit == 0 { usize::MAX } else { self.limit.saturating_add(1) }
    }

    /// Reads all of these keys at the latest revision.
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
    /// The number of keys in the span, regardless of the limit and [`Read::within`].
    pub count: usize,
    /// Whether there were more keys than the limit.
    pub more: bool,
    /// The latest revision at the time of the read.
    pub revision: Revision,
}

/// What a condition compares, and the value to compare it with.
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
    /// Its value. For a key that does not exist, no relation holds.
    Value(Vec<u8>),
}

/// The relation of the present state to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It is equal.
    Equal,
    /// It differs.
    NotEqual,
    /// It is greater.
    Greater,
    /// It is less.
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

/// One condition of a transaction. It must hold for every key of the span.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The keys.
    pub span: Span,
    /// What to compare.
    pub target: Target,
    /// The required relation.
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
    /// Return the previous state.
    pub previous: bool,
}

/// A delete.
#[derive(Clone, Debug)]
pub struct Delete {
    /// The keys to delete.
    pub span: Span,
    /// Return the previous state.
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
    /// A nested transaction, whose conditions are evaluated before the outer transaction begins.
    Transaction(Transaction),
    /// No action, which is rejected.
    Nothing,
}

impl Action {
    fn size(&self) -> usize {
        /// The approximate size that a message adds to the key and value of one operation, with tags and lengths.
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

/// Executes `then` if all of `when` hold, and otherwise `otherwise`.
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
    /// The approximate size as a message.
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

/// The result of one [`Action`], with the revision after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The result of a put, with the previous state if that was requested.
    Put(Revision, Option<KeyValue>),
    /// The result of a read.
    Read(Found),
    /// The result of a delete: the number of deleted keys, and their previous state if that was requested.
    Deleted(Revision, usize, Vec<KeyValue>),
    /// The result of a nested transaction: whether its conditions held, and one result for each action of its branch.
    Transaction(bool, Vec<Outcome>),
}

/// The result of a [`Transaction`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The revision after it. If it wrote, the mod revision of everything that it wrote.
    pub revision: Revision,
    /// Whether the conditions held.
    pub succeeded: bool,
    /// One result for each action of the branch that was executed.
    pub outcomes: Vec<Outcome>,
}

/// The state of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// The TTL it was granted.
    pub granted: Duration,
    /// The remaining time.
    pub remaining: Duration,
    /// The keys that are attached to it, sorted.
    pub keys: Vec<Vec<u8>>,
}

/// Changes, and the revision up to which they are complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes, revision by revision. A revision is never divided.
    pub events: Vec<Event>,
    /// The first revision that was not read.
    pub next: Revision,
}

/// The size of the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The number of present keys.
    pub keys: usize,
    /// The approximate number of bytes of the present keys and the leases.
    pub live_bytes: usize,
    /// The approximate number of bytes of the history: overwritten and deleted keys that were not compacted yet.
    pub history_bytes: usize,
    /// The number of revisions that a watch can be served from.
    pub history_revisions: usize,
    /// The number of leases.
    pub leases: usize,
}
