//! Authenticates clients: either every client is accepted, or one user with a password.
//!
//! A client that logs in receives a token and sends it with every other call, as etcd's clients do. There is one
//! token for each password. The password is read at each login, and a new password invalidates the token of the old
//! one. Texts and codes are etcd's (`rpctypes/error.go`).

use std::{fmt, sync::Mutex, time::Duration};

use tonic::{Status, codegen::http};

use super::user::{User, same};
use crate::{backend::etcd::Credentials, lock::lock, run::Entropy};

fn token() -> String {
    let entropy = Entropy::from_system();
    format!("{:016x}{:016x}", entropy.bits(), entropy.bits())
}

/// Authenticates clients and authorizes their calls.
pub(super) struct Authenticator(Option<Lock>);

struct Lock {
    user: User,
    /// None until the first login.
    known: Mutex<Option<Known>>,
}

/// The password of the last login, and its token.
struct Known {
    password: String,
    token: String,
}

impl Authenticator {
    /// Accepts every client, or one user.
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        let new = |credentials| Lock {
            user: User::new(credentials, "the embedded server"),
            known: Mutex::default(),
        };
        Self(credentials.map(new))
    }

    /// Whether a password is required.
    pub(super) fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Reads the password again. A new one invalidates the token.
    pub(super) async fn refresh(&self) {
        let Some(own) = &self.0 else { return };
        let Some(password) = own.user.password(Duration::ZERO).await else { return };
        let mut known = lock(&own.known);
        if known.as_ref().is_none_or(|known| known.password != password) {
            *known = Some(Known { password, token: token() });
        }
    }

    /// Rejects a call without the token.
    pub(super) fn authorize(&self, headers: &http::HeaderMap) -> Result<(), Status> {
        let Some(own) = &self.0 else { return Ok(()) };
        // Clients before 3.3 use the header `authorization`, which etcd still accepts.
        let shown = headers.get("token").or_else(|| headers.get("authorization"));
        let known = lock(&own.known);
        let is_right =
            |shown: &[u8]| known.as_ref().is_some_and(|Known { token, .. }| same(shown, token.as_bytes()));
        match shown {
            None => Err(Status::invalid_argument("etcdserver: user name is empty")),
            Some(shown) if is_right(shown.as_bytes()) => Ok(()),
            Some(_) => Err(Status::unauthenticated("etcdserver: invalid auth token")),
        }
    }

    pub(super) fn token(&self, name: &str, password: &str) -> Result<String, Status> {
        let Some(own) = &self.0 else {
            return Err(Status::failed_precondition("etcdserver: authentication is not enabled"));
        };
        if let Some(Known { password: expected, token }) = &*lock(&own.known) {
            let right = same(name.as_bytes(), own.user.name().as_bytes())
                & same(password.as_bytes(), expected.as_bytes());
            if right {
                return Ok(token.clone());
            }
        }
        own.user.deny();
        let text = "etcdserver: authentication failed, invalid user ID or password";
        Err(Status::invalid_argument(text))
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Authenticator").field(&self.0.as_ref().map(|own| &own.user)).finish()
    }
}
