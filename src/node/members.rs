//! The members of a world that a node was given, according to its plan, and those that have not finished yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    Node, WorldFacts,
    session::RESTORE_PAUSE,
    suspecting::{Answer, Suspect},
};
use crate::{
    backend::{
        Keys, Range,
        retry::{RetryPolicy, retry},
    },
    error::{Applied, Error, Result},
    protocol::{
        keys::RunKeys,
        records::{Phase, PlanEntry, PlanShard, Record, RoundRecord, WorldMembership},
    },
    run::decode_found,
};

impl Node {
    /// All members of a world that this node was given, by rank, read from the service now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the service does not respond in time. [`Error::Rejected`] if later rounds have
    /// replaced the plan.
    pub async fn members(&self, world: &WorldFacts, limit: Duration) -> Result<Vec<PlanEntry>> {
        self.plan_of(world, limit).await?.ok_or_else(|| Error::Rejected {
            endpoint: self.context.backend.endpoint(),
            cause: format!(
                "the plan of round {} was deleted, because a later round has formed",
                world.place.round
            ),
        })
    }

    /// Suspects the member with this rank of the world that was returned last, and waits for the verdict of the
    /// coordinator.
    ///
    /// # Errors
    /// [`Error::Unavailable`] and similar errors.
    pub async fn suspect(&self, rank: u32, why: &str, limit: Duration) -> Result<Answer> {
        let known = self.shared.subscribe().borrow().world.clone();
        let facts = known
            .filter(|known| self.returned().is_some_and(|returned| known.place.is_same_world(&returned)));
        let Some(facts) = facts else { return Ok(Answer::Void("this node is in no world")) };
        let members = self.plan_of(&facts, limit).await?.unwrap_or_default();
        let Some(member) = members.iter().find(|member| member.rank == rank) else {
            return Ok(Answer::Void("the world has no such rank"));
        };
        let by = &self.context.settings.node_name;
        let (backend, keys) = (self.context.backend.as_ref(), &self.context.keys);
        Suspect { backend, keys, id: member.id, by, why }.ask(limit).await
    }

    /// The names of the members of this node's world that are still present and have not entered their exit barrier.
    /// Empty after this node entered another world, or after later rounds replaced the plan.
    ///
    /// # Errors
    /// [`Error::Unavailable`] and similar errors, after one attempt.
    pub async fn unfinished(&self, world: &WorldMembership) -> Result<Vec<String>> {
        let keys = &self.context.keys;
        let known = self.shared.subscribe().borrow().world.clone();
        let Some(facts) = known.filter(|known| known.place.is_same_world(world)) else {
            return Ok(Vec::new());
        };
        let ids = async |prefix: String| -> Result<BTreeSet<_>> {
            let range = Range { keys_only: true, ..Range::new(Keys::prefix(prefix)) };
            let items = self.context.backend.range(range).await?.items;
            Ok(items.iter().filter_map(|item| RunKeys::node_of(&item.key)).collect())
        };
        let here = ids(keys.nodes()).await?;
        let finished = ids(keys.finished(&world.life, world.round)).await?;
        let members = self.plan_of(&facts, self.context.limits.attempt_timeout).await?.unwrap_or_default();
        let unfinished = members.into_iter().filter(|m| here.contains(&m.id) && !finished.contains(&m.id));
        Ok(unfinished.map(|entry| entry.name).collect())
    }

    /// The plan of a world by rank, unless it was deleted.
    async fn plan_of(&self, world: &WorldFacts, limit: Duration) -> Result<Option<Vec<PlanEntry>>> {
        let context = &self.context;
        let keys = &context.keys;
        let place = &world.place;
        let deadline = Instant::now() + limit;
        let read = async |range: Range| {
            let range = || context.backend.range(range.clone());
            retry(RetryPolicy::default(), context.entropy.bits(), deadline, range).await
        };
        let present = loop {
            let found = read(Range::new(Keys::one(keys.round()))).await?;
            let round: Option<RoundRecord> = decode_found(&keys.round(), &found.items)?;
            let present = round.filter(|round| place.is_of(round));
            if present.as_ref().is_none_or(|round| round.phase != Phase::Restoring) {
                break present.map(|round| round.attempt);
            }
            // While the world is restored, the plan names only the nodes that had returned when the coordinator wrote
            // it.
            if Instant::now() + RESTORE_PAUSE > deadline {
                return Err(Error::Unavailable {
                    endpoint: context.backend.endpoint(),
                    cause: format!(
                        "round {} is being restored, because the service had lost its data",
                        place.round
                    ),
                    applied: Applied::No,
                });
            }
            sleep(RESTORE_PAUSE).await;
        };
        let all = keys.plan_round(&place.life, place.round);
        let attempt_of = |key: &str| key.strip_prefix(&all)?.split('/').next().map(str::to_owned);
        let prefix = match &present {
            Some(attempt) => keys.plan(&place.life, place.round, attempt),
            None => all.clone(),
        };
        let mut attempts: BTreeMap<String, Vec<PlanEntry>> = BTreeMap::new();
        for item in read(Range::new(Keys::prefix(prefix))).await?.items {
            let key = String::from_utf8_lossy(&item.key).into_owned();
            let nodes = PlanShard::decode(&key, &item.value)?.nodes;
            attempts.entry(attempt_of(&key).unwrap_or_default()).or_default().extend(nodes);
        }
        // The plan that `ctl/round` names. If `ctl/round` names a later round, only a plan that can be that of this
        // world: there may be remaining plans of attempts that were given up, and of other worlds of this number.
        let is_whole = |plan: &Vec<PlanEntry>| {
            plan.len() == place.size as usize
                && plan.iter().any(|entry| entry.id == world.node && entry.rank == place.rank)
        };
        let plan = match present {
            Some(attempt) => attempts.remove(&attempt),
            None => attempts.into_values().find(is_whole),
        };
        Ok(plan.map(|mut members| {
            members.sort_by_key(|entry| entry.rank);
            members
        }))
    }
}
