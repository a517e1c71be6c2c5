//! The login of the dashboard: HTTP Basic with one user, whose password is in a file.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, header};
use tokio::{sync::Semaphore, time::Instant};

use super::access::is_login;
use crate::server::{Credentials, PAUSE, pause};

/// Wrong logins that wait at once. More are refused as too many.
const MOST_WAITING: usize = 16;
/// How long a password that was read is used before the file is read again.
const FRESH: Duration = Duration::from_secs(1);

/// The answer to a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Right,
    /// There is none, or it is wrong.
    Required,
    TooMany,
}

/// The user, and the password that was read last.
#[derive(Debug)]
pub(super) struct Login {
    credentials: Credentials,
    known: Mutex<Option<(Instant, String)>>,
    waiting: Arc<Semaphore>,
    logged: Mutex<Option<Instant>>,
}

impl Login {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            known: Mutex::default(),
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
            logged: Mutex::default(),
        }
    }

    /// Checks a request. The answer to a wrong login is delayed.
    pub(super) async fn check(&self, headers: &HeaderMap) -> Answer {
        let Some(shown) = headers.get(header::AUTHORIZATION) else { return Answer::Required };
        let right = self
            .password()
            .is_some_and(|password| is_login(Some(shown.as_bytes()), &self.credentials.user, &password));
        if right {
            return Answer::Right;
        }
        let Ok(turn) = Arc::clone(&self.waiting).try_acquire_owned() else { return Answer::TooMany };
        self.log();
        pause(turn).await;
        Answer::Required
    }

    /// The password as it is now. While the file cannot be read, for example because it is replaced, the last one counts.
    fn password(&self) -> Option<String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, password)) = known.as_ref().filter(|(read, _)| read.elapsed() < FRESH) {
            return Some(password.clone());
        }
        match self.credentials.password.read() {
            Ok(password) => *known = Some((Instant::now(), password)),
            Err(error) => {
                tracing::warn!(
                    "the password file of the dashboard cannot be read, so the previous password stays valid: {error}"
                );
            }
        }
        known.as_ref().map(|(_, password)| password.clone())
    }

    fn log(&self) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= PAUSE) {
            *logged = Some(Instant::now());
            tracing::warn!("a login to the dashboard was refused: wrong user or password");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_logins_wait_a_second_and_many_at_once_are_refused() {
        let login = Login::new(Credentials { user: "me".into(), password: "secret".into() });
        let began = Instant::now();
        assert_eq!(login.check(&HeaderMap::new()).await, Answer::Required);
        assert_eq!(login.check(&headers("Basic bWU6c2VjcmV0")).await, Answer::Right);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let wrong = headers("Basic bWU6Z3Vlc3M=");
        let guesses = futures_util::future::join_all((0..20).map(|_| login.check(&wrong))).await;
        assert_eq!(guesses.iter().filter(|answer| **answer == Answer::Required).count(), MOST_WAITING);
        assert_eq!(guesses.iter().filter(|answer| **answer == Answer::TooMany).count(), 4);
        assert_eq!(began.elapsed(), PAUSE);
        assert_eq!(login.check(&headers("Basic bWU6c2VjcmV0")).await, Answer::Right);
        assert_eq!(began.elapsed(), PAUSE, "the right password does not wait");
    }
}
