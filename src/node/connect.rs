//! From settings to a service that answers: discovery, hosting it where that is this node's part, the client, and the
//! address by which other nodes reach this one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    backend::{
        Backend, Keys, Range,
        etcd::{Credentials, EtcdBackend, EtcdOptions, Pem, TlsFiles},
        limits::Limits,
        retry::{RetryPolicy, retry},
    },
    discovery::{Answer, Lookup, Resolved, Source, SystemLookup, candidates, pod_facts},
    error::{Error, Result},
    hosting::{Begun, Host, hosted_at, is_hosted},
    run::Entropy,
    settings::{Connection, Settings},
};

/// What torchrun passes as the id of a run when nobody passed one.
const NO_RUN_ID: &str = "none";

/// On this machine who listens answers at once, or is not there.
const LISTENS_LIMIT: Duration = Duration::from_secs(1);

/// A service that was found.
#[derive(Debug)]
pub struct Found {
    /// It.
    pub backend: Arc<dyn Backend>,
    /// Which source named it.
    pub source: Source,
}

/// How a service is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// What was set.
    pub connection: &'a Connection,
    /// What the environment holds.
    pub environment: &'a BTreeMap<String, String>,
    /// The lease of whoever looks, by which attempts are bounded.
    pub ttl: Duration,
    /// What is read to see whether it answers.
    pub key: &'a str,
    /// Randomness.
    pub entropy: &'a Entropy,
}

impl Search<'_> {
    /// Finds the service and waits until it answers, at most for `connect_timeout`.
    ///
    /// # Errors
    /// [`Error::Setting`] for sources or credentials that are wrong, [`Error::NotFound`], [`Error::Unavailable`],
    /// [`Error::NotEtcd`], [`Error::Denied`]; where it could not be reached, the message names every source that was
    /// looked at.
    pub async fn connect(self) -> Result<Found> {
        self.look(false).await.map(|(found, _)| found)
    }

    /// The same, but hosts the service first if that is this node's part.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_or_host(self) -> Result<(Found, Option<Host>)> {
        self.look(true).await
    }

    async fn look(self, may_host: bool) -> Result<(Found, Option<Host>)> {
        let Self { connection, environment, .. } = self;
        let patience = connection.connect_timeout;
        let deadline = Instant::now() + patience;
        let discovery = candidates(&connection.asked(), environment, &pod_facts(environment))?;
        let Resolved { mut source, looked_at } = discovery.resolve(&SystemLookup, patience).await?;
        let looked_at = Resolved { source: source.clone(), looked_at }.describe();
        if let Some(fallback) = source.fallback.take() {
            let patience = Duration::from_secs(Source::SILENCE_SECONDS);
            let backend = self.client(&source)?;
            match self.answers(&backend, (Instant::now() + patience).min(deadline)).await {
                Err(Error::Unavailable { cause, .. }) => {
                    tracing::warn!("{} is silent ({cause}); trying {}", source.name, fallback.name);
                    source = *fallback;
                }
                other => return other.map(|()| (Found { backend, source }, None)),
            }
        }
        if let Some(otherwise) = source.otherwise.take()
            && !somebody_listens(&source).await
        {
            source = *otherwise;
        }
        let (mut host, mut no_host) = (None, None);
        if let Some(endpoint) = hosted_at(&source, connection.is_host)?.filter(|_| may_host) {
            match Host::begin(endpoint, connection, deadline).await? {
                Begun::Host(begun) => host = Some(begun),
                Begun::Client(why) => no_host = why,
            }
        }
        let backend = self.client(&source)?;
        let with_sources = |error| match error {
            Error::Unavailable { endpoint, cause, applied } => {
                let mut cause = format!("{cause}; tried for {:.0} s, {looked_at}", patience.as_secs_f64());
                if let Some(why) = &no_host {
                    cause = format!("{cause}; `is_host` says that this node hosts it, and {why}");
                }
                Error::Unavailable { endpoint, cause, applied }
            }
            other => other,
        };
        if let Some(begun) = host {
            host =
                begun.confirm(backend.as_ref(), self.entropy.bits(), deadline).await.map_err(with_sources)?;
        }
        self.answers(&backend, deadline).await.map_err(with_sources)?;
        tracing::debug!("the service is at `{}`, named by {}", backend.endpoint(), source.name);
        Ok((Found { backend, source }, host))
    }

    fn client(&self, source: &Source) -> Result<Arc<dyn Backend>> {
        let files = &self.connection.credentials;
        let tls = (files.cacert.is_some() || files.certificate.is_some()).then(|| TlsFiles {
            ca: files.cacert.clone().map(Pem::File),
            cert: files.certificate.as_ref().map(|certificate| Pem::File(certificate.cert.clone())),
            key: files.certificate.as_ref().map(|certificate| Pem::File(certificate.key.clone())),
        });
        let login = files.login.as_ref();
        let credentials =
            login.map(|login| Credentials::from_file(&login.user, &login.password_file)).transpose()?;
        let options = EtcdOptions {
            endpoints: source.endpoints.iter().map(ToString::to_string).collect(),
            tls,
            credentials,
            limits: Limits::for_ttl(self.ttl),
            seed: self.entropy.bits(),
        };
        Ok(Arc::new(EtcdBackend::connect(options)?))
    }

    async fn answers(&self, backend: &Arc<dyn Backend>, deadline: Instant) -> Result<()> {
        let told = AtomicBool::new(false);
        let read = || async {
            let answer = backend.range(Range::new(Keys::one(self.key))).await;
            if let Err(error) = &answer
                && error.is_transient()
                && !told.swap(true, Ordering::Relaxed)
            {
                let left = deadline.saturating_duration_since(Instant::now());
                tracing::info!("{error}; trying for another {:.0} s", left.as_secs_f64());
            }
            answer
        };
        retry(RetryPolicy::default(), self.entropy.bits(), deadline, read).await.map(|_| ())
    }
}

/// Whether anybody takes connections at the first of its endpoints, which is on this machine.
async fn somebody_listens(source: &Source) -> bool {
    let Some(endpoint) = source.endpoints.first() else { return false };
    let address = (endpoint.host.to_string(), endpoint.port);
    matches!(timeout(LISTENS_LIMIT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// That a run has torchrun's id for none is right only where the run has a service of its own.
///
/// # Errors
/// [`Error::Setting`] for such a run on a service that no node hosts, where every job without an id would be that one.
pub async fn check_run_id(settings: &Settings, found: &Found, entropy: &Entropy) -> Result<()> {
    if settings.run.run_id != NO_RUN_ID {
        return Ok(());
    }
    let deadline = Instant::now() + settings.connection.connect_timeout;
    let status = retry(RetryPolicy::default(), entropy.bits(), deadline, || found.backend.status()).await?;
    if is_hosted(&status.version) {
        return Ok(());
    }
    Err(Error::Setting {
        message: format!(
            "the run has no id, and the service at `{}` ({}) is for every job, where all without one would meet: pass \
             `--rdzv-id` (or `run_id`, or `LATTICE_RDZV_ID`), the same on every node and another for every job; passed \
             was: `{NO_RUN_ID}`",
            found.backend.endpoint(),
            status.version
        ),
    })
}

/// For how long the host's own name is looked up: there is an address without it, though only this machine can use it.
const OWN_NAME_LIMIT: Duration = Duration::from_secs(5);

/// The address by which other nodes reach this one: the one that was set, else that of the way to the service; where
/// that is a loopback, what the host's name stands for, if that is more and is known soon. The system's resolver
/// alone takes up to half a minute to say nothing, as on a laptop that is away from its network.
pub async fn local_address(settings: &Settings, source: &Source, names: &impl Lookup) -> String {
    if let Some(address) = &settings.local_address {
        return address.clone();
    }
    let deadline = Instant::now() + settings.connection.connect_timeout;
    let mut own: Option<IpAddr> = None;
    for endpoint in &source.endpoints {
        let text = endpoint.to_string();
        let target = text.split_once("://").map_or(text.as_str(), |(_, target)| target);
        own = way_to(target, names, deadline).await;
        if own.is_some() {
            break;
        }
    }
    match own {
        Some(address) if !address.is_loopback() => address.to_string(),
        own => {
            let host = settings.host_name.as_deref().unwrap_or(&settings.node_name);
            let found = look_up(names, host, 0, Instant::now() + OWN_NAME_LIMIT).await;
            let outside = found.into_iter().find(|address| !address.ip().is_loopback());
            let loopback = own.map_or_else(|| "127.0.0.1".to_owned(), |own| own.to_string());
            if outside.is_none() && settings.max_nodes > 1 {
                tracing::info!(
                    "this node is to be reached at {loopback}, which only this machine can; `local_addr` names another address"
                );
            }
            outside.map_or(loopback, |address| address.ip().to_string())
        }
    }
}

/// What a name stands for, as far as that is known in time.
async fn look_up(names: &impl Lookup, host: &str, port: u16, deadline: Instant) -> Vec<SocketAddr> {
    match timeout_at(deadline, names.lookup(host, port)).await {
        Ok(Answer::Found(addresses)) => addresses,
        Ok(_) => Vec::new(),
        Err(_) => {
            tracing::warn!("what the name stands for was not answered in time; going on without: `{host}`");
            Vec::new()
        }
    }
}

/// The source address of packets to `target`; nothing is sent.
async fn way_to(target: &str, names: &impl Lookup, deadline: Instant) -> Option<IpAddr> {
    let (host, port) = target.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let target = look_up(names, host, port.parse().ok()?, deadline).await.into_iter().next()?;
    let any: IpAddr = if target.is_ipv4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(target).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::settings::{Arguments, Origin};

    /// A resolver that knows these names and says nothing of others.
    struct Names(&'static [(&'static str, [u8; 4])]);

    #[async_trait]
    impl Lookup for Names {
        async fn lookup(&self, host: &str, port: u16) -> Answer {
            match self.0.iter().find(|(name, _)| *name == host) {
                Some((_, address)) => Answer::Found(vec![(*address, port).into()]),
                None => std::future::pending().await,
            }
        }
    }

    async fn address(endpoint: &str, names: Names) -> (String, Duration) {
        let given = [("run_id", "r"), ("nnodes", "2"), ("node_name", "host-1"), ("endpoint", endpoint)];
        let values = given.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let settings =
            Settings::resolve(&Arguments { values, origin: Origin::Argument }, &BTreeMap::new()).unwrap();
        let source = Source::new("a test", vec![endpoint.parse().unwrap()]);
        let began = Instant::now();
        (local_address(&settings, &source, &names).await, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_is_silent_holds_nobody_up() {
        let (own, took) = address("localhost:2379", Names(&[("localhost", [127, 0, 0, 1])])).await;
        assert_eq!(own, "127.0.0.1");
        assert!(took <= OWN_NAME_LIMIT + Duration::from_millis(10), "{took:?}");
        let (own, took) = address("etcd:2379", Names(&[])).await;
        assert_eq!(own, "127.0.0.1");
        assert!(took <= Duration::from_secs(36), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_loopback_the_host_is_reached_by_what_its_name_stands_for() {
        let names = Names(&[("localhost", [127, 0, 0, 1]), ("host-1", [10, 0, 0, 7])]);
        assert_eq!(address("localhost:2379", names).await.0, "10.0.0.7");
    }
}
