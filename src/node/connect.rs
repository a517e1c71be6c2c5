//! From settings to a service that answers: discovery, the client, and the address by which other nodes reach this one.

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
    net::UdpSocket,
    time::{Instant, timeout_at},
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
    let mut credentials = None;
    if let Some(login) = &files.login {
        let path = &login.password_file;
        let password = std::fs::read_to_string(path).map_err(|error| Error::Setting {
            message: format!("the password file cannot be read ({error}): `{}`", path.display()),
        })?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        credentials = Some(Credentials { user: login.user.clone(), password });
    }
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
    let told = AtomicBool::new(false);
    let read = || async {
        let answer = backend.range(Range::new(Keys::one(key))).await;
        if let Err(error) = &answer
            && error.is_transient()
            && !told.swap(true, Ordering::Relaxed)
        {
            let left = deadline.saturating_duration_since(Instant::now());
            tracing::info!("{error}; trying for another {:.0} s", left.as_secs_f64());
        }
        answer
    };
    retry(RetryPolicy::default(), entropy.bits(), deadline, read).await.map(|_| ())
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
        let source = Source {
            name: "a test".into(),
            endpoints: vec![endpoint.parse().unwrap()],
            needs_dns: false,
            guessed: false,
            fallback: None,
        };
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
