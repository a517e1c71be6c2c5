//! Getting into the run and into its worlds: joining, the node's record, its shard of the plan; and dropping out.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Identity, Session};
use crate::{
    backend::{Compare, Header, LeaseId, Operation, Revision, Txn, retry::RetryPolicy, watcher::Watcher},
    error::{Applied, Error, Result},
    lease::Keeper,
    node::{
        joining::{Joined, Joining},
        shared::WorldFacts,
    },
    protocol::{
        cooldown::wait_of,
        identity::NodeId,
        records::{LastWorld, NodeRecord, Phase, PlanShard, Record, RoundRecord},
        returning::Before,
        standing::{Standing, standing},
    },
    run::decode_found,
};

/// How long a node that waits for a closed run's id relies on its watch alone: watches have lost events.
const LONGEST_REUSE_WAIT: Duration = Duration::from_secs(60);

impl Session {
    pub(super) fn desired(&self) -> NodeRecord {
        let settings = &self.context.settings;
        NodeRecord {
            name: settings.node_name.clone(),
            address: self.address.clone(),
            port: self.port,
            topology: settings.topology.clone(),
            index: settings.node_index,
            min: settings.min_nodes,
            max: settings.max_nodes,
            sizing: settings.sizing.clone(),
            seeks: self.seeks,
            world: self.world.as_ref().map(|world| world.place.clone()),
            leaving: self.leaving,
            hosts: self.context.hosts,
            submission: settings.submission.clone(),
        }
    }

    /// Whether the record must be put again. Its world counts only while the world is being restored from the records:
    /// otherwise no node reads it.
    pub(super) fn differs(&self, stored: &NodeRecord) -> bool {
        let desired = self.desired();
        let restoring = self.control.round_record().is_some_and(|round| round.phase == Phase::Restoring);
        let world = if restoring { desired.world.clone() } else { stored.world.clone() };
        self.record_due || NodeRecord { world, ..desired } != *stored
    }

    pub(super) fn has_unread_round(&self) -> bool {
        self.control.round_record().is_some_and(|round| {
            let mine = self.world.as_ref().is_some_and(|world| world.place.is_of(round));
            // The service was restored from an older backup: nobody is moved back, however long restoring the later
            // world takes.
            let older = self
                .world
                .as_ref()
                .is_some_and(|world| round.life == world.place.life && round.round < world.place.round);
            // While a world is put back a newer one may turn up; who is in it is settled after that.
            let known = mine || older || round.phase == Phase::Restoring;
            round.has_world() && !known && self.read_world.as_ref() != Some(&round.world)
        })
    }

    pub(super) async fn join(&mut self) -> Result<()> {
        let joining = match self.joining.clone() {
            Some(joining) if joining.sent.elapsed() < joining.ttl / 2 => joining,
            slow => {
                if let Some(slow) = slow {
                    // One of its attempts may still be in flight. Without the lease it is refused, and leaves no record of
                    // a node that does not exist.
                    self.revoke(slow.id.first_lease()).await?;
                    self.joining = None;
                }
                Joining::begin(&self.context).await?
            }
        };
        self.joining = Some(joining.clone());
        self.life = None;
        // What the watch has reported since the last read still stands, unless it was opened anew meanwhile.
        let followed = self.watched_on.take().filter(|connection| {
            let watches = self.watcher.as_ref().is_some_and(|watcher| watcher.resumed_on() == *connection);
            watches && self.context.backend.connection() == *connection
        });
        let closed = if followed.is_some() {
            self.control.closed.take()
        } else {
            self.watch_from_now().await?;
            None
        };
        let mut record = self.desired();
        record.world = None;
        let joined = match joining
            .attempt(&self.context, &record, self.past_life.as_deref(), closed, &mut self.closed_since)
            .await
        {
            Ok(joined) => joined,
            Err(error @ Error::Record { .. }) => {
                self.give_back(joining.id.first_lease());
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        match joined {
            Joined::Again => {
                self.watched_on = self.watcher.as_ref().map(Watcher::resumed_on);
                Ok(())
            }
            Joined::Later(closed, time) => {
                self.watched_on = self.watcher.as_ref().map(Watcher::resumed_on);
                self.control.closed = Some(*closed);
                self.retry_at = Some(Instant::now() + time.min(LONGEST_REUSE_WAIT));
                Ok(())
            }
            Joined::Closed(closed, lease) => {
                self.give_back(joining.id.first_lease());
                self.joining = None;
                if self.is_of_another_job(&closed) {
                    self.start_over(&closed);
                } else {
                    self.be_closed(closed, lease);
                }
                Ok(())
            }
            Joined::AlreadyDone(closed) => {
                self.give_back(joining.id.first_lease());
                Err(closed.error(&self.context.settings.run.run_id))
            }
            Joined::In { control, header, revision } => {
                self.control = *control;
                self.joining = None;
                if let Some(error) = self.other_settings() {
                    self.give_back(joining.id.first_lease());
                    return Err(error);
                }
                self.be_in(&joining, record, revision, header);
                Ok(())
            }
        }
    }

    pub(super) fn be_in(
        &mut self,
        joining: &Joining,
        record: NodeRecord,
        revision: Revision,
        header: Header,
    ) {
        let keeper = Keeper::start(&self.context, joining.id.first_lease(), joining.ttl, joining.sent);
        self.identity = Some(Identity {
            id: joining.id,
            lease: keeper.state(),
            keeper,
            record,
            record_revision: revision,
            created: revision,
            saw_office: false,
            breaks: 0,
        });
        self.world = None;
        self.read_world = None;
        self.uncertain = false;
        self.campaign_at = Some(Instant::now());
        // A new node id has no data that a setback could have taken.
        let setbacks = *self.setbacks.borrow_and_update();
        self.context.monotonic.judge(setbacks);
        // An earlier attempt may have put what this node said before.
        self.record_due = revision != header.revision;
        self.note(header);
        tracing::debug!(id = %joining.id, "joined");
        self.examine();
    }

    pub(super) fn note(&mut self, header: Header) {
        self.read_revision = header.revision;
        self.before.cluster_id = header.cluster_id;
        self.before.revision = header.revision;
    }

    pub(super) fn watch_from(&mut self, revision: Revision) {
        if let Some(watcher) = &mut self.watcher {
            watcher.restart(revision);
        } else {
            let backend = Arc::clone(&self.context.backend);
            let (policy, seed) = (RetryPolicy::default(), self.context.entropy.bits());
            let watcher = Watcher::with_policy(backend, self.context.keys.control(), revision, policy, seed);
            self.watcher = Some(watcher);
        }
        self.watch_at = Instant::now();
    }

    /// Opens the watch on `ctl/` before the read that joining makes of it. Not after it, from the revision that was
    /// read: etcd serves a watch that begins in the past from a loop that runs ten times a second
    /// (`syncWatchersLoop`), and while nodes join every revision is past at once.
    pub(super) async fn watch_from_now(&mut self) -> Result<()> {
        self.watch_from(0);
        let Some(watcher) = &mut self.watcher else { return Ok(()) };
        let limit = 2 * self.context.limits.attempt_timeout;
        match tokio::time::timeout(limit, watcher.ready()).await {
            Ok(ready) => ready,
            Err(_) => Err(Error::Unavailable {
                endpoint: self.context.backend.endpoint(),
                cause: format!("no watch could be opened within {:.1} s", limit.as_secs_f64()),
                applied: Applied::No,
            }),
        }
    }

    pub(super) async fn put_record(&mut self) -> Result<()> {
        let record = self.desired();
        let Some(identity) = &mut self.identity else { return Ok(()) };
        let key = self.context.keys.node(identity.id);
        let lease = identity.lease.borrow().lease;
        let txn = Txn {
            when: vec![Compare::ModRevision(key.clone().into(), identity.record_revision)],
            then: vec![Operation::put(key, record.encode(), lease)],
            otherwise: Vec::new(),
        };
        let answer = self.context.backend.txn(txn).await?;
        if answer.succeeded {
            identity.record = record;
            identity.record_revision = answer.header.revision;
            self.record_due = false;
        } else {
            self.doubt = true;
        }
        Ok(())
    }

    pub(super) async fn read_shard(&mut self) -> Result<()> {
        let (Some(identity), Some(round)) = (&self.identity, self.control.round.clone()) else {
            return Ok(());
        };
        let id = identity.id;
        let keys = &self.context.keys;
        let RoundRecord { life, round: number, attempt, shards, .. } = &round.record;
        let shard_key = keys.plan_shard(life, *number, attempt, id.shard(*shards));
        let mut then = vec![Operation::get(keys.round()), Operation::get(shard_key.clone())];
        let finished =
            self.world.as_ref().map(|world| keys.finished_node(&world.place.life, world.place.round, id));
        then.extend(finished.map(Operation::get));
        let answer = self.context.backend.txn(Txn { then, ..Txn::default() }).await?;
        self.before.revision = self.before.revision.max(answer.header.revision);
        self.read_world = Some(round.record.world.clone());
        let now: Option<RoundRecord> = decode_found(&keys.round(), answer.found(0))?;
        if now.is_none_or(|now| (&now.world, &now.attempt) != (&round.record.world, attempt)) {
            // It has moved on, which the watch is about to say.
            return Ok(());
        }
        let shard: Option<PlanShard> = decode_found(&shard_key, answer.found(1))?;
        match standing(id, &round.record, shard.as_ref()) {
            Standing::Waiting => {}
            Standing::Member(rank) => {
                let entry = shard.iter().flat_map(|shard| &shard.nodes).find(|entry| entry.id == id);
                let own = &self.context.settings.node_name;
                let name = entry.map_or(own, |entry| &entry.name).clone();
                self.enter(id, name, rank, &round.record);
            }
            Standing::Outside if !answer.found(2).is_empty() => {
                // The others form without it, and it waits on for its exit barrier in the world that it has.
                tracing::info!("round {number} was formed without this node, which is finished");
            }
            Standing::Outside if self.world.is_some() => {
                self.drop_out(format!("round {number} was formed without this node: {}", round.record.why));
            }
            Standing::Outside => {
                if let Some(wait) = wait_of(&round.record, &self.context.settings.node_name) {
                    tracing::warn!("no place in round {number} yet: {wait}");
                }
                let size = round.record.size;
                if size >= round.record.max {
                    tracing::info!("round {number} is full with {size} nodes: this node is a spare");
                } else if round.record.has_spares() {
                    let sizes = round.record.sizes();
                    tracing::info!("round {number} has {size} nodes of {sizes}: this node is a spare");
                }
            }
        }
        Ok(())
    }

    pub(super) fn enter(&mut self, node: NodeId, name: String, rank: u32, round: &RoundRecord) {
        let RoundRecord { life, round: number, size, master_address, master_port, why, host, .. } = round;
        let place =
            LastWorld { life: life.clone(), round: *number, world: round.world.clone(), rank, size: *size };
        tracing::info!(
            "round {number}: rank {rank} of {size}, rank 0 at {master_address}:{master_port}; {why}"
        );
        self.shared.release_stores_before(&place);
        self.world = Some(Arc::new(WorldFacts {
            node,
            name,
            place: place.clone(),
            master_address: master_address.clone(),
            master_port: *master_port,
            why: why.clone(),
            host: host.clone(),
        }));
        self.before.life = Some(life.clone());
        self.before.world = Some(place);
        self.seeking = false;
        self.dropped = None;
        self.host_lost = None;
    }

    /// The world has moved on without this node.
    pub(super) fn drop_out(&mut self, why: String) {
        tracing::warn!("no longer a member: {why}");
        self.retire();
        if let Some(world) = self.world.take() {
            if self.shared.returned().is_some_and(|had| had.is_same_world(&world.place)) {
                self.dropped = Some(why);
            } else {
                // Its owner still waits for a world, and never had this one.
                self.seeking = true;
            }
        }
    }

    /// Gives up its place in the run, with its lease. What joins next is another node.
    pub(super) fn retire(&mut self) {
        self.stop_serving();
        if let Some(identity) = self.identity.take() {
            let lease = identity.lease.borrow().lease;
            self.give_back(lease);
        }
        self.watcher = None;
        self.control.coordinator = None;
        self.doubt = false;
        self.uncertain = false;
        // Above every round it has seen, also where the store has forgotten that one.
        self.seeks = self.before.world.as_ref().map_or(self.seeks, |world| world.round + 1);
        self.before = Before::default();
        self.read_world = None;
        self.run_lease = 0;
        self.past_life = self.life.take();
    }

    /// Revokes a lease, and returns once the service has said that it is gone.
    async fn revoke(&mut self, lease: LeaseId) -> Result<()> {
        match self.context.backend.lease_revoke(lease).await {
            Ok(()) | Err(Error::LeaseNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Revokes a lease that nobody needs any more; if that fails it lapses.
    pub(super) fn give_back(&self, lease: LeaseId) {
        let context = Arc::clone(&self.context);
        tokio::spawn(async move {
            let _ = context.backend.lease_revoke(lease).await;
        });
    }
}
