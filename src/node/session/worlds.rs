//! The record of a node, and the worlds that it is given: writing the record, reading the shard of the plan, and
//! entering a world.

use std::sync::Arc;

use super::{
    LostWorld, Session,
    stage::{Stage, StoredRecord},
};
use crate::{
    backend::{Compare, Operation, Txn},
    error::Result,
    node::snapshot::WorldFacts,
    protocol::{
        cooldown::wait_of,
        reading::RecordGet,
        records::{PlanShard, Record, RoundRecord, WorldMembership},
        standing::{Standing, standing},
    },
};

impl Session {
    pub(super) async fn put_record(&mut self) -> Result<()> {
        let Stage::In(membership) = &mut self.stage else { return Ok(()) };
        let record = self.owner.desired_record(&self.context, membership.place().cloned());
        let key = self.context.keys.node(membership.id);
        let unchanged = Compare::ModRevision(key.as_str().into(), membership.record.revision);
        let put = Txn::new(Operation::put(key, record.encode(), membership.lease.id()));
        let answer = self.context.backend.txn(put.when([unchanged])).await?;
        if answer.succeeded {
            membership.record = StoredRecord { record, revision: answer.header.revision, is_stale: false };
        } else {
            membership.needs_resync = true;
        }
        Ok(())
    }

    pub(super) async fn read_shard(&mut self) -> Result<()> {
        let (Stage::In(membership), Some(round)) = (&mut self.stage, self.known.control.round.clone()) else {
            return Ok(());
        };
        let id = membership.id;
        let keys = &self.context.keys;
        let RoundRecord { life, round: number, attempt, shards, .. } = &round.record;
        let shard_key = keys.plan_shard(life, *number, attempt, id.shard(*shards));
        let finished = membership.place().map(|place| keys.finished_node(&place.life, place.round, id));
        let (mut txn, round_now) = RecordGet::<RoundRecord>::first(keys.round());
        let shard = RecordGet::<PlanShard>::next(&mut txn, shard_key);
        let finished = finished.map(|key| txn.get(key));
        let answer = self.context.backend.txn(txn).await?;
        let has_finished = finished.is_some_and(|finished| finished.is_found(&answer));
        membership.raise_revision(answer.header.revision);
        membership.read_attempt = Some(attempt.clone());
        if round_now
            .record(&answer)?
            .is_none_or(|now| (&now.world, &now.attempt) != (&round.record.world, attempt))
        {
            // `ctl/round` has changed, which the watch will report.
            return Ok(());
        }
        let shard = shard.record(&answer)?;
        match standing(id, &round.record, shard.as_ref()) {
            Standing::Waiting => {}
            Standing::Member(rank) => {
                let entry = shard.iter().flat_map(|shard| &shard.nodes).find(|entry| entry.id == id);
                let own = &self.context.settings.node_name;
                let name = entry.map_or(own, |entry| &entry.name).clone();
                let neighbors = shard.as_ref().and_then(|shard| shard.neighbors.get(&id)).cloned();
                self.enter_world(name, rank, &round.record);
                self.enter_lifelines(neighbors.unwrap_or_default());
            }
            Standing::Excluded if has_finished => {
                // The node continues to wait for its exit barrier in the world that it has.
                tracing::info!("round {number} was formed without this node, which is finished");
            }
            Standing::Excluded if membership.world.is_some() => {
                self.handle_exclusion(format!(
                    "round {number} was formed without this node: {}",
                    round.record.why
                ));
            }
            Standing::Excluded => {
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

    fn enter_world(&mut self, name: String, rank: u32, round: &RoundRecord) {
        let Stage::In(membership) = &mut self.stage else { return };
        let RoundRecord { life, round: number, size, master_address, master_port, why, .. } = round;
        let place = WorldMembership {
            life: life.clone(),
            round: *number,
            world: round.world.clone(),
            rank,
            size: *size,
        };
        tracing::Span::current().record("round", *number);
        tracing::info!(
            "round {number}: rank {rank} of {size}, rank 0 at {master_address}:{master_port}; {why}"
        );
        self.shared.release_stores_before(&place);
        membership.world = Some(Arc::new(WorldFacts {
            node: membership.id,
            name,
            place,
            master_address: master_address.clone(),
            master_port: *master_port,
            why: why.clone(),
            host: round.host.clone(),
            host_address: round.host_address.clone(),
        }));
        self.owner.seeks = false;
        self.lost = LostWorld::default();
    }
}
