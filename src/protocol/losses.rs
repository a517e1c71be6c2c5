//! The members that a round lost, as the history keeps them, and how soon each loss was announced. Pure.
//!
//! The time begins with the first sign of the loss that a live node can know:
//!
//! - With evidence of another node, the sign is the end of the lifeline to the member. That node measures the time until it
//!   writes the evidence, and the coordinator the time from then on. The path between them is not part of it.
//! - Without evidence, the sign is the last renewal of the member's lease: one TTL before the lease ended.
//!
//! It ends when the announcement is written. There is no time for a loss that this coordinator did not see happen, or that
//! happened after another change had been announced.

use std::time::Duration;

use super::{
    policy::Policy,
    records::{LossRecord, LostRecord, NAMES},
    roster::{Absence, Roster},
};

/// The members that are lost, the first of them.
pub fn losses(roster: &Roster, policy: &Policy) -> Vec<LossRecord> {
    let lost = roster.absences.iter().filter(|(_, absence)| !absence.announced);
    lost.take(NAMES)
        .map(|(id, absence)| {
            let evidence = roster.lost.get(id);
            LossRecord {
                name: roster.name(*id).to_owned(),
                evidence: evidence.map(LostRecord::evidence),
                told_seconds: told(roster, absence, evidence, policy).map(|time| time.as_secs_f64()),
            }
        })
        .collect()
}

fn told(
    roster: &Roster,
    absence: &Absence,
    evidence: Option<&LostRecord>,
    policy: &Policy,
) -> Option<Duration> {
    let announced = roster.change_told.filter(|_| absence.witnessed)?.checked_sub(absence.since)?;
    let before = match evidence {
        // The record was gone before the evidence was written, so the evidence took no part of the time.
        Some(evidence) if evidence.lease == 0 => Duration::ZERO,
        Some(evidence) => Duration::from_millis(evidence.after_ms?),
        None => policy.lease_ttl,
    };
    Some(before + announced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        fixtures::{id, policy, seconds},
        records::{PlanEntry, RoundRecord},
    };

    #[test]
    fn loss_has_a_time_if_its_first_sign_is_known() {
        let evidence = |lease, after_ms| {
            Some(LostRecord { name: "n1".into(), by: "n2".into(), why: "refused".into(), lease, after_ms })
        };
        let seen =
            Absence { since: seconds(100), confirm_at: seconds(100), announced: false, witnessed: true };
        let table = [
            ("a lease", seen, None, Some(102), Some(12.0)),
            ("a lifeline", seen, evidence(7, Some(250)), Some(102), Some(2.25)),
            ("evidence after the record was gone", seen, evidence(0, Some(250)), Some(102), Some(2.0)),
            ("evidence of an earlier release", seen, evidence(7, None), Some(102), None),
            ("a change that was announced before", seen, evidence(7, Some(250)), Some(99), None),
            ("no change", seen, None, None, None),
            ("a loss before this term", Absence { witnessed: false, ..seen }, None, Some(102), None),
        ];
        for (what, absence, evidence, told, expected) in table {
            let mut roster = Roster::default();
            let entry = PlanEntry { id: id(1), name: "n1".into(), label: None, rank: 0 };
            let round = RoundRecord { size: 1, ..RoundRecord::forming("l".into(), 1, 4, "a".into()) };
            roster.set_round(seconds(1), round, vec![entry]);
            roster.absences.insert(id(1), absence);
            roster.lost.extend(evidence.clone().map(|evidence| (id(1), evidence)));
            roster.change_told = told.map(seconds);
            let expected = LossRecord {
                name: "n1".into(),
                evidence: evidence.map(|evidence| evidence.evidence()),
                told_seconds: expected,
            };
            assert_eq!(losses(&roster, &policy(1)), [expected], "{what}");
        }
    }

    #[test]
    fn member_that_announced_its_departure_is_not_lost() {
        let mut roster = Roster::default();
        let gone = Absence { since: seconds(1), confirm_at: seconds(1), announced: true, witnessed: true };
        roster.absences.insert(id(1), gone);
        assert_eq!(losses(&roster, &policy(1)), []);
    }
}
