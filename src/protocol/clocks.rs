//! The times that only the coordinator knows, in one small record, so that a reader of the run can call
//! [`decide`](super::decide::decide) and get the coordinator's answer.
//!
//! A coordinator measures on its monotonic clock and writes milliseconds since 1970. A reader uses moments since 1970 for
//! everything. If the wall clocks of the two machines differ, the reader's times are wrong by that difference. No node
//! decides anything by this record.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    identity::NodeId,
    policy::Policy,
    records::{NAMES, Record},
    roster::{Absence, Moment, Roster},
    sizing::Sizing,
};
use crate::settings::Reaction;

/// How many absent members a record lists. A reader finds the others in the plan.
const ABSENCES: usize = 100;

/// The waits that a coordinator applies, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// `settle_time`.
    pub settle_ms: u64,
    /// `last_call_timeout`.
    pub last_call_ms: u64,
    /// `rejoin_timeout`.
    pub rejoin_ms: u64,
    /// `grow_delay`.
    pub grow_ms: u64,
    /// The reconnect window.
    pub return_ms: u64,
    /// The maximum renewal age.
    pub silence_ms: u64,
    /// `lease_ttl`.
    pub ttl_ms: u64,
    /// `on_member_loss`.
    pub on_member_loss: Reaction,
    /// `on_newcomer`.
    pub on_newcomer: Reaction,
}

/// A member that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbsenceRecord {
    /// The member.
    pub id: NodeId,
    /// When the coordinator noticed.
    pub since_ms: u64,
    /// When the failure counts as confirmed.
    pub confirm_ms: u64,
    /// Whether the member had announced that it leaves.
    pub announced: bool,
}

/// When a name failed last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAt {
    /// The name.
    pub name: String,
    /// When.
    pub at_ms: u64,
}

/// A node that joined with settings of another run and has left or will leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnedAway {
    /// Its name.
    pub name: String,
    /// The settings that differ.
    pub why: String,
    /// When the coordinator saw it.
    pub at_ms: u64,
}

/// What a coordinator's clock showed, at `clocks`. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClocksRecord {
    /// The life that the times belong to.
    pub life: String,
    /// The round that the times belong to.
    pub round: u64,
    /// The world that the times belong to.
    pub world: String,
    /// The waits that apply.
    pub waits: Waits,
    /// When the last node arrived.
    pub last_arrival_ms: Option<u64>,
    /// Since when a world is wanted and there is none that holds.
    pub wanted_ms: Option<u64>,
    /// Since when enough nodes seek for the smallest size.
    pub enough_ms: Option<u64>,
    /// Since when new nodes wait that would enlarge the world.
    pub newcomers_ms: Option<u64>,
    /// Since when nodes of another submission wait.
    pub contested_ms: Option<u64>,
    /// When the change of the world was announced.
    pub change_ms: Option<u64>,
    /// When a restored world counts as complete.
    pub restoring_until_ms: Option<u64>,
    /// The members that are missing, the first 100.
    pub absences: Vec<AbsenceRecord>,
    /// The names that failed.
    pub failed: Vec<FailedAt>,
    /// The last nodes that were turned away.
    pub turned_away: Vec<TurnedAway>,
}
impl Record for ClocksRecord {}

/// What a coordinator remembers for readers only.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// The wall clock when the coordinator's clock was at zero, set once in a term, so that a time is always written
    /// equally. None in a simulation.
    pub zero: Option<Duration>,
    /// When the last node arrived.
    pub last_arrival: Option<Moment>,
    /// The last nodes that were turned away, oldest first.
    pub turned_away: Vec<TurnedAway>,
}

impl Notes {
    /// Records the arrival of a node, and that its sizes differ from the run's, if they do.
    pub fn note_arrival(&mut self, now: Moment, name: &str, mismatch: Option<String>) {
        let Some(why) = mismatch else {
            self.last_arrival = Some(now);
            return;
        };
        let Some(zero) = self.zero else { return };
        self.turned_away.retain(|one| one.name != name);
        self.turned_away.push(TurnedAway { name: name.to_owned(), why, at_ms: milliseconds(zero + now) });
        let surplus = self.turned_away.len().saturating_sub(NAMES);
        self.turned_away.drain(..surplus);
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl ClocksRecord {
    /// The times of a coordinator. `None` if there is no wall clock or no round.
    pub fn of(roster: &Roster, policy: &Policy, notes: &Notes) -> Option<Self> {
        let zero = notes.zero?;
        let round = roster.round.as_ref()?;
        let at = |moment: Moment| milliseconds(zero + moment);
        let mut absences: Vec<AbsenceRecord> = roster
            .absences
            .iter()
            .map(|(id, absence)| AbsenceRecord {
                id: *id,
                since_ms: at(absence.since),
                confirm_ms: at(absence.confirm_at),
                announced: absence.announced,
            })
            .collect();
        absences.sort_by_key(|absence| (absence.since_ms, absence.id));
        absences.truncate(ABSENCES);
        Some(Self {
            life: round.life.clone(),
            round: round.round,
            world: round.world.clone(),
            waits: Waits::of(policy),
            last_arrival_ms: notes.last_arrival.map(at),
            wanted_ms: roster.wanted_since.map(at),
            enough_ms: roster.enough_since.map(at),
            newcomers_ms: roster.newcomers_since.map(at),
            contested_ms: roster.contested_since.map(at),
            change_ms: roster.change_told.map(at),
            restoring_until_ms: roster.restoring_until.map(at),
            absences,
            failed: roster
                .failed_at
                .iter()
                .map(|(name, moment)| FailedAt { name: name.clone(), at_ms: at(*moment) })
                .collect(),
            turned_away: notes.turned_away.clone(),
        })
    }

    /// Sets the clocks of a roster whose moments count from 1970. `absent` are the members that are missing.
    pub fn apply(&self, roster: &mut Roster, absent: impl IntoIterator<Item = NodeId>) {
        let set = |time: Option<u64>| time.map(Duration::from_millis);
        roster.wanted_since = set(self.wanted_ms);
        roster.enough_since = set(self.enough_ms);
        roster.newcomers_since = set(self.newcomers_ms);
        roster.contested_since = set(self.contested_ms);
        roster.change_told = set(self.change_ms).or(roster.change_told);
        roster.restoring_until = set(self.restoring_until_ms);
        for failed in &self.failed {
            roster.failed_at.insert(failed.name.clone(), Duration::from_millis(failed.at_ms));
        }
        for id in absent {
            let known = self.absences.iter().find(|absence| absence.id == id).or(self.absences.last());
            if let Some(known) = known {
                let since = Duration::from_millis(known.since_ms);
                let confirm_at = Duration::from_millis(known.confirm_ms);
                let absence = Absence { since, confirm_at, announced: known.announced, witnessed: false };
                roster.absences.insert(id, absence);
            }
        }
    }
}

impl Waits {
    fn of(policy: &Policy) -> Self {
        Self {
            settle_ms: milliseconds(policy.settle_time),
            last_call_ms: milliseconds(policy.last_call_timeout),
            rejoin_ms: milliseconds(policy.rejoin_timeout),
            grow_ms: milliseconds(policy.grow_delay),
            return_ms: milliseconds(policy.return_window),
            silence_ms: milliseconds(policy.trusted_silence),
            ttl_ms: milliseconds(policy.lease_ttl),
            on_member_loss: policy.on_member_loss,
            on_newcomer: policy.on_newcomer,
        }
    }

    /// The policy of a run of these sizes.
    pub fn policy(&self, min_nodes: u32, max_nodes: u32, sizing: Sizing) -> Policy {
        let time = Duration::from_millis;
        Policy {
            min_nodes,
            max_nodes,
            sizing,
            settle_time: time(self.settle_ms),
            last_call_timeout: time(self.last_call_ms),
            rejoin_timeout: time(self.rejoin_ms),
            grow_delay: time(self.grow_ms),
            return_window: time(self.return_ms),
            trusted_silence: time(self.silence_ms),
            lease_ttl: time(self.ttl_ms),
            on_member_loss: self.on_member_loss,
            on_newcomer: self.on_newcomer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        decide::decide,
        fixtures::{id, policy, seconds},
        records::{NodeRecord, PlanEntry, RoundRecord},
    };

    fn node(number: u64, seeks: u64) -> NodeRecord {
        let text = format!(
            r#"{{"version":1,"name":"n{number}","address":"h","port":1,"min":2,"max":4,"seeks":{seeks},"leaving":false}}"#
        );
        NodeRecord::decode("nodes/1", text.as_bytes()).unwrap()
    }

    /// A reader that has the records and the clocks computes what the coordinator computes, whatever their zeros are.
    #[test]
    fn reader_and_coordinator_decide_equally() {
        let policy = Policy { last_call_timeout: seconds(30), ..policy(2) };
        let zero = seconds(1_800_000_000);
        let forming = RoundRecord::forming("l".into(), 2, 4, "a".into());
        let mut own = Roster::default();
        own.set_round(seconds(100), forming.clone(), Vec::new());
        for (number, at) in [(1, 101), (2, 105)] {
            own.put_node(id(number), node(number, 0), 1);
            own.observe(seconds(at), &policy);
        }
        let notes = Notes { zero: Some(zero), last_arrival: Some(seconds(105)), ..Notes::default() };
        let clocks = ClocksRecord::of(&own, &policy, &notes).unwrap();
        assert!(clocks.encode().len() < 1_000);
        let mut theirs = Roster::default();
        theirs.set_round(zero + seconds(110), forming, Vec::new());
        for number in [1, 2] {
            theirs.put_node(id(number), node(number, 0), 1);
        }
        clocks.apply(&mut theirs, []);
        let read = clocks.waits.policy(2, 4, Sizing::default());
        assert_eq!(read, policy);
        theirs.observe(zero + seconds(110), &read);
        let (mine, other) =
            (decide(&own, seconds(110), &policy), decide(&theirs, zero + seconds(110), &read));
        assert_eq!(mine.wake, Some(seconds(135)));
        assert_eq!(other.wake, Some(zero + seconds(135)));
        assert_eq!((mine.reason, mine.action), (other.reason, other.action));
    }

    #[test]
    fn many_absences_fit_into_the_record_and_each_has_a_time() {
        let policy = policy(2);
        let mut roster = Roster::default();
        let entry =
            |number: u64| PlanEntry { id: id(number), name: format!("n{number}"), label: None, rank: 0 };
        let round = RoundRecord { size: 5_000, ..RoundRecord::forming("l".into(), 2, 4, "a".into()) };
        roster.set_round(seconds(1), round, (1..=5_000).map(entry).collect());
        roster.mark_absent_members(seconds(2), true, &policy);
        let notes = Notes { zero: Some(seconds(50)), ..Notes::default() };
        let clocks = ClocksRecord::of(&roster, &policy, &notes).unwrap();
        assert!(clocks.encode().len() < 20_000, "{}", clocks.encode().len());
        let mut theirs = Roster::default();
        clocks.apply(&mut theirs, (1..=5_000).map(id));
        assert_eq!(theirs.absences.len(), 5_000);
        assert!(theirs.absences.values().all(|absence| absence.since == seconds(52)));
    }

    #[test]
    fn last_nodes_that_were_turned_away_are_kept() {
        let mut notes = Notes { zero: Some(seconds(1)), ..Notes::default() };
        for number in 0..30 {
            notes.note_arrival(seconds(number), &format!("n{}", number % 25), Some("nnodes 2:8".into()));
        }
        assert_eq!((notes.turned_away.len(), notes.last_arrival), (NAMES, None));
        assert_eq!(notes.turned_away.last().map(|one| (one.name.as_str(), one.at_ms)), Some(("n4", 30_000)));
    }
}
