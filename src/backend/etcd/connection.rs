//! One pinned endpoint at a time, and when to turn to the next.
//!
//! With several endpoints the client library picks one per call, dead ones too, and neither fails over nor resumes. So
//! each [`Connection`] is a client of exactly one endpoint. A call that fails on it in a way that another connection
//! may mend gives it up; however many calls do so, the pool turns once, and the watches of the old one end.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{
    BalancedChannelBuilder, Certificate, Client, ConnectOptions, Identity, KvClient, LeaseClient,
    MaintenanceClient, TlsOptions, WatchClient,
};
use tokio::sync::{OnceCell, mpsc, watch};
use tonic::{
    codegen::http::Uri,
    transport::{Endpoint, channel::Change},
};

use super::classify::{Failure, classify};
use crate::{
    backend::limits::Limits,
    error::{Error, Result},
};

/// etcd closes connections that are pinged more often than every 5 s, or while nothing is open on them.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Without an answer to a ping for so long the connection is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// A certificate or key in PEM form.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// In a file, read again for each connection: certificates of long-running jobs are renewed.
    File(PathBuf),
    /// As it is.
    Bytes(Vec<u8>),
}

impl Pem {
    pub(crate) fn read(&self, what: &str) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(path) => std::fs::read(path).map_err(|error| Error::Setting {
                message: format!("the {what} cannot be read from `{}`: {error}", path.display()),
            }),
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
            // It may be a private key.
            Self::Bytes(bytes) => write!(formatter, "Bytes({} bytes)", bytes.len()),
        }
    }
}

/// What a TLS connection needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the authority that signed the service's; without it, those that the machine trusts.
    pub ca: Option<Pem>,
    /// Our certificate, with `key`.
    pub cert: Option<Pem>,
    /// Our key, with `cert`.
    pub key: Option<Pem>,
}

impl TlsFiles {
    fn options(&self) -> Result<TlsOptions> {
        let mut options = TlsOptions::new();
        options = match &self.ca {
            Some(ca) => options.ca_certificate(Certificate::from_pem(ca.read("CA certificate")?)),
            None => options.with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            options = options.identity(Identity::from_pem(cert.read("certificate")?, key.read("key")?));
        }
        Ok(options)
    }
}

/// A user of the service. Its password shows nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl Credentials {
    /// A user whose password is in a file; a line's end behind it is not part of it.
    ///
    /// # Errors
    /// [`Error::Setting`] if the file cannot be read.
    pub fn from_file(user: impl Into<String>, path: &Path) -> Result<Self> {
        let password = std::fs::read_to_string(path).map_err(|error| Error::Setting {
            message: format!("the password file cannot be read ({error}): `{}`", path.display()),
        })?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        Ok(Self { user: user.into(), password })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// How to reach an etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// Its members' client endpoints: `http://host:port`, `https://host:port`, or `host:port`, which is https where
    /// `tls` is given. All of them must be of one etcd cluster.
    pub endpoints: Vec<String>,
    /// Of TLS connections.
    pub tls: Option<TlsFiles>,
    /// As whom.
    pub credentials: Option<Credentials>,
    /// How long attempts and connecting may take.
    pub limits: Limits,
    /// Decides with which endpoint to begin, so that the nodes of a run spread over them.
    pub seed: u64,
}

impl EtcdOptions {
    /// Options for these endpoints, without TLS or user, with default limits.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { endpoints: endpoints.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    fn check(&mut self) -> Result<()> {
        let wrong = |message: String| Err(Error::Setting { message });
        if self.endpoints.is_empty() {
            return wrong(
                "no endpoint is given; expected at least one, for example `http://localhost:2379`".into(),
            );
        }
        for endpoint in &mut self.endpoints {
            if !endpoint.contains("://") {
                let scheme = if self.tls.is_some() { "https" } else { "http" };
                *endpoint = format!("{scheme}://{endpoint}");
            }
            if self.tls.is_some() && endpoint.starts_with("http://") {
                return wrong(format!(
                    "certificates are given, but an endpoint is not to be reached by TLS; expected `https://...`: `{endpoint}`"
                ));
            }
        }
        if let Some(TlsFiles { cert, key, .. }) = &self.tls
            && cert.is_some() != key.is_some()
        {
            return wrong("a client certificate and its key go together; only one of them is given".into());
        }
        Ok(())
    }
}

/// What makes the channel of each connection, and takes the endpoint that it is to lead to.
#[doc(hidden)]
pub type Channels = Arc<dyn Fn() -> (etcd_client::Channel, Endpoints) + Send + Sync>;
type Endpoints = mpsc::Sender<Change<Uri, Endpoint>>;

/// Channels over this machine's network, unless others are given.
struct Carrier<'a>(Option<&'a Channels>);

impl BalancedChannelBuilder for Carrier<'_> {
    type Error = tonic::transport::Error;

    fn balanced_channel(self, buffer_size: usize) -> Result<(etcd_client::Channel, Endpoints), Self::Error> {
        let over_network = || {
            let (channel, endpoints) = tonic::transport::Channel::balance_channel(buffer_size);
            (etcd_client::Channel::Tonic(channel), endpoints)
        };
        Ok(self.0.map_or_else(over_network, |channels| channels()))
    }
}

/// The parts of a client that are used here.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) kv: KvClient,
    pub(super) lease: LeaseClient,
    pub(super) watch: WatchClient,
    pub(super) maintenance: MaintenanceClient,
}

/// A client of one endpoint, from when it was chosen to when it is given up.
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) endpoint: String,
    clients: OnceCell<Clients>,
    /// Why it was given up.
    over: watch::Sender<Option<String>>,
}

impl Connection {
    fn new(options: &EtcdOptions, number: u64) -> Self {
        let count = options.endpoints.len().max(1) as u64;
        let index = usize::try_from((options.seed % count + number) % count).unwrap_or(0);
        let endpoint = options.endpoints.get(index).cloned().unwrap_or_default();
        Self { number, endpoint, clients: OnceCell::new(), over: watch::Sender::new(None) }
    }

    /// Waits until it is given up, and says why.
    pub(super) async fn over(&self) -> String {
        let mut over = self.over.subscribe();
        let cause = over.wait_for(Option::is_some).await;
        cause.ok().and_then(|cause| cause.clone()).unwrap_or_default()
    }

    /// The clients, made by whoever asks first. Whoever is dropped meanwhile leaves it to the next.
    pub(super) async fn clients(&self, pool: &Pool) -> Result<Clients, Dial> {
        self.clients.get_or_try_init(|| self.dial(pool)).await.cloned()
    }

    async fn dial(&self, Pool { options, channels, .. }: &Pool) -> Result<Clients, Dial> {
        let connect = async |how| {
            let carrier = Carrier(channels.as_ref());
            Client::connect_with_balanced_channel([&self.endpoint], Some(how), carrier).await
        };
        let plain = ConnectOptions::new()
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_connect_timeout(options.limits.connect_timeout)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let plain = if self.endpoint.starts_with("https://") {
            let tls = options.tls.clone().unwrap_or_default();
            plain.with_tls(tls.options().map_err(Dial::Setting)?)
        } else {
            plain
        };
        let client = match &options.credentials {
            Some(Credentials { user, password }) => {
                let with_user = plain.clone().with_user(user, password);
                match connect(with_user).await {
                    // etcd's own client goes on as well: a user is given, but this service asks for none.
                    Err(error) if error.to_string().contains("authentication is not enabled") => {
                        connect(plain).await
                    }
                    end => end,
                }
            }
            None => connect(plain).await,
        };
        let client = client.map_err(|error| Dial::Failure(classify(&error)))?;
        let bytes = options.limits.answer_bytes;
        Ok(Clients {
            kv: client.kv_client().max_decoding_message_size(bytes),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(bytes),
            maintenance: client.maintenance_client(),
        })
    }
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) enum Dial {
    Setting(Error),
    Failure(Failure),
}

/// The connection in use.
pub(super) struct Pool {
    pub(super) options: EtcdOptions,
    channels: Option<Channels>,
    current: Mutex<Arc<Connection>>,
}

impl Pool {
    pub(super) fn new(mut options: EtcdOptions, channels: Option<Channels>) -> Result<Self> {
        options.check()?;
        let current = Mutex::new(Arc::new(Connection::new(&options, 1)));
        Ok(Self { options, channels, current })
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Connection>> {
        // It holds one pointer, which is whole at any time.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn current(&self) -> Arc<Connection> {
        Arc::clone(&self.lock())
    }

    /// Turns to the next endpoint, once for each connection.
    pub(super) fn give_up(&self, connection: &Connection, cause: &str) {
        {
            let mut current = self.lock();
            if current.number != connection.number {
                return;
            }
            *current = Arc::new(Connection::new(&self.options, connection.number + 1));
            tracing::debug!(from = connection.endpoint, to = current.endpoint, cause, "another connection");
        }
        connection.over.send_replace(Some(cause.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_failure_on_an_old_connection_turns_nothing() {
        let pool = Pool::new(EtcdOptions { seed: 1, ..EtcdOptions::new(["a:1", "b:1", "c:1"]) }, None);
        let pool = pool.unwrap();
        let first = pool.current();
        pool.give_up(&first, "slow");
        let second = pool.current();
        pool.give_up(&second, "slow");
        let third = pool.current();
        pool.give_up(&first, "slower");
        assert!(Arc::ptr_eq(&third, &pool.current()));
        let mut endpoints = [&first, &second, &third].map(|connection| connection.endpoint.clone());
        endpoints.sort();
        assert_eq!(endpoints, ["http://a:1", "http://b:1", "http://c:1"]);
        assert_eq!([first.number, second.number, third.number], [1, 2, 3]);
    }
}
