//! The report that the program of a node trains again after a world was formed.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Node, control::ControlGet};
use crate::{
    backend::{
        Compare, Operation, Txn,
        retry::{RetryPolicy, retry},
    },
    error::Result,
    protocol::records::{Record, ResumedRecord, WorldMembership},
    run::Context,
};

/// How long a report is attempted. A service that is away for longer has more important things to tell.
const LIMIT: Duration = Duration::from_secs(30);

/// The report that a program trains in a world, which is not written yet.
#[derive(Debug)]
pub struct Resumption {
    context: Arc<Context>,
    world: WorldMembership,
    after: Duration,
}

impl Node {
    /// The report that the program trains in the world that was returned last, once for each world, and only on rank 0.
    pub fn resumption(&self) -> Option<Resumption> {
        let (world, after) = self.shared.take_resumption()?;
        (world.rank == 0).then(|| Resumption { context: Arc::clone(&self.context), world, after })
    }
}

impl Resumption {
    /// Writes the report, unless another world has formed. No node depends on it, so errors are only logged.
    pub async fn write(self) {
        let deadline = Instant::now() + LIMIT;
        let attempt = async || {
            while !self.is_written().await? {}
            Ok(())
        };
        let written = retry(RetryPolicy::default(), self.context.entropy.bits(), deadline, attempt).await;
        if let Err(error) = written {
            tracing::debug!(%error, "cannot report that the program trains");
        }
    }

    /// Makes one attempt. Returns false if `ctl/round` has changed in between, so that another attempt is needed.
    async fn is_written(&self) -> Result<bool> {
        let Context { backend, keys, .. } = self.context.as_ref();
        let (txn, control) = ControlGet::first(keys);
        let control = control.control(keys, &backend.txn(txn).await?)?;
        let round = control.round.filter(|round| self.world.is_of(&round.record));
        let Some(round) = round else { return Ok(true) };
        let WorldMembership { life, round: number, .. } = &self.world;
        let record = ResumedRecord { round: *number, after_seconds: self.after.as_secs_f64() };
        let put = Operation::put(keys.resumed_round(life, *number), record.encode(), round.lease);
        let unchanged = Compare::ModRevision(keys.round().into(), round.revision);
        Ok(backend.txn(Txn::new(put).when([unchanged])).await?.succeeded)
    }
}
