//! Finds the endpoints of the rendezvous service: from an argument, the environment, or a cluster's DNS.
//!
//! All nodes of a run must use the same service. Otherwise one job becomes two. So only the first source that is set
//! counts: endpoints of two sources are never mixed, and an invalid value is an error. A second source is used only if
//! DNS says that a name does not exist. Two cases have one: the names that no user configured (the chart's Service in
//! the pod's namespace, then in `lattice`), and the name of that Service in [`ENDPOINTS`], which is followed by its
//! address in the variables that Kubernetes sets. A lookup that times out is repeated.
//!
//! [`candidates`] is pure, [`Discovery::resolve`] uses a [`Lookup`], and [`pod_facts`] reads where this process runs.
//! The caller connects, and decides how long to wait for an address that does not respond.

mod endpoint;
mod lookup;
mod pod;
mod search;
mod source;

use std::fmt;

use serde::Serialize;

pub use self::{
    endpoint::{DEFAULT_PORT, Endpoint, Host, Scheme},
    lookup::{Answer, Lookup, Resolved, SystemLookup},
    pod::{PodFacts, pod_facts},
    search::candidates,
    source::{NamedBy, Source},
};
pub(crate) use self::{
    endpoint::{EXPECTED, excerpt, parse_port, shown},
    lookup::is_own_address,
    source::parse_list,
};

/// The variable with the comma-separated list of endpoints.
pub const ENDPOINTS: &str = "LATTICE_RDZV_ENDPOINTS";
/// The variable with the host of the chart's Service, set by Kubernetes.
pub const SERVICE_HOST: &str = "LATTICE_RDZV_CLIENT_SERVICE_HOST";
/// The variable with the port of the chart's Service, set by Kubernetes.
pub const SERVICE_PORT: &str = "LATTICE_RDZV_CLIENT_SERVICE_PORT";
/// The variable with `tcp://host:port` of the chart's Service, set by Kubernetes.
pub const CLIENT_PORT: &str = "LATTICE_RDZV_CLIENT_PORT";
/// The chart's Service for clients.
pub const SERVICE_NAME: &str = "lattice-rdzv-client";
/// The namespace in which the chart's documentation installs it.
pub const SERVICE_NAMESPACE: &str = "lattice";

/// The port of the embedded server, hosted by a node or run by `lattice-rdzv serve`: c10d's port, and not etcd's.
pub const HOSTING_PORT: u16 = 29400;

/// The input of the discovery. [`crate::settings::Connection::asked`] creates it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The endpoint that was passed, or a comma-separated list. Empty counts as not passed.
    pub endpoint: Option<String>,
    /// Its name in messages: argument `endpoint`, or `--rdzv-endpoint`.
    pub origin: String,
    /// The scheme that other settings require.
    pub scheme: Option<RequiredScheme>,
}

/// A scheme that other settings require. Endpoints without a scheme get it. Endpoints with another scheme are an
/// error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequiredScheme {
    /// The scheme.
    pub scheme: Scheme,
    /// The reason, for messages: "TLS credentials are given (argument `cacert`)".
    pub because: String,
}

/// The sources that were checked, and the candidates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Discovery {
    /// Every source that was checked, in order, and its content.
    pub looked_at: Vec<Looked>,
    /// The candidates. There is more than one only if the next one is for a name that does not exist.
    pub sources: Vec<Source>,
}

/// A source that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Looked {
    /// Its name in messages.
    pub name: String,
    /// Its content without secrets, for messages. None if it is not set.
    pub held: Option<String>,
    /// The result of resolving its names, if they were resolved.
    pub outcome: Option<String>,
}

impl fmt::Display for Looked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.held, &self.outcome) {
            (Some(held), Some(outcome)) => write!(formatter, "{} (`{held}`: {outcome})", self.name),
            (Some(held), None) => write!(formatter, "{} (`{held}`)", self.name),
            (None, Some(outcome)) => write!(formatter, "{} ({outcome})", self.name),
            (None, None) => write!(formatter, "{} (not set)", self.name),
        }
    }
}

impl Discovery {
    /// Returns every source that was checked with its content, for a message or a report.
    pub fn describe(&self) -> String {
        describe(&self.looked_at)
    }
}

fn describe(looked_at: &[Looked]) -> String {
    let sources: Vec<String> = looked_at.iter().map(ToString::to_string).collect();
    format!("looked at {}", sources.join(", "))
}
