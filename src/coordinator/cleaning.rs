//! Deletes what a run no longer needs after a round has formed: the stores, plans and history of earlier rounds, and the
//! idempotency slots of nodes that are gone.
//!
//! It is done in pieces, each one transaction under the coordinator's fence, and only while there is nothing to decide:
//! the nodes of a new round do not wait for it, and the service is busy with one piece only for a moment. A new
//! coordinator finds out itself what is left to delete.
//!
//! Watch events can be late or lost. Each piece therefore also compares what makes its keys useless: no node of this life
//! has finished since everything was read, and the nodes whose slots are deleted have no record. If a comparison fails,
//! everything is read again, and the same piece is considered once more.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{Term, Written};
use crate::{
    backend::{Compare, Keys, Operation, Range},
    error::Result,
    protocol::{identity::NodeId, records::Phase},
};

/// How many keys of earlier rounds one piece deletes.
const KEYS_PER_PIECE: i64 = 500;
/// The number of nodes whose slots one piece deletes. Each needs a condition and an operation, and etcd allows 128 of
/// either.
const NODES_PER_PIECE: usize = 60;

/// What is left to delete while this world is that of the run.
#[derive(Debug)]
pub(super) struct Cleaning {
    life: String,
    round: u64,
    world: String,
    stage: Stage,
    /// After a failure, cleaning up waits for the next listing, so that it never delays a decision.
    not_before: Instant,
}

/// What is deleted next.
#[derive(Debug)]
enum Stage {
    /// The number of the round before this world's round is not known yet. Nothing older than that round is needed.
    FindPrevious,
    /// The stores, plans and history of rounds before this one.
    Before(u64),
    /// The slots of nodes that are gone, from this key on.
    Slots(Vec<u8>),
    /// Nothing.
    Done,
}

impl Term {
    /// Plans the cleaning after the round that was just formed, or, without a `previous` round, after an earlier
    /// coordinator.
    pub(super) fn plan_cleaning(&mut self, previous: Option<u64>) {
        let round = self.roster.round.as_ref();
        let formed = round.filter(|round| round.has_world() && round.phase == Phase::Running);
        // Before the first round of a life there was no other round.
        let stage = match previous {
            Some(0) => None,
            Some(previous) => Some(Stage::Before(previous)),
            None => Some(Stage::FindPrevious),
        };
        self.cleaning = formed.zip(stage).map(|(round, stage)| Cleaning {
            life: round.life.clone(),
            round: round.round,
            world: round.world.clone(),
            stage,
            not_before: Instant::now(),
        });
    }

    /// Whether there is something to delete now.
    pub(super) fn is_cleaning(&mut self) -> bool {
        let round = self.roster.round.as_ref();
        let current = |cleaning: &Cleaning| {
            round.is_some_and(|round| (&round.life, &round.world) == (&cleaning.life, &cleaning.world))
        };
        self.cleaning.take_if(|cleaning| !current(cleaning) || matches!(cleaning.stage, Stage::Done));
        self.cleaning.as_ref().is_some_and(|cleaning| cleaning.not_before <= Instant::now())
    }

    /// Deletes one piece. What cannot be deleted remains until the next round, or until the run's lease expires.
    pub(super) async fn clean(&mut self) -> Result<Written> {
        let Some(mut cleaning) = self.cleaning.take() else { return Ok(Written::Skipped) };
        let cleaned = match &cleaning.stage {
            Stage::FindPrevious => self.find_previous(&cleaning).await.map(|stage| (stage, Written::Skipped)),
            Stage::Before(previous) => self.clean_rounds(&cleaning.life, *previous).await,
            Stage::Slots(from) => self.clean_slots(from.clone()).await,
            Stage::Done => return Ok(Written::Skipped),
        };
        match cleaned {
            Ok((stage, written)) => {
                if written != Written::Stale {
                    cleaning.stage = stage;
                }
                self.cleaning = Some(cleaning);
                Ok(written)
            }
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "the keys of earlier rounds will be deleted later");
                cleaning.not_before = self.listing_due;
                self.cleaning = Some(cleaning);
                Ok(Written::Skipped)
            }
            Err(error) => {
                tracing::warn!("cannot delete the keys of earlier rounds; they stay for now: {error}");
                Ok(Written::Skipped)
            }
        }
    }

    async fn find_previous(&mut self, cleaning: &Cleaning) -> Result<Stage> {
        let keys = &self.context.keys;
        let from = keys.history(&cleaning.life).into_bytes();
        let to = keys.history_round(&cleaning.life, cleaning.round).into_bytes();
        let range = Range { keys_only: true, ..Range::new(Keys::Span(from, to)) };
        let found = self.context.backend.range(range).await?.items;
        let number = |key: &[u8]| String::from_utf8_lossy(key).rsplit('/').next()?.parse().ok();
        Ok(found.last().and_then(|item| number(&item.key)).map_or(Stage::Done, Stage::Before))
    }

    /// Deletes a piece of the stores of earlier rounds. The last piece also deletes their plans and old history, which
    /// are few keys.
    async fn clean_rounds(&mut self, life: &str, previous: u64) -> Result<(Stage, Written)> {
        let keys = &self.context.keys;
        let slots = || Stage::Slots(keys.all_operations().into_bytes());
        if self.roster.finished_here().next().is_some() {
            // A node that has finished may still wait for its exit barrier, which is in the store of its round.
            return Ok((slots(), Written::Skipped));
        }
        let stores = keys.stores_before_round(life, previous);
        let range = Range { keys_only: true, limit: KEYS_PER_PIECE, ..Range::new(stores.clone()) };
        let found = self.context.backend.range(range).await?;
        let (stage, delete) = match (stores, found.items.last()) {
            (Keys::Span(from, _), Some(last)) if found.more => {
                let to = [last.key.as_slice(), &[0]].concat();
                (Stage::Before(previous), vec![Operation::Delete(Keys::Span(from, to))])
            }
            (stores, _) => {
                let others = keys.records_before_round(life, previous);
                (slots(), std::iter::once(stores).chain(others).map(Operation::Delete).collect())
            }
        };
        let finished = Keys::prefix(keys.finished_life(life));
        let unfinished = vec![Compare::UnchangedSince(finished, self.read_revision)];
        let written =
            self.fence.write_if(&self.context, self.round_revision, None, unfinished, delete).await?;
        Ok((stage, written))
    }

    /// Deletes the slots of some nodes that are gone. A node that is not in the present world and has no record can
    /// return only under another ID.
    async fn clean_slots(&mut self, from: Vec<u8>) -> Result<(Stage, Written)> {
        let keys = &self.context.keys;
        let end = keys.after_operations().into_bytes();
        let limit = self.context.limits.page;
        let range = Range { keys_only: true, limit, ..Range::new(Keys::Span(from, end)) };
        let found = self.context.backend.range(range).await?;
        let owners: BTreeSet<NodeId> =
            found.items.iter().filter_map(|item| keys.owner_of_operation(&item.key)).collect();
        let is_gone = |id: &&NodeId| !self.revisions.contains_key(id) && !self.roster.world.contains_key(id);
        let gone: Vec<NodeId> = owners.iter().filter(is_gone).copied().take(NODES_PER_PIECE).collect();
        let stage = match (owners.last(), gone.last()) {
            (_, Some(last)) if gone.len() == NODES_PER_PIECE => Stage::Slots(keys.after_operations_of(*last)),
            (Some(last), _) if found.more => Stage::Slots(keys.after_operations_of(*last)),
            _ => Stage::Done,
        };
        if gone.is_empty() {
            return Ok((stage, Written::Skipped));
        }
        // A node that has joined meanwhile, which the watch has not reported yet, keeps its slots.
        let absent = gone.iter().map(|id| Compare::absent(keys.node(*id))).collect();
        let delete = gone.iter().map(|id| Operation::Delete(Keys::prefix(keys.operations(*id)))).collect();
        let written = self.fence.write_if(&self.context, self.round_revision, None, absent, delete).await?;
        Ok((stage, written))
    }
}
