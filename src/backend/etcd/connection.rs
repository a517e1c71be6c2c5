//! Uses one endpoint at a time, and fails over to the next one.
//!
//! With several endpoints, the client library selects one per call, including dead ones, and neither fails over nor
//! resumes. Each [`Connection`] is therefore a client of exactly one endpoint. It is given up after a failure for
//! which [`health`](super::health) expects that another connection works better. If several calls fail, the pool
//! fails over once, and the watches of the old connection end.

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use etcd_client::{Channel, Client, ConnectOptions, KvClient, LeaseClient, MaintenanceClient, WatchClient};
use tokio::{
    sync::{OnceCell, watch},
    time::Instant,
};

use super::{
    channel::{Channels, Pings, Route, with_token},
    classify::{Dial, Failure, classify},
    health::{FailedCall, Health},
    login::{Login, shared},
    options::EtcdOptions,
    renewals::Renewals,
};
use crate::{error::Result, lock::lock};

/// etcd closes connections that are pinged more often than every 5 s, or while nothing is open on them. A connection
/// that does not respond to a ping within 5 s is considered dead.
const PINGS: Pings = Pings { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };

/// The parts of a client that are used here.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) kv: KvClient,
    pub(super) lease: LeaseClient,
    pub(super) watch: WatchClient,
    pub(super) maintenance: MaintenanceClient,
    pub(super) renewals: Arc<Renewals>,
}

/// The clients of a connection. They connect when they are first used.
#[derive(Clone)]
pub(super) struct Dialed {
    pub(super) clients: Clients,
    pub(super) route: Route,
}

/// A client of one endpoint, from its selection until it is given up.
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) endpoint: String,
    dialed: OnceCell<Dialed>,
    health: Mutex<Health>,
    /// The reason for which it was given up.
    over: watch::Sender<Option<String>>,
}

impl Connection {
    fn new(options: &EtcdOptions, number: u64) -> Self {
        let count = options.endpoints.len().max(1) as u64;
        let index = usize::try_from((options.seed % count + number) % count).unwrap_or(0);
        let endpoint = options.endpoints.get(index).cloned().unwrap_or_default();
        Self {
            number,
            endpoint,
            dialed: OnceCell::new(),
            health: Mutex::default(),
            over: watch::Sender::new(None),
        }
    }

    /// Waits until the connection is given up, and returns the reason.
    pub(super) async fn over(&self) -> String {
        let mut over = self.over.subscribe();
        let cause = over.wait_for(Option::is_some).await;
        cause.ok().and_then(|cause| cause.clone()).unwrap_or_default()
    }

    /// The clients. The first caller makes them.
    pub(super) async fn dial(&self, pool: &Pool) -> Result<Dialed, Dial> {
        self.dialed.get_or_try_init(|| self.prepare(pool)).await.cloned()
    }

    async fn prepare(&self, pool: &Pool) -> Result<Dialed, Dial> {
        let Pool { options, channels, .. } = pool;
        let tls = if self.endpoint.starts_with("https://") && channels.is_none() {
            let files = options.tls.clone().unwrap_or_default();
            Some(files.config().map_err(Dial::Setting)?)
        } else {
            None
        };
        let route = Route {
            endpoint: self.endpoint.clone(),
            tls,
            channels: channels.clone(),
            connect_timeout: options.limits.connect_timeout,
        };
        let channel = route.open(PINGS).map_err(Dial::Failure)?;
        let channel = match pool.login().cloned() {
            Some(login) => with_token(channel, move || login.token()),
            None => Channel::Tonic(channel),
        };
        let renewals = Arc::new(Renewals::new(channel.clone()));
        let client = Client::from_channel(channel, Some(ConnectOptions::new().with_require_leader(true)));
        let client = client.await.map_err(|error| Dial::Failure(classify(&error)))?;
        let bytes = options.limits.answer_bytes;
        let clients = Clients {
            kv: client.kv_client().max_decoding_message_size(bytes),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(bytes),
            maintenance: client.maintenance_client(),
            renewals,
        };
        Ok(Dialed { clients, route })
    }
}

/// The connection in use.
pub(super) struct Pool {
    pub(super) options: EtcdOptions,
    channels: Option<Channels>,
    login: OnceLock<Option<Arc<Login>>>,
    current: Mutex<Arc<Connection>>,
    /// When the last acknowledged renewal of a lease was sent.
    renewed: Mutex<Option<Instant>>,
}

impl Pool {
    pub(super) fn new(mut options: EtcdOptions, channels: Option<Channels>) -> Result<Self> {
        options.check()?;
        let current = Mutex::new(Arc::new(Connection::new(&options, 1)));
        Ok(Self { options, channels, login: OnceLock::new(), current, renewed: Mutex::default() })
    }

    /// The login, if there is a user. The first call makes it, because it belongs to the runtime that executes the
    /// call.
    pub(super) fn login(&self) -> Option<&Arc<Login>> {
        let make = || {
            let credentials = self.options.credentials.as_ref()?;
            // A pool with custom channels simulates processes, which share nothing.
            Some(shared(credentials, &self.options, self.channels.is_none()))
        };
        self.login.get_or_init(make).as_ref()
    }

    pub(super) fn current(&self) -> Arc<Connection> {
        Arc::clone(&lock(&self.current))
    }

    /// Records that a renewal that was sent at `sent` was acknowledged.
    pub(super) fn renewed(&self, sent: Instant) {
        let mut renewed = lock(&self.renewed);
        *renewed = (*renewed).max(Some(sent));
    }

    /// Records that a call on the connection succeeded.
    pub(super) fn succeeded(connection: &Connection) {
        lock(&connection.health).succeed();
    }

    /// Records that a call on the connection failed, and fails over to the next endpoint if that is likely to help.
    pub(super) fn failed(&self, connection: &Connection, failure: &Failure, sent: Instant) {
        let ended = Instant::now();
        let half_ttl = self.options.limits.attempt_timeout * 2;
        let renewed = *lock(&self.renewed);
        let call = FailedCall {
            condition: failure.condition,
            sent,
            ended,
            lease_in_danger: renewed.is_some_and(|at| ended.saturating_duration_since(at) > half_ttl),
            has_alternative: self.options.endpoints.len() > 1,
        };
        if lock(&connection.health).fail(call) {
            self.give_up(connection, &failure.cause);
        }
    }

    /// Fails over to the next endpoint, once for each connection.
    fn give_up(&self, connection: &Connection, cause: &str) {
        {
            let mut current = lock(&self.current);
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
    fn late_failure_on_an_old_connection_causes_no_failover() {
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
