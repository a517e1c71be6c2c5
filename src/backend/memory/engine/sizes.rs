//! Computes the size of a response before it is created, so that a response that does not fit is never created, and a
//! write whose response does not fit is not applied.

use super::{Action, Chosen, Delete, Engine, Put, Read, Span};
use crate::backend::{KeyValue, Revision};

/// What a message contains about a key besides its bytes and those of its value.
const ITEM_BYTES: usize = 96;

impl Engine {
    /// The maximum size of the response to a read.
    pub fn read_bytes(&self, read: &Read) -> usize {
        if read.count_only {
            return ITEM_BYTES;
        }
        let revision = if read.revision > 0 { read.revision } else { Revision::MAX };
        let (mut sum, mut largest, mut count) = (0, 0, 0);
        for item in self.items(&read.span, revision).take(read.most()) {
            let bytes = ITEM_BYTES + item.key.len() + if read.keys_only { 0 } else { item.value.len() };
            sum += bytes;
            largest = largest.max(bytes);
            count += 1;
        }
        ITEM_BYTES + if read.limit > 0 && read.limit < count { sum.min(largest * read.limit) } else { sum }
    }

    /// The maximum size of the response to a put.
    pub fn put_bytes(&self, put: &Put) -> usize {
        let previous = put.previous.then(|| self.at(&put.key, Revision::MAX)).flatten();
        ITEM_BYTES + previous.map_or(0, item_bytes)
    }

    /// The maximum size of the response to a delete.
    pub fn delete_bytes(&self, delete: &Delete) -> usize {
        if !delete.previous {
            return ITEM_BYTES;
        }
        ITEM_BYTES + self.items(&delete.span, Revision::MAX).map(|item| item_bytes(item)).sum::<usize>()
    }

    /// The approximate number of bytes that [`Engine::changes`] returns for these arguments, including the previous
    /// state of the keys if that is requested.
    pub fn changes_bytes(
        &self,
        span: &Span,
        from: Revision,
        revisions: usize,
        bytes: usize,
        previous: bool,
    ) -> usize {
        let (mut taken, mut before) = (0, 0);
        for (looked_at, (revision, changes)) in self.log.range(from..).enumerate() {
            if looked_at >= revisions || taken >= bytes {
                break;
            }
            for change in changes.iter().filter(|change| span.contains(change.key())) {
                taken += change.size();
                if previous {
                    before += self.at(change.key(), revision - 1).map_or(0, item_bytes);
                }
            }
        }
        taken + before
    }

    /// The maximum size of the response to a transaction. Its reads and deletes may also find what it puts.
    pub(super) fn transaction_bytes(&self, chosen: &Chosen<'_>) -> usize {
        let mut puts = Vec::new();
        collect_puts(chosen, &mut puts);
        self.chosen_bytes(chosen, &puts)
    }

    fn chosen_bytes(&self, chosen: &Chosen<'_>, puts: &[&Put]) -> usize {
        let put_within = |contains: &dyn Fn(&[u8]) -> bool| {
            let found = puts.iter().filter(|put| contains(&put.key));
            found.map(|put| ITEM_BYTES + put.key.len() + put.value.len()).sum::<usize>()
        };
        let mut within = chosen.within.iter();
        let bytes = chosen.actions.iter().map(|action| match action {
            Action::Put(put) => self.put_bytes(put),
            Action::Read(read) if read.count_only => ITEM_BYTES,
            Action::Read(read) => self.read_bytes(read) + put_within(&|key| read.span.contains(key)),
            Action::Delete(delete) if !delete.previous => ITEM_BYTES,
            Action::Delete(delete) => {
                self.delete_bytes(delete) + put_within(&|key| delete.span.contains(key))
            }
            Action::Transaction(_) => {
                ITEM_BYTES + within.next().map_or(0, |within| self.chosen_bytes(within, puts))
            }
            Action::Nothing => 0,
        });
        ITEM_BYTES + bytes.sum::<usize>()
    }
}

fn collect_puts<'a>(chosen: &Chosen<'a>, puts: &mut Vec<&'a Put>) {
    puts.extend(chosen.actions.iter().filter_map(|action| match action {
        Action::Put(put) => Some(put),
        _ => None,
    }));
    for within in &chosen.within {
        collect_puts(within, puts);
    }
}

fn item_bytes(item: &KeyValue) -> usize {
    ITEM_BYTES + item.key.len() + item.value.len()
}
