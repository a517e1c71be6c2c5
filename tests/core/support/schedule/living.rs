//! An agent of a schedule.

use std::{sync::Arc, time::Duration};

use lattice_rdzv::{
    Error,
    node::{Node, State},
    protocol::records::{ChangeKind, WorldMembership},
};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::COUNT_LIMIT;
use crate::support::book::Book;

/// An agent that runs by itself, and takes part in all worlds until its run is closed.
pub(crate) struct Living<L> {
    pub(crate) name: String,
    pub(super) node: Arc<Node>,
    pub(crate) link: L,
    pub(super) task: JoinHandle<()>,
    pub(super) world: watch::Receiver<Option<WorldMembership>>,
    pub(crate) cut: bool,
}

impl<L> Living<L> {
    pub(super) fn start(book: &Book, name: &str, node: Node, link: L) -> Self {
        let node = Arc::new(node);
        let (sender, world) = watch::channel(None);
        let (book, own) = (book.clone(), Arc::clone(&node));
        let named = name.to_owned();
        let task = tokio::spawn(async move {
            loop {
                match own.next_world(Some(29500), None).await {
                    Ok(world) => {
                        book.world(&named, &world);
                        let _ = sender.send(Some(world.place.clone()));
                        book.counts(&world.place);
                        let store = own.round_store(&world, true);
                        book.counted(&named, &world.place, store.add("count", 1, false, COUNT_LIMIT).await);
                    }
                    Err(Error::Timeout { .. }) => continue,
                    // The service was unavailable when the time was over.
                    Err(Error::Unavailable { .. }) => {
                        sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                    Err(error) => {
                        let seen = own.subscribe().borrow().clone();
                        return book.ended(&named, &error, &seen);
                    }
                }
                if let Some((_, change)) = own.wait_change(None).await {
                    book.write(format!("{named}: {:?}: {}", change.kind, change.why));
                    if change.kind == ChangeKind::Closed {
                        let _ = sender.send(None);
                    }
                }
            }
        });
        Self { name: name.to_owned(), node, link, task, world, cut: false }
    }

    /// Ends without notifying its peers.
    pub(super) fn kill(self) {
        self.task.abort();
    }

    pub(super) fn state(&self) -> State {
        self.node.subscribe().borrow().state
    }
}
