//! Hosts the embedded server in a node, as c10d does: the node whose address the endpoint names serves it from its
//! own process, so that no etcd is needed.
//!
//! By default, the host is the node that can bind the named address. This alone does not prove that there is only one
//! host: a name can resolve to another machine elsewhere, and two servers would then split the job. A host therefore
//! first accepts no clients, connects to the endpoint as written, and admits clients only if its own ID responds
//! there. For this reason, a node may also listen on all of its addresses if it does not have the named one: if
//! `is_host` is set behind a virtual or translated address, and if a name is a loopback address on its own machine.
//!
//! [`hosted_at`] is pure. [`Host`] binds, confirms, keeps serving at the end, and stops.

use std::{io::ErrorKind, time::Duration};

use tokio::{
    net::{TcpListener, lookup_host},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    backend::{
        Backend, Keys, Range,
        etcd::Pem,
        retry::{RetryPolicy, retry},
    },
    discovery::{DEFAULT_PORT, Endpoint, HOSTING_PORT, NamedBy, Source},
    error::{Error, Result},
    protocol::keys::RunKeys,
    server::{self, Credentials, HOSTED, Listener, Server, ServerOptions, ServerTls, Tcp},
    settings::{Connection, Credentials as Files},
};

/// The interval at which a stopping host checks whether the other nodes have gone.
const LINGER_PAUSE: Duration = Duration::from_millis(100);

/// Returns the endpoint that a node would host, if it belongs to this node. `is_host` is the setting. If it is not
/// set, the address decides.
///
/// # Errors
/// [`Error::Setting`] if this node must host but there is not exactly one endpoint, or if the port is 0 (any free
/// port) and other nodes would need to know it.
pub fn hosted_at(source: &Source, is_host: Option<bool>, max_nodes: u32) -> Result<Option<&Endpoint>> {
    match (is_host, source.endpoints.as_slice()) {
        (_, [endpoint]) if endpoint.port == 0 && (max_nodes > 1 || is_host == Some(false)) => {
            let why = if max_nodes > 1 {
                format!("but up to {max_nodes} nodes must find it")
            } else {
                "but `is_host` says that this node does not host one".to_owned()
            };
            Err(Error::Setting {
                message: format!(
                    "{} must name a port from 1 to 65535: port 0 has this node host the rendezvous service at any free \
                     port, {why}; pass a port that is free on that host, the same on every node, such as \
                     {HOSTING_PORT}: `{}:0`",
                    source.name, endpoint.host
                ),
            })
        }
        (Some(true), [endpoint]) => Ok(Some(endpoint)),
        // 2379 is the port of etcd, so hosting there requires an explicit setting.
        (None, [endpoint]) if source.named_by != NamedBy::Cluster && endpoint.port != DEFAULT_PORT => {
            Ok(Some(endpoint))
        }
        (None | Some(false), _) => Ok(None),
        (Some(true), several) => Err(Error::Setting {
            message: format!(
                "with `is_host` this node hosts the service, so {} must name exactly one endpoint, but names: {}",
                source.name,
                several.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            ),
        }),
    }
}

/// The result of the attempt to host.
#[derive(Debug)]
pub enum Begun {
    /// This node serves, but so far only its ID.
    Host {
        /// The server.
        host: Host,
        /// The address: the endpoint, with the selected port if the port was 0.
        endpoint: Endpoint,
        /// Why the address may not be reachable, for the error of a node that must host.
        caveat: Option<String>,
    },
    /// This node is a client. Contains the reason if it was meant to host.
    Client(Option<String>),
}

/// A socket to host on.
struct Bound {
    listener: TcpListener,
    /// Why it listens on all addresses and not on that of the endpoint.
    everywhere: Option<String>,
}

/// An embedded server that this node serves to all nodes. Dropping it stops it at once.
#[derive(Debug)]
pub struct Host {
    server: Server,
    endpoint: String,
}

impl Host {
    /// Serves at this endpoint if it is an address of this machine and no server is there yet. Until it is confirmed,
    /// it returns only its ID. `max_nodes` shows whether other machines must be able to reach it.
    ///
    /// # Errors
    /// [`Error::Setting`]: credentials cannot be used.
    pub async fn begin(
        endpoint: &Endpoint,
        keys: &RunKeys,
        connection: &Connection,
        max_nodes: u32,
        deadline: Instant,
    ) -> Result<Begun> {
        let demanded = connection.is_host == Some(true);
        let Bound { listener, everywhere } = match listen(endpoint, demanded, max_nodes, deadline).await {
            Ok(bound) => bound,
            Err(None) => return Ok(Begun::Client(None)),
            Err(Some(error)) => {
                let told = demanded || error.kind() != ErrorKind::AddrNotAvailable;
                if told {
                    tracing::warn!(
                        "this node cannot listen at {endpoint}: {error}; it hosts no server, and tries to connect to a \
                         service there"
                    );
                }
                return Ok(Begun::Client(demanded.then(|| format!("cannot listen at {endpoint}: {error}"))));
            }
        };
        let port = listener.local_addr().map_or(endpoint.port, |address| address.port());
        let endpoint = Endpoint { port, ..endpoint.clone() };
        let (tls, user) = credentials(&connection.credentials)?;
        let options = ServerOptions { tls, user, ..ServerOptions::default() };
        let host = Self::on(Tcp::from(listener), endpoint.to_string(), keys, options)?;
        let caveat = everywhere.map(|why| {
            tracing::info!("{why}; this node listens on port {port} of all its addresses, to host the service");
            format!(
                "is not reached there: it listens on port {port} of all its addresses, because {why}; forward that port \
                 to this machine, also from itself"
            )
        });
        Ok(Begun::Host { host, endpoint, caveat: caveat.filter(|_| demanded) })
    }

    /// Serves as [`Host::begin`] does, on an existing listener.
    ///
    /// # Errors
    /// [`Error::Setting`]: certificates cannot be used.
    pub fn on(
        listener: impl Listener,
        endpoint: String,
        keys: &RunKeys,
        options: ServerOptions,
    ) -> Result<Self> {
        let server = Server::start_on(listener, ServerOptions { hosted: Some(keys.mark()), ..options })?;
        Ok(Self { server, endpoint })
    }

    /// Checks through `backend`, which connects to the endpoint, whether this server responds there. If it does, it
    /// serves all clients from now on. Otherwise it has stopped, because this node is a client like the others.
    ///
    /// # Errors
    /// [`Error::Unavailable`] and similar errors if no server responds there in time.
    pub async fn confirm(self, backend: &dyn Backend, seed: u64, deadline: Instant) -> Result<Option<Self>> {
        let status = retry(RetryPolicy::default(), seed, deadline, || backend.status()).await?;
        if status.member_id == self.server.member_id() {
            self.server.admit();
            tracing::info!(
                "this node hosts the rendezvous service at {}: if this node is lost and does not return within \
                 `host_timeout`, the run ends",
                self.endpoint
            );
            return Ok(Some(self));
        }
        tracing::warn!(
            "another rendezvous service responds at `{}`: this node hosts no server, and uses that service",
            self.endpoint
        );
        self.server.stop().await;
        Ok(None)
    }

    /// Waits until no node of the run is left, so that nodes that finish later can still read what the others wrote.
    pub async fn linger(&self, backend: &dyn Backend, keys: &RunKeys, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut told = false;
        loop {
            let nodes = Range { limit: 1, keys_only: true, ..Range::new(Keys::prefix(keys.nodes())) };
            match timeout_at(deadline, backend.range(nodes)).await {
                Ok(Ok(answer)) if answer.items.is_empty() => return,
                Ok(_) if Instant::now() + LINGER_PAUSE < deadline => {}
                last => {
                    let why = match last {
                        Ok(Ok(_)) => "others have not left yet".to_owned(),
                        Ok(Err(error)) => format!("it is unknown whether the others have left: {error}"),
                        Err(_) => "it is unknown whether the others have left: no response".to_owned(),
                    };
                    tracing::warn!("this node stops the server that it hosts, although {why}");
                    return;
                }
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!("this node hosts the service, and waits until the others have left");
            }
            sleep(LINGER_PAUSE).await;
        }
    }

    /// Stops the server.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

/// Returns the mark of the run to which a server of this version belongs, if a [`Host`] serves it. An etcd and
/// `lattice-rdzv serve` have none, because they are for every job.
pub fn hosted_run(version: &str) -> Option<&str> {
    version.split_once("+lattice-rdzv")?.1.split_once(HOSTED).map(|(_, run)| run)
}

/// Listens on the address of the endpoint, or on all addresses if this node must host and does not have that address.
/// The error is none if another server is already there, or if this cannot be determined.
async fn listen(
    endpoint: &Endpoint,
    demanded: bool,
    max_nodes: u32,
    deadline: Instant,
) -> Result<Bound, Option<std::io::Error>> {
    let (host, port) = (endpoint.host.to_string(), endpoint.port);
    // A name that cannot be resolved is not an error here. Connecting reports it.
    let Ok(Ok(addresses)) = timeout_at(deadline, lookup_host((host.as_str(), port))).await else {
        return Err(None);
    };
    let mut refusal = None;
    for address in addresses {
        let bound = if max_nodes > 1 && address.ip().is_loopback() && endpoint.host.needs_dns() {
            // Debian maps a machine's own name to 127.0.1.1, which other machines cannot reach.
            let why = format!("`{host}` is {} on this machine", address.ip());
            server::listen_everywhere(port).map(|listener| Bound { listener, everywhere: Some(why) })
        } else {
            server::listen(address).map(|listener| Bound { listener, everywhere: None })
        };
        match bound {
            Ok(bound) => return Ok(bound),
            Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(None),
            Err(error) => refusal = Some(error),
        }
    }
    if demanded && refusal.as_ref().is_some_and(|error| error.kind() == ErrorKind::AddrNotAvailable) {
        return match server::listen_everywhere(port) {
            Ok(listener) => {
                Ok(Bound { listener, everywhere: Some(format!("`{host}` is no address of this machine")) })
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => Err(None),
            Err(error) => Err(Some(error)),
        };
    }
    Err(refusal)
}

/// The host requires the credentials that clients present, because all nodes have equal files.
fn credentials(files: &Files) -> Result<(Option<ServerTls>, Option<Credentials>)> {
    let tls = match (&files.certificate, &files.cacert) {
        (Some(certificate), cacert) => Some(ServerTls {
            cert: Pem::File(certificate.cert.clone()),
            key: Pem::File(certificate.key.clone()),
            client_ca: cacert.clone().map(Pem::File),
        }),
        (None, None) => None,
        (None, Some(_)) => {
            return Err(Error::Setting {
                message: "this node would host the service, and TLS (`cacert`) needs a certificate to serve with: pass \
                          `cert` and `key` as well, or `is_host=0` where another node or an etcd serves"
                    .to_owned(),
            });
        }
    };
    let login = files.login.as_ref();
    let user = login.map(|login| Credentials::from_file(&login.user, &login.password_file)).transpose()?;
    Ok((tls, user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{Asked, PodFacts, candidates};

    fn source(endpoint: &str) -> Source {
        let asked = Asked { endpoint: Some(endpoint.to_owned()), ..Asked::default() };
        candidates(&asked, &std::collections::BTreeMap::new(), &PodFacts::default())
            .unwrap()
            .sources
            .remove(0)
    }

    #[test]
    fn one_named_endpoint_that_is_not_etcds_port_may_be_hosted() {
        let may = |endpoint: &str, is_host| hosted_at(&source(endpoint), is_host, 4).unwrap().is_some();
        assert!(may("node0:29400", None));
        assert!(!may("node0:29400", Some(false)));
        assert!(!may("node0:2379", None));
        assert!(!may("node0", None));
        assert!(may("node0:2379", Some(true)));
        assert!(!may("node0:29400,node1:29400", None));
        let error = hosted_at(&source("node0:29400,node1:29400"), Some(true), 4).unwrap_err().to_string();
        assert!(
            error.contains("`is_host`") && error.ends_with("http://node0:29400,http://node1:29400"),
            "{error}"
        );
    }

    #[test]
    fn any_free_port_is_for_a_run_of_one_node() {
        let localhost = source("localhost:0");
        assert_eq!(hosted_at(&localhost, None, 1).unwrap().unwrap().port, 0);
        assert_eq!(hosted_at(&localhost, Some(true), 1).unwrap().unwrap().port, 0);
        for (is_host, max_nodes, part) in [(None, 2, "up to 2 nodes"), (Some(false), 1, "`is_host`")] {
            let error = hosted_at(&localhost, is_host, max_nodes).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("1 to 65535"), "{error}");
        }
    }

    #[test]
    fn no_node_hosts_a_service_that_kubernetes_names() {
        let variables = std::collections::BTreeMap::from([
            (crate::discovery::SERVICE_HOST.to_owned(), "10.0.0.7".to_owned()),
            (crate::discovery::SERVICE_PORT.to_owned(), "29400".to_owned()),
        ]);
        let found = candidates(&Asked::default(), &variables, &PodFacts::default()).unwrap();
        assert!(hosted_at(&found.sources[0], None, 4).unwrap().is_none());
    }
}
