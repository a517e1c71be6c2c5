//! Decides whether a node whose lifeline has ended is dead, by the responses at its address. Pure.
//!
//! Only a refusal by TCP is evidence of death: the kernel of that machine has no process that listens there. Every
//! other response may come from something between the nodes, for example a proxy, so the lease decides.

use std::time::Duration;

use crate::protocol::identity::NodeId;

/// The pause between two questions. Two refusals are required.
pub(super) const BETWEEN: Duration = Duration::from_millis(2);

/// How late the end of the pause may be. A process that continues later does not know what happened meanwhile.
const LATEST: Duration = Duration::from_millis(50);

/// How long questions are repeated while connections are accepted and closed again. The sockets of a dying process
/// close one after the other, but a proxy behaves like this permanently.
pub(super) const CLOSING_LIMIT: Duration = Duration::from_millis(50);

/// The result of one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// TCP refused the connection.
    Refused,
    /// The connection was accepted, and ended without a greeting.
    Ended,
    /// This node greeted.
    Greeted(NodeId),
    /// Nothing conclusive: no response in time, no route, a refusal by ICMP, or other bytes.
    Nothing,
}

/// The verdict about an accused node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its address refused twice.
    Dead,
    /// It greeted.
    Alive,
    /// The lease decides.
    Unknown,
}

/// The questions about an accused node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmation {
    accused: NodeId,
    refused: bool,
}

impl Confirmation {
    pub(super) fn of(accused: NodeId) -> Self {
        Self { accused, refused: false }
    }

    /// The pause after a question has ended, this much later than it was due. If that is too late, the earlier refusal does
    /// not count any more, and two others are required.
    pub(super) fn resume(&mut self, late: Duration) {
        self.refused &= late <= LATEST;
    }

    /// Applies an answer that arrived `elapsed` after the first question. `None`: ask again after [`BETWEEN`].
    pub(super) fn apply(&mut self, answer: Answer, elapsed: Duration) -> Option<Verdict> {
        let refused_before = std::mem::replace(&mut self.refused, answer == Answer::Refused);
        match answer {
            Answer::Refused if refused_before => Some(Verdict::Dead),
            Answer::Refused => None,
            Answer::Ended if elapsed < CLOSING_LIMIT => None,
            Answer::Greeted(node) if node == self.accused => Some(Verdict::Alive),
            Answer::Ended | Answer::Greeted(_) | Answer::Nothing => Some(Verdict::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_refusals_in_a_row_are_death() {
        use Answer::{Ended, Greeted, Nothing, Refused};
        let (accused, other) = (NodeId::from_random(4), NodeId::from_random(8));
        let table: [(&[Answer], Option<Verdict>); 10] = [
            (&[Refused], None),
            (&[Refused, Refused], Some(Verdict::Dead)),
            (&[Ended, Refused, Refused], Some(Verdict::Dead)),
            (&[Refused, Ended, Refused], None),
            (&[Refused, Greeted(accused)], Some(Verdict::Alive)),
            (&[Greeted(accused)], Some(Verdict::Alive)),
            (&[Greeted(other)], Some(Verdict::Unknown)),
            (&[Refused, Greeted(other)], Some(Verdict::Unknown)),
            (&[Nothing], Some(Verdict::Unknown)),
            (&[Ended, Ended, Nothing], Some(Verdict::Unknown)),
        ];
        for (answers, expected) in table {
            let mut confirmation = Confirmation::of(accused);
            let mut verdict = None;
            for (number, answer) in (0u32..).zip(answers) {
                assert_eq!(verdict, None, "{answers:?} is decided early");
                verdict = confirmation.apply(*answer, BETWEEN * number);
            }
            assert_eq!(verdict, expected, "{answers:?}");
        }
    }

    #[test]
    fn refusal_before_a_pause_that_took_too_long_does_not_count() {
        for (late, verdict) in [(LATEST, Some(Verdict::Dead)), (LATEST + BETWEEN, None)] {
            let mut confirmation = Confirmation::of(NodeId::from_random(4));
            assert_eq!(confirmation.apply(Answer::Refused, Duration::ZERO), None);
            confirmation.resume(late);
            assert_eq!(confirmation.apply(Answer::Refused, BETWEEN + late), verdict, "{late:?}");
        }
        let mut confirmation = Confirmation::of(NodeId::from_random(4));
        for late in [LATEST * 2, Duration::ZERO] {
            assert_eq!(confirmation.apply(Answer::Refused, Duration::ZERO), None);
            confirmation.resume(late);
        }
        assert_eq!(confirmation.apply(Answer::Refused, Duration::ZERO), Some(Verdict::Dead));
    }

    #[test]
    fn connection_that_keeps_being_accepted_and_closed_says_nothing() {
        let mut confirmation = Confirmation::of(NodeId::from_random(4));
        assert_eq!(confirmation.apply(Answer::Ended, CLOSING_LIMIT / 2), None);
        assert_eq!(confirmation.apply(Answer::Ended, CLOSING_LIMIT), Some(Verdict::Unknown));
    }
}
