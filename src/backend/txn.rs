//! Transactions: conditions, operations, and handles that read the results.
//!
//! A [`Txn`] always has an operation. etcd evaluates the conditions of an empty transaction on the member that receives
//! it, even if that member is behind, because it waits for the leader only if there is a read or a write.
//!
//! The result of an operation is at a position in a list that depends on the branch that was executed. Therefore a read
//! returns a [`Get`], which finds its result in either branch.

use super::{Header, KeyValue, Keys, LeaseId, Revision};

/// One condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key's create revision is this; 0 means that the key does not exist.
    CreateRevision(Vec<u8>, Revision),
    /// The key's mod revision is this; 0 means that the key does not exist.
    ModRevision(Vec<u8>, Revision),
    /// The key's version is this; 0 means that the key does not exist.
    Version(Vec<u8>, i64),
    /// The key exists (its version is greater than 0).
    Exists(Vec<u8>),
    /// The key's value is this. False if the key does not exist.
    Value(Vec<u8>, Vec<u8>),
    /// No key here was written after this revision. Deletions do not count.
    UnchangedSince(Keys, Revision),
    /// The key is attached to this lease. For a lease other than 0, false if the key does not exist.
    Lease(Vec<u8>, LeaseId),
}

impl Compare {
    /// The key does not exist.
    pub fn absent(key: impl Into<Vec<u8>>) -> Self {
        Self::CreateRevision(key.into(), 0)
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Write a key.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// The lease that the key is attached to, or 0.
        lease: LeaseId,
    },
    /// Write a key's present value again, which increases its version and its mod revision. The key must exist.
    Touch {
        /// The key.
        key: Vec<u8>,
    },
    /// Read.
    Get(Keys),
    /// Delete. The result contains the number of deleted keys.
    Delete(Keys),
}

impl Operation {
    /// Write a key under a lease (0 for none).
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: LeaseId) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease }
    }

    /// Read one key.
    pub fn get(key: impl Into<Vec<u8>>) -> Self {
        Self::Get(Keys::one(key))
    }

    /// Delete one key.
    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self::Delete(Keys::one(key))
    }

    /// Whether it changes a key.
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Get(_))
    }
}

/// Executes the operations of one branch if all conditions hold, and otherwise those of the other branch, in one atomic
/// step.
#[derive(Clone, Debug)]
pub struct Txn {
    when: Vec<Compare>,
    then: Vec<Operation>,
    otherwise: Vec<Operation>,
}

/// A transaction in parts, as a backend sends it.
#[derive(Clone, Debug, Default)]
pub struct TxnParts {
    /// The conditions.
    pub when: Vec<Compare>,
    /// The operations if all conditions hold.
    pub then: Vec<Operation>,
    /// The operations if one condition does not hold. None if there is no condition.
    pub otherwise: Vec<Operation>,
}

impl Txn {
    /// Executes this operation.
    pub fn new(operation: Operation) -> Self {
        Self { when: Vec::new(), then: vec![operation], otherwise: Vec::new() }
    }

    /// Reads one key, in both branches.
    pub fn read(key: impl Into<Vec<u8>>) -> (Self, Get) {
        let get = Operation::get(key);
        let txn = Self { otherwise: vec![get.clone()], ..Self::new(get) };
        (txn, Get { then: Some(0), otherwise: Some(0) })
    }

    /// Reads one key if a condition, which is yet to be added, does not hold.
    pub fn read_if_refused(key: impl Into<Vec<u8>>) -> (Self, Get) {
        let txn = Self { when: Vec::new(), then: Vec::new(), otherwise: vec![Operation::get(key)] };
        (txn, Get { then: None, otherwise: Some(0) })
    }

    /// A transaction of these parts, unless it has no operation.
    pub fn of(parts: TxnParts) -> Option<Self> {
        let TxnParts { when, then, otherwise } = parts;
        let is_empty = then.is_empty() && otherwise.is_empty();
        (!is_empty).then_some(Self { when, then, otherwise })
    }

    /// Adds conditions.
    #[must_use]
    pub fn when(mut self, conditions: impl IntoIterator<Item = Compare>) -> Self {
        self.when.extend(conditions);
        self
    }

    /// Adds operations for the case that the conditions hold.
    #[must_use]
    pub fn then(mut self, operations: impl IntoIterator<Item = Operation>) -> Self {
        self.then.extend(operations);
        self
    }

    /// Reads one key, in both branches.
    pub fn get(&mut self, key: impl Into<Vec<u8>>) -> Get {
        let key = key.into();
        let Get { then, .. } = self.get_if_done(key.clone());
        Get { then, ..self.get_if_refused(key) }
    }

    /// Reads one key if the conditions hold.
    pub fn get_if_done(&mut self, key: impl Into<Vec<u8>>) -> Get {
        self.then.push(Operation::get(key));
        Get { then: Some(self.then.len() - 1), otherwise: None }
    }

    /// Reads one key if a condition does not hold.
    pub fn get_if_refused(&mut self, key: impl Into<Vec<u8>>) -> Get {
        self.otherwise.push(Operation::get(key));
        Get { then: None, otherwise: Some(self.otherwise.len() - 1) }
    }

    /// The conditions.
    pub fn conditions(&self) -> &[Compare] {
        &self.when
    }

    /// The operations for the case that the conditions hold.
    pub fn operations(&self) -> &[Operation] {
        &self.then
    }

    /// The parts, for a backend. Without a condition the other branch is never executed, and therefore not sent.
    pub fn into_parts(self) -> TxnParts {
        let Self { when, then, mut otherwise } = self;
        if when.is_empty() && !then.is_empty() {
            otherwise.clear();
        }
        TxnParts { when, then, otherwise }
    }
}

/// A read of one key in a transaction. Finds its result.
#[derive(Clone, Copy, Debug)]
pub struct Get {
    then: Option<usize>,
    otherwise: Option<usize>,
}

impl Get {
    /// What the key held. `None` if it did not exist, or if the branch that was executed does not read it.
    pub fn item<'answer>(&self, answer: &'answer TxnResult) -> Option<&'answer KeyValue> {
        let index = if answer.succeeded { self.then } else { self.otherwise }?;
        match answer.results.get(index) {
            Some(OperationResult::Get(items)) => items.first(),
            _ => None,
        }
    }

    /// Whether the key existed.
    pub fn is_found(&self, answer: &TxnResult) -> bool {
        self.item(answer).is_some()
    }

    /// The key's mod revision; 0 if it did not exist.
    pub fn revision(&self, answer: &TxnResult) -> Revision {
        self.item(answer).map_or(0, |item| item.mod_revision)
    }
}

/// The result of one [`Operation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationResult {
    /// The result of a put or a touch.
    Put,
    /// The keys that a get found.
    Get(Vec<KeyValue>),
    /// The number of keys that a delete deleted.
    Delete(i64),
}

/// The result of a [`Txn`].
#[derive(Clone, Debug, Default)]
pub struct TxnResult {
    /// The header. If the transaction wrote, `revision` is the mod revision of everything that it wrote.
    pub header: Header,
    /// Whether the conditions held.
    pub succeeded: bool,
    /// One result for each operation of the branch that was executed, in order. A [`Get`] finds its own result.
    pub results: Vec<OperationResult>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(succeeded: bool, keys: &[Option<&str>]) -> TxnResult {
        let items = |key: Option<&str>| key.into_iter().map(item).collect();
        let results = keys.iter().map(|key| OperationResult::Get(items(*key))).collect();
        TxnResult { succeeded, results, ..TxnResult::default() }
    }

    fn item(key: &str) -> KeyValue {
        KeyValue { key: key.into(), mod_revision: 7, ..KeyValue::default() }
    }

    fn key(get: Get, answer: &TxnResult) -> Option<&[u8]> {
        get.item(answer).map(|item| item.key.as_slice())
    }

    #[test]
    fn each_read_finds_its_own_answer_in_the_branch_that_was_executed() {
        let (txn, round) = Txn::read("round");
        let mut txn = txn.when([Compare::absent("node")]).then([Operation::put("node", "", 0)]);
        let node = txn.get_if_refused("node");
        let shard = txn.get_if_done("shard");
        let closed = txn.get("closed");
        let mut done = answer(true, &[Some("round"), None, Some("shard"), Some("closed")]);
        done.results[1] = OperationResult::Put;
        let refused = answer(false, &[Some("round"), Some("node"), None]);
        for (get, if_done, if_refused) in [
            (round, Some("round"), Some("round")),
            (node, None, Some("node")),
            (shard, Some("shard"), None),
            (closed, Some("closed"), None),
        ] {
            assert_eq!(key(get, &done), if_done.map(str::as_bytes));
            assert_eq!(key(get, &refused), if_refused.map(str::as_bytes));
            assert_eq!(get.is_found(&refused), if_refused.is_some());
            assert_eq!(get.revision(&refused), if if_refused.is_some() { 7 } else { 0 });
        }
        let parts = txn.into_parts();
        assert_eq!((parts.then.len(), parts.otherwise.len()), (4, 3));
    }

    #[test]
    fn transaction_without_operations_cannot_be_built() {
        let when = vec![Compare::absent("a")];
        assert!(Txn::of(TxnParts { when: when.clone(), ..TxnParts::default() }).is_none());
        let otherwise = vec![Operation::get("a")];
        assert!(Txn::of(TxnParts { when, otherwise, ..TxnParts::default() }).is_some());
    }

    #[test]
    fn branch_that_is_never_executed_is_not_sent() {
        let (txn, _) = Txn::read("a");
        assert!(txn.clone().into_parts().otherwise.is_empty());
        assert_eq!(txn.when([Compare::absent("b")]).into_parts().otherwise, [Operation::get("a")]);
    }
}
