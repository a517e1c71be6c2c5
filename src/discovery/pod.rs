//! Describes where this process runs, and the name of the chart's Service there.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use super::{
    SERVICE_NAME,
    endpoint::{Endpoint, Host, shown},
    source::Source,
};
use crate::error::{Error, Result};

/// The chart's Service that gives each of several members a DNS name.
const MEMBERS_SERVICE_NAME: &str = "lattice-rdzv-members";
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
const RESOLVER_FILE: &str = "/etc/resolv.conf";

/// Where this process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodFacts {
    /// Whether the process runs in a pod of a Kubernetes cluster.
    pub in_pod: bool,
    /// The pod's namespace, if known.
    pub namespace: Option<String>,
    /// The domain of the cluster's names (`cluster.local`), if the pod's resolver searches it.
    pub cluster_domain: Option<String>,
}

/// Reads where this process runs. `KUBERNETES_SERVICE_HOST` is set in every pod. The namespace comes from
/// `POD_NAMESPACE`, the file of the service account, or the first search domain of the resolver, in this order. The
/// cluster's domain comes from the search domains too.
pub fn pod_facts(environment: &BTreeMap<String, String>) -> PodFacts {
    pod_facts_with(environment, |file| std::fs::read_to_string(Path::new(file)).ok())
}

fn pod_facts_with(environment: &BTreeMap<String, String>, read: impl Fn(&str) -> Option<String>) -> PodFacts {
    let given = |text: &str| Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned);
    let set = |name: &str| environment.get(name).and_then(|text| given(text));
    if set("KUBERNETES_SERVICE_HOST").is_none() {
        return PodFacts::default();
    }
    let (searched_first, cluster_domain) = read(RESOLVER_FILE).as_deref().and_then(searched).unzip();
    let namespace = set("POD_NAMESPACE")
        .or_else(|| read(NAMESPACE_FILE).and_then(|text| given(&text)))
        .or(searched_first);
    PodFacts { in_pod: true, namespace, cluster_domain }
}

/// Returns the namespace and the cluster's domain from a resolver's file. Unless `dnsPolicy` changes this, a kubelet
/// writes `search NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN`, followed by the search domains of the Kubernetes node.
fn searched(resolver: &str) -> Option<(String, String)> {
    // resolv.conf(5): the last line of each kind applies.
    let mut lines = resolver.lines().rev().map(|line| line.split_whitespace());
    let words = lines.find(|words| matches!(words.clone().next(), Some("search" | "domain")))?;
    let domains: Vec<&str> = words.skip(1).map(|domain| domain.trim_end_matches('.')).collect();
    domains.iter().find_map(|first| {
        let (namespace, services) = first.split_once('.')?;
        let domain = services.strip_prefix("svc.")?;
        let is_kubelets = domains.contains(&services) && Host::parse(domain).is_ok();
        is_kubelets.then(|| (namespace.to_owned(), domain.to_owned()))
    })
}

/// Whether the chart's `ConfigMap` names the Service of the pod's own namespace, which the service variables
/// describe. A pod in its host's network cannot resolve the name, but has the address.
pub(super) fn names_own_service(source: &Source, pod: &PodFacts) -> bool {
    let is_own = |host: &str| {
        let labels: Vec<&str> = host.split('.').collect();
        let service = labels.iter().position(|label| *label == "svc").and_then(|svc| svc.checked_sub(2));
        let Some([service, namespace]) = service.and_then(|at| labels.get(at..at + 2)) else { return false };
        [SERVICE_NAME, MEMBERS_SERVICE_NAME].contains(service)
            && pod.namespace.as_deref().is_none_or(|own| own == *namespace)
    };
    pod.in_pod && source.endpoints.iter().all(|Endpoint { host, .. }| is_own(&host.to_string()))
}

/// The name of the chart's Service in the pod's own namespace.
pub(super) fn own_name(pod: &PodFacts) -> Result<String> {
    let Some(namespace) = &pod.namespace else { return Ok(SERVICE_NAME.to_owned()) };
    let name = name_in(namespace, pod);
    if namespace.contains('.') || Host::parse(&name).is_err() {
        return Err(Error::Setting {
            message: format!(
                "the pod's namespace (environment variable `POD_NAMESPACE`, else the service account's file, else \
                 {RESOLVER_FILE}) must be the name of a namespace: `{}`",
                shown(namespace)
            ),
        });
    }
    Ok(name)
}

/// The name of the chart's Service in a namespace. With the cluster's domain, the name ends in a dot, so that the
/// resolver searches only this name, and only the cluster's own DNS decides whether it exists. A name without the
/// domain is tried in all search domains, including ones outside the cluster, where no server may respond.
pub(super) fn name_in(namespace: &str, pod: &PodFacts) -> String {
    match &pod.cluster_domain {
        Some(domain) => format!("{SERVICE_NAME}.{namespace}.svc.{domain}."),
        None => format!("{SERVICE_NAME}.{namespace}.svc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pod(namespace: &str, domain: Option<&str>) -> PodFacts {
        PodFacts {
            in_pod: true,
            namespace: Some(namespace.to_owned()),
            cluster_domain: domain.map(str::to_owned),
        }
    }

    const SEARCHED: &str =
        "search own.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\n";

    #[test]
    fn pod_knows_its_namespace_and_its_clusters_domain() {
        let namespace = |file: &str| (file == NAMESPACE_FILE).then(|| "team\n".to_owned());
        let resolver = |file: &str| (file == RESOLVER_FILE).then(|| SEARCHED.to_owned());
        assert_eq!(pod_facts_with(&BTreeMap::new(), namespace), PodFacts::default());
        let inside = [("KUBERNETES_SERVICE_HOST", "10.0.0.1")];
        assert_eq!(pod_facts_with(&environment(&inside), namespace), pod("team", None));
        assert_eq!(
            pod_facts_with(&environment(&inside), |_| None),
            PodFacts { in_pod: true, ..PodFacts::default() }
        );
        assert_eq!(pod_facts_with(&environment(&inside), resolver), pod("own", Some("cluster.local")));
        let told = [inside[0], ("POD_NAMESPACE", "mine")];
        assert_eq!(pod_facts_with(&environment(&told), namespace), pod("mine", None));
        assert_eq!(pod_facts_with(&environment(&told), resolver), pod("mine", Some("cluster.local")));
    }

    #[test]
    fn only_what_a_kubelet_writes_is_a_clusters_domain() {
        let own = |domain: &str| Some(("own".to_owned(), domain.to_owned()));
        assert_eq!(searched(SEARCHED), own("cluster.local"));
        assert_eq!(searched("search a.b.\nsearch first.example own.svc.k8s. svc.k8s. k8s."), own("k8s"));
        for other in [
            "",
            "nameserver 10.0.0.1",
            "search corp.example",
            "search own.svc.corp.example corp.example", // a company's own `svc`
            "search own.svc.a/b svc.a/b",
            "search own.svc.cluster.local svc.cluster.local\nsearch corp.example",
            "search own.svc.cluster.local svc.cluster.local\ndomain corp.example",
            "searches own.svc.cluster.local svc.cluster.local",
        ] {
            assert_eq!(searched(other), None, "{other}");
        }
    }
}
