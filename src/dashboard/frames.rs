//! Server-sent events as bytes, made once and shared by all browsers.
//!
//! | event | data |
//! |---|---|
//! | `status` | the JSON of `lattice-rdzv status --json` |
//! | `checked` | `at`: the last status is still current |
//! | `problem` | `since` and `message`: why, and since when, the last status may not be current |
//! | `runs` | `at`, and how many runs are listed and how many are not |
//! | `gone` | the tenant and the id of a run that does not exist any more |

use axum::body::Bytes;
use serde::Serialize;
use serde_json::json;

use crate::{settings::RunName, status::RunStatus};

/// A status.
pub(super) fn status(status: &RunStatus) -> Bytes {
    event("status", status)
}

/// A status without its nodes and rounds, for the list of runs.
pub(super) fn summary(status: &RunStatus) -> Bytes {
    let short = RunStatus {
        nodes: Vec::new(),
        rounds: Vec::new(),
        verdict: status.verdict.clone(),
        service: status.service.clone(),
        run: status.run.clone(),
        counts: status.counts.clone(),
        unreadable: Vec::new(),
        ..*status
    };
    event("status", &short)
}

pub(super) fn checked(at: f64) -> Bytes {
    event("checked", &json!({ "at": at }))
}

pub(super) fn problem(since: f64, message: &str) -> Bytes {
    event("problem", &json!({ "since": since, "message": message }))
}

pub(super) fn runs(at: f64, shown: usize, not_shown: usize) -> Bytes {
    event("runs", &json!({ "at": at, "shown": shown, "not_shown": not_shown }))
}

pub(super) fn gone(run: &RunName) -> Bytes {
    event("gone", &json!({ "tenant": run.tenant, "id": run.run_id }))
}

/// JSON has no line breaks, so it is one line of data. It cannot fail: all keys are texts.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut bytes = format!("event: {name}\ndata: ").into_bytes();
    if let Err(error) = serde_json::to_writer(&mut bytes, data) {
        tracing::warn!("an event of the dashboard has no JSON: {error}");
    }
    bytes.extend_from_slice(b"\n\n");
    Bytes::from(bytes)
}
