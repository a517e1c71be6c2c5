//! The task of a node: it holds the lease, follows `ctl/`, does what is due, and publishes what it knows.
//!
//! Each state of a node is a type ([`Stage`]). What is due follows from that, from what the owner wants ([`Owner`]), and
//! from the time ([`next_step`]). The session does one piece of [`Work`] at a time, and [`Session::finish`] applies the
//! result: work that failed is done again after a pause for as long as it is due.

mod closed;
mod closing;
mod following;
mod joining;
mod known;
mod leaving;
mod membership;
mod office;
mod outside;
mod over;
mod owner;
mod resync;
mod retry;
mod stage;
mod worlds;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

pub(super) use self::owner::Command;
use self::{
    known::Known,
    membership::{Membership, MembershipEvent},
    owner::Owner,
    retry::Retry,
    stage::Stage,
};
use super::shared::{HostLost, Shared, Snapshot, State};
use crate::{
    error::{Error, Result},
    protocol::work::{Duties, Situation, Step, TermDuty, Work, next_step},
    run::Context,
};

/// What a node writes, for messages.
const NODE_WRITES: &str = "what this node writes";

/// The pause between attempts while a service that lost the run is restored.
pub(super) const RESTORE_PAUSE: Duration = Duration::from_millis(200);

/// A pause without end.
const NEVER: Duration = Duration::from_secs(3600);

/// Why the world that the owner has is over, although no record announces a change of it.
#[derive(Default)]
struct LostWorld {
    /// The next round was formed without this node.
    dropped: Option<String>,
    /// The node that hosts the service is silent.
    host: Option<HostLost>,
}

/// The session of one node.
pub(super) struct Session {
    context: Arc<Context>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    /// The time from which [`next_step`] counts.
    began: Instant,
    stage: Stage,
    owner: Owner,
    known: Known,
    retry: Retry,
    lost: LostWorld,
    /// How often the service has lost its data.
    resets: u64,
    /// How often the service's data was replaced, as the answers to this node show.
    setbacks: watch::Receiver<u64>,
    left: bool,
}

impl Session {
    pub(super) fn new(
        context: Arc<Context>,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        address: String,
        port: u16,
    ) -> Self {
        Self {
            shared,
            commands,
            began: Instant::now(),
            stage: Stage::default(),
            owner: Owner::new(address, port),
            known: Known::default(),
            retry: Retry::new(&context),
            lost: LostWorld::default(),
            resets: 0,
            setbacks: context.monotonic.setbacks(),
            left: false,
            context,
        }
    }

    /// Runs until the node has left, or its handle is dropped.
    pub(super) async fn run(mut self) {
        while !self.left {
            self.publish();
            self.owner.drop_abandoned_closing();
            if self.is_departure_announced() {
                self.owner.answer_marks();
            }
            let (wants, now) = (self.owner.wants(), self.moment(Instant::now()));
            let retry_at = self.retry.at().map(|at| self.moment(at));
            match next_step(wants, self.situation(), retry_at, now) {
                Step::Do(work) => {
                    let result = self.perform(work).await;
                    self.finish(work, result);
                }
                Step::Wait(until) => {
                    let until = until.map_or_else(|| Instant::now() + NEVER, |until| self.began + until);
                    self.wait_for_event(until).await;
                }
            }
        }
    }

    fn moment(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }

    /// The state of this node, as far as it decides what is due.
    fn situation(&self) -> Situation {
        match &self.stage {
            Stage::Outside(_) | Stage::Joining(_) => Situation::Outside,
            Stage::In(membership) => Situation::In(self.duties(membership)),
            Stage::Closed(closed) => {
                Situation::Closed { renew_at: closed.renew_at().map(|at| self.moment(at)) }
            }
            Stage::Over(_) => Situation::Over,
        }
    }

    fn duties(&self, membership: &Membership) -> Duties {
        let control = &self.known.control;
        let candidacy = &membership.candidacy;
        let has_coordinator =
            control.coordinator.is_some() || candidacy.task.is_some() || control.closed.is_some();
        let term = if membership.term_to_resign(control).is_some() {
            TermDuty::Resign
        } else if has_coordinator {
            TermDuty::None
        } else {
            TermDuty::Campaign(candidacy.campaign_at.map(|at| self.moment(at)))
        };
        Duties {
            needs_resync: membership.needs_resync,
            record_needs_update: membership.record_needs_update(&self.context, &self.owner, control),
            has_unread_round: membership.has_unread_round(control),
            term,
            uncertain_at: membership.lease.uncertain_at().map(|at| self.moment(at)),
        }
    }

    async fn perform(&mut self, work: Work) -> Result<()> {
        match work {
            Work::Close => self.close().await,
            Work::Leave => self.leave_run().await,
            Work::Resync => self.resync().await,
            Work::Join => self.join().await,
            Work::PutRecord => self.put_record().await,
            Work::ReadShard => self.read_shard().await,
            Work::Resign => self.resign().await,
            Work::Campaign => self.campaign().await,
            Work::RenewClosing => {
                self.renew_closing().await;
                Ok(())
            }
            Work::ReportUncertainty => {
                self.report_uncertainty();
                Ok(())
            }
        }
    }

    /// Applies the result of a piece of work.
    fn finish(&mut self, work: Work, result: Result<()>) {
        if matches!(work, Work::RenewClosing | Work::ReportUncertainty) {
            return;
        }
        let error = match result {
            Ok(()) => {
                if matches!(work, Work::Join | Work::PutRecord) {
                    self.context.refusals.clear(NODE_WRITES);
                }
                self.retry.succeeded();
                return;
            }
            Err(error) => error,
        };
        if matches!(error, Error::LeaseNotFound { .. }) {
            match &mut self.stage {
                Stage::Joining(joining) => {
                    self.stage = Stage::Outside(std::mem::take(&mut joining.outside));
                }
                stage => {
                    if let Some(membership) = stage.membership_mut() {
                        membership.needs_resync = true;
                    }
                }
            }
            return;
        }
        // A certificate that is being renewed may be missing for a moment. That ends no node that is in a run.
        let is_new = self.stage.membership().is_none();
        let is_fatal = match error {
            Error::Setting { .. } => is_new,
            _ => matches!(error, Error::Record { .. } | Error::Mismatch { .. } | Error::Closed { .. }),
        };
        if is_fatal || (is_new && work == Work::Join && !error.is_transient()) {
            tracing::debug!(?work, %error, "the session cannot continue");
            self.end_with(error);
            self.retry.back_off();
            return;
        }
        self.context.refusals.note(NODE_WRITES, &error);
        let message = error.to_string();
        if self.retry.failed(error) {
            if is_new {
                tracing::info!("retrying: {message}");
            } else {
                tracing::debug!(?work, message, "retrying");
            }
        }
    }

    async fn wait_for_event(&mut self, until: Instant) {
        tokio::select! {
            biased;
            command = self.commands.recv() => match command {
                Some(command) => self.handle_command(command),
                None => self.publish_end(),
            },
            // Its sender is in the context of this node, so this cannot fail.
            _ = self.setbacks.changed() => self.handle_setback(),
            event = next_membership_event(&mut self.stage) => self.handle_membership_event(event),
            () = sleep_until(until) => {}
            report = self.known.next_report() => self.handle_watch_report(report),
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Seek { port, after } => {
                if let Some(place) = self.stage.membership().and_then(Membership::place) {
                    if after.as_ref() != Some(place) {
                        // A world formed while the command was on its way, with the port of before. The owner gets it now.
                        return;
                    }
                    self.owner.lowest_round = self.owner.lowest_round.max(place.round + 1);
                }
                self.owner.seek(port);
                self.retry.end_pause();
            }
            Command::MarkLeaving { done } => match &self.stage {
                Stage::In(_) | Stage::Over(_) => self.owner.mark_leaving(done),
                Stage::Outside(_) | Stage::Joining(_) | Stage::Closed(_) => {
                    let _ = done.send(());
                }
            },
            Command::Leave { done } => {
                self.owner.leave(done);
                self.retry.end_pause();
            }
            Command::Close { done, .. } if matches!(self.stage, Stage::Closed(_)) => {
                let _ = done.send(true);
            }
            Command::Close { outcome, why, done } => {
                self.owner.close(&self.context, outcome, why, done);
                self.retry.end_pause();
            }
        }
    }

    /// Whether the other nodes can read that this node is about to leave, or it concerns no other node.
    fn is_departure_announced(&self) -> bool {
        let is_announced = |membership: &Membership| membership.record.record.leaving;
        matches!(self.stage, Stage::Closed(_)) || self.stage.membership().is_none_or(is_announced)
    }

    fn state(&self) -> State {
        if matches!(self.stage, Stage::Closed(_)) {
            return State::Closed;
        }
        let Some(membership) = self.stage.membership() else { return State::Joining };
        if membership.lease.uncertain {
            return State::Uncertain;
        }
        if membership.world.is_some() && !self.owner.seeks {
            return State::Member;
        }
        // Once a change is announced, the world is about to end, and a node that waits expects a place in the next one.
        let control = &self.known.control;
        let full = control.round_record().is_some_and(|round| round.has_spares() && round.change.is_none());
        if full && membership.world.is_none() { State::Spare } else { State::Seeking }
    }

    fn publish(&self) {
        let membership = self.stage.membership();
        let (closed, end) = match &self.stage {
            Stage::Closed(closed) => (Some(closed.record.clone()), None),
            Stage::Over(over) => (None, Some(over.error.clone())),
            Stage::Outside(_) | Stage::Joining(_) | Stage::In(_) => (None, None),
        };
        self.shared.publish(&Snapshot {
            state: self.state(),
            node: membership.map(|membership| membership.id),
            world: membership.and_then(|membership| membership.world.clone()),
            round: self.known.control.round_record().cloned(),
            closed,
            dropped: self.lost.dropped.clone(),
            host_lost: self.lost.host.clone(),
            end,
            trouble: self.retry.trouble().cloned(),
            run_lease: membership.map_or(0, |membership| membership.life.run_lease),
            resets: self.resets,
        });
    }

    /// Publishes that the session is over.
    fn publish_end(&mut self) {
        if std::mem::replace(&mut self.left, true) {
            return;
        }
        let error = match &self.stage {
            Stage::Over(over) => over.error.clone(),
            _ => Error::Left,
        };
        self.publish();
        self.shared.end(error);
    }
}

impl Drop for Session {
    /// However the session ends, no caller waits for one that is over.
    fn drop(&mut self) {
        self.publish_end();
    }
}

/// Waits for an event of the membership, without end if there is none. Cancel-safe.
async fn next_membership_event(stage: &mut Stage) -> MembershipEvent {
    match stage.membership_mut() {
        Some(membership) => membership.next_event().await,
        None => std::future::pending().await,
    }
}
