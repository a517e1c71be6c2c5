//! Asking the coordinator of a run whether a member is dead, and declaring a member dead.
//!
//! A node or an operator that cannot ask the member itself writes its suspicion. The coordinator has greeted all
//! members, so a refusal at a member's address is evidence for it. It reports the death as any observer does, or writes
//! its verdict.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::loss::{Accuser, Before, Reading};
use crate::{
    backend::{Backend, Compare, Operation, Revision, Txn},
    error::Result,
    protocol::{
        identity::NodeId,
        keys::RunKeys,
        reading::RecordGet,
        records::{LostRecord, NodeRecord, Record, SuspectRecord, SuspectVerdict, WorldMembership},
    },
};

/// How often the verdict is read.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What is known about a suspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its death was reported, with this evidence.
    Lost(String),
    /// It has left, or its lease has ended.
    Gone,
    /// It is alive.
    Alive,
    /// Its address does not show whether it is dead. Its lease decides.
    Unknown,
    /// The coordinator has not answered in time.
    Unanswered,
    /// The suspicion is invalid, for this reason.
    Void(&'static str),
}

/// A member that a node or an operator suspects.
#[derive(Debug)]
pub struct Suspect<'run> {
    /// The service.
    pub backend: &'run dyn Backend,
    /// The keys of the run.
    pub keys: &'run RunKeys,
    /// The member.
    pub id: NodeId,
    /// The node or operator that suspects it.
    pub by: &'run str,
    /// What they saw.
    pub why: &'run str,
}

impl Suspect<'_> {
    fn accuser(&self) -> Accuser<'_> {
        Accuser { backend: self.backend, keys: self.keys, accused: self.id, own: None }
    }

    /// Requests a verdict from the coordinator, and waits for it.
    ///
    /// # Errors
    /// Errors of reading and writing that are not transient, or that remain when `limit` has passed.
    pub async fn ask(&self, limit: Duration) -> Result<Answer> {
        let deadline = Instant::now() + limit;
        let mut asked: Option<(WorldMembership, Revision)> = None;
        loop {
            let attempt = match &asked {
                None => self.put(&mut asked).await,
                Some((world, revision)) => self.read_verdict(world, *revision).await,
            };
            if let Some(end) = end_of(attempt, deadline) {
                return end;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Declares the member dead without asking it. If it is alive, it learns of the report, and joins again.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn declare_lost(&self, limit: Duration) -> Result<Answer> {
        let deadline = Instant::now() + limit;
        let why = if self.why.is_empty() { "declared lost" } else { self.why };
        loop {
            if let Some(end) = end_of(self.try_declare_lost(why).await, deadline) {
                return end;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    async fn try_declare_lost(&self, why: &str) -> Result<Option<Answer>> {
        let before = match self.read().await? {
            Ok(before) => before,
            Err(answer) => return Ok(answer),
        };
        let is_reported = self.accuser().report(&before, self.by, why, None).await?;
        Ok(is_reported.then(|| Answer::Lost(format!("{why} (seen by {})", self.by))))
    }

    /// What the service holds about the member, or the answer if the coordinator is not needed for it.
    async fn read(&self) -> Result<std::result::Result<Before, Option<Answer>>> {
        Ok(match self.accuser().read(None).await? {
            Reading::Confirm(before) if before.lease == 0 => Err(Some(Answer::Gone)),
            Reading::Confirm(before) => Ok(*before),
            Reading::Drop(why) => Err(Some(Answer::Void(why))),
            Reading::OtherWorld | Reading::Later => Err(None),
        })
    }

    /// Writes the suspicion, unless there is one without a verdict.
    async fn put(&self, asked: &mut Option<(WorldMembership, Revision)>) -> Result<Option<Answer>> {
        let before = match self.read().await? {
            Ok(before) => before,
            Err(answer) => return Ok(answer),
        };
        let key = self.keys.suspect(&before.world.life, before.world.round, self.id);
        let (mut txn, present) = RecordGet::<SuspectRecord>::first(key.clone());
        let item = txn.get(key.as_str());
        let found = self.backend.txn(txn).await?;
        let revision = item.revision(&found);
        if present.record(&found)?.is_some_and(|record| record.verdict.is_none()) {
            *asked = Some((before.world, revision));
            return Ok(None);
        }
        let record = SuspectRecord { by: self.by.to_owned(), why: self.why.to_owned(), verdict: None };
        let txn = Txn::new(Operation::put(key.as_str(), record.encode(), before.run_lease)).when([
            Compare::ModRevision(self.keys.round().into(), before.round_revision),
            Compare::ModRevision(key.as_str().into(), revision),
        ]);
        let written = self.backend.txn(txn).await?;
        if written.succeeded {
            *asked = Some((before.world, written.header.revision));
        }
        Ok(None)
    }

    /// Reads the verdict about the suspicion that was written at this revision.
    async fn read_verdict(&self, world: &WorldMembership, asked: Revision) -> Result<Option<Answer>> {
        let WorldMembership { life, round, .. } = world;
        let (mut txn, lost) = RecordGet::<LostRecord>::first(self.keys.lost_node(life, *round, self.id));
        let node = RecordGet::<NodeRecord>::next(&mut txn, self.keys.node(self.id));
        let key = self.keys.suspect(life, *round, self.id);
        let suspect = RecordGet::<SuspectRecord>::next(&mut txn, key.clone());
        let item = txn.get(key);
        let found = self.backend.txn(txn).await?;
        let is_present = node.record(&found)?.is_some();
        Ok(match (lost.record(&found)?, suspect.record(&found)?) {
            (Some(evidence), _) if !is_present => Some(Answer::Lost(evidence.evidence())),
            (None, _) if !is_present => Some(Answer::Gone),
            // Another round has formed, and the node is in the run.
            (_, None) => Some(Answer::Alive),
            (_, Some(record)) if item.revision(&found) > asked => {
                record.verdict.map(|verdict| match verdict {
                    SuspectVerdict::Alive => Answer::Alive,
                    SuspectVerdict::Unknown => Answer::Unknown,
                })
            }
            _ => None,
        })
    }
}

/// The result of all attempts, if this was the last one.
fn end_of(attempt: Result<Option<Answer>>, deadline: Instant) -> Option<Result<Answer>> {
    let is_over = Instant::now() >= deadline;
    match attempt {
        Ok(Some(answer)) => Some(Ok(answer)),
        Ok(None) => is_over.then_some(Ok(Answer::Unanswered)),
        Err(error) => (is_over || !error.is_transient()).then_some(Err(error)),
    }
}
