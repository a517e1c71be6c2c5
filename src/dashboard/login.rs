//! The login of the dashboard: HTTP Basic with one user, whose password is in a file.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, header};
use tokio::sync::Semaphore;

use super::access::is_login;
use crate::server::{Credentials, User, pause};

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

/// The user, and the wrong logins that wait for their answer.
#[derive(Debug)]
pub(super) struct Login {
    user: User,
    waiting: Arc<Semaphore>,
}

impl Login {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            user: User::new(credentials, "the dashboard"),
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
        }
    }

    /// Checks a request. The answer to a wrong login is delayed.
    pub(super) async fn check(&self, headers: &HeaderMap) -> Answer {
        let Some(shown) = headers.get(header::AUTHORIZATION) else { return Answer::Required };
        let password = self.user.password(FRESH).await;
        if password.is_some_and(|password| is_login(Some(shown.as_bytes()), self.user.name(), &password)) {
            return Answer::Right;
        }
        let Ok(turn) = Arc::clone(&self.waiting).try_acquire_owned() else { return Answer::TooMany };
        self.user.deny();
        pause(turn).await;
        Answer::Required
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use tokio::time::Instant;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

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
