//! Reads at a revision.

use std::{cmp::Ordering, sync::Arc};

use super::{Answer, Engine, Found, Order, Read, SortBy, Span, check, history::at};
use crate::backend::{KeyValue, Revision};

impl Engine {
    /// Reads keys.
    pub fn read(&self, read: &Read) -> Answer<Found> {
        check::check_read(read)?;
        // Here, etcd treats a negative revision as the latest one. Within a transaction, it treats it as compacted.
        if read.revision > 0 {
            self.check_read(read)?;
        }
        Ok(self.find(read))
    }

    /// The state of a key at a revision. `None` if that is compacted.
    pub fn at(&self, key: &[u8], revision: Revision) -> Option<&KeyValue> {
        if revision < self.compacted {
            return None;
        }
        Some(at(self.keys.get(key)?, revision)?.as_ref())
    }

    /// The keys that existed at a revision, sorted.
    pub(super) fn items(&self, span: &Span, revision: Revision) -> impl Iterator<Item = &Arc<KeyValue>> {
        let keys = (!span.is_empty()).then(|| self.keys.range::<[u8], _>(span.bounds()));
        keys.into_iter().flatten().filter_map(move |(_, versions)| at(versions, revision))
    }

    /// Reads at the latest revision, also within a transaction that began there.
    pub(super) fn find(&self, read: &Read) -> Found {
        let revision = if read.revision > 0 { read.revision } else { Revision::MAX };
        let mut items = self.items(&read.span, revision);
        let mut found = Found { revision: self.revision, ..Found::default() };
        if read.count_only {
            found.count = items.count();
            return found;
        }
        let mut taken: Vec<_> = items.by_ref().take(read.most()).collect();
        found.count = taken.len() + items.count();
        taken.retain(|item| read.within.contains(item));
        sort(&mut taken, read.sort_by, read.order);
        found.more = read.limit > 0 && taken.len() > read.limit;
        if found.more {
            taken.truncate(read.limit);
        }
        let item = |item: &Arc<KeyValue>| {
            let value = if read.keys_only { Vec::new() } else { item.value.clone() };
            KeyValue { key: item.key.clone(), value, ..**item }
        };
        found.items = taken.into_iter().map(item).collect();
        found
    }
}

fn sort(items: &mut [&Arc<KeyValue>], by: SortBy, order: Order) {
    let compare = |a: &&Arc<KeyValue>, b: &&Arc<KeyValue>| match by {
        SortBy::Key | SortBy::Unknown => a.key.cmp(&b.key),
        SortBy::Version => a.version.cmp(&b.version),
        SortBy::Create => a.create_revision.cmp(&b.create_revision),
        SortBy::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortBy::Value => a.value.cmp(&b.value),
    };
    let reversed = |a: &&Arc<KeyValue>, b: &&Arc<KeyValue>| -> Ordering { compare(b, a) };
    match order {
        Order::Descending => items.sort_by(reversed),
        Order::Ascending | Order::Unsaid | Order::Unknown => items.sort_by(compare),
    }
}
