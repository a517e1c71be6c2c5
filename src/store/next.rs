//! What a write does after each attempt: pure.
//!
//! An attempt that is given up may still be applied seconds later, and an `add` that counts twice ends a job's exit
//! barrier too early. What became of earlier attempts follows from the version of the slot's key ([`super::slots`]),
//! which the next attempt reads if it is refused.
//!
//! If an operation turns out to have nothing to write while an earlier attempt of it may still be in flight, it first
//! writes its slot alone (a *fence*). Afterwards no earlier attempt can be applied.

use super::{slots::Slot, values::Known};
use crate::{
    backend::{KeyValue, LeaseId, Revision},
    error::{Applied, Error},
};

/// What a slot holds after a fence. After a write it is empty.
pub(super) const FENCE: &[u8] = b"fence";

/// What is known of a write between two attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Course {
    /// The slot of the last attempt. `None` if the next attempt takes another one.
    pub(super) slot: Option<Slot>,
    /// What the keys of the change held when they were read last.
    pub(super) known: Option<Known>,
    /// Whether an attempt may have been applied, or may still be.
    pub(super) open: bool,
    /// How often a condition of the change did not hold.
    pub(super) refusals: u32,
}

/// An attempt, as far as its answer depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// The run's lease.
    pub(super) lease: LeaseId,
    /// Whether it writes its slot alone.
    pub(super) fence: bool,
}

/// What came of an attempt.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// It was applied.
    Applied {
        /// The revision of the write.
        revision: Revision,
        /// What the result key holds afterwards.
        result: Option<KeyValue>,
        /// What the keys of the change hold. Read by a fence only.
        known: Known,
    },
    /// A condition did not hold.
    Refused {
        /// The key of the slot.
        slot: Option<KeyValue>,
        /// Whether this node's record exists.
        node: bool,
        /// What the keys of the change hold.
        known: Known,
    },
    /// The attempt failed.
    Failed(Error),
}

/// Where and when a write was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The run's lease that its keys are attached to. It differs in a service that lost its data.
    pub(super) lease: LeaseId,
    /// Its revision.
    pub(super) revision: Revision,
}

/// What to wait for before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Nothing.
    None,
    /// The writes of other nodes.
    Contention,
    /// The service.
    Service,
    /// An event of the session, or the service.
    Session,
}

/// What a write does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It was applied, and this is what the result key held afterwards.
    Done(Written, Option<KeyValue>),
    /// An earlier attempt was applied, so the result is read at its revision.
    DoneEarlier(Written),
    /// Another attempt follows, after a pause with this reason.
    Again(Pause, Option<String>),
    /// Another attempt follows in another slot, once the session has reported that the service lost its data.
    AfterReset,
    /// It failed.
    Failed(Error),
}

/// What a refused attempt shows about the attempts before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// One of them was applied.
    Applied,
    /// One of them was a fence, and was applied.
    Fenced,
    /// None was, and none can be, because this node's record does not exist at the moment.
    NodeMissing,
    /// None was so far, because a condition of the change did not hold.
    Refused,
    /// The slot does not exist any more.
    Gone,
    /// The slot has an earlier version than the acknowledged one, so the service was restored from an older backup.
    Earlier,
    /// The slot was written by something else.
    Foreign,
}

fn verdict(version: i64, slot: Option<&KeyValue>, node: bool) -> Verdict {
    match slot {
        Some(item) if item.version == version + 1 && item.value == FENCE => Verdict::Fenced,
        Some(item) if item.version == version + 1 => Verdict::Applied,
        _ if !node => Verdict::NodeMissing,
        Some(item) if item.version == version => Verdict::Refused,
        None if version == 0 => Verdict::Refused,
        None => Verdict::Gone,
        Some(item) if item.version < version => Verdict::Earlier,
        Some(_) => Verdict::Foreign,
    }
}

impl Answer {
    /// Whether this node has no record.
    pub(super) fn has_no_record(&self) -> bool {
        matches!(self, Self::Refused { node: false, .. })
    }

    /// Whether the service holds older data than it acknowledged before in this slot.
    pub(super) fn is_older(&self, slot: &Slot) -> bool {
        matches!(self, Self::Refused { slot: item, node, .. }
            if verdict(slot.version, item.as_ref(), *node) == Verdict::Earlier)
    }
}

/// What follows from the answer to an attempt in `slot`. A slot that remains in `course` is used again, or is returned.
pub(super) fn next(course: &mut Course, slot: Slot, sent: Sent, answer: Answer) -> Next {
    let written = Slot { version: slot.version + 1, ..slot.clone() };
    match answer {
        Answer::Applied { known, .. } if sent.fence => fenced(course, written, known),
        Answer::Applied { revision, result, .. } => {
            course.slot = Some(written);
            Next::Done(Written { lease: sent.lease, revision }, result)
        }
        Answer::Refused { slot: item, node, known } => {
            match (verdict(slot.version, item.as_ref(), node), item) {
                (Verdict::Applied, Some(item)) => {
                    course.slot = Some(written);
                    Next::DoneEarlier(Written { lease: item.lease, revision: item.mod_revision })
                }
                (Verdict::Fenced, _) => fenced(course, written, known),
                (Verdict::NodeMissing, _) => {
                    course.slot = Some(slot);
                    again(Pause::Session, "this node's record is not in the service at the moment")
                }
                (Verdict::Refused, _) => {
                    course.slot = Some(slot);
                    course.known = Some(known);
                    course.refusals += 1;
                    // The first refusal is a wrong guess; the others are writes of other nodes. Every other attempt follows
                    // at once, because what was read before a pause is outdated after it.
                    let pause =
                        if course.refusals.is_multiple_of(2) { Pause::Contention } else { Pause::None };
                    again(
                        pause,
                        "other nodes write to the same key, or the run's data is not there at the moment",
                    )
                }
                _ => {
                    let next = if course.open { Next::AfterReset } else { Next::Again(Pause::None, None) };
                    *course = Course { known: Some(known), refusals: course.refusals, ..Course::default() };
                    next
                }
            }
        }
        Answer::Failed(error) => {
            course.slot = Some(slot);
            match error {
                Error::LeaseNotFound { .. } => {
                    again(Pause::Session, "the run's lease does not exist any more")
                }
                error if error.is_transient() => {
                    course.open |= matches!(error, Error::Unavailable { applied: Applied::Unknown, .. });
                    again(Pause::Service, &error.to_string())
                }
                error => Next::Failed(error),
            }
        }
    }
}

fn again(pause: Pause, why: &str) -> Next {
    Next::Again(pause, Some(why.to_owned()))
}

/// After a fence, no earlier attempt can be applied.
fn fenced(course: &mut Course, slot: Slot, known: Known) -> Next {
    *course = Course { slot: Some(slot), known: Some(known), open: false, refusals: course.refusals };
    Next::Again(Pause::None, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: i64, value: &[u8]) -> KeyValue {
        KeyValue { version, value: value.to_vec(), lease: 70, mod_revision: 50, ..KeyValue::default() }
    }

    #[test]
    fn refusal_shows_the_outcome_of_earlier_attempts() {
        let cases = [
            (0, None, true, Verdict::Refused),
            (0, None, false, Verdict::NodeMissing),
            (0, Some(record(1, b"")), true, Verdict::Applied),
            (0, Some(record(1, b"")), false, Verdict::Applied),
            (3, Some(record(3, b"fence")), true, Verdict::Refused),
            (3, Some(record(3, b"")), false, Verdict::NodeMissing),
            (3, Some(record(4, b"")), true, Verdict::Applied),
            (3, Some(record(4, b"fence")), true, Verdict::Fenced),
            (3, Some(record(5, b"")), true, Verdict::Foreign),
            (3, Some(record(2, b"")), true, Verdict::Earlier),
            (3, None, true, Verdict::Gone),
            (3, None, false, Verdict::NodeMissing),
        ];
        for (version, slot, node, expected) in cases {
            assert_eq!(verdict(version, slot.as_ref(), node), expected, "{version} {slot:?} {node}");
        }
    }

    #[test]
    fn each_answer_decides_the_next_attempt() {
        let slot = |version| Slot { number: 2, version };
        let before = Course { slot: None, known: None, open: false, refusals: 0 };
        let open = Course { open: true, ..before.clone() };
        let known = || Known::from([(b"key".to_vec(), record(1, b"value"))]);
        let applied = |result| Answer::Applied { revision: 60, result, known: known() };
        let refused = |slot, node| Answer::Refused { slot, node, known: known() };
        let unavailable = |applied| Error::Unavailable { endpoint: "e".into(), cause: "c".into(), applied };
        let failed = |applied| Answer::Failed(unavailable(applied));
        let at = |version, course: &Course| Course { slot: Some(slot(version)), ..course.clone() };
        let read = |course: &Course| Course { known: Some(known()), ..course.clone() };
        let turn = |course: &Course| Course { refusals: course.refusals + 1, ..course.clone() };
        let again = |pause| Next::Again(pause, None);
        let lost = || Answer::Failed(Error::LeaseNotFound { lease: 7 });
        let denied = Error::Argument { message: "no".into() };
        let result = Some(record(4, b"5"));
        let earlier = Next::DoneEarlier(Written { lease: 70, revision: 50 });
        let done = |result| Next::Done(Written { lease: 7, revision: 60 }, result);
        let once = turn(&before);
        // Before the answer, whether it is a fence, the answer; afterwards, and what follows.
        let cases = [
            (&before, false, applied(result.clone()), at(4, &before), done(result)),
            (&open, false, applied(None), at(4, &open), done(None)),
            (&open, true, applied(None), read(&at(4, &before)), again(Pause::None)),
            (&open, false, refused(Some(record(4, b"")), true), at(4, &open), earlier.clone()),
            (&open, true, refused(Some(record(4, b"")), false), at(4, &open), earlier),
            (&open, true, refused(Some(record(4, FENCE)), true), read(&at(4, &before)), again(Pause::None)),
            (&open, false, refused(None, false), at(3, &open), again(Pause::Session)),
            (
                &open,
                false,
                refused(Some(record(3, b"")), true),
                read(&at(3, &turn(&open))),
                again(Pause::None),
            ),
            (
                &once,
                false,
                refused(Some(record(3, b"")), true),
                read(&at(3, &turn(&once))),
                again(Pause::Contention),
            ),
            (&before, false, refused(None, true), read(&before), again(Pause::None)),
            (&before, false, refused(Some(record(2, b"")), true), read(&before), again(Pause::None)),
            (&before, false, refused(Some(record(9, b"")), true), read(&before), again(Pause::None)),
            (&open, false, refused(None, true), read(&before), Next::AfterReset),
            (&open, false, refused(Some(record(2, b"")), true), read(&before), Next::AfterReset),
            (&open, true, refused(Some(record(9, b"")), true), read(&before), Next::AfterReset),
            (&before, false, failed(Applied::No), at(3, &before), again(Pause::Service)),
            (&open, false, failed(Applied::No), at(3, &open), again(Pause::Service)),
            (&before, false, failed(Applied::Unknown), at(3, &open), again(Pause::Service)),
            (&before, false, lost(), at(3, &before), again(Pause::Session)),
            (&before, false, Answer::Failed(denied.clone()), at(3, &before), Next::Failed(denied)),
        ];
        for (number, (before, fence, answer, after, expected)) in cases.into_iter().enumerate() {
            let mut course = before.clone();
            let said = format!("case {number}: {answer:?}");
            let next = match next(&mut course, slot(3), Sent { lease: 7, fence }, answer) {
                Next::Again(pause, _) => Next::Again(pause, None),
                next => next,
            };
            assert_eq!((course, next), (after, expected), "{said}");
        }
    }

    #[test]
    fn only_an_earlier_version_of_a_slot_is_older_data() {
        let slot = Slot { number: 0, version: 3 };
        let refused = |item| Answer::Refused { slot: item, node: true, known: Known::new() };
        assert!(refused(Some(record(2, b""))).is_older(&slot));
        assert!(!refused(Some(record(3, b""))).is_older(&slot));
        assert!(!refused(None).is_older(&slot));
    }
}
