//! What a store has written itself, so that it can be put back after the service came back empty.
//!
//! Every piece bears the run's lease under which it was applied. A service that came back empty has another run's lease,
//! and a write under the old one is refused there: so the number tells for each piece, exactly, whether the present
//! store has it, however late its answer was read.
//!
//! A content is put back only where nobody has written the key since; this node's part of a counter is added again,
//! and what it appended is appended again. Items of queues are not put back (who took them is not known), nor is a
//! deletion by another node: a key that somebody else deleted comes back with its writer.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::backend::LeaseId;

/// What was written, by key.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: Mutex<Entries>,
    /// One putting back at a time, or an amount would be added twice.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Notified when a piece was restored.
    restored: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: BTreeMap<String, Entry>,
    /// The lease under which every piece stands, if that was found. It spares each call of the store a look at all keys.
    complete_under: Option<LeaseId>,
}

/// This node's part of one key, each piece under its lease.
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

/// What a store under another lease lacks of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lacking {
    /// Its name.
    pub(super) name: String,
    /// The content.
    pub(super) content: Option<Vec<u8>>,
    /// What was added, by the lease that it stood under.
    pub(super) added: BTreeMap<LeaseId, i64>,
    /// What was appended, by the lease that it stood under.
    pub(super) appended: BTreeMap<LeaseId, Vec<u8>>,
    /// Whether this node is to be marked as finished.
    pub(super) finished: bool,
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Each change of it is whole before anything can fail.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a write that was applied under this lease.
    pub(super) fn record(&self, name: &str, lease: LeaseId, piece: Piece) {
        let mut entries = self.lock();
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
        self.lock().by_key.remove(name);
    }

    /// What the store under this lease lacks.
    pub(super) fn lacking(&self, lease: LeaseId) -> Vec<Lacking> {
        let entries = self.lock();
        let lacking = entries.by_key.iter().filter(|(_, entry)| entry.lacks(lease)).map(|(name, entry)| {
            let content = entry.content.as_ref().filter(|(of, _)| *of != lease);
            Lacking {
                name: name.clone(),
                content: content.map(|(_, value)| value.clone()),
                added: under_others(&entry.added, lease),
                appended: under_others(&entry.appended, lease),
                finished: entry.finished.is_some_and(|of| of != lease),
            }
        });
        lacking.collect()
    }

    /// A receiver that sees each piece that is restored from here on.
    pub(super) fn restored(&self) -> watch::Receiver<()> {
        self.restored.subscribe()
    }

    /// The first of these keys of which the store under this lease lacks something; of all keys if there are none.
    pub(super) fn first_lacking(&self, names: &[&str], lease: LeaseId) -> Option<String> {
        let mut entries = self.lock();
        if entries.complete_under == Some(lease) {
            return None;
        }
        let lacks = |(name, entry): (&String, &Entry)| entry.lacks(lease).then(|| name.clone());
        if !names.is_empty() {
            return names.iter().filter_map(|name| entries.by_key.get_key_value(*name)).find_map(lacks);
        }
        let first = entries.by_key.iter().find_map(lacks);
        if first.is_none() {
            entries.complete_under = Some(lease);
        }
        first
    }

    /// Notes that a content was put back, or that another has its place.
    pub(super) fn content_is_back(&self, name: &str, value: &[u8], lease: LeaseId) {
        self.restore(name, lease, |entry| {
            if let Some((of, _)) = entry.content.as_mut().filter(|(_, present)| present == value) {
                *of = lease;
            }
        });
    }

    /// Notes that these amounts were added again, in one sum. What was recorded since stays to be restored.
    pub(super) fn sum_is_back(&self, name: &str, restored: &BTreeMap<LeaseId, i64>, lease: LeaseId) {
        self.restore(name, lease, |entry| {
            for (of, amount) in restored {
                // A content that was set since ended the counter that these were part of.
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

    /// Notes that these bytes were appended again. What was recorded since stays to be restored.
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

    /// Notes that this node was marked as finished again.
    pub(super) fn finished_is_back(&self, name: &str, lease: LeaseId) {
        self.restore(name, lease, |entry| entry.finished = Some(lease));
    }

    /// Changes what is noted of a key that was written again under this lease, and notifies the calls that wait for that.
    fn restore(&self, name: &str, lease: LeaseId, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
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
    fn lacks(&self, lease: LeaseId) -> bool {
        self.content.as_ref().is_some_and(|(of, _)| *of != lease)
            || self.added.keys().any(|of| *of != lease)
            || self.appended.keys().any(|of| *of != lease)
            || self.finished.is_some_and(|of| of != lease)
    }
}

/// The pieces that do not stand under this lease.
fn under_others<T: Clone>(pieces: &BTreeMap<LeaseId, T>, lease: LeaseId) -> BTreeMap<LeaseId, T> {
    let others = pieces.iter().filter(|(of, _)| **of != lease);
    others.map(|(of, piece)| (*of, piece.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_lacks_what_was_written_under_other_leases() {
        let journal = Journal::default();
        journal.record("content", 1, Piece::Content(b"a".to_vec()));
        journal.record("counter", 1, Piece::Added(2, false));
        journal.record("counter", 1, Piece::Added(3, true));
        journal.record("counter", 2, Piece::Added(10, false));
        journal.record("text", 1, Piece::Appended(b"x".to_vec()));
        assert_eq!(journal.lacking(1).len(), 1);
        let lacking = journal.lacking(2);
        let content = Lacking { name: "content".into(), content: Some(b"a".to_vec()), ..Lacking::default() };
        let counter = Lacking {
            name: "counter".into(),
            added: BTreeMap::from([(1, 5)]),
            finished: true,
            ..Lacking::default()
        };
        let appended = BTreeMap::from([(1, b"x".to_vec())]);
        let text = Lacking { name: "text".into(), appended: appended.clone(), ..Lacking::default() };
        assert_eq!(lacking, [content, counter, text]);
        journal.content_is_back("content", b"a", 2);
        journal.sum_is_back("counter", &BTreeMap::from([(1, 5)]), 2);
        journal.finished_is_back("counter", 2);
        journal.appended_is_back("text", &appended, 2);
        assert_eq!(journal.lacking(2), []);
        assert_eq!(journal.lacking(3)[1].added, BTreeMap::from([(2, 15)]));
    }

    #[test]
    fn a_store_that_was_complete_lacks_what_is_recorded_under_another_lease_later() {
        let journal = Journal::default();
        journal.record("a", 1, Piece::Added(1, false));
        assert_eq!(journal.first_lacking(&[], 1), None);
        journal.record("b", 1, Piece::Added(1, false));
        assert_eq!(journal.first_lacking(&[], 1), None);
        assert_eq!(journal.first_lacking(&[], 2), Some("a".into()));
        journal.sum_is_back("a", &BTreeMap::from([(1, 1)]), 2);
        assert_eq!(journal.first_lacking(&[], 2), Some("b".into()));
        journal.sum_is_back("b", &BTreeMap::from([(1, 1)]), 2);
        assert_eq!(journal.first_lacking(&[], 2), None);
        // Applied under the old lease, and acknowledged only now.
        journal.record("c", 1, Piece::Added(1, false));
        assert_eq!(journal.first_lacking(&[], 2), Some("c".into()));
        journal.sum_is_back("c", &BTreeMap::from([(1, 1)]), 2);
        assert_eq!(journal.first_lacking(&["c"], 2), None);
        assert_eq!(journal.first_lacking(&[], 2), None);
        // Another look was overtaken by one more restoration.
        journal.sum_is_back("c", &BTreeMap::from([(2, 1)]), 3);
        assert_eq!(journal.first_lacking(&[], 2), Some("c".into()));
    }

    #[test]
    fn a_content_ends_what_was_added_before_and_a_deletion_ends_all() {
        let journal = Journal::default();
        journal.record("key", 1, Piece::Added(2, false));
        journal.record("key", 1, Piece::Content(b"5".to_vec()));
        journal.record("key", 1, Piece::Added(1, false));
        let lacking = journal.lacking(2);
        assert_eq!(lacking[0].content, Some(b"5".to_vec()));
        assert_eq!(lacking[0].added, BTreeMap::from([(1, 1)]));
        journal.forget("key");
        assert_eq!(journal.lacking(2), []);
    }

    #[test]
    fn what_is_recorded_while_a_piece_is_restored_is_restored_next() {
        let journal = Journal::default();
        journal.record("n", 1, Piece::Added(2, false));
        journal.record("text", 1, Piece::Appended(b"ab".to_vec()));
        let restored = journal.lacking(2);
        // Applied under the old lease before the service was lost, but acknowledged only now.
        journal.record("n", 1, Piece::Added(3, false));
        journal.record("text", 1, Piece::Appended(b"cd".to_vec()));
        journal.sum_is_back("n", &restored[0].added, 2);
        journal.appended_is_back("text", &restored[1].appended, 2);
        let rest = journal.lacking(2);
        assert_eq!(rest[0].added, BTreeMap::from([(1, 3)]));
        assert_eq!(rest[1].appended, BTreeMap::from([(1, b"cd".to_vec())]));
        // A content ends what was added before, also if that is being restored.
        let restored = journal.lacking(2);
        journal.record("n", 2, Piece::Content(b"7".to_vec()));
        journal.sum_is_back("n", &restored[0].added, 2);
        assert_eq!(journal.lacking(3)[0].added, BTreeMap::new());
    }
}
