//! `probe` and `status`: the core's reports as JSON.

use std::time::Duration;

use pyo3::prelude::*;

use super::{calls::Call, runtime::block_on, settings::Settings};
use crate::{protocol::keys::RunKeys, run::Entropy, status};

/// What the service says of itself, or why it says nothing.
pub(super) fn probe(py: Python<'_>, settings: &Settings, limit: Duration) -> PyResult<String> {
    let Settings { core, environment, .. } = settings;
    let entropy = Entropy::from_system();
    let report = status::probe(&core.connection, &core.run.tenant, environment, &entropy, limit);
    Ok(block_on(py, report)?.to_string())
}

/// The run as the service has it.
pub(super) fn run_status(settings: &Settings, limit: Duration) -> Call {
    let (core, environment) = (settings.core.clone(), settings.environment.clone());
    let work = async move {
        let keys = RunKeys::new(&core.run.tenant, &core.run.run_id);
        status::run(&core.connection, &keys, &environment, &Entropy::from_system(), limit).await
    };
    Call::wait_for(work, |_, report| Ok(report?.to_string()))
}
