//! Checks an endpoint for a run of several machines before nodes wait for each other. Pure.

use crate::discovery::{ENDPOINTS, NamedBy, Source};

/// The warning that no other machine can join, because no endpoint was named, or because the endpoint refers to
/// whichever machine uses it. `passed_as` is the user's name for the endpoint setting.
pub(super) fn warning(source: &Source, max_nodes: u32, passed_as: &str) -> Option<String> {
    if max_nodes < 2 || !source.is_this_machine() {
        return None;
    }
    let endpoints: Vec<String> = source.endpoints.iter().map(ToString::to_string).collect();
    let endpoints = endpoints.join(",");
    let why = if source.named_by == NamedBy::Default {
        format!("no endpoint is passed or set, so this node uses `{endpoints}`")
    } else {
        format!("{} is `{endpoints}`, which refers to each node's own machine", source.name)
    };
    Some(format!(
        "{why}: only agents on this machine can join this run, which takes up to {max_nodes} nodes; pass an address \
         of one node or of an etcd that all nodes reach as {passed_as}, the same on every node, or set environment \
         variable `{ENDPOINTS}`; no action is needed if all nodes run on this machine"
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::discovery::{Asked, PodFacts, candidates};

    fn told(endpoint: Option<&str>, max_nodes: u32) -> Option<String> {
        let asked = Asked {
            endpoint: endpoint.map(str::to_owned),
            origin: "`--rdzv-endpoint`".to_owned(),
            ..Asked::default()
        };
        let found = candidates(&asked, &BTreeMap::new(), &PodFacts::default()).unwrap();
        warning(&found.sources[0], max_nodes, "`--rdzv-endpoint`")
    }

    #[test]
    fn endpoint_that_each_machine_takes_for_itself_is_named() {
        let message = told(None, 4).unwrap();
        for part in ["no endpoint is passed", "only agents on this machine", "up to 4", "`--rdzv-endpoint`"] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
        for endpoint in ["localhost:29400", "127.0.0.1:2379", "[::1]:29400", "0.0.0.0:29400", "localhost"] {
            let message = told(Some(endpoint), 2).unwrap();
            assert!(message.contains("`--rdzv-endpoint` is `http://"), "{message}");
        }
    }

    #[test]
    fn one_that_others_reach_or_no_other_node_needs_is_not() {
        for (endpoint, max_nodes) in [
            (None, 1),
            (Some("localhost:29400"), 1),
            (Some("node0:29400"), 4),
            (Some("10.0.0.7"), 4),
            (Some("localhost:2379,node1:2379"), 4),
        ] {
            assert_eq!(told(endpoint, max_nodes), None, "{endpoint:?}");
        }
    }
}
