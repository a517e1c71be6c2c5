//! The task of a node: it holds the lease, follows `ctl/`, does the work that is due, and publishes what it knows.
//!
//! Each state of a node is a type ([`Stage`]). The state, the wishes of the owner ([`Owner`]), and the time decide
//! which work is due ([`next_step`]). The session does one piece of [`Work`] at a time, and [`Session::finish`]
//! decides what follows: the next work, a pause, or the end. Work that failed is repeated after a pause, as long as it is
//! due.

mod checking;
mod closed;
mod closing;
mod coordinating;
mod ending;
mod following;
mod inquiring;
mod joining;
mod known;
mod leaving;
mod lifeline_events;
mod lifelines;
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
    lifelines::{Watching, next_lifeline_event},
    owner::Owner,
    retry::Retry,
    stage::{Membership, MembershipEvent, Stage},
};
use super::{
    shared::Shared,
    snapshot::{HostLost, Snapshot, State},
};
use crate::{
    error::{Error, Result},
    lifeline::Lifelines,
    protocol::work::{Duties, Situation, Step, TermDuty, Work, next_step},
    run::Context,
};

/// What a node writes, for messages.
const NODE_WRITES: &str = "what this node writes";

/// The pause between attempts while the run is restored in a service that lost it.
pub(super) const RESTORE_PAUSE: Duration = Duration::from_millis(200);

/// Longer than any timer.
const NEVER: Duration = Duration::from_secs(3600);

/// Why the owner's world has ended, although no record announces a change of it.
#[derive(Default)]
struct LostWorld {
    /// The next round was formed without this node.
    excluded: Option<String>,
    /// The node that hosts the service is lost: it was silent for a TTL, or its address refuses.
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
    /// The lifelines, unless this node has none.
    watching: Option<Watching>,
    /// How often the run was found under another lease, which ends its stores.
    resets: u64,
    /// How many responses to this node showed that the data of the service was replaced.
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
        lifelines: Option<Box<dyn Lifelines>>,
    ) -> Self {
        let lifeline_port = lifelines.as_ref().map(|lifelines| lifelines.port());
        Self {
            shared,
            commands,
            began: Instant::now(),
            stage: Stage::default(),
            owner: Owner::new(address, port, lifeline_port),
            watching: lifelines.map(Watching::new),
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
            check_at: Some(self.moment(membership.check_at)),
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
            Work::CheckControl => self.check_control().await,
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

    /// Decides what follows from the result of a piece of work.
    fn finish(&mut self, work: Work, result: Result<()>) {
        // Work on a timer sets its next time itself, so a failure of it delays no other work.
        if matches!(work, Work::RenewClosing | Work::ReportUncertainty | Work::CheckControl) {
            return;
        }
        let error = match result {
            Ok(()) => {
                if matches!(work, Work::Close | Work::Join | Work::PutRecord | Work::Campaign) {
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
        // A certificate may be missing for a moment while it is renewed. That does not end a node that is in a run.
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
        let interrupted = self.known.interrupted();
        tokio::select! {
            biased;
            command = self.commands.recv() => match command {
                Some(command) => self.handle_command(command),
                None => self.publish_end(),
            },
            // Its sender is in the context of this node, so this cannot fail.
            _ = self.setbacks.changed() => self.handle_setback(),
            () = self.context.record_missing.notified() => self.handle_missing_record(),
            event = next_membership_event(&mut self.stage) => self.handle_membership_event(event),
            event = next_lifeline_event(&mut self.watching) => self.handle_lifeline_event(event),
            () = interrupted.notified() => self.question_host(),
            () = sleep_until(until) => {}
            report = self.known.next_report() => self.handle_watch_report(report),
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Seek { port, after } => {
                if let Some(place) = self.stage.membership().and_then(Membership::place) {
                    if after.as_ref() != Some(place) {
                        // A world formed while the command was in flight, with the previous port. The owner receives it
                        // now.
                        return;
                    }
                    self.owner.lowest_round = self.owner.lowest_round.max(place.round + 1);
                }
                self.owner.seek(port);
                self.retry.end_pause();
            }
            Command::WorldReturned => self.connect_lifelines(),
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

    /// Whether the other nodes can read that this node is about to leave, or it does not concern them.
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
        // Once a change is announced, the world is about to end, and a waiting node expects a place in the next one.
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
            excluded: self.lost.excluded.clone(),
            host_lost: self.lost.host.clone(),
            end,
            trouble: self.retry.trouble().cloned(),
            run_lease: membership.map_or(0, |membership| membership.life.run_lease),
            resets: self.resets,
            false_alarms: self.owner.false_alarms.count,
            drained: self.owner.drained.clone(),
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
    /// No caller may wait for a session that has ended, however it ended.
    fn drop(&mut self) {
        self.publish_end();
    }
}

/// Waits for an event of the membership. Never returns if there is none. Cancel-safe.
async fn next_membership_event(stage: &mut Stage) -> MembershipEvent {
    match stage.membership_mut() {
        Some(membership) => membership.next_event().await,
        None => std::future::pending().await,
    }
}
