//! `probe`, `status`, `runs` and `StatusWatch`: the core's reports as JSON.

use std::{sync::Arc, time::Duration};

use pyo3::prelude::*;
use serde::Serialize;
use tokio::sync::Mutex;

use super::{calls::Call, runtime::block_on, seconds::duration, settings::Settings};
use crate::{
    Error,
    error::{Applied, Result},
    run::Entropy,
    settings::RunName,
    status::{Source, Watching, probe as probe_service},
};

/// What the service reports about itself, or why it does not.
pub(super) fn probe(py: Python<'_>, settings: &Settings, limit: Duration) -> PyResult<String> {
    let Settings { core, environment, .. } = settings;
    let entropy = Entropy::from_system();
    let report = probe_service(&core.connection, &core.run.tenant, environment, &entropy, limit);
    Ok(block_on(py, report)?.to_string())
}

fn json(value: &impl Serialize) -> PyResult<String> {
    serde_json::to_string(value).map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))
}

/// The status of the run. `names` are nodes whose last sign of life is read, too. If the service does not respond, this
/// is an error, or with `or_unreachable`, a status that reports it.
pub(super) fn run_status(
    settings: &Settings,
    limit: Duration,
    names: Vec<String>,
    or_unreachable: bool,
) -> Call {
    let (source, run) = (settings.source(limit), settings.core.run.clone());
    let work = async move {
        if or_unreachable {
            source.status_or_unreachable(&run, &names).await
        } else {
            source.status(&run, &names).await
        }
    };
    Call::wait_for(work, |_, report| json(&report?))
}

/// The status of each run of the tenant, as a JSON list.
pub(super) fn runs(settings: &Settings, limit: Duration) -> Call {
    let (source, run) = (settings.source(limit), settings.core.run.clone());
    let work = async move { source.runs(&run.tenant).await };
    Call::wait_for(work, |_, reports| json(&reports?))
}

/// A run that is followed by watches.
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct StatusWatch {
    source: Source,
    run: RunName,
    watching: Arc<Mutex<Option<Watching>>>,
}

#[pymethods]
impl StatusWatch {
    #[new]
    #[pyo3(signature = (settings, *, timeout_seconds = 5.0))]
    fn new(settings: &Settings, timeout_seconds: f64) -> PyResult<Self> {
        let (source, run) = (settings.source(duration(timeout_seconds)?), settings.core.run.clone());
        Ok(Self { source, run, watching: Arc::default() })
    }

    /// Waits for the next change, for at most this time. Returns the status as JSON, and whether the run changed.
    #[pyo3(signature = (*, timeout_seconds))]
    fn next(&self, timeout_seconds: f64) -> PyResult<Call> {
        let (source, run) = (self.source.clone(), self.run.clone());
        let (watching, wait) = (Arc::clone(&self.watching), duration(timeout_seconds)?);
        let work = async move {
            let mut watching = watching.lock().await;
            if watching.is_none() {
                *watching = Some(begin(&source, &run).await?);
            }
            match watching.as_mut() {
                Some(watching) => watching.next(wait).await,
                None => Err(Error::Left),
            }
        };
        Ok(Call::wait_for(work, |_, next: Result<_>| {
            let (status, changed) = next?;
            Ok((json(&status)?, changed))
        }))
    }
}

async fn begin(source: &Source, run: &RunName) -> Result<Watching> {
    let begin = async { Watching::begin(source.reader(run).await?).await };
    tokio::time::timeout(source.limit, begin).await.unwrap_or_else(|_| {
        Err(Error::Unavailable {
            endpoint: "?".to_owned(),
            cause: format!("no response within {:.1} s", source.limit.as_secs_f64()),
            applied: Applied::No,
        })
    })
}
