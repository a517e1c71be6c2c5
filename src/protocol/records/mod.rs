//! The records of a run: versioned JSON. [`Record`] defines how records are encoded and decoded, and each other file
//! has the records of one topic.

mod closed;
mod drain;
mod failure;
mod lost;
mod names;
mod node;
mod record;
mod refusal;
mod resumed;
mod round;
mod suspect;

pub(crate) use self::names::after_colon;
pub use self::{
    closed::{ClosedRecord, Outcome},
    drain::DrainRecord,
    failure::FailureRecord,
    lost::LostRecord,
    names::{NAMES, names_of, nodes_text, some_names},
    node::{NodeRecord, WorldMembership},
    record::{LONGEST_REASON_BYTES, LONGEST_RECORD_BYTES, LONGEST_TEXT_BYTES, Record, VERSION, json_bytes},
    refusal::{RefusalRecord, are_rivals},
    resumed::ResumedRecord,
    round::{
        ChangeKind, ChangeRecord, CoordinatorRecord, HistoryRecord, LossRecord, Neighbor, Phase, PlanEntry,
        PlanShard, RoundRecord,
    },
    suspect::{SuspectRecord, SuspectVerdict},
};
