//! Which keys: every request, condition and watch names a span of them.

use std::ops::Bound;

use super::{Answer, Refusal};
use crate::backend::Keys;

/// All keys `from <= key`, and `< to` where there is one.
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

    /// What `key` and `range_end` of etcd's requests mean: an empty end is the one key, a zero byte is no end. Without a
    /// key it is wrong, whatever its end.
    pub fn of_request(key: Vec<u8>, range_end: Vec<u8>) -> Self {
        match range_end.as_slice() {
            _ if key.is_empty() => Self { from: key, to: Some(Vec::new()) },
            [] => Self::one(&key),
            [0] => Self { from: key, to: None },
            _ => Self { from: key, to: Some(range_end) },
        }
    }

    /// Whether a key is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.from.as_slice() <= key && self.to.as_ref().is_none_or(|to| key < to.as_slice())
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }

    /// The one key that it is, if it is one.
    pub fn only_key(&self) -> Option<&[u8]> {
        let (last, rest) = self.to.as_ref()?.split_last()?;
        (*last == 0 && rest == self.from).then_some(&self.from)
    }

    /// The prefix whose keys it holds, if it holds all keys with one prefix and no others.
    pub fn common_prefix(&self) -> Option<&[u8]> {
        (*self == Self::prefix(&self.from)).then_some(&self.from)
    }

    /// What is wrong with it. An empty start without an end is a prefix of nothing, that is to say every key.
    pub(super) fn check(&self) -> Answer<()> {
        if self.from.is_empty() && self.to.is_some() { Err(Refusal::EmptyKey) } else { Ok(()) }
    }

    pub(super) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let to = self.to.as_ref().map_or(Bound::Unbounded, |to| Bound::Excluded(to.as_slice()));
        (Bound::Included(self.from.as_slice()), to)
    }

    /// How many bytes its ends have.
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
