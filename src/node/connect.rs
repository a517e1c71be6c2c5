//! From settings to a service that answers: discovery, hosting it where that is this node's part, the client, and the
//! address by which other nodes reach this one.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpStream, UdpSocket, lookup_host},
    time::{Instant, timeout},
};

use crate::{
    backend::{
        Backend, Keys, Range,
        etcd::{EtcdBackend, EtcdOptions, Pem, TlsFiles},
        limits::Limits,
        retry::{RetryPolicy, retry},
    },
    discovery::{Resolved, Source, SystemLookup, candidates, pod_facts},
    error::{Error, Result},
    hosting::{Host, hosted_at, is_embedded},
    run::Entropy,
    settings::{Connection, Login, Settings},
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
    /// As [`Self::connect`], and [`Error::Setting`] if this node is to host the service and cannot.
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
        let mut host = None;
        if let Some(endpoint) = hosted_at(&source, connection.is_host)?.filter(|_| may_host) {
            host = Host::begin(endpoint, connection, deadline).await?;
        }
        let backend = self.client(&source)?;
        let named = |error| match error {
            Error::Unavailable { endpoint, cause, applied } => {
                let cause = format!("{cause}; tried for {:.0} s, {looked_at}", patience.as_secs_f64());
                Error::Unavailable { endpoint, cause, applied }
            }
            other => other,
        };
        if let Some(begun) = host {
            host = begun.confirm(backend.as_ref(), self.entropy.bits(), deadline).await.map_err(named)?;
        }
        self.answers(&backend, deadline).await.map_err(named)?;
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
        let options = EtcdOptions {
            endpoints: source.endpoints.iter().map(ToString::to_string).collect(),
            tls,
            credentials: files.login.as_ref().map(Login::read).transpose()?,
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
/// [`Error::Setting`] for such a run on an etcd, where every job without an id would be that one.
pub async fn check_run_id(settings: &Settings, found: &Found, entropy: &Entropy) -> Result<()> {
    if settings.run.run_id != NO_RUN_ID {
        return Ok(());
    }
    let deadline = Instant::now() + settings.connection.connect_timeout;
    let status = retry(RetryPolicy::default(), entropy.bits(), deadline, || found.backend.status()).await?;
    if is_embedded(&status.version) {
        return Ok(());
    }
    Err(Error::Setting {
        message: format!(
            "the run has no id, and the service at `{}` is an etcd {}, where every job without one would meet: pass \
             `--rdzv-id` (or `run_id`, or `LATTICE_RDZV_ID`), the same on every node and another for every job; passed \
             was: `{NO_RUN_ID}`",
            found.backend.endpoint(),
            status.version
        ),
    })
}

/// The address by which other nodes reach this one: the one that was set, else that of the way to the service; where
/// that is a loopback, what the host's name stands for, if that is more.
pub async fn local_address(settings: &Settings, source: &Source) -> String {
    if let Some(address) = &settings.local_address {
        return address.clone();
    }
    let mut own: Option<IpAddr> = None;
    for endpoint in &source.endpoints {
        let text = endpoint.to_string();
        let target = text.split_once("://").map_or(text.as_str(), |(_, target)| target);
        own = way_to(target).await;
        if own.is_some() {
            break;
        }
    }
    match own {
        Some(address) if !address.is_loopback() => address.to_string(),
        own => {
            let host = settings.host_name.as_deref().unwrap_or(&settings.node_name);
            let named = lookup_host((host, 0)).await;
            let outside = named.ok().and_then(|mut found| found.find(|address| !address.ip().is_loopback()));
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

/// The source address of packets to `target`; nothing is sent.
async fn way_to(target: &str) -> Option<IpAddr> {
    let target = lookup_host(target).await.ok()?.next()?;
    let any: IpAddr = if target.is_ipv4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(target).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}
