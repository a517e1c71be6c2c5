//! A node's picture of `ctl/`: coordinator, round and closing, from a read or from watch events.

use crate::{
    backend::{Event, Get, KeyValue, LeaseId, Revision, Txn, TxnResult},
    coordinator::Office,
    error::Result,
    protocol::{
        keys::RunKeys,
        records::{ClosedRecord, Record, RoundRecord},
    },
};

/// A record with where it stands in the store.
#[derive(Clone, Debug)]
pub(super) struct Kept<R> {
    pub(super) record: R,
    pub(super) revision: Revision,
    pub(super) lease: LeaseId,
}

/// What stands under `ctl/`.
#[derive(Clone, Debug, Default)]
pub(super) struct Control {
    pub(super) coordinator: Option<Office>,
    pub(super) round: Option<Kept<RoundRecord>>,
    pub(super) closed: Option<Kept<ClosedRecord>>,
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

    /// What it found.
    pub(super) fn control(&self, keys: &RunKeys, answer: &TxnResult) -> Result<Control> {
        Control::of(keys, self.0.iter().filter_map(|get| get.item(answer)))
    }
}

impl Control {
    /// From what a read found.
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

    /// Follows one event of a watch.
    pub(super) fn apply(&mut self, keys: &RunKeys, event: &Event) -> Result<()> {
        match event {
            // A campaign's answer may be ahead of the watch: what ended before that office began is no news of it.
            event if event.key() == keys.coordinator().as_bytes() && self.is_before_office(event) => {}
            Event::Delete { key, .. } if key == keys.coordinator().as_bytes() => self.coordinator = None,
            Event::Put(item) => self.put(keys, item)?,
            Event::Delete { key, .. } if key == keys.round().as_bytes() => self.round = None,
            Event::Delete { key, .. } if key == keys.closed().as_bytes() => self.closed = None,
            Event::Delete { .. } => {}
        }
        Ok(())
    }

    fn is_before_office(&self, event: &Event) -> bool {
        self.coordinator.as_ref().is_some_and(|office| event.revision() < office.since())
    }

    fn put(&mut self, keys: &RunKeys, item: &KeyValue) -> Result<()> {
        let key = String::from_utf8_lossy(&item.key).into_owned();
        if key == keys.coordinator() {
            self.coordinator = Some(Office::of(&key, item)?);
        } else if key == keys.round() {
            self.round = Some(kept(&key, item)?);
        } else if key == keys.closed() {
            self.closed = Some(kept(&key, item)?);
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

    /// `ctl/round`'s mod revision; 0 if it is not there.
    pub(super) fn round_revision(&self) -> Revision {
        self.round.as_ref().map_or(0, |kept| kept.revision)
    }
}

fn kept<R: Record>(key: &str, item: &KeyValue) -> Result<Kept<R>> {
    Ok(Kept { record: R::decode(key, &item.value)?, revision: item.mod_revision, lease: item.lease })
}
