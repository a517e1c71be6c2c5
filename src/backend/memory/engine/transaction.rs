//! Transactions: the branches are chosen by the state before the transaction, every action is checked, and then all of them
//! are applied.

use std::sync::Arc;

use super::{
    Action, Answer, Change, Condition, Delete, Done, Engine, Outcome, Put, Read, Refusal, Target,
    Transaction, check,
    history::{at, size},
};
use crate::backend::{KeyValue, Revision};

/// A transaction whose branches were chosen by the state before it.
pub(super) struct Chosen<'a> {
    pub(super) succeeded: bool,
    pub(super) actions: &'a [Action],
    /// One for each nested transaction.
    pub(super) within: Vec<Chosen<'a>>,
}

impl Engine {
    /// Executes a transaction.
    pub fn transact(&mut self, transaction: &Transaction) -> Answer<Done> {
        self.transact_within(transaction, |_| Ok(()))
    }

    /// Executes a transaction if `room` accepts the estimated size of its response, in bytes.
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
        // Nothing below can fail, so a transaction is applied as a whole or not at all.
        let mut changes = Vec::new();
        let outcomes = self.carry_out(&chosen, &mut changes);
        Ok(self.done(chosen.succeeded, outcomes, changes))
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

    /// Rejects puts that are not possible. Returns the approximate number of bytes that they add.
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

    pub(super) fn check_present(&self, put: &Put) -> Answer<()> {
        let absent = || self.at(&put.key, Revision::MAX).is_none();
        if (put.ignore_value || put.ignore_lease) && absent() { Err(Refusal::KeyNotFound) } else { Ok(()) }
    }

    pub(super) fn check_lease(&self, put: &Put) -> Answer<()> {
        if put.lease != 0 && !self.leases.contains(put.lease) {
            return Err(Refusal::LeaseNotFound(put.lease));
        }
        Ok(())
    }

    pub(super) fn check_space(&self, added: usize) -> Answer<()> {
        if self.usage.live_bytes + added > self.bounds.live_bytes { Err(Refusal::NoSpace) } else { Ok(()) }
    }

    pub(super) fn check_read(&self, read: &Read) -> Answer<()> {
        if read.revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        if read.revision != 0 && read.revision < self.compacted {
            return Err(Refusal::Compacted { oldest: self.compacted() });
        }
        Ok(())
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
                // Was rejected before.
                Action::Nothing => continue,
            });
        }
        outcomes
    }

    /// The revision after these changes.
    fn after(&self, changes: &[Change]) -> Revision {
        self.revision + Revision::from(!changes.is_empty())
    }

    pub(super) fn write(&mut self, put: &Put, changes: &mut Vec<Change>) -> Outcome {
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

    pub(super) fn remove(&mut self, delete: &Delete, changes: &mut Vec<Change>) -> Outcome {
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
}
