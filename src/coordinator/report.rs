//! Describes the nodes that wait for a round in one key, at most once a second and only while nodes wait. Otherwise each
//! waiting node would have to read the records of all nodes. In the same transaction, it writes the times of its clock for
//! readers that do not join, if they have changed.

use std::time::Duration;

use tokio::time::Instant;

use super::{Term, Written};
use crate::{
    backend::Operation,
    error::Result,
    protocol::{
        clocks::{ClocksRecord, Notes},
        decide::Decision,
        policy::Policy,
        records::{NodeRecord, Record as _},
        roster::Moment,
        waiting::WaitingRecord,
    },
};

/// The shortest time between two reports, and from a change to the report on it. Nodes read it after 5 s of waiting.
const INTERVAL: Duration = Duration::from_secs(1);

/// The last report, and when the next one is due.
#[derive(Debug, Default)]
pub(super) struct Report {
    due: Option<Instant>,
    written: Option<WaitingRecord>,
    clocks: Option<ClocksRecord>,
    notes: Notes,
}

impl Report {
    /// Records a change that may affect the report.
    pub(super) fn note_change(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + INTERVAL);
    }

    /// Sets the wall clock at the zero of the coordinator's clock.
    pub(super) fn set_zero(&mut self, zero: Option<Duration>) {
        self.notes.zero = zero;
    }

    /// Records a new record of a node. `is_new` is true if the node was not present before.
    pub(super) fn note_node(&mut self, now: Moment, record: &NodeRecord, is_new: bool, policy: &Policy) {
        let other = (record.sizes() != policy.sizes())
            .then(|| format!("nnodes {}, but the run has {}", record.sizes(), policy.sizes()));
        if is_new {
            if let Some(why) = &other {
                tracing::info!("{} was rejected: {why}", record.name);
            }
            self.notes.note_arrival(now, &record.name, other);
        }
    }

    /// When the next report is due, if one is.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Term {
    /// Whether a report is due.
    pub(super) fn is_report_due(&self) -> bool {
        self.report.due.is_some_and(|due| due <= Instant::now())
    }

    /// Writes the report if nodes wait and it differs from the last one, and the clocks if they changed.
    pub(super) async fn write_report(&mut self, decision: &Decision) -> Result<Written> {
        let unreadable = self.revisions.len().saturating_sub(self.roster.nodes.len());
        let described = WaitingRecord::of(&self.roster, unreadable, &self.context.policy);
        let described = described.map(|record| record.because(decision, self.report.notes.zero));
        let waiting = described.filter(|record| self.report.written.as_ref() != Some(record));
        let clocks = ClocksRecord::of(&self.roster, &self.context.policy, &self.report.notes);
        let clocks = clocks.filter(|record| self.report.clocks.as_ref() != Some(record));
        let (keys, lease) = (&self.context.keys, self.run_lease);
        let puts = [
            waiting.as_ref().map(|record| Operation::put(keys.waiting(), record.encode(), lease)),
            clocks.as_ref().map(|record| Operation::put(keys.clocks(), record.encode(), lease)),
        ];
        let put: Vec<Operation> = puts.into_iter().flatten().collect();
        if lease == 0 || put.is_empty() {
            self.report.due = None;
            return Ok(Written::Skipped);
        }
        let written = match self.fence.write(&self.context, self.round_revision, None, put).await {
            Ok(written) => written,
            Err(error) => {
                // Decisions do not wait for it.
                tracing::debug!(%error, "cannot write which nodes wait");
                self.report.due = Some(Instant::now() + INTERVAL);
                return Ok(Written::Skipped);
            }
        };
        self.report.due = None;
        self.report.written = waiting.or(self.report.written.take());
        self.report.clocks = clocks.or(self.report.clocks.take());
        Ok(written)
    }
}
