//! One login, shared by all clients of this process that use one service as one user.
//!
//! etcd checks a password with bcrypt, which occupies a core for 50 ms or more, and it completes the check even if
//! the client has disconnected. A client that repeats an unanswered login only makes the queue longer. A login
//! therefore runs in its own task and on its own connection until it is answered or [`LOGIN_LIMIT`] has passed.
//! Attempts wait for it within their own limits. The token is kept across reconnects, and replaced only after the
//! service rejected it. The logins of many nodes are spread over a time that grows with their number, and failed
//! logins are repeated with a growing, random pause.

use std::{
    sync::{Arc, Mutex, TryLockError, Weak},
    time::Duration,
};

use etcd_client::{Client, ConnectOptions};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tonic::codegen::http::HeaderValue;

use super::{
    channel::{Pings, Route},
    classify::{Dial, Failure, Kind, classify},
    credentials::Credentials,
    health::Condition,
    options::EtcdOptions,
    trust::TlsFiles,
};
use crate::{
    backend::retry::{Backoff, RetryPolicy},
    error::Applied,
};

/// The maximum duration of a login. 1,024 logins occupy two cores for 30 s to 140 s, depending on etcd's
/// `--bcrypt-cost`.
pub(super) const LOGIN_LIMIT: Duration = Duration::from_secs(300);
/// The pauses after a login for which the service has, or may have, computed a bcrypt.
const AFTER_ANSWER: RetryPolicy =
    RetryPolicy { first_delay: Duration::from_secs(1), max_delay: Duration::from_secs(30), growth: 2 };
/// An etcd whose cores are busy with bcrypt responds to pings late.
const PINGS: Pings = Pings { interval: Duration::from_secs(10), timeout: Duration::from_secs(30) };

/// The state of the login.
enum Phase {
    /// None is pending. The next one may start at this time.
    Due { not_before: Instant, last: Option<Ended> },
    /// One waits for its turn or for its response, since this time.
    Pending { since: Instant },
    /// The service returned this token.
    In(HeaderValue),
    /// The service requires no password.
    Open,
}

/// How the last login ended without a token.
struct Ended {
    why: Dial,
    endpoint: String,
    /// The password that was rejected. Another password may be tried at once.
    refused: Option<String>,
}

struct Progress {
    phase: Phase,
    quick: Backoff,
    slow: Backoff,
}

/// What the caller of [`Login::claim`] does next.
enum Claim {
    Go,
    Wait,
    Start,
    Fail(Dial),
}

/// One login and its token.
pub(super) struct Login {
    credentials: Credentials,
    spread: Duration,
    progress: watch::Sender<Progress>,
}

impl Login {
    fn new(credentials: Credentials, options: &EtcdOptions) -> Arc<Self> {
        let quick = Backoff::new(RetryPolicy::default(), options.seed);
        let slow = Backoff::new(AFTER_ANSWER, options.seed);
        // A different series of numbers than that of the pauses.
        let spread = Backoff::new(RetryPolicy::default(), !options.seed).part_of(options.login_spread);
        let phase = Phase::Due { not_before: Instant::now(), last: None };
        Arc::new(Self { credentials, spread, progress: watch::Sender::new(Progress { phase, quick, slow }) })
    }

    /// The token in use, if there is one.
    pub(super) fn token(&self) -> Option<HeaderValue> {
        match &self.progress.borrow().phase {
            Phase::In(token) => Some(token.clone()),
            _ => None,
        }
    }

    /// For how long the login has been pending.
    pub(super) fn pending_for(&self) -> Duration {
        match &self.progress.borrow().phase {
            Phase::Pending { since } => since.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Records that the service rejected a request with this token, or without one. The next call logs in, unless
    /// another call has already done so.
    pub(super) fn expire(&self, used: Option<&HeaderValue>) {
        self.progress.send_if_modified(|Progress { phase, .. }| {
            let is_used = match phase {
                Phase::In(token) => used == Some(token),
                Phase::Open => used.is_none(),
                _ => false,
            };
            if is_used {
                *phase = Phase::Due { not_before: Instant::now(), last: None };
            }
            is_used
        });
    }

    /// Waits until there is a token or none is needed, and starts a login if one is due. The login continues if the
    /// caller stops waiting.
    pub(super) async fn ready(self: &Arc<Self>, route: &Route) -> Result<(), Dial> {
        let mut progress = self.progress.subscribe();
        loop {
            progress.mark_unchanged();
            let rotated = self.password_was_rotated().await;
            match self.claim(&route.endpoint, rotated) {
                Claim::Go => return Ok(()),
                Claim::Fail(why) => return Err(why),
                Claim::Start => drop(tokio::spawn(Arc::clone(self).run(route.clone()))),
                Claim::Wait => {}
            }
            // The sender is part of `self`.
            let _ = progress.changed().await;
        }
    }

    fn claim(&self, endpoint: &str, rotated: bool) -> Claim {
        let mut claim = Claim::Wait;
        self.progress.send_if_modified(|Progress { phase, .. }| {
            let now = Instant::now();
            claim = match phase {
                Phase::In(_) | Phase::Open => Claim::Go,
                Phase::Pending { .. } => Claim::Wait,
                Phase::Due { not_before, last: Some(ended) } if now < *not_before && !rotated => {
                    match ended.elsewhere(endpoint) {
                        Some(why) => Claim::Fail(why),
                        None => Claim::Start,
                    }
                }
                Phase::Due { .. } => Claim::Start,
            };
            if matches!(claim, Claim::Start) {
                *phase = Phase::Pending { since: now };
            }
            // Waiters only wait for the end.
            false
        });
        claim
    }

    /// Whether the service rejected a password that is no longer the one in the file.
    async fn password_was_rotated(&self) -> bool {
        let refused = match &self.progress.borrow().phase {
            Phase::Due { last: Some(Ended { refused: Some(refused), .. }), .. } => refused.clone(),
            _ => return false,
        };
        let password = self.credentials.password.clone();
        let read = spawn_blocking(move || password.read()).await;
        matches!(read, Ok(Ok(now)) if now != refused)
    }

    async fn run(self: Arc<Self>, route: Route) {
        sleep(self.spread).await;
        let password = self.credentials.password.clone();
        let outcome = match spawn_blocking(move || password.read()).await {
            Ok(Ok(password)) => {
                let asked = authenticate(&route, &self.credentials.user, &password);
                let answer = timeout(LOGIN_LIMIT, asked).await.unwrap_or_else(|_| {
                    let cause = format!("the login was not answered within {} s", LOGIN_LIMIT.as_secs());
                    let kind = Kind::Unavailable { applied: Applied::Unknown };
                    Err(Failure { kind, cause, condition: Condition::Broken })
                });
                if matches!(answer, Ok(None)) {
                    let (user, endpoint) = (&self.credentials.user, &route.endpoint);
                    tracing::warn!(
                        "{endpoint} does not check the password of `{user}`, because authentication is off there: every \
                         client that reaches it has access"
                    );
                }
                answer.map_err(|failure| {
                    let refused = (failure.kind == Kind::Denied).then_some(password);
                    Ended { why: Dial::Failure(failure), endpoint: route.endpoint.clone(), refused }
                })
            }
            Ok(Err(error)) => {
                Err(Ended { why: Dial::Setting(error), endpoint: route.endpoint, refused: None })
            }
            // The runtime ends, and with it all waiting callers.
            Err(_) => return,
        };
        self.progress.send_modify(|progress| progress.settle(outcome));
    }
}

impl Progress {
    fn settle(&mut self, outcome: Result<Option<HeaderValue>, Ended>) {
        self.phase = match outcome {
            Ok(token) => {
                self.quick.reset();
                self.slow.reset();
                token.map_or(Phase::Open, Phase::In)
            }
            Err(ended) => {
                let cost_nothing = match &ended.why {
                    Dial::Setting(_) => true,
                    Dial::Failure(failure) => failure.kind == (Kind::Unavailable { applied: Applied::No }),
                };
                let pause = if cost_nothing { self.quick.next_delay() } else { self.slow.next_delay() };
                tracing::debug!(?pause, why = ?ended.why, "a login failed");
                Phase::Due { not_before: Instant::now() + pause, last: Some(ended) }
            }
        };
    }
}

impl Ended {
    /// Why a caller that uses this endpoint has to wait. `None` if another endpoint may be tried at once.
    fn elsewhere(&self, endpoint: &str) -> Option<Dial> {
        match &self.why {
            Dial::Setting(error) => Some(Dial::Setting(error.clone())),
            Dial::Failure(Failure { kind: Kind::Unavailable { applied: Applied::No }, .. })
                if self.endpoint != endpoint =>
            {
                None
            }
            Dial::Failure(failure) => {
                let here = self.endpoint == endpoint;
                let condition = if here { failure.condition } else { Condition::Sound };
                Some(Dial::Failure(Failure { condition, ..failure.clone() }))
            }
        }
    }
}

/// The token. `None` if the service requires no password, in which case etcd's own client continues without a token,
/// too.
async fn authenticate(route: &Route, user: &str, password: &str) -> Result<Option<HeaderValue>, Failure> {
    let channel = etcd_client::Channel::Tonic(route.open(PINGS)?);
    let options = ConnectOptions::new().with_require_leader(true);
    let client = Client::from_channel(channel, Some(options)).await?;
    match client.auth_client().authenticate(user.to_owned(), password.to_owned()).await {
        Ok(answer) => {
            let token = HeaderValue::from_str(answer.token()).map_err(|_| Failure {
                kind: Kind::NotEtcd,
                cause: "the answer to the login holds no token".to_owned(),
                condition: Condition::Broken,
            })?;
            Ok(Some(token))
        }
        Err(error) if error.to_string().contains("authentication is not enabled") => Ok(None),
        Err(error) => Err(classify(&error)),
    }
}

/// Which clients may share a login. The ID of the runtime is part of it, because a forked child has another runtime, in
/// which the task of a pending login does not exist.
#[derive(PartialEq, Eq)]
struct Key {
    runtime: tokio::runtime::Id,
    endpoints: Vec<String>,
    credentials: Credentials,
    tls: Option<TlsFiles>,
}

static SHARED: Mutex<Vec<(Key, Weak<Login>)>> = Mutex::new(Vec::new());

/// The login of this process for these options, or a new one.
pub(super) fn shared(credentials: &Credentials, options: &EtcdOptions, may_share: bool) -> Arc<Login> {
    let new = || Login::new(credentials.clone(), options);
    let (Ok(runtime), true) = (Handle::try_current(), may_share) else { return new() };
    let mut endpoints = options.endpoints.clone();
    endpoints.sort();
    let (credentials, tls) = (credentials.clone(), options.tls.clone());
    let key = Key { runtime: runtime.id(), endpoints, credentials, tls };
    // The lock is held only within this function. A child that was forked meanwhile finds it locked forever, and shares
    // nothing.
    for _ in 0..LOCK_TRIES {
        let mut all = match SHARED.try_lock() {
            Ok(all) => all,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                std::thread::yield_now();
                continue;
            }
        };
        all.retain(|(_, login)| login.strong_count() > 0);
        if let Some(login) = all.iter().find(|(of, _)| *of == key).and_then(|(_, login)| login.upgrade()) {
            return login;
        }
        let login = new();
        all.push((key, Arc::downgrade(&login)));
        return login;
    }
    new()
}

const LOCK_TRIES: u32 = 10_000;
