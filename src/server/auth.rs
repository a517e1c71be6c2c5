//! Who may ask: anybody, or one user with a password.
//!
//! Whoever says the password gets the one token of this server's life, which goes with every other call, as etcd's
//! clients do it. Texts and codes are etcd's (`rpctypes/error.go`).

use std::fmt;

use etcd_client::proto::{PbAuthenticateRequest, PbAuthenticateResponse};
use tonic::{Status, codegen::http::HeaderMap};

use super::api::Api;
use crate::backend::etcd::Credentials;

/// Judges who asks.
pub(super) struct Gatekeeper(Option<Lock>);

struct Lock {
    credentials: Credentials,
    token: String,
}

impl Gatekeeper {
    /// Lets everybody in, or one user.
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        let token = || format!("{:032x}", rand::random::<u128>());
        Self(credentials.map(|credentials| Lock { credentials, token: token() }))
    }

    /// Whether it asks for a password.
    pub(super) fn asks(&self) -> bool {
        self.0.is_some()
    }

    /// Refuses a call without the token.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Status> {
        let Some(Lock { token, .. }) = &self.0 else { return Ok(()) };
        // Clients of before 3.3 name it `authorization`, and etcd still takes that.
        let shown = headers.get("token").or_else(|| headers.get("authorization"));
        match shown {
            None => Err(Status::invalid_argument("etcdserver: user name is empty")),
            Some(shown) if same(shown.as_bytes(), token.as_bytes()) => Ok(()),
            Some(_) => Err(Status::unauthenticated("etcdserver: invalid auth token")),
        }
    }

    fn token(&self, name: &str, password: &str) -> Result<String, Status> {
        let Some(Lock { credentials, token }) = &self.0 else {
            return Err(Status::failed_precondition("etcdserver: authentication is not enabled"));
        };
        let right = same(name.as_bytes(), credentials.user.as_bytes())
            & same(password.as_bytes(), credentials.password.as_bytes());
        if right {
            return Ok(token.clone());
        }
        tracing::warn!("a client was refused: wrong user or password");
        let text = "etcdserver: authentication failed, invalid user ID or password";
        Err(Status::invalid_argument(text))
    }
}

impl fmt::Debug for Gatekeeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Gatekeeper").field(&self.0.as_ref().map(|lock| &lock.credentials)).finish()
    }
}

/// Compares in a time that does not tell where the first difference is.
fn same(shown: &[u8], expected: &[u8]) -> bool {
    let difference = shown.iter().zip(expected).fold(0, |difference, (a, b)| difference | (a ^ b));
    shown.len() == expected.len() && difference == 0
}

impl Api {
    pub(super) fn authenticate(
        &self,
        request: &PbAuthenticateRequest,
    ) -> Result<PbAuthenticateResponse, Status> {
        let token = self.gatekeeper.token(&request.name, &request.password)?;
        Ok(PbAuthenticateResponse { header: self.header(), token })
    }
}
