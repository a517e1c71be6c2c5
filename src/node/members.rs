//! Who is in a world that a node was given, by its plan, and who of them is not done yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{Node, WorldFacts, session::RESTORE_PAUSE};
use crate::{
    backend::{
        Keys, Range,
        retry::{RetryPolicy, retry},
    },
    error::{Applied, Error, Result},
    protocol::{
        keys::RunKeys,
        records::{LastWorld, Phase, PlanEntry, PlanShard, Record, RoundRecord},
    },
    run::decode_found,
};

impl Node {
    /// All members of a world that this node was given, by rank, read from the service now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the service does not answer in time; [`Error::Rejected`] if the run has moved on so far
    /// that the plan is gone.
    pub async fn members(&self, world: &WorldFacts, limit: Duration) -> Result<Vec<PlanEntry>> {
        self.plan_of(world, limit).await?.ok_or_else(|| Error::Rejected {
            endpoint: self.context.backend.endpoint(),
            cause: format!("the plan of round {} is gone: the run has moved on", world.place.round),
        })
    }

    /// The names of the members of this node's world that are still there and have not asked for their exit barrier.
    /// Nobody, once this node is in another world or the run has moved on so far that the plan is gone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] and its like, after one attempt.
    pub async fn unfinished(&self, world: &LastWorld) -> Result<Vec<String>> {
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

    /// A world's plan by rank, as long as it is kept.
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
            // Until the end of that, the plan names only the nodes that were back when the coordinator wrote it.
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
        // What `ctl/round` names; once it has moved on, what can only be the plan of this world: others are left of
        // attempts that were given up, and of other worlds of this number.
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
