//! Checks requests as etcd does before it reads its data (`api/v3rpc/key.go`). Both branches of a transaction are
//! checked.

use std::collections::BTreeSet;

use super::{Action, Answer, MAX_OPERATIONS, Order, Put, Read, Refusal, SortBy, Span, Transaction};

/// Rejects a transaction with an invalid shape.
pub(super) fn check(transaction: &Transaction) -> Answer<()> {
    check_shape(transaction, MAX_OPERATIONS)?;
    for branch in [&transaction.then, &transaction.otherwise] {
        Writes::of(branch)?;
    }
    Ok(())
}

/// Rejects a put with an invalid shape.
pub(super) fn check_put(put: &Put) -> Answer<()> {
    if put.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if put.ignore_value && !put.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// Rejects a read with an invalid shape.
pub(super) fn check_read(read: &Read) -> Answer<()> {
    read.span.check()?;
    if read.order == Order::Unknown || read.sort_by == SortBy::Unknown {
        return Err(Refusal::InvalidOrder);
    }
    Ok(())
}

/// A nested transaction may have as many operations as the outer transaction leaves.
fn check_shape(transaction: &Transaction, operations: usize) -> Answer<()> {
    let Transaction { when, then, otherwise } = transaction;
    let longest = when.len().max(then.len()).max(otherwise.len());
    let left = operations.checked_sub(longest).ok_or(Refusal::TooManyOperations)?;
    for condition in when {
        condition.span.check()?;
    }
    for action in then.iter().chain(otherwise) {
        match action {
            Action::Put(put) => check_put(put)?,
            Action::Read(read) => check_read(read)?,
            Action::Delete(delete) => delete.span.check()?,
            Action::Transaction(within) => check_shape(within, left)?,
            // etcd returns this error for an action that is empty.
            Action::Nothing => return Err(Refusal::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that a branch writes, including its nested transactions.
///
/// A branch may put a key only once, and not both put and delete it. It may delete a key twice. The branches of a
/// nested transaction exclude each other, so one of them may write the keys that the other one writes. etcd checks only
/// deletes of spans that have an end. If it then deletes a key whose value a put is to keep, it dies (3.5.21:
/// "unexpected error during txn with writes", again after each restart). This engine is stricter.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<&'a Span>,
}

impl<'a> Writes<'a> {
    fn of(actions: &'a [Action]) -> Answer<Self> {
        let mut writes = Self::default();
        for action in actions {
            if let Action::Delete(delete) = action
                && !delete.span.is_empty()
            {
                writes.deletes.push(&delete.span);
            }
        }
        for action in actions {
            if let Action::Transaction(within) = action {
                let then = Self::of(&within.then)?;
                let otherwise = Self::of(&within.otherwise)?;
                writes.add(&then.puts, &BTreeSet::new())?;
                writes.add(&otherwise.puts, &then.puts)?;
                writes.deletes.extend(then.deletes.into_iter().chain(otherwise.deletes));
            }
        }
        for action in actions {
            if let Action::Put(put) = action {
                writes.add(&BTreeSet::from([put.key.as_slice()]), &BTreeSet::new())?;
            }
        }
        Ok(writes)
    }

    /// Adds puts. The keys in `shared` may have been added before.
    fn add(&mut self, puts: &BTreeSet<&'a [u8]>, shared: &BTreeSet<&'a [u8]>) -> Answer<()> {
        let deleted = |span: &&Span| puts.range::<[u8], _>(span.bounds()).next().is_some();
        let twice = puts.iter().any(|key| self.puts.contains(key) && !shared.contains(key));
        if twice || self.deletes.iter().any(deleted) {
            return Err(Refusal::DuplicateKey);
        }
        self.puts.extend(puts);
        Ok(())
    }
}
