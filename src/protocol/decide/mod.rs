//! The next action of a coordinator, and the reason for it: one pure function of the coordinator's knowledge and of the
//! time.
//!
//! [`decide`] asks these modules in this order. Each rule has a name, and the first one that settles the decision wins.
//! `announce` and `form` read the same [`facts`].
//!
//! | module | rules |
//! |---|---|
//! | [`restore`] | a world that the service has lost is restored |
//! | [`refuse`] | nodes of another submission are refused |
//! | [`announce`] | while a world runs: a change is announced to its nodes |
//! | [`form`] | while there is no world, or a change was announced: the next world forms |
//! | [`cooldown`] | if nothing else is due: failures of nodes that have stayed long enough are forgiven |

mod announce;
mod decision;
mod facts;
#[cfg(test)]
mod fixtures;
mod form;
mod refuse;
mod restore;
#[cfg(test)]
mod tests_of_sizing;

pub use self::decision::{Action, Decision, Form, WaitsFor};
use self::facts::Facts;
use super::{
    cooldown,
    policy::Policy,
    roster::{Moment, Roster},
};

/// Decides what to do.
pub fn decide(roster: &Roster, now: Moment, policy: &Policy) -> Decision {
    if let Some(decision) = restore::restore_lost_world(roster) {
        return decision;
    }
    let Some(round) = &roster.round else { return Decision::act(Action::BeginLife, "the run is new") };
    if let Some(decision) = restore::finish_restoring(roster, round, now) {
        return decision;
    }
    // Both functions return `Err` with the time at which they may have something to do, and `Ok` if it is now.
    let refuse_at = match refuse::refuse(roster, now, policy) {
        Ok(refusal) => return refusal,
        Err(refuse_at) => refuse_at,
    };
    let facts = Facts::new(roster, round, now, policy);
    let next = if facts.is_forming() { form::form_world(&facts) } else { announce::announce_change(&facts) };
    match cooldown::forgive(roster, now) {
        Ok(failures) if next.action == Action::Wait => {
            Decision::act(Action::KeepFailures(failures), "nodes that had failed have stayed long enough")
        }
        Ok(_) => next.wake_by(refuse_at),
        Err(forgive_at) => next.wake_by(refuse_at).wake_by(forgive_at),
    }
}
