//! Checks requests as etcd does before it reads its data (`api/v3rpc/key.go`). Both branches of a transaction are
//! checked.

use std::collections::BTreeSet;

use super::{Action, Answer, MAX_OPERATIONS, Order, Put, Read, Refusal, SortBy, Span, Transaction};

/// Refuses a transaction whose shape is wrong.
pub(super) fn check(transaction: &Transaction) -> Answer<()> {
    check_shape(transaction, MAX_OPERATIONS)?;
    for branch in [&transaction.then, &transaction.otherwise] {
        Writes::of(branch)?;
    }
    Ok(())
}

/// Refuses a put whose shape is wrong.
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

/// Refuses a read whose shape is wrong.
pub(super) fn check_read(read: &Read) -> Answer<()> {
    read.span.check()?;
    if read.order == Order::Unknown || read.sort_by == SortBy::Unknown {
        return Err(Refusal::InvalidOrder);
    }
    Ok(())
}

/// A transaction within may have as many operations as the one around it leaves.
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
            // So etcd names an operation that is none.
            Action::Nothing => return Err(Refusal::KeyNotFound),
        }
    }
    Ok(())
}

/// What a branch writes, transactions within it included.
///
/// One key may be put once in a branch, and not be put and deleted; deleting it twice is fine. The branches of a
/// transaction within exclude each other, so what one puts the other may put or delete. Of deletes etcd looks only at spans
/// that have an end, and dies (3.5.21: "unexpected error during txn with writes", again after each restart) if what it then
/// deletes is to keep its value. There this is stricter.
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

    /// Adds puts, of which those in `shared` may be there already.
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
