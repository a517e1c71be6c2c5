//! `close_run`, `drain_node`, and `report_lost`: forwards the acts of an operator.

use std::time::Duration;

use pyo3::{exceptions::PyValueError, prelude::*};

use super::{calls::Call, settings::Settings};
use crate::{
    node::suspecting::Answer,
    operate::{Closing, Operator},
    protocol::{identity::NodeId, records::Outcome},
};

pub(super) fn outcome_of(outcome: &str) -> PyResult<Outcome> {
    match outcome {
        "succeeded" => Ok(Outcome::Succeeded),
        "failed" => Ok(Outcome::Failed),
        "ended" => Ok(Outcome::Ended),
        other => Err(PyValueError::new_err(format!(
            "`outcome` must be `succeeded`, `failed` or `ended`, and is: `{other}`"
        ))),
    }
}

/// Closes the run. Returns whether this call closed it, and the closing (outcome, by, why). `None` if there is no run.
pub(super) fn close_run(
    settings: &Settings,
    outcome: &str,
    by: String,
    why: String,
    limit: Duration,
) -> PyResult<Call> {
    let outcome = outcome_of(outcome)?;
    let (source, run) = (settings.source(limit), settings.core.run.clone());
    let work = async move { Operator::connect(&source, &run, by).await?.close(outcome, &why, limit).await };
    Ok(Call::write(work, |_, closing| {
        Ok(match closing? {
            Closing::Closed(record) => Some((true, record.outcome.as_str(), record.by, record.why)),
            Closing::Already(record) => Some((false, record.outcome.as_str(), record.by, record.why)),
            Closing::Absent => None,
        })
    }))
}

/// Requests that a node leaves. Returns whether the node is in the run.
pub(super) fn drain_node(
    settings: &Settings,
    node: String,
    by: String,
    why: String,
    limit: Duration,
) -> PyResult<Call> {
    let id = NodeId::try_from(node).map_err(PyValueError::new_err)?;
    let (source, run) = (settings.source(limit), settings.core.run.clone());
    let work = async move { Operator::connect(&source, &run, by).await?.drain(id, &why, limit).await };
    Ok(Call::write(work, |_, done| Ok(done?)))
}

/// Asks whether a node is dead, or declares it dead. Returns a word for the answer, and the evidence or the reason.
pub(super) fn report_lost(
    settings: &Settings,
    node: String,
    by: String,
    why: String,
    force: bool,
    limit: Duration,
) -> PyResult<Call> {
    let id = NodeId::try_from(node).map_err(PyValueError::new_err)?;
    let (source, run) = (settings.source(limit), settings.core.run.clone());
    let work =
        async move { Operator::connect(&source, &run, by).await?.report_lost(id, &why, force, limit).await };
    Ok(Call::write(work, |_, answer| Ok(words(answer?))))
}

/// An answer about a suspect: a word for it, and the evidence or the reason.
pub(super) fn words(answer: Answer) -> (&'static str, String) {
    match answer {
        Answer::Lost(evidence) => ("lost", evidence),
        Answer::Gone => ("gone", String::new()),
        Answer::Alive => ("alive", String::new()),
        Answer::Unknown => ("unknown", String::new()),
        Answer::Unanswered => ("unanswered", String::new()),
        Answer::Void(why) => ("void", why.to_owned()),
    }
}
