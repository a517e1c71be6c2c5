//! The state of a node that is outside the run: it has not joined yet, or its membership has ended.

use tokio::time::Instant;

/// What a node outside the run remembers.
#[derive(Default)]
pub(in super::super) struct Outside {
    /// The life that it was in. If that is closed meanwhile, this node ends with it.
    pub(in super::super) past_life: Option<String>,
    /// The closed life whose run ID it waits for, and since when.
    pub(in super::super) closed_since: Option<(String, Instant)>,
    /// The connection of the watch that was opened before `ctl/` was read last, while the node relies on that watch to
    /// report when the id of a closed run is used again.
    pub(in super::super) watched_on: Option<u64>,
}
