//! Identities. They are random and never derived from a revision, because revisions start again in a service that lost
//! its data, and a delayed write of a former coordinator would find its own number there.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backend::LeaseId;

/// A node: a random positive 63-bit number, new at each join, written in hexadecimal everywhere. Its first lease has
/// the same number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(i64);

impl NodeId {
    /// Makes an ID from 64 random bits.
    pub fn from_random(bits: u64) -> Self {
        Self((bits >> 1).cast_signed().max(1))
    }

    /// Makes an ID from a number that another node sent. `None` if it is not a valid ID.
    pub fn from_number(number: u64) -> Option<Self> {
        let number = i64::try_from(number).ok()?;
        (number > 0).then_some(Self(number))
    }

    /// The ID of the node's first lease.
    pub fn first_lease(self) -> LeaseId {
        self.0
    }

    /// The shard out of `shards` that contains this node.
    pub fn shard(self, shards: u32) -> u32 {
        let remainder = self.0.unsigned_abs() % u64::from(shards.max(1));
        u32::try_from(remainder).unwrap_or(0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for NodeId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match i64::from_str_radix(&text, 16) {
            Ok(number) if number > 0 && text.len() == 16 => Ok(Self(number)),
            _ => Err(format!("expected a node id (16 hex digits), not `{text}`")),
        }
    }
}

/// A random name for something that must never be confused with another of its kind: a life, a term, an attempt at a
/// plan.
pub fn nonce(bits: u64) -> String {
    format!("{bits:016x}")
}

/// The number from which [`nonce`] made this name.
pub fn number_of(nonce: &str) -> Option<u64> {
    u64::from_str_radix(nonce, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_id_survives_being_written_and_is_never_zero() {
        for bits in [0, 1, 2, u64::MAX, 0x8000_0000_0000_0000, 0x0123_4567_89ab_cdef] {
            let id = NodeId::from_random(bits);
            assert!(id.first_lease() > 0);
            assert_eq!(NodeId::try_from(id.to_string()), Ok(id));
        }
        for text in ["", "0", "0000000000000000", "-000000000000001", "ffffffffffffffff", "name"] {
            assert!(NodeId::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
