//! How often a name failed in a row, and for how long it therefore waits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The number of failures in a row that do not cause a wait.
const FREE_FAILURES: u32 = 2;
/// The wait after the next failure. Each further failure doubles it.
const FIRST_COOLDOWN: Duration = Duration::from_secs(10);
/// The longest wait.
const LONGEST_COOLDOWN: Duration = Duration::from_secs(300);

/// How often in a row the departure of a node of this name ended a world, in `ctl/round`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureRecord {
    /// The name, without the number that distinguishes nodes of equal names.
    pub name: String,
    /// How often.
    pub count: u32,
}

impl FailureRecord {
    /// How long a node of this name waits.
    pub fn cooldown(&self) -> Duration {
        let doublings = self.count.checked_sub(FREE_FAILURES + 1);
        doublings
            .map_or(Duration::ZERO, |times| FIRST_COOLDOWN * 2_u32.pow(times.min(5)))
            .min(LONGEST_COOLDOWN)
    }

    /// The message for a node that waits, with the reason.
    pub fn message(&self) -> String {
        let Self { name, count } = self;
        format!("`{name}` waits {} s because it failed {count} times in a row", self.cooldown().as_secs())
    }

    /// The warning for a node that may have to wait, unless the run needs it.
    pub fn warning(&self, min_nodes: u32) -> String {
        let Self { name, count } = self;
        let (wait, nodes) = (self.cooldown().as_secs(), if min_nodes == 1 { "node" } else { "nodes" });
        format!(
            "`{name}` failed {count} times in a row, so it waits {wait} s while at least {min_nodes} other {nodes} can \
             form a round"
        )
    }
}
