//! The one user of the server or of the dashboard: the password as its file has it now, and what limits guesses.
//!
//! A wrong login is answered after [`PAUSE`], and wrong logins are logged at most once per [`PAUSE`], with their number.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{backend::etcd::Credentials, lock::lock};

/// The delay of the answer to a wrong login, and the interval between two log lines about wrong logins.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// A user who logs in with a password.
pub(crate) struct User {
    credentials: Arc<Credentials>,
    /// What the user logs in to, for log messages.
    place: &'static str,
    /// The password that was read last, and when.
    known: Mutex<Option<(Instant, String)>>,
    /// Serializes reads, so that an older read does not replace a newer one.
    reading: tokio::sync::Mutex<()>,
    denials: Mutex<Denials>,
}

impl User {
    pub(crate) fn new(credentials: Credentials, place: &'static str) -> Self {
        Self {
            credentials: Arc::new(credentials),
            place,
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            denials: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.credentials.user
    }

    /// The password, as the file had it at most `age` ago. The file can be missing while it is replaced. The password
    /// that was read last then stays valid.
    pub(crate) async fn password(&self, age: Duration) -> Option<String> {
        let _turn = self.reading.lock().await;
        let fresh = lock(&self.known).as_ref().filter(|(read, _)| read.elapsed() < age).cloned();
        if let Some((_, password)) = fresh {
            return Some(password);
        }
        let credentials = Arc::clone(&self.credentials);
        match spawn_blocking(move || credentials.password.read()).await {
            Ok(Ok(password)) => *lock(&self.known) = Some((Instant::now(), password)),
            Ok(Err(error)) => tracing::warn!(
                "the password file of {} cannot be read, so the previous password stays valid: {error}",
                self.place
            ),
            // The runtime ends.
            Err(_) => {}
        }
        lock(&self.known).as_ref().map(|(_, password)| password.clone())
    }

    /// Logs that a login was wrong, unless that was logged just now.
    pub(crate) fn deny(&self) {
        if let Some(logins) = lock(&self.denials).add(Instant::now()) {
            tracing::warn!(logins, "logins to {} were refused: wrong user or password", self.place);
        }
    }
}

/// Without the password.
impl fmt::Debug for User {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("User").field("credentials", &self.credentials).finish_non_exhaustive()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::etcd::Password;

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

    #[tokio::test]
    async fn password_is_the_one_of_the_file_and_the_last_one_while_there_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let write = |password: &str| std::fs::write(&path, password).unwrap();
        write("first\n");
        let user =
            User::new(Credentials { user: "me".into(), password: Password::File(path.clone()) }, "the test");
        assert_eq!(user.password(Duration::ZERO).await.as_deref(), Some("first"));
        write("second\n");
        assert_eq!(user.password(Duration::from_secs(60)).await.as_deref(), Some("first"));
        assert_eq!(user.password(Duration::ZERO).await.as_deref(), Some("second"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(user.password(Duration::ZERO).await.as_deref(), Some("second"));
    }
}
