//! The report that a program trains again.

use serde::{Deserialize, Serialize};

use super::Record;

/// The report of a program that it trains in a round, at `resumed/<life>/<round>`. Rank 0 writes it. No node acts on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumedRecord {
    /// The round.
    pub round: u64,
    /// How long after it received the world the program trained, in seconds.
    pub after_seconds: f64,
}
impl Record for ResumedRecord {}
