//! The embedded server: the engine of [`crate::backend::memory`] with etcd's v3 API, for all clients of etcd: the
//! client of this crate, `etcdctl`, or a client in any other language.
//!
//! It keeps its data in the memory of one machine. There are no files: when the process ends all data is lost, and the
//! next server has another cluster ID. If you need more, run etcd. It serves KV, Watch, Lease, `Auth.Authenticate` (one
//! user), `Maintenance.Status`, and `Cluster.MemberList`. All other calls return Unimplemented, with a text that names
//! this server. Responses, codes, texts, and limits are those of etcd. etcd's policy about pings is not, because it
//! disconnects correct clients. Memory is bounded ([`Bounds`]) and is reported at `/metrics`.

mod api;
mod auth;
mod bodies;
mod budget;
mod connections;
mod dispatch;
mod heap;
mod kv;
mod lease;
mod listener;
mod logins;
mod member;
mod metrics;
mod observers;
mod pages;
mod process;
mod refusals;
mod requests;
mod tls;
mod user;
mod watch;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket, lookup_host},
    sync::watch::Sender,
    task::JoinHandle,
    time::{Instant, timeout},
};

use self::{api::Api, auth::Authenticator, requests::Counters};
pub use self::{
    api::{Contents, HOSTED, VERSION},
    heap::return_large_blocks,
    listener::{Listener, Socket, Tcp},
    observers::MoreMetrics,
    tls::ServerTls,
};
pub(crate) use self::{
    api::{Counted, stopped},
    connections::{Heard, PAGE_BYTES, PATIENCE, accept, serve_unless_silent},
    tls::Renewed,
    user::{User, pause, same},
};
pub use crate::backend::{etcd::Credentials, memory::engine::Bounds};
use crate::{
    backend::{Backend, memory::MemoryService},
    error::{Error, Result},
    run::Entropy,
};

/// The default port. It is not 2379, which an etcd would use.
pub use crate::discovery::HOSTING_PORT as DEFAULT_PORT;
/// The host that stands for every address of the machine.
const EVERYWHERE: &str = "*";
/// How long the name of an address to listen on is resolved. The resolver of the system alone can take up to half a
/// minute to fail.
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);
/// Clients that connect at the same moment.
const BACKLOG: u32 = 4096;

/// How to serve. By default every client, without TLS, and without data.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Serves TLS.
    pub tls: Option<ServerTls>,
    /// Requires the password of this user.
    pub user: Option<Credentials>,
    /// The limits of the data.
    pub bounds: Bounds,
    /// Starts with the data of an earlier server of this process instead of without data.
    pub contents: Option<Contents>,
    /// The mark of the run, if one of its nodes hosts the server. The version ends with the mark, and until
    /// [`Server::admit`] the server only reports its identity (`Maintenance.Status`) and serves no clients.
    pub hosted: Option<String>,
}

/// Binds exactly the named address. `*` stands for all addresses, of both families if the machine has both.
///
/// # Errors
/// [`Error::Setting`] if this machine does not have the address, another process uses it, or the name cannot be
/// resolved in time.
pub async fn bind(host: &str, port: u16) -> Result<TcpListener> {
    if host == EVERYWHERE {
        return listen_everywhere(port).map_err(|error| cannot_listen(host, port, &error));
    }
    bind_found(host, port, lookup_host((host, port))).await
}

fn cannot_listen(host: &str, port: u16, error: &dyn std::fmt::Display) -> Error {
    Error::Setting {
        message: format!(
            "cannot listen on port {port} of `{host}`; expected an address of this machine and a free port: {error}"
        ),
    }
}

async fn bind_found(
    host: &str,
    port: u16,
    addresses: impl Future<Output = std::io::Result<impl Iterator<Item = SocketAddr>>>,
) -> Result<TcpListener> {
    let wrong = |error: &dyn std::fmt::Display| cannot_listen(host, port, error);
    let addresses = timeout(LOOKUP_LIMIT, addresses)
        .await
        .map_err(|_| wrong(&format!("the name was not resolved within {} s", LOOKUP_LIMIT.as_secs())))?;
    let mut last = None;
    for address in addresses.map_err(|error| wrong(&error))? {
        match listen(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| wrong(&"the name has no address"), |error| wrong(&error)))
}

/// Listens on one address.
pub(crate) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // After a server has ended, its port is still in use by closed connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Listens on a port of all addresses, of both families if the machine has both.
pub(crate) fn listen_everywhere(port: u16) -> std::io::Result<TcpListener> {
    let both = || {
        let socket = TcpSocket::new_v6()?;
        SockRef::from(&socket).set_only_v6(false)?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
        socket.listen(BACKLOG)
    };
    match both() {
        // The only failure that concerns the port.
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            listen((Ipv4Addr::UNSPECIFIED, port).into())
        }
        listening => listening,
    }
}

/// A running server. Dropping it stops it at once. [`Self::stop`] notifies its clients first.
#[derive(Debug)]
pub struct Server {
    api: Arc<Api>,
    address: SocketAddr,
    stop: Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves on a listener, which [`bind`] makes, as tasks of the present tokio runtime.
    ///
    /// # Errors
    /// [`Error::Setting`] if certificates cannot be read or used, or the listener has no address.
    pub fn start(listener: TcpListener, options: ServerOptions) -> Result<Self> {
        Self::start_on(Tcp::from(listener), options)
    }

    /// Also serves `/metrics`, `/livez`, `/readyz`, `/health`, and `/version` on a separate listener, over plain HTTP
    /// and without a password, for probes and Prometheus, which have no certificate. `/metrics` also has the text of
    /// `more`. Returns the URL for programs on this machine.
    ///
    /// # Errors
    /// [`Error::Setting`] if the listener has no address.
    pub fn serve_metrics(&mut self, listener: TcpListener, more: Option<MoreMetrics>) -> Result<String> {
        let listener = Tcp::from(listener);
        let address = address_of(&listener)?;
        let endpoint = format!("http://{}", reachable(address));
        tracing::info!(endpoint, "metrics are served on {address}");
        self.tasks.push(tokio::spawn(observers::serve(Arc::clone(&self.api), listener, more)));
        Ok(endpoint)
    }

    /// As [`Self::start`], on any listener.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(listener: impl Listener, options: ServerOptions) -> Result<Self> {
        let ServerOptions { tls, user, bounds, contents, hosted } = options;
        let address = address_of(&listener)?;
        let certificates = tls.clone().map(Renewed::new).transpose()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        if !address.ip().is_loopback() && tls.is_none() && user.is_none() {
            tracing::warn!(
                "every program that reaches this address can read and change every run: there is neither TLS nor a password; pass certificates and a user, or a CA of clients, or listen on 127.0.0.1: {address}"
            );
        }
        let contents = match contents {
            None => Contents::new(bounds, &Entropy::from_system()),
            Some(contents) => {
                // As etcd does when it starts, because leases could not be renewed meanwhile.
                contents.live.reshape(|engine, now| (engine.renew_all(now), false));
                contents
            }
        };
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let api = Arc::new(Api {
            contents,
            authenticator: Authenticator::new(user),
            counters: Counters::default(),
            budget: Arc::default(),
            endpoint: format!("{scheme}://{}", reachable(address)),
            admitted: AtomicBool::new(hosted.is_none()),
            version: hosted.map_or_else(|| VERSION.to_owned(), |run| format!("{VERSION}{HOSTED}{run}")),
            connections: Arc::default(),
            observers: Arc::default(),
            streams: Arc::default(),
            began: Instant::now(),
            stopping,
        });
        let client_certificates = tls.is_some_and(|tls| tls.client_ca.is_some());
        tracing::info!(
            endpoint = api.endpoint,
            member = format!("{:x}", api.contents.member_id),
            password = api.authenticator.is_enabled(),
            client_certificates,
            "the embedded server listens on {address}"
        );
        let task = tokio::spawn(connections::serve(Arc::clone(&api), listener, certificates));
        Ok(Self { api, address, stop, tasks: vec![task] })
    }

    /// The endpoint for clients on this machine.
    pub fn endpoint(&self) -> &str {
        &self.api.endpoint
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its member ID, which a client can compare with [`crate::backend::Status`] to recognize this server.
    pub fn member_id(&self) -> u64 {
        self.api.contents.member_id
    }

    /// Its cluster ID, which is in the header of every response.
    pub fn cluster_id(&self) -> u64 {
        self.api.contents.cluster_id
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.api.connections.load(Ordering::Relaxed)
    }

    /// Its data, with which another server of this process can continue.
    pub fn contents(&self) -> Contents {
        self.api.contents.clone()
    }

    /// A client within this process, which needs neither a certificate nor a password.
    pub(crate) fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(MemoryService::over(Arc::clone(&self.api.contents.live)).connect())
    }

    /// The version that clients see.
    pub(crate) fn version(&self) -> &str {
        &self.api.version
    }

    /// Serves all clients from now on, if it did not yet.
    pub fn admit(&self) {
        self.api.admitted.store(true, Ordering::Release);
    }

    /// Notifies its clients, and stops within two seconds.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        for task in self.tasks.drain(..) {
            // A task that panicked has stopped as well.
            let _ = task.await;
        }
        tracing::info!("the embedded server has stopped, and its data is gone: {}", self.api.endpoint);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
    }
}

pub(crate) fn address_of(listener: &impl Listener) -> Result<SocketAddr> {
    listener
        .address()
        .map_err(|error| Error::Setting { message: format!("the listener has no address: {error}") })
}

/// The address for clients: if it stands for all addresses of this machine, the local address.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn name_without_an_answer_is_given_up() {
        let silent = std::future::pending::<std::io::Result<std::iter::Empty<SocketAddr>>>();
        let error = bind_found("far.example", 29400, silent).await.unwrap_err().to_string();
        assert!(error.contains("`far.example`") && error.ends_with("not resolved within 10 s"), "{error}");
    }
}
