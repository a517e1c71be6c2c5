//! The task that is a node: it holds the lease, follows `ctl/`, does what is due, and publishes what it knows.
//!
//! Whatever must be done against the service is a [`Work`], chosen by what is known and done one at a time; what fails
//! is done again after a while, for as long as it is due. So there is one place that retries, and an order that can be
//! read off one function.

mod ending;
mod entering;
mod following;
mod office;
mod returning;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    control::Control,
    joining::Joining,
    shared::{HostLost, Shared, Snapshot, State, WorldFacts},
};
use crate::{
    backend::{
        LeaseId, Revision,
        retry::{Backoff, RetryPolicy},
        watcher::{Watched, Watcher},
    },
    coordinator::{End, Office},
    error::{Error, Result},
    lease::{Keeper, LeaseState},
    protocol::{
        identity::NodeId,
        records::{ClosedRecord, LastWorld, NodeRecord, Outcome},
        returning::Before,
    },
    run::Context,
};

/// What its handle asks of a session. An answer that never comes means that the session is over.
#[derive(Debug)]
pub(super) enum Command {
    /// Take part in the next round, unless there is a world that its owner has not had yet.
    Seek {
        /// Where it serves as master from now on; none keeps what it was.
        port: Option<u16>,
        /// The world that its owner has had, and has done with.
        after: Option<LastWorld>,
    },
    /// Tell the others that this node is about to go.
    MarkLeaving {
        /// Answered once they can see it.
        done: oneshot::Sender<()>,
    },
    /// Go.
    Leave {
        /// Answered once the service knows.
        done: oneshot::Sender<()>,
    },
    /// Close the run.
    Close {
        /// How.
        outcome: Outcome,
        /// Why.
        why: String,
        /// Answered with whether it is closed.
        done: oneshot::Sender<bool>,
    },
}

/// Something to be done against the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Close the run.
    Close,
    /// Leave it.
    Leave,
    /// Read what a break has done.
    Return,
    /// Get into the run.
    Join,
    /// Put this node's record, which is not what it should be.
    Record,
    /// Read this node's shard of the plan.
    Shard,
    /// Give back an office of this node whose term is over.
    Resign,
    /// Try to become coordinator.
    Campaign,
}

/// Who this node is, while it is in the run.
struct Identity {
    id: NodeId,
    keeper: Keeper,
    lease: watch::Receiver<LeaseState>,
    record: NodeRecord,
    /// The mod revision of its record. Every write of the record compares it: an attempt that was given up may still
    /// land, and would bring an old record back.
    record_revision: Revision,
    /// The revision at which its record was put first.
    created: Revision,
    /// Whether a coordinator was seen under this lease: then an absent member is not merely returning from a break that
    /// ended this lease too.
    saw_office: bool,
    /// The lease's breaks that were looked into.
    breaks: u64,
}

/// A coordinator's task. Dropping it ends the task, and not the office.
struct Serving {
    office: Office,
    task: JoinHandle<End>,
    /// Whether there was a `ctl/round` in this term. If that is deleted, what the task knows is of the past.
    had_round: bool,
}

impl Drop for Serving {
    fn drop(&mut self) {
        // A task that is merely let go of would decide on without its node.
        self.task.abort();
    }
}

struct Closing {
    outcome: Outcome,
    why: String,
    /// The lease of the closing's record, the same in all attempts. It is revoked only once it is known that none of
    /// them was applied, and that none can be.
    lease: LeaseId,
    /// Whether the lease was requested.
    granted: bool,
    /// Whether the coordinator found that it is due, which nobody stops waiting for.
    due: bool,
    askers: Vec<oneshot::Sender<bool>>,
}

impl Closing {
    fn new(context: &Context, outcome: Outcome, why: String) -> Self {
        let lease = NodeId::from_random(context.entropy.bits()).first_lease();
        Self { outcome, why, lease, granted: false, due: false, askers: Vec::new() }
    }
}

/// One node's session.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own; their product is no state machine"
)]
pub(super) struct Session {
    context: Arc<Context>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    address: String,
    port: u16,

    identity: Option<Identity>,
    joining: Option<Joining>,
    closed_since: Option<(String, Instant)>,
    /// The connection of the watch that was opened before joining last read `ctl/`, while joining relies on it: for the
    /// next life of a closed run.
    watched_on: Option<u64>,
    seeking: bool,
    seeks: u64,
    leaving: bool,
    leaves: Vec<oneshot::Sender<()>>,
    marks: Vec<oneshot::Sender<()>>,
    closing: Option<Closing>,
    left: bool,

    control: Control,
    watcher: Option<Watcher>,
    watch_at: Instant,
    /// What watching last failed with, said once.
    watch_trouble: Option<String>,
    /// `ctl/` was read at this revision; what a watch reports of before is older.
    read_revision: Revision,
    life: Option<String>,
    /// The life that it was in before it was dropped: if that is closed meanwhile, this node ends with it.
    past_life: Option<String>,
    world: Option<Arc<WorldFacts>>,
    read_world: Option<String>,
    doubt: bool,
    doubted_round: Revision,
    /// How often the service's data was replaced, as far as the answers that this node received show it.
    setbacks: watch::Receiver<u64>,
    record_due: bool,
    before: Before,

    serving: Option<Serving>,
    ended_terms: BTreeSet<String>,
    campaign_at: Option<Instant>,
    coordinator_name: Option<String>,

    closed: Option<ClosedRecord>,
    closing_leases: Vec<LeaseId>,
    renew_closing_at: Instant,
    dropped: Option<String>,
    host_lost: Option<HostLost>,
    end: Option<Error>,
    run_lease: LeaseId,
    resets: u64,
    trouble: Option<Error>,
    uncertain: bool,
    retry_at: Option<Instant>,
    backoff: Backoff,
}

/// What a node writes, for messages.
const NODE_WRITES: &str = "what this node writes";

/// How often those who are still there renew the closing and the run's lease.
const CLOSING_RENEWAL: Duration = Duration::from_secs(20);

/// The first of these renewals comes at a random moment within this time, so that N nodes do not send 2 N of them at
/// once, and those that leave soon send none. The run's lease still has a half of its time when the run is closed.
const FIRST_CLOSING_RENEWAL: Duration = Duration::from_secs(10);

/// Between looks at a store that is being put back.
const RESTORE_PAUSE: Duration = Duration::from_millis(200);

impl Session {
    pub(super) fn new(
        context: Arc<Context>,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        address: String,
        port: u16,
    ) -> Self {
        let backoff = Backoff::new(RetryPolicy::default(), context.entropy.bits());
        let now = Instant::now();
        let setbacks = context.monotonic.setbacks();
        Self {
            context,
            shared,
            commands,
            address,
            port,
            identity: None,
            joining: None,
            closed_since: None,
            watched_on: None,
            seeking: true,
            seeks: 0,
            leaving: false,
            leaves: Vec::new(),
            marks: Vec::new(),
            closing: None,
            left: false,
            control: Control::default(),
            watcher: None,
            watch_at: now,
            watch_trouble: None,
            read_revision: 0,
            life: None,
            past_life: None,
            world: None,
            read_world: None,
            doubt: false,
            doubted_round: 0,
            setbacks,
            record_due: false,
            before: Before::default(),
            serving: None,
            ended_terms: BTreeSet::new(),
            campaign_at: None,
            coordinator_name: None,
            closed: None,
            closing_leases: Vec::new(),
            renew_closing_at: now,
            dropped: None,
            host_lost: None,
            end: None,
            run_lease: 0,
            resets: 0,
            trouble: None,
            uncertain: false,
            retry_at: None,
            backoff,
        }
    }

    /// Lives until the node has left or cannot go on.
    pub(super) async fn run(mut self) {
        while !self.left {
            self.publish();
            self.forget_abandoned_closing();
            self.answer_marks();
            let due = self.retry_at.is_none_or(|at| at <= Instant::now());
            match self.next_work() {
                Some(work) if due => self.perform(work).await,
                work => self.news(work.is_some()).await,
            }
        }
    }

    /// What is to be done, the most urgent first.
    fn next_work(&self) -> Option<Work> {
        if self.closing.is_some() {
            // A store that lost the run must be put back before the run can be closed in it; and who was left out of a
            // later round must learn it before closing what is no longer its own.
            return match self.upkeep() {
                Some(work @ (Work::Return | Work::Record | Work::Shard | Work::Resign | Work::Campaign)) => {
                    Some(work)
                }
                _ => Some(Work::Close),
            };
        }
        if self.leaves.is_empty() { self.upkeep() } else { Some(Work::Leave) }
    }

    /// What keeps this node in its run.
    fn upkeep(&self) -> Option<Work> {
        if self.end.is_some() {
            return None;
        }
        let Some(identity) = &self.identity else {
            return (self.seeking && !self.leaving && self.closed.is_none()).then_some(Work::Join);
        };
        if self.doubt {
            return Some(Work::Return);
        }
        if self.closed.is_some() {
            return None;
        }
        if self.differs(&identity.record) {
            return Some(Work::Record);
        }
        if self.has_unread_round() {
            return Some(Work::Shard);
        }
        if self.office_to_give_back().is_some() {
            return Some(Work::Resign);
        }
        let may_campaign = self.control.coordinator.is_none() && self.control.closed.is_none();
        let due = self.campaign_at.is_none_or(|at| at <= Instant::now());
        (may_campaign && due && self.serving.is_none() && !self.leaving).then_some(Work::Campaign)
    }

    async fn perform(&mut self, work: Work) {
        let result = match work {
            Work::Close => self.close().await,
            Work::Leave => self.go().await,
            Work::Return => self.come_back().await,
            Work::Join => self.join().await,
            Work::Record => self.put_record().await,
            Work::Shard => self.read_shard().await,
            Work::Resign => self.resign().await,
            Work::Campaign => self.campaign().await,
        };
        match result {
            Ok(()) => {
                self.trouble = None;
                if matches!(work, Work::Join | Work::Record) {
                    self.context.refusals.clear(NODE_WRITES);
                }
                self.backoff.reset();
                self.retry_at = self.retry_at.filter(|at| *at > Instant::now());
            }
            Err(Error::LeaseNotFound { .. }) if self.identity.is_some() => self.doubt = true,
            Err(Error::LeaseNotFound { .. }) => self.joining = None,
            Err(error) => self.failed(work, error),
        }
    }

    fn failed(&mut self, work: Work, error: Error) {
        // A certificate that is being renewed may be missing for a moment: that ends no node that is in a run.
        let new = self.identity.is_none() && self.world.is_none();
        let fatal = match error {
            Error::Setting { .. } => new,
            _ => matches!(error, Error::Record { .. } | Error::Mismatch { .. } | Error::Closed { .. }),
        };
        let hopeless = !error.is_transient() && new;
        if fatal || (hopeless && work == Work::Join) {
            tracing::debug!(?work, %error, "the session cannot go on");
            self.end = Some(error);
            self.retry_at = Some(Instant::now() + self.backoff.next_delay());
            return;
        }
        self.context.refusals.note(NODE_WRITES, &error);
        if self.trouble.is_none() {
            if self.identity.is_none() {
                tracing::info!("trying on: {error}");
            } else {
                tracing::debug!(?work, %error, "trying again");
            }
        }
        self.trouble = Some(error);
        self.retry_at = Some(Instant::now() + self.backoff.next_delay());
    }

    /// Waits for something to happen.
    async fn news(&mut self, work_waits: bool) {
        let never = Instant::now() + Duration::from_secs(3600);
        let retry_at = self.retry_at.filter(|_| work_waits).unwrap_or(never);
        let campaign_at = self.campaign_at.filter(|at| *at > Instant::now()).unwrap_or(never);
        let uncertain_at = match &self.identity {
            Some(identity) if !self.uncertain && self.end.is_none() => identity.lease.borrow().uncertain_at(),
            _ => never,
        };
        let renew_closing_at = if self.closing_leases.is_empty() { never } else { self.renew_closing_at };
        tokio::select! {
            biased;
            command = self.commands.recv() => match command {
                Some(command) => self.obey(command),
                None => self.left = true,
            },
            // Its sender is in this node's context, so this cannot fail.
            _ = self.setbacks.changed() => self.be_set_back(),
            changed = lease_changed(&mut self.identity) => self.follow_lease(changed),
            ended = ended(&mut self.serving) => self.term_ended(ended),
            () = sleep_until(retry_at) => {}
            () = sleep_until(campaign_at) => {}
            () = sleep_until(renew_closing_at) => self.renew_closing().await,
            () = sleep_until(uncertain_at) => self.become_uncertain(),
            watched = next_change(&mut self.watcher, self.watch_at) => self.follow(watched),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Seek { port, after } => {
                if let Some(world) = &self.world {
                    if after.as_ref() != Some(&world.place) {
                        // It formed while this was on its way, with the port of before: its owner gets it now.
                        return;
                    }
                    self.seeks = self.seeks.max(world.place.round + 1);
                }
                self.port = port.unwrap_or(self.port);
                self.seeking = true;
                self.retry_at = None;
            }
            Command::MarkLeaving { done } => {
                if self.identity.is_none() || self.closed.is_some() {
                    let _ = done.send(());
                } else {
                    self.leaving = true;
                    self.marks.push(done);
                }
            }
            Command::Leave { done } => {
                self.leaves.push(done);
                self.retry_at = None;
            }
            Command::Close { outcome, why, done } => {
                if self.closed.is_some() {
                    let _ = done.send(true);
                } else {
                    // One closing at a time: whoever asks while another waits for one waits for the same.
                    self.forget_abandoned_closing();
                    match &mut self.closing {
                        Some(closing) if !closing.askers.is_empty() => closing.askers.push(done),
                        of_nobody => {
                            let due = of_nobody.is_some();
                            let askers = vec![done];
                            let own = Closing::new(&self.context, outcome, why);
                            self.closing = Some(Closing { due, askers, ..own });
                        }
                    }
                    self.retry_at = None;
                }
            }
        }
    }

    fn state(&self) -> State {
        if self.left {
            return State::Left;
        }
        if self.closed.is_some() {
            return State::Closed;
        }
        if self.identity.is_none() {
            return State::Joining;
        }
        if self.uncertain {
            return State::Uncertain;
        }
        if self.world.is_some() && !self.seeking {
            return State::Member;
        }
        // Once a change is told the world is about to go, and a node that waits is waiting for a place in the next one.
        let full =
            self.control.round_record().is_some_and(|round| round.has_spares() && round.change.is_none());
        if full && self.world.is_none() { State::Spare } else { State::Seeking }
    }

    fn publish_end(&mut self) {
        self.left = true;
        self.identity = None;
        self.end.get_or_insert(Error::Left);
        self.publish();
    }

    fn publish(&self) {
        self.shared.publish(&Snapshot {
            state: self.state(),
            node: self.identity.as_ref().map(|identity| identity.id),
            world: self.world.clone(),
            round: self.control.round_record().cloned(),
            closed: self.closed.clone(),
            dropped: self.dropped.clone(),
            host_lost: self.host_lost.clone(),
            end: self.end.clone(),
            trouble: self.trouble.clone(),
            run_lease: self.run_lease,
            resets: self.resets,
        });
    }
}

impl Drop for Session {
    /// However it ends, with its task too: nobody waits for one that is over.
    fn drop(&mut self) {
        self.publish_end();
    }
}

/// News of the lease: whether it is alive.
async fn lease_changed(identity: &mut Option<Identity>) -> bool {
    let Some(identity) = identity else { return std::future::pending().await };
    if identity.lease.changed().await.is_err() {
        // The keeper has ended, and what it said last was heard.
        return std::future::pending().await;
    }
    identity.lease.borrow().alive
}

/// The end of the term of office, if there is one.
async fn ended(serving: &mut Option<Serving>) -> Option<End> {
    match serving {
        Some(serving) => {
            let ended = (&mut serving.task).await;
            ended.inspect_err(|error| tracing::error!("the coordinator's task broke off: {error}")).ok()
        }
        None => std::future::pending().await,
    }
}

async fn next_change(watcher: &mut Option<Watcher>, not_before: Instant) -> Result<Watched> {
    match watcher {
        Some(watcher) => {
            sleep_until(not_before).await;
            watcher.next().await
        }
        None => std::future::pending().await,
    }
}
