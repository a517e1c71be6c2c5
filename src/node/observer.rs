//! An observer: finds out whether a member whose lifeline has ended is dead, and reports its death to the run.
//!
//! It acts only on a refusal by TCP, and only while it may trust itself ([`crate::protocol::accusing`]). Each write
//! compares what was read before the member was asked. So a verdict that is wrong or late causes one node to join
//! again, and never a second world.

use std::sync::Arc;

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::loss::{Accuser, Reading};
use crate::{
    backend::{
        Keys, Range,
        retry::{Backoff, RetryPolicy},
    },
    error::Result,
    lease::LeaseState,
    lifeline::{Questions, Suspicion, Verdict},
    protocol::{
        accusing::{Deed, may_trust_itself},
        identity::NodeId,
        keys::RunKeys,
        records::{Neighbor, NodeRecord, Record, WorldMembership},
    },
    run::Context,
};

/// How many other members are asked at once, to find out whether this node reaches one of them.
const ASKED: i64 = 8;

/// How a suspicion was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// The member is dead, and the run has the report.
    Dead {
        /// The member was the coordinator, so there is none now.
        was_coordinator: bool,
    },
    /// There is no consequence, for this reason.
    Dropped(&'static str),
    /// Another world has formed than the one in which it was examined, which has this number. If this node is in the other
    /// one, it examines the suspicion again.
    OtherWorld { examined: Option<u64> },
    /// This node has lost its lease, so its renewals no longer show whether it may trust itself. It examines the suspicion
    /// again with its next one.
    LeaseReplaced,
}

/// The result of one attempt.
enum Attempt {
    Settled(Settled),
    /// The run has changed since this node read it, so another attempt is due at once.
    Changed,
    /// This node cannot settle it now.
    Postponed,
}

/// One observer, for one member that it suspects.
#[derive(Clone, Debug)]
pub(super) struct Observer {
    pub(super) context: Arc<Context>,
    /// The id of this node.
    pub(super) own: NodeId,
    /// The world that it is in.
    pub(super) place: WorldMembership,
    pub(super) lease: watch::Receiver<LeaseState>,
    pub(super) questions: Arc<dyn Questions>,
    pub(super) suspicion: Suspicion,
}

impl Observer {
    /// Examines the suspicion until it is settled.
    pub(super) async fn examine(self) -> (Suspicion, Settled) {
        let mut backoff = Backoff::new(RetryPolicy::default(), self.context.entropy.bits());
        let settled = loop {
            match self.examine_once().await {
                Ok(Attempt::Settled(settled)) => break settled,
                Ok(Attempt::Changed) => continue,
                Ok(Attempt::Postponed) => {}
                Err(error) if error.is_transient() => {}
                Err(error) => {
                    tracing::warn!("cannot report the death of a member: {error}");
                    break Settled::Dropped("the service refuses the report");
                }
            }
            sleep(backoff.next_delay()).await;
        };
        tracing::debug!(node = %self.suspicion.neighbor.id, ?settled, "a lifeline ended");
        (self.suspicion, settled)
    }

    /// Reads, asks, and writes.
    async fn examine_once(&self) -> Result<Attempt> {
        let accused = self.suspicion.neighbor.id;
        let by = Accuser {
            backend: self.context.backend.as_ref(),
            keys: &self.context.keys,
            accused,
            own: Some(self.own),
        };
        // Its sender ends with the lease.
        if self.lease.has_changed().is_err() {
            return Ok(Attempt::Settled(Settled::LeaseReplaced));
        }
        if !self.trusts_itself() {
            return Ok(Attempt::Postponed);
        }
        let before = match by.read(Some(&self.place)).await? {
            Reading::Confirm(before) => before,
            Reading::Drop(why) => return Ok(Attempt::Settled(Settled::Dropped(why))),
            Reading::OtherWorld => {
                return Ok(Attempt::Settled(Settled::OtherWorld { examined: self.place.number() }));
            }
            Reading::Later => return Ok(Attempt::Postponed),
        };
        let is_alone = self.place.size <= 2;
        if self.questions.others_ended(accused) && !is_alone && !self.reaches_others().await? {
            return Ok(Attempt::Settled(Settled::Dropped(
                "no other member greets either, so the cause may be this node",
            )));
        }
        match self.questions.confirm(&self.suspicion, self.own).await {
            Verdict::Dead => {}
            Verdict::Alive => return Ok(Attempt::Settled(Settled::Dropped("the node is alive"))),
            Verdict::Unknown => {
                return Ok(Attempt::Settled(Settled::Dropped(
                    "its address does not show whether it is dead; its lease decides",
                )));
            }
        }
        if !self.trusts_itself() {
            return Ok(Attempt::Postponed);
        }
        if !by
            .report(
                &before,
                &self.context.settings.node_name,
                &self.evidence(),
                Some(self.suspicion.at.elapsed()),
            )
            .await?
        {
            return Ok(Attempt::Changed);
        }
        let was_coordinator = matches!(before.deed, Deed::DeleteRecord { with_coordinator: true });
        Ok(Attempt::Settled(Settled::Dead { was_coordinator }))
    }

    /// Whether the lease of this node was renewed recently. If not, the question is postponed, and never dropped.
    fn trusts_itself(&self) -> bool {
        let lease = self.lease.borrow();
        let since_renewal = Instant::now().saturating_duration_since(lease.acknowledged);
        let trusts = may_trust_itself(since_renewal, lease.ttl);
        if !trusts {
            tracing::debug!(?since_renewal, "a lifeline ended, but this node cannot trust its own view");
        }
        trusts
    }

    fn evidence(&self) -> String {
        format!("{}, then refused at {}", self.suspicion.sign, self.suspicion.address)
    }

    /// Whether another member responds to a greeting of this node.
    async fn reaches_others(&self) -> Result<bool> {
        let keys = &self.context.keys;
        // Each observer starts after its own record, so that not all of them ask the same members.
        let after = [keys.node(self.own).as_bytes(), &[0]].concat();
        let end = format!("{}0", keys.nodes().trim_end_matches('/')).into_bytes();
        for span in [Keys::Span(after, end), Keys::prefix(keys.nodes())] {
            let range = Range { limit: ASKED, ..Range::new(span) };
            let found = self.context.backend.range(range).await?.items;
            let mut asked = JoinSet::new();
            for item in found {
                let key = String::from_utf8_lossy(&item.key);
                let Some(id) = RunKeys::node_of(&item.key) else { continue };
                let Ok(record) = NodeRecord::decode(&key, &item.value) else { continue };
                let Some(port) = record.lifeline else { continue };
                if id == self.own || id == self.suspicion.neighbor.id {
                    continue;
                }
                let (questions, own) = (Arc::clone(&self.questions), self.own);
                let world = self.suspicion.world;
                let other = Neighbor { id, rank: 0, address: record.address, port };
                asked.spawn(async move { questions.greet(&other, own, world).await.is_some() });
            }
            while let Some(greeted) = asked.join_next().await {
                if greeted.unwrap_or(false) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
