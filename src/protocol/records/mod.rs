//! The records of a run: versioned JSON. [`Record`] says how records are encoded and decoded, and each other file has the
//! records of one topic.

mod closed;
mod names;
mod node;
mod record;
mod round;

pub use self::{
    closed::{ClosedRecord, Outcome},
    names::{NAMES, some_names},
    node::{LastWorld, NodeRecord},
    record::{LONGEST_REASON_BYTES, LONGEST_RECORD_BYTES, LONGEST_TEXT_BYTES, Record, VERSION},
    round::{
        ChangeKind, ChangeRecord, CoordinatorRecord, HistoryRecord, Phase, PlanEntry, PlanShard, RoundRecord,
    },
};
