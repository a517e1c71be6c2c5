//! `Server`: the embedded store as a server of this process.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use pyo3::prelude::*;
use tokio::{sync::watch, time::timeout};

use super::{
    errors::{LeftError, SettingsError},
    runtime::{OfProcess, block_on, within},
    seconds::optional_duration,
};
use crate::{
    backend::etcd::Pem,
    server::{Credentials, Server as CoreServer, ServerOptions, ServerTls, bind},
};

/// The embedded store as a server. It serves until it is stopped.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Server {
    own: OfProcess<Own>,
    endpoint: String,
    metrics_endpoint: Option<String>,
    member_id: u64,
}

#[derive(Debug)]
struct Own {
    server: Mutex<Option<CoreServer>>,
    stopped: watch::Sender<bool>,
}

#[pymethods]
impl Server {
    #[staticmethod]
    #[pyo3(signature = (host, port, *, cert = None, key = None, client_ca = None, user = None, password_file = None, metrics = None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn start(
        py: Python<'_>,
        host: &str,
        port: u16,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        client_ca: Option<PathBuf>,
        user: Option<String>,
        password_file: Option<PathBuf>,
        metrics: Option<(String, u16)>,
    ) -> PyResult<Self> {
        let tls = match (cert, key) {
            (Some(cert), Some(key)) => Some(ServerTls {
                cert: Pem::File(cert),
                key: Pem::File(key),
                client_ca: client_ca.map(Pem::File),
            }),
            (None, None) if client_ca.is_none() => None,
            _ => {
                return Err(together(
                    "a certificate and its key go together, and the authority of clients' certificates needs both: pass `cert` and `key`",
                ));
            }
        };
        let user = match (user, password_file) {
            (Some(user), Some(file)) => Some(py.detach(|| Credentials::from_file(user, &file))?),
            (None, None) => None,
            _ => {
                return Err(together(
                    "a user and the file with its password go together: pass `user` and `password_file`",
                ));
            }
        };
        let listener = block_on(py, bind(host, port))??;
        let options = ServerOptions { tls, user, ..ServerOptions::default() };
        let metrics = match metrics {
            Some((host, port)) => Some(block_on(py, bind(&host, port))??),
            None => None,
        };
        let mut server = within(py, || Ok(py.detach(|| CoreServer::start(listener, options))?))?;
        let metrics_endpoint = match metrics {
            Some(listener) => Some(within(py, || Ok(server.serve_metrics(listener)?))?),
            None => None,
        };
        let (endpoint, member_id) = (server.endpoint().to_owned(), server.member_id());
        let own = Own { server: Mutex::new(Some(server)), stopped: watch::Sender::new(false) };
        Ok(Self { own: OfProcess::new(own), endpoint, metrics_endpoint, member_id })
    }

    /// Where clients on this machine reach it.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Where programs on this machine reach the port for probes and Prometheus, if there is one.
    #[getter]
    fn metrics_endpoint(&self) -> Option<&str> {
        self.metrics_endpoint.as_deref()
    }

    /// By which clients tell it from another.
    #[getter]
    fn member_id(&self) -> u64 {
        self.member_id
    }

    /// Waits until it is stopped by another thread; false if the time was over first.
    #[pyo3(signature = (*, timeout_seconds = None))]
    fn wait(&self, py: Python<'_>, timeout_seconds: Option<f64>) -> PyResult<bool> {
        let limit = optional_duration(timeout_seconds)?;
        let Some(own) = self.own.in_this_process() else {
            return Err(LeftError::new_err(
                "this server runs in the process that started it, which is another one",
            ));
        };
        let mut stopped = own.stopped.subscribe();
        block_on(py, async {
            let stopped = stopped.wait_for(|stopped| *stopped);
            match limit {
                None => stopped.await.is_ok(),
                Some(limit) => timeout(limit, stopped).await.is_ok(),
            }
        })
    }

    /// Tells its clients and ends, within two seconds. Does nothing in a forked child, nor a second time.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let Some(own) = self.own.in_this_process() else { return Ok(()) };
        let Some(server) = own.lock().take() else { return Ok(()) };
        let end = block_on(py, server.stop());
        own.stopped.send_replace(true);
        end
    }
}

impl Own {
    fn lock(&self) -> MutexGuard<'_, Option<CoreServer>> {
        // It holds one value, which is whole at any time.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn together(message: &'static str) -> PyErr {
    SettingsError::new_err(message)
}
