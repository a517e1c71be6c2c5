//! From settings to a service that answers: discovery, the client, and the address by which other nodes reach this one.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    net::{UdpSocket, lookup_host},
    time::Instant,
};

use crate::{
    backend::{
        Backend, Keys, Range,
        etcd::{Credentials, EtcdBackend, EtcdOptions, Pem, TlsFiles},
        limits::Limits,
        retry::{RetryPolicy, retry},
    },
    discovery::{Resolved, Source, SystemLookup, candidates, pod_facts},
    error::{Error, Result},
    run::Entropy,
    settings::{Connection, Settings},
};

/// A service that was found.
#[derive(Debug)]
pub struct Found {
    /// It.
    pub backend: Arc<dyn Backend>,
    /// Which source named it.
    pub source: Source,
}

/// Finds the service and waits until it answers a read of `key`, at most for `connect_timeout`.
///
/// # Errors
/// [`Error::Setting`] for sources or credentials that are wrong, [`Error::NotFound`], [`Error::Unavailable`], [`Error::NotEtcd`],
/// [`Error::Denied`]; where it could not be reached, the message names every source that was looked at.
pub async fn connect(
    connection: &Connection,
    ttl: Duration,
    key: &str,
    environment: &BTreeMap<String, String>,
    entropy: &Entropy,
) -> Result<Found> {
    let patience = connection.connect_timeout;
    let deadline = Instant::now() + patience;
    let discovery = candidates(&connection.asked(), environment, &pod_facts(environment))?;
    let Resolved { mut source, looked_at } = discovery.resolve(&SystemLookup, patience).await?;
    let looked_at = Resolved { source: source.clone(), looked_at }.describe();
    if let Some(fallback) = source.fallback.take() {
        let patience = Duration::from_secs(Source::SILENCE_SECONDS);
        let backend = client(connection, ttl, &source, entropy)?;
        match answers(&backend, key, (Instant::now() + patience).min(deadline), entropy).await {
            Err(Error::Unavailable { cause, .. }) => {
                tracing::warn!("{} is silent ({cause}); trying {}", source.name, fallback.name);
                source = *fallback;
            }
            other => return other.map(|()| Found { backend, source }),
        }
    }
    let backend = client(connection, ttl, &source, entropy)?;
    match answers(&backend, key, deadline, entropy).await {
        Ok(()) => Ok(Found { backend, source }),
        Err(Error::Unavailable { endpoint, cause, applied }) => {
            let cause = format!("{cause}; tried for {:.0} s, {looked_at}", patience.as_secs_f64());
            Err(Error::Unavailable { endpoint, cause, applied })
        }
        Err(error) => Err(error),
    }
}

fn client(
    connection: &Connection,
    ttl: Duration,
    source: &Source,
    entropy: &Entropy,
) -> Result<Arc<dyn Backend>> {
    let files = &connection.credentials;
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
        limits: Limits::for_ttl(ttl),
        seed: entropy.bits(),
    };
    Ok(Arc::new(EtcdBackend::connect(options)?))
}

async fn answers(backend: &Arc<dyn Backend>, key: &str, deadline: Instant, entropy: &Entropy) -> Result<()> {
    let read = || backend.range(Range::new(Keys::one(key)));
    retry(RetryPolicy::default(), entropy.bits(), deadline, read).await.map(|_| ())
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
