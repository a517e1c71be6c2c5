//! A node's view of `ctl/`: coordinator, round, and closing, from a read or from watch events.

use crate::{
    backend::{Event, Get, KeyValue, LeaseId, Revision, Txn, TxnResult},
    coordinator::TermFence,
    error::Result,
    protocol::{
        keys::RunKeys,
        records::{ClosedRecord, Record, RoundRecord},
    },
};

/// A record with its revision and its lease.
#[derive(Clone, Debug)]
pub(super) struct Versioned<R> {
    pub(super) record: R,
    pub(super) revision: Revision,
    pub(super) lease: LeaseId,
}

/// The records under `ctl/`.
#[derive(Clone, Debug, Default)]
pub(super) struct Control {
    pub(super) coordinator: Option<TermFence>,
    pub(super) round: Option<Versioned<RoundRecord>>,
    pub(super) closed: Option<Versioned<ClosedRecord>>,
}

/// A read of everything under `ctl/` in a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlGet([Get; 3]);

impl ControlGet {
    /// Begins a transaction with this read.
    pub(super) fn first(keys: &RunKeys) -> (Txn, Self) {
        let (mut txn, coordinator) = Txn::read(keys.coordinator());
        let (round, closed) = (txn.get(keys.round()), txn.get(keys.closed()));
        (txn, Self([coordinator, round, closed]))
    }

    /// The result of the read.
    pub(super) fn control(&self, keys: &RunKeys, answer: &TxnResult) -> Result<Control> {
        Control::of(keys, self.0.iter().filter_map(|get| get.item(answer)))
    }
}

impl Control {
    /// The records in the result of a read.
    pub(super) fn of<'item>(
        keys: &RunKeys,
        items: impl IntoIterator<Item = &'item KeyValue>,
    ) -> Result<Self> {
        let mut control = Self::default();
        for item in items {
            control.put(keys, item)?;
        }
        Ok(control)
    }

    /// Applies one event of a watch.
    pub(super) fn apply(&mut self, keys: &RunKeys, event: &Event) -> Result<()> {
        match event {
            // The response to a campaign may be ahead of the watch. The end of an earlier term is not an event of this
            // one.
            event if event.key() == keys.coordinator().as_bytes() && self.is_before_term(event) => {}
            Event::Delete { key, .. } if key == keys.coordinator().as_bytes() => self.coordinator = None,
            Event::Put(item) => self.put(keys, item)?,
            Event::Delete { key, .. } if key == keys.round().as_bytes() => self.round = None,
            Event::Delete { key, .. } if key == keys.closed().as_bytes() => self.closed = None,
            Event::Delete { .. } => {}
        }
        Ok(())
    }

    fn is_before_term(&self, event: &Event) -> bool {
        self.coordinator.as_ref().is_some_and(|term| event.revision() < term.since())
    }

    fn put(&mut self, keys: &RunKeys, item: &KeyValue) -> Result<()> {
        let key = String::from_utf8_lossy(&item.key).into_owned();
        if key == keys.coordinator() {
            self.coordinator = Some(TermFence::of(&key, item)?);
        } else if key == keys.round() {
            self.round = Some(versioned(&key, item)?);
        } else if key == keys.closed() {
            self.closed = Some(versioned(&key, item)?);
        }
        Ok(())
    }

    /// The round's record.
    pub(super) fn round_record(&self) -> Option<&RoundRecord> {
        self.round.as_ref().map(|kept| &kept.record)
    }

    /// The closing's record.
    pub(super) fn closed_record(&self) -> Option<&ClosedRecord> {
        self.closed.as_ref().map(|kept| &kept.record)
    }

    /// The revisions at which its records were written; 0 for a record that does not exist. A coordinator renews its record
    /// without a change, so the revision of its creation counts.
    pub(super) fn revisions(&self) -> [Revision; 3] {
        let coordinator = self.coordinator.as_ref().map_or(0, TermFence::since);
        let closed = self.closed.as_ref().map_or(0, |kept| kept.revision);
        [coordinator, self.round_revision(), closed]
    }

    /// The mod revision of `ctl/round`. 0 if it does not exist.
    pub(super) fn round_revision(&self) -> Revision {
        self.round.as_ref().map_or(0, |kept| kept.revision)
    }
}

fn versioned<R: Record>(key: &str, item: &KeyValue) -> Result<Versioned<R>> {
    Ok(Versioned { record: R::decode(key, &item.value)?, revision: item.mod_revision, lease: item.lease })
}
