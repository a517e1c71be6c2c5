//! Finds environment variables that look like settings but have no effect, such as `LATTICE_RDZV_ENDPOINT`. Pure.
//!
//! A misspelled variable has no effect, and the job waits for nodes that never join. Every unknown variable with this
//! package's prefix is therefore reported. Other variables that begin with `LATTICE_` are reported only if they are
//! similar to a known one, because other programs may use that prefix too.

use std::{collections::BTreeMap, fmt};

use super::keys::{SECRET_VARIABLE, distance, variables};
use crate::discovery::{CLIENT_PORT, ENDPOINTS, SERVICE_HOST, SERVICE_PORT};

const COMMON_PREFIX: &str = "LATTICE_";
const PREFIX: &str = "LATTICE_RDZV_";

/// The variables of the log, which the Python package reads.
const LOG: [&str; 2] = ["LATTICE_RDZV_LOG", "LATTICE_RDZV_LOG_FORMAT"];

/// The maximum number of letters in which a misspelled name differs from the intended one.
const FARTHEST: usize = 2;

/// A variable that is set and has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVariable {
    /// Its name.
    pub name: String,
    /// The known variable that may be meant.
    pub meant: Option<&'static str>,
}

impl fmt::Display for UnknownVariable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, meant } = self;
        let name = crate::discovery::excerpt(name);
        write!(formatter, "environment variable `{name}` has no effect, because no setting has that name; ")?;
        match meant {
            Some(meant) => write!(formatter, "did you mean `{meant}`?"),
            None => formatter.write_str("docs/settings.md lists the known ones"),
        }
    }
}

/// Returns the variables that are set, have no effect, and may be meant for this package.
pub fn unknown_variables(environment: &BTreeMap<String, String>) -> Vec<UnknownVariable> {
    let set = environment.iter().filter(|(_, value)| !value.trim().is_empty());
    set.filter(|(name, value)| name.starts_with(COMMON_PREFIX) && !is_of_a_service(name, value))
        .filter(|(name, _)| !known().any(|known| known == *name) && *name != SECRET_VARIABLE)
        .map(|(name, _)| UnknownVariable { name: name.clone(), meant: nearest(name) })
        .filter(|unknown| unknown.meant.is_some() || unknown.name.starts_with(PREFIX))
        .collect()
}

fn known() -> impl Iterator<Item = &'static str> {
    let discovered = [ENDPOINTS, SERVICE_HOST, SERVICE_PORT, CLIENT_PORT];
    discovered.into_iter().chain(LOG).chain(variables().filter(|name| name.starts_with(COMMON_PREFIX)))
}

fn nearest(name: &str) -> Option<&'static str> {
    known()
        .map(|known| (distance(name, known), known))
        .filter(|(far, _)| *far <= FARTHEST)
        .min()
        .map(|(_, known)| known)
}

/// Whether Kubernetes sets this variable for a Service, whose name can begin like this package's variables:
/// `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`, `NAME_SERVICE_PORT_HTTP`, `NAME_PORT` with a URL, `NAME_PORT_80_TCP`,
/// and the last one with `_PROTO`, `_PORT` or `_ADDR`.
fn is_of_a_service(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    let is_url =
        PROTOCOLS.iter().any(|protocol| value.starts_with(&format!("{}://", protocol.to_lowercase())));
    let of_a_port = name.rsplit_once("_PORT_").map_or("", |(_, port)| port);
    let of_a_port = if name.ends_with("_PORT") { name.trim_end_matches("_PORT") } else { of_a_port };
    let port = of_a_port.rsplit_once("_PORT_").map_or(of_a_port, |(_, port)| port);
    let mut parts = port.split('_');
    let is_port = parts.next().is_some_and(|number| number.parse::<u16>().is_ok())
        && parts.next().is_some_and(|protocol| PROTOCOLS.contains(&protocol));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url)
        || is_port
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(pairs: &[(&str, &str)]) -> Vec<(String, Option<&'static str>)> {
        let environment =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        unknown_variables(&environment).into_iter().map(|unknown| (unknown.name, unknown.meant)).collect()
    }

    #[test]
    fn misspelt_variable_is_named_with_the_one_that_is_meant() {
        for (name, meant) in [
            ("LATTICE_RDZV_ENDPOINT", Some(ENDPOINTS)),
            ("LATTICE_RZDV_ENDPOINTS", Some(ENDPOINTS)),
            ("LATTICE_NODES", Some("LATTICE_NNODES")),
            ("LATTICE_RDZV_IDS", Some("LATTICE_RDZV_ID")),
            ("LATTICE_RDZV_CLIENT_SERVICE_HOTS", Some(SERVICE_HOST)),
            ("LATTICE_RDZV_JOIN_TIMEOUT", None),
        ] {
            assert_eq!(unknown(&[(name, "x")]), [(name.to_owned(), meant)]);
        }
    }

    #[test]
    fn known_variable_and_one_of_another_program_are_not() {
        for name in known().chain(["LATTICE_LICENSE_FILE", "LATTICE_TEST_ETCD", "RDZV_ID", SECRET_VARIABLE]) {
            assert_eq!(unknown(&[(name, "x")]), [], "{name}");
        }
        assert_eq!(unknown(&[("LATTICE_RDZV_ENDPOINT", " ")]), []);
    }

    #[test]
    fn what_kubernetes_makes_of_a_service_is_never_named() {
        for (name, value) in [
            ("LATTICE_RDZV_SERVICE_HOST", "10.0.0.1"),
            ("LATTICE_RDZV_SERVICE_PORT", "2379"),
            ("LATTICE_RDZV_SERVER_SERVICE_PORT_CLIENT", "2379"),
            ("LATTICE_RDZV_PORT", "tcp://10.0.0.1:2379"),
            ("LATTICE_RDZV_CLIENT_PORT_2379_TCP", "tcp://10.0.0.1:2379"),
            ("LATTICE_RDZV_CLIENT_PORT_2379_TCP_PROTO", "tcp"),
            ("LATTICE_RDZV_CLIENT_PORT_2379_TCP_PORT", "2379"),
            ("LATTICE_RDZV_CLIENT_PORT_2379_TCP_ADDR", "10.0.0.1"),
            ("LATTICE_PORT_53_UDP", "udp://10.0.0.1:53"),
        ] {
            assert_eq!(unknown(&[(name, value)]), [], "{name}");
        }
        // No Service of Kubernetes has a port that is not in a URL.
        assert_eq!(unknown(&[("LATTICE_RDZV_PORT", "29500")]).len(), 1);
    }

    #[test]
    fn message_names_both() {
        let found =
            unknown_variables(&BTreeMap::from([("LATTICE_RDZV_ENDPOINT".to_owned(), "x".to_owned())]));
        let message = found[0].to_string();
        assert!(
            message.contains("`LATTICE_RDZV_ENDPOINT`") && message.contains("`LATTICE_RDZV_ENDPOINTS`?"),
            "{message}"
        );
    }
}
