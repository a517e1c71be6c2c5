//! Authenticates clients: either every client is accepted, or one user with a password.
//!
//! A client that logs in receives a token and sends it with every other call, as etcd's clients do. There is one
//! token for each password. The password is read at each login, and a new password invalidates the token of the old
//! one. Texts and codes are etcd's (`rpctypes/error.go`).
//!
//! A connection handles one login at a time, and the response to a wrong login is delayed by [`PAUSE`], which limits
//! the rate of guesses. Other connections are not delayed, because a correct password is accepted at once. Wrong
//! logins are logged at most once per [`PAUSE`], with their number.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::proto::{PbAuthenticateRequest, PbAuthenticateResponse};
use tokio::time::{Instant, sleep};
use tonic::{Status, body::Body, codegen::http};

use super::api::Api;
use crate::{backend::etcd::Credentials, run::Entropy};

/// The delay of the response to a wrong login, and the interval between two log lines about wrong logins.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

fn token() -> String {
    let entropy = Entropy::from_system();
    format!("{:016x}{:016x}", entropy.bits(), entropy.bits())
}

/// Authenticates clients and authorizes their calls.
pub(super) struct Authenticator(Option<Lock>);

struct Lock {
    credentials: Credentials,
    /// None until the first login.
    known: Mutex<Option<Known>>,
    denials: Mutex<Denials>,
}

/// The password that was read last, and its token.
struct Known {
    password: String,
    token: String,
}

/// Wrong logins that were not logged.
#[derive(Debug, Default)]
struct Denials {
    logged: Option<Instant>,
    since: u64,
}

impl Denials {
    /// Counts a wrong login. Returns the number since the last log line if another line is due.
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if self.logged.is_some_and(|logged| now.duration_since(logged) < PAUSE) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

impl Authenticator {
    /// Accepts every client, or one user.
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        let new = |credentials| Lock { credentials, known: Mutex::default(), denials: Mutex::default() };
        Self(credentials.map(new))
    }

    /// Whether a password is required.
    pub(super) fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Rejects a call without the token.
    pub(super) fn authorize(&self, headers: &http::HeaderMap) -> Result<(), Status> {
        let Some(lock) = &self.0 else { return Ok(()) };
        // Clients before 3.3 use the header `authorization`, which etcd still accepts.
        let shown = headers.get("token").or_else(|| headers.get("authorization"));
        let known = lock.known();
        let is_right =
            |shown: &[u8]| known.as_ref().is_some_and(|Known { token, .. }| same(shown, token.as_bytes()));
        match shown {
            None => Err(Status::invalid_argument("etcdserver: user name is empty")),
            Some(shown) if is_right(shown.as_bytes()) => Ok(()),
            Some(_) => Err(Status::unauthenticated("etcdserver: invalid auth token")),
        }
    }

    fn token(&self, name: &str, password: &str) -> Result<String, Status> {
        let Some(lock) = &self.0 else {
            return Err(Status::failed_precondition("etcdserver: authentication is not enabled"));
        };
        let mut known = lock.known();
        match lock.credentials.password.read() {
            Ok(now) if known.as_ref().is_some_and(|known| known.password == now) => {}
            Ok(now) => {
                *known = Some(Known { password: now, token: token() });
            }
            // The file can be missing while it is replaced. The password that was read last then stays valid.
            Err(error) => tracing::warn!(
                "the password file cannot be read, so the previous password stays valid: {error}"
            ),
        }
        if let Some(Known { password: expected, token }) = &*known {
            let right = same(name.as_bytes(), lock.credentials.user.as_bytes())
                & same(password.as_bytes(), expected.as_bytes());
            if right {
                return Ok(token.clone());
            }
        }
        // A counter is consistent at any time.
        let logins = lock.denials.lock().unwrap_or_else(PoisonError::into_inner).add(Instant::now());
        if let Some(logins) = logins {
            tracing::warn!(logins, "clients were refused: wrong user or password");
        }
        let text = "etcdserver: authentication failed, invalid user ID or password";
        Err(Status::invalid_argument(text))
    }
}

impl Lock {
    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        // The value is always replaced as a whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Authenticator").field(&self.0.as_ref().map(|lock| &lock.credentials)).finish()
    }
}

/// Performs a login after the connection's previous logins have been answered. The response to a failed login is
/// delayed.
pub(super) async fn in_turn(
    turn: &Arc<tokio::sync::Mutex<()>>,
    login: impl Future<Output = http::Response<Body>>,
) -> http::Response<Body> {
    let turn = Arc::clone(turn).lock_owned().await;
    let reply = login.await;
    // A response that consists only of a status has it in the header.
    if reply.headers().contains_key("grpc-status") {
        pause(turn).await;
    }
    reply
}

/// Waits for [`PAUSE`], and then releases this. A client that cancels its request does not shorten that.
pub(crate) async fn pause(held: impl Send + 'static) {
    let pause = tokio::spawn(async move {
        sleep(PAUSE).await;
        drop(held);
    });
    // It ends with an error only if the runtime ends.
    let _ = pause.await;
}

/// Compares in constant time, so that the duration does not reveal the position of the first difference.
pub(crate) fn same(shown: &[u8], expected: &[u8]) -> bool {
    let difference = shown.iter().zip(expected).fold(0, |difference, (a, b)| difference | (a ^ b));
    shown.len() == expected.len() && difference == 0
}

impl Api {
    pub(super) fn authenticate(
        &self,
        request: &PbAuthenticateRequest,
    ) -> Result<PbAuthenticateResponse, Status> {
        let token = self.authenticator.token(&request.name, &request.password)?;
        Ok(PbAuthenticateResponse { header: self.header(), token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_logins_are_logged_once_a_second_with_their_number() {
        let began = Instant::now();
        let mut denials = Denials::default();
        let mut add = |milliseconds| denials.add(began + Duration::from_millis(milliseconds));
        assert_eq!(add(0), Some(1));
        assert!((1..1000).all(|millisecond| add(millisecond).is_none()));
        assert_eq!(add(1000), Some(1000));
        assert_eq!(add(5000), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn connection_guesses_once_a_second_and_the_right_password_does_not_wait() {
        let turn = Arc::default();
        let began = Instant::now();
        let wrong = || in_turn(&turn, async { Status::invalid_argument("wrong").into_http() });
        tokio::join!(wrong(), wrong(), wrong());
        assert_eq!(began.elapsed(), PAUSE * 3);
        in_turn(&turn, async { http::Response::new(Body::empty()) }).await;
        assert_eq!(began.elapsed(), PAUSE * 3);
        // The client cancels its request, and sends the next one.
        let _ = tokio::time::timeout(PAUSE / 10, wrong()).await;
        wrong().await;
        assert_eq!(began.elapsed(), PAUSE * 5);
    }
}
