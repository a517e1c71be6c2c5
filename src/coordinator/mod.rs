//! The coordinator: a task of one node of a run. It reads which nodes are present, calls [`crate::protocol::decide`],
//! and writes the decision, fenced by its [`TermFence`].
//!
//! It keeps nothing that the next coordinator needs, apart from its clocks: those start again, which costs at most one
//! wait. The task ends with its term, with the lease of its node, or with an error. Its node then resigns or campaigns.

mod cleaning;
mod commits;
mod fence;
mod input;
mod inquiries;
mod report;
mod snapshot;
mod suspects;
mod suspicious;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use self::{
    cleaning::Cleaning,
    input::{Input, LISTING_INTERVAL},
    report::Report,
    snapshot::RunSnapshot,
};
pub use self::{
    fence::{TermFence, Written},
    inquiries::{Inquiries, Inquiry},
    suspicious::Suspicious,
};
use crate::{
    backend::{
        LeaseId, Revision,
        retry::{Backoff, RetryPolicy},
    },
    error::{Error, Result},
    lease::{LeaseState, RenewHandle},
    protocol::{
        decide::{Action, decide},
        identity::NodeId,
        records::{ChangeKind, Phase},
        roster::{Moment, Roster},
    },
    run::Context,
};

/// How a term ended.
#[derive(Clone, Debug)]
pub enum End {
    /// The term is over, for this reason.
    TermLost(&'static str),
    /// The run must be closed as ended, for this reason.
    Close(String),
    /// An error that another attempt would not avoid.
    Failed(Error),
}

/// The time on the coordinator's clock at which its term begins. It is greater than the TTL of any lease, so that
/// earlier times can be expressed.
const TERM_BEGINS: Moment = Duration::from_secs(24 * 3600);

/// Decides rounds until the term ends. Then its node must resign.
///
/// `trusted` means that this node observed the previous term under its present lease, so that it need not wait for
/// nodes that may be returning from an interruption.
pub async fn serve(
    context: Arc<Context>,
    fence: TermFence,
    lease: watch::Receiver<LeaseState>,
    renew: RenewHandle,
    trusted: bool,
    inquiries: Inquiries,
) -> End {
    let mut backoff = Backoff::new(RetryPolicy::default(), context.entropy.bits());
    let mut term = loop {
        match Term::begin(&context, &fence, lease.clone(), renew.clone(), trusted, &inquiries).await {
            Ok(term) => break term,
            Err(error) if error.is_transient() => tokio::time::sleep(backoff.next_delay()).await,
            Err(error) => return ended(End::Failed(error)),
        }
    };
    let end = loop {
        match term.step().await {
            Ok(None) => backoff.reset(),
            Ok(Some(end)) => break end,
            Err(error) if error.is_transient() => tokio::time::sleep(backoff.next_delay()).await,
            Err(error) => {
                context.refusals.note(fence::COORDINATOR_WRITES, &error);
                break End::Failed(error);
            }
        }
    };
    ended(end)
}

fn ended(end: End) -> End {
    tracing::debug!(?end, "this term is over");
    end
}

/// A term in progress.
struct Term {
    context: Arc<Context>,
    fence: TermFence,
    lease: watch::Receiver<LeaseState>,
    renew: RenewHandle,
    began: Instant,
    roster: Roster,
    /// The mod revisions of the nodes' records that were read, including those that cannot be decoded.
    revisions: BTreeMap<NodeId, Revision>,
    round_revision: Revision,
    run_lease: LeaseId,
    run_lease_due: Instant,
    listing_due: Instant,
    input: Input,
    reason: String,
    /// The number of interruptions of the lease that were handled.
    breaks: u64,
    /// The revision at which everything was read. Earlier events of a watch are outdated.
    read_revision: Revision,
    /// The service no longer holds the round of this term, because it lost data or was restored from an older backup.
    /// The node finds out the consequences, and the next term begins with the remaining data.
    round_lost: bool,
    /// What is left to delete of earlier rounds.
    cleaning: Option<Cleaning>,
    /// What was written about the nodes that wait.
    report: Report,
    inquiries: Inquiries,
}

impl Term {
    async fn begin(
        context: &Arc<Context>,
        fence: &TermFence,
        lease: watch::Receiver<LeaseState>,
        renew: RenewHandle,
        trusted: bool,
        inquiries: &Inquiries,
    ) -> Result<Self> {
        let input = Input::watch(context).await?;
        let snapshot = RunSnapshot::read(context).await?;
        let now = Instant::now();
        let mut term = Self {
            input,
            context: Arc::clone(context),
            fence: fence.clone(),
            lease,
            renew,
            began: now,
            roster: Roster::default(),
            revisions: BTreeMap::new(),
            round_revision: 0,
            run_lease: 0,
            run_lease_due: now,
            listing_due: now + LISTING_INTERVAL,
            reason: String::new(),
            breaks: 0,
            read_revision: 0,
            round_lost: false,
            cleaning: None,
            report: Report::default(),
            inquiries: inquiries.clone(),
        };
        term.breaks = term.update_lease_state();
        let zero = context.entropy.unix_time().map(|time| time.saturating_sub(term.moment(Instant::now())));
        term.report.set_zero(zero);
        term.apply_snapshot(snapshot);
        term.roster.mark_absent_members(TERM_BEGINS, trusted, &context.policy);
        term.plan_cleaning(None);
        term.greet_members();
        Ok(term)
    }

    fn moment(&self, instant: Instant) -> Moment {
        let since = instant.saturating_duration_since(self.began);
        (TERM_BEGINS + since).saturating_sub(self.began.saturating_duration_since(instant))
    }

    fn instant(&self, moment: Moment) -> Instant {
        self.began + moment.saturating_sub(TERM_BEGINS)
    }

    /// Updates the roster with what was read.
    fn apply_snapshot(&mut self, snapshot: RunSnapshot) {
        self.report.note_change();
        let now = self.moment(Instant::now());
        let policy = &self.context.policy;
        let found = snapshot.round.as_ref().map(|(round, _, _)| round);
        self.round_lost |= self.roster.round.as_ref().is_some_and(|known| known.is_lost_in(found));
        self.read_revision = snapshot.revision;
        self.roster.past_lives = snapshot.past_lives;
        let mut other_world = false;
        if let Some((round, revision, lease)) = snapshot.round {
            let known = self.roster.round.as_ref();
            other_world =
                known.is_some_and(|known| (known.round, &known.world) != (round.round, &round.world));
            self.round_revision = revision;
            self.run_lease = lease;
            self.roster.set_round(now, round, snapshot.world);
        }
        let restoring = self.roster.round.as_ref().is_some_and(|round| round.phase == Phase::Restoring);
        if restoring && self.roster.restoring_until.is_none() {
            self.roster.restoring_until = Some(now + self.context.policy.return_window);
        }
        for id in snapshot.finished {
            self.roster.put_finished(id);
        }
        for (id, evidence) in snapshot.lost {
            // While the contact is disturbed, evidence may come from a backup.
            self.roster.put_lost(id, evidence, !self.roster.is_disturbed(now, policy));
        }
        let gone: Vec<NodeId> =
            self.roster.nodes.keys().filter(|id| !snapshot.nodes.contains_key(id)).copied().collect();
        for id in gone {
            self.roster.remove_node(now, id, policy);
        }
        self.revisions = snapshot.revisions;
        for (id, (record, created)) in snapshot.nodes {
            self.report.note_node(now, &record, !self.roster.nodes.contains_key(&id), policy);
            self.roster.put_node(id, record, created);
        }
        self.examine(snapshot.suspects);
        if other_world {
            // No other node writes `ctl/round` during this term. So either the service lost the round of this term, or an
            // attempt of this term that timed out was applied late.
            self.roster.committed = false;
            self.roster.mark_absent_members(now, true, policy);
        }
    }

    /// Copies the state of the lease to the roster. Returns how often the lease was interrupted.
    fn update_lease_state(&mut self) -> u64 {
        let state = self.lease.borrow_and_update().clone();
        self.roster.acknowledged = self.moment(state.acknowledged);
        self.roster.disturbed = state.disturbed.map(|ended| self.moment(ended));
        state.breaks
    }

    /// Decides once, and carries out the decision or waits for an event.
    async fn step(&mut self) -> Result<Option<End>> {
        let breaks = self.update_lease_state();
        if breaks != self.breaks {
            // The service may have returned to an earlier state that includes this term. Such a service accepts a
            // watch that is merely resumed, but reports nothing until the old revision is reached.
            self.read_again().await?;
            self.breaks = breaks;
        }
        if self.round_lost {
            return Ok(Some(End::TermLost("the service no longer holds the round that it had committed")));
        }
        if Instant::now() >= self.run_lease_due {
            self.renew_run_lease().await?;
        }
        if Instant::now() >= self.lease.borrow().uncertain_at() {
            // Writes may still succeed, but a node that may be lost decides nothing. Renewals continue.
            return self.wait_for_event(None).await;
        }
        self.apply_arrived().await?;
        let now = self.moment(Instant::now());
        self.roster.observe(now, &self.context.policy);
        let decision = decide(&self.roster, now, &self.context.policy);
        if decision.reason != self.reason {
            tracing::debug!("{}", decision.reason);
            self.reason.clone_from(&decision.reason);
            self.report.note_change();
        }
        let written = match decision.action {
            Action::Wait if self.is_report_due() => self.write_report(&decision).await?,
            Action::Wait if self.is_cleaning() => self.clean().await?,
            Action::Wait => {
                let report = self.report.due().map(|due| self.moment(due));
                return self.wait_for_event(decision.wake.into_iter().chain(report).min()).await;
            }
            Action::Renew => {
                self.renew.renew();
                return self.wait_for_event(decision.wake).await;
            }
            Action::Close => return Ok(Some(End::Close(decision.reason))),
            Action::BeginLife => self.begin_life().await?,
            Action::Restore { world, members, submission } => {
                self.restore(world, members, submission, &decision.reason).await?
            }
            Action::KeepFailures(failures) => self.forgive(failures).await?,
            Action::Refuse(refusal) => self.refuse(refusal, &decision.reason).await?,
            Action::EndRestoring => self.end_restoring(&decision.reason).await?,
            // The watches have no common order, so the reason may be reported after the departure.
            Action::AnnounceChange(change)
                if change.kind == ChangeKind::Lost && self.read_reasons().await? =>
            {
                return Ok(None);
            }
            Action::AnnounceChange(change) => self.announce_change(change).await?,
            Action::Form(form) => self.form(form, decision.reason).await?,
        };
        match written {
            Written::Done(_) | Written::Skipped => {}
            Written::TermLost(why) => return Ok(Some(End::TermLost(why))),
            Written::Stale => {
                let snapshot = RunSnapshot::read(&self.context).await?;
                self.apply_snapshot(snapshot);
            }
        }
        Ok(None)
    }

    /// Waits for an event of the nodes, for the time at which the decision may change, or for a duty that is due.
    async fn wait_for_event(&mut self, wake: Option<Moment>) -> Result<Option<End>> {
        let wake = wake.map(|moment| self.instant(moment));
        let at_the_latest = Instant::now() + LISTING_INTERVAL;
        tokio::select! {
            biased;
            changed = self.lease.changed() => {
                if changed.is_err() {
                    return Ok(Some(End::TermLost("its node is gone")));
                }
            }
            report = self.input.next() => self.apply(report?).await?,
            () = sleep_until(wake.unwrap_or(at_the_latest)) => {}
            () = sleep_until(self.run_lease_due) => self.renew_run_lease().await?,
            () = sleep_until(self.listing_due) => self.check_listing().await?,
        }
        Ok(None)
    }

    async fn renew_run_lease(&mut self) -> Result<()> {
        let ttl = self.context.run_lease_ttl();
        self.run_lease_due = Instant::now() + ttl / 3;
        if self.run_lease == 0 {
            return Ok(());
        }
        match self.context.backend.lease_keep_alive(self.run_lease).await {
            Err(error) if error.is_transient() => {
                self.run_lease_due = Instant::now() + self.context.policy.return_window;
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }
}
