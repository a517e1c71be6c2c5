//! Compares now and then what a node knows of `ctl/` with the service. etcd has lost events of watches, and without this
//! check, a node that waits or trains would not notice a lost event.

use std::time::Duration;

use tokio::time::Instant;

use super::{Session, stage::Stage};
use crate::{error::Result, node::control::ControlGet, run::Context};

/// The average time between two checks.
const INTERVAL: Duration = Duration::from_secs(60);

/// When to check next. It is random, so that the nodes of a run do not check at the same time.
pub(super) fn next_check(context: &Context) -> Instant {
    Instant::now() + context.entropy.about(INTERVAL)
}

impl Session {
    /// Reads `ctl/`. If it differs from what the watch has reported, the node reads everything again and opens another
    /// watch. An event that is on its way has the same effect, which costs one read.
    pub(super) async fn check_control(&mut self) -> Result<()> {
        let Stage::In(membership) = &mut self.stage else { return Ok(()) };
        membership.check_at = next_check(&self.context);
        let (mut txn, control) = ControlGet::first(&self.context.keys);
        let drain = txn.get(self.context.keys.drain(membership.id));
        let answer = self.context.backend.txn(txn).await?;
        let found = control.control(&self.context.keys, &answer).map(|found| found.revisions());
        if found.ok() != Some(self.known.control.revisions()) {
            tracing::debug!("the watch on `ctl/` has not reported a change");
            membership.needs_resync = true;
        }
        if let Some(request) = drain.item(&answer) {
            self.handle_drain(request);
        }
        Ok(())
    }
}
