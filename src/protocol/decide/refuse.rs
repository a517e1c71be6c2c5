//! The rule that refuses nodes of another submission.

use super::{Action, Decision};
use crate::protocol::{
    policy::Policy,
    records::{NAMES, RefusalRecord, some_names},
    roster::{Moment, Roster},
};

/// Refuses nodes of another submission, or returns when to check again.
///
/// They are refused after the reconnect window, which is longer than a lease lives. The record of a node that was killed
/// before they arrived is gone by then.
pub(super) fn refuse(roster: &Roster, now: Moment, policy: &Policy) -> Result<Decision, Option<Moment>> {
    let Some(since) = roster.contested_since else {
        // The run may pass to the waiting nodes when it is certain that no member returns.
        let waits = roster.rivals().next().is_some();
        let confirm_at = roster.absences.values().map(|absence| absence.confirm_at).filter(|at| now < *at);
        return Err(confirm_at.min().filter(|_| waits));
    };
    let due = since + policy.return_window;
    let Some(owner) = roster.owner.as_deref().filter(|_| now >= due) else { return Err(Some(due)) };
    let until = roster.rivals().map(|node| node.created).max().unwrap_or(0);
    let rivals = some_names(roster.rivals().map(|node| node.record.name.as_str()));
    let mut names: Vec<String> = roster.nodes_of(owner).map(|record| record.name.clone()).collect();
    names.sort_unstable();
    names.truncate(NAMES);
    let reason = format!(
        "refused {rivals}: the run belongs to submission `{owner}` with the nodes {}",
        some_names(names.iter().map(String::as_str))
    );
    let refusal = RefusalRecord { submission: owner.to_owned(), until, names };
    Ok(Decision::act(Action::Refuse(refusal), reason))
}
