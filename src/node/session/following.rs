//! Following `ctl/` and the lease: what a node makes of what it sees. No I/O; what must be done is left to
//! [`Work`](super::Work).

use tokio::time::Instant;

use super::{FIRST_CLOSING_RENEWAL, Session};
use crate::{
    backend::{LeaseId, retry::LONGEST_BACKOFF, watcher::Watched},
    error::{Error, Result},
    node::shared::{HostLost, WorldFacts},
    protocol::{records::ClosedRecord, submission::are_rivals},
    run::mismatch,
    settings::Settings,
};

impl Session {
    pub(super) fn follow_lease(&mut self, alive: bool) {
        let Some(identity) = &mut self.identity else { return };
        let state = identity.lease.borrow_and_update().clone();
        if alive && self.uncertain {
            tracing::info!("contact with the service is back after {:.1} s", state.silence.as_secs_f64());
            self.uncertain = false;
        }
        if !state.alive || state.breaks != identity.breaks {
            identity.breaks = state.breaks;
            self.before.silence = state.silence;
            self.doubt = true;
            self.retry_at = None;
        }
        if !state.alive {
            self.stop_serving();
        }
    }

    /// An answer has shown that the service's data was replaced. Until this node has looked, its stores wait.
    pub(super) fn be_set_back(&mut self) {
        let setbacks = *self.setbacks.borrow_and_update();
        if self.identity.is_some() && self.closed.is_none() {
            self.doubt = true;
            self.retry_at = None;
        } else {
            self.context.monotonic.judge(setbacks);
        }
    }

    pub(super) fn become_uncertain(&mut self) {
        self.uncertain = true;
        let Some(identity) = &self.identity else { return };
        let state = identity.lease.borrow().clone();
        let cause = state.trouble.unwrap_or_else(|| "no answer".to_owned());
        tracing::warn!(
            "no renewal was acknowledged by the service at `{}` for {:.1} s, longer than the lease lives: whether this \
             node still counts is uncertain; its work goes on; the last attempt: {cause}",
            self.context.backend.endpoint(),
            state.acknowledged.elapsed().as_secs_f64()
        );
        let host = self.world.as_ref().and_then(|world| world.host.clone()).filter(|_| !self.context.hosts);
        if let Some(host) = host
            && self.closed.is_none()
        {
            tracing::warn!("lost {host}, which hosts the service: the world has lost a member");
            self.host_lost = Some(HostLost { host, since: Instant::now() });
        }
    }

    pub(super) fn follow(&mut self, watched: Result<Watched>) {
        match watched {
            Ok(Watched::Changes(changes)) => {
                self.watch_trouble = None;
                let read = self.read_revision;
                for event in changes.events.iter().filter(|event| event.revision() > read) {
                    if let Err(error) = self.control.apply(&self.context.keys, event) {
                        self.unreadable(error);
                        return;
                    }
                    self.examine();
                    if self.watcher.is_none() {
                        // It has retired: what came after concerns the node that it becomes, which reads again.
                        return;
                    }
                }
                self.look_at_closing_again();
            }
            Ok(Watched::Compacted) => {
                // Before it joins a node has nothing that could be in doubt, and opens the watch anew.
                self.doubt = self.identity.is_some();
                self.watched_on = None;
                self.watch_at = Instant::now() + LONGEST_BACKOFF;
            }
            Err(error) => {
                let trouble = error.to_string();
                if self.watch_trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("watching the run failed, and is tried on: {trouble}");
                    self.watch_trouble = Some(trouble);
                }
                self.watch_at = Instant::now() + LONGEST_BACKOFF;
            }
        }
    }

    /// A node that waits until a closed run's id may be used again joins once another node has begun the next life.
    fn look_at_closing_again(&mut self) {
        let waits_for =
            self.closed_since.as_ref().filter(|_| self.watched_on.is_some()).map(|(life, _)| life);
        let stands = self.control.closed_record().map(|closed| &closed.life);
        if waits_for.is_some() && waits_for != stands {
            self.retry_at = None;
        }
    }

    /// A control record that cannot be read ends a node that waits; one that trains goes on, and says so.
    pub(super) fn unreadable(&mut self, error: Error) {
        tracing::error!("{error}");
        self.stop_serving();
        self.end = Some(error);
    }

    /// What follows from `ctl/` as it is now.
    pub(super) fn examine(&mut self) {
        let Some(identity) = self.identity.as_mut().filter(|_| self.closed.is_none()) else { return };
        identity.saw_office |=
            self.control.coordinator.as_ref().is_some_and(|office| office.record.node != identity.id);
        let closed = self
            .control
            .closed
            .as_ref()
            .filter(|closed| self.life.as_ref().is_none_or(|life| *life == closed.record.life));
        if let Some(closed) = closed.cloned() {
            if self.is_of_another_job(&closed.record) {
                self.start_over(&closed.record);
            } else {
                self.be_closed(closed.record, closed.lease);
            }
            return;
        }
        if self.world.is_none()
            && let Some(error) = self.other_settings()
        {
            self.end = Some(error);
            return;
        }
        if let Some(error) = self.refusal() {
            // The record goes too: a node that is refused neither decides nor waits.
            self.retire();
            self.end = Some(error);
            return;
        }
        self.examine_round();
        self.examine_coordinator();
    }

    /// There is no `ctl/round`. A term that knew one would wait for changes of a round that is gone; the next one restores it.
    pub(super) fn end_term_of_lost_round(&mut self) {
        if self.serving.as_ref().is_some_and(|serving| serving.had_round) {
            self.stop_serving();
        }
    }

    pub(super) fn examine_round(&mut self) {
        let Some(round) = self.control.round.clone() else {
            // The run's lease is over, or the service lost its data, or somebody discarded data of an older backup:
            // a node that has a world says so in its record.
            self.doubt |= self.world.is_some();
            self.end_term_of_lost_round();
            return;
        };
        if let Some(serving) = &mut self.serving {
            serving.had_round = true;
        }
        let same_life = self.life.as_ref().is_none_or(|life| *life == round.record.life);
        let other = |world: &WorldFacts| {
            let place = &world.place;
            round.record.round < place.round
                || (round.record.round == place.round && round.record.world != place.world)
        };
        let other = self.world.as_ref().is_some_and(|world| !same_life || other(world));
        if other {
            // Once a revision: what the reading of it brings up is acted upon, and the coordinator does the rest.
            self.doubt |= self.doubted_round != round.revision;
            self.doubted_round = round.revision;
            return;
        }
        self.life = Some(round.record.life.clone());
        if same_life {
            self.lose_run_lease(round.lease);
        }
        self.run_lease = round.lease;
        if let (Some(world), Some(change)) = (&self.world, &round.record.change)
            && world.place.is_of(&round.record)
            && self.shared.waiting() == 0
        {
            tracing::info!("round {} is about to be replaced: {}", round.record.round, change.why);
        }
    }

    /// If the run's lease is another than before, everything that hung on it is lost. The stores must know that before
    /// this node's record stands in a service that came back empty: until then all of their writes are refused.
    pub(super) fn lose_run_lease(&mut self, now: LeaseId) {
        if self.run_lease != 0 && self.run_lease != now {
            self.before.past_run_leases.insert(self.run_lease);
            self.resets += 1;
            self.run_lease = now;
            self.publish();
        }
    }

    pub(super) fn other_settings(&self) -> Option<Error> {
        let settings = &self.context.settings;
        let of_office = self
            .control
            .coordinator
            .as_ref()
            .map(|office| (office.record.sizes(), format!("`{}`", office.record.name)));
        let of_round = self.control.round_record().map(|round| (round.sizes(), "an earlier node".to_owned()));
        let (run, by) = of_round.or(of_office)?;
        mismatch(settings, run, &by)
    }

    /// Why this node is refused: it is of another submission than the run.
    fn refusal(&self) -> Option<Error> {
        let identity = self.identity.as_ref().filter(|_| self.world.is_none())?;
        let refused = self.control.round_record()?.refused.as_ref()?;
        let Settings { run, submission, .. } = &self.context.settings;
        let own = submission.as_deref().filter(|own| refused.refuses(Some(own), identity.created))?;
        Some(Error::Mismatch { message: refused.message(&run.run_id, own) })
    }

    /// Whether this is the closing of another submission, whose run this node only waited in.
    pub(super) fn is_of_another_job(&self, closed: &ClosedRecord) -> bool {
        let own = self.context.settings.submission.as_deref();
        self.world.is_none() && are_rivals(closed.submission.as_deref(), own)
    }

    /// The run of another submission is over: joins again, to begin a run of this one.
    pub(super) fn start_over(&mut self, closed: &ClosedRecord) {
        let other = closed.submission.as_deref().unwrap_or_default();
        tracing::info!("the run of submission `{other}` is closed; this node begins a new one");
        self.retire();
        self.past_life = None;
    }

    pub(super) fn be_closed(&mut self, closed: ClosedRecord, lease: LeaseId) {
        if self.closed.is_none() {
            let ClosedRecord { by, why, outcome, .. } = &closed;
            tracing::info!("the run was closed as {} by `{by}`: {why}", outcome.as_str());
        }
        self.stop_serving();
        let leases = [lease, self.run_lease];
        self.closing_leases = leases.into_iter().filter(|lease| *lease != 0).collect();
        self.renew_closing_at = Instant::now() + self.context.entropy.part_of(FIRST_CLOSING_RENEWAL);
        self.closed = Some(closed);
    }
}
