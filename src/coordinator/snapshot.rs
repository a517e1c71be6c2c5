//! Reads everything that a coordinator's decisions depend on, at one revision.

use std::collections::BTreeMap;

use super::Suspicious;
use crate::{
    backend::{KeyValue, Keys, LeaseId, Range, Revision, pages::read_pages},
    error::{Error, Result},
    protocol::{
        identity::NodeId,
        keys::RunKeys,
        records::{LostRecord, NodeRecord, PlanEntry, PlanShard, Record, RoundRecord},
    },
    run::Context,
};

/// The run, at one revision.
#[derive(Debug, Default)]
pub(super) struct RunSnapshot {
    /// The revision.
    pub(super) revision: Revision,
    /// `ctl/round`, with its mod revision and the run's lease.
    pub(super) round: Option<(RoundRecord, Revision, LeaseId)>,
    /// The world that it commits.
    pub(super) world: Vec<PlanEntry>,
    /// All nodes, with their create revisions.
    pub(super) nodes: BTreeMap<NodeId, (NodeRecord, Revision)>,
    /// The mod revisions of the records of all nodes, including those that cannot be decoded.
    pub(super) revisions: BTreeMap<NodeId, Revision>,
    /// The members that have finished.
    pub(super) finished: Vec<NodeId>,
    /// The evidence that members of the world are dead.
    pub(super) lost: Vec<(NodeId, LostRecord)>,
    /// The suspicions of the round that have no verdict yet.
    pub(super) suspects: Vec<Suspicious>,
    /// The lives that have ended.
    pub(super) past_lives: BTreeMap<String, Revision>,
}

impl RunSnapshot {
    /// Reads the run.
    ///
    /// # Errors
    /// [`Error::FutureRevision`] if history was compacted in between. Another attempt then reads everything at a newer
    /// revision.
    pub(super) async fn read(context: &Context) -> Result<Self> {
        Self::read_once(context).await.map_err(|error| match error {
            Error::Compacted { .. } => Error::FutureRevision,
            other => other,
        })
    }

    async fn read_once(context: &Context) -> Result<Self> {
        let keys = &context.keys;
        let (items, revision) = pages(context, keys.nodes(), 0, false).await?;
        let (nodes, revisions) = (nodes(&items), revisions(&items));
        let mut snapshot = Self { revision, nodes, revisions, ..Self::default() };
        let round = Range { revision, ..Range::new(Keys::one(keys.round())) };
        if let [item, ..] = context.backend.range(round).await?.items.as_slice() {
            let record = RoundRecord::decode(&keys.round(), &item.value)?;
            if record.has_world() {
                let plan = keys.plan(&record.life, record.round, &record.attempt);
                for shard in pages(context, plan.clone(), revision, false).await?.0 {
                    snapshot.world.extend(PlanShard::decode(&plan, &shard.value)?.nodes);
                }
                snapshot.finished = finished(context, &record.life, revision).await?;
                snapshot.lost = lost(context, &record.life, record.round, revision).await?;
                let suspects = keys.suspects(&record.life, record.round);
                let found = pages(context, suspects, revision, false).await?.0;
                snapshot.suspects =
                    found.iter().filter_map(|found| Suspicious::of(found, item.lease)).collect();
            }
            snapshot.round = Some((record, item.mod_revision, item.lease));
        }
        for item in pages(context, keys.closed_lives(), revision, true).await?.0 {
            if let Some(life) = String::from_utf8_lossy(&item.key).rsplit('/').next() {
                snapshot.past_lives.insert(life.to_owned(), item.create_revision);
            }
        }
        Ok(snapshot)
    }
}

/// All present nodes, each with the mod revision of its record, which reveals every event that a watch has lost.
pub(super) async fn listing(context: &Context) -> Result<BTreeMap<NodeId, Revision>> {
    Ok(revisions(&pages(context, context.keys.nodes(), 0, true).await?.0))
}

/// The nodes of a life that have finished, at a revision (0: now).
pub(super) async fn finished(context: &Context, life: &str, revision: Revision) -> Result<Vec<NodeId>> {
    let items = pages(context, context.keys.finished_life(life), revision, true).await?.0;
    Ok(items.iter().filter_map(|item| RunKeys::node_of(&item.key)).collect())
}

/// The evidence of the losses of a round, at a revision (0: now).
pub(super) async fn lost(
    context: &Context,
    life: &str,
    round: u64,
    revision: Revision,
) -> Result<Vec<(NodeId, LostRecord)>> {
    let items = pages(context, context.keys.lost(life, round), revision, false).await?.0;
    Ok(items.iter().filter_map(lost_of).collect())
}

/// The record of a node, unless it cannot be read. In that case it is left out with a warning, so that a node that
/// writes invalid records affects only itself.
pub(super) fn node_of(item: &KeyValue) -> Option<(NodeId, NodeRecord)> {
    let id = RunKeys::node_of(&item.key)?;
    match NodeRecord::decode(&String::from_utf8_lossy(&item.key), &item.value) {
        Ok(record) => Some((id, record)),
        Err(error) => {
            tracing::warn!("node left out: {error}");
            None
        }
    }
}

/// The evidence that a member is dead, unless it cannot be read. In that case the lease decides.
pub(super) fn lost_of(item: &KeyValue) -> Option<(NodeId, LostRecord)> {
    let id = RunKeys::node_of(&item.key)?;
    match LostRecord::decode(&String::from_utf8_lossy(&item.key), &item.value) {
        Ok(record) => Some((id, record)),
        Err(error) => {
            tracing::warn!("the evidence of a loss is ignored: {error}");
            None
        }
    }
}

fn nodes(items: &[KeyValue]) -> BTreeMap<NodeId, (NodeRecord, Revision)> {
    let node = |item| node_of(item).map(|(id, record)| (id, (record, item.create_revision)));
    items.iter().filter_map(node).collect()
}

fn revisions(items: &[KeyValue]) -> BTreeMap<NodeId, Revision> {
    items.iter().filter_map(|item| Some((RunKeys::node_of(&item.key)?, item.mod_revision))).collect()
}

/// Reads all keys with a prefix at one revision (0: now), page by page. Also returns the revision.
async fn pages(
    context: &Context,
    prefix: String,
    revision: Revision,
    keys_only: bool,
) -> Result<(Vec<KeyValue>, Revision)> {
    let range = Range { keys: Keys::prefix(prefix), revision, limit: context.limits.page, keys_only };
    read_pages(context.backend.as_ref(), range).await
}
