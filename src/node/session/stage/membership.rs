//! The state of a node that is in the run: its identity, lease and record, its life, its world, and its term as
//! coordinator.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::{
    backend::{Header, KeyValue, LeaseId, Revision},
    coordinator::{End, TermFence},
    lease::{Keeper, LeaseState},
    node::{control::Control, session::owner::Owner, snapshot::WorldFacts},
    protocol::{
        identity::NodeId,
        records::{NodeRecord, Phase, Record, RoundRecord, WorldMembership},
        returning::Before,
        standing::has_unread_plan,
    },
    run::Context,
};

/// The lease of a node, with what is known under it.
pub(in super::super) struct HeldLease {
    pub(in super::super) keeper: Keeper,
    state: watch::Receiver<LeaseState>,
    /// The interruptions of the lease that were noticed.
    interruptions: u64,
    /// How long the service was silent in the last interruption, until the node has read what that changed.
    pub(in super::super) silence: Duration,
    /// Whether a coordinator was observed under this lease. If so, an absent member is not merely returning from an
    /// interruption that would also have ended this lease.
    pub(in super::super) observed_coordinator: bool,
    /// Whether it was reported that the lease may have expired.
    pub(in super::super) uncertain: bool,
}

impl HeldLease {
    /// Keeps a lease alive whose grant was sent at `sent`.
    pub(in super::super) fn start(
        context: &Arc<Context>,
        lease: LeaseId,
        ttl: Duration,
        sent: Instant,
    ) -> Self {
        let keeper = Keeper::start(context, lease, ttl, sent);
        Self {
            state: keeper.state(),
            keeper,
            interruptions: 0,
            silence: Duration::ZERO,
            observed_coordinator: false,
            uncertain: false,
        }
    }

    pub(in super::super) fn id(&self) -> LeaseId {
        self.state.borrow().lease
    }

    pub(in super::super) fn state(&self) -> LeaseState {
        self.state.borrow().clone()
    }

    /// Waits until the state changes.
    pub(in super::super) async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            // The keep-alive task has ended, and its last state was read.
            std::future::pending::<()>().await;
        }
    }

    /// Reads a changed state. Returns whether the lease was interrupted or has ended.
    pub(in super::super) fn update(&mut self) -> (LeaseState, bool) {
        let state = self.state.borrow_and_update().clone();
        let interrupted = !state.alive || state.breaks != self.interruptions;
        if interrupted {
            self.interruptions = state.breaks;
            self.silence = state.silence;
        }
        if state.alive && self.uncertain {
            let silence = state.silence.as_secs_f64();
            tracing::info!("contact with the service is back after {silence:.1} s");
            self.uncertain = false;
        }
        (state, interrupted)
    }

    /// When to report that the lease may have expired, unless that was reported.
    pub(in super::super) fn uncertain_at(&self) -> Option<Instant> {
        (!self.uncertain).then(|| self.state.borrow().uncertain_at())
    }
}

/// The record of a node as it is stored in the service.
pub(in super::super) struct StoredRecord {
    pub(in super::super) record: NodeRecord,
    /// Each write of the record compares this revision. An earlier attempt may still be applied, and would otherwise
    /// restore an old record.
    pub(in super::super) revision: Revision,
    /// Whether it must be written even if it does not differ.
    pub(in super::super) is_stale: bool,
}

/// The life of the run that a node is in.
#[derive(Default)]
pub(in super::super) struct Life {
    /// Its name. `None` until a `ctl/round` was read.
    pub(in super::super) name: Option<String>,
    /// The lease of the run. 0 while it is not known.
    pub(in super::super) run_lease: LeaseId,
    /// The leases that the run had before. Each restored world takes a new one.
    past_run_leases: BTreeSet<LeaseId>,
}

impl Life {
    /// Sets the lease of the run. Returns whether the run had another lease, so that everything attached to that is
    /// lost.
    pub(in super::super) fn replace_run_lease(&mut self, lease: LeaseId) -> bool {
        let replaced = self.run_lease != 0 && self.run_lease != lease;
        if replaced {
            self.past_run_leases.insert(self.run_lease);
            self.run_lease = lease;
        }
        replaced
    }
}

/// A coordinator's task. Dropping it ends the task, but not the term.
pub(in super::super) struct CoordinatorTask {
    pub(in super::super) term: TermFence,
    pub(in super::super) task: JoinHandle<End>,
    /// Whether there was a `ctl/round` in this term. If it is deleted, what the task knows is outdated.
    pub(in super::super) had_round: bool,
}

impl Drop for CoordinatorTask {
    fn drop(&mut self) {
        // A detached task would continue to decide without its node.
        self.task.abort();
    }
}

/// What a node does as coordinator, or to become coordinator.
#[derive(Default)]
pub(in super::super) struct Candidacy {
    pub(in super::super) task: Option<CoordinatorTask>,
    /// The terms of this node that have ended, by their nonces.
    ended_terms: BTreeSet<String>,
    /// When to campaign.
    pub(in super::super) campaign_at: Option<Instant>,
}

impl Candidacy {
    pub(in super::super) fn campaign_in(&mut self, time: Duration) {
        self.campaign_at = Some(Instant::now() + time);
    }

    /// Ends the coordinator's task, if there is one.
    pub(in super::super) fn stop_coordinator(&mut self) {
        if let Some(task) = self.task.take() {
            self.ended_terms.insert(task.term.record.nonce.clone());
        }
    }

    pub(in super::super) fn has_ended(&self, term: &TermFence) -> bool {
        self.ended_terms.contains(&term.record.nonce)
    }

    /// There is no `ctl/round`. A term that knew one would wait for changes of a round that was deleted. The next term
    /// restores it.
    pub(in super::super) fn end_term_of_lost_round(&mut self) {
        if self.task.as_ref().is_some_and(|task| task.had_round) {
            self.stop_coordinator();
        }
    }

    /// Waits for the end of the coordinator's task. `None` if it was aborted or has panicked.
    async fn ended(&mut self) -> Option<End> {
        match &mut self.task {
            Some(task) => {
                let ended = (&mut task.task).await;
                ended.inspect_err(|error| tracing::error!("the task of the coordinator failed: {error}")).ok()
            }
            None => std::future::pending().await,
        }
    }
}

/// An event of a membership.
pub(in super::super) enum MembershipEvent {
    /// The state of the lease has changed.
    Lease,
    /// The coordinator's task has ended.
    TermEnded(Option<End>),
}

/// A node in the run.
pub(in super::super) struct Membership {
    pub(in super::super) id: NodeId,
    /// The revision at which the record was created.
    pub(in super::super) created: Revision,
    pub(in super::super) lease: HeldLease,
    pub(in super::super) record: StoredRecord,
    pub(in super::super) life: Life,
    /// The world that this node is in.
    pub(in super::super) world: Option<Arc<WorldFacts>>,
    /// The attempt whose plan was read last.
    pub(in super::super) read_attempt: Option<String>,
    /// The cluster, and the highest revision of a linearizable response.
    header: Header,
    /// Whether an interruption may have changed something that was not read yet.
    pub(in super::super) needs_resync: bool,
    /// The revision of the `ctl/round` because of which the node has read everything again.
    last_resync_revision: Revision,
    pub(in super::super) candidacy: Candidacy,
    /// When to compare what is known of `ctl/` with the service.
    pub(in super::super) check_at: Instant,
}

impl Membership {
    /// A node whose record was written at `revision`, according to a response with this header.
    pub(in super::super) fn new(
        id: NodeId,
        lease: HeldLease,
        record: NodeRecord,
        revision: Revision,
        header: Header,
        check_at: Instant,
    ) -> Self {
        // If the revision is earlier, an earlier attempt has written the record, perhaps with another content.
        let is_stale = revision != header.revision;
        Self {
            id,
            created: revision,
            lease,
            record: StoredRecord { record, revision, is_stale },
            life: Life::default(),
            world: None,
            read_attempt: None,
            header,
            needs_resync: false,
            last_resync_revision: 0,
            candidacy: Candidacy { campaign_at: Some(Instant::now()), ..Candidacy::default() },
            check_at,
        }
    }

    /// Waits for an event. Cancel-safe.
    pub(in super::super) async fn next_event(&mut self) -> MembershipEvent {
        tokio::select! {
            biased;
            () = self.lease.changed() => MembershipEvent::Lease,
            ended = self.candidacy.ended() => MembershipEvent::TermEnded(ended),
        }
    }

    pub(in super::super) fn place(&self) -> Option<&WorldMembership> {
        self.world.as_ref().map(|world| &world.place)
    }

    /// Whether the stored record must be updated. Its world counts only while the world is restored from the records,
    /// because otherwise no node reads it.
    pub(in super::super) fn record_needs_update(
        &self,
        context: &Context,
        owner: &Owner,
        control: &Control,
    ) -> bool {
        let stored = &self.record.record;
        let restoring = control.round_record().is_some_and(|round| round.phase == Phase::Restoring);
        let world = if restoring { self.place().cloned() } else { stored.world.clone() };
        self.record.is_stale || owner.desired_record(context, world) != *stored
    }

    /// Whether `ctl/round` names a world whose plan must be read.
    pub(in super::super) fn has_unread_round(&self, control: &Control) -> bool {
        let unread = |round| has_unread_plan(round, self.place(), self.read_attempt.as_deref());
        control.round_record().is_some_and(unread)
    }

    /// Whether `ctl/round` contradicts the world or the life of this node.
    pub(in super::super) fn contradicts(&self, round: &RoundRecord) -> bool {
        let same_life = self.life.name.as_ref().is_none_or(|life| *life == round.life);
        self.place().is_some_and(|place| {
            let other_world = round.round == place.round && round.world != place.world;
            !same_life || round.round < place.round || other_world
        })
    }

    /// Requests a resync because of this `ctl/round`, once for each revision of it.
    pub(in super::super) fn request_resync(&mut self, revision: Revision) {
        self.needs_resync |= self.last_resync_revision != revision;
        self.last_resync_revision = revision;
    }

    /// Records the header of a linearizable read of `ctl/`.
    pub(in super::super) fn record_header(&mut self, header: Header) {
        self.header = header;
    }

    /// Raises the highest revision that this node has read.
    pub(in super::super) fn raise_revision(&mut self, revision: Revision) {
        self.header.revision = self.header.revision.max(revision);
    }

    /// What this node knew before an interruption.
    pub(in super::super) fn before(&self, set_back: bool) -> Before {
        Before {
            life: self.life.name.clone(),
            world: self.place().cloned(),
            cluster_id: self.header.cluster_id,
            revision: self.header.revision,
            silence: self.lease.silence,
            run_lease: self.life.run_lease,
            past_run_leases: self.life.past_run_leases.clone(),
            set_back,
        }
    }

    /// Adopts the stored record, which an attempt whose response was lost may have written.
    pub(in super::super) fn adopt_stored_record(&mut self, item: &KeyValue) {
        self.record.revision = item.mod_revision;
        match NodeRecord::decode(&String::from_utf8_lossy(&item.key), &item.value) {
            Ok(record) => self.record.record = record,
            Err(error) => {
                tracing::warn!(
                    "the record of this node was changed by another client; writing it again: {error}"
                );
                self.record.is_stale = true;
            }
        }
    }

    /// The term of this node that is still stored although it has ended. Meanwhile no other node can become
    /// coordinator.
    pub(in super::super) fn term_to_resign<'control>(
        &self,
        control: &'control Control,
    ) -> Option<&'control TermFence> {
        let term = control.coordinator.as_ref()?;
        (term.record.node == self.id && self.candidacy.has_ended(term)).then_some(term)
    }
}
