//! Follows `ctl/` and the lease, and draws conclusions from them. There is no I/O here. The work that is due follows
//! from the state ([`Work`](crate::protocol::work::Work)).

use tokio::time::Instant;

use super::{
    Session,
    stage::{MembershipEvent, Stage},
};
use crate::{
    backend::{Event, KeyValue, LeaseId, retry::LONGEST_BACKOFF, watcher::Watched},
    error::{Error, Result},
    node::snapshot::HostLost,
    protocol::records::{ChangeKind, DrainRecord, Record as _, after_colon},
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

    /// A response has shown that the data of the service was replaced. The stores of this node wait until it has read
    /// the consequences.
    pub(super) fn handle_setback(&mut self) {
        if let Stage::In(membership) = &mut self.stage {
            self.setbacks.borrow_and_update();
            membership.needs_resync = true;
            self.retry.end_pause();
        } else {
            self.accept_setbacks();
        }
    }

    /// A store was refused because this node has no record: an observer has reported it dead, or the service lost its
    /// data.
    pub(super) fn handle_missing_record(&mut self) {
        if let Stage::In(membership) = &mut self.stage {
            membership.needs_resync = true;
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
            "the service at `{}` has acknowledged no renewal for {:.1} s, so the lease of this node may have expired; \
             its work continues; the last attempt: {cause}",
            self.context.backend.endpoint(),
            state.acknowledged.elapsed().as_secs_f64()
        );
        let ttl = state.ttl.as_secs_f64();
        self.lose_host(format!("the service has not answered for {ttl} s"));
    }

    /// The node that hosts the service is lost, if there is one. The world has thereby lost a member.
    pub(super) fn lose_host(&mut self, evidence: String) {
        let Stage::In(membership) = &self.stage else { return };
        let host = membership.world.as_ref().and_then(|world| world.host.clone());
        if let Some(host) = host.filter(|_| !self.context.hosts && self.lost.host.is_none()) {
            tracing::warn!("lost {host}, which hosts the service: {evidence}");
            self.lost.host = Some(HostLost { host, since: Instant::now(), evidence });
        }
    }

    pub(super) fn handle_watch_report(&mut self, report: Result<Watched>) {
        match report {
            Ok(Watched::Changes(changes)) => {
                self.known.clear_watch_trouble();
                for event in &changes.events {
                    if let Event::Put(item) = event {
                        self.handle_drain(item);
                    }
                    match self.known.apply(&self.context, event) {
                        Ok(true) => self.reconcile(),
                        Ok(false) => {}
                        Err(error) => {
                            self.end_with_unreadable_record(error);
                            return;
                        }
                    }
                    if !self.known.is_watched() {
                        // The membership has ended. The remaining steps concern the node that joins next, which reads
                        // everything.
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

    /// An operator may have requested by this record that this node leaves.
    pub(super) fn handle_drain(&mut self, item: &KeyValue) {
        let Some(membership) = self.stage.membership() else { return };
        let key = self.context.keys.drain(membership.id);
        if item.key != key.as_bytes() || self.owner.drained.is_some() {
            return;
        }
        match DrainRecord::decode(&key, &item.value) {
            Ok(request) => {
                tracing::info!(
                    "`{}` requests that this node leaves{}",
                    request.by,
                    after_colon(&request.why)
                );
                self.owner.drain(request);
            }
            Err(error) => tracing::warn!("a request that this node leaves is ignored: {error}"),
        }
    }

    /// Draws the conclusions from the present records under `ctl/`.
    pub(super) fn reconcile(&mut self) {
        if matches!(self.stage, Stage::Closed(_)) {
            return;
        }
        let Some(membership) = self.stage.membership_mut() else { return };
        let term = self.known.control.coordinator.as_ref();
        membership.lease.observed_coordinator |= term.is_some_and(|term| term.record.node != membership.id);
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

    /// Draws the conclusions from the present `ctl/round`.
    pub(super) fn reconcile_round(&mut self) {
        let Stage::In(membership) = &mut self.stage else { return };
        let Some(round) = self.known.control.round.clone() else {
            // The lease of the run has expired, or the service lost its data, or a node has discarded the data of an
            // older backup. A node that has a world writes that into its record.
            membership.needs_resync |= membership.world.is_some();
            membership.candidacy.end_term_of_lost_round();
            return;
        };
        if let Some(task) = &mut membership.candidacy.task {
            task.had_round = true;
        }
        if membership.contradicts(&round.record) {
            // A resync reads the consequences for this node. The coordinator does the rest.
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
        let (Some(place), Some(change)) = (membership.place(), &round.record.change) else { return };
        if !place.is_of(&round.record) {
            return;
        }
        let is_me = |name: &String| membership.world.as_ref().is_some_and(|world| world.name == *name);
        if change.kind == ChangeKind::Lost && change.names.iter().any(is_me) {
            // The other nodes have read that this node is dead, so its record may be gone.
            membership.request_resync(round.revision);
        }
        if self.shared.waiting() == 0 {
            tracing::info!("round {} is about to be replaced: {}", round.record.round, change.why);
        }
    }

    /// If the run has another lease than before, everything attached to the old lease is lost. The stores must know
    /// that before the record of this node is written to a service that lost its data. Until then all their writes are
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
        let of_coordinator =
            control.coordinator.as_ref().map(|term| (term.record.sizes(), format!("`{}`", term.record.name)));
        let of_round = control.round_record().map(|round| (round.sizes(), "an earlier node".to_owned()));
        let (run, by) = of_round.or(of_coordinator)?;
        mismatch(&self.context.settings, run, &by)
    }

    /// Why this node is refused: it belongs to another submission than the run.
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
