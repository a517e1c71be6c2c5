//! What a node does after a break, from one linearizable read of `ctl/` and its own record.
//!
//! Only that read counts. Headers of watches and renewals carry the revision of the etcd member that sent them and may
//! go back without a reason; a wiped store of the same flags keeps its cluster id, and its revisions begin again.

use std::{collections::BTreeSet, time::Duration};

use super::records::{ClosedRecord, LastWorld, RoundRecord};
use crate::backend::{Header, LeaseId, Revision};

/// For how long a closing stays readable after the last node that renewed it.
pub const CLOSED_LIFETIME: Duration = Duration::from_secs(900);

/// What the node knew before.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// The life it is in, once it knows.
    pub life: Option<String>,
    /// The world it was given last.
    pub world: Option<LastWorld>,
    /// The cluster it spoke to.
    pub cluster_id: u64,
    /// The highest revision of a linearizable answer.
    pub revision: Revision,
    /// How long ago it last heard from the service.
    pub silence: Duration,
    /// The run's lease; 0 while it is not known.
    pub run_lease: LeaseId,
    /// The leases that the run had before. Each restored world takes a new one.
    pub past_run_leases: BTreeSet<LeaseId>,
    /// Whether an answer has shown since then that the service's data was replaced
    /// ([`Monotonic`](crate::backend::monotonic::Monotonic)).
    pub set_back: bool,
}

/// What it finds now.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The head of the answer.
    pub header: Header,
    /// `ctl/closed`.
    pub closed: Option<ClosedRecord>,
    /// `closed/<my life>`.
    pub closed_life: Option<ClosedRecord>,
    /// `ctl/round`.
    pub round: Option<RoundRecord>,
    /// The lease that `ctl/round` is attached to: the run's.
    pub run_lease: LeaseId,
    /// Whether `nodes/<id>` is there.
    pub record: bool,
    /// Whether a renewal just succeeded.
    pub lease: bool,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Return {
    /// Nothing was lost.
    GoOn,
    /// The lease is lost, and nobody was told: grant another and put the record again.
    PutAgain,
    /// The service lost us all: grant another lease and put the record again, from which the world is put back.
    Restore,
    /// The world has moved on, or there was none.
    JoinAsNew(&'static str),
    /// The run is closed, by this record if one is left.
    Closed(Option<ClosedRecord>),
}

/// Whether `ctl/round`, with everything that is attached to its lease, is earlier data of this run: the service was
/// restored from an older backup. What the backup lacks cannot be told from what was never written, so none of it may be
/// used. A node that was in no world has nothing to restore the run from, and leaves that to the others.
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

/// Decides.
pub fn after_break(before: &Before, found: &Found) -> Return {
    let of_my_life = |life: &str| before.life.as_deref() == Some(life);
    if let Some(closed) = found.closed.as_ref().filter(|closed| of_my_life(&closed.life)) {
        return Return::Closed(Some(closed.clone()));
    }
    if let Some(closed) = &found.closed_life {
        return Return::Closed(Some(closed.clone()));
    }
    if found.lease && found.record {
        return Return::GoOn;
    }
    if found.closed.is_some() {
        return Return::JoinAsNew("another life has come and gone");
    }
    // A record that is gone went with its lease, whatever a renewal said: nobody else deletes it, and before 3.4.38 and
    // 3.5.23 etcd acknowledged renewals of a lease that it had revoked.
    let Some(world) = &before.world else {
        return Return::JoinAsNew("its lease had ended before it was in a world");
    };
    match &found.round {
        Some(round) if round.life == world.life && round.round == world.round => match round.change {
            _ if round.world != world.world => Return::JoinAsNew("the others have formed another world"),
            None => Return::PutAgain,
            Some(_) => Return::JoinAsNew("the others were told that it was lost"),
        },
        Some(round) if round.life == world.life && round.round > world.round => {
            Return::JoinAsNew("the others have formed a later round")
        }
        Some(round) if round.life == world.life => Return::Restore,
        another_life => {
            let lost = before.silence < CLOSED_LIFETIME
                || found.header.cluster_id != before.cluster_id
                || found.header.revision < before.revision;
            match another_life {
                _ if !lost => Return::Closed(None),
                Some(round) if round.has_world() => Return::JoinAsNew("another life has formed a world"),
                _ => Return::Restore,
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
            world: Some(LastWorld { life: "mine".into(), round: 3, world: "w".into(), rank: 1, size: 2 }),
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
        let join = |answer: Return| matches!(answer, Return::JoinAsNew(_));
        let mine = || Some(round("mine", 3, 2));
        let is = |found: Found| after_break(&before(), &found);

        let my_closing = Found { closed: Some(closed("mine")), ..found(mine()) };
        assert_eq!(is(my_closing), Return::Closed(Some(closed("mine"))));
        let moved = Found { closed_life: Some(closed("mine")), ..found(Some(round("new", 0, 0))) };
        assert_eq!(is(moved), Return::Closed(Some(closed("mine"))));
        assert_eq!(is(Found { lease: true, record: true, ..found(mine()) }), Return::GoOn);
        assert_eq!(is(found(mine())), Return::PutAgain);
        assert_eq!(is(Found { lease: true, ..found(mine()) }), Return::PutAgain);
        assert!(join(is(found(Some(told)))));
        assert!(join(is(found(Some(RoundRecord { world: "x".into(), ..round("mine", 3, 2) })))));
        assert!(join(is(found(Some(round("mine", 4, 2))))));
        assert_eq!(is(found(Some(round("mine", 2, 2)))), Return::Restore);
        assert_eq!(is(found(None)), Return::Restore);
        assert_eq!(is(found(Some(round("other", 0, 0)))), Return::Restore);
        assert!(join(is(found(Some(round("other", 1, 2))))));
        let worldless = Before { world: None, ..before() };
        assert!(join(after_break(&worldless, &found(None))));
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
    fn a_long_silence_without_a_sign_of_loss_means_that_the_run_has_ended() {
        let silent = Before { silence: CLOSED_LIFETIME, ..before() };
        assert_eq!(after_break(&silent, &found(None)), Return::Closed(None));
        let wiped = Found { header: Header { cluster_id: 1, revision: 99 }, ..found(None) };
        assert_eq!(after_break(&silent, &wiped), Return::Restore);
        let replaced = Found { header: Header { cluster_id: 2, revision: 200 }, ..found(None) };
        assert_eq!(after_break(&silent, &replaced), Return::Restore);
    }
}
