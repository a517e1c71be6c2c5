//! Hosting the service, as c10d does: the node whose address the endpoint names serves it from its own process, and no
//! etcd is needed.
//!
//! Which node that is, nobody has to say: it is the one that can listen on the named address. Whether it is the *only* one
//! is not taken from that. A name may lead elsewhere than this machine thinks, and then two stores would split the job:
//! so a host first serves nobody, dials the endpoint as written, and admits clients only when its own id answers there.
//!
//! [`hosted_at`] is pure; [`Host`] binds, confirms, lingers and stops.

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
    discovery::{DEFAULT_PORT, Endpoint, Source},
    error::{Error, Result},
    protocol::keys::RunKeys,
    server::{self, Credentials, HOSTED, Listener, Server, ServerOptions, ServerTls, Tcp},
    settings::{Connection, Credentials as Files},
};

/// Between two looks whether the others have gone.
const LINGER_PAUSE: Duration = Duration::from_millis(100);

/// The endpoint that a node would host, if it is its own. `is_host` is what was set: none leaves it to the address.
///
/// # Errors
/// [`Error::Setting`] if this node is to be the host, and it is not said of which one endpoint.
pub fn hosted_at(source: &Source, is_host: Option<bool>) -> Result<Option<&Endpoint>> {
    match (is_host, source.endpoints.as_slice()) {
        (Some(true), [endpoint]) => Ok(Some(endpoint)),
        // 2379 is where an etcd is: to take its place there must be asked for.
        (None, [endpoint]) if source.hostable && endpoint.port != DEFAULT_PORT => Ok(Some(endpoint)),
        (None | Some(false), _) => Ok(None),
        (Some(true), several) => Err(Error::Setting {
            message: format!(
                "`is_host` says that this node hosts the service, for which {} must name one endpoint, and names: {}",
                source.name,
                several.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            ),
        }),
    }
}

/// What came of trying to host.
#[derive(Debug)]
pub enum Begun {
    /// This node serves, so far only who it is.
    Host(Host),
    /// It is a client; the reason is told where it was to be the host.
    Client(Option<String>),
}

/// A service that this node serves to all nodes. Dropping it ends it at once.
#[derive(Debug)]
pub struct Host {
    server: Server,
    endpoint: String,
}

impl Host {
    /// Serves at this endpoint if it is an address of this machine and nobody is there yet: still nobody but those who
    /// ask who it is.
    ///
    /// # Errors
    /// [`Error::Setting`]: credentials cannot be used.
    pub async fn begin(
        endpoint: &Endpoint,
        keys: &RunKeys,
        connection: &Connection,
        deadline: Instant,
    ) -> Result<Begun> {
        let demanded = connection.is_host == Some(true);
        let listener = match listen(endpoint, deadline).await {
            Ok(listener) => listener,
            Err(None) => return Ok(Begun::Client(None)),
            Err(Some(error)) => {
                let told = demanded || error.kind() != ErrorKind::AddrNotAvailable;
                let why = format!("this node cannot listen at {endpoint}: {error}");
                if told {
                    tracing::warn!("{why}; it is a client of whoever serves there");
                }
                return Ok(Begun::Client(demanded.then_some(why)));
            }
        };
        let (tls, user) = credentials(&connection.credentials)?;
        let options = ServerOptions { tls, user, ..ServerOptions::default() };
        Ok(Begun::Host(Self::on(Tcp::from(listener), endpoint.to_string(), keys, options)?))
    }

    /// The same on a listener that is there already.
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

    /// Whether it is this one that answers at the endpoint, by `backend`, which dials it. If so it serves everybody from
    /// now on; else it has stopped, for this node is a client like the others.
    ///
    /// # Errors
    /// [`Error::Unavailable`] and its like if nobody answers there in time.
    pub async fn confirm(self, backend: &dyn Backend, seed: u64, deadline: Instant) -> Result<Option<Self>> {
        let status = retry(RetryPolicy::default(), seed, deadline, || backend.status()).await?;
        if status.member_id == self.server.member_id() {
            self.server.admit();
            tracing::info!("this node hosts the service, and the run ends with it: {}", self.endpoint);
            return Ok(Some(self));
        }
        tracing::warn!(
            "`{}` is an address of this machine, but leads to another service; this node does not host one",
            self.endpoint
        );
        self.server.stop().await;
        Ok(None)
    }

    /// Waits until no node of the run is left: who came to the end later still reads what the others wrote.
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
                        Ok(Err(error)) => format!("whether the others have left is not known: {error}"),
                        Err(_) => "whether the others have left is not known: it does not answer".to_owned(),
                    };
                    tracing::warn!("this node hosted the service, and ends it though {why}");
                    return;
                }
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!("this node hosts the service, and waits until the others have left");
            }
            sleep(LINGER_PAUSE).await;
        }
    }

    /// Ends it.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

/// The mark of the run whose own a service of this version is, because a [`Host`] serves it. None of an etcd and of
/// `lattice-rdzv serve`, which are for every job.
pub fn hosted_run(version: &str) -> Option<&str> {
    version.split_once("+lattice-rdzv")?.1.split_once(HOSTED).map(|(_, run)| run)
}

/// Listens where the endpoint says; the error is none where another is there already, or nobody can know.
async fn listen(endpoint: &Endpoint, deadline: Instant) -> Result<TcpListener, Option<std::io::Error>> {
    let (host, port) = (endpoint.host.to_string(), endpoint.port);
    let host = host.trim_matches(['[', ']']);
    // A name that cannot be looked up is no business of hosting: connecting says what is wrong with it.
    let Ok(Ok(addresses)) = timeout_at(deadline, lookup_host((host, port))).await else { return Err(None) };
    let mut refusal = None;
    for address in addresses {
        match server::listen(address) {
            Ok(listener) => {
                if address.ip().is_loopback() && endpoint.host.needs_dns() {
                    tracing::warn!(
                        "`{host}` is {} on this machine, where other machines do not reach the service that this node \
                         hosts; name it by an address that they reach",
                        address.ip()
                    );
                }
                return Ok(listener);
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(None),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal)
}

/// What clients show is what a host asks for: all nodes have the same files.
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
        let may = |endpoint: &str, is_host| hosted_at(&source(endpoint), is_host).unwrap().is_some();
        assert!(may("node0:29400", None));
        assert!(!may("node0:29400", Some(false)));
        assert!(!may("node0:2379", None));
        assert!(!may("node0", None));
        assert!(may("node0:2379", Some(true)));
        assert!(!may("node0:29400,node1:29400", None));
        let error = hosted_at(&source("node0:29400,node1:29400"), Some(true)).unwrap_err().to_string();
        assert!(
            error.contains("`is_host`") && error.ends_with("http://node0:29400,http://node1:29400"),
            "{error}"
        );
    }

    #[test]
    fn nobody_hosts_what_kubernetes_names() {
        let variables = std::collections::BTreeMap::from([
            (crate::discovery::SERVICE_HOST.to_owned(), "10.0.0.7".to_owned()),
            (crate::discovery::SERVICE_PORT.to_owned(), "29400".to_owned()),
        ]);
        let found = candidates(&Asked::default(), &variables, &PodFacts::default()).unwrap();
        assert!(hosted_at(&found.sources[0], None).unwrap().is_none());
    }
}
