//! Who is to be woken by a change: bells by the keys they are for.
//!
//! Nodes of a run all watch the same few prefixes, and waits of its store one key each. So equal spans share a place, and
//! single keys are found without looking at those of others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::engine::Span;
use crate::backend::Revision;

/// Watches that have news, each with the revision of the first.
pub type News = BTreeMap<i64, Revision>;

/// Wakes one owner of any number of watches, and says which of them have news since when.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<News>,
    notify: Notify,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, News> {
        // A map of plain numbers, whole at any time.
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is news of this revision for this watch.
    pub fn ring(&self, watch: i64, revision: Revision) {
        self.lock().entry(watch).or_insert(revision);
        self.notify.notify_one();
    }

    /// The watches that have news since this was asked last.
    pub fn take(&self) -> News {
        std::mem::take(&mut *self.lock())
    }

    /// Waits for news, which may have been taken already. Cancel-safe.
    pub async fn heard(&self) {
        self.notify.notified().await;
    }
}

type Group = BTreeMap<u64, (Arc<Bell>, i64)>;

/// The bells.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    keys: BTreeMap<Vec<u8>, Group>,
    spans: BTreeMap<Span, Group>,
    next: u64,
    count: usize,
}

impl Watchers {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Returns the number to take it away by.
    pub(super) fn add(&mut self, span: &Span, bell: Arc<Bell>, watch: i64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.count += 1;
        let group = match span.only_key() {
            Some(key) => self.keys.entry(key.to_vec()).or_default(),
            None => self.spans.entry(span.clone()).or_default(),
        };
        group.insert(number, (bell, watch));
        number
    }

    pub(super) fn remove(&mut self, span: &Span, number: u64) {
        let group = match span.only_key() {
            Some(key) => self.keys.get_mut(key),
            None => self.spans.get_mut(span),
        };
        let Some(group) = group else { return };
        if group.remove(&number).is_some() {
            self.count -= 1;
        }
        if group.is_empty() {
            match span.only_key() {
                Some(key) => drop(self.keys.remove(key)),
                None => drop(self.spans.remove(span)),
            }
        }
    }

    /// Rings for a change of this key.
    pub(super) fn tell(&self, key: &[u8], revision: Revision) {
        let spans = self.spans.iter().filter(|(span, _)| span.contains(key)).map(|(_, group)| group);
        for (bell, watch) in self.keys.get(key).into_iter().chain(spans).flat_map(BTreeMap::values) {
            bell.ring(*watch, revision);
        }
    }

    /// Rings for a change of keys that are not known any more.
    pub(super) fn tell_all(&self, revision: Revision) {
        for (bell, watch) in self.all() {
            bell.ring(*watch, revision);
        }
    }

    fn all(&self) -> impl Iterator<Item = &(Arc<Bell>, i64)> {
        self.keys.values().chain(self.spans.values()).flat_map(BTreeMap::values)
    }

    /// Wakes everybody, with no news.
    pub(super) fn wake_all(&self) {
        for (bell, _) in self.all() {
            bell.notify.notify_one();
        }
    }
}
