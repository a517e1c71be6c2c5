//! Waits for the worlds of a run, and for the change that ends a world.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument as _;

use super::{
    Node,
    session::Command,
    snapshot::{HostLost, Snapshot, State, WorldFacts},
    waiting,
};
use crate::{
    error::{Applied, Error, Result},
    protocol::{
        cooldown::wait_of,
        records::{ChangeRecord, WorldMembership},
    },
    settings::LONGEST_SECONDS,
};

/// When a wait ends, and the setting or the argument that limits it.
type Deadline = (Instant, &'static str);

/// The target of the lines of a waiting node, each of which replaces the line before it.
const WAITING: &str = "lattice_rdzv::waiting";

impl Node {
    /// Sets the interval of the log lines of a waiting node. The default is 30 s.
    pub fn log_waiting_every(&mut self, interval: Duration) {
        self.line_interval = interval;
    }

    /// Waits for the next world that includes this node and was not returned yet. `port` is the port at which it serves
    /// as master from now on. The default limit is `join_timeout`, or `spare_timeout` for a spare.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`], [`Error::Unavailable`] if the service was unavailable when the time was
    /// over, [`Error::Left`], and the errors that end a session: [`Error::Record`], [`Error::Mismatch`].
    pub async fn next_world(&self, port: Option<u16>, limit: Option<Duration>) -> Result<Arc<WorldFacts>> {
        let world = self.await_world(port, limit).await?;
        self.set_returned(&world);
        Ok(world)
    }

    /// Marks a world of [`Self::await_world`] as returned.
    pub fn set_returned(&self, world: &WorldFacts) {
        self.shared.set_returned(world.place.clone());
        // If the session has more to do than this channel holds, the next world connects the lifelines.
        let _ = self.commands.try_send(Command::WorldReturned);
    }

    /// As [`Self::next_world`], except that the next call returns this world again until it is marked as returned. A
    /// caller can therefore give up at any moment without losing a world.
    ///
    /// # Errors
    /// As [`Self::next_world`].
    pub async fn await_world(&self, port: Option<u16>, limit: Option<Duration>) -> Result<Arc<WorldFacts>> {
        let began = Instant::now();
        let mut snapshot = self.shared.subscribe();
        let mut asked = false;
        // The wait of a spare does not count as a wait for the first world, even if its state changes in between.
        let (mut since, mut spare) = (began, false);
        let mut speak_at = began + waiting::FIRST_LINE.min(self.line_interval);
        let never = began + Duration::from_secs(1_000_000_000);
        // The content of a line is read in the background, because the response may be slow and a world may form
        // meanwhile.
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
                () = sleep_until(deadline.map_or(never, |(at, _)| at)) => {
                    tokio::select! {
                        biased;
                        // If a world has formed in the meantime, it is returned instead of an error.
                        changed = snapshot.changed() => changed.map_err(|_| Error::Left)?,
                        error = self.timed_out(began, seen) => return Err(error),
                    }
                }
                () = sleep_until(speak_at) => {
                    speak_at = Instant::now() + self.line_interval;
                    line = Some(Box::pin(self.log_waiting(seen, spare, deadline).instrument(self.span.clone())));
                }
                () = waiting::finished(&mut line) => line = None,
            }
        }
    }

    /// Logs which nodes wait or prevent this node from joining, as far as the service responds.
    async fn log_waiting(&self, seen: Snapshot, spare: bool, deadline: Option<Deadline>) {
        let until = || match deadline {
            Some((at, by)) => {
                let seconds = at.saturating_duration_since(Instant::now()).as_secs_f64();
                format!("; waiting up to {seconds:.0} s more ({by})")
            }
            None => "; waiting without limit".to_owned(),
        };
        if let Some(round) = seen.round.as_ref().filter(|_| spare) {
            let full = waiting::describe_full(&self.context, round).await;
            tracing::warn!(target: WAITING, "{full}{}", until());
        } else {
            let who = waiting::describe(&self.context).await;
            let cooldown = self.cooldown(&seen);
            tracing::info!(target: WAITING, "run `{}`: {who}{cooldown}{}", self.run_id(), until());
        }
    }

    /// Whether the world was not returned to the owner of the node yet, and is still valid.
    fn is_unreturned(&self, world: &WorldMembership, seen: &Snapshot) -> bool {
        let returned = self.shared.returned();
        let newer = returned.is_none_or(|old| !old.is_same_world(world));
        let has_left = matches!(seen.end, Some(Error::Left));
        newer && seen.excluded.is_none() && seen.closed.is_none() && !has_left
    }

    fn deadline(&self, seen: &Snapshot, began: Instant, limit: Option<Duration>) -> Option<Deadline> {
        let settings = &self.context.settings;
        let (limit, by) = match (limit, seen.state) {
            (Some(limit), _) => (Some(limit), "the time limit of this call"),
            (None, State::Spare) => (settings.spare_timeout, "spare_timeout"),
            (None, _) => (Some(settings.join_timeout), "join_timeout"),
        };
        let limit = limit.filter(|limit| limit.as_secs_f64() < LONGEST_SECONDS);
        let deadline = limit.map(|limit| (began + limit, by));
        let given_up = seen.gives_up_at(settings.host_timeout).map(|at| (at, "host_timeout"));
        deadline.into_iter().chain(given_up).min()
    }

    /// The message that this node waits because it has failed before.
    fn cooldown(&self, seen: &Snapshot) -> String {
        let round = seen.round.as_ref().filter(|_| seen.world.is_none());
        let wait = round.and_then(|round| wait_of(round, &self.context.settings.node_name));
        wait.map_or_else(String::new, |wait| format!("; {wait}"))
    }

    async fn timed_out(&self, began: Instant, seen: Snapshot) -> Error {
        let cooldown = self.cooldown(&seen);
        if let Some(HostLost { host, .. }) = seen.lost_host() {
            let cause = format!(
                "`{host}`, which hosted it, is lost and has not returned within {:.0} s (`host_timeout`); to survive \
                 the loss of any node, use etcd, or `lattice-rdzv serve` on a machine outside the job",
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

    /// 1 if the world that was returned last is about to be replaced, was replaced, or was closed without success,
    /// otherwise 0. One atomic read.
    pub fn num_nodes_waiting(&self) -> u32 {
        self.shared.waiting()
    }

    /// The reason, and the world that it concerns.
    pub fn change(&self) -> Option<(WorldMembership, ChangeRecord)> {
        self.shared.change()
    }

    /// Waits for a change, at most for this time. Also returns `None` if no more changes can follow, because the run is
    /// closed or this node's session has ended.
    pub async fn wait_change(&self, limit: Option<Duration>) -> Option<(WorldMembership, ChangeRecord)> {
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
    pub fn returned(&self) -> Option<WorldMembership> {
        self.shared.returned()
    }
}
