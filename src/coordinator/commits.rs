//! The writes of a coordinator's term: one method for each decision, each one commit guarded by the fencing check of
//! the term.

use tokio::time::Instant;

use super::{Term, Written, fence::COORDINATOR_WRITES};
use crate::{
    backend::{
        Keys, LeaseId, Operation,
        retry::{RetryPolicy, retry},
    },
    error::{Error, Result},
    protocol::{
        decide::Form,
        identity::{NodeId, nonce},
        losses::losses,
        neighbors::neighbors,
        plan,
        records::{
            ChangeRecord, FailureRecord, HistoryRecord, NAMES, Phase, PlanEntry, PlanShard, Record,
            RefusalRecord, RoundRecord, WorldMembership, nodes_text, some_names,
        },
    },
};

impl Term {
    async fn grant_run_lease(&mut self) -> Result<LeaseId> {
        let lease = NodeId::from_random(self.context.entropy.bits()).first_lease();
        let ttl = self.context.run_lease_ttl();
        let deadline = Instant::now() + ttl;
        let grant = async || {
            let granted = self.context.backend.lease_grant(lease, ttl).await;
            granted.inspect_err(|error| self.context.refusals.note(COORDINATOR_WRITES, error))
        };
        match retry(RetryPolicy::default(), self.context.entropy.bits(), deadline, grant).await {
            Ok(_) | Err(Error::LeaseExists { .. }) => Ok(lease),
            Err(error) => Err(error),
        }
    }

    fn record(&self, life: String, round: u64) -> RoundRecord {
        let policy = &self.context.policy;
        let attempt = nonce(self.context.entropy.bits());
        let host = self.roster.host();
        let (host, host_address) =
            (host.map(|host| host.name.clone()), host.map(|host| host.address.clone()));
        let forming = RoundRecord::forming(life, policy.min_nodes, policy.max_nodes, attempt);
        RoundRecord { round, host, host_address, sizing: policy.sizing.clone(), ..forming }
    }

    /// Writes `ctl/round` with its plan and further changes of the same commit. The parts of the plan that do not fit
    /// into one transaction are written before. No node reads a plan that `ctl/round` does not name.
    async fn commit(
        &mut self,
        mut record: RoundRecord,
        members: Vec<PlanEntry>,
        lease: LeaseId,
        also: Vec<Operation>,
    ) -> Result<Written> {
        let keys = &self.context.keys;
        let neighbors = neighbors(&members, |id| self.roster.nodes.get(&id).map(|node| &node.record));
        let shards = if members.is_empty() { Vec::new() } else { plan::shards(&members, &neighbors) };
        record.shards = u32::try_from(shards.len()).unwrap_or(u32::MAX);
        let put = |(number, shard): (u32, &PlanShard)| {
            let key = keys.plan_shard(&record.life, record.round, &record.attempt, number);
            Operation::put(key, shard.encode(), lease)
        };
        let mut puts: Vec<Operation> = (0u32..).zip(&shards).map(put).collect();
        let room = self.context.limits.operations_per_transaction.saturating_sub(also.len() + 1);
        let per_batch =
            (self.context.limits.bytes_per_transaction / (2 * plan::SHARD_BYTES)).min(room).max(1);
        while puts.len() > per_batch {
            let batch = puts.drain(..per_batch).collect();
            match self.fence.write(&self.context, self.round_revision, None, batch).await? {
                Written::Done(_) => {}
                other => return Ok(other),
            }
        }
        let value = record.encode();
        puts.push(Operation::put(keys.round(), value.clone(), lease));
        puts.extend(also);
        let written = self.fence.write(&self.context, self.round_revision, Some(&value), puts).await?;
        if let Written::Done(revision) = written {
            self.round_revision = revision;
            self.run_lease = lease;
            let now = self.moment(Instant::now());
            self.roster.set_round(now, record, members);
        }
        Ok(written)
    }

    pub(super) async fn begin_life(&mut self) -> Result<Written> {
        let lease = self.grant_run_lease().await?;
        let life = nonce(self.context.entropy.bits());
        let record = self.record(life, 0);
        self.commit(record, Vec::new(), lease, Vec::new()).await
    }

    pub(super) async fn restore(
        &mut self,
        world: WorldMembership,
        members: Vec<PlanEntry>,
        submission: Option<String>,
        why: &str,
    ) -> Result<Written> {
        let lease = self.grant_run_lease().await?;
        let mut record = self.record(world.life, world.round);
        record.world = world.world;
        record.size = world.size;
        record.phase = Phase::Restoring;
        record.submission = submission;
        why.clone_into(&mut record.why);
        self.name_master(&mut record, &members);
        // The remaining data of an older backup is deleted in the same transaction. Otherwise nodes would rewrite keys
        // that already exist, and keys that they do not know of would disappear later, with the lease that they are
        // attached to.
        let keys = &self.context.keys;
        let left = [keys.stores(&record.life), keys.all_operations(), keys.all_lost()];
        let also = left.map(|prefix| Operation::Delete(Keys::prefix(prefix))).to_vec();
        let written = self.commit(record, members, lease, also).await?;
        if matches!(written, Written::Done(_)) {
            self.roster.restoring_until =
                Some(self.moment(Instant::now()) + self.context.policy.return_window);
            tracing::warn!("restoring the run: {why}");
        }
        Ok(written)
    }

    pub(super) async fn end_restoring(&mut self, why: &str) -> Result<Written> {
        let Some(round) = self.roster.round.clone() else { return Ok(Written::Stale) };
        let mut record = RoundRecord {
            phase: Phase::Running,
            attempt: nonce(self.context.entropy.bits()),
            ..round.clone()
        };
        let members: Vec<PlanEntry> = self.roster.world.values().cloned().collect();
        self.name_master(&mut record, &members);
        let written = self.commit(record, members, self.run_lease, Vec::new()).await?;
        if matches!(written, Written::Done(_)) {
            let now = self.moment(Instant::now());
            self.roster.mark_absent_members(now, true, &self.context.policy);
            tracing::info!("service data restored: round {} continues, {why}", round.round);
        }
        Ok(written)
    }

    fn name_master(&self, record: &mut RoundRecord, members: &[PlanEntry]) {
        let master = members.iter().find(|entry| entry.rank == 0);
        if let Some(node) = master.and_then(|entry| self.roster.nodes.get(&entry.id)) {
            record.master_address.clone_from(&node.record.address);
            record.master_port = node.record.port;
        }
    }

    pub(super) async fn announce_change(&mut self, change: ChangeRecord) -> Result<Written> {
        let Some(round) = self.roster.round.clone() else { return Ok(Written::Stale) };
        let (why, number) = (change.why.clone(), round.round);
        let written = self.amend(RoundRecord { change: Some(change), ..round }).await?;
        if matches!(written, Written::Done(_)) {
            tracing::info!("round {number} is about to be replaced: {why}");
        }
        Ok(written)
    }

    pub(super) async fn refuse(&mut self, refusal: RefusalRecord, why: &str) -> Result<Written> {
        let Some(round) = self.roster.round.clone() else { return Ok(Written::Stale) };
        let written = self.amend(RoundRecord { refused: Some(refusal), ..round }).await?;
        if matches!(written, Written::Done(_)) {
            tracing::warn!("{why}");
        }
        Ok(written)
    }

    pub(super) async fn forgive(&mut self, failures: Vec<FailureRecord>) -> Result<Written> {
        let Some(round) = self.roster.round.clone() else { return Ok(Written::Stale) };
        let forgiven = round.failures.iter().filter(|failure| !failures.contains(failure));
        let names = some_names(forgiven.map(|failure| failure.name.as_str()));
        let written = self.amend(RoundRecord { failures, ..round }).await?;
        if matches!(written, Written::Done(_)) {
            tracing::info!("earlier failures of {names} no longer count");
        }
        Ok(written)
    }

    /// Changes the record of the committed round.
    async fn amend(&mut self, record: RoundRecord) -> Result<Written> {
        let value = record.encode();
        let put = vec![Operation::put(self.context.keys.round(), value.clone(), self.run_lease)];
        let written = self.fence.write(&self.context, self.round_revision, Some(&value), put).await?;
        if let Written::Done(revision) = written {
            self.round_revision = revision;
            let now = self.moment(Instant::now());
            let world = self.roster.world.values().cloned().collect();
            self.roster.set_round(now, record, world);
        }
        Ok(written)
    }

    pub(super) async fn form(&mut self, form: Form, why: String) -> Result<Written> {
        let Form { round, members, submission, failures, newcomers, took } = form;
        let Some(life) = self.roster.round.as_ref().map(|round| round.life.clone()) else {
            return Ok(Written::Stale);
        };
        let keys = &self.context.keys;
        let mut record = self.record(life.clone(), round);
        record.size = u32::try_from(members.len()).unwrap_or(u32::MAX);
        record.world = nonce(self.context.entropy.bits());
        record.phase = Phase::Running;
        record.submission = submission;
        record.failures = failures;
        record.why.clone_from(&why);
        let known = self.roster.round.as_ref().map_or(&[][..], |round| round.failures.as_slice());
        let fails = |failure: &&FailureRecord| !known.contains(failure) && !failure.cooldown().is_zero();
        let cooldowns: Vec<String> =
            record.failures.iter().filter(fails).map(|failure| failure.warning(record.min)).collect();
        self.name_master(&mut record, &members);
        let history = HistoryRecord {
            round,
            why: why.clone(),
            took_seconds: took.as_secs_f64(),
            size: record.size,
            newcomers,
            coordinator: self.fence.record.name.clone(),
            names: members.iter().take(NAMES).map(|entry| entry.name.clone()).collect(),
            formed_at: self.context.entropy.unix_seconds(),
            change: self.roster.round.as_ref().and_then(|last| last.change.clone()),
            lost: losses(&self.roster, &self.context.policy),
        };
        let also = vec![Operation::put(keys.history_round(&life, round), history.encode(), self.run_lease)];
        let previous = self.roster.round.as_ref().map_or(0, |last| last.round);
        let names = some_names(members.iter().map(|entry| entry.name.as_str()));
        let size = members.len();
        let written = self.commit(record, members, self.run_lease, also).await?;
        if matches!(written, Written::Done(_)) {
            self.roster.committed = true;
            for cooldown in cooldowns {
                tracing::warn!("{cooldown}; each of these failures ended a round");
            }
            self.plan_cleaning(Some(previous));
            self.greet_members();
            let took = took.as_secs_f64();
            let order = if size == 1 { "" } else { " by rank" };
            let nodes = nodes_text(size);
            tracing::info!("round {round} formed after {took:.1} s, {nodes}{order}: {names}; {why}");
        }
        Ok(written)
    }
}
