//! `Dashboard`: runs as a page in a browser.

use std::{path::PathBuf, time::Duration};

use pyo3::prelude::*;

use super::{
    calls::Call,
    seconds::duration,
    served::Served,
    server::{Address, Login, bind_optional, tls},
    settings::Settings,
};
use crate::{
    Error,
    dashboard::{Dashboard as CoreDashboard, DashboardOptions, RunSource},
    server::bind,
};

/// A dashboard. It is served until it is stopped.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Dashboard {
    served: Served<CoreDashboard>,
    endpoint: String,
    metrics_endpoint: Option<String>,
}

#[pymethods]
impl Dashboard {
    #[staticmethod]
    #[pyo3(signature = (settings, host, port, *, hosts = None, cert = None, key = None, user = None, password_file = None, metrics = None, timeout_seconds = 5.0))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn start(
        settings: &Settings,
        host: String,
        port: u16,
        hosts: Option<Vec<String>>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        user: Option<String>,
        password_file: Option<PathBuf>,
        metrics: Option<Address>,
        timeout_seconds: f64,
    ) -> PyResult<Call> {
        let limit: Duration = duration(timeout_seconds)?;
        let (tls, login) = (tls(cert, key, None)?, Login::new(user, password_file)?);
        let source = RunSource::of_service(settings.source(limit), settings.core.run.tenant.clone());
        let work = async move {
            let listener = bind(&host, port).await?;
            let metrics = bind_optional(metrics).await?;
            let options =
                DashboardOptions { host, hosts: hosts.unwrap_or_default(), tls, user: login.read()? };
            let mut dashboard = CoreDashboard::start(listener, source, options)?;
            let metrics_endpoint = metrics.map(|listener| dashboard.serve_metrics(listener)).transpose()?;
            let endpoint = dashboard.endpoint().to_owned();
            Ok::<_, Error>(Self { served: Served::new(dashboard), endpoint, metrics_endpoint })
        };
        Ok(Call::wait_for(work, |_, dashboard| Ok(dashboard?)))
    }

    /// The endpoint for browsers on this machine.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The endpoint of the port for probes and Prometheus for programs on this machine, if there is one.
    #[getter]
    fn metrics_endpoint(&self) -> Option<&str> {
        self.metrics_endpoint.as_deref()
    }

    /// Waits until it is stopped. False if the time limit expires first.
    #[pyo3(signature = (*, timeout_seconds = None))]
    fn wait(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        self.served.wait(timeout_seconds)
    }

    /// Stops within two seconds. Has no effect in a forked child or if it was stopped before.
    fn stop(&self) -> Call {
        self.served.stop(CoreDashboard::stop)
    }
}
