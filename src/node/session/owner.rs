//! What the owner of a node wants from its session.

use tokio::sync::oneshot;

use crate::{
    backend::LeaseId,
    protocol::{
        identity::NodeId,
        records::{DrainRecord, LostRecord, NodeRecord, Outcome, WorldMembership},
        work::{Departure, Wants},
    },
    run::Context,
};

/// A request of the handle to its session. If the session ends, a request may remain without a response.
#[derive(Debug)]
pub(in super::super) enum Command {
    /// Take part in the next round, unless there is a world that was not returned to the owner yet.
    Seek {
        /// The port on which the node would serve as master. `None` keeps the last one.
        port: Option<u16>,
        /// The world that was returned to the owner last.
        after: Option<WorldMembership>,
    },
    /// The owner has the world that this node entered last.
    WorldReturned,
    /// Announce that this node is about to leave.
    MarkLeaving {
        /// Notified when the other nodes can read it.
        done: oneshot::Sender<()>,
    },
    /// Leave the run.
    Leave {
        /// Notified when the service has acknowledged it.
        done: oneshot::Sender<()>,
    },
    /// Close the run.
    Close {
        /// How the run ended.
        outcome: Outcome,
        /// Why it ended.
        why: String,
        /// Receives whether the run is closed.
        done: oneshot::Sender<bool>,
    },
}

/// A request to close the run.
pub(super) struct Closing {
    pub(super) outcome: Outcome,
    pub(super) why: String,
    /// The lease of the closing record, which is equal in all attempts. It is revoked only when it is known that no
    /// attempt was applied and that none can be.
    pub(super) lease: LeaseId,
    /// Whether the lease was requested from the service.
    pub(super) granted: bool,
    /// Whether the coordinator of this node requires the closing, so that it is not abandoned when no caller waits.
    required: bool,
    callers: Vec<oneshot::Sender<bool>>,
}

impl Closing {
    fn new(context: &Context, outcome: Outcome, why: String) -> Self {
        let lease = NodeId::from_random(context.entropy.bits()).first_lease();
        Self { outcome, why, lease, granted: false, required: false, callers: Vec::new() }
    }
}

/// What the owner wants, and the callers that wait for it.
pub(super) struct Owner {
    address: String,
    port: u16,
    /// The port for lifelines, unless this node has none.
    lifeline_port: Option<u16>,
    /// Whether the owner wants a world that it does not have.
    pub(super) seeks: bool,
    /// The lowest round that the owner accepts.
    pub(super) lowest_round: u64,
    leaving: bool,
    leave_callers: Vec<oneshot::Sender<()>>,
    mark_callers: Vec<oneshot::Sender<()>>,
    pub(super) closing: Option<Closing>,
    /// The request of an operator that this node leaves.
    pub(super) drained: Option<DrainRecord>,
    pub(super) false_alarms: FalseAlarms,
}

impl Owner {
    pub(super) fn new(address: String, port: u16, lifeline_port: Option<u16>) -> Self {
        Self {
            address,
            port,
            lifeline_port,
            seeks: true,
            lowest_round: 0,
            leaving: false,
            leave_callers: Vec::new(),
            mark_callers: Vec::new(),
            closing: None,
            drained: None,
            false_alarms: FalseAlarms::default(),
        }
    }

    pub(super) fn wants(&self) -> Wants {
        let departure = if !self.leave_callers.is_empty() {
            Departure::Requested
        } else if self.leaving {
            Departure::Announced
        } else {
            Departure::None
        };
        Wants { world: self.seeks, close: self.closing.is_some(), departure }
    }

    /// The record that this node should have.
    pub(super) fn desired_record(&self, context: &Context, world: Option<WorldMembership>) -> NodeRecord {
        let settings = &context.settings;
        NodeRecord {
            name: settings.node_name.clone(),
            address: self.address.clone(),
            port: self.port,
            topology: settings.topology.clone(),
            index: settings.node_index,
            min: settings.min_nodes,
            max: settings.max_nodes,
            sizing: settings.sizing.clone(),
            seeks: self.lowest_round,
            world,
            leaving: self.leaving,
            hosts: context.hosts,
            submission: settings.submission.clone(),
            lifeline: self.lifeline_port,
            false_alarms: self.false_alarms.count,
        }
    }

    /// Requests a world. `port` is the port at which this node would serve as master.
    pub(super) fn seek(&mut self, port: Option<u16>) {
        self.port = port.unwrap_or(self.port);
        self.seeks = true;
    }

    pub(super) fn mark_leaving(&mut self, done: oneshot::Sender<()>) {
        self.leaving = true;
        self.mark_callers.push(done);
    }

    /// Announces the departure of this node because an operator requests it. The process of the node does everything
    /// else that it would do on SIGTERM.
    pub(super) fn drain(&mut self, request: DrainRecord) {
        self.leaving = true;
        self.drained.get_or_insert(request);
    }

    /// Notifies the callers that wait until the departure of this node is announced.
    pub(super) fn answer_marks(&mut self) {
        for done in self.mark_callers.drain(..) {
            let _ = done.send(());
        }
    }

    pub(super) fn leave(&mut self, done: oneshot::Sender<()>) {
        self.leave_callers.push(done);
    }

    /// Notifies the callers that wait until this node has left.
    pub(super) fn answer_leaves(&mut self) {
        for done in self.leave_callers.drain(..) {
            let _ = done.send(());
        }
    }

    /// Closes the run. Only one closing is attempted at a time. A later caller waits for the result of the first.
    pub(super) fn close(
        &mut self,
        context: &Context,
        outcome: Outcome,
        why: String,
        done: oneshot::Sender<bool>,
    ) {
        self.drop_abandoned_closing();
        match &mut self.closing {
            Some(closing) if !closing.callers.is_empty() => closing.callers.push(done),
            of_nobody => {
                let required = of_nobody.is_some();
                let closing = Closing::new(context, outcome, why);
                self.closing = Some(Closing { required, callers: vec![done], ..closing });
            }
        }
    }

    /// Closes the run because the coordinator of this node requires it.
    pub(super) fn require_closing(&mut self, context: &Context, outcome: Outcome, why: String) {
        self.closing.get_or_insert_with(|| Closing { required: true, ..Closing::new(context, outcome, why) });
    }

    /// Drops a closing that no caller waits for any more.
    pub(super) fn drop_abandoned_closing(&mut self) {
        let Some(closing) = &mut self.closing else { return };
        closing.callers.retain(|caller| !caller.is_closed());
        if closing.callers.is_empty() && !closing.required {
            self.closing = None;
        }
    }

    /// Notifies the callers that wait until the run is closed.
    pub(super) fn answer_closing(&mut self, closed: bool) {
        for caller in self.closing.take().into_iter().flat_map(|closing| closing.callers) {
            let _ = caller.send(closed);
        }
    }
}

/// How often this node was reported dead although it was alive.
#[derive(Debug, Default)]
pub(super) struct FalseAlarms {
    pub(super) count: u64,
    last: Option<LostRecord>,
}

impl FalseAlarms {
    /// Counts a report of this node's death, unless it was counted before.
    pub(super) fn note(&mut self, evidence: LostRecord) {
        if self.last.as_ref() != Some(&evidence) {
            self.count += 1;
            tracing::warn!("`{}` reported this node dead, but it is alive: {}", evidence.by, evidence.why);
            self.last = Some(evidence);
        }
    }
}
