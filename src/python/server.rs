//! `Server`: the embedded server in this process.

use std::path::PathBuf;

use pyo3::prelude::*;
use tokio::net::TcpListener;

use super::{calls::Call, errors::SettingsError, served::Served};
use crate::{
    Error,
    backend::etcd::Pem,
    dashboard::{Dashboard, DashboardOptions, RunSource},
    server::{Credentials, Server as CoreServer, ServerOptions, ServerTls, bind},
};

/// The embedded server. It serves until it is stopped.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Server {
    served: Served<(CoreServer, Option<Dashboard>)>,
    endpoint: String,
    metrics_endpoint: Option<String>,
    dashboard_endpoint: Option<String>,
    member_id: u64,
}

#[pymethods]
impl Server {
    #[staticmethod]
    #[pyo3(signature = (host, port, *, cert = None, key = None, client_ca = None, user = None, password_file = None, metrics = None, dashboard = None, dashboard_hosts = None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn start(
        host: String,
        port: u16,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        client_ca: Option<PathBuf>,
        user: Option<String>,
        password_file: Option<PathBuf>,
        metrics: Option<Address>,
        dashboard: Option<Address>,
        dashboard_hosts: Option<Vec<String>>,
    ) -> PyResult<Call> {
        let (tls, login) = (tls(cert, key, client_ca)?, Login::new(user, password_file)?);
        let work = async move {
            let user = login.read()?;
            let listener = bind(&host, port).await?;
            let page = DashboardOptions {
                host: dashboard.as_ref().map(|(host, _)| host.clone()).unwrap_or_default(),
                hosts: dashboard_hosts.unwrap_or_default(),
                // Browsers log in and have no client certificates.
                tls: tls.clone().map(|tls| ServerTls { client_ca: None, ..tls }),
                user: user.clone(),
            };
            let options = ServerOptions { tls, user, ..ServerOptions::default() };
            let (metrics, dashboard) = (bind_optional(metrics).await?, bind_optional(dashboard).await?);
            let mut server = CoreServer::start(listener, options)?;
            let source = RunSource::of_server(&server);
            let dashboard = dashboard.map(|listener| Dashboard::start(listener, source, page)).transpose()?;
            let of_runs = dashboard.as_ref().map(Dashboard::metrics);
            let metrics_endpoint =
                metrics.map(|listener| server.serve_metrics(listener, of_runs)).transpose()?;
            Ok::<_, Error>(Self {
                endpoint: server.endpoint().to_owned(),
                metrics_endpoint,
                dashboard_endpoint: dashboard.as_ref().map(|dashboard| dashboard.endpoint().to_owned()),
                member_id: server.member_id(),
                served: Served::new((server, dashboard)),
            })
        };
        Ok(Call::wait_for(work, |_, server| Ok(server?)))
    }

    /// The endpoint for clients on this machine.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The endpoint of the port for probes and Prometheus for programs on this machine, if there is one.
    #[getter]
    fn metrics_endpoint(&self) -> Option<&str> {
        self.metrics_endpoint.as_deref()
    }

    /// The endpoint of the dashboard for browsers on this machine, if there is one.
    #[getter]
    fn dashboard_endpoint(&self) -> Option<&str> {
        self.dashboard_endpoint.as_deref()
    }

    /// The version, by which clients can distinguish it from another server.
    #[getter]
    fn member_id(&self) -> u64 {
        self.member_id
    }

    /// Waits until it is stopped. Returns false if the time limit expires first.
    #[pyo3(signature = (*, timeout_seconds = None))]
    fn wait(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        self.served.wait(timeout_seconds)
    }

    /// Notifies its clients and stops, within two seconds. Has no effect in a forked child or if it was stopped before.
    fn stop(&self) -> Call {
        self.served.stop(|(server, dashboard)| async {
            let dashboard = async {
                if let Some(dashboard) = dashboard {
                    dashboard.stop().await;
                }
            };
            tokio::join!(dashboard, server.stop());
        })
    }
}

/// The host and the port of a listener.
pub(super) type Address = (String, u16);

/// The certificate of a server, from files.
pub(super) fn tls(
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
) -> PyResult<Option<ServerTls>> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(ServerTls {
            cert: Pem::File(cert),
            key: Pem::File(key),
            client_ca: client_ca.map(Pem::File),
        })),
        (None, None) if client_ca.is_none() => Ok(None),
        _ => Err(together(
            "`cert` needs `key`, `key` needs `cert`, and `client_ca` needs both: pass `cert` and `key`",
        )),
    }
}

/// The login of a server: a user, and the file with the password.
pub(super) struct Login(Option<(String, PathBuf)>);

impl Login {
    pub(super) fn new(user: Option<String>, password_file: Option<PathBuf>) -> PyResult<Self> {
        match (user, password_file) {
            (Some(user), Some(file)) => Ok(Self(Some((user, file)))),
            (None, None) => Ok(Self(None)),
            _ => Err(together("`user` needs `password_file`, and `password_file` needs `user`: pass both")),
        }
    }

    pub(super) fn read(self) -> Result<Option<Credentials>, Error> {
        self.0.map(|(user, file)| Credentials::from_file(user, &file)).transpose()
    }
}

/// Listens on an address, if there is one.
pub(super) async fn bind_optional(address: Option<Address>) -> Result<Option<TcpListener>, Error> {
    match address {
        Some((host, port)) => Ok(Some(bind(&host, port).await?)),
        None => Ok(None),
    }
}

fn together(message: &'static str) -> PyErr {
    SettingsError::new_err(message)
}
