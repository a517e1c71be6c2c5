//! The history of the keys: the versions of each key, the log of changes from which watches are served, and compaction.

use std::{collections::BTreeSet, sync::Arc};

use super::{Answer, Batch, Engine, KEY_OVERHEAD_BYTES, Refusal, Span, Usage};
use crate::backend::{Event, KeyValue, Revision};

/// The state of a key from one revision on. `None` if it was deleted.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) since: Revision,
    pub(super) item: Option<Arc<KeyValue>>,
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Put(Arc<KeyValue>),
    Delete(Vec<u8>),
}

impl Change {
    pub(super) fn key(&self) -> &[u8] {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete(key) => key,
        }
    }

    pub(super) fn event(&self, revision: Revision) -> Event {
        match self {
            Self::Put(item) => Event::Put(KeyValue::clone(item)),
            Self::Delete(key) => Event::Delete { key: key.clone(), revision },
        }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Put(item) => size(&item.key, Some(item)),
            Self::Delete(key) => size(key, None),
        }
    }
}

impl Engine {
    /// Compacts the history before `revision`, which itself can still be read and watched.
    pub fn compact(&mut self, revision: Revision) -> Answer<()> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted { oldest: self.compacted() });
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.forget(revision);
        Ok(())
    }

    /// The changes of these keys at `from` and later, revision by revision: of at most `revisions` revisions, and no
    /// further revisions after there are `bytes` bytes.
    pub fn changes(&self, span: &Span, from: Revision, revisions: usize, bytes: usize) -> Answer<Batch> {
        if from < self.compacted {
            return Err(Refusal::Compacted { oldest: self.compacted() });
        }
        let mut batch = Batch { events: Vec::new(), next: from.max(self.revision + 1) };
        let mut taken = 0;
        for (looked_at, (&revision, changes)) in self.log.range(from..).enumerate() {
            if looked_at >= revisions || taken >= bytes {
                batch.next = revision;
                break;
            }
            for change in changes.iter().filter(|change| span.contains(change.key())) {
                taken += change.size();
                batch.events.push(change.event(revision));
            }
        }
        Ok(batch)
    }

    /// The keys that changed after `revision`, once for each change, with its revision.
    pub fn changed_keys(&self, revision: Revision) -> impl Iterator<Item = (&[u8], Revision)> {
        let later = self.log.range(revision + 1..);
        later.flat_map(|(revision, changes)| changes.iter().map(|change| (change.key(), *revision)))
    }

    pub(super) fn commit(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.revision += 1;
            self.log.insert(self.revision, changes);
            self.bound_history();
        }
    }

    /// Compacts a quarter of the history, repeatedly while there is still too much of it.
    fn bound_history(&mut self) {
        while (self.usage.history_bytes > self.bounds.history_bytes
            || self.log.len() > self.bounds.history_revisions)
            && let Some((&oldest, _)) = self.log.first_key_value()
            && self.compacted < self.revision
        {
            let quarter = Revision::try_from(self.log.len() / 4).unwrap_or(1).max(1);
            self.forget((oldest + quarter).min(self.revision));
        }
    }

    fn forget(&mut self, revision: Revision) {
        self.compacted = revision;
        // Only keys that changed until then have something to forget. Earlier compactions have left nothing else.
        let changed: BTreeSet<Vec<u8>> = self
            .log
            .range(..=revision)
            .flat_map(|(_, changes)| changes)
            .map(|change| change.key().to_vec())
            .collect();
        self.log = self.log.split_off(&revision);
        for key in changed {
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            let kept = versions.partition_point(|version| version.since <= revision);
            let mut forgotten: Vec<_> = versions.drain(..kept.saturating_sub(1)).collect();
            // A tombstone that cannot be read any more.
            if versions.first().is_some_and(|first| first.item.is_none() && first.since <= revision) {
                forgotten.push(versions.remove(0));
            }
            if versions.is_empty() {
                self.keys.remove(&key);
            }
            for version in forgotten {
                let bytes = size(&key, version.item.as_deref());
                self.usage.history_bytes = self.usage.history_bytes.saturating_sub(bytes);
            }
        }
    }

    /// Adds the state of a key at the next revision.
    pub(super) fn push(&mut self, key: &[u8], item: Option<Arc<KeyValue>>) {
        let Usage { keys, live_bytes, history_bytes, .. } = &mut self.usage;
        let versions = match self.keys.get_mut(key) {
            Some(versions) => versions,
            None => self.keys.entry(key.to_vec()).or_default(),
        };
        if let Some(previous) = versions.last().and_then(|version| version.item.as_deref()) {
            let bytes = size(key, Some(previous));
            *live_bytes = live_bytes.saturating_sub(bytes);
            *history_bytes += bytes;
            *keys -= 1;
        }
        match &item {
            Some(item) => {
                *live_bytes += size(key, Some(item));
                *keys += 1;
            }
            None => *history_bytes += size(key, None),
        }
        versions.push(Version { since: self.revision + 1, item });
    }
}

pub(super) fn at(versions: &[Version], revision: Revision) -> Option<&Arc<KeyValue>> {
    let after = versions.partition_point(|version| version.since <= revision);
    versions.get(after.checked_sub(1)?)?.item.as_ref()
}

pub(super) fn size(key: &[u8], item: Option<&KeyValue>) -> usize {
    KEY_OVERHEAD_BYTES + key.len() + item.map_or(0, |item| item.value.len())
}
