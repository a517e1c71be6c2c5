//! The coordinator: the task that one node of a run carries. It reads who is there, asks [`crate::protocol::decide`]
//! what follows, and writes that, fenced by its [`Office`].
//!
//! It keeps nothing that the store does not have, but its clocks: whoever takes over after it begins them anew, which
//! costs at most one wait. It ends with its office, with its node's lease, or with an error; its node sees to the rest.

mod cleaning;
mod commits;
mod office;
mod report;
mod survey;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

pub use self::office::{Office, Written};
use self::{cleaning::Cleaning, report::Report, survey::Survey};
use crate::{
    backend::{
        Changes, Event, Keys, LeaseId, Revision,
        retry::{Backoff, RetryPolicy},
        watcher::{Watched, Watcher},
    },
    error::{Error, Result},
    lease::{LeaseState, RenewHandle},
    protocol::{
        decide::{Action, decide},
        identity::NodeId,
        keys::RunKeys,
        records::{ChangeKind, Phase},
        roster::{Moment, Roster},
    },
    run::Context,
};

/// How a term ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Another has the office, or the run is closed.
    OutOfOffice(&'static str),
    /// The run must be closed as ended, for this reason.
    Close(String),
    /// Something failed that another try would not mend.
    Failed(Error),
}

/// Of what the coordinator's clock shows when it takes office: more than any lease's TTL, so that what lies before can
/// be expressed.
const OFFICE_BEGINS: Moment = Duration::from_secs(24 * 3600);

/// How often nodes and finished nodes are listed, because watches have lost events (etcd 3.4.31, 3.4.36, 3.5.13,
/// 3.5.18; #18089).
const LISTING_INTERVAL: Duration = Duration::from_secs(30);

/// How many reports of each watch are taken in before a decision, so that a flood of them puts none off for good.
const REPORTS_PER_DECISION: usize = 10_000;

/// Decides rounds until the term ends; giving the office back is then its node's duty.
///
/// `trusted` says that this node saw the office before under its present lease, so that it need not wait for nodes that
/// may be returning from a break.
pub async fn serve(
    context: Arc<Context>,
    office: Office,
    lease: watch::Receiver<LeaseState>,
    renew: RenewHandle,
    trusted: bool,
) -> End {
    let mut backoff = Backoff::new(RetryPolicy::default(), context.entropy.bits());
    let mut term = loop {
        match Term::begin(&context, &office, lease.clone(), renew.clone(), trusted).await {
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
                context.refusals.note(office::COORDINATOR_WRITES, &error);
                break End::Failed(error);
            }
        }
    };
    ended(end)
}

fn ended(end: End) -> End {
    tracing::debug!(?end, "this term of office is over");
    end
}

/// A term of office under way.
struct Term {
    context: Arc<Context>,
    office: Office,
    lease: watch::Receiver<LeaseState>,
    renew: RenewHandle,
    began: Instant,
    roster: Roster,
    /// The mod revisions of the nodes' records that were seen, also of those that cannot be read.
    revisions: BTreeMap<NodeId, Revision>,
    round_revision: Revision,
    run_lease: LeaseId,
    run_lease_due: Instant,
    listing_due: Instant,
    nodes: Watcher,
    finished: Watcher,
    reason: String,
    /// The lease's breaks that were looked into.
    breaks: u64,
    /// Everything was read at this revision; what a watch reports of before is older.
    read_revision: Revision,
    /// The service no longer holds the round that this term knows: it lost data, or was restored from an older backup.
    /// What becomes of that its node finds out, and the next term begins with what is left.
    round_lost: bool,
    /// What is left to delete of earlier rounds.
    cleaning: Option<Cleaning>,
    /// What was written about the nodes that wait.
    report: Report,
}

impl Term {
    async fn begin(
        context: &Arc<Context>,
        office: &Office,
        lease: watch::Receiver<LeaseState>,
        renew: RenewHandle,
        trusted: bool,
    ) -> Result<Self> {
        // Before the reading, and from now on: etcd serves a watch that begins in the past only ten times a second.
        let watch = |prefix: String| {
            let keys = Keys::prefix(prefix);
            let (policy, seed) = (RetryPolicy::default(), context.entropy.bits());
            Watcher::with_policy(Arc::clone(&context.backend), keys, 0, policy, seed)
        };
        let (mut nodes, mut finished) = (watch(context.keys.nodes()), watch(context.keys.all_finished()));
        tokio::try_join!(nodes.ready(), finished.ready())?;
        let survey = Survey::read(context).await?;
        let now = Instant::now();
        let mut term = Self {
            nodes,
            finished,
            context: Arc::clone(context),
            office: office.clone(),
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
        };
        term.breaks = term.hear_of_lease();
        term.take_over(survey);
        term.roster.count_absent(OFFICE_BEGINS, trusted, &context.policy);
        term.plan_cleaning(None);
        Ok(term)
    }

    fn moment(&self, instant: Instant) -> Moment {
        let since = instant.saturating_duration_since(self.began);
        (OFFICE_BEGINS + since).saturating_sub(self.began.saturating_duration_since(instant))
    }

    fn instant(&self, moment: Moment) -> Instant {
        self.began + moment.saturating_sub(OFFICE_BEGINS)
    }

    /// Brings the roster in step with what was read.
    fn take_over(&mut self, survey: Survey) {
        self.report.note_change();
        let now = self.moment(Instant::now());
        let policy = &self.context.policy;
        let found = survey.round.as_ref().map(|(round, _, _)| round);
        self.round_lost |= self.roster.round.as_ref().is_some_and(|known| known.is_lost_in(found));
        self.read_revision = survey.revision;
        self.roster.past_lives = survey.past_lives;
        let mut other_world = false;
        if let Some((round, revision, lease)) = survey.round {
            let known = self.roster.round.as_ref();
            other_world =
                known.is_some_and(|known| (known.round, &known.world) != (round.round, &round.world));
            self.round_revision = revision;
            self.run_lease = lease;
            self.roster.set_round(now, round, survey.world);
        }
        let restoring = self.roster.round.as_ref().is_some_and(|round| round.phase == Phase::Restoring);
        if restoring && self.roster.restoring_until.is_none() {
            self.roster.restoring_until = Some(now + self.context.policy.return_window);
        }
        for id in survey.finished {
            self.roster.put_finished(id);
        }
        let gone: Vec<NodeId> =
            self.roster.nodes.keys().filter(|id| !survey.nodes.contains_key(id)).copied().collect();
        for id in gone {
            self.roster.remove_node(now, id, policy);
        }
        self.revisions = survey.revisions;
        for (id, (record, created)) in survey.nodes {
            self.roster.put_node(id, record, created);
        }
        if other_world {
            // Nobody else writes `ctl/round` while this office stands: what it committed is lost, or an attempt of its
            // own landed that it had given up, and was not watched over.
            self.roster.committed = false;
            self.roster.count_absent(now, true, policy);
        }
    }

    /// How many breaks the lease has had.
    fn hear_of_lease(&mut self) -> u64 {
        let state = self.lease.borrow_and_update().clone();
        self.roster.acknowledged = self.moment(state.acknowledged);
        self.roster.disturbed = state.disturbed.map(|ended| self.moment(ended));
        state.breaks
    }

    /// One decision, and carrying it out or waiting for news.
    async fn step(&mut self) -> Result<Option<End>> {
        let breaks = self.hear_of_lease();
        if breaks != self.breaks {
            // The service may be back at an earlier state, with this office in it: there a watch that is merely taken
            // up again is accepted, and silent until the old revision is reached.
            self.read_again().await?;
            self.breaks = breaks;
        }
        if self.round_lost {
            return Ok(Some(End::OutOfOffice("the service no longer holds the round that it had committed")));
        }
        if Instant::now() >= self.run_lease_due {
            self.renew_run_lease().await?;
        }
        if Instant::now() >= self.lease.borrow().uncertain_at() {
            // Its writes may pass all the same, but who may be lost decides nothing. The renewals go on.
            return self.news(None).await;
        }
        self.drain().await?;
        let now = self.moment(Instant::now());
        self.roster.observe(now, &self.context.policy);
        let decision = decide(&self.roster, now, &self.context.policy);
        if decision.reason != self.reason {
            tracing::debug!("{}", decision.reason);
            self.reason.clone_from(&decision.reason);
        }
        let written = match decision.action {
            Action::Wait if self.is_report_due() => self.write_report().await?,
            Action::Wait if self.is_cleaning() => self.clean().await?,
            Action::Wait => {
                let report = self.report.due().map(|due| self.moment(due));
                return self.news(decision.wake.into_iter().chain(report).min()).await;
            }
            Action::Renew => {
                self.renew.renew();
                return self.news(decision.wake).await;
            }
            Action::Close => return Ok(Some(End::Close(decision.reason))),
            Action::BeginLife => self.begin_life().await?,
            Action::Restore { world, members, submission } => {
                self.restore(world, members, submission, &decision.reason).await?
            }
            Action::Forgive(failures) => self.forgive(failures).await?,
            Action::Refuse(refusal) => self.refuse(refusal, &decision.reason).await?,
            Action::EndRestoring => self.end_restoring(&decision.reason).await?,
            // Two watches have no common order: that it had finished may be heard after that it went.
            Action::AnnounceChange(change)
                if change.kind == ChangeKind::Lost && self.hear_of_finished().await? =>
            {
                return Ok(None);
            }
            Action::AnnounceChange(change) => self.tell(change).await?,
            Action::Form(form) => self.form(form, decision.reason).await?,
        };
        match written {
            Written::Done(_) | Written::Skipped => {}
            Written::OutOfOffice(why) => return Ok(Some(End::OutOfOffice(why))),
            Written::Stale => {
                let survey = Survey::read(&self.context).await?;
                self.take_over(survey);
            }
        }
        Ok(None)
    }

    /// Waits for news of the nodes, for time to change the answer, or for a duty to come due.
    async fn news(&mut self, wake: Option<Moment>) -> Result<Option<End>> {
        let wake = wake.map(|moment| self.instant(moment));
        let never = Instant::now() + LISTING_INTERVAL;
        tokio::select! {
            biased;
            changed = self.lease.changed() => {
                if changed.is_err() {
                    return Ok(Some(End::OutOfOffice("its node is gone")));
                }
            }
            watched = self.nodes.next() => self.apply_nodes(watched?).await?,
            watched = self.finished.next() => self.apply_finished(watched?).await?,
            () = sleep_until(wake.unwrap_or(never)) => {}
            () = sleep_until(self.run_lease_due) => self.renew_run_lease().await?,
            () = sleep_until(self.listing_due) => self.check_listing().await?,
        }
        Ok(None)
    }

    /// Takes in every report that has arrived, so that one decision is made over all of them: etcd sends a message for
    /// each revision, and a decision looks at all nodes.
    async fn drain(&mut self) -> Result<()> {
        for _ in 0..REPORTS_PER_DECISION {
            let (nodes, finished) = (self.nodes.next_arrived(), self.finished.next_arrived());
            if nodes.is_none() && finished.is_none() {
                break;
            }
            if let Some(watched) = nodes {
                self.apply_nodes(watched?).await?;
            }
            if let Some(watched) = finished {
                self.apply_finished(watched?).await?;
            }
        }
        Ok(())
    }

    async fn apply_nodes(&mut self, watched: Watched) -> Result<()> {
        let Watched::Changes(Changes { events, .. }) = watched else { return self.read_again().await };
        self.report.note_change();
        let now = self.moment(Instant::now());
        let policy = &self.context.policy;
        for event in events.iter().filter(|event| event.revision() > self.read_revision) {
            match event {
                Event::Put(item) => {
                    if let Some(id) = RunKeys::node_of(&item.key) {
                        self.revisions.insert(id, item.mod_revision);
                    }
                    if let Some((id, record)) = survey::node_of(item) {
                        self.roster.put_node(id, record, item.create_revision);
                    }
                }
                Event::Delete { key, .. } => {
                    if let Some(id) = RunKeys::node_of(key) {
                        self.revisions.remove(&id);
                        self.roster.remove_node(now, id, policy);
                    }
                }
            }
        }
        Ok(())
    }

    async fn apply_finished(&mut self, watched: Watched) -> Result<()> {
        let Watched::Changes(Changes { events, .. }) = watched else { return self.read_again().await };
        let Some(round) = &self.roster.round else { return Ok(()) };
        let current = self.context.keys.finished_life(&round.life).into_bytes();
        let puts = events.iter().filter(|event| matches!(event, Event::Put(_)));
        let ids: Vec<NodeId> = puts
            .filter(|event| event.key().starts_with(&current))
            .filter_map(|event| RunKeys::node_of(event.key()))
            .collect();
        for id in ids {
            self.roster.put_finished(id);
        }
        Ok(())
    }

    async fn read_again(&mut self) -> Result<()> {
        let survey = Survey::read(&self.context).await?;
        self.nodes.restart(survey.revision + 1);
        self.finished.restart(survey.revision + 1);
        self.take_over(survey);
        Ok(())
    }

    /// Reads who has finished; whether anybody has of whom that was not known.
    async fn hear_of_finished(&mut self) -> Result<bool> {
        let Some(round) = self.roster.round.as_ref().filter(|round| round.has_world()) else {
            return Ok(false);
        };
        let known = self.roster.finished.len();
        for id in survey::finished(&self.context, &round.life, 0).await? {
            self.roster.put_finished(id);
        }
        Ok(self.roster.finished.len() > known)
    }

    async fn check_listing(&mut self) -> Result<()> {
        self.listing_due = Instant::now() + LISTING_INTERVAL;
        self.hear_of_finished().await?;
        if survey::listing(&self.context).await? != self.revisions {
            tracing::debug!("the listing of nodes differs from what was watched; reading everything again");
            self.read_again().await?;
        }
        Ok(())
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
