//! What the session of a node does next: a function of what its owner wants, of the state of the node, and of the time.

use super::roster::Moment;

/// A piece of work. All except [`Work::ReportUncertainty`] send requests to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Close the run.
    Close,
    /// Leave the run.
    Leave,
    /// Read what an interruption has changed.
    Resync,
    /// Join the run.
    Join,
    /// Write the record of this node.
    PutRecord,
    /// Read the shard of the plan that may name this node.
    ReadShard,
    /// Delete the term of this node as coordinator, which is over.
    Resign,
    /// Become coordinator.
    Campaign,
    /// Compare what is known of `ctl/` with the service.
    CheckControl,
    /// Renew the leases of a closed run, so that all nodes can still read how it ended.
    RenewClosing,
    /// Report that the lease of this node may have expired.
    ReportUncertainty,
}

impl Work {
    /// Whether the work precedes closing the run. A service that lost the run must be restored before the run can be
    /// closed in it. A node that was excluded from a later round must learn that before it closes a run that is no longer
    /// its own.
    fn precedes_closing(self) -> bool {
        matches!(self, Self::Resync | Self::PutRecord | Self::ReadShard | Self::Resign | Self::Campaign)
    }
}

/// Whether the owner of a node wants it to leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Departure {
    /// The node stays.
    #[default]
    None,
    /// The node announces that it is about to leave. Meanwhile it does not join or become coordinator.
    Announced,
    /// The node leaves now.
    Requested,
}

/// What the owner of a node wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// A place in a world.
    pub world: bool,
    /// The end of the run.
    pub close: bool,
    /// The end of the membership.
    pub departure: Departure,
}

/// What a node can do about the term of a coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TermDuty {
    /// Nothing: another node is coordinator, or this node is.
    #[default]
    None,
    /// `ctl/coordinator` still names a term of this node that is over.
    Resign,
    /// There is no coordinator. A node campaigns at this time, or at once.
    Campaign(Option<Moment>),
}

/// What a node in the run has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duties {
    /// An interruption may have changed something.
    pub needs_resync: bool,
    /// The stored record differs from the one that the node should have.
    pub record_needs_update: bool,
    /// `ctl/round` names a world whose plan the node has not read.
    pub has_unread_round: bool,
    /// What to do about the coordinator.
    pub term: TermDuty,
    /// When to report that the lease may have expired, unless that was reported.
    pub uncertain_at: Option<Moment>,
    /// When to compare what is known of `ctl/` with the service.
    pub check_at: Option<Moment>,
}

/// The state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Situation {
    /// Outside the run, or joining it.
    Outside,
    /// In the run.
    In(Duties),
    /// The run is closed.
    Closed {
        /// When to renew the leases of the closed run.
        renew_at: Option<Moment>,
    },
    /// An error has ended the session.
    Over,
}

/// The next step of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Work that is due.
    Do(Work),
    /// Nothing is due before this time, unless an event arrives.
    Wait(Option<Moment>),
}

/// Returns the next step. `retry_at` is the end of the pause after a failure.
pub fn next_step(wants: Wants, situation: Situation, retry_at: Option<Moment>, now: Moment) -> Step {
    let work = next_work(wants, situation, now);
    let pause = retry_at.filter(|at| now < *at);
    if let Some(work) = work.filter(|_| pause.is_none()) {
        return Step::Do(work);
    }
    let (timer, timer_work) = match situation {
        Situation::In(duties) => (duties.uncertain_at, Work::ReportUncertainty),
        Situation::Closed { renew_at } => (renew_at, Work::RenewClosing),
        Situation::Outside | Situation::Over => (None, Work::ReportUncertainty),
    };
    if timer.is_some_and(|at| at <= now) {
        return Step::Do(timer_work);
    }
    let (campaign, check) = match situation {
        Situation::In(Duties { term: TermDuty::Campaign(campaign_at), check_at, .. }) => {
            (campaign_at, check_at)
        }
        Situation::In(Duties { check_at, .. }) => (None, check_at),
        _ => (None, None),
    };
    let later = [campaign, check].into_iter().flatten().filter(|at| now < *at).min();
    Step::Wait([pause.filter(|_| work.is_some()), timer, later].into_iter().flatten().min())
}

/// The most urgent work.
fn next_work(wants: Wants, situation: Situation, now: Moment) -> Option<Work> {
    let maintenance = next_maintenance_work(wants, situation, now);
    if wants.close {
        return maintenance.filter(|work| work.precedes_closing()).or(Some(Work::Close));
    }
    if wants.departure == Departure::Requested { Some(Work::Leave) } else { maintenance }
}

/// The work that keeps the node in its run.
fn next_maintenance_work(wants: Wants, situation: Situation, now: Moment) -> Option<Work> {
    let stays = wants.departure != Departure::Announced;
    let duties = match situation {
        Situation::Outside => return (wants.world && stays).then_some(Work::Join),
        Situation::In(duties) => duties,
        Situation::Closed { .. } | Situation::Over => return None,
    };
    if duties.needs_resync {
        return Some(Work::Resync);
    }
    if duties.record_needs_update {
        return Some(Work::PutRecord);
    }
    if duties.has_unread_round {
        return Some(Work::ReadShard);
    }
    let term = match duties.term {
        TermDuty::Resign => Some(Work::Resign),
        TermDuty::Campaign(at) => (stays && at.is_none_or(|at| at <= now)).then_some(Work::Campaign),
        TermDuty::None => None,
    };
    let is_check_due = duties.check_at.is_some_and(|at| at <= now);
    term.or(is_check_due.then_some(Work::CheckControl))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Moment = Duration::from_secs(100);
    const LATER: Moment = Duration::from_secs(101);
    const MUCH_LATER: Moment = Duration::from_secs(200);
    const SEEKS: Wants = Wants { world: true, close: false, departure: Departure::None };

    fn all_duties() -> Duties {
        Duties {
            needs_resync: true,
            record_needs_update: true,
            has_unread_round: true,
            term: TermDuty::Resign,
            uncertain_at: Some(NOW),
            check_at: Some(NOW),
        }
    }

    /// The rest of the duties after the first has been done, in order of urgency.
    fn duties_by_urgency() -> [(Duties, Option<Work>); 7] {
        let resync = all_duties();
        let record = Duties { needs_resync: false, ..resync };
        let shard = Duties { record_needs_update: false, ..record };
        let resign = Duties { has_unread_round: false, ..shard };
        let campaign = Duties { term: TermDuty::Campaign(None), ..resign };
        let check = Duties { term: TermDuty::None, ..campaign };
        let nothing = Duties { check_at: Some(LATER), ..check };
        [
            (resync, Some(Work::Resync)),
            (record, Some(Work::PutRecord)),
            (shard, Some(Work::ReadShard)),
            (resign, Some(Work::Resign)),
            (campaign, Some(Work::Campaign)),
            (check, Some(Work::CheckControl)),
            (nothing, None),
        ]
    }

    #[test]
    fn duties_are_done_in_order_of_urgency() {
        for (duties, work) in duties_by_urgency() {
            assert_eq!(next_work(SEEKS, Situation::In(duties), NOW), work, "{duties:?}");
        }
    }

    #[test]
    fn what_the_owner_wants_decides_in_each_situation() {
        let seeks = SEEKS;
        let idle = Wants { world: false, ..seeks };
        let announces = Wants { departure: Departure::Announced, ..seeks };
        let leaves = Wants { departure: Departure::Requested, ..seeks };
        let closes = Wants { close: true, ..seeks };
        let closes_and_leaves = Wants { close: true, ..leaves };
        let campaigns = Duties { term: TermDuty::Campaign(Some(NOW)), ..Duties::default() };
        let (outside, inside) = (Situation::Outside, Situation::In(Duties::default()));
        let (ended, over) = (Situation::Closed { renew_at: Some(LATER) }, Situation::Over);
        let cases = [
            ("seeks", seeks, outside, Some(Work::Join)),
            ("was excluded, and its owner does not seek", idle, outside, None),
            ("is about to leave", announces, outside, None),
            ("leaves before it has joined", leaves, outside, Some(Work::Leave)),
            ("closes a run that it is not in", closes, outside, Some(Work::Close)),
            ("has nothing to do", seeks, inside, None),
            ("leaves", leaves, inside, Some(Work::Leave)),
            ("closes", closes, inside, Some(Work::Close)),
            ("closes first", closes_and_leaves, inside, Some(Work::Close)),
            ("campaigns", seeks, Situation::In(campaigns), Some(Work::Campaign)),
            ("campaigns in its world", idle, Situation::In(campaigns), Some(Work::Campaign)),
            ("does not campaign when about to leave", announces, Situation::In(campaigns), None),
            ("leaves whatever there is to do", leaves, Situation::In(all_duties()), Some(Work::Leave)),
            ("does nothing in a closed run", seeks, ended, None),
            ("leaves a closed run", leaves, ended, Some(Work::Leave)),
            ("does nothing after an error", seeks, over, None),
            ("leaves after an error", leaves, over, Some(Work::Leave)),
            ("closes after an error", closes, over, Some(Work::Close)),
        ];
        for (case, wants, situation, work) in cases {
            assert_eq!(next_work(wants, situation, NOW), work, "{case}");
        }
    }

    #[test]
    fn run_is_restored_before_it_is_closed() {
        let closes = Wants { close: true, ..SEEKS };
        for (duties, work) in duties_by_urgency() {
            let work = work.filter(|work| work.precedes_closing()).unwrap_or(Work::Close);
            assert_eq!(next_work(closes, Situation::In(duties), NOW), Some(work), "{duties:?}");
        }
    }

    #[test]
    fn session_wakes_up_when_something_is_due() {
        let inside = |term, uncertain_at| Situation::In(Duties { term, uncertain_at, ..Duties::default() });
        let resync =
            |uncertain_at| Situation::In(Duties { needs_resync: true, uncertain_at, ..Duties::default() });
        let campaign = |at| TermDuty::Campaign(Some(at));
        let closed = |at| Situation::Closed { renew_at: Some(at) };
        let checked = |at| Situation::In(Duties { check_at: Some(at), ..Duties::default() });
        let cases = [
            ("nothing", Situation::Over, None, Step::Wait(None)),
            ("a pause without work", Situation::Over, Some(LATER), Step::Wait(None)),
            ("work", resync(Some(NOW)), None, Step::Do(Work::Resync)),
            ("a pause that is over", resync(None), Some(NOW), Step::Do(Work::Resync)),
            ("a pause", resync(Some(MUCH_LATER)), Some(LATER), Step::Wait(Some(LATER))),
            ("a timer in a pause", resync(Some(NOW)), Some(LATER), Step::Do(Work::ReportUncertainty)),
            ("a timer first", inside(campaign(MUCH_LATER), Some(LATER)), None, Step::Wait(Some(LATER))),
            ("a campaign first", inside(campaign(LATER), Some(MUCH_LATER)), None, Step::Wait(Some(LATER))),
            ("a campaign", inside(campaign(NOW), None), None, Step::Do(Work::Campaign)),
            ("a check", checked(NOW), None, Step::Do(Work::CheckControl)),
            ("a check in a pause", checked(NOW), Some(LATER), Step::Wait(Some(LATER))),
            ("a check later", checked(LATER), Some(MUCH_LATER), Step::Wait(Some(LATER))),
            ("a closed run", closed(LATER), Some(MUCH_LATER), Step::Wait(Some(LATER))),
            ("a renewal", closed(NOW), Some(LATER), Step::Do(Work::RenewClosing)),
        ];
        for (case, situation, retry_at, step) in cases {
            assert_eq!(next_step(SEEKS, situation, retry_at, NOW), step, "{case}");
        }
    }
}
