//! Resolves names: selects the first candidate source whose name exists.
//!
//! One rule keeps all nodes of a job on one service: a name that does not exist is a result, but a failed lookup is
//! not. After a missing name, the next source is used. After a failed lookup, the lookup is repeated.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use async_trait::async_trait;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use super::{Discovery, Looked, Source, describe};
use crate::error::{Applied, Error, Result};

/// The time limit of one lookup. The system's resolver gives up after 5 s per server and attempt, so within this
/// limit a second server can still respond.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause before a lookup is repeated. It is long enough to put no load on a cluster's DNS when a thousand pods
/// start before their Service.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether this machine has this address: only then can a socket be bound to it.
pub(crate) fn is_own_address(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The result of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name exists and has these addresses.
    Found(Vec<SocketAddr>),
    /// The name does not exist.
    NotFound,
    /// The result is unknown because the resolver failed or did not respond in time. The lookup can be repeated.
    Failed(String),
}

/// A resolver.
#[async_trait]
pub trait Lookup: Send + Sync {
    /// Resolves one name.
    async fn lookup(&self, host: &str, port: u16) -> Answer;
}

/// The system's resolver.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemLookup;

#[async_trait]
impl Lookup for SystemLookup {
    async fn lookup(&self, host: &str, port: u16) -> Answer {
        match tokio::net::lookup_host((host, port)).await {
            Ok(addresses) => {
                let addresses: Vec<SocketAddr> = addresses.collect();
                if addresses.is_empty() {
                    Answer::Failed("the name has no address".to_owned())
                } else {
                    Answer::Found(addresses)
                }
            }
            Err(error) => classify(&error.to_string()),
        }
    }
}

/// The standard library keeps only the text of getaddrinfo's error code. A text that does not clearly mean "no such
/// name" counts as a failure: repeating a lookup costs a second, but a wrong decision splits a job.
fn classify(error: &str) -> Answer {
    const NO_SUCH_NAME: [&str; 3] = [
        "Name or service not known",      // glibc, EAI_NONAME
        "Name does not resolve",          // musl
        "nodename nor servname provided", // macOS
    ];
    if NO_SUCH_NAME.iter().any(|text| error.contains(text)) {
        Answer::NotFound
    } else {
        Answer::Failed(error.to_owned())
    }
}

/// The selected source, after its lookup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resolved {
    /// Where to connect to.
    pub source: Source,
    /// Every source that was checked, in order, with its content or the result of its lookup.
    pub looked_at: Vec<Looked>,
}

impl Resolved {
    /// Returns every source that was checked with its content, for the message of a failed connection.
    pub fn describe(&self) -> String {
        describe(&self.looked_at)
    }
}

/// The combined result of resolving all names of one source.
enum Outcome {
    Known,
    NotFound,
    Failed(String),
}

impl Discovery {
    /// Selects the first source whose name exists. Repeats a lookup that failed, and repeats all lookups while no
    /// name exists (a pod can start before its Service), for `patience`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if no name exists, and [`Error::Unavailable`] if DNS gave no result. Both name every
    /// source.
    pub async fn resolve(&self, lookup: &dyn Lookup, patience: Duration) -> Result<Resolved> {
        let deadline = Instant::now() + patience;
        let mut is_announced = false;
        loop {
            let mut looked_at = self.looked_at.clone();
            let mut failure = None;
            for source in &self.sources {
                let outcome =
                    if source.needs_dns { look_up(source, lookup, deadline).await } else { Outcome::Known };
                note(&mut looked_at, source, &outcome);
                match outcome {
                    Outcome::Known => return Ok(Resolved { source: source.clone(), looked_at }),
                    Outcome::NotFound => {}
                    Outcome::Failed(why) => {
                        failure = Some((source, why));
                        break;
                    }
                }
            }
            if deadline.saturating_duration_since(Instant::now()) <= PAUSE {
                return Err(gave_up(failure, &looked_at, patience));
            }
            if !is_announced {
                is_announced = true;
                let (seen, left) = (describe(&looked_at), deadline.saturating_duration_since(Instant::now()));
                tracing::info!(
                    "no name of the rendezvous service resolves yet; trying for another {:.0} s; {seen}",
                    left.as_secs_f64()
                );
            }
            sleep(PAUSE).await;
        }
    }
}

/// Records the result of checking a source.
fn note(looked_at: &mut Vec<Looked>, source: &Source, outcome: &Outcome) {
    let outcome = match outcome {
        Outcome::Known if !source.guessed => return,
        Outcome::Known => "exists",
        Outcome::NotFound => "does not exist",
        Outcome::Failed(why) => why,
    };
    let outcome = Some(outcome.to_owned());
    match looked_at.iter_mut().find(|looked| looked.name == source.name) {
        Some(looked) => looked.outcome = outcome,
        None => looked_at.push(Looked { name: source.name.clone(), held: None, outcome }),
    }
}

fn gave_up(failure: Option<(&Source, String)>, looked_at: &[Looked], patience: Duration) -> Error {
    let seen = describe(looked_at);
    let Some((source, why)) = failure else {
        return Error::NotFound {
            message: format!(
                "no rendezvous service was found within {:.1} s: no name that was looked up exists; correct the host \
                 name in the endpoint (`--rdzv-endpoint` or `{}`), or in Kubernetes install the chart: {seen}",
                patience.as_secs_f64(),
                super::ENDPOINTS
            ),
        };
    };
    Error::Unavailable {
        endpoint: source.endpoints.first().map(ToString::to_string).unwrap_or_default(),
        cause: format!("its name was not looked up within {:.1} s: {why} ({seen})", patience.as_secs_f64()),
        applied: Applied::No,
    }
}

/// One name that exists is sufficient, because the other names may belong to servers that have not started yet. If
/// none exists, a failed lookup takes precedence over missing names.
async fn look_up(source: &Source, lookup: &dyn Lookup, deadline: Instant) -> Outcome {
    let mut failed = None;
    for endpoint in &source.endpoints {
        if !endpoint.host.needs_dns() {
            return Outcome::Known;
        }
        let limit = LOOKUP_TIMEOUT.min(deadline.saturating_duration_since(Instant::now()));
        match timeout(limit, lookup.lookup(&endpoint.host.to_string(), endpoint.port)).await {
            Ok(Answer::Found(_)) => return Outcome::Known,
            Ok(Answer::NotFound) => {}
            Ok(Answer::Failed(why)) => failed = Some(why),
            Err(_) => failed = Some(format!("no answer within {:.1} s", limit.as_secs_f64())),
        }
    }
    failed.map_or(Outcome::NotFound, Outcome::Failed)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, VecDeque},
        sync::Mutex,
    };

    use super::{
        super::{Asked, ENDPOINTS, PodFacts, candidates},
        *,
    };

    const OWN: &str = "lattice-rdzv-client.team.svc";
    const SHARED: &str = "lattice-rdzv-client.lattice.svc";

    #[derive(Clone, Copy)]
    enum Says {
        Found,
        Missing,
        Fails,
        Nothing,
    }
    use Says::{Fails, Found, Missing, Nothing};

    /// Answers by a script. The last answer for a name is repeated.
    #[derive(Default)]
    struct Script {
        answers: Mutex<BTreeMap<&'static str, VecDeque<Says>>>,
        asked: Mutex<Vec<String>>,
    }

    impl Script {
        fn new(names: impl IntoIterator<Item = (&'static str, Vec<Says>)>) -> Self {
            let answers = names.into_iter().map(|(name, answers)| (name, answers.into())).collect();
            Self { answers: Mutex::new(answers), asked: Mutex::default() }
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    #[async_trait]
    impl Lookup for Script {
        async fn lookup(&self, host: &str, port: u16) -> Answer {
            self.asked.lock().unwrap().push(host.to_owned());
            let says = {
                let mut answers = self.answers.lock().unwrap();
                let script = answers.get_mut(host).expect("a name of the script");
                if script.len() > 1 { script.pop_front().unwrap() } else { script[0] }
            };
            match says {
                Found => Answer::Found(vec![([10, 0, 0, 1], port).into()]),
                Missing => Answer::NotFound,
                Fails => Answer::Failed("try again".to_owned()),
                Nothing => std::future::pending().await,
            }
        }
    }

    async fn resolve_in_a_pod(script: &Script, endpoints: &str) -> Result<Resolved> {
        let environment = BTreeMap::from([(ENDPOINTS.to_owned(), endpoints.to_owned())]);
        let pod = PodFacts { in_pod: true, namespace: Some("team".to_owned()), cluster_domain: None };
        let discovery = candidates(&Asked::default(), &environment, &pod).unwrap();
        discovery.resolve(script, Duration::from_secs(30)).await
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_name_that_does_not_exist_is_passed_over() {
        let script = Script::new([(OWN, vec![Missing]), (SHARED, vec![Found])]);
        let resolved = resolve_in_a_pod(&script, "").await.unwrap();
        assert_eq!(resolved.source.endpoints[0].host.to_string(), SHARED);
        assert!(resolved.describe().contains(&format!("DNS name `{OWN}` (does not exist)")));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_lookup_does_not_split_a_job_over_two_services() {
        let script = Script::new([(OWN, vec![Fails, Nothing, Fails, Found]), (SHARED, vec![Found])]);
        let resolved = resolve_in_a_pod(&script, "").await.unwrap();
        assert_eq!(resolved.source.endpoints[0].host.to_string(), OWN);
        assert_eq!(script.asked(), [OWN; 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn dns_that_never_answers_ends_in_an_error_that_names_every_source() {
        for silent in [Nothing, Fails] {
            let script = Script::new([(OWN, vec![silent]), (SHARED, vec![Found])]);
            let start = Instant::now();
            let error = resolve_in_a_pod(&script, "").await.unwrap_err();
            assert!(matches!(error, Error::Unavailable { applied: Applied::No, .. }), "{error:?}");
            assert!(start.elapsed() <= Duration::from_secs(31));
            let message = error.to_string();
            let port = "environment variable `LATTICE_RDZV_CLIENT_PORT` (not set)";
            for part in [OWN, "argument `endpoint` (not set)", port] {
                assert!(message.contains(part), "{part:?} is not in: {message}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pod_may_start_before_its_service() {
        let script = Script::new([(OWN, vec![Missing, Missing, Found]), (SHARED, vec![Missing])]);
        let resolved = resolve_in_a_pod(&script, "").await.unwrap();
        assert_eq!(resolved.source.endpoints[0].host.to_string(), OWN);

        let script = Script::new([(OWN, vec![Missing]), (SHARED, vec![Missing])]);
        let error = resolve_in_a_pod(&script, "").await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
        assert!(error.to_string().contains(OWN) && error.to_string().contains(SHARED), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn written_name_that_does_not_exist_is_no_reason_to_look_elsewhere() {
        let script = Script::new([("typo", vec![Missing]), (OWN, vec![Found])]);
        let error = resolve_in_a_pod(&script, "typo").await.unwrap_err();
        assert!(error.to_string().contains("`LATTICE_RDZV_ENDPOINTS` (`typo`: does not exist)"), "{error}");
        assert!(!script.asked().contains(&OWN.to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_server_whose_name_exists_is_enough() {
        let script = Script::new([("etcd-0", vec![Missing]), ("etcd-1", vec![Found])]);
        let resolved = resolve_in_a_pod(&script, "etcd-0,etcd-1").await.unwrap();
        assert_eq!(resolved.source.endpoints.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn address_is_not_looked_up() {
        let script = Script::default();
        assert!(resolve_in_a_pod(&script, "10.0.0.1,etcd-1").await.is_ok());
        assert_eq!(script.asked(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn systems_resolver_is_understood() {
        assert!(matches!(SystemLookup.lookup("localhost", 2379).await, Answer::Found(_)));
        // The name is reserved for names that do not exist (RFC 6761). Without a DNS server nothing is known.
        assert!(!matches!(SystemLookup.lookup("lattice.invalid", 2379).await, Answer::Found(_)));
        let text = "failed to lookup address information: ";
        assert_eq!(classify(&format!("{text}Name or service not known")), Answer::NotFound);
        for known in
            ["Temporary failure in name resolution", "No address associated with hostname", "System error"]
        {
            assert!(matches!(classify(&format!("{text}{known}")), Answer::Failed(_)), "{known}");
        }
    }
}
