//! Applies every write exactly once, whatever becomes of its response: one attempt, and a loop that does what
//! [`mod@super::next`] decides.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Inner, Progress, StoreView,
    changes::{Change, Plan, Seen, Step},
    next::{Answer, Course, FENCE, Next, Pause, Sent, Written, next},
    slots::Slot,
    values::Known,
};
use crate::{
    backend::{
        Compare, Get, KeyValue, Keys, LeaseId, Operation, Range, Revision, Txn, TxnResult,
        retry::{Backoff, RetryPolicy},
    },
    error::{Error, Result},
};

/// The pauses after a write that lost against the write of another node. They are short, because each loss means that
/// another node succeeded, and the next attempt takes one round trip.
pub(super) const CONTENTION: RetryPolicy =
    RetryPolicy { first_delay: Duration::from_millis(2), max_delay: Duration::from_millis(100), growth: 2 };

/// For how many attempts a write waits for the session to report a reset, if the node's record is gone: about two TTLs.
const RESET_ATTEMPTS: u32 = 8;

/// One attempt: a transaction, and how to read its response.
struct Attempt {
    sent: Sent,
    txn: Txn,
    slot: Get,
    node: Get,
    result: Option<Get>,
    /// The keys of the change.
    reads: Vec<Get>,
}

impl Attempt {
    fn new<C: Change>(inner: &Inner, change: &C, step: Option<Step>, slot: &Slot, lease: LeaseId) -> Self {
        let key = inner.context.keys.operation(inner.context.node, slot.number);
        let view = StoreView { run_lease: lease, ..inner.context.view.borrow().clone() };
        let (mut txn, node) = inner.presence(&view);
        txn = txn.when([Compare::Version(key.clone().into(), slot.version)]);
        let sent = Sent { lease, fence: step.is_none() };
        let put = Operation::put(key.as_str(), if sent.fence { FENCE } else { b"" }, lease);
        let Step { when, then } = step.unwrap_or_default();
        txn = txn.when(when).then([put]).then(then);
        let result = change.result_key().filter(|_| !sent.fence).map(|key| txn.get_if_done(key));
        let slot = txn.get_if_refused(key);
        let read = |key| if sent.fence { txn.get(key) } else { txn.get_if_refused(key) };
        let reads = change.reads().into_iter().map(read).collect();
        Self { sent, txn, slot, node, result, reads }
    }

    async fn send(self, inner: &Inner) -> Answer {
        let Self { txn, slot, node, result, reads, .. } = self;
        let answer = match inner.context.backend.txn(txn).await {
            Ok(answer) => answer,
            Err(error) => return Answer::Failed(error),
        };
        let known = known(&reads, &answer);
        if answer.succeeded {
            let result = result.and_then(|get| get.item(&answer).cloned());
            Answer::Applied { revision: answer.header.revision, result, known }
        } else {
            Answer::Refused { slot: slot.item(&answer).cloned(), node: node.is_found(&answer), known }
        }
    }
}

fn known(reads: &[Get], answer: &TxnResult) -> Known {
    let items = reads.iter().filter_map(|get| get.item(answer));
    items.map(|item| (item.key.clone(), item.clone())).collect()
}

/// What the attempts of one write wait for.
struct Waits {
    view: watch::Receiver<StoreView>,
    /// How often the service had lost its data when no attempt was open.
    resets: u64,
    backoff: Backoff,
    contention: Backoff,
}

impl Waits {
    async fn pause(&mut self, pause: Pause) -> Result<()> {
        match pause {
            Pause::None => {}
            Pause::Contention => sleep(self.contention.next_delay()).await,
            Pause::Service => sleep(self.backoff.next_delay()).await,
            Pause::Session => moved_or(&mut self.view, &mut self.backoff).await?,
        }
        Ok(())
    }

    /// Waits until the session reports that the service lost its data. A renewal must show it first, and the run must be
    /// restored.
    async fn reset(&mut self, limit: Duration, progress: &Progress) -> Result<()> {
        let before = self.resets;
        let reset = async { self.view.wait_for(|view| view.resets != before).await.is_ok() };
        match timeout(limit, reset).await {
            Ok(true) => self.resets = self.view.borrow_and_update().resets,
            Ok(false) => return Err(Error::Left),
            Err(_) => {
                return Err(progress.unknown("the record of this node's last write is gone from the service"));
            }
        }
        Ok(())
    }
}

impl Inner {
    /// Does a write once. Returns `None` with the result if there was nothing to write.
    ///
    /// Ends by itself only when the outcome is known or cannot become known. The caller drops it at the deadline.
    pub(super) async fn write<C: Change>(
        &self,
        change: &C,
        progress: &Progress,
    ) -> Result<(C::Output, Option<Written>)> {
        let view = self.context.view.clone();
        let resets = view.borrow().resets;
        let contention = Backoff::new(CONTENTION, self.seed());
        let mut waits = Waits { view, resets, backoff: self.backoff(), contention };
        let mut course = Course::default();
        loop {
            let lease = lease(&mut waits.view).await?;
            let step = match change.plan(course.known.as_ref(), lease) {
                Plan::Write(step) => Some(step),
                Plan::Done(output) if !course.open => return self.end(course, lease, Ok((output, None))),
                Plan::Refuse(error) if !course.open => return self.end(course, lease, Err(error)),
                Plan::Done(_) | Plan::Refuse(_) => None,
            };
            match self.attempt(change, step, &mut course, lease).await {
                Next::Done(written, result) => return self.done(change, course, written, result),
                Next::DoneEarlier(written) => {
                    let result = self.result_at(change, written.revision, progress).await;
                    return result.and_then(|result| self.done(change, course, written, result));
                }
                Next::Again(pause, why) => {
                    if let Some(why) = why {
                        progress.note(&why);
                    }
                    waits.pause(pause).await?;
                }
                Next::AfterReset => {
                    waits.reset(self.context.limits.attempt_timeout * RESET_ATTEMPTS, progress).await?;
                }
                Next::Failed(error) => return Err(error),
            }
        }
    }

    /// Makes one attempt, and decides what to do next.
    async fn attempt<C: Change>(
        &self,
        change: &C,
        step: Option<Step>,
        course: &mut Course,
        lease: LeaseId,
    ) -> Next {
        let slot = course.slot.take().unwrap_or_else(|| self.context.slots.take(lease));
        let attempt = Attempt::new(self, change, step, &slot, lease);
        let sent = attempt.sent;
        let answer = attempt.send(self).await;
        if answer.is_older(&slot) {
            self.context.monotonic.report(&self.context.keys.operation(self.context.node, slot.number));
        }
        if answer.has_no_record() {
            self.context.record_missing.notify_one();
        }
        next(course, slot, sent, answer)
    }

    /// Ends a write that has no open attempt.
    fn end<T>(&self, course: Course, lease: LeaseId, end: T) -> T {
        if let Some(slot) = course.slot {
            self.context.slots.give_back(&slot, lease);
        }
        end
    }

    fn done<C: Change>(
        &self,
        change: &C,
        course: Course,
        written: Written,
        result: Option<KeyValue>,
    ) -> Result<(C::Output, Option<Written>)> {
        let output = change.applied(&Seen { result });
        self.end(course, written.lease, output.map(|output| (output, Some(written))))
    }

    /// Reads the result key at the revision at which a change was applied.
    async fn result_at<C: Change>(
        &self,
        change: &C,
        revision: Revision,
        progress: &Progress,
    ) -> Result<Option<KeyValue>> {
        let Some(key) = change.result_key() else { return Ok(None) };
        let mut backoff = self.backoff();
        let range = Range { revision, ..Range::new(Keys::one(key)) };
        loop {
            match self.context.backend.range(range.clone()).await {
                Ok(found) => match found.items.into_iter().next() {
                    Some(item) if item.mod_revision == revision => return Ok(Some(item)),
                    _ => {
                        return Err(
                            progress.unknown("it was applied, but its result is gone from the service")
                        );
                    }
                },
                Err(Error::Compacted { .. }) => {
                    return Err(progress.unknown("it was applied, but its result is compacted away"));
                }
                Err(error) if error.is_transient() => {
                    progress.note(&error.to_string());
                    sleep(backoff.next_delay()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The run's lease, once it is known. Marks the view as seen, so that later changes of it end [`moved_or`].
pub(super) async fn lease(view: &mut watch::Receiver<StoreView>) -> Result<LeaseId> {
    let known = view.wait_for(|view| view.over.is_some() || view.run_lease != 0).await;
    let now = known.map_err(|_| Error::Left)?;
    match &now.over {
        Some(error) => Err(error.clone()),
        None => Ok(now.run_lease),
    }
}

/// Waits until the view of the session changes, or for as long as the pause of a retry, because a service that is
/// available again does not always change the view.
pub(super) async fn moved_or(view: &mut watch::Receiver<StoreView>, backoff: &mut Backoff) -> Result<()> {
    tokio::select! {
        biased;
        moved = view.changed() => moved.map_err(|_| Error::Left),
        () = sleep(backoff.next_delay()) => Ok(()),
    }
}
