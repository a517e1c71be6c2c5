//! Items that were taken from queues and have not reached their caller.
//!
//! A caller may drop its pop at any moment, for example at its time limit, on Ctrl-C, or on an interrupt. The
//! transaction that takes the item may have been applied by then, and the item would be lost. So each take runs to its
//! end in a separate task. An [`Item`] that is dropped before it is accepted stays here, and the next pop of its queue
//! continues with it. Items that are still here when the node leaves are written to the end of their queue.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use tokio::{sync::watch, task::JoinHandle};

use crate::{
    error::{Error, Result},
    lock::lock,
};

/// The items of one node, by the prefix of their queue: one pool for all of its stores.
#[derive(Debug, Default)]
pub struct Takes {
    kept: Mutex<BTreeMap<String, VecDeque<Kept>>>,
    /// Notified when an item arrives here, so that a waiting pop continues.
    arrived: watch::Sender<()>,
}

/// An item, and the take that may still be in flight. Without a task the item has been taken.
#[derive(Debug)]
struct Kept {
    task: Option<JoinHandle<Result<bool>>>,
    value: Vec<u8>,
}

/// An item that a pop is taking or has taken. Dropped without [`Self::accept`], it is kept for the next pop.
#[derive(Debug)]
pub struct Item {
    takes: Arc<Takes>,
    queue: String,
    kept: Option<Kept>,
}

impl Takes {
    /// A receiver that is notified of each item that arrives from now on.
    pub(super) fn arrivals(&self) -> watch::Receiver<()> {
        self.arrived.subscribe()
    }

    /// The oldest item of a queue that was kept.
    pub(super) fn adopt(self: &Arc<Self>, queue: &str) -> Option<Item> {
        let mut kept = lock(&self.kept);
        let items = kept.get_mut(queue)?;
        let first = items.pop_front();
        if items.is_empty() {
            kept.remove(queue);
        }
        Some(Item { takes: Arc::clone(self), queue: queue.to_owned(), kept: Some(first?) })
    }

    /// Queues that have kept items.
    pub(super) fn queues(&self) -> Vec<String> {
        lock(&self.kept).keys().cloned().collect()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        lock(&self.kept).is_empty()
    }

    fn keep(&self, queue: &str, kept: Kept) {
        lock(&self.kept).entry(queue.to_owned()).or_default().push_front(kept);
        self.arrived.send_replace(());
    }
}

impl Item {
    /// An item that `task` takes. The task must end by itself; it returns whether the item was taken.
    pub(super) fn begin(
        takes: &Arc<Takes>,
        queue: &str,
        value: Vec<u8>,
        task: JoinHandle<Result<bool>>,
    ) -> Self {
        let kept = Some(Kept { task: Some(task), value });
        Self { takes: Arc::clone(takes), queue: queue.to_owned(), kept }
    }

    /// An item that was taken and did not reach its caller.
    pub(super) fn taken(takes: &Arc<Takes>, queue: &str, value: Vec<u8>) -> Self {
        Self { takes: Arc::clone(takes), queue: queue.to_owned(), kept: Some(Kept { task: None, value }) }
    }

    /// Waits until the take has ended. Returns false if another node took the item.
    pub(super) async fn settle(&mut self) -> Result<bool> {
        let Some(task) = self.kept.as_mut().and_then(|kept| kept.task.as_mut()) else {
            return Ok(self.kept.is_some());
        };
        // A task that does not end normally was aborted with its runtime.
        let end = task.await.unwrap_or(Err(Error::Left));
        match (&end, &mut self.kept) {
            (Ok(true), Some(kept)) => kept.task = None,
            _ => self.kept = None,
        }
        end
    }

    /// The value. The item keeps it.
    pub(super) fn value(&self) -> &[u8] {
        self.kept.as_ref().map_or(&[], |kept| &kept.value)
    }

    /// The value. The caller owns it.
    pub fn accept(mut self) -> Vec<u8> {
        self.kept.take().map(|kept| kept.value).unwrap_or_default()
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.takes.keep(&self.queue, kept);
        }
    }
}
