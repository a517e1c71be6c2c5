//! The table of keys: those of this package, and those of torch's own backends, so that a job can switch backends by
//! changing one word. [`super::Settings`] documents the meaning of each key.

/// A key of this package.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// The environment variable that is read if the key is not passed.
    pub(super) variable: Option<&'static str>,
    /// The option of torchrun that sets the key, if it is not a key of `--rdzv-conf`.
    pub(super) flag: Option<&'static str>,
}

const fn key(name: &'static str) -> Key {
    Key { name, variable: None, flag: None }
}

const fn with_variable(name: &'static str, variable: &'static str) -> Key {
    Key { name, variable: Some(variable), flag: None }
}

/// All keys of this package, in the order in which messages list them.
pub(super) const KEYS: &[Key] = &[
    Key { name: "run_id", variable: Some("LATTICE_RDZV_ID"), flag: Some("--rdzv-id") },
    with_variable("tenant", "LATTICE_RDZV_TENANT"),
    Key { name: "nnodes", variable: Some("LATTICE_NNODES"), flag: Some("--nnodes") },
    Key { name: "min_nodes", variable: None, flag: Some("--nnodes") },
    Key { name: "max_nodes", variable: None, flag: Some("--nnodes") },
    with_variable("sizes", "LATTICE_RDZV_SIZES"),
    with_variable("node_unit", "LATTICE_RDZV_NODE_UNIT"),
    with_variable("wanted", "LATTICE_RDZV_WANTED"),
    // Discovery reads its variable together with the other sources of endpoints.
    Key { name: "endpoint", variable: None, flag: Some("--rdzv-endpoint") },
    key("is_host"),
    with_variable("backend", "LATTICE_RDZV_BACKEND"),
    with_variable("cacert", "LATTICE_RDZV_CACERT"),
    with_variable("cert", "LATTICE_RDZV_CERT"),
    with_variable("key", "LATTICE_RDZV_KEY"),
    with_variable("user", "LATTICE_RDZV_USER"),
    with_variable("password_file", "LATTICE_RDZV_PASSWORD_FILE"),
    with_variable("submission", "LATTICE_RDZV_SUBMISSION"),
    with_variable("node_name", "LATTICE_RDZV_NODE_NAME"),
    key("host_name"),
    Key { name: "local_addr", variable: Some("POD_IP"), flag: Some("--local-addr") },
    key("port"),
    key("port_range"),
    key("lifelines"),
    key("lifeline_port"),
    with_variable("topology", "LATTICE_RDZV_TOPOLOGY"),
    with_variable("node_index", "LATTICE_NODE_INDEX"),
    key("lease_ttl"),
    key("join_timeout"),
    key("spare_timeout"),
    key("settle_time"),
    key("last_call_timeout"),
    key("rejoin_timeout"),
    key("grow_delay"),
    key("reuse_delay"),
    key("close_timeout"),
    key("connect_timeout"),
    key("host_timeout"),
    key("on_member_loss"),
    key("on_newcomer"),
    key("on_node_failure"),
    key("leave_on_signal"),
];

/// The variables of other programs that are read, in this order, if `node_index` is not set: torchrun's for
/// `--node-rank`, that of an Indexed Job of Kubernetes, and Slurm's.
pub(super) const NODE_INDEX_VARIABLES: &[&str] = &["PET_NODE_RANK", "JOB_COMPLETION_INDEX", "SLURM_NODEID"];

/// The meaning of another backend's key.
pub(super) enum Foreign {
    /// It corresponds to this key of the package.
    Is(&'static str),
    /// It is accepted and has no effect, for this reason.
    NoEffect(&'static str),
    /// It has no effect, but must be a positive whole number, as torch requires, so that a script behaves alike with
    /// both backends.
    Number(&'static str),
    /// See [`Foreign::Number`]: must be one of these words.
    Word(&'static [(&'static str, ())], &'static str),
}

// torch documents these keys, and its handler takes both numbers from `--nnodes`.
const WORKERS: Foreign = Foreign::NoEffect("`--nnodes` sets the number of nodes, as for torch's own handler");
const LEASES: Foreign = Foreign::Number("`lease_ttl` sets how soon a silent node counts as lost");

/// The keys of torch's own backends that this package does not have, from `c10d_rendezvous_backend.py`,
/// `dynamic_rendezvous.py`, `etcd_rendezvous_backend.py` and `etcd_rendezvous.py` of torch 2.15. Common keys have the
/// meaning that torch gives them: `join_timeout`, `last_call_timeout`, `close_timeout`, `cert`, `key`, `cacert`.
/// `protocol` and `timeout` are read separately.
pub(super) const FOREIGN: &[(&str, Foreign)] = &[
    (
        "store_type",
        Foreign::Word(&[("tcp", ()), ("file", ())], "the run's store is in the rendezvous service"),
    ),
    (
        "read_timeout",
        Foreign::Number(
            "`connect_timeout` limits the first connection, and each other call has a separate limit",
        ),
    ),
    ("ssl_cert", Foreign::Is("cert")),
    ("ssl_cert_key", Foreign::Is("key")),
    ("ca_cert", Foreign::Is("cacert")),
    ("heartbeat_timeout", LEASES),
    // torch documents this name, but reads the one above.
    ("heartbeat", LEASES),
    ("keep_alive_interval", LEASES),
    ("keep_alive_max_attempt", LEASES),
    ("cas_backoff_max_seconds", Foreign::NoEffect("nodes do not compete for one record")),
    (
        "etcd_prefix",
        Foreign::NoEffect("keys are under `/lattice/rdzv/<tenant>/<run_id>/`; `tenant` keeps runs apart"),
    ),
    ("min_workers", WORKERS),
    ("max_workers", WORKERS),
];

/// A key of etcd-v2 and of the legacy etcd backend: the scheme of the endpoints.
pub(super) const PROTOCOL: &str = "protocol";

/// A key of torch: the launcher adds `timeout=900` to every job.
pub(super) const TIMEOUT: &str = "timeout";

/// The value that the launcher adds.
pub(super) const INJECTED_TIMEOUT_SECONDS: f64 = 900.0;

/// Keys that would pass a secret by value, in any backend.
pub(super) const SECRETS: &[&str] = &["password", "passwd", "pass", "secret", "token", "username_password"];

/// The variable that would pass a secret by value.
pub(super) const SECRET_VARIABLE: &str = "LATTICE_RDZV_PASSWORD";

/// The environment variables of the keys. Discovery has those that name the service.
pub fn variables() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|key| key.variable).chain(NODE_INDEX_VARIABLES.iter().copied())
}

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

pub(super) fn is_known(name: &str) -> bool {
    all().any(|known| known == name)
}

fn all() -> impl Iterator<Item = &'static str> {
    let foreign = FOREIGN.iter().map(|(name, _)| *name);
    KEYS.iter().map(|key| key.name).chain(foreign).chain([PROTOCOL, TIMEOUT])
}

/// Returns the known key that the user may have meant.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    // Up to a third of the letters may be wrong. With more, any short word would match another one.
    let limit = (name.chars().count() / 3).max(1);
    all()
        .map(|known| (distance(&name, known), known))
        .filter(|(far, _)| *far <= limit)
        .min()
        .map(|(_, known)| known)
}

/// The Levenshtein distance.
pub(super) fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, from) in left.chars().enumerate() {
        let mut next = vec![above + 1];
        for ((to, &diagonal), &over) in right.iter().zip(&row).zip(row.iter().skip(1)) {
            let before = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(from != *to)).min(over + 1).min(before + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelling_is_near_and_another_word_is_not() {
        assert_eq!(nearest("join_timout"), Some("join_timeout"));
        assert_eq!(nearest("join-timeout"), Some("join_timeout"));
        assert_eq!(nearest("Lease_TTL"), Some("lease_ttl"));
        assert_eq!(nearest("nodes"), Some("nnodes"));
        assert_eq!(nearest("colour_of_the_sky"), None);
    }

    #[test]
    fn key_means_one_thing() {
        let mut names: Vec<&str> = all().collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.iter().all(|name| !SECRETS.contains(name)));
        for (_, meaning) in FOREIGN {
            if let Foreign::Is(ours) = meaning {
                assert!(find(ours).is_some(), "{ours}");
            }
        }
    }
}
