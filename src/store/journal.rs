//! Remembers what a store has written itself, so that these writes can be restored after the service lost its data.
//!
//! Each piece is recorded with the run's lease under which it was applied. A service that lost its data has another
//! lease for the run and refuses writes under the old one. Therefore the lease ID shows exactly whether the present
//! data contains a piece, however late its response was read.
//!
//! A content is restored only if no other node has written the key since. This node's part of a counter is added again,
//! and what it appended is appended again. Items of queues are not restored, because it is not known which node took
//! them. Deletions by other nodes are not repeated: a key that another node deleted exists again when the node that
//! wrote it restores it.

use std::{collections::BTreeMap, sync::Mutex};

use tokio::sync::watch;

use crate::{backend::LeaseId, lock::lock};

/// What was written, by key.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: Mutex<Entries>,
    /// Allows one restoration at a time. Otherwise an amount could be added twice.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Notified when a piece was restored.
    restored: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: BTreeMap<String, Entry>,
    /// The lease under which all pieces are known to exist, if there is one. It saves each call of the store a look at
    /// all keys.
    complete_under: Option<LeaseId>,
}

/// This node's part of one key, each piece with its lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    content: Option<(LeaseId, Vec<u8>)>,
    added: BTreeMap<LeaseId, i64>,
    appended: BTreeMap<LeaseId, Vec<u8>>,
    finished: Option<LeaseId>,
}

/// A write to journal.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    /// The content that the key was given.
    Content(Vec<u8>),
    /// What was added, and whether this node was marked as finished along with it.
    Added(i64, bool),
    /// What was appended.
    Appended(Vec<u8>),
}

/// What the data under another lease does not contain of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Its name.
    pub(super) name: String,
    /// The content.
    pub(super) content: Option<Vec<u8>>,
    /// The amounts that were added, by their leases.
    pub(super) added: BTreeMap<LeaseId, i64>,
    /// The bytes that were appended, by their leases.
    pub(super) appended: BTreeMap<LeaseId, Vec<u8>>,
    /// Whether this node is to be marked as finished.
    pub(super) finished: bool,
}

impl Journal {
    /// Records a write that was applied under this lease.
    pub(super) fn record(&self, name: &str, lease: LeaseId, piece: Piece) {
        let mut entries = lock(&self.entries);
        entries.written_under(lease);
        let entry = entries.by_key.entry(name.to_owned()).or_default();
        match piece {
            Piece::Content(value) => {
                let finished = entry.finished;
                *entry = Entry { content: Some((lease, value)), finished, ..Entry::default() };
            }
            Piece::Added(amount, finished) => {
                let sum = entry.added.entry(lease).or_default();
                *sum = sum.saturating_add(amount);
                if finished {
                    entry.finished = Some(lease);
                }
            }
            Piece::Appended(value) => entry.appended.entry(lease).or_default().extend(value),
        }
    }

    /// Forgets a key that this node has deleted.
    pub(super) fn forget(&self, name: &str) {
        lock(&self.entries).by_key.remove(name);
    }

    /// Returns what the data under this lease does not contain.
    pub(super) fn missing(&self, lease: LeaseId) -> Vec<Missing> {
        let entries = lock(&self.entries);
        let missing = entries.by_key.iter().filter(|(_, entry)| entry.misses(lease)).map(|(name, entry)| {
            let content = entry.content.as_ref().filter(|(of, _)| *of != lease);
            Missing {
                name: name.clone(),
                content: content.map(|(_, value)| value.clone()),
                added: under_others(&entry.added, lease),
                appended: under_others(&entry.appended, lease),
                finished: entry.finished.is_some_and(|of| of != lease),
            }
        });
        missing.collect()
    }

    /// A receiver that is notified of each piece that is restored from now on.
    pub(super) fn restored(&self) -> watch::Receiver<()> {
        self.restored.subscribe()
    }

    /// Returns the first of these keys of which something is missing under this lease, or the first of all keys if
    /// `names` is empty.
    pub(super) fn first_missing(&self, names: &[&str], lease: LeaseId) -> Option<String> {
        let mut entries = lock(&self.entries);
        if entries.complete_under == Some(lease) {
            return None;
        }
        let misses = |(name, entry): (&String, &Entry)| entry.misses(lease).then(|| name.clone());
        if !names.is_empty() {
            return names.iter().filter_map(|name| entries.by_key.get_key_value(*name)).find_map(misses);
        }
        let first = entries.by_key.iter().find_map(misses);
        if first.is_none() {
            entries.complete_under = Some(lease);
        }
        first
    }

    /// Records that a content was restored, or that another content has replaced it.
    pub(super) fn content_is_back(&self, name: &str, value: &[u8], lease: LeaseId) {
        self.restore(name, lease, |entry| {
            if let Some((of, _)) = entry.content.as_mut().filter(|(_, present)| present == value) {
                *of = lease;
            }
        });
    }

    /// Records that these amounts were added again, as one sum. Amounts that were recorded since remain to be restored.
    pub(super) fn sum_is_back(&self, name: &str, restored: &BTreeMap<LeaseId, i64>, lease: LeaseId) {
        self.restore(name, lease, |entry| {
            for (of, amount) in restored {
                // A content that was set since has replaced the counter that these amounts were part of.
                let Some(present) = entry.added.remove(of) else { continue };
                let rest = present.saturating_sub(*amount);
                if rest != 0 {
                    entry.added.insert(*of, rest);
                }
                let sum = entry.added.entry(lease).or_default();
                *sum = sum.saturating_add(*amount);
            }
        });
    }

    /// Records that these bytes were appended again. Bytes that were recorded since remain to be restored.
    pub(super) fn appended_is_back(&self, name: &str, restored: &BTreeMap<LeaseId, Vec<u8>>, lease: LeaseId) {
        self.restore(name, lease, |entry| {
            for (of, value) in restored {
                let Some(present) = entry.appended.remove(of) else { continue };
                if let Some(rest) = present.get(value.len()..).filter(|rest| !rest.is_empty()) {
                    entry.appended.insert(*of, rest.to_vec());
                }
                entry.appended.entry(lease).or_default().extend(value);
            }
        });
    }

    /// Records that this node was marked as finished again.
    pub(super) fn finished_is_back(&self, name: &str, lease: LeaseId) {
        self.restore(name, lease, |entry| entry.finished = Some(lease));
    }

    /// Updates the entry of a key that was written again under this lease, and notifies the calls that wait for that.
    fn restore(&self, name: &str, lease: LeaseId, change: impl FnOnce(&mut Entry)) {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.by_key.get_mut(name) {
            change(entry);
            entries.written_under(lease);
        }
        drop(entries);
        self.restored.send_replace(());
    }
}

impl Entries {
    fn written_under(&mut self, lease: LeaseId) {
        self.complete_under = self.complete_under.filter(|complete| *complete == lease);
    }
}

impl Entry {
    fn misses(&self, lease: LeaseId) -> bool {
        self.content.as_ref().is_some_and(|(of, _)| *of != lease)
            || self.added.keys().any(|of| *of != lease)
            || self.appended.keys().any(|of| *of != lease)
            || self.finished.is_some_and(|of| of != lease)
    }
}

/// The pieces that were not written under this lease.
fn under_others<T: Clone>(pieces: &BTreeMap<LeaseId, T>, lease: LeaseId) -> BTreeMap<LeaseId, T> {
    let others = pieces.iter().filter(|(of, _)| **of != lease);
    others.map(|(of, piece)| (*of, piece.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_misses_what_was_written_under_other_leases() {
        let journal = Journal::default();
        journal.record("content", 1, Piece::Content(b"a".to_vec()));
        journal.record("counter", 1, Piece::Added(2, false));
        journal.record("counter", 1, Piece::Added(3, true));
        journal.record("counter", 2, Piece::Added(10, false));
        journal.record("text", 1, Piece::Appended(b"x".to_vec()));
        assert_eq!(journal.missing(1).len(), 1);
        let missing = journal.missing(2);
        let content = Missing { name: "content".into(), content: Some(b"a".to_vec()), ..Missing::default() };
        let counter = Missing {
            name: "counter".into(),
            added: BTreeMap::from([(1, 5)]),
            finished: true,
            ..Missing::default()
        };
        let appended = BTreeMap::from([(1, b"x".to_vec())]);
        let text = Missing { name: "text".into(), appended: appended.clone(), ..Missing::default() };
        assert_eq!(missing, [content, counter, text]);
        journal.content_is_back("content", b"a", 2);
        journal.sum_is_back("counter", &BTreeMap::from([(1, 5)]), 2);
        journal.finished_is_back("counter", 2);
        journal.appended_is_back("text", &appended, 2);
        assert_eq!(journal.missing(2), []);
        assert_eq!(journal.missing(3)[1].added, BTreeMap::from([(2, 15)]));
    }

    #[test]
    fn store_that_was_complete_misses_what_is_recorded_under_another_lease_later() {
        let journal = Journal::default();
        journal.record("a", 1, Piece::Added(1, false));
        assert_eq!(journal.first_missing(&[], 1), None);
        journal.record("b", 1, Piece::Added(1, false));
        assert_eq!(journal.first_missing(&[], 1), None);
        assert_eq!(journal.first_missing(&[], 2), Some("a".into()));
        journal.sum_is_back("a", &BTreeMap::from([(1, 1)]), 2);
        assert_eq!(journal.first_missing(&[], 2), Some("b".into()));
        journal.sum_is_back("b", &BTreeMap::from([(1, 1)]), 2);
        assert_eq!(journal.first_missing(&[], 2), None);
        // Applied under the old lease, but acknowledged only now.
        journal.record("c", 1, Piece::Added(1, false));
        assert_eq!(journal.first_missing(&[], 2), Some("c".into()));
        journal.sum_is_back("c", &BTreeMap::from([(1, 1)]), 2);
        assert_eq!(journal.first_missing(&["c"], 2), None);
        assert_eq!(journal.first_missing(&[], 2), None);
        // One more restoration overtook another look.
        journal.sum_is_back("c", &BTreeMap::from([(2, 1)]), 3);
        assert_eq!(journal.first_missing(&[], 2), Some("c".into()));
    }

    #[test]
    fn content_ends_what_was_added_before_and_a_deletion_ends_all() {
        let journal = Journal::default();
        journal.record("key", 1, Piece::Added(2, false));
        journal.record("key", 1, Piece::Content(b"5".to_vec()));
        journal.record("key", 1, Piece::Added(1, false));
        let missing = journal.missing(2);
        assert_eq!(missing[0].content, Some(b"5".to_vec()));
        assert_eq!(missing[0].added, BTreeMap::from([(1, 1)]));
        journal.forget("key");
        assert_eq!(journal.missing(2), []);
    }

    #[test]
    fn what_is_recorded_while_a_piece_is_restored_is_restored_next() {
        let journal = Journal::default();
        journal.record("n", 1, Piece::Added(2, false));
        journal.record("text", 1, Piece::Appended(b"ab".to_vec()));
        let restored = journal.missing(2);
        // Applied under the old lease before the service was lost, but acknowledged only now.
        journal.record("n", 1, Piece::Added(3, false));
        journal.record("text", 1, Piece::Appended(b"cd".to_vec()));
        journal.sum_is_back("n", &restored[0].added, 2);
        journal.appended_is_back("text", &restored[1].appended, 2);
        let rest = journal.missing(2);
        assert_eq!(rest[0].added, BTreeMap::from([(1, 3)]));
        assert_eq!(rest[1].appended, BTreeMap::from([(1, b"cd".to_vec())]));
        // A content replaces what was added before, even while that is being restored.
        let restored = journal.missing(2);
        journal.record("n", 2, Piece::Content(b"7".to_vec()));
        journal.sum_is_back("n", &restored[0].added, 2);
        assert_eq!(journal.missing(3)[0].added, BTreeMap::new());
    }
}
