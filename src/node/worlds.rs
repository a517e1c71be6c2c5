//! Waiting for the worlds of a run, and for the change that ends one.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    Node,
    session::Command,
    shared::{HostLost, Snapshot, State, WorldFacts},
    waiting,
};
use crate::{
    error::{Applied, Error, Result},
    protocol::{
        cooldown::wait_of,
        records::{ChangeRecord, LastWorld},
    },
};

impl Node {
    /// Waits for the next world that includes this node and was not returned yet. `port` is where it would serve as
    /// master from now on. Without a limit: `join_timeout`, or for a spare `spare_timeout`.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`], [`Error::Unavailable`] if the service was away when the time was over,
    /// [`Error::Left`], and what ends a session: [`Error::Record`], [`Error::Mismatch`].
    pub async fn next_world(&self, port: Option<u16>, limit: Option<Duration>) -> Result<Arc<WorldFacts>> {
        let world = self.await_world(port, limit).await?;
        self.set_returned(&world);
        Ok(world)
    }

    /// Marks a world of [`Self::await_world`] as returned.
    pub fn set_returned(&self, world: &WorldFacts) {
        self.shared.set_returned(world.place.clone());
    }

    /// The same as [`Self::next_world`], except that the next call returns this world again until it is marked as
    /// returned. A caller can therefore give up at any moment without losing a world.
    ///
    /// # Errors
    /// Those of [`Self::next_world`].
    pub async fn await_world(&self, port: Option<u16>, limit: Option<Duration>) -> Result<Arc<WorldFacts>> {
        let began = Instant::now();
        let mut snapshot = self.shared.subscribe();
        let mut asked = false;
        // The wait of a spare does not count as a wait for the first world, even if its state changes in between.
        let (mut since, mut spare) = (began, false);
        let mut speak_at = began + waiting::FIRST_LINE;
        let never = began + Duration::from_secs(1_000_000_000);
        // A line is read from the service while this waits: the answer may be slow, and a world may form meanwhile.
        let mut line: Option<waiting::Line<'_>> = None;
        loop {
            let seen = snapshot.borrow_and_update().clone();
            if let Some(world) = seen.world.as_ref().filter(|world| self.is_unreturned(&world.place, &seen)) {
                return Ok(Arc::clone(world));
            }
            if let Some(closed) = &seen.closed {
                return Err(closed.error(self.run_id()));
            }
            if let Some(error) = seen.end {
                return Err(error);
            }
            if !asked {
                asked = true;
                if seen.world.is_some() || seen.node.is_none() || port.is_some() {
                    let after = self.shared.returned();
                    self.commands.send(Command::Seek { port, after }).await.map_err(|_| Error::Left)?;
                }
            }
            if spare != (seen.state == State::Spare) {
                spare = !spare;
                since = Instant::now();
            }
            let deadline = self.deadline(&seen, if limit.is_some() { began } else { since }, limit);
            tokio::select! {
                biased;
                changed = snapshot.changed() => changed.map_err(|_| Error::Left)?,
                () = sleep_until(deadline.unwrap_or(never)) => {
                    tokio::select! {
                        biased;
                        // If a world has formed in the meantime, it is returned instead of an error.
                        changed = snapshot.changed() => changed.map_err(|_| Error::Left)?,
                        error = self.timed_out(began, seen) => return Err(error),
                    }
                }
                () = sleep_until(speak_at) => {
                    speak_at = Instant::now() + waiting::NEXT_LINES;
                    line = Some(Box::pin(self.log_waiting(seen, spare, deadline)));
                }
                () = waiting::finished(&mut line) => line = None,
            }
        }
    }

    /// Logs which nodes wait or are in its way, as far as the service answers.
    async fn log_waiting(&self, seen: Snapshot, spare: bool, deadline: Option<Instant>) {
        let until = || match deadline {
            Some(deadline) => {
                format!(
                    "for another {:.0} s",
                    deadline.saturating_duration_since(Instant::now()).as_secs_f64()
                )
            }
            None => "without limit".to_owned(),
        };
        if let Some(round) = seen.round.as_ref().filter(|_| spare) {
            let full = waiting::describe_full(&self.context, round).await;
            tracing::warn!("{full}; waiting {}", until());
        } else {
            let who = waiting::describe(&self.context).await;
            let cooldown = self.cooldown(&seen);
            tracing::info!("waiting for a world in run `{}` {}: {who}{cooldown}", self.run_id(), until());
        }
    }

    /// Returns whether the world was not returned to the owner of the node yet, and is not over.
    fn is_unreturned(&self, world: &LastWorld, seen: &Snapshot) -> bool {
        let returned = self.shared.returned();
        let newer = returned.is_none_or(|old| !old.is_same_world(world));
        let has_left = matches!(seen.end, Some(Error::Left));
        newer && seen.dropped.is_none() && seen.closed.is_none() && !has_left
    }

    fn deadline(&self, seen: &Snapshot, began: Instant, limit: Option<Duration>) -> Option<Instant> {
        let settings = &self.context.settings;
        let limit = limit.or(match seen.state {
            State::Spare => settings.spare_timeout,
            _ => Some(settings.join_timeout),
        });
        let deadline = limit.map(|limit| began + limit);
        match &seen.host_lost {
            Some(lost) if seen.state == State::Uncertain => {
                let given_up = lost.since + settings.host_timeout;
                Some(deadline.map_or(given_up, |deadline| deadline.min(given_up)))
            }
            _ => deadline,
        }
    }

    /// That this node waits because it has failed before.
    fn cooldown(&self, seen: &Snapshot) -> String {
        let round = seen.round.as_ref().filter(|_| seen.world.is_none());
        let wait = round.and_then(|round| wait_of(round, &self.context.settings.node_name));
        wait.map_or_else(String::new, |wait| format!("; {wait}"))
    }

    async fn timed_out(&self, began: Instant, seen: Snapshot) -> Error {
        let cooldown = self.cooldown(&seen);
        if let Some(HostLost { host, .. }) = seen.host_lost.filter(|_| seen.state == State::Uncertain) {
            let cause = format!(
                "`{host}`, which hosted it, is lost and has not come back within {:.0} s (`host_timeout`); an etcd, or \
                 `lattice-rdzv serve` on a machine that stays, outlives any node",
                self.context.settings.host_timeout.as_secs_f64()
            );
            return Error::Unavailable { endpoint: self.endpoint(), cause, applied: Applied::No };
        }
        if let Some(trouble) = seen.trouble.filter(Error::is_transient) {
            return trouble;
        }
        let who = waiting::describe(&self.context).await;
        let what = format!("no world in run `{}`: {who}{cooldown}", self.run_id());
        Error::Timeout { what, after: began.elapsed() }
    }

    /// 1 if the world that was returned last is about to be replaced, was replaced, or was closed without success; else
    /// 0. One atomic read.
    pub fn num_nodes_waiting(&self) -> u32 {
        self.shared.waiting()
    }

    /// Why, and of which round.
    pub fn change(&self) -> Option<(LastWorld, ChangeRecord)> {
        self.shared.change()
    }

    /// Waits for a change, at most for so long. None also when there can be no more: the run is closed, or this node's
    /// part in it is over.
    pub async fn wait_change(&self, limit: Option<Duration>) -> Option<(LastWorld, ChangeRecord)> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut snapshot = self.shared.subscribe();
        loop {
            let over = {
                let seen = snapshot.borrow_and_update();
                seen.closed.is_some() || seen.end.is_some()
            };
            let change = self.change();
            if change.is_some() || over {
                return change;
            }
            let changed = snapshot.changed();
            let ended = match deadline {
                Some(deadline) => {
                    timeout_at(deadline, changed).await.map_or(true, |changed| changed.is_err())
                }
                None => changed.await.is_err(),
            };
            if ended {
                return self.change();
            }
        }
    }

    /// The world that [`Self::next_world`] returned last.
    pub fn returned(&self) -> Option<LastWorld> {
        self.shared.returned()
    }
}
