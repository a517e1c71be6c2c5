//! A source with its endpoints, and the comma-separated lists that contain them.

use serde::Serialize;

use super::{
    HOSTING_PORT, RequiredScheme,
    endpoint::{Endpoint, NO_PORT, Scheme, Written},
};

/// The origin of the endpoints of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedBy {
    /// A user set them for this job, so a node may host the embedded server there.
    User,
    /// No endpoint is set, so `localhost` is assumed. A node may host the embedded server there too.
    Default,
    /// The cluster that this process runs in.
    Cluster,
}

/// One source with the endpoints it names, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its name in messages.
    pub name: String,
    /// Its endpoints, in the order written, each once.
    pub endpoints: Vec<Endpoint>,
    /// Whether one of its hosts must be resolved in DNS.
    pub needs_dns: bool,
    /// Whether no user set it. If its name does not exist, the next source is used.
    pub guessed: bool,
    /// The origin of the endpoints.
    pub named_by: NamedBy,
    /// The same host at [`HOSTING_PORT`], if the single endpoint has no port. The service is the server that responds
    /// at either port. If neither responds, a node hosts it here.
    pub otherwise: Option<Box<Source>>,
    /// The same Service by its DNS name, in case the address in a service variable is silent for
    /// [`Source::SILENCE_SECONDS`], because such a variable is a snapshot from the start of the container. It is
    /// never the Service of another namespace.
    pub fallback: Option<Box<Source>>,
}

impl Source {
    /// How long an address from a service variable may be silent before [`Source::fallback`] is tried.
    pub const SILENCE_SECONDS: u64 = 5;

    pub(crate) fn new(name: impl Into<String>, endpoints: Vec<Endpoint>) -> Self {
        let needs_dns = endpoints.iter().any(|endpoint| endpoint.host.needs_dns());
        Self {
            name: name.into(),
            endpoints,
            needs_dns,
            guessed: false,
            named_by: NamedBy::Cluster,
            otherwise: None,
            fallback: None,
        }
    }

    /// Creates a source from endpoints that a user set.
    pub(super) fn written(name: impl Into<String>, listed: Listed) -> Self {
        let Listed { endpoints, without_port } = listed;
        let mut source = Self::new(name, endpoints);
        source.named_by = NamedBy::User;
        if without_port {
            let mut otherwise = source.clone();
            otherwise.endpoints.iter_mut().for_each(|endpoint| endpoint.port = HOSTING_PORT);
            source.otherwise = Some(Box::new(otherwise));
        }
        source
    }

    /// Whether only the local machine can reach these endpoints.
    pub fn is_this_machine(&self) -> bool {
        self.endpoints.iter().all(|endpoint| endpoint.host.is_this_machine())
    }
}

/// The endpoints of a comma-separated list, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    endpoints: Vec<Endpoint>,
    /// There is one endpoint, and it has no port.
    without_port: bool,
}

/// Parses a comma-separated list. The error describes the problem and repeats no part of the text.
pub(crate) fn parse_list(text: &str, required: Option<&RequiredScheme>) -> Result<Listed, String> {
    let mut endpoints = Vec::new();
    let mut without_port = false;
    for (index, part) in text.split(',').enumerate() {
        if part.trim().is_empty() {
            continue;
        }
        let at = |why: String| if text.contains(',') { format!("in entry {} {why}", index + 1) } else { why };
        let written = Written::parse(part).map_err(at)?;
        if let (Some(scheme), Some(required)) = (written.scheme, required)
            && scheme != required.scheme
        {
            let RequiredScheme { scheme: demanded, because } = required;
            return Err(at(format!(
                "its scheme is `{scheme}://`, but {because}, which requires `{demanded}://`"
            )));
        }
        without_port = written.port.is_none();
        let endpoint = written.with_default(required.map_or(Scheme::Http, |required| required.scheme));
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    match endpoints.as_slice() {
        [] => Err("it names none".to_owned()),
        [_] => Ok(Listed { endpoints, without_port }),
        // Port 0 means any free port, on which one node hosts the embedded server for itself.
        several if several.iter().any(|endpoint| endpoint.port == 0) => Err(NO_PORT.to_owned()),
        _ => Ok(Listed { endpoints, without_port: false }),
    }
}
