//! The next action of a coordinator, and the reason for it: one pure function of what it knows and of the time.
//!
//! [`decide`] computes the [`facts`] once and passes them to rules, each of which has a name and may settle the decision.
//! The first rule that does so wins. docs/protocol.md lists the rules in the same order.
//!
//! | module | rules |
//! |---|---|
//! | [`restore`] | a world that the service has lost is restored |
//! | [`announce`] | while a world runs: a change is announced to its nodes |
//! | [`form`] | while there is no world, or a change was announced: the next world forms |

mod announce;
mod facts;
#[cfg(test)]
mod fixtures;
mod form;
mod restore;
#[cfg(test)]
mod sizing;

use std::time::Duration;

use self::facts::Facts;
use super::{
    cooldown::{self, FailureRecord},
    policy::Policy,
    records::{ChangeRecord, LastWorld, PlanEntry},
    roster::{Moment, Roster},
    submission::{RefusalRecord, refuse},
};

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Renew the coordinator's own lease, and decide again once that is acknowledged: a break that ended a member's
    /// lease may be about to end this one.
    Renew,
    /// `ctl/round` does not exist: begin a life.
    BeginLife,
    /// Restore the world that the service has lost.
    Restore {
        /// Its life, round and size. The rank has no meaning.
        world: LastWorld,
        /// Those of its nodes that are back.
        members: Vec<PlanEntry>,
        /// The submission that they are of, if they name one.
        submission: Option<String>,
    },
    /// The restored world has waited for its nodes for long enough.
    EndRestoring,
    /// Refuse nodes of another submission.
    Refuse(RefusalRecord),
    /// Count only these failures from now on: the nodes of the others have stayed long enough.
    Forgive(Vec<FailureRecord>),
    /// Announce to the nodes of the world that another one will be formed.
    AnnounceChange(ChangeRecord),
    /// Commit a world.
    Form(Form),
    /// Close the run as ended: those who are left can never be enough.
    Close,
}

/// A world to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The number of the round.
    pub round: u64,
    /// The world by rank.
    pub members: Vec<PlanEntry>,
    /// The submission that they are of, if they name one.
    pub submission: Option<String>,
    /// How often in a row nodes have failed.
    pub failures: Vec<FailureRecord>,
    /// How many of them were not in the last world.
    pub newcomers: u32,
    /// How long nodes waited for it.
    pub took: Duration,
}

/// What to do, why, and when time alone could change the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub action: Action,
    /// Why, in words that go into logs and records.
    pub reason: String,
    /// When to decide again if nothing happens before.
    pub wake: Option<Moment>,
}

impl Decision {
    pub(super) fn now(action: Action, reason: impl Into<String>) -> Self {
        Self { action, reason: reason.into(), wake: None }
    }

    pub(super) fn wait(reason: impl Into<String>, wake: Option<Moment>) -> Self {
        Self { action: Action::Wait, reason: reason.into(), wake }
    }

    fn or_at(mut self, moment: Option<Moment>) -> Self {
        self.wake = self.wake.into_iter().chain(moment).min();
        self
    }
}

/// Decides.
pub fn decide(roster: &Roster, now: Moment, policy: &Policy) -> Decision {
    if let Some(decision) = restore::restore_lost_world(roster) {
        return decision;
    }
    let Some(round) = &roster.round else { return Decision::now(Action::BeginLife, "the run is new") };
    if let Some(decision) = restore::finish_restoring(roster, round, now) {
        return decision;
    }
    let refuse_at = match refuse(roster, now, policy) {
        Ok(refusal) => return refusal,
        Err(refuse_at) => refuse_at,
    };
    let facts = Facts::new(roster, round, now, policy);
    let next = if facts.is_forming() { form::form_world(&facts) } else { announce::announce_change(&facts) };
    match cooldown::forgive(roster, now) {
        Ok(failures) if next.action == Action::Wait => {
            Decision::now(Action::Forgive(failures), "nodes that had failed have stayed long enough")
        }
        Ok(_) => next.or_at(refuse_at),
        Err(forgive_at) => next.or_at(refuse_at).or_at(forgive_at),
    }
}
