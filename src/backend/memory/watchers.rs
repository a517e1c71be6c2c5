//! Maps each watched key, prefix, or range to the watches that must be notified when it changes.
//!
//! For a change, the key is looked up, and each beginning of the key that has the length of a watched prefix. So the
//! cost of a write does not depend on the number of other watched keys and prefixes. Only ranges that are not prefixes,
//! which this package does not watch, are checked one by one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use super::engine::Span;
use crate::{backend::Revision, lock::lock};

/// Watches with unread changes, each with the revision of the first.
pub type News = BTreeMap<i64, Revision>;

/// Wakes one owner of any number of watches, and collects which of them have changes, and since which revision.
#[derive(Debug, Default)]
pub struct WatchNotifier {
    changed: Mutex<News>,
    notify: Notify,
}

impl WatchNotifier {
    /// Adds a change at this revision for this watch.
    pub fn mark_changed(&self, watch: i64, revision: Revision) {
        lock(&self.changed).entry(watch).or_insert(revision);
        self.notify.notify_one();
    }

    /// Removes and returns the watches with changes since the last call.
    pub fn take(&self) -> News {
        std::mem::take(&mut *lock(&self.changed))
    }

    /// Waits for changes, which may have been taken already. Cancel-safe.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}

type Group = BTreeMap<u64, (Arc<WatchNotifier>, i64)>;

/// How a span is looked up.
#[derive(Clone, Copy)]
enum Kind<'span> {
    Key(&'span [u8]),
    Prefix(&'span [u8]),
    Range,
}

impl<'span> Kind<'span> {
    fn of(span: &'span Span) -> Self {
        let prefix = || span.common_prefix().map_or(Self::Range, Self::Prefix);
        span.only_key().map_or_else(prefix, Self::Key)
    }
}

/// The notifiers of all watches.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    keys: BTreeMap<Vec<u8>, Group>,
    prefixes: BTreeMap<Vec<u8>, Group>,
    /// The number of watched prefixes by their length.
    lengths: BTreeMap<usize, usize>,
    spans: BTreeMap<Span, Group>,
    next: u64,
    count: usize,
}

impl Watchers {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Adds a watch. Returns the number with which it can be removed.
    pub(super) fn add(&mut self, span: &Span, notifier: Arc<WatchNotifier>, watch: i64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.count += 1;
        let group = match Kind::of(span) {
            Kind::Key(key) => self.keys.entry(key.to_vec()).or_default(),
            Kind::Prefix(prefix) => self.prefixes.entry(prefix.to_vec()).or_insert_with(|| {
                *self.lengths.entry(prefix.len()).or_default() += 1;
                Group::default()
            }),
            Kind::Range => self.spans.entry(span.clone()).or_default(),
        };
        group.insert(number, (notifier, watch));
        number
    }

    pub(super) fn remove(&mut self, span: &Span, number: u64) {
        let kind = Kind::of(span);
        let group = match kind {
            Kind::Key(key) => self.keys.get_mut(key),
            Kind::Prefix(prefix) => self.prefixes.get_mut(prefix),
            Kind::Range => self.spans.get_mut(span),
        };
        let Some(group) = group else { return };
        if group.remove(&number).is_some() {
            self.count -= 1;
        }
        if group.is_empty() {
            match kind {
                Kind::Key(key) => drop(self.keys.remove(key)),
                Kind::Prefix(prefix) => {
                    self.prefixes.remove(prefix);
                    if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                        *count -= 1;
                        if *count == 0 {
                            self.lengths.remove(&prefix.len());
                        }
                    }
                }
                Kind::Range => drop(self.spans.remove(span)),
            }
        }
    }

    /// Notifies the watches of this key of a change.
    pub(super) fn notify_watches(&self, key: &[u8], revision: Revision) {
        for (notifier, watch) in self.concerned(key) {
            notifier.mark_changed(*watch, revision);
        }
    }

    /// The watches of this key.
    fn concerned(&self, key: &[u8]) -> impl Iterator<Item = &(Arc<WatchNotifier>, i64)> {
        let beginnings = self.lengths.keys().filter_map(|length| key.get(..*length));
        let prefixes = beginnings.filter_map(|beginning| self.prefixes.get(beginning));
        let ranges = self.spans.iter().filter(|(span, _)| span.contains(key)).map(|(_, group)| group);
        self.keys.get(key).into_iter().chain(prefixes).chain(ranges).flat_map(BTreeMap::values)
    }

    /// Notifies all watches, for a change of keys that are not known any more.
    pub(super) fn notify_all(&self, revision: Revision) {
        for (notifier, watch) in self.all() {
            notifier.mark_changed(*watch, revision);
        }
    }

    fn all(&self) -> impl Iterator<Item = &(Arc<WatchNotifier>, i64)> {
        self.keys.values().chain(self.prefixes.values()).chain(self.spans.values()).flat_map(BTreeMap::values)
    }

    /// Wakes all owners, without a change.
    pub(super) fn wake_all(&self) {
        for (notifier, _) in self.all() {
            notifier.notify.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Keys and ends with few different letters, so that spans overlap.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0, 1, b'a', b'b', u8::MAX]), 1..5)
    }

    fn span() -> impl Strategy<Value = Span> {
        let range = (key(), key()).prop_map(|(from, to)| Span::of_request(from, to));
        prop_oneof![
            key().prop_map(|key| Span::one(&key)),
            prop::collection::vec(prop::sample::select(vec![0, b'a', u8::MAX]), 0..4)
                .prop_map(|prefix| Span::prefix(&prefix)),
            range,
            key().prop_map(|from| Span::of_request(from, vec![0])),
        ]
    }

    proptest! {
        #[test]
        fn change_notifies_exactly_the_watches_whose_span_contains_its_key(
            spans in prop::collection::vec(span(), 1..20), removed in any::<u32>(), key in key(),
        ) {
            let notifier = Arc::new(WatchNotifier::default());
            let mut watchers = Watchers::default();
            let numbers: Vec<(i64, &Span, u64)> =
                (0..).zip(&spans).map(|(watch, span)| (watch, span, watchers.add(span, Arc::clone(&notifier), watch))).collect();
            let (gone, there): (Vec<_>, Vec<_>) =
                numbers.into_iter().partition(|(watch, ..)| removed >> watch & 1 == 1);
            for (_, span, number) in gone {
                watchers.remove(span, number);
            }
            watchers.notify_watches(&key, 7);
            let told: BTreeSet<i64> = notifier.take().into_keys().collect();
            let concerned: BTreeSet<i64> =
                there.iter().filter(|(_, span, _)| span.contains(&key)).map(|(watch, ..)| *watch).collect();
            prop_assert_eq!(told, concerned);
            prop_assert_eq!(watchers.len(), there.len());
            for (_, span, number) in there {
                watchers.remove(span, number);
            }
            let Watchers { keys, prefixes, lengths, spans, count, .. } = watchers;
            prop_assert!(keys.is_empty() && prefixes.is_empty() && lengths.is_empty() && spans.is_empty() && count == 0);
        }
    }

    #[test]
    fn write_looks_at_no_watch_of_another_key_or_prefix() {
        let mut watchers = Watchers::default();
        for number in 0..1_000 {
            let notifier = Arc::new(WatchNotifier::default());
            watchers.add(&Span::prefix(format!("/run/kv/{number:04}/").as_bytes()), Arc::clone(&notifier), 0);
            watchers.add(&Span::one(format!("/run/kv/{number:04}/v").as_bytes()), notifier, 0);
        }
        assert!(watchers.spans.is_empty(), "which each write looks through");
        assert_eq!(watchers.lengths.len(), 1, "one lookup for each length of a prefix");
        assert_eq!(watchers.concerned(b"/run/kv/0007/v").count(), 2);
    }
}
