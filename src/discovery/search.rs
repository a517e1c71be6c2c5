//! Selects the first source that is set, as a pure function of the argument, the environment and the pod.

use std::collections::BTreeMap;

use super::{
    Asked, CLIENT_PORT, DEFAULT_PORT, Discovery, ENDPOINTS, HOSTING_PORT, Looked, NamedBy, PodFacts,
    SERVICE_HOST, SERVICE_NAMESPACE, SERVICE_PORT, Source, describe,
    endpoint::{EXPECTED, Endpoint, Host, Scheme, parse_port, shown},
    pod::{name_in, names_own_service, own_name},
    source::{Listed, parse_list},
};
use crate::error::{Error, Result};

/// Returns the candidates: the first source that is set.
///
/// # Errors
///
/// The first source that is set is invalid, or its scheme differs from the required one.
pub fn candidates(
    asked: &Asked,
    environment: &BTreeMap<String, String>,
    pod: &PodFacts,
) -> Result<Discovery> {
    let mut search = Search { asked, environment, looked_at: Vec::new() };

    let argument = asked.endpoint.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let origin = if asked.origin.is_empty() { "argument `endpoint`" } else { &asked.origin };
    if let Some(text) = search.look(origin, argument) {
        let listed = search.list(origin, &text)?;
        return Ok(search.found(vec![Source::written(origin, listed)]));
    }

    let name = format!("environment variable `{ENDPOINTS}`");
    if let Some(text) = search.look_variable(ENDPOINTS) {
        let listed = search.list(&name, &text)?;
        let mut sources = vec![Source::written(name, listed)];
        if sources.iter().all(|source| names_own_service(source, pod)) {
            sources.extend(search.service_variables(pod)?);
        }
        return Ok(search.found(sources));
    }

    if let Some(source) = search.service_variables(pod)? {
        return Ok(search.found(vec![source]));
    }
    if let Some(source) = search.client_port(pod)? {
        return Ok(search.found(vec![source]));
    }

    if !pod.in_pod {
        let name = "the default outside a cluster";
        let endpoint = |port| search.endpoint(Host::Name("localhost".to_owned()), port);
        let (etcds, hosted) = (endpoint(DEFAULT_PORT), endpoint(HOSTING_PORT));
        let held = Some(format!("{etcds}, else {hosted}"));
        search.looked_at.push(Looked { name: name.to_owned(), held, outcome: None });
        let assumed = |source| Source { named_by: NamedBy::Default, ..source };
        let mut source = assumed(Source::new(name, vec![etcds]));
        source.otherwise = Some(Box::new(assumed(Source::new(name, vec![hosted]))));
        return Ok(search.found(vec![source]));
    }
    let mut names = vec![own_name(pod)?];
    let shared = name_in(SERVICE_NAMESPACE, pod);
    if !names.contains(&shared) {
        names.push(shared);
    }
    let mut sources = Vec::new();
    for name in names {
        // The lookup records the name and its result.
        let endpoint = search.endpoint(Host::Name(name.clone()), DEFAULT_PORT);
        let mut source = Source::new(format!("DNS name `{name}`"), vec![endpoint]);
        source.guessed = true;
        sources.push(source);
    }
    Ok(search.found(sources))
}

struct Search<'a> {
    asked: &'a Asked,
    environment: &'a BTreeMap<String, String>,
    looked_at: Vec<Looked>,
}

impl Search<'_> {
    fn found(self, sources: Vec<Source>) -> Discovery {
        Discovery { looked_at: self.looked_at, sources }
    }

    fn look(&mut self, name: &str, text: Option<&str>) -> Option<String> {
        self.looked_at.push(Looked { name: name.to_owned(), held: text.map(shown), outcome: None });
        text.map(str::to_owned)
    }

    fn look_variable(&mut self, variable: &str) -> Option<String> {
        let text = self.environment.get(variable).map(|text| text.trim()).filter(|text| !text.is_empty());
        self.look(&format!("environment variable `{variable}`"), text)
    }

    fn wrong(&self, name: &str, expected: &str, why: &str, text: &str) -> Error {
        Error::Setting {
            message: format!(
                "{name} must be {expected}, but {why}; correct it, or unset it to use the next source ({}): `{}`",
                describe(&self.looked_at),
                shown(text)
            ),
        }
    }

    fn endpoint(&self, host: Host, port: u16) -> Endpoint {
        let scheme = self.asked.scheme.as_ref().map_or(Scheme::Http, |required| required.scheme);
        Endpoint { scheme, host, port }
    }

    fn list(&self, name: &str, text: &str) -> Result<Listed> {
        parse_list(text, self.asked.scheme.as_ref()).map_err(|why| {
            self.wrong(name, &format!("{EXPECTED}, or a comma-separated list of these"), &why, text)
        })
    }

    fn service_variables(&mut self, pod: &PodFacts) -> Result<Option<Source>> {
        let host = self.look_variable(SERVICE_HOST);
        let port = self.look_variable(SERVICE_PORT);
        let Some(host) = host else { return Ok(None) };
        let name = format!("environment variable `{SERVICE_HOST}`");
        let parsed = Host::parse(&host).map_err(|why| {
            let expected = format!("an address or a host name alone (the port belongs in `{SERVICE_PORT}`)");
            self.wrong(&name, &expected, &why, &host)
        })?;
        let port = match port {
            None => DEFAULT_PORT,
            Some(text) => port_of(&text).map_err(|why| {
                let name = format!("environment variable `{SERVICE_PORT}`");
                self.wrong(&name, "a port number from 1 to 65535", &why, &text)
            })?,
        };
        let fallback = self.fallback(pod, &parsed, port)?;
        let mut source = Source::new(name, vec![self.endpoint(parsed, port)]);
        source.fallback = fallback;
        Ok(Some(source))
    }

    fn client_port(&mut self, pod: &PodFacts) -> Result<Option<Source>> {
        let Some(text) = self.look_variable(CLIENT_PORT) else { return Ok(None) };
        let name = format!("environment variable `{CLIENT_PORT}`");
        let (host, port) = tcp(&text).map_err(|why| {
            let expected = format!(
                "`tcp://host:port`, as Kubernetes sets it (a port alone belongs in `{SERVICE_PORT}`)"
            );
            self.wrong(&name, &expected, &why, &text)
        })?;
        let fallback = self.fallback(pod, &host, port)?;
        let mut source = Source::new(name, vec![self.endpoint(host, port)]);
        source.fallback = fallback;
        Ok(Some(source))
    }

    /// Returns the Service's DNS name if Kubernetes set the address. An address or name that a user set may belong to
    /// another service, and trying the pod's namespace instead would split the job.
    fn fallback(&self, pod: &PodFacts, host: &Host, port: u16) -> Result<Option<Box<Source>>> {
        let by_kubernetes = self
            .environment
            .get(CLIENT_PORT)
            .and_then(|text| tcp(text.trim()).ok())
            .is_none_or(|(set_beside_it, _)| set_beside_it == *host);
        if !pod.in_pod || !by_kubernetes || matches!(host, Host::Name(_)) {
            return Ok(None);
        }
        let name = own_name(pod)?;
        let endpoint = self.endpoint(Host::Name(name.clone()), port);
        Ok(Some(Box::new(Source::new(format!("DNS name `{name}`"), vec![endpoint]))))
    }
}

/// Parses a number, or the number in `tcp://host:port`, which Kubernetes sets for a Service whose name ends in
/// `-service`.
fn port_of(text: &str) -> Result<u16, String> {
    if text.starts_with("tcp://") { tcp(text).map(|(_, port)| port) } else { parse_port(text) }
}

fn tcp(text: &str) -> Result<(Host, u16), String> {
    let Some(rest) = text.strip_prefix("tcp://") else {
        return Err("it does not begin with `tcp://`".to_owned());
    };
    let Some((host, port)) = rest.rsplit_once(':') else { return Err("it has no port".to_owned()) };
    Ok((Host::parse(host)?, parse_port(port)?))
}

#[cfg(test)]
mod tests {
    use super::{super::RequiredScheme, *};

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pod(namespace: Option<&str>) -> PodFacts {
        PodFacts { in_pod: true, namespace: namespace.map(str::to_owned), cluster_domain: None }
    }

    fn pod_that_searches(namespace: &str, domain: &str) -> PodFacts {
        PodFacts { cluster_domain: Some(domain.to_owned()), ..pod(Some(namespace)) }
    }

    fn passed(endpoint: &str) -> Asked {
        Asked { endpoint: Some(endpoint.to_owned()), origin: "`--rdzv-endpoint`".to_owned(), scheme: None }
    }

    fn with_tls(endpoint: Option<&str>) -> Asked {
        let because = "TLS credentials are given (argument `cacert`)".to_owned();
        Asked {
            endpoint: endpoint.map(str::to_owned),
            origin: String::new(),
            scheme: Some(RequiredScheme { scheme: Scheme::Https, because }),
        }
    }

    fn shown_endpoints(source: &Source) -> Vec<String> {
        source.endpoints.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn only(asked: &Asked, pairs: &[(&str, &str)], pod: &PodFacts) -> Source {
        let mut discovery = candidates(asked, &environment(pairs), pod).unwrap();
        assert_eq!(discovery.sources.len(), 1, "{discovery:?}");
        discovery.sources.remove(0)
    }

    #[track_caller]
    fn refused(asked: &Asked, pairs: &[(&str, &str)], parts: &[&str]) -> String {
        let message = candidates(asked, &environment(pairs), &pod(None)).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
        message
    }

    #[test]
    fn name_of_the_own_service_is_followed_by_its_address() {
        let named = |endpoints: &str, pod: &PodFacts| {
            let pairs = [(ENDPOINTS, endpoints), (SERVICE_HOST, "10.0.0.1"), (SERVICE_PORT, "2390")];
            let found = candidates(&Asked::default(), &environment(&pairs), pod).unwrap();
            found.sources.iter().flat_map(shown_endpoints).collect::<Vec<_>>()
        };
        let (own, address) = ("http://lattice-rdzv-client.team.svc:2379", "http://10.0.0.1:2390");
        assert_eq!(named(own, &pod(Some("team"))), [own, address]);
        assert_eq!(named(own, &pod(None)), [own, address]);
        let members = "http://lattice-rdzv-0.lattice-rdzv-members.team.svc.cluster.local:2379";
        assert_eq!(named(members, &pod(Some("team"))), [members, address]);
        // The variables are about the Service of the pod's own namespace, and about no other service.
        for other in
            ["http://lattice-rdzv-client.other.svc:2379", "http://etcd.team.svc:2379", "http://svc:2379"]
        {
            assert_eq!(named(other, &pod(Some("team"))), [other]);
        }
        assert_eq!(named(own, &PodFacts::default()), [own]);
    }

    #[test]
    fn first_source_that_is_set_is_the_only_one() {
        let mut pairs = vec![
            (ENDPOINTS, "https://a:1, b ,a:1,https://a:1,"),
            (SERVICE_HOST, "10.0.0.1"),
            (SERVICE_PORT, "2390"),
            (CLIENT_PORT, "tcp://10.0.0.1:2391"),
        ];
        let none = Asked::default();
        let inside = pod(Some("team"));

        assert_eq!(shown_endpoints(&only(&passed("x:7"), &pairs, &inside)), ["http://x:7"]);
        assert_eq!(
            shown_endpoints(&only(&passed("  "), &pairs, &inside)),
            ["https://a:1", "http://b:2379", "http://a:1"]
        );
        pairs[0].1 = "";
        assert_eq!(shown_endpoints(&only(&none, &pairs, &inside)), ["http://10.0.0.1:2390"]);
        pairs[2].1 = "";
        assert_eq!(shown_endpoints(&only(&none, &pairs, &inside)), ["http://10.0.0.1:2379"]);
        pairs[1].1 = "";
        assert_eq!(shown_endpoints(&only(&none, &pairs, &inside)), ["http://10.0.0.1:2391"]);
        pairs[3].1 = "";
        let discovery = candidates(&none, &environment(&pairs), &inside).unwrap();
        let names: Vec<_> = discovery.sources.iter().flat_map(shown_endpoints).collect();
        assert_eq!(
            names,
            ["http://lattice-rdzv-client.team.svc:2379", "http://lattice-rdzv-client.lattice.svc:2379"]
        );
        assert!(discovery.sources.iter().all(|source| source.guessed && source.needs_dns));
        let outside = only(&none, &pairs, &PodFacts::default());
        assert_eq!(shown_endpoints(&outside), ["http://localhost:2379"]);
        assert!(!outside.needs_dns);
        assert_eq!(outside.named_by, NamedBy::Default);
        let hosted = outside.otherwise.unwrap();
        assert_eq!(shown_endpoints(&hosted), ["http://localhost:29400"]);
        assert_eq!(hosted.named_by, NamedBy::Default);
    }

    #[test]
    fn one_endpoint_without_a_port_stands_for_the_ports_of_an_etcd_and_of_a_host() {
        let otherwise = |asked: &Asked, pairs: &[(&str, &str)]| {
            let source = only(asked, pairs, &PodFacts::default());
            assert_eq!(source.endpoints[0].port, DEFAULT_PORT, "{source:?}");
            source.otherwise.map(|source| shown_endpoints(&source).join(","))
        };
        let hosted = Some("http://node0:29400".to_owned());
        assert_eq!(otherwise(&passed("node0"), &[]), hosted);
        assert_eq!(otherwise(&passed(" node0,"), &[]), hosted);
        assert_eq!(otherwise(&Asked::default(), &[(ENDPOINTS, "node0")]), hosted);
        assert_eq!(otherwise(&with_tls(Some("node0")), &[]), Some("https://node0:29400".to_owned()));
        assert_eq!(otherwise(&passed("node0:2379"), &[]), None);
        assert_eq!(otherwise(&passed("node0,node1"), &[]), None);
        // Kubernetes names an etcd of the chart.
        assert_eq!(otherwise(&Asked::default(), &[(SERVICE_HOST, "10.0.0.7")]), None);
    }

    #[test]
    fn port_0_is_accepted_alone() {
        assert_eq!(shown_endpoints(&only(&passed("localhost:0"), &[], &pod(None))), ["http://localhost:0"]);
        refused(&passed("localhost:0,node1"), &[], &["`--rdzv-endpoint`", "1 to 65535"]);
    }

    #[test]
    fn chart_in_the_pods_own_namespace_is_looked_for_once() {
        let sources = candidates(&Asked::default(), &BTreeMap::new(), &pod(Some("lattice"))).unwrap().sources;
        assert_eq!(sources.len(), 1);
        let sources = candidates(&Asked::default(), &BTreeMap::new(), &pod(None)).unwrap().sources;
        assert_eq!(shown_endpoints(&sources[0]), ["http://lattice-rdzv-client:2379"]);
        assert_eq!(sources.len(), 2);
        assert!(candidates(&Asked::default(), &BTreeMap::new(), &pod(Some("no name"))).is_err());
    }

    #[test]
    fn guessed_name_is_whole_where_the_clusters_domain_is_known() {
        let inside = pod_that_searches("team", "example.internal");
        let sources = candidates(&Asked::default(), &BTreeMap::new(), &inside).unwrap().sources;
        let names: Vec<_> = sources.iter().flat_map(shown_endpoints).collect();
        assert_eq!(
            names,
            [
                "http://lattice-rdzv-client.team.svc.example.internal.:2379",
                "http://lattice-rdzv-client.lattice.svc.example.internal.:2379"
            ]
        );
        let source = only(&Asked::default(), &[(SERVICE_HOST, "10.0.0.1")], &inside);
        assert_eq!(shown_endpoints(&source.fallback.unwrap()), names[..1]);
    }

    #[test]
    fn service_variable_holds_any_kind_of_host() {
        for (host, expected) in [
            ("10.0.0.1", "http://10.0.0.1:2379"),
            ("fd00::1", "http://[fd00::1]:2379"),
            ("[fd00::1]", "http://[fd00::1]:2379"),
            ("rdzv.example", "http://rdzv.example:2379"),
        ] {
            let source = only(&Asked::default(), &[(SERVICE_HOST, host)], &PodFacts::default());
            assert_eq!(shown_endpoints(&source), [expected]);
        }
        let source = only(
            &Asked::default(),
            &[(SERVICE_HOST, "10.0.0.1"), (SERVICE_PORT, "tcp://10.9.9.9:2390")],
            &PodFacts::default(),
        );
        assert_eq!(shown_endpoints(&source), ["http://10.0.0.1:2390"]);
    }

    #[test]
    fn silent_service_address_is_tried_by_its_own_name_only() {
        let fallback = |pairs: &[(&str, &str)], pod: &PodFacts| {
            only(&Asked::default(), pairs, pod).fallback.map(|source| shown_endpoints(&source))
        };
        let inside = pod(Some("team"));
        let by_name = Some(vec!["http://lattice-rdzv-client.team.svc:2390".to_owned()]);
        let by_kubernetes =
            [(SERVICE_HOST, "10.0.0.1"), (SERVICE_PORT, "2390"), (CLIENT_PORT, "tcp://10.0.0.1:2390")];
        assert_eq!(fallback(&by_kubernetes, &inside), by_name);
        assert_eq!(fallback(&by_kubernetes[2..], &inside), by_name);
        assert_eq!(fallback(&by_kubernetes, &PodFacts::default()), None);
        // A user has overridden the address, or written a name, so it may belong to a service elsewhere.
        assert_eq!(fallback(&[(SERVICE_HOST, "10.7.7.7"), by_kubernetes[2]], &inside), None);
        assert_eq!(fallback(&[(SERVICE_HOST, "rdzv.other.svc")], &inside), None);
    }

    #[test]
    fn source_that_is_wrong_is_an_error_and_not_passed_over() {
        let none = Asked::default();
        refused(&passed("a:65536"), &[], &["`--rdzv-endpoint` must be", "65535", "`a:65536`"]);
        refused(
            &none,
            &[(ENDPOINTS, "a,b/c")],
            &[ENDPOINTS, "entry 2", "path", "argument `endpoint` (not set)"],
        );
        refused(&none, &[(ENDPOINTS, " , ")], &[ENDPOINTS, "names none"]);
        refused(&none, &[(SERVICE_HOST, "10.0.0.1:2379")], &[SERVICE_HOST, SERVICE_PORT, "`10.0.0.1:2379`"]);
        refused(&none, &[(SERVICE_HOST, "a"), (SERVICE_PORT, "0")], &[SERVICE_PORT, "1 to 65535", "`0`"]);
        refused(&none, &[(SERVICE_HOST, "a"), (SERVICE_PORT, "udp://a:1")], &[SERVICE_PORT, "`udp://a:1`"]);
        refused(&none, &[(CLIENT_PORT, "2379")], &[CLIENT_PORT, "tcp://host:port", "`2379`"]);
        let message = refused(&none, &[(ENDPOINTS, "http://root:hunter2@a")], &[ENDPOINTS, "password_file"]);
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn tls_credentials_make_it_https_and_refuse_http() {
        assert_eq!(
            shown_endpoints(&only(&with_tls(Some("a,https://b")), &[], &pod(None))),
            ["https://a:2379", "https://b:2379"]
        );
        let source = only(&with_tls(None), &[(SERVICE_HOST, "10.0.0.1")], &pod(Some("team")));
        assert_eq!(shown_endpoints(&source), ["https://10.0.0.1:2379"]);
        assert_eq!(
            shown_endpoints(source.fallback.as_ref().unwrap()),
            ["https://lattice-rdzv-client.team.svc:2379"]
        );
        refused(&with_tls(None), &[(ENDPOINTS, "http://a")], &["TLS credentials", "`cacert`", "`https://`"]);
    }

    #[test]
    fn discovery_can_be_shown_as_json() {
        let discovery = candidates(&passed("a"), &BTreeMap::new(), &pod(None)).unwrap();
        let json = serde_json::to_value(&discovery).unwrap();
        assert_eq!(json["sources"][0]["endpoints"][0], "http://a:2379");
        assert_eq!(discovery.describe(), "looked at `--rdzv-endpoint` (`a`)");
    }
}
