//! What a coordinator receives from the service during its term: the reports of four watches, in batches, and listings
//! that show whether a watch has lost an event.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{RunSnapshot, Term, snapshot};
use crate::{
    backend::{
        Changes, Event, Keys,
        retry::RetryPolicy,
        watcher::{Watched, Watcher},
    },
    error::Result,
    protocol::{identity::NodeId, keys::RunKeys},
    run::Context,
};

/// How often nodes and finished nodes are listed, because watches have lost events (etcd 3.4.31, 3.4.36, 3.5.13, 3.5.18;
/// #18089).
pub(super) const LISTING_INTERVAL: Duration = Duration::from_secs(30);

/// How many reports are applied before a decision, so that many reports do not delay it without end.
const REPORTS_PER_DECISION: usize = 30_000;

/// The watches of a coordinator. They have no common order.
pub(super) struct Input {
    nodes: Watcher,
    finished: Watcher,
    lost: Watcher,
    suspects: Watcher,
}

/// A report of one of the watches.
pub(super) enum WatchReport {
    Nodes(Watched),
    Finished(Watched),
    Lost(Watched),
    Suspects(Watched),
}

impl Input {
    /// Opens the watches before anything is read, because etcd serves a watch that begins in the past only ten times a
    /// second.
    pub(super) async fn watch(context: &Context) -> Result<Self> {
        let watch = |prefix: String| {
            let (policy, seed) = (RetryPolicy::default(), context.entropy.bits());
            Watcher::with_policy(Arc::clone(&context.backend), Keys::prefix(prefix), 0, policy, seed)
        };
        let (mut nodes, mut finished) = (watch(context.keys.nodes()), watch(context.keys.all_finished()));
        let (mut lost, mut suspects) = (watch(context.keys.all_lost()), watch(context.keys.all_suspects()));
        tokio::try_join!(nodes.ready(), finished.ready(), lost.ready(), suspects.ready())?;
        Ok(Self { nodes, finished, lost, suspects })
    }

    /// The next report. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<WatchReport> {
        tokio::select! {
            biased;
            watched = self.nodes.next() => watched.map(WatchReport::Nodes),
            watched = self.finished.next() => watched.map(WatchReport::Finished),
            watched = self.lost.next() => watched.map(WatchReport::Lost),
            watched = self.suspects.next() => watched.map(WatchReport::Suspects),
        }
    }

    /// A report that has arrived.
    fn next_arrived(&mut self) -> Option<Result<WatchReport>> {
        let nodes = self.nodes.next_arrived().map(|watched| watched.map(WatchReport::Nodes));
        let finished = || self.finished.next_arrived().map(|watched| watched.map(WatchReport::Finished));
        let lost = || self.lost.next_arrived().map(|watched| watched.map(WatchReport::Lost));
        let suspects = || self.suspects.next_arrived().map(|watched| watched.map(WatchReport::Suspects));
        nodes.or_else(finished).or_else(lost).or_else(suspects)
    }

    /// Continues after this revision, at which everything was read.
    fn restart(&mut self, revision: i64) {
        for watcher in [&mut self.nodes, &mut self.finished, &mut self.lost, &mut self.suspects] {
            watcher.restart(revision + 1);
        }
    }
}

impl Term {
    /// Applies every report that has arrived, so that one decision covers all of them: etcd sends a message for each
    /// revision, and a decision reads all nodes.
    pub(super) async fn apply_arrived(&mut self) -> Result<()> {
        for _ in 0..REPORTS_PER_DECISION {
            let Some(report) = self.input.next_arrived() else { break };
            self.apply(report?).await?;
        }
        Ok(())
    }

    pub(super) async fn apply(&mut self, report: WatchReport) -> Result<()> {
        let (WatchReport::Nodes(watched)
        | WatchReport::Finished(watched)
        | WatchReport::Lost(watched)
        | WatchReport::Suspects(watched)) = &report;
        let Watched::Changes(Changes { events, .. }) = watched else { return self.read_again().await };
        match report {
            WatchReport::Nodes(_) => self.apply_nodes(events),
            WatchReport::Finished(_) => self.apply_finished(events),
            WatchReport::Lost(_) => self.apply_lost(events),
            WatchReport::Suspects(_) => self.apply_suspects(events),
        }
        Ok(())
    }

    fn apply_nodes(&mut self, events: &[Event]) {
        self.report.note_change();
        let now = self.moment(Instant::now());
        let policy = &self.context.policy;
        for event in events.iter().filter(|event| event.revision() > self.read_revision) {
            match event {
                Event::Put(item) => {
                    if let Some(id) = RunKeys::node_of(&item.key) {
                        self.revisions.insert(id, item.mod_revision);
                    }
                    if let Some((id, record)) = snapshot::node_of(item) {
                        let is_new = !self.roster.nodes.contains_key(&id);
                        self.report.note_node(now, &record, is_new, policy);
                        self.roster.put_node(id, record, item.create_revision);
                    }
                }
                Event::Delete { key, .. } => {
                    if let Some(id) = RunKeys::node_of(key) {
                        self.revisions.remove(&id);
                        self.roster.remove_node(now, id, policy);
                    }
                }
            }
        }
    }

    fn apply_finished(&mut self, events: &[Event]) {
        let Some(round) = &self.roster.round else { return };
        let current = self.context.keys.finished_life(&round.life).into_bytes();
        let puts = events.iter().filter(|event| matches!(event, Event::Put(_)));
        let ids: Vec<NodeId> = puts
            .filter(|event| event.key().starts_with(&current))
            .filter_map(|event| RunKeys::node_of(event.key()))
            .collect();
        for id in ids {
            self.roster.put_finished(id);
        }
    }

    fn apply_lost(&mut self, events: &[Event]) {
        let Some(round) = &self.roster.round else { return };
        let current = self.context.keys.lost(&round.life, round.round).into_bytes();
        let mut dead = Vec::new();
        for event in events.iter().filter(|event| event.revision() > self.read_revision) {
            let Event::Put(item) = event else { continue };
            if let Some((id, evidence)) = snapshot::lost_of(item).filter(|_| item.key.starts_with(&current)) {
                // Its observer does so, too, unless the observer has died meanwhile.
                if evidence.lease != 0 {
                    let (backend, lease) = (Arc::clone(&self.context.backend), evidence.lease);
                    tokio::spawn(async move { backend.lease_revoke(lease).await });
                }
                self.roster.put_lost(id, evidence, true);
                dead.push(id);
            }
        }
        self.walk_from(&dead);
    }

    pub(super) async fn read_again(&mut self) -> Result<()> {
        let snapshot = RunSnapshot::read(&self.context).await?;
        self.input.restart(snapshot.revision);
        self.apply_snapshot(snapshot);
        Ok(())
    }

    /// Reads which nodes have finished, and the evidence of losses. Returns whether one of them was not known. The
    /// watches have no common order, so the departure of a node may be reported before the reason for it.
    pub(super) async fn read_reasons(&mut self) -> Result<bool> {
        let Some(round) = self.roster.round.as_ref().filter(|round| round.has_world()) else {
            return Ok(false);
        };
        let known = (self.roster.finished.len(), self.roster.lost.len());
        let (finished, lost) = tokio::try_join!(
            snapshot::finished(&self.context, &round.life, 0),
            snapshot::lost(&self.context, &round.life, round.round, 0)
        )?;
        for id in finished {
            self.roster.put_finished(id);
        }
        for (id, evidence) in lost {
            // Evidence of members that are present does not count.
            if self.roster.absences.contains_key(&id) && !self.roster.lost.contains_key(&id) {
                self.roster.put_lost(id, evidence, false);
            }
        }
        Ok((self.roster.finished.len(), self.roster.lost.len()) != known)
    }

    pub(super) async fn check_listing(&mut self) -> Result<()> {
        self.listing_due = Instant::now() + LISTING_INTERVAL;
        self.read_reasons().await?;
        if snapshot::listing(&self.context).await? != self.revisions {
            tracing::debug!("the listing of nodes differs from what was watched; reading everything again");
            self.read_again().await?;
        }
        Ok(())
    }
}
