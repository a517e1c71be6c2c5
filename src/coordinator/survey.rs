//! Reading everything that a coordinator decides by, at one revision.

use std::collections::BTreeMap;

use crate::{
    backend::{KeyValue, Keys, LeaseId, Range, Revision},
    error::{Error, Result},
    protocol::{
        identity::NodeId,
        keys::RunKeys,
        records::{NodeRecord, PlanEntry, PlanShard, Record, RoundRecord},
    },
    run::Context,
};

/// The run, at one revision.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The revision.
    pub(super) revision: Revision,
    /// `ctl/round`, with its mod revision and the run's lease.
    pub(super) round: Option<(RoundRecord, Revision, LeaseId)>,
    /// The world that it commits.
    pub(super) world: Vec<PlanEntry>,
    /// All nodes, with their create revisions.
    pub(super) nodes: BTreeMap<NodeId, (NodeRecord, Revision)>,
    /// The mod revisions of all nodes' records, also of those that cannot be read.
    pub(super) revisions: BTreeMap<NodeId, Revision>,
    /// The members that have finished.
    pub(super) finished: Vec<NodeId>,
    /// Lives that are over.
    pub(super) past_lives: BTreeMap<String, Revision>,
}

impl Survey {
    /// Reads it.
    ///
    /// # Errors
    /// [`Error::FutureRevision`], after which another attempt reads everything at a newer revision, if history was
    /// compacted in between.
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
        let mut survey = Self { revision, nodes, revisions, ..Self::default() };
        let round = Range { revision, ..Range::new(Keys::one(keys.round())) };
        if let [item, ..] = context.backend.range(round).await?.items.as_slice() {
            let record = RoundRecord::decode(&keys.round(), &item.value)?;
            if record.has_world() {
                let plan = keys.plan(&record.life, record.round, &record.attempt);
                for shard in pages(context, plan.clone(), revision, false).await?.0 {
                    survey.world.extend(PlanShard::decode(&plan, &shard.value)?.nodes);
                }
                survey.finished = finished(context, &record.life, revision).await?;
            }
            survey.round = Some((record, item.mod_revision, item.lease));
        }
        for item in pages(context, keys.closed_lives(), revision, true).await?.0 {
            if let Some(life) = String::from_utf8_lossy(&item.key).rsplit('/').next() {
                survey.past_lives.insert(life.to_owned(), item.create_revision);
            }
        }
        Ok(survey)
    }
}

/// All nodes that are there now, each with its record's mod revision: what tells of every event that a watch has lost.
pub(super) async fn listing(context: &Context) -> Result<BTreeMap<NodeId, Revision>> {
    Ok(revisions(&pages(context, context.keys.nodes(), 0, true).await?.0))
}

/// The nodes of a life that have finished, at a revision (0: now).
pub(super) async fn finished(context: &Context, life: &str, revision: Revision) -> Result<Vec<NodeId>> {
    let items = pages(context, context.keys.finished_life(life), revision, true).await?.0;
    Ok(items.iter().filter_map(|item| RunKeys::node_of(&item.key)).collect())
}

/// A node's record, unless it cannot be read: then it is left out, with a warning, so that one node that writes
/// nonsense harms only itself.
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

fn nodes(items: &[KeyValue]) -> BTreeMap<NodeId, (NodeRecord, Revision)> {
    let node = |item| node_of(item).map(|(id, record)| (id, (record, item.create_revision)));
    items.iter().filter_map(node).collect()
}

fn revisions(items: &[KeyValue]) -> BTreeMap<NodeId, Revision> {
    items.iter().filter_map(|item| Some((RunKeys::node_of(&item.key)?, item.mod_revision))).collect()
}

/// All keys with a prefix at one revision (0: now), page by page, and that revision.
async fn pages(
    context: &Context,
    prefix: String,
    revision: Revision,
    keys_only: bool,
) -> Result<(Vec<KeyValue>, Revision)> {
    // Every prefix here ends in `/`, after which comes `0` in ASCII.
    let end = format!("{}0", prefix.trim_end_matches('/')).into_bytes();
    let mut from = prefix.into_bytes();
    let mut at = revision;
    let mut items: Vec<KeyValue> = Vec::new();
    loop {
        let range = Range {
            keys: Keys::Span(from.clone(), end.clone()),
            revision: at,
            limit: context.limits.page,
            keys_only,
        };
        let page = match context.backend.range(range).await {
            // Compacted between two pages: from the beginning, which is another attempt.
            Err(Error::Compacted { .. }) => return Err(Error::FutureRevision),
            page => page?,
        };
        if at == 0 {
            at = page.header.revision;
        }
        items.extend(page.items);
        match items.last() {
            Some(last) if page.more => {
                from.clone_from(&last.key);
                from.push(0);
            }
            _ => return Ok((items, at)),
        }
    }
}
