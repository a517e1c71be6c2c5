//! A source with its endpoints, and the comma-separated lists that contain them.

use serde::Serialize;

use super::{
    HOSTING_PORT, RequiredScheme,
    endpoint::{Endpoint, NO_PORT, Scheme, Written},
};

/// Who named the endpoints of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedBy {
    /// Somebody wrote them for this job, so a node may host the service there.
    User,
    /// Nothing names an endpoint, so `localhost` is assumed. A node may host the service there, too.
    Nobody,
    /// The cluster that this process runs in.
    Cluster,
}

/// One source with the endpoints it names, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// What it is called, as in messages.
    pub name: String,
    /// Its endpoints, in the order written, each once.
    pub endpoints: Vec<Endpoint>,
    /// Whether a host of it is a name that DNS must know.
    pub needs_dns: bool,
    /// Whether nobody wrote it: if its name does not exist, the next source is looked at.
    pub guessed: bool,
    /// Who named it.
    pub named_by: NamedBy,
    /// The same host at [`HOSTING_PORT`], where the one endpoint names no port: whichever of the two serves is the
    /// service, and a node hosts it there if neither does.
    pub otherwise: Option<Box<Source>>,
    /// The same Service by its DNS name, for when the address that a service variable holds is silent for
    /// [`Source::SILENCE_SECONDS`]: such a variable is a snapshot of the container's start. Never another namespace's.
    pub fallback: Option<Box<Source>>,
}

impl Source {
    /// For how long an address from a service variable may be silent before [`Source::fallback`] is tried.
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

    /// Of endpoints that somebody wrote.
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

    /// Whether only the machine that uses it reaches what it names.
    pub fn is_this_machine(&self) -> bool {
        self.endpoints.iter().all(|endpoint| endpoint.host.is_this_machine())
    }
}

/// The endpoints of a comma list, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    endpoints: Vec<Endpoint>,
    /// There is one, and it names no port.
    without_port: bool,
}

/// Reads a comma list. The error says what is wrong and repeats nothing of the text.
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
            return Err(at(format!("it says `{scheme}://` where {because}, which needs `{demanded}://`")));
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
        // Any free port is the port of a service that one node hosts for itself.
        several if several.iter().any(|endpoint| endpoint.port == 0) => Err(NO_PORT.to_owned()),
        _ => Ok(Listed { endpoints, without_port: false }),
    }
}
