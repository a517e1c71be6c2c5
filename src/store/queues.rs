//! Queues: an item is a key of its own, and whoever deletes it has taken it.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    Inner, Progress, Store, StoreContext,
    changes::{Put, Take},
    slots::CONTENTION,
};
use crate::{
    backend::{Keys, Range, retry::Backoff},
    error::Result,
};

impl Store {
    /// Puts an item at the end of a queue.
    pub async fn queue_push(&self, key: &str, value: &[u8], limit: Duration) -> Result<()> {
        let progress = Progress::new(format!("queue_push {key}"));
        let StoreContext { node, slots, .. } = &self.inner.context;
        let item = format!("{}{node}-{:016x}", self.inner.place(key)?.queue(), slots.unique());
        let change = Put { key: item, value: value.to_vec() };
        self.call(&progress, limit, self.inner.write(&change, &progress)).await?;
        Ok(())
    }

    /// Takes the oldest item of a queue. With `block` it waits for one, else an empty queue gives `None`.
    pub async fn queue_pop(&self, key: &str, block: bool, limit: Duration) -> Result<Option<Vec<u8>>> {
        let progress = Progress::new(format!("queue_pop {key}"));
        let queue = Keys::prefix(self.inner.place(key)?.queue());
        self.call(&progress, limit, self.inner.pop(queue, block, &progress)).await
    }

    /// How many items a queue has.
    pub async fn queue_len(&self, key: &str, limit: Duration) -> Result<u64> {
        let progress = Progress::new(format!("queue_len {key}"));
        let queue = Keys::prefix(self.inner.place(key)?.queue());
        let items = self.call(&progress, limit, self.inner.all(queue, &progress)).await?.1;
        Ok(u64::try_from(items.len()).unwrap_or(u64::MAX))
    }
}

impl Inner {
    /// Takes the oldest item under a prefix.
    async fn pop(&self, queue: Keys, block: bool, progress: &Progress) -> Result<Option<Vec<u8>>> {
        let mut contention = Backoff::new(CONTENTION, self.seed());
        loop {
            let resets = self.context.view.borrow().resets;
            let (revision, items) = self.all(queue.clone(), progress).await?;
            let Some(oldest) = items.into_iter().min_by_key(|item| item.create_revision) else {
                if !block {
                    return Ok(None);
                }
                progress.awaiting("the queue is empty".to_owned());
                self.wait_for_change(queue.clone(), revision, resets, progress).await?;
                continue;
            };
            // Its value is read before it is taken: afterwards, if the answer was lost, it might be compacted away.
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
                let change = Take { item };
                if self.write(&change, progress).await?.0 {
                    return Ok(Some(change.item.value));
                }
            }
            sleep(contention.next_delay()).await;
        }
    }
}
