//! The embedded store: the engine of [`crate::backend::memory`] behind etcd's own v3 API, so that whoever speaks to etcd
//! can speak to it: our client, `etcdctl`, any language's.
//!
//! It is for one machine's memory. There are no files: when the process ends all is gone, and the next one has another
//! cluster id. Whoever needs more runs etcd. Served are KV, Watch, Lease, `Auth.Authenticate` (one user),
//! `Maintenance.Status` and `Cluster.MemberList`; all else answers Unimplemented and says what it is. Answers, codes,
//! texts and limits are etcd's; its policy about pings is not, because it cuts off clients that mean well. Memory is
//! bounded ([`Bounds`]) and can be watched at `/metrics`.

mod api;
mod auth;
mod bodies;
mod budget;
mod connections;
mod dispatch;
mod kv;
mod lease;
mod listener;
mod member;
mod metrics;
mod observers;
mod pages;
mod process;
mod refusals;
mod requests;
mod tls;
mod watch;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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

use self::{api::Api, auth::Gatekeeper, requests::Counters, tls::Renewed};
pub use self::{
    api::{Contents, HOSTED, VERSION},
    listener::{Listener, Socket, Tcp},
    tls::ServerTls,
};
pub use crate::backend::{etcd::Credentials, memory::engine::Bounds};
use crate::{
    error::{Error, Result},
    run::Entropy,
};

/// Where it listens unless told otherwise: not 2379, which is where an etcd would be.
pub use crate::discovery::HOSTING_PORT as DEFAULT_PORT;
/// The host that stands for every address of the machine.
const EVERYWHERE: &str = "*";
/// For how long the name of an address to listen on is looked up. The system's resolver alone takes up to half a minute to
/// say nothing.
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);
/// Clients that connect at the same moment.
const BACKLOG: u32 = 4096;

/// How to serve. The default is everybody, in plain text, and an empty store.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Speak TLS.
    pub tls: Option<ServerTls>,
    /// Ask for this user's password.
    pub user: Option<Credentials>,
    /// How much is kept.
    pub bounds: Bounds,
    /// Begin with this instead of an empty store: what a server of this process held before.
    pub contents: Option<Contents>,
    /// The mark of the run one of whose nodes hosts it: its version ends with that, and until [`Server::admit`] it only
    /// says who it is (`Maintenance.Status`) and serves nobody.
    pub hosted: Option<String>,
}

/// Binds the address that is named, and no other; `*` is every address, of both families where the machine has both.
///
/// # Errors
/// [`Error::Setting`] if there is no such address here, another process has it, or nobody says in time what the name
/// stands for.
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
    let addresses = timeout(LOOKUP_LIMIT, addresses).await.map_err(|_| {
        wrong(&format!("what the name stands for was not answered within {} s", LOOKUP_LIMIT.as_secs()))
    })?;
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
    // Where one has just ended, its port is still busy with connections that are over.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Listens on a port of all addresses, of both families where the machine has both.
pub(crate) fn listen_everywhere(port: u16) -> std::io::Result<TcpListener> {
    let both = || {
        let socket = TcpSocket::new_v6()?;
        SockRef::from(&socket).set_only_v6(false)?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
        socket.listen(BACKLOG)
    };
    match both() {
        // The only failure that is about the port.
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            listen((Ipv4Addr::UNSPECIFIED, port).into())
        }
        listening => listening,
    }
}

/// A server that runs. Dropping it ends it at once; [`Self::stop`] tells its clients first.
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
    /// [`Error::Setting`] if certificates cannot be read or used, or the listener is none.
    pub fn start(listener: TcpListener, options: ServerOptions) -> Result<Self> {
        Self::start_on(Tcp::from(listener), options)
    }

    /// Serves `/metrics`, `/livez`, `/readyz`, `/health` and `/version` on a listener of their own too, over plain HTTP and
    /// without a password: for probes and Prometheus, which have no certificate. Returns where programs on this machine reach it.
    ///
    /// # Errors
    /// [`Error::Setting`] if the listener has no address.
    pub fn serve_metrics(&mut self, listener: TcpListener) -> Result<String> {
        let listener = Tcp::from(listener);
        let address = address_of(&listener)?;
        let endpoint = format!("http://{}", reachable(address));
        tracing::info!(endpoint, "metrics are served on {address}");
        self.tasks.push(tokio::spawn(observers::serve(Arc::clone(&self.api), listener)));
        Ok(endpoint)
    }

    /// The same on any listener.
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
                "whoever reaches this address can read and change every run: there is neither TLS nor a password; give certificates or a user, or listen on 127.0.0.1: {address}"
            );
        }
        let contents = match contents {
            None => Contents::new(bounds, &Entropy::from_system()),
            Some(contents) => {
                // As etcd does when it starts: nobody could renew them.
                contents.live.reshape(|engine, now| (engine.renew_all(now), false));
                contents
            }
        };
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let api = Arc::new(Api {
            contents,
            gatekeeper: Gatekeeper::new(user),
            counters: Counters::default(),
            budget: Arc::default(),
            endpoint: format!("{scheme}://{}", reachable(address)),
            admitted: AtomicBool::new(hosted.is_none()),
            version: hosted.map_or_else(|| VERSION.to_owned(), |run| format!("{VERSION}{HOSTED}{run}")),
            connections: AtomicUsize::new(0),
            observers: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            began: Instant::now(),
            stopping,
        });
        let client_certificates = tls.is_some_and(|tls| tls.client_ca.is_some());
        tracing::info!(
            endpoint = api.endpoint,
            member = format!("{:x}", api.contents.member_id),
            password = api.gatekeeper.asks(),
            client_certificates,
            "the embedded store serves on {address}"
        );
        let task = tokio::spawn(connections::serve(Arc::clone(&api), listener, certificates));
        Ok(Self { api, address, stop, tasks: vec![task] })
    }

    /// Where clients on this machine reach it.
    pub fn endpoint(&self) -> &str {
        &self.api.endpoint
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its member id: what [`crate::backend::Status`] of a client says, if it is this server that answers.
    pub fn member_id(&self) -> u64 {
        self.api.contents.member_id
    }

    /// Its cluster id, in the head of every answer.
    pub fn cluster_id(&self) -> u64 {
        self.api.contents.cluster_id
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.api.connections.load(Ordering::Relaxed)
    }

    /// What it holds, to go on with it in this process.
    pub fn contents(&self) -> Contents {
        self.api.contents.clone()
    }

    /// Serves everybody from now on, if it was held.
    pub fn admit(&self) {
        self.api.admitted.store(true, Ordering::Release);
    }

    /// Tells its clients, and ends within two seconds.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        for task in self.tasks.drain(..) {
            // A task that panicked has stopped as well.
            let _ = task.await;
        }
        tracing::info!("the embedded store has stopped; what it held is gone: {}", self.api.endpoint);
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

fn address_of(listener: &impl Listener) -> Result<SocketAddr> {
    listener
        .address()
        .map_err(|error| Error::Setting { message: format!("the listener has no address: {error}") })
}

/// An address as a client would write it: one that is all of this machine's is reached as the local one.
fn reachable(address: SocketAddr) -> SocketAddr {
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
    async fn a_name_that_nobody_answers_for_is_given_up() {
        let silent = std::future::pending::<std::io::Result<std::iter::Empty<SocketAddr>>>();
        let error = bind_found("far.example", 29400, silent).await.unwrap_err().to_string();
        assert!(error.contains("`far.example`") && error.ends_with("not answered within 10 s"), "{error}");
    }
}
