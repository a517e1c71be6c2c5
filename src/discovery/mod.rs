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
    source::parse_list,
};

/// The comma list of endpoints.
pub const ENDPOINTS: &str = "LATTICE_RDZV_ENDPOINTS";
/// The host that Kubernetes makes from the chart's Service.
pub const SERVICE_HOST: &str = "LATTICE_RDZV_CLIENT_SERVICE_HOST";
/// The port that Kubernetes makes from the chart's Service.
pub const SERVICE_PORT: &str = "LATTICE_RDZV_CLIENT_SERVICE_PORT";
/// `tcp://host:port`, which Kubernetes makes from the chart's Service too.
pub const CLIENT_PORT: &str = "LATTICE_RDZV_CLIENT_PORT";
/// The chart's Service for clients.
pub const SERVICE_NAME: &str = "lattice-rdzv-client";
/// The namespace that the chart is installed in by its own instructions.
pub const SERVICE_NAMESPACE: &str = "lattice";

/// Where a service is that a node hosts, or `lattice-rdzv serve`: c10d's port, and not etcd's.
pub const HOSTING_PORT: u16 = 29400;

/// What the caller knows before looking anywhere; [`crate::settings::Connection::asked`] makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The endpoint, or a comma list of them, that was passed. Empty counts as not passed.
    pub endpoint: Option<String>,
    /// What messages call it: argument `endpoint`, or `--rdzv-endpoint`.
    pub origin: String,
    /// The scheme that other settings demand.
    pub scheme: Option<RequiredScheme>,
}

/// A scheme that other settings demand: endpoints without one get it, endpoints with the other are an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequiredScheme {
    /// The scheme.
    pub scheme: Scheme,
    /// Why, for the message: "TLS credentials are given (argument `cacert`)".
    pub because: String,
}

/// What was looked at for endpoints, and where they may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Discovery {
    /// Every source that was looked at, in order, and what it held.
    pub looked_at: Vec<Looked>,
    /// Where the service may be. There is more than one only where the next is for a name that does not exist.
    pub sources: Vec<Source>,
}

/// A source that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Looked {
    /// What it is called, as in messages.
    pub name: String,
    /// What it held: fit for a message, so without anything secret; none if it is not set.
    pub held: Option<String>,
    /// What came of looking its names up, where that was done.
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
    /// Every source that was looked at and what it held, for a message or a report.
    pub fn describe(&self) -> String {
        describe(&self.looked_at)
    }
}

fn describe(looked_at: &[Looked]) -> String {
    let sources: Vec<String> = looked_at.iter().map(ToString::to_string).collect();
    format!("looked at {}", sources.join(", "))
}
