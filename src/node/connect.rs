//! Connects a node to a service that responds: discovery, hosting if this node is the host, and the client.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{holder::Holder, reach};
use crate::{
    backend::{
        Backend, Keys, Range,
        etcd::{Credentials, EtcdBackend, EtcdOptions, Pem, TlsFiles},
        limits::Limits,
        retry::{RetryPolicy, retry},
    },
    discovery::{Resolved, Source, SystemLookup, candidates, pod_facts},
    error::{Error, Result},
    grant::Granted,
    hosting::{Begun, Host, hosted_at, hosted_run},
    protocol::{identity::NodeId, keys::RunKeys},
    run::Entropy,
    settings::{Connection, Login, Settings, unknown_variables},
};

/// The run ID that torchrun passes if the user passed none.
const NO_RUN_ID: &str = "none";

/// The average interval between the logins of nodes that start together. It is longer than a bcrypt takes on an etcd
/// with two cores. All logins at once would keep etcd from renewing leases until they are done.
const LOGIN_SPACING: Duration = Duration::from_millis(50);

/// A service that has not responded by then is examined more closely, so that the error can name the cause.
const SUSPICIOUS: Duration = Duration::from_millis(500);
/// The additional time for each node of the run. The connections of all of them may keep the service busy, and each
/// examination opens two more.
const SUSPICIOUS_PER_NODE: Duration = Duration::from_millis(1);

/// A service that was found.
#[derive(Debug)]
pub struct Found {
    /// The client.
    pub backend: Arc<dyn Backend>,
    /// The source that named it.
    pub source: Source,
    /// The lease of a new node, if the service granted one to show that it responds.
    pub granted: Option<Granted>,
}

/// A search for the service.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// The connection settings.
    pub connection: &'a Connection,
    /// The environment variables.
    pub environment: &'a BTreeMap<String, String>,
    /// The TTL of the lease of the searching node, which limits the duration of attempts.
    pub ttl: Duration,
    /// The keys of the run. One of them is read to see whether the service responds.
    pub keys: &'a RunKeys,
    /// The minimum number of nodes that start together. 1 if a service is only inspected.
    pub min_nodes: u32,
    /// The maximum number of nodes of the run. 1 if a service is only inspected.
    pub max_nodes: u32,
    /// The source of randomness.
    pub entropy: &'a Entropy,
}

impl<'a> Search<'a> {
    /// The search of a node with these settings, which is about to join the run of these keys.
    pub fn of_node(
        settings: &'a Settings,
        environment: &'a BTreeMap<String, String>,
        keys: &'a RunKeys,
        entropy: &'a Entropy,
    ) -> Self {
        Self {
            connection: &settings.connection,
            environment,
            ttl: settings.lease_ttl,
            keys,
            min_nodes: settings.min_nodes,
            max_nodes: settings.max_nodes,
            entropy,
        }
    }

    /// Finds the service and waits until it responds to a read, at most for `connect_timeout`.
    ///
    /// # Errors
    /// [`Error::Setting`] for sources or credentials that are wrong, [`Error::NotFound`], [`Error::Unavailable`],
    /// [`Error::NotEtcd`], and [`Error::Denied`]. If the service could not be reached, the message names every source.
    pub async fn connect(self) -> Result<Found> {
        self.find_service(false).await.map(|(found, _)| found)
    }

    /// As [`Self::connect`], for a node that is about to join. Hosts the service first if this node is the host, and
    /// requests the node's lease instead of a read.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_or_host(self) -> Result<(Found, Option<Host>)> {
        self.find_service(true).await
    }

    async fn find_service(self, may_host: bool) -> Result<(Found, Option<Host>)> {
        let Self { connection, environment, .. } = self;
        let patience = connection.connect_timeout;
        let deadline = Instant::now() + patience;
        if may_host {
            for unknown in unknown_variables(environment) {
                tracing::warn!("{unknown}");
            }
        }
        let discovery = candidates(&connection.asked(), environment, &pod_facts(environment))?;
        let Resolved { mut source, looked_at } = discovery.resolve(&SystemLookup, patience).await?;
        let looked_at = Resolved { source: source.clone(), looked_at }.describe();
        if let Some(fallback) = source.fallback.take() {
            let patience = Duration::from_secs(Source::SILENCE_SECONDS);
            let backend = self.login(&source)?;
            match self
                .wait_until_ready(&backend, &source, (Instant::now() + patience).min(deadline), may_host)
                .await
            {
                Err(Error::Unavailable { cause, .. }) => {
                    tracing::warn!("{} is silent ({cause}); trying {}", source.name, fallback.name);
                    source = *fallback;
                }
                other => return other.map(|granted| (Found { backend, source, granted }, None)),
            }
        }
        if let Some(otherwise) = source.otherwise.take() {
            source = self.choose_port(source, *otherwise, deadline).await?;
        }
        if may_host
            && let Some(warning) = reach::warning(&source, self.max_nodes, &connection.endpoint_origin)
        {
            tracing::warn!("{warning}");
        }
        let (mut host, mut no_host) = (None, None);
        if let Some(endpoint) = hosted_at(&source, connection.is_host, self.max_nodes)?.filter(|_| may_host) {
            match Host::begin(endpoint, self.keys, connection, self.max_nodes, deadline).await? {
                Begun::Host { host: begun, endpoint, caveat } => {
                    (host, no_host) = (Some(begun), caveat);
                    source.endpoints = vec![endpoint];
                }
                Begun::Client(why) => no_host = why,
            }
        }
        let backend = self.login(&source)?;
        let with_sources = |error| match error {
            Error::Unavailable { endpoint, cause, applied } => {
                let mut cause = format!("{cause}; tried for {:.0} s, {looked_at}", patience.as_secs_f64());
                if let Some(why) = &no_host {
                    cause = format!(
                        "{cause}; `is_host` is set, so this node must host the service, but it {why}"
                    );
                }
                Error::Unavailable { endpoint, cause, applied }
            }
            other => other,
        };
        if let Some(begun) = host {
            host =
                begun.confirm(backend.as_ref(), self.entropy.bits(), deadline).await.map_err(with_sources)?;
        }
        let granted =
            self.wait_until_ready(&backend, &source, deadline, may_host).await.map_err(with_sources)?;
        tracing::debug!("the service is at `{}`, named by {}", backend.endpoint(), source.name);
        Ok((Found { backend, source, granted }, host))
    }

    /// A client with the credentials of this node.
    fn login(&self, source: &Source) -> Result<Arc<dyn Backend>> {
        self.client(source, self.connection.credentials.login.as_ref())
    }

    pub(super) fn client(&self, source: &Source, login: Option<&Login>) -> Result<Arc<dyn Backend>> {
        let files = &self.connection.credentials;
        let tls = (files.cacert.is_some() || files.certificate.is_some()).then(|| TlsFiles {
            ca: files.cacert.clone().map(Pem::File),
            cert: files.certificate.as_ref().map(|certificate| Pem::File(certificate.cert.clone())),
            key: files.certificate.as_ref().map(|certificate| Pem::File(certificate.key.clone())),
        });
        let credentials =
            login.map(|login| Credentials::from_file(&login.user, &login.password_file)).transpose()?;
        let options = EtcdOptions {
            endpoints: source.endpoints.iter().map(ToString::to_string).collect(),
            tls,
            credentials,
            limits: Limits::for_ttl(self.ttl),
            seed: self.entropy.bits(),
            login_spread: LOGIN_SPACING * self.min_nodes.saturating_sub(1),
        };
        Ok(Arc::new(EtcdBackend::connect(options)?))
    }

    /// Waits until the service responds. If something else listens on the port, the error names it. If no etcd can
    /// respond there, it fails at once.
    async fn wait_until_ready(
        &self,
        backend: &Arc<dyn Backend>,
        source: &Source,
        deadline: Instant,
        joins: bool,
    ) -> Result<Option<Granted>> {
        let asked = self.asked(backend, deadline, joins);
        tokio::pin!(asked);
        let [endpoint] = source.endpoints.as_slice() else { return asked.await };
        let looked = async {
            sleep(SUSPICIOUS + SUSPICIOUS_PER_NODE * self.max_nodes).await;
            Holder::find(endpoint).await
        };
        let holder = tokio::select! {
            biased;
            answer = &mut asked => match answer {
                // If the scheme is wrong, some servers respond in another protocol, and others end the connection.
                Err(Error::NotEtcd { endpoint: at, cause }) => {
                    let server = Holder::find_other_scheme(endpoint).await;
                    let found = server.and_then(|server| server.describe(endpoint));
                    return Err(Error::NotEtcd { endpoint: at, cause: found.unwrap_or(cause) });
                }
                other => return other,
            },
            holder = looked => holder,
        };
        let Some(what) = holder.describe(endpoint) else { return asked.await };
        if holder.is_definite() {
            return Err(Error::NotEtcd { endpoint: endpoint.to_string(), cause: what });
        }
        asked.await.map_err(|error| match error {
            Error::Unavailable { endpoint, cause, applied } => {
                Error::Unavailable { endpoint, cause: format!("{cause}; {what}"), applied }
            }
            other => other,
        })
    }

    async fn asked(
        &self,
        backend: &Arc<dyn Backend>,
        deadline: Instant,
        joins: bool,
    ) -> Result<Option<Granted>> {
        // The login has a separate limit. The time for connecting starts when the login is answered.
        let patience = deadline.saturating_duration_since(Instant::now());
        backend.log_in(patience).await?;
        let deadline = Instant::now() + patience;
        let told = AtomicBool::new(false);
        let id = NodeId::from_random(self.entropy.bits());
        let began = Instant::now();
        let request = || async {
            let answer = if joins {
                Granted::request(backend.as_ref(), id, self.ttl, began).await.map(Some)
            } else {
                backend.range(Range::new(Keys::one(self.keys.round()))).await.map(|_| None)
            };
            if let Err(error) = &answer
                && error.is_transient()
                && !told.swap(true, Ordering::Relaxed)
            {
                let left = deadline.saturating_duration_since(Instant::now());
                tracing::info!("{error}; trying for another {:.0} s", left.as_secs_f64());
            }
            answer
        };
        retry(RetryPolicy::default(), self.entropy.bits(), deadline, request).await
    }
}

/// Checks that this service is meant for the run. A service that a node hosts is only for the run of that node, with
/// which it ends. Any other service is for every job, so jobs without an ID would rendezvous with each other there.
///
/// # Errors
/// [`Error::Setting`] if it is not. As [`Backend::status`] if it does not respond within `connect_timeout`.
pub async fn check_service(
    settings: &Settings,
    keys: &RunKeys,
    found: &Found,
    entropy: &Entropy,
) -> Result<()> {
    let Settings { connection, run, .. } = settings;
    let has_id = run.run_id != NO_RUN_ID;
    if has_id && hosted_at(&found.source, None, settings.max_nodes)?.is_none() {
        // No node hosts a service there without an explicit setting.
        return Ok(());
    }
    let deadline = Instant::now() + connection.connect_timeout;
    let status = retry(RetryPolicy::default(), entropy.bits(), deadline, || found.backend.status()).await?;
    let endpoint = found.backend.endpoint();
    let message = match hosted_run(&status.version) {
        Some(mark) if mark == keys.mark() => return Ok(()),
        Some(_) => format!(
            "the service at `{endpoint}`, named by {}, is hosted by a node of another run and stops when that run \
             ends; run `{}` needs a separate service: pass an endpoint with another port, the same on every node, or use \
             etcd or `lattice-rdzv serve` for both runs",
            found.source.name, run.run_id
        ),
        None if has_id => return Ok(()),
        None => format!(
            "the run has no id, but jobs share the service at `{endpoint}` ({}), so jobs without an id would rendezvous \
             with each other; pass `--rdzv-id` (or `run_id`, or `LATTICE_RDZV_ID`), the same on every node and different \
             for every job; the id is `{NO_RUN_ID}`",
            status.version
        ),
    };
    Err(Error::Setting { message })
}
