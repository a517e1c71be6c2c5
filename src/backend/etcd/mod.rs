//! Client of etcd 3.4 or newer, through its gRPC API.
//!
//! The client library connects lazily and does not handle failures. This module adds the guarantees of a [`Backend`]:
//! a deadline on every attempt, one endpoint at a time with failover ([`connection`]), and errors that describe the
//! failure and whether a write may have been applied ([`mod@classify`]). It does not retry.

mod channel;
mod classify;
mod connection;
mod convert;
mod credentials;
mod health;
mod login;
mod options;
mod renewals;
mod trust;
mod watch;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use etcd_client::LeaseGrantOptions;
use tokio::time::{Instant, sleep_until, timeout};

pub use self::{
    channel::Channels,
    credentials::{Credentials, Password},
    options::EtcdOptions,
    trust::TlsFiles,
};
use self::{
    classify::{Dial, Failure, Kind},
    connection::{Clients, Connection, Dialed, Pool},
    convert::{
        compare, get_options, header, key_value, operation, operation_result,
        puts_what_it_deletes_without_end, seconds,
    },
    health::Condition,
    login::LOGIN_LIMIT,
    watch::{EtcdWatch, open_watch},
};
use super::{
    Backend, Keys, LeaseId, LeaseLife, Operation, Range, RangeResult, Revision, Status, Txn, TxnParts,
    TxnResult, WatchStream,
    retry::{Backoff, RetryPolicy},
    whole_seconds,
};
use crate::error::{Applied, Error, Result};
pub use crate::tls::Pem;

/// A client of an etcd cluster.
pub struct EtcdBackend {
    pool: Arc<Pool>,
}

/// The facts about an attempt that its failure depends on.
#[derive(Clone, Copy, Debug, Default)]
struct About {
    lease: LeaseId,
    writes: bool,
    /// Whether it renews a lease. Most releases of etcd require no token for that, so a renewal does not wait for a
    /// pending login, and the node keeps its lease meanwhile.
    renews: bool,
}

impl EtcdBackend {
    /// A client. Its first attempt connects, and authenticates if there is a user.
    ///
    /// # Errors
    /// [`Error::Setting`] if the options contradict each other.
    pub fn connect(options: EtcdOptions) -> Result<Self> {
        Self::connect_over(options, None)
    }

    /// As [`Self::connect`], with other channels than those of the network of this machine.
    ///
    /// # Errors
    /// As [`Self::connect`].
    #[doc(hidden)]
    pub fn connect_over(options: EtcdOptions, channels: Option<Channels>) -> Result<Self> {
        Ok(Self { pool: Arc::new(Pool::new(options, channels)?) })
    }

    /// Makes one attempt on the connection in use. It may be made twice, because a service that requires another login
    /// did nothing.
    async fn attempt<T, C, F>(&self, about: About, call: C) -> Result<T>
    where
        C: Fn(Clients) -> F + Send + Sync,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let connection = self.pool.current();
        let sent = Instant::now();
        match self.attempt_on(&connection, about, call).await {
            Ok(answer) => {
                Pool::succeeded(&connection);
                if about.renews {
                    self.pool.renewed(sent);
                }
                Ok(answer)
            }
            Err(Dial::Setting(error)) => Err(error),
            Err(Dial::Failure(failure)) => {
                self.pool.failed(&connection, &failure, sent);
                Err(failure.into_error(&connection.endpoint, about.lease, about.writes))
            }
        }
    }

    async fn attempt_on<T, C, F>(&self, connection: &Connection, about: About, call: C) -> Result<T, Dial>
    where
        C: Fn(Clients) -> F + Send + Sync,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let limit = self.pool.options.limits.attempt_timeout;
        let Dialed { clients, route } = connection.dial(&self.pool).await?;
        let Some(login) = self.pool.login() else {
            let refused = |failure: Failure| match failure.kind {
                Kind::LoginNeeded => Failure {
                    kind: Kind::Denied,
                    cause: format!(
                        "{}; the service requires a login: set `user` and `password_file`",
                        failure.cause
                    ),
                    ..failure
                },
                _ => failure,
            };
            return bounded(limit, call(clients)).await.map_err(refused).map_err(Dial::Failure);
        };
        let mut waits = !about.renews;
        let mut repeated = false;
        loop {
            if waits {
                let pending = |_| Failure {
                    kind: Kind::Unavailable { applied: Applied::No },
                    cause: format!(
                        "the login was sent and is not answered yet, after {:.0} s",
                        login.pending_for().as_secs_f64()
                    ),
                    condition: Condition::Sound,
                };
                let ready = timeout(limit, login.ready(&route)).await;
                ready.map_err(pending).map_err(Dial::Failure)??;
            }
            let token = login.token();
            match bounded(limit, call(clients.clone())).await {
                Err(Failure { kind: Kind::LoginNeeded, .. }) if !repeated => login.expire(token.as_ref()),
                end => return end.map_err(Dial::Failure),
            }
            (waits, repeated) = (true, true);
        }
    }
}

/// Runs a call within a time limit.
async fn bounded<T>(limit: Duration, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        Err(Failure {
            kind: Kind::Unavailable { applied: Applied::Unknown },
            cause: format!("no answer within {} ms", limit.as_millis()),
            condition: Condition::Late,
        })
    })
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection { number, endpoint, .. } = &*self.pool.current();
        let mut debug = formatter.debug_struct("EtcdBackend");
        debug.field("endpoint", endpoint).field("connection", number).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for EtcdBackend {
    async fn range(&self, range: Range) -> Result<RangeResult> {
        let (key, mut options) = get_options(range.keys);
        options = options.with_revision(range.revision).with_limit(range.limit);
        if range.keys_only {
            options = options.with_keys_only();
        }
        self.attempt(About::default(), |Clients { mut kv, .. }| {
            let (key, options) = (key.clone(), options.clone());
            async move {
                let mut answer = kv.get(key, Some(options)).await?;
                let items = answer.take_kvs().into_iter().map(key_value).collect();
                Ok(RangeResult { header: header(answer.header()), items, more: answer.more() })
            }
        })
        .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult> {
        let TxnParts { when, then, otherwise } = txn.into_parts();
        let operations = || then.iter().chain(&otherwise);
        let lease = operations().find_map(|operation| match operation {
            Operation::Put { lease, .. } if *lease != 0 => Some(*lease),
            _ => None,
        });
        let writes = operations().any(Operation::writes);
        let about = About { lease: lease.unwrap_or_default(), writes, renews: false };
        for branch in [&then, &otherwise] {
            if puts_what_it_deletes_without_end(branch) {
                let cause = "etcdserver: duplicate key given in txn request".to_owned();
                return Err(Error::Rejected { endpoint: self.endpoint(), cause });
            }
        }
        let request = etcd_client::Txn::new()
            .when(when.into_iter().map(compare).collect::<Vec<_>>())
            .and_then(then.into_iter().map(operation).collect::<Vec<_>>())
            .or_else(otherwise.into_iter().map(operation).collect::<Vec<_>>());
        self.attempt(about, |Clients { mut kv, .. }| {
            let request = request.clone();
            async move {
                let answer = kv.txn(request).await?;
                let results = answer.op_responses().into_iter().map(operation_result).collect();
                Ok(TxnResult { header: header(answer.header()), succeeded: answer.succeeded(), results })
            }
        })
        .await
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Duration> {
        let about = About { lease: id, writes: true, renews: false };
        let options = LeaseGrantOptions::new().with_id(id);
        self.attempt(about, |Clients { mut lease, .. }| {
            let options = options.clone();
            async move { Ok(seconds(lease.grant(whole_seconds(ttl), Some(options)).await?.ttl())) }
        })
        .await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration> {
        let about = About { lease: id, writes: false, renews: true };
        self.attempt(about, |Clients { renewals, .. }| {
            let token = self.pool.login().and_then(|login| login.token());
            async move { renewals.renew(id, token).await }
        })
        .await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        let about = About { lease: id, writes: true, renews: false };
        self.attempt(about, |Clients { mut lease, .. }| async move {
            lease.revoke(id).await?;
            Ok(())
        })
        .await
    }

    async fn lease_life(&self, id: LeaseId) -> Result<Option<LeaseLife>> {
        let about = About { lease: id, writes: false, renews: false };
        self.attempt(about, |Clients { mut lease, .. }| async move {
            let answer = lease.time_to_live(id, None).await?;
            // etcd answers -1 for a lease that does not exist.
            let exists = answer.ttl() >= 0;
            let (granted, remaining) = (seconds(answer.granted_ttl()), seconds(answer.ttl()));
            Ok(exists.then_some(LeaseLife { granted, remaining }))
        })
        .await
    }

    async fn watch(&self, keys: Keys, start: Revision) -> Result<Box<dyn WatchStream>> {
        let credentials = self.pool.options.credentials.is_some();
        // If the connection is given up meanwhile, the watch ends.
        let connection = self.pool.current();
        let opened = self.attempt(About::default(), |clients| {
            let keys = keys.clone();
            async move {
                match open_watch(&clients, &keys, start).await {
                    // etcd 3.5.1 also returns this error if the token is merely too old (3.5.21 does not). A read of
                    // the same keys then requires another login, or is denied, too.
                    Err(Failure { kind: Kind::Denied, .. }) if credentials => {
                        let (key, options) = get_options(keys.clone());
                        clients.kv.clone().get(key, Some(options.with_limit(1).with_keys_only())).await?;
                        open_watch(&clients, &keys, start).await
                    }
                    end => end,
                }
            }
        });
        let (stream, created) = opened.await?;
        let position = if start > 0 { start - 1 } else { created };
        let pool = Arc::clone(&self.pool);
        Ok(Box::new(EtcdWatch { pool, connection, stream, position }))
    }

    async fn status(&self) -> Result<Status> {
        self.attempt(About::default(), |Clients { mut maintenance, .. }| async move {
            let answer = maintenance.status().await?;
            Ok(Status {
                version: answer.version().to_owned(),
                cluster_id: answer.header().map_or(0, etcd_client::ResponseHeader::cluster_id),
                member_id: answer.header().map_or(0, etcd_client::ResponseHeader::member_id),
                leader: answer.leader(),
                db_size: answer.db_size(),
                errors: answer.errors().to_vec(),
            })
        })
        .await
    }

    async fn log_in(&self, patience: Duration) -> Result<()> {
        let began = Instant::now();
        let mut deadline = began + patience;
        let mut backoff = Backoff::new(RetryPolicy::default(), self.pool.options.seed);
        loop {
            let asked = Instant::now();
            let connection = self.pool.current();
            let Some(login) = self.pool.login() else { return Ok(()) };
            let failure = match connection.dial(&self.pool).await {
                Ok(Dialed { route, .. }) => match login.ready(&route).await {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            let failure = match failure {
                Dial::Setting(error) => return Err(error),
                Dial::Failure(failure) => failure,
            };
            self.pool.failed(&connection, &failure, asked);
            if failure.kind == (Kind::Unavailable { applied: Applied::Unknown }) {
                deadline += asked.elapsed();
            }
            let error = failure.into_error(&connection.endpoint, 0, false);
            let next = Instant::now() + backoff.next_delay();
            if !error.is_transient() || next >= deadline.min(began + patience + LOGIN_LIMIT) {
                return Err(error);
            }
            sleep_until(next).await;
        }
    }

    fn endpoint(&self) -> String {
        self.pool.current().endpoint.clone()
    }

    fn connection(&self) -> u64 {
        self.pool.current().number
    }
}
