//! Leaving a run and closing it.

use std::time::Duration;

use tokio::{sync::oneshot, time::Instant};

use super::{Node, session::Command};
use crate::{error::Error, protocol::records::Outcome};

/// How long leaving and closing may take once this node has given up on a lost host, which may have returned just now.
const LOST_HOST_LIMIT: Duration = Duration::from_secs(1);

impl Node {
    /// Announces that this node is about to leave. Returns whether the other nodes can read it.
    pub async fn mark_leaving(&self, limit: Duration) -> bool {
        let (done, answer) = oneshot::channel();
        self.ask(Command::MarkLeaving { done }, answer, limit).await.is_some()
    }

    /// Leaves the run and revokes the lease. Returns whether the service acknowledged it. Idempotent. If several callers
    /// wait, the shortest of their limits applies.
    pub async fn leave(&self, limit: Option<Duration>) -> bool {
        let limit = self.limit(limit);
        let began = Instant::now();
        let left = if let Some(left) = self.left.get() {
            *left
        } else {
            self.return_kept(limit / 2).await;
            self.leave_session(limit.saturating_sub(began.elapsed())).await
        };
        self.stop_hosting(limit.saturating_sub(began.elapsed())).await;
        left
    }

    /// Writes the items of queues that no pop delivered back to their queues, for the nodes that stay.
    async fn return_kept(&self, limit: Duration) {
        if self.takes.is_empty() {
            return;
        }
        let returned = match self.run_store(limit).await {
            Ok(store) => store.return_kept(limit).await,
            Err(error) => Err(error),
        };
        if let Err(error) = returned {
            tracing::warn!("items that interrupted `queue_pop` calls took could not be returned: {error}");
        }
    }

    async fn leave_session(&self, limit: Duration) -> bool {
        let (done, answer) = oneshot::channel();
        // A session that ended because another caller left may not have read the command.
        let acknowledged =
            self.ask(Command::Leave { done }, answer, limit).await.is_some() || self.shared.has_left();
        if self.left.set(acknowledged).is_ok() && !acknowledged {
            self.session.abort();
            self.shared.end(Error::Left);
            tracing::warn!(
                "the service did not acknowledge the departure within {:.0} s; this node's record remains until its lease expires",
                limit.as_secs_f64()
            );
        }
        self.left.get().copied().unwrap_or(acknowledged)
    }

    /// Stops the service that this node hosts. If the run is closed, waits until the other nodes have left. Concurrent
    /// callers wait for the same stop.
    async fn stop_hosting(&self, limit: Duration) {
        let Ok(mut host) = tokio::time::timeout(limit, self.host.lock()).await else { return };
        let Some(host) = host.take() else { return };
        let closed = self.shared.subscribe().borrow().closed.is_some();
        if closed {
            host.linger(self.context.backend.as_ref(), &self.context.keys, limit).await;
        }
        host.stop().await;
    }

    /// Closes the run, which is final. Returns whether it is closed, by this node or another one. Closes nothing if this
    /// node is no longer in the life of the run.
    pub async fn close(&self, outcome: Outcome, why: &str, limit: Option<Duration>) -> bool {
        let (done, answer) = oneshot::channel();
        let limit = self.limit(limit);
        let command = Command::Close { outcome, why: why.to_owned(), done };
        self.ask(command, answer, limit).await.unwrap_or(false)
    }

    /// The time limit for leaving or closing. A service whose host is lost acknowledges neither.
    fn limit(&self, limit: Option<Duration>) -> Duration {
        let settings = &self.context.settings;
        let limit = limit.unwrap_or(settings.close_timeout);
        let given_up = self.shared.subscribe().borrow().gives_up_at(settings.host_timeout);
        if given_up.is_some_and(|at| at <= Instant::now()) { limit.min(LOST_HOST_LIMIT) } else { limit }
    }

    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>, limit: Duration) -> Option<T> {
        let ask = async {
            self.commands.send(command).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(limit, ask).await.ok().flatten()
    }
}
