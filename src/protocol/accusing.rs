//! What an observer does about a member whose lifeline has ended. Pure.
//!
//! The observer reads the accused member's record, `ctl/` and `finished/` in one transaction, and this module says whether
//! it makes sense to ask the accused at all. After a confirmation, it says what the observer may write.

use std::time::Duration;

use super::{
    identity::NodeId,
    records::{CoordinatorRecord, Phase, RoundRecord, WorldMembership},
};

/// What the service holds, read in one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Found<'read> {
    /// `ctl/round`.
    pub round: Option<&'read RoundRecord>,
    /// `ctl/coordinator`.
    pub coordinator: Option<&'read CoordinatorRecord>,
    /// Whether `ctl/closed` exists.
    pub is_closed: bool,
    /// The accused.
    pub accused: Accused,
    /// Whether the observer's own record exists.
    pub observer_has_record: bool,
}

/// What the service holds of an accused member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accused {
    /// It has entered its exit barrier in this round.
    Finished,
    /// Its record.
    Present,
    /// No record, and no evidence of its death.
    Absent,
    /// No record, and the evidence of another observer.
    Reported,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accusation {
    /// Nothing, for this reason.
    Drop(&'static str),
    /// Nothing in this world. The accused may be in the world that has formed since, which this node reads.
    OtherWorld,
    /// Ask again later: the service has lost the run, or members of a world that is being restored may be returning.
    Later,
    /// If the accused is found dead, write this.
    Confirm(Deed),
}

/// What an observer writes about a dead member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Delete its record, and put the evidence.
    DeleteRecord {
        /// It is the coordinator: delete `ctl/coordinator`, too.
        with_coordinator: bool,
    },
    /// The record is gone already. Put the evidence alone.
    PutEvidence,
}

/// Decides for an observer whose lifeline belonged to `world`.
pub fn accuse(accused: NodeId, world: &WorldMembership, found: &Found<'_>) -> Accusation {
    let Some(round) = found.round else {
        // Its nodes restore it.
        return Accusation::Later;
    };
    if found.is_closed {
        return Accusation::Drop("the run is closed");
    }
    if !world.is_of(round) {
        return Accusation::OtherWorld;
    }
    if round.phase == Phase::Restoring {
        return Accusation::Later;
    }
    if !found.observer_has_record {
        return Accusation::Drop("the observer itself is not in the run");
    }
    match found.accused {
        Accused::Finished => Accusation::Drop("it has finished"),
        Accused::Reported => Accusation::Drop("another node has reported its death"),
        Accused::Absent => Accusation::Confirm(Deed::PutEvidence),
        Accused::Present => {
            let with_coordinator = found.coordinator.is_some_and(|record| record.node == accused);
            Accusation::Confirm(Deed::DeleteRecord { with_coordinator })
        }
    }
}

/// Whether an observer may trust what it sees, by the age of its own last acknowledged renewal. Most false alarms come from
/// observers that are in trouble themselves (Dadgar, Phillips, Currey: "Lifeguard: Local Health Awareness for More Accurate
/// Failure Detection", 2018).
pub fn may_trust_itself(since_renewal: Duration, ttl: Duration) -> bool {
    since_renewal < ttl / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{fixtures::id, sizing::Sizing};

    fn world() -> WorldMembership {
        WorldMembership { life: "l".into(), round: 3, world: "w".into(), rank: 0, size: 2 }
    }

    fn round() -> RoundRecord {
        RoundRecord {
            round: 3,
            world: "w".into(),
            size: 2,
            phase: Phase::Running,
            ..RoundRecord::forming("l".into(), 1, 4, "a".into())
        }
    }

    fn coordinator(node: u64) -> CoordinatorRecord {
        let (name, nonce) = ("n".to_owned(), "o".to_owned());
        CoordinatorRecord { node: id(node), name, nonce, min: 1, max: 4, sizing: Sizing::default() }
    }

    #[test]
    fn each_finding_has_one_consequence() {
        let (round, accused, other) = (round(), coordinator(2), coordinator(1));
        let later = RoundRecord { round: 4, world: "x".into(), ..round.clone() };
        let base = Found {
            round: Some(&round),
            coordinator: Some(&other),
            is_closed: false,
            accused: Accused::Present,
            observer_has_record: true,
        };
        let restoring = RoundRecord { phase: Phase::Restoring, ..round.clone() };
        let delete = |with_coordinator| Accusation::Confirm(Deed::DeleteRecord { with_coordinator });
        let table = [
            (base, delete(false)),
            (Found { coordinator: None, ..base }, delete(false)),
            (Found { coordinator: Some(&accused), ..base }, delete(true)),
            (Found { accused: Accused::Absent, ..base }, Accusation::Confirm(Deed::PutEvidence)),
            (
                Found { accused: Accused::Reported, ..base },
                Accusation::Drop("another node has reported its death"),
            ),
            (Found { round: Some(&restoring), ..base }, Accusation::Later),
            (Found { round: None, ..base }, Accusation::Later),
            (Found { is_closed: true, ..base }, Accusation::Drop("the run is closed")),
            (Found { round: Some(&later), ..base }, Accusation::OtherWorld),
            (Found { accused: Accused::Finished, ..base }, Accusation::Drop("it has finished")),
            (
                Found { observer_has_record: false, ..base },
                Accusation::Drop("the observer itself is not in the run"),
            ),
        ];
        for (found, expected) in table {
            assert_eq!(accuse(id(2), &world(), &found), expected, "{found:?}");
        }
    }

    #[test]
    fn observer_in_trouble_waits() {
        let ttl = Duration::from_secs(10);
        assert!(may_trust_itself(Duration::from_millis(4_999), ttl));
        assert!(!may_trust_itself(Duration::from_secs(5), ttl));
    }
}
