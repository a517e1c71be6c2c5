//! The dashboard: the runs of a tenant, or of an embedded server, as a page in a browser, and as metrics.
//!
//! Problem: an operator who is called at night has a browser, but no shell in the cluster. Design: a small server that
//! reads runs as `lattice-rdzv status` does, and sends the same JSON to the page as server-sent events. It writes
//! nothing: it serves only GET and HEAD, and its reads change neither runs nor the service.
//!
//! | module | purpose |
//! |---|---|
//! | [`access`], [`login`] | which requests are served; pure, and the login |
//! | [`assets`] | the files of the page, and the headers of all responses |
//! | [`frames`], [`streams`] | events as bytes, and the responses that send them |
//! | [`listening`] | connections and their limits |
//! | [`live`], [`overview`], [`pace`] | the runs that browsers show, the list of all runs, and how often; the last is pure |
//! | [`routes`] | the paths |
//! | [`source`] | the source of the runs |

mod access;
mod assets;
mod frames;
mod listening;
mod live;
mod login;
mod overview;
mod pace;
mod routes;
mod source;
mod streams;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

pub use self::source::RunSource;
use self::{
    access::{Policy, check_exposure},
    live::Live,
    login::Login,
    overview::Overview,
    routes::Shared,
    streams::Streams,
};
use crate::{
    error::{Error, Result},
    server::{Credentials, MoreMetrics, Renewed, ServerTls, reachable},
    status::counters::Accumulator,
};

/// How the dashboard is served. The default is without TLS and a login, which is possible on loopback addresses only.
#[derive(Clone, Debug, Default)]
pub struct DashboardOptions {
    /// The host that was asked for. Requests may name it.
    pub host: String,
    /// Further host names that requests may name.
    pub hosts: Vec<String>,
    /// Serves TLS.
    pub tls: Option<ServerTls>,
    /// Requires this login.
    pub user: Option<Credentials>,
}

/// A dashboard that is served. Dropping it ends it at once; [`Self::stop`] ends it in order.
#[derive(Debug)]
pub struct Dashboard {
    endpoint: String,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Dashboard {
    /// Serves on a listener, which [`crate::server::bind`] makes, as tasks of the present tokio runtime.
    ///
    /// # Errors
    /// [`Error::Setting`] if other machines can reach the address and there is no TLS or no login, or if certificates
    /// cannot be used.
    pub fn start(listener: TcpListener, source: RunSource, options: DashboardOptions) -> Result<Self> {
        let DashboardOptions { host, hosts, tls, user } = options;
        let address = address_of(&listener)?;
        check_exposure(address.ip(), tls.is_some(), user.is_some())?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let tls = tls.map(Renewed::new).transpose()?;
        let (stop, stopping) = watch::channel(false);
        let live = Live::new(source, stopping.clone());
        let began = live.source.now().as_secs_f64();
        let own = [host, address.ip().to_string()];
        let shared = Arc::new(Shared {
            policy: Policy {
                hosts: own.into_iter().chain(hosts).map(|host| host.to_ascii_lowercase()).collect(),
                any_address: address.ip().is_unspecified(),
            },
            login: user.map(Login::new),
            overview: Overview::new(Arc::clone(&live), stopping.clone()),
            live,
            streams: Streams::default(),
            counters: Mutex::new(Accumulator::new(began)),
            stopping: stopping.clone(),
        });
        let endpoint = format!("{scheme}://{}", reachable(address));
        tracing::info!(endpoint, login = shared.login.is_some(), "the dashboard is served on {address}");
        let task = tokio::spawn(listening::serve(listener, tls, routes::page(&shared), stopping));
        Ok(Self { endpoint, shared, stop, tasks: vec![task] })
    }

    /// Serves `/metrics`, `/livez` and `/readyz` on a second listener, over plain HTTP and without a login, for probes and
    /// Prometheus. Returns its URL for programs on this machine.
    ///
    /// # Errors
    /// [`Error::Setting`] if the listener has no address.
    pub fn serve_metrics(&mut self, listener: TcpListener) -> Result<String> {
        let address = address_of(&listener)?;
        let endpoint = format!("http://{}", reachable(address));
        tracing::info!(endpoint, "metrics of the dashboard are served on {address}");
        let (router, stopping) = (routes::metrics_only(&self.shared), self.shared.stopping.clone());
        self.tasks.push(tokio::spawn(listening::serve(listener, None, router, stopping)));
        Ok(endpoint)
    }

    /// The text of its `/metrics`, for the metrics of a server.
    pub fn metrics(&self) -> MoreMetrics {
        let shared = Arc::clone(&self.shared);
        Arc::new(move || {
            let shared = Arc::clone(&shared);
            Box::pin(async move { routes::metrics_text(&shared).await })
        })
    }

    /// Where browsers on this machine reach it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Ends all streams, and stops within two seconds.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        for task in self.tasks.drain(..) {
            // A task that panicked has stopped as well.
            let _ = task.await;
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr> {
    listener
        .local_addr()
        .map_err(|error| Error::Setting { message: format!("the listener has no address: {error}") })
}
