//! Queues. Each item is a separate key, and the node that deletes the key has taken the item. The deletion is completed
//! even if the pop is dropped ([`takes`](super::takes)).

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    Inner, Progress, Store, StoreContext,
    changes::{Put, Take},
    takes::Item,
    writing::CONTENTION,
};
use crate::{
    backend::{KeyValue, Keys, Range, retry::Backoff},
    error::{Error, Result},
};

impl Store {
    /// Appends an item to a queue.
    pub async fn queue_push(&self, key: &str, value: &[u8], limit: Duration) -> Result<()> {
        let progress = Progress::new(format!("queue_push {key}"));
        let StoreContext { node, slots, .. } = &self.inner.context;
        let item = format!("{}{node}-{:016x}", self.inner.place(key)?.queue(), slots.unique());
        let change = Put { key: item, value: value.to_vec() };
        self.call(&progress, limit, self.inner.write(&change, &progress)).await?;
        Ok(())
    }

    /// Takes the oldest item of a queue. With `block` it waits for one. Otherwise it returns `None` for an empty queue.
    pub async fn queue_pop(&self, key: &str, block: bool, limit: Duration) -> Result<Option<Vec<u8>>> {
        Ok(self.queue_take(key, block, limit).await?.map(Item::accept))
    }

    /// Takes the oldest item as [`Self::queue_pop`] does, for a caller that may fail to deliver it: an item that is
    /// dropped without [`Item::accept`] is kept for the next pop.
    pub async fn queue_take(&self, key: &str, block: bool, limit: Duration) -> Result<Option<Item>> {
        let progress = Arc::new(Progress::new(format!("queue_pop {key}")));
        let queue = self.inner.place(key)?.queue();
        self.call(&progress, limit, Inner::pop(&self.inner, &queue, block, &progress)).await
    }

    /// Keeps an item that a pop returned but that did not reach its receiver, for the next pop of this node.
    pub fn queue_keep(&self, key: &str, value: &[u8]) -> Result<()> {
        let queue = self.inner.place(key)?.queue();
        drop(Item::taken(&self.inner.context.takes, &queue, value.to_vec()));
        Ok(())
    }

    /// Writes the items that this node has kept to the end of their queues, whichever store of the run they belong to.
    ///
    /// # Errors
    /// The error of the first write that failed. Its item and the remaining ones are still kept.
    pub(crate) async fn return_kept(&self, limit: Duration) -> Result<()> {
        let StoreContext { node, slots, takes, .. } = &self.inner.context;
        let progress = Progress::new("return the items of queues");
        let returning = async {
            for queue in takes.queues() {
                while let Some(mut item) = takes.adopt(&queue) {
                    if item.settle().await? {
                        let key = format!("{queue}{node}-{:016x}", slots.unique());
                        self.inner.write(&Put { key, value: item.value().to_vec() }, &progress).await?;
                        item.accept();
                    }
                }
            }
            Ok(())
        };
        let resets = self.inner.context.view.borrow().resets;
        self.bounded(resets, &progress, limit, returning).await
    }

    /// How many items a queue has.
    pub async fn queue_len(&self, key: &str, limit: Duration) -> Result<u64> {
        let progress = Progress::new(format!("queue_len {key}"));
        let queue = Keys::prefix(self.inner.place(key)?.queue());
        let items = self.call(&progress, limit, self.inner.all(queue, None, &progress)).await?.1;
        Ok(u64::try_from(items.len()).unwrap_or(u64::MAX))
    }
}

impl Inner {
    /// Takes the oldest item under a prefix.
    async fn pop(
        self: &Arc<Self>,
        queue: &str,
        block: bool,
        progress: &Arc<Progress>,
    ) -> Result<Option<Item>> {
        let mut contention = Backoff::new(CONTENTION, self.seed());
        let keys = Keys::prefix(queue);
        let mut arrivals = self.context.takes.arrivals();
        loop {
            arrivals.mark_unchanged();
            if let Some(mut item) = self.context.takes.adopt(queue) {
                match item.settle().await {
                    Ok(true) => return Ok(Some(item)),
                    // `Left`: an earlier ID of this node started that take.
                    Ok(false) | Err(Error::Left) => continue,
                    Err(error) => return Err(error),
                }
            }
            let resets = self.context.view.borrow().resets;
            let (revision, items) = self.all(keys.clone(), None, progress).await?;
            let Some(oldest) = items.into_iter().min_by_key(|item| item.create_revision) else {
                if !block {
                    return Ok(None);
                }
                progress.awaiting("the queue is empty".to_owned());
                tokio::select! {
                    changed = self.wait_for_change(keys.clone(), revision, resets, progress) => changed?,
                    // The sender is in this store's context, so this cannot fail.
                    _ = arrivals.changed() => {}
                }
                continue;
            };
            // The value is read before the item is taken. If the response were lost, the value might be compacted
            // afterwards.
            let range = Range::new(Keys::one(oldest.key));
            let found = match self.context.backend.range(range).await {
                Ok(found) => found.items.into_iter().next(),
                Err(error) if error.is_transient() => {
                    progress.note(&error.to_string());
                    None
                }
                Err(error) => return Err(error),
            };
            if let Some(item) = found {
                let mut item = Inner::take(self, queue, item, progress);
                if item.settle().await? {
                    return Ok(Some(item));
                }
            }
            sleep(contention.next_delay()).await;
        }
    }

    /// Starts to take an item, in a task that ends when the outcome is known or this node ID is no longer valid.
    fn take(self: &Arc<Self>, queue: &str, item: KeyValue, progress: &Arc<Progress>) -> Item {
        let (inner, progress, value) = (Arc::clone(self), Arc::clone(progress), item.value.clone());
        let task = tokio::spawn(async move {
            let change = Take { item };
            tokio::select! {
                biased;
                error = inner.ended(0, true, "queue_pop") => Err(error),
                end = inner.write(&change, &progress) => end.map(|(taken, _)| taken),
            }
        });
        Item::begin(&self.context.takes, queue, value, task)
    }
}
