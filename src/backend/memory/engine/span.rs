//! Spans of keys, which requests, conditions, and watches refer to.

use std::ops::Bound;

use super::{Answer, Refusal};
use crate::backend::Keys;

/// All keys `from <= key`, and `< to` if there is an end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

impl Span {
    /// One key.
    pub fn one(key: &[u8]) -> Self {
        let mut to = key.to_vec();
        to.push(0);
        Self { from: key.to_vec(), to: Some(to) }
    }

    /// All keys with this prefix.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut to = prefix.to_vec();
        while let Some(last) = to.pop() {
            if last < u8::MAX {
                to.push(last + 1);
                return Self { from: prefix.to_vec(), to: Some(to) };
            }
        }
        Self { from: prefix.to_vec(), to: None }
    }

    /// The meaning of `key` and `range_end` in etcd's requests: an empty end stands for the single key, and a zero byte
    /// for no end. Without a key the request is invalid, whatever its end is.
    pub fn of_request(key: Vec<u8>, range_end: Vec<u8>) -> Self {
        match range_end.as_slice() {
            _ if key.is_empty() => Self { from: key, to: Some(Vec::new()) },
            [] => Self::one(&key),
            [0] => Self { from: key, to: None },
            _ => Self { from: key, to: Some(range_end) },
        }
    }

    /// Whether a key is in the span.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.from.as_slice() <= key && self.to.as_ref().is_none_or(|to| key < to.as_slice())
    }

    /// Whether the span cannot contain a key.
    pub fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }

    /// The single key of the span, if it is a single key.
    pub fn only_key(&self) -> Option<&[u8]> {
        let (last, rest) = self.to.as_ref()?.split_last()?;
        (*last == 0 && rest == self.from).then_some(&self.from)
    }

    /// The prefix of the span, if it contains exactly the keys with that prefix.
    pub fn common_prefix(&self) -> Option<&[u8]> {
        (*self == Self::prefix(&self.from)).then_some(&self.from)
    }

    /// Rejects an invalid span. An empty start without an end is an empty prefix, which stands for every key.
    pub(super) fn check(&self) -> Answer<()> {
        if self.from.is_empty() && self.to.is_some() { Err(Refusal::EmptyKey) } else { Ok(()) }
    }

    pub(super) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let to = self.to.as_ref().map_or(Bound::Unbounded, |to| Bound::Excluded(to.as_slice()));
        (Bound::Included(self.from.as_slice()), to)
    }

    /// The number of bytes of its ends.
    pub fn size(&self) -> usize {
        self.from.len() + self.to.as_ref().map_or(0, Vec::len)
    }
}

impl TryFrom<&Keys> for Span {
    type Error = Refusal;

    fn try_from(keys: &Keys) -> Answer<Self> {
        match keys {
            Keys::One(key) | Keys::Span(key, _) if key.is_empty() => Err(Refusal::EmptyKey),
            Keys::One(key) => Ok(Self::one(key)),
            Keys::Prefix(prefix) => Ok(Self::prefix(prefix)),
            Keys::Span(from, to) => Ok(Self { from: from.clone(), to: Some(to.clone()) }),
        }
    }
}
