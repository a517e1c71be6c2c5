//! Describes the nodes that wait for a round in one key, at most once a second and only while nodes wait. Otherwise each
//! waiting node would have to read the records of all nodes.

use std::time::Duration;

use tokio::time::Instant;

use super::{Term, Written};
use crate::{
    backend::Operation,
    error::Result,
    protocol::{records::Record as _, waiting::WaitingRecord},
};

/// The shortest time between two reports, and from a change to the report on it. Nodes read it after 5 s of waiting.
const INTERVAL: Duration = Duration::from_secs(1);

/// The last report, and when the next one is due.
#[derive(Debug, Default)]
pub(super) struct Report {
    due: Option<Instant>,
    written: Option<WaitingRecord>,
}

impl Report {
    /// Something has changed that a report may say.
    pub(super) fn note_change(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + INTERVAL);
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

    /// Writes the report, if nodes wait and it says something else than the last one.
    pub(super) async fn write_report(&mut self) -> Result<Written> {
        let unreadable = self.revisions.len().saturating_sub(self.roster.nodes.len());
        let described = WaitingRecord::of(&self.roster, unreadable, &self.context.policy);
        let record = match described {
            Some(record) if self.run_lease != 0 && self.report.written.as_ref() != Some(&record) => record,
            _ => {
                self.report.due = None;
                return Ok(Written::Skipped);
            }
        };
        let put = vec![Operation::put(self.context.keys.waiting(), record.encode(), self.run_lease)];
        let written = match self.office.write(&self.context, self.round_revision, None, put).await {
            Ok(written) => written,
            Err(error) => {
                // Decisions do not wait for it.
                tracing::debug!(%error, "cannot write which nodes wait");
                self.report.due = Some(Instant::now() + INTERVAL);
                return Ok(Written::Skipped);
            }
        };
        self.report = Report { due: None, written: Some(record) };
        Ok(written)
    }
}
