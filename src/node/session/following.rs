//! Following `ctl/` and the lease: what a node concludes from what it observes. There is no I/O here; what has to be done
//! follows from the state ([`Work`](crate::protocol::work::Work)).

use tokio::time::Instant;

use super::{Session, membership::MembershipEvent, stage::Stage};
use crate::{
    backend::{LeaseId, retry::LONGEST_BACKOFF, watcher::Watched},
    error::{Error, Result},
    node::shared::HostLost,
    run::mismatch,
    settings::Settings,
};

impl Session {
    pub(super) fn handle_membership_event(&mut self, event: MembershipEvent) {
        match event {
            MembershipEvent::Lease => self.handle_lease_update(),
            MembershipEvent::TermEnded(end) => self.handle_term_end(end),
        }
    }

    fn handle_lease_update(&mut self) {
        let Some(membership) = self.stage.membership_mut() else { return };
        let (state, interrupted) = membership.lease.update();
        if interrupted {
            membership.needs_resync = true;
            self.retry.end_pause();
        }
        if !state.alive {
            membership.candidacy.stop_coordinator();
        }
    }

    /// An answer has shown that the data of the service was replaced. The stores of this node wait until it has read what
    /// that changed.
    pub(super) fn handle_setback(&mut self) {
        if let Stage::In(membership) = &mut self.stage {
            self.setbacks.borrow_and_update();
            membership.needs_resync = true;
            self.retry.end_pause();
        } else {
            self.accept_setbacks();
        }
    }

    /// Lets the stores continue: nothing that this node has written can be lost by the replacements of the data so far.
    pub(super) fn accept_setbacks(&mut self) {
        let setbacks = *self.setbacks.borrow_and_update();
        self.context.monotonic.judge(setbacks);
    }

    /// Reports that the lease may have expired.
    pub(super) fn report_uncertainty(&mut self) {
        let Stage::In(membership) = &mut self.stage else { return };
        membership.lease.uncertain = true;
        let state = membership.lease.state();
        let cause = state.trouble.unwrap_or_else(|| "no answer".to_owned());
        tracing::warn!(
            "no renewal was acknowledged by the service at `{}` for {:.1} s, longer than the lease lives: whether this \
             node still counts is uncertain; its work goes on; the last attempt: {cause}",
            self.context.backend.endpoint(),
            state.acknowledged.elapsed().as_secs_f64()
        );
        let host = membership.world.as_ref().and_then(|world| world.host.clone());
        if let Some(host) = host.filter(|_| !self.context.hosts) {
            tracing::warn!("lost {host}, which hosts the service: the world has lost a member");
            self.lost.host = Some(HostLost { host, since: Instant::now() });
        }
    }

    pub(super) fn handle_watch_report(&mut self, report: Result<Watched>) {
        match report {
            Ok(Watched::Changes(changes)) => {
                self.known.clear_watch_trouble();
                for event in &changes.events {
                    match self.known.apply(&self.context, event) {
                        Ok(true) => self.reconcile(),
                        Ok(false) => {}
                        Err(error) => {
                            self.end_with_unreadable_record(error);
                            return;
                        }
                    }
                    if !self.known.is_watched() {
                        // The membership has ended. The rest concerns the node that joins next, which reads everything.
                        return;
                    }
                }
                self.retry_if_next_life_has_begun();
            }
            Ok(Watched::Compacted) => {
                match &mut self.stage {
                    Stage::In(membership) => membership.needs_resync = true,
                    // Nothing that a joining node has written can be lost. It opens the watch again.
                    Stage::Joining(joining) => joining.outside.watched_on = None,
                    Stage::Outside(_) | Stage::Closed(_) | Stage::Over(_) => {}
                }
                self.known.pause_watch(LONGEST_BACKOFF);
            }
            Err(error) => {
                self.known.log_watch_trouble(&error);
                self.known.pause_watch(LONGEST_BACKOFF);
            }
        }
    }

    /// Concludes what follows from `ctl/` as it is now.
    pub(super) fn reconcile(&mut self) {
        if matches!(self.stage, Stage::Closed(_)) {
            return;
        }
        let Some(membership) = self.stage.membership_mut() else { return };
        let office = self.known.control.coordinator.as_ref();
        membership.lease.observed_coordinator |=
            office.is_some_and(|office| office.record.node != membership.id);
        let closed = self.known.control.closed.as_ref();
        let is_mine = |life: &String| membership.life.name.as_ref().is_none_or(|own| own == life);
        if let Some(closed) = closed.filter(|closed| is_mine(&closed.record.life)).cloned() {
            if self.is_of_another_job(&closed.record) {
                if matches!(self.stage, Stage::In(_)) {
                    self.start_over(&closed.record);
                }
            } else {
                self.handle_run_closed(closed.record, closed.lease);
            }
            return;
        }
        let Stage::In(membership) = &self.stage else { return };
        if membership.world.is_none()
            && let Some(error) = self.settings_mismatch()
        {
            self.end_with(error);
            return;
        }
        if let Some(error) = self.refusal() {
            // The record is deleted too: a node that is refused neither decides nor waits.
            self.leave_membership();
            self.end_with(error);
            return;
        }
        self.reconcile_round();
        self.reconcile_coordinator();
    }

    /// Concludes what follows from `ctl/round` as it is now.
    pub(super) fn reconcile_round(&mut self) {
        let Stage::In(membership) = &mut self.stage else { return };
        let Some(round) = self.known.control.round.clone() else {
            // The lease of the run has expired, or the service lost its data, or a node has discarded the data of an older
            // backup: a node that has a world says so in its record.
            membership.needs_resync |= membership.world.is_some();
            membership.candidacy.end_term_of_lost_round();
            return;
        };
        if let Some(task) = &mut membership.candidacy.task {
            task.had_round = true;
        }
        if membership.contradicts(&round.record) {
            // A resync reads what follows for this node. The rest is up to the coordinator.
            membership.request_resync(round.revision);
            return;
        }
        let same_life = membership.life.name.as_ref().is_none_or(|life| *life == round.record.life);
        membership.life.name = Some(round.record.life.clone());
        if same_life {
            self.handle_run_lease_change(round.lease);
        }
        let Stage::In(membership) = &mut self.stage else { return };
        membership.life.run_lease = round.lease;
        if let (Some(place), Some(change)) = (membership.place(), &round.record.change)
            && place.is_of(&round.record)
            && self.shared.waiting() == 0
        {
            tracing::info!("round {} is about to be replaced: {}", round.record.round, change.why);
        }
    }

    /// If the run has another lease than before, everything attached to the old one is lost. The stores must know that
    /// before the record of this node is written to a service that came back empty: until then all their writes are
    /// rejected.
    pub(super) fn handle_run_lease_change(&mut self, lease: LeaseId) {
        let Stage::In(membership) = &mut self.stage else { return };
        if membership.life.replace_run_lease(lease) {
            self.resets += 1;
            self.publish();
        }
    }

    /// Why this node cannot be in the run: its settings are not those of the run.
    pub(super) fn settings_mismatch(&self) -> Option<Error> {
        let control = &self.known.control;
        let of_office = control
            .coordinator
            .as_ref()
            .map(|office| (office.record.sizes(), format!("`{}`", office.record.name)));
        let of_round = control.round_record().map(|round| (round.sizes(), "an earlier node".to_owned()));
        let (run, by) = of_round.or(of_office)?;
        mismatch(&self.context.settings, run, &by)
    }

    /// Why this node is refused: it is of another submission than the run.
    fn refusal(&self) -> Option<Error> {
        let Stage::In(membership) = &self.stage else { return None };
        if membership.world.is_some() {
            return None;
        }
        let refused = self.known.control.round_record()?.refused.as_ref()?;
        let Settings { run, submission, .. } = &self.context.settings;
        let own = submission.as_deref().filter(|own| refused.refuses(Some(own), membership.created))?;
        Some(Error::Mismatch { message: refused.message(&run.run_id, own) })
    }
}
