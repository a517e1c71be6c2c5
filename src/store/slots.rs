//! The idempotency slots of a node id: `ops/<node>/<slot>`.
//!
//! Each write to a store also puts the key of a slot and compares that key's version, so of all attempts of one
//! operation at most one is applied. One operation is in flight in each slot. An operation whose end is not known
//! keeps its slot forever, and that version is never compared again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use crate::{backend::LeaseId, lock::lock};

/// The slots of one node id, shared by all of its stores.
#[derive(Debug, Default)]
pub struct Slots {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By number: the version of the slot's key, and the lease that the key is attached to.
    free: BTreeMap<u32, (i64, LeaseId)>,
    next: u32,
    next_unique: u64,
}

impl Slots {
    /// The slots of a node id that has written nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Takes a free slot. The keys that were attached to another lease are deleted with it, so those slots are dropped.
    pub(super) fn take(&self, lease: LeaseId) -> Slot {
        let mut state = lock(&self.state);
        state.free.retain(|_, (_, of)| *of == lease);
        if let Some((number, (version, _))) = state.free.pop_first() {
            return Slot { number, version };
        }
        let number = state.next;
        state.next += 1;
        Slot { number, version: 0 }
    }

    /// Returns a slot whose last operation is known to have ended, under this lease.
    pub(super) fn give_back(&self, slot: &Slot, lease: LeaseId) {
        if slot.version > 0 {
            lock(&self.state).free.insert(slot.number, (slot.version, lease));
        }
    }

    /// A number that this node id has not used yet.
    pub(super) fn unique(&self) -> u64 {
        let mut state = lock(&self.state);
        state.next_unique += 1;
        state.next_unique
    }
}

/// A slot in use. A slot that is dropped instead of returned is not used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) number: u32,
    /// The version of its key, as far as is known.
    pub(super) version: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_is_used_by_one_operation_and_dropped_unless_returned() {
        let slots = Slots::new();
        let mut first = slots.take(7);
        assert_eq!((first.number, slots.take(7).number), (0, 1));
        first.version = 4;
        slots.give_back(&first, 7);
        let again = slots.take(7);
        assert_eq!((again.number, again.version), (0, 4));
        slots.give_back(&again, 7);
        assert_eq!(slots.take(8).number, 2, "the keys of another lease are deleted");
    }
}
