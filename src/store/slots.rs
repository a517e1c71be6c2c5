//! Every write applies once, whatever becomes of its answer.
//!
//! An attempt that is abandoned may still land seconds later, and an `add` that counts twice ends a job's exit barrier
//! early. So each write is one transaction that also puts `ops/<node>/<slot>` and compares that key's version: of all
//! the attempts of an operation one can apply. One operation is in flight in each slot; an operation whose end is not
//! known takes its slot with it, and nobody ever compares that version again.
//!
//! An operation that turns out to have nothing to write, while an attempt of it may still be on its way, writes its slot
//! alone first (a *fence*): what it then answers cannot be overtaken by that attempt.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Inner, Progress, StoreView,
    changes::{Change, Plan, Seen, Step},
};
use crate::{
    backend::{
        Compare, KeyValue, Keys, LeaseId, Operation, OperationResult, Range, Revision, Txn, TxnResult,
        retry::{Backoff, RetryPolicy},
    },
    error::{Applied, Error, Result},
};

/// Waits after a write that lost to another's. Short: each loss is somebody's success, and the next attempt is one
/// round trip.
pub(super) const CONTENTION: RetryPolicy =
    RetryPolicy { first_delay: Duration::from_millis(2), max_delay: Duration::from_millis(100), growth: 2 };

/// For how many attempts a write whose record is gone waits for the session to report a reset: two TTLs.
const RESET_ATTEMPTS: u32 = 8;

/// What a slot holds after a fence; after a write it is empty.
const FENCE: &[u8] = b"fence";

/// The slots of one node id, shared by all of its stores.
#[derive(Debug, Default)]
pub struct Slots {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By number: the version its key is at, and the lease that key hangs on.
    free: BTreeMap<u32, (i64, LeaseId)>,
    next: u32,
    next_unique: u64,
}

impl Slots {
    /// The slots of a node id that has written nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain numbers, whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot that nobody uses. Those whose keys hung on another lease went with it.
    fn take(&self, lease: LeaseId) -> Slot {
        let mut state = self.lock();
        state.free.retain(|_, (_, of)| *of == lease);
        if let Some((number, (version, _))) = state.free.pop_first() {
            return Slot { number, version };
        }
        let number = state.next;
        state.next += 1;
        Slot { number, version: 0 }
    }

    /// Gives back a slot whose last operation is known to have ended, under this lease.
    fn give_back(&self, slot: &Slot, lease: LeaseId) {
        if slot.version > 0 {
            self.lock().free.insert(slot.number, (slot.version, lease));
        }
    }

    /// A number that this node id has not used yet.
    pub(super) fn unique(&self) -> u64 {
        let mut state = self.lock();
        state.next_unique += 1;
        state.next_unique
    }
}

/// A slot in use. Dropped without being given back it is forfeited.
#[derive(Debug)]
struct Slot {
    number: u32,
    /// The version its key is at, as far as is known.
    version: i64,
}

/// Where and when a write was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The run's lease, under which it stands. Another store bears another.
    pub(super) lease: LeaseId,
    /// Its revision.
    pub(super) revision: Revision,
}

/// What a refused attempt says about those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// One of them was applied.
    Applied,
    /// One of them was a fence, and was applied.
    Fenced,
    /// None was, and none can be: this node's record is not there at the moment.
    NodeMissing,
    /// None was, so far: a condition of the plan did not hold.
    Refused,
    /// The slot is gone.
    Gone,
    /// The slot is at an earlier version than the one acknowledged: the service was restored from an older backup.
    Earlier,
    /// The slot was written by something else.
    Foreign,
}

fn verdict(version: i64, slot: Option<&KeyValue>, node: bool) -> Verdict {
    match slot {
        Some(item) if item.version == version + 1 && item.value == FENCE => Verdict::Fenced,
        Some(item) if item.version == version + 1 => Verdict::Applied,
        _ if !node => Verdict::NodeMissing,
        Some(item) if item.version == version => Verdict::Refused,
        None if version == 0 => Verdict::Refused,
        None => Verdict::Gone,
        Some(item) if item.version < version => Verdict::Earlier,
        Some(_) => Verdict::Foreign,
    }
}

/// The answers to the gets among a branch's operations from `index` on, each of one key.
fn answers(results: &[OperationResult], index: usize) -> Vec<Option<KeyValue>> {
    let gets = results.iter().skip(index).filter_map(|result| match result {
        OperationResult::Get(items) => Some(items.first().cloned()),
        OperationResult::Put | OperationResult::Delete(_) => None,
    });
    gets.collect()
}

/// How far a write has come.
#[derive(Debug)]
struct Course {
    view: watch::Receiver<StoreView>,
    /// How often the service had come back empty when nothing was open.
    resets: u64,
    backoff: Backoff,
    contention: Backoff,
    slot: Option<Slot>,
    /// What the keys of the change held when it was last refused.
    known: Option<Vec<Option<KeyValue>>>,
    /// Whether an attempt may have been applied, or may yet be.
    open: bool,
    refusals: u32,
}

impl Inner {
    /// Does a write, once. `None` with the result where nothing was to be written.
    ///
    /// Ends by itself only when the outcome is known or cannot be; the caller drops it at the deadline.
    pub(super) async fn write<C: Change>(
        &self,
        change: &C,
        progress: &Progress,
    ) -> Result<(C::Output, Option<Written>)> {
        let view = self.context.view.clone();
        let resets = view.borrow().resets;
        let mut course = Course {
            view,
            resets,
            backoff: self.backoff(),
            contention: Backoff::new(CONTENTION, self.seed()),
            slot: None,
            known: None,
            open: false,
            refusals: 0,
        };
        loop {
            let lease = lease(&mut course.view).await?;
            let mut slot = course.slot.take().unwrap_or_else(|| self.context.slots.take(lease));
            let step = match change.plan(course.known.as_deref(), lease) {
                Plan::Write(step) => Some(step),
                Plan::Done(output) if !course.open => {
                    self.context.slots.give_back(&slot, lease);
                    return Ok((output, None));
                }
                Plan::Refuse(error) if !course.open => {
                    self.context.slots.give_back(&slot, lease);
                    return Err(error);
                }
                Plan::Done(_) | Plan::Refuse(_) => None,
            };
            let fence = step.is_none();
            match self.context.backend.txn(self.attempt(change, step, &slot, lease)).await {
                Ok(answer) if answer.succeeded => {
                    slot.version += 1;
                    let mut found = answers(&answer.results, 1);
                    if fence {
                        course.open = false;
                        course.known = Some(found);
                        course.slot = Some(slot);
                        continue;
                    }
                    self.context.slots.give_back(&slot, lease);
                    let result = change.result_key().and_then(|_| found.pop().flatten());
                    let written = Written { lease, revision: answer.header.revision };
                    return Ok((change.applied(&Seen { result })?, Some(written)));
                }
                Ok(answer) => {
                    if let Some(written) = self.refused(&mut course, slot, &answer, lease, progress).await? {
                        let result = self.result_at(change, written.revision, progress).await?;
                        return Ok((change.applied(&Seen { result })?, Some(written)));
                    }
                }
                Err(error) => {
                    course.slot = Some(slot);
                    failed(&mut course, error, progress).await?;
                }
            }
        }
    }

    /// After an attempt whose conditions did not hold: where an earlier one was applied, if one was; else readies the
    /// next.
    async fn refused(
        &self,
        course: &mut Course,
        mut slot: Slot,
        answer: &TxnResult,
        lease: LeaseId,
        progress: &Progress,
    ) -> Result<Option<Written>> {
        let (record, node) = (answer.found(0).first(), !answer.found(1).is_empty());
        let known = Some(answers(&answer.results, 2));
        let verdict = verdict(slot.version, record, node);
        if verdict == Verdict::Earlier {
            self.context.monotonic.report(&self.context.keys.operation(self.context.node, slot.number));
        }
        match verdict {
            Verdict::Applied => {
                let written =
                    record.map(|record| Written { lease: record.lease, revision: record.mod_revision });
                slot.version += 1;
                self.context.slots.give_back(&slot, written.map_or(lease, |written| written.lease));
                return Ok(written);
            }
            Verdict::Fenced => {
                slot.version += 1;
                course.open = false;
                course.known = known;
                course.slot = Some(slot);
            }
            Verdict::NodeMissing => {
                progress.note("this node's record is not in the service at the moment");
                course.slot = Some(slot);
                moved_or(&mut course.view, &mut course.backoff).await?;
            }
            Verdict::Refused => {
                course.known = known;
                course.slot = Some(slot);
                course.refusals += 1;
                progress
                    .note("other nodes write to the same key, or the run's data is not there at the moment");
                // The first is a wrong guess; the others are others' writes. Every other attempt follows at once, because
                // what was read before a wait is outdated after it.
                if course.refusals.is_multiple_of(2) {
                    sleep(course.contention.next_delay()).await;
                }
            }
            // Nothing is in doubt: another slot will do.
            Verdict::Gone | Verdict::Earlier | Verdict::Foreign if !course.open => course.known = known,
            Verdict::Gone | Verdict::Earlier | Verdict::Foreign => {
                // The session may be about to say that the service lost its data, once a renewal has shown it and the run
                // is restored.
                let before = course.resets;
                let reset = async { course.view.wait_for(|view| view.resets != before).await.is_ok() };
                match timeout(self.context.limits.attempt_timeout * RESET_ATTEMPTS, reset).await {
                    Ok(true) => {
                        course.resets = course.view.borrow_and_update().resets;
                        course.open = false;
                        course.known = known;
                    }
                    Ok(false) => return Err(Error::Left),
                    Err(_) => {
                        let why = "the record of this node's last write is gone from the service";
                        return Err(progress.unknown(why));
                    }
                }
            }
        }
        Ok(None)
    }

    fn attempt<C: Change>(&self, change: &C, step: Option<Step>, slot: &Slot, lease: LeaseId) -> Txn {
        let record = self.context.keys.operation(self.context.node, slot.number);
        let node = self.context.keys.node(self.context.node);
        let view = StoreView { run_lease: lease, ..self.context.view.borrow().clone() };
        let mut when = vec![Compare::Version(record.clone().into(), slot.version)];
        when.extend(self.is_present(&view));
        let mut then = Vec::new();
        if let Some(step) = step {
            when.extend(step.when);
            then.push(Operation::put(record.as_str(), "", lease));
            then.extend(step.then);
            then.extend(change.result_key().map(Operation::get));
        } else {
            then.push(Operation::put(record.as_str(), FENCE, lease));
            then.extend(change.reads());
        }
        let mut otherwise = vec![Operation::get(record), Operation::get(node)];
        otherwise.extend(change.reads());
        Txn { when, then, otherwise }
    }

    /// What a change that was applied at a revision left in its result key.
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

/// After an attempt that failed: waits for the next, or passes on what time does not mend.
async fn failed(course: &mut Course, error: Error, progress: &Progress) -> Result<()> {
    match error {
        Error::LeaseNotFound { .. } => {
            progress.note("the run's lease does not exist any more");
            moved_or(&mut course.view, &mut course.backoff).await
        }
        error if error.is_transient() => {
            course.open |= matches!(error, Error::Unavailable { applied: Applied::Unknown, .. });
            progress.note(&error.to_string());
            sleep(course.backoff.next_delay()).await;
            Ok(())
        }
        error => Err(error),
    }
}

/// The run's lease, once it is known. Marks the view as seen: what moves from here on wakes [`moved_or`].
pub(super) async fn lease(view: &mut watch::Receiver<StoreView>) -> Result<LeaseId> {
    let known = view.wait_for(|view| view.over.is_some() || view.run_lease != 0).await;
    let now = known.map_err(|_| Error::Left)?;
    match &now.over {
        Some(error) => Err(error.clone()),
        None => Ok(now.run_lease),
    }
}

/// Waits until the session has news, or for as long as a retry waits: what came back may be no news.
pub(super) async fn moved_or(view: &mut watch::Receiver<StoreView>, backoff: &mut Backoff) -> Result<()> {
    tokio::select! {
        biased;
        moved = view.changed() => moved.map_err(|_| Error::Left),
        () = sleep(backoff.next_delay()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: i64, value: &[u8]) -> KeyValue {
        KeyValue { version, value: value.to_vec(), ..KeyValue::default() }
    }

    #[test]
    fn a_refusal_tells_what_became_of_the_attempts_before_it() {
        let cases = [
            (0, None, true, Verdict::Refused),
            (0, None, false, Verdict::NodeMissing),
            (0, Some(record(1, b"")), true, Verdict::Applied),
            (0, Some(record(1, b"")), false, Verdict::Applied),
            (3, Some(record(3, b"fence")), true, Verdict::Refused),
            (3, Some(record(3, b"")), false, Verdict::NodeMissing),
            (3, Some(record(4, b"")), true, Verdict::Applied),
            (3, Some(record(4, b"fence")), true, Verdict::Fenced),
            (3, Some(record(5, b"")), true, Verdict::Foreign),
            (3, Some(record(2, b"")), true, Verdict::Earlier),
            (3, None, true, Verdict::Gone),
            (3, None, false, Verdict::NodeMissing),
        ];
        for (version, slot, node, expected) in cases {
            assert_eq!(verdict(version, slot.as_ref(), node), expected, "{version} {slot:?} {node}");
        }
    }

    #[test]
    fn a_slot_is_used_by_one_operation_and_forfeited_unless_given_back() {
        let slots = Slots::new();
        let mut first = slots.take(7);
        assert_eq!((first.number, slots.take(7).number), (0, 1));
        first.version = 4;
        slots.give_back(&first, 7);
        let again = slots.take(7);
        assert_eq!((again.number, again.version), (0, 4));
        slots.give_back(&again, 7);
        assert_eq!(slots.take(8).number, 2, "what hung on another lease is gone");
    }
}
