//! What a node does after an interruption, based on one linearizable read of `ctl/` and its own record.
//!
//! Only that read counts. Headers of watches and renewals contain the revision of the etcd member that sent them, and
//! may decrease without a reason. An etcd that lost its data and has the same flags keeps its cluster ID, and its
//! revisions start again.

use std::{collections::BTreeSet, time::Duration};

use super::records::{ClosedRecord, RoundRecord, WorldMembership};
use crate::backend::{Header, LeaseId, Revision};

/// For how long a closing remains readable after a node has renewed it for the last time.
pub const CLOSED_LIFETIME: Duration = Duration::from_secs(900);

/// What the node knew before the interruption.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// The life that it is in, once it knows.
    pub life: Option<String>,
    /// The last world that it was given.
    pub world: Option<WorldMembership>,
    /// The ID of the cluster that it was connected to.
    pub cluster_id: u64,
    /// The highest revision of a linearizable response.
    pub revision: Revision,
    /// How long ago the service last responded.
    pub silence: Duration,
    /// The run's lease; 0 while it is not known.
    pub run_lease: LeaseId,
    /// The leases that the run had before. Each restored world gets a new one.
    pub past_run_leases: BTreeSet<LeaseId>,
    /// Whether a response since then has shown that the service's data was replaced
    /// ([`Monotonic`](crate::backend::monotonic::Monotonic)).
    pub set_back: bool,
}

/// What the node finds now.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The header of the response.
    pub header: Header,
    /// `ctl/closed`.
    pub closed: Option<ClosedRecord>,
    /// `closed/<my life>`.
    pub closed_life: Option<ClosedRecord>,
    /// `ctl/round`.
    pub round: Option<RoundRecord>,
    /// The lease that `ctl/round` is attached to: the run's.
    pub run_lease: LeaseId,
    /// Whether `nodes/<id>` exists.
    pub record: bool,
    /// Whether a renewal just succeeded.
    pub lease: bool,
}

/// The action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was lost.
    Continue,
    /// Only the lease was lost, and no loss was announced: grant another lease and write the record again.
    Reregister,
    /// The service lost the data of the run: grant another lease and write the record again, from which the world is
    /// restored.
    Restore,
    /// The world was replaced, or there was none.
    Rejoin(&'static str),
    /// The run is closed. Contains the record of the closing, if it still exists.
    Closed(Option<ClosedRecord>),
}

/// Whether `ctl/round`, with everything that is attached to its lease, is earlier data of this run, because the service
/// was restored from an older backup. Data that is missing in the backup cannot be distinguished from what was never
/// written, so none of it may be used. A node that was in no world cannot restore the run, and leaves that to the other
/// nodes.
pub fn is_earlier_data(before: &Before, found: &Found) -> bool {
    let (Some(world), Some(round)) = (&before.world, &found.round) else { return false };
    if round.life != world.life
        || found.run_lease == 0
        || found.closed.is_some()
        || found.closed_life.is_some()
    {
        return false;
    }
    round.round < world.round
        || before.past_run_leases.contains(&found.run_lease)
        || (before.set_back && found.run_lease == before.run_lease)
}

/// Decides what to do.
pub fn plan_recovery(before: &Before, found: &Found) -> Recovery {
    let of_my_life = |life: &str| before.life.as_deref() == Some(life);
    if let Some(closed) = found.closed.as_ref().filter(|closed| of_my_life(&closed.life)) {
        return Recovery::Closed(Some(closed.clone()));
    }
    if let Some(closed) = &found.closed_life {
        return Recovery::Closed(Some(closed.clone()));
    }
    if found.lease && found.record {
        return Recovery::Continue;
    }
    if found.closed.is_some() {
        return Recovery::Rejoin("another job has used this run id and was closed");
    }
    // A record that is gone was deleted with its lease, whatever a renewal reported: no other node deletes it, and etcd
    // before 3.4.38 and 3.5.23 acknowledged renewals of leases that it had revoked.
    let Some(world) = &before.world else {
        return Recovery::Rejoin("its lease had ended before it was in a world");
    };
    match &found.round {
        Some(round) if round.life == world.life && round.round == world.round => match round.change {
            _ if round.world != world.world => Recovery::Rejoin("the others have formed another world"),
            None => Recovery::Reregister,
            Some(_) => Recovery::Rejoin("its loss was announced to the other nodes"),
        },
        Some(round) if round.life == world.life && round.round > world.round => {
            Recovery::Rejoin("the others have formed a later round")
        }
        Some(round) if round.life == world.life => Recovery::Restore,
        another_life => {
            let lost = before.silence < CLOSED_LIFETIME
                || found.header.cluster_id != before.cluster_id
                || found.header.revision < before.revision;
            match another_life {
                _ if !lost => Recovery::Closed(None),
                Some(round) if round.has_world() => Recovery::Rejoin("another life has formed a world"),
                _ => Recovery::Restore,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::records::{ChangeKind, ChangeRecord, Outcome, Phase};

    fn before() -> Before {
        Before {
            life: Some("mine".into()),
            world: Some(WorldMembership {
                life: "mine".into(),
                round: 3,
                world: "w".into(),
                rank: 1,
                size: 2,
            }),
            cluster_id: 1,
            revision: 100,
            silence: Duration::from_secs(5),
            run_lease: 70,
            past_run_leases: BTreeSet::from([60]),
            set_back: false,
        }
    }

    fn round(life: &str, number: u64, size: u32) -> RoundRecord {
        RoundRecord {
            round: number,
            world: "w".into(),
            size,
            phase: Phase::Running,
            ..RoundRecord::forming(life.into(), 1, 2, "a".into())
        }
    }

    fn found(round: Option<RoundRecord>) -> Found {
        Found { header: Header { cluster_id: 1, revision: 200 }, round, ..Found::default() }
    }

    fn closed(life: &str) -> ClosedRecord {
        ClosedRecord {
            life: life.into(),
            by: "n".into(),
            why: String::new(),
            outcome: Outcome::Ended,
            submission: None,
        }
    }

    #[test]
    fn every_line_of_the_table() {
        let told = RoundRecord {
            change: Some(ChangeRecord { kind: ChangeKind::Lost, why: String::new(), names: vec![] }),
            ..round("mine", 3, 2)
        };
        let join = |answer: Recovery| matches!(answer, Recovery::Rejoin(_));
        let mine = || Some(round("mine", 3, 2));
        let is = |found: Found| plan_recovery(&before(), &found);

        let my_closing = Found { closed: Some(closed("mine")), ..found(mine()) };
        assert_eq!(is(my_closing), Recovery::Closed(Some(closed("mine"))));
        let moved = Found { closed_life: Some(closed("mine")), ..found(Some(round("new", 0, 0))) };
        assert_eq!(is(moved), Recovery::Closed(Some(closed("mine"))));
        assert_eq!(is(Found { lease: true, record: true, ..found(mine()) }), Recovery::Continue);
        assert_eq!(is(found(mine())), Recovery::Reregister);
        assert_eq!(is(Found { lease: true, ..found(mine()) }), Recovery::Reregister);
        assert!(join(is(found(Some(told)))));
        assert!(join(is(found(Some(RoundRecord { world: "x".into(), ..round("mine", 3, 2) })))));
        assert!(join(is(found(Some(round("mine", 4, 2))))));
        assert_eq!(is(found(Some(round("mine", 2, 2)))), Recovery::Restore);
        assert_eq!(is(found(None)), Recovery::Restore);
        assert_eq!(is(found(Some(round("other", 0, 0)))), Recovery::Restore);
        assert!(join(is(found(Some(round("other", 1, 2))))));
        let worldless = Before { world: None, ..before() };
        assert!(join(plan_recovery(&worldless, &found(None))));
    }

    #[test]
    fn what_is_earlier_data() {
        let set_back = |before: Before| Before { set_back: true, ..before };
        let worldless = Before { world: None, ..before() };
        let stands = |number, run_lease| Found { run_lease, ..found(Some(round("mine", number, 2))) };
        let other_life = || Found { run_lease: 70, ..found(Some(round("other", 1, 2))) };
        let cases = [
            ("nothing happened", before(), stands(3, 70), false),
            ("an older round", before(), stands(2, 70), true),
            ("an older round under a lease that this node never saw", before(), stands(2, 50), true),
            ("the same round of an older backup", set_back(before()), stands(3, 70), true),
            ("the lease of before the last restore", before(), stands(3, 60), true),
            ("restored by the others meanwhile", set_back(before()), stands(3, 80), false),
            ("a later round of an older backup", set_back(before()), stands(4, 70), true),
            ("a later round", before(), stands(4, 70), false),
            ("nothing is left", set_back(before()), found(None), false),
            ("another life", set_back(before()), other_life(), false),
            ("a node without a world", set_back(worldless), stands(3, 70), false),
            ("no lease", set_back(before()), stands(2, 0), false),
        ];
        for (case, before, found, expected) in cases {
            assert_eq!(is_earlier_data(&before, &found), expected, "{case}");
        }
        let closed = Found { closed: Some(closed("mine")), ..stands(2, 70) };
        assert!(!is_earlier_data(&before(), &closed), "a closing is final, also one from a backup");
    }

    #[test]
    fn long_silence_without_a_sign_of_loss_means_that_the_run_has_ended() {
        let silent = Before { silence: CLOSED_LIFETIME, ..before() };
        assert_eq!(plan_recovery(&silent, &found(None)), Recovery::Closed(None));
        let wiped = Found { header: Header { cluster_id: 1, revision: 99 }, ..found(None) };
        assert_eq!(plan_recovery(&silent, &wiped), Recovery::Restore);
        let replaced = Found { header: Header { cluster_id: 2, revision: 200 }, ..found(None) };
        assert_eq!(plan_recovery(&silent, &replaced), Recovery::Restore);
    }
}
