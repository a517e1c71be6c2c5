//! How an etcd is reached.

use std::time::Duration;

use super::{credentials::Credentials, trust::TlsFiles};
use crate::{
    backend::limits::Limits,
    error::{Error, Result},
};

/// How to reach an etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// The client endpoints of its members: `http://host:port`, `https://host:port`, or `host:port`, which stands for
    /// https if `tls` is given. All of them must belong to one etcd cluster.
    pub endpoints: Vec<String>,
    /// The files for TLS connections.
    pub tls: Option<TlsFiles>,
    /// The user that logs in.
    pub credentials: Option<Credentials>,
    /// The maximum duration of attempts and of connecting.
    pub limits: Limits,
    /// Decides which endpoint is the first, so that the nodes of a run are distributed over the endpoints.
    pub seed: u64,
    /// The time over which the logins of nodes that start together are spread.
    pub login_spread: Duration,
}

impl EtcdOptions {
    /// Options for these endpoints, without TLS or user, with default limits.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { endpoints: endpoints.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    pub(super) fn check(&mut self) -> Result<()> {
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
            return wrong(
                "a client certificate needs its key, and the key its certificate; only one of them is given"
                    .into(),
            );
        }
        Ok(())
    }
}
