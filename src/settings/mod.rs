//! The configuration of a run: builds one validated value from the passed settings and the environment. Pure.
//!
//! A passed setting takes precedence. A setting that is not passed, or is empty, comes from its environment variable.
//! An empty variable counts as not set. Every mistake is reported at once, with its source, because otherwise a job
//! could wait for ten minutes on a misspelled key. Connecting checks what this module cannot know: whether a file is
//! readable and whether an endpoint responds.
//!
//! `keys` is the table of keys, `input` reads the passed values, and `parse` turns texts into values.

mod connection;
#[cfg(test)]
mod fixtures;
mod input;
mod keys;
mod names;
mod nodes;
mod parse;
mod times;
mod unknown;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    connection::{BackendKind, Certificate, Connection, Credentials, Login},
    keys::variables,
    names::RunName,
    unknown::{UnknownVariable, unknown_variables},
};
use self::{
    input::Input,
    times::{optional_seconds, seconds},
};
use crate::{
    error::Result,
    protocol::sizing::{Sizing, WorldSizes},
};

/// The maximum length of a run id, tenant, label or submission, in bytes: every key of the run contains the id
/// percent-encoded, and torch uses the run id in a file name.
pub const LONGEST_NAME_BYTES: usize = 200;

/// The maximum length of a node name, in bytes: that of a DNS name.
const LONGEST_NODE_NAME_BYTES: usize = 253;

/// The default of `last_call_timeout`, in seconds.
const LAST_CALL_SECONDS: f64 = 30.0;

/// A year, in seconds: a limit for values that mean "forever", so that sums of times do not overflow.
pub const LONGEST_SECONDS: f64 = 31_536_000.0;

/// The source of the passed settings, for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Keyword arguments of the Python API.
    #[default]
    Argument,
    /// Keys of `--rdzv-conf`, and settings for which torchrun has options (`--rdzv-id`, `--nnodes`, ...).
    RdzvConf,
    /// Options of the package's command line: `--run-id`.
    CommandLine,
}

impl Origin {
    /// "argument `run_id`", "`join_timeout` of `--rdzv-conf`", "`--rdzv-id`", "`--run-id`".
    fn describe(self, key: &str) -> String {
        let flag = keys::find(key).and_then(|key| key.flag);
        match (self, flag) {
            (Self::Argument, _) => format!("argument `{key}`"),
            (Self::RdzvConf, Some(flag)) => format!("`{flag}`"),
            (Self::RdzvConf, None) => format!("`{key}` of `--rdzv-conf`"),
            (Self::CommandLine, _) => format!("`--{}`", key.replace('_', "-")),
        }
    }
}

/// The passed settings, as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// By key. An empty text counts as not passed.
    pub values: BTreeMap<String, String>,
    /// The source of the settings.
    pub origin: Origin,
}

/// The reaction of nodes to a change in a running world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reaction {
    /// Announce the change to the members, so that they form the next round.
    Restart,
    /// Keep the world running. The change takes effect when the next round forms for another reason.
    Ignore,
}

/// The effect of a node's failure on the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeFailure {
    /// The run is closed as failed, and every node ends, because the failure would probably occur on the other nodes
    /// too.
    Close,
    /// Only the failed node leaves, and the other nodes form the next round without it.
    Leave,
}

/// A key that is accepted and has no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ignored {
    /// The key.
    pub key: String,
    /// The reason, and the setting to use instead.
    pub reason: String,
}

/// The settings of a node that joins a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The identity of the run.
    pub run: RunName,
    /// How the service is reached.
    pub connection: Connection,
    /// The minimum number of nodes: `nnodes` ("2:4") or `min_nodes`, `LATTICE_NNODES`. At least 1. No default,
    /// because with a wrong default the job would train at the wrong size.
    pub min_nodes: u32,
    /// The maximum number of nodes: `nnodes` or `max_nodes`. Additional nodes are spares. Default `min_nodes`.
    pub max_nodes: u32,
    /// Which sizes between them are allowed (`sizes`, `node_unit`), and how many nodes the first world waits for
    /// (`wanted`). Default: every size, and the first world waits for `max_nodes` until `last_call_timeout` ends.
    pub sizing: Sizing,
    /// Distinguishes one submission of a job from the next under one run id, for example the UID of a Job:
    /// `submission`, `LATTICE_RDZV_SUBMISSION`.
    pub submission: Option<String>,
    /// The name of this node, by which it gets its rank again: `node_name`, `LATTICE_RDZV_NODE_NAME`, or the host
    /// name that the caller passes as `host_name`. At most 253 bytes, without `#`.
    pub node_name: String,
    /// The host's name, if the caller passed it as `host_name`.
    pub host_name: Option<String>,
    /// The address at which other nodes reach this node: `local_addr`, `POD_IP`. If there are several, the first.
    /// None means the local address of the connection to the service.
    pub local_address: Option<String>,
    /// The port of the workers' store if this node becomes rank 0: `port`. If neither a port nor a range is set, any
    /// free port.
    pub port: Option<u16>,
    /// The range from which that port is chosen, both ends included, for firewalls: `port_range` ("29500:29600").
    pub port_range: Option<(u16, u16)>,
    /// Whether this node has lifelines: `lifelines`. Default true, because a death is then reported at once and not only
    /// when a lease ends.
    pub lifelines: bool,
    /// The port on which this node answers lifelines: `lifeline_port`. If it is not set, a port of `port_range`, or any
    /// free port.
    pub lifeline_port: Option<u16>,
    /// The location of this node (a rack, a zone). Nodes with one label get adjacent ranks. `topology`,
    /// `LATTICE_RDZV_TOPOLOGY`.
    pub topology: Option<String>,
    /// The index of this node among the nodes of the job, which orders the ranks of new nodes: `node_index`,
    /// `LATTICE_NODE_INDEX`, `PET_NODE_RANK`, `JOB_COMPLETION_INDEX`, or `SLURM_NODEID`. None means by arrival.
    pub node_index: Option<u32>,
    /// How long the service keeps a silent node. Whole seconds, 2 s to an hour. Default 10 s: with a shorter TTL, a
    /// busy machine looks dead; with a longer one, the other nodes wait longer for a dead node.
    #[serde(serialize_with = "seconds")]
    pub lease_ttl: Duration,
    /// How long a node waits for its first place and for `min_nodes`. Default 600 s, as torch's, because images must
    /// be pulled.
    #[serde(serialize_with = "seconds")]
    pub join_timeout: Duration,
    /// How long a spare waits. Default `off`: as long as the run lasts. The default is `join_timeout` if that was
    /// passed, because torch's own handler applies it to spares, and if `max_nodes` is 1, torchrun's default, with
    /// which a second node is more often a mistake than a spare.
    #[serde(serialize_with = "optional_seconds")]
    pub spare_timeout: Option<Duration>,
    /// How long to wait for more nodes when `min_nodes` nodes request the next round and one of them is a member of the
    /// last world. Default 0.5 s, because members either return at once or not at all.
    #[serde(serialize_with = "seconds")]
    pub settle_time: Duration,
    /// How long to wait for more nodes when `min_nodes` nodes request the next round and all of them are new. Default
    /// 30 s, as torch's, because pods start one by one; at most half of `join_timeout`. A longer value that was passed
    /// is kept. A round below `max_nodes` is then not formed, and the nodes give up after `join_timeout`.
    #[serde(serialize_with = "seconds")]
    pub last_call_timeout: Duration,
    /// How long the next round waits for a live member of the last world that has not requested it. Default 90 s,
    /// because torch gives workers 30 s to stop, and many save a checkpoint. The protocol adds 1 s for every 750 nodes.
    #[serde(serialize_with = "seconds")]
    pub rejoin_timeout: Duration,
    /// How long new nodes wait before a running world below `max_nodes` is asked to grow. Default 30 s, so that pods
    /// that arrive one by one cost one restart.
    #[serde(serialize_with = "seconds")]
    pub grow_delay: Duration,
    /// How long a starting node waits before it reuses the run id of a closed run. Default 30 s, because the nodes of
    /// the closed run are gone by then.
    #[serde(serialize_with = "seconds")]
    pub reuse_delay: Duration,
    /// How long shutting down may take. Default 30 s, as torch's, which is the grace period of a Kubernetes pod.
    #[serde(serialize_with = "seconds")]
    pub close_timeout: Duration,
    /// How long to wait until the node that hosts the embedded server returns under its name. Default 60 s, because a
    /// process restarts within that time. No effect with an etcd.
    #[serde(serialize_with = "seconds")]
    pub host_timeout: Duration,
    /// The reaction to the loss of a member. Default `restart`.
    pub on_member_loss: Reaction,
    /// The reaction when new nodes wait and the world is below `max_nodes`. Default `restart`.
    pub on_newcomer: Reaction,
    /// The effect of a node that fails and has no restarts left. Default `close`.
    pub on_node_failure: NodeFailure,
    /// Whether SIGTERM announces at once that this node is leaving. Default true, so that the other nodes do not wait
    /// until its workers have stopped.
    pub leave_on_signal: bool,
    /// The keys of other backends that were passed and have no effect.
    pub ignored: Vec<Ignored>,
}

impl Settings {
    /// Returns the settings of a node that joins a run.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Setting`]: a key is unknown or a secret, two keys contradict each other, or a value is missing
    /// or invalid.
    pub fn resolve(arguments: &Arguments, environment: &BTreeMap<String, String>) -> Result<Self> {
        let input = Input::new(arguments, environment)?;
        let run = input.run()?;
        let connection = input.connection()?;
        let (min_nodes, max_nodes) = input.nodes()?;
        let sizing = input.sizing(min_nodes, max_nodes)?;
        let reactions = [("restart", Reaction::Restart), ("ignore", Reaction::Ignore)];
        let failures = [("close", NodeFailure::Close), ("leave", NodeFailure::Leave)];
        let join_timeout = input.duration("join_timeout", 1.0..=LONGEST_SECONDS, 600.0)?;
        let bounds_spares = max_nodes == 1 || input.given("join_timeout").is_some();
        // Shorter than `join_timeout`. Otherwise no node would wait until the end of the last call.
        let last_call = LAST_CALL_SECONDS.min(join_timeout.as_secs_f64() / 2.0);
        input.one_way_to_say_the_port()?;
        Ok(Self {
            run,
            connection,
            min_nodes,
            max_nodes,
            sizing,
            submission: input.name("submission")?,
            node_name: input.node_name()?,
            host_name: input.given("host_name").map(|given| given.value.clone()),
            local_address: input.read("local_addr", parse::address)?,
            port: input.read("port", parse::port)?,
            port_range: input.read("port_range", parse::port_range)?,
            lifelines: input.read("lifelines", parse::boolean)?.unwrap_or(true),
            lifeline_port: input.read("lifeline_port", parse::port)?,
            topology: input.name("topology")?,
            node_index: input.node_index()?,
            // etcd needs at least 2 s to distinguish a slow node from a dead one. With more than an hour, a loss
            // would be detected too late.
            lease_ttl: input
                .read("lease_ttl", |given| parse::whole_seconds(given, &(2.0..=3600.0)))?
                .unwrap_or(Duration::from_secs(10)),
            join_timeout,
            spare_timeout: input.spare_timeout(bounds_spares.then_some(join_timeout))?,
            settle_time: input.duration("settle_time", 0.0..=LONGEST_SECONDS, 0.5)?,
            last_call_timeout: input.duration("last_call_timeout", 0.0..=LONGEST_SECONDS, last_call)?,
            rejoin_timeout: input.duration("rejoin_timeout", 0.0..=LONGEST_SECONDS, 90.0)?,
            grow_delay: input.duration("grow_delay", 0.0..=LONGEST_SECONDS, 30.0)?,
            reuse_delay: input.duration("reuse_delay", 0.0..=LONGEST_SECONDS, 30.0)?,
            close_timeout: input.duration("close_timeout", 0.0..=LONGEST_SECONDS, 30.0)?,
            host_timeout: input.duration("host_timeout", 0.0..=LONGEST_SECONDS, 60.0)?,
            on_member_loss: input
                .read("on_member_loss", |given| parse::word(given, &reactions))?
                .unwrap_or(Reaction::Restart),
            on_newcomer: input
                .read("on_newcomer", |given| parse::word(given, &reactions))?
                .unwrap_or(Reaction::Restart),
            on_node_failure: input
                .read("on_node_failure", |given| parse::word(given, &failures))?
                .unwrap_or(NodeFailure::Close),
            leave_on_signal: input.read("leave_on_signal", parse::boolean)?.unwrap_or(true),
            ignored: input.ignored,
        })
    }

    /// The sizes that a world may have.
    pub fn sizes(&self) -> WorldSizes<'_> {
        WorldSizes { min: self.min_nodes, max: self.max_nodes, sizing: &self.sizing }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        fixtures::*,
        keys::{FOREIGN, KEYS},
        *,
    };
    use crate::{discovery::Scheme, error::Error};

    #[test]
    fn what_is_not_said_has_its_default() {
        let settings = run_with(Origin::Argument, &[]).unwrap();
        assert_eq!(settings.run, RunName { tenant: "default".to_owned(), run_id: "run".to_owned() });
        assert_eq!((settings.min_nodes, settings.max_nodes), (2, 4));
        assert_eq!(settings.node_name, "host-1");
        let times = [
            (settings.lease_ttl, 10.0),
            (settings.join_timeout, 600.0),
            (settings.settle_time, 0.5),
            (settings.last_call_timeout, 30.0),
            (settings.rejoin_timeout, 90.0),
            (settings.grow_delay, 30.0),
            (settings.reuse_delay, 30.0),
            (settings.close_timeout, 30.0),
            (settings.connection.connect_timeout, 30.0),
            (settings.host_timeout, 60.0),
        ];
        for (time, expected) in times {
            assert_eq!(time, Duration::from_secs_f64(expected));
        }
        assert_eq!(settings.spare_timeout, None);
        assert_eq!((settings.on_member_loss, settings.on_newcomer), (Reaction::Restart, Reaction::Restart));
        assert_eq!(settings.on_node_failure, NodeFailure::Close);
        assert!(settings.leave_on_signal);
        assert_eq!(settings.connection.backend, BackendKind::Etcd);
        assert_eq!(settings.connection.asked().scheme, None);
        assert_eq!(settings.ignored, []);
    }

    #[test]
    fn environment_alone_is_enough() {
        let settings = resolve(
            Origin::Argument,
            &[("run_id", ""), ("host_name", "host-1")],
            &[
                ("LATTICE_RDZV_ID", "nightly/7"),
                ("LATTICE_NNODES", "2:4"),
                ("LATTICE_RDZV_TENANT", "vision"),
                ("LATTICE_RDZV_SUBMISSION", "uid-1"),
                ("LATTICE_RDZV_NODE_NAME", "trainer-0"),
                ("LATTICE_RDZV_TOPOLOGY", "rack-3"),
                ("LATTICE_NODE_INDEX", "5"),
                ("LATTICE_RDZV_BACKEND", "etcd"),
                ("LATTICE_RDZV_CACERT", "/tls/ca.pem"),
                ("LATTICE_RDZV_CERT", "/tls/cert.pem"),
                ("LATTICE_RDZV_KEY", "/tls/key.pem"),
                ("LATTICE_RDZV_USER", "trainer"),
                ("LATTICE_RDZV_PASSWORD_FILE", "/secrets/password"),
                ("POD_IP", "fd00::7"),
            ],
        )
        .unwrap();
        assert_eq!(settings.run, RunName { tenant: "vision".to_owned(), run_id: "nightly/7".to_owned() });
        assert_eq!((settings.min_nodes, settings.max_nodes), (2, 4));
        assert_eq!(settings.submission.as_deref(), Some("uid-1"));
        assert_eq!(settings.node_name, "trainer-0");
        assert_eq!(settings.topology.as_deref(), Some("rack-3"));
        assert_eq!(settings.node_index, Some(5));
        assert_eq!(settings.local_address.as_deref(), Some("fd00::7"));
        let Credentials { cacert, certificate, login } = settings.connection.credentials;
        assert_eq!(cacert, Some("/tls/ca.pem".into()));
        assert_eq!(
            certificate,
            Some(Certificate { cert: "/tls/cert.pem".into(), key: "/tls/key.pem".into() })
        );
        assert_eq!(
            login,
            Some(Login { user: "trainer".to_owned(), password_file: "/secrets/password".into() })
        );
        assert_eq!(settings.connection.scheme.map(|required| required.scheme), Some(Scheme::Https));
    }

    #[test]
    fn what_is_passed_wins_over_the_environment_and_an_empty_variable_is_not_set() {
        let environment = [("LATTICE_RDZV_ID", "theirs"), ("LATTICE_RDZV_TENANT", ""), ("POD_IP", " ")];
        let passed = [("run_id", "ours"), ("nnodes", "1"), ("host_name", "host-1")];
        let settings = resolve(Origin::Argument, &passed, &environment).unwrap();
        assert_eq!(settings.run, RunName { tenant: "default".to_owned(), run_id: "ours".to_owned() });
        assert_eq!(settings.local_address, None);
    }

    #[test]
    fn words_are_the_known_ones() {
        let settings = run_with(
            CONF,
            &[
                ("on_member_loss", "ignore"),
                ("on_newcomer", "ignore"),
                ("on_node_failure", "leave"),
                ("leave_on_signal", "0"),
            ],
        )
        .unwrap();
        assert_eq!((settings.on_member_loss, settings.on_newcomer), (Reaction::Ignore, Reaction::Ignore));
        assert_eq!(settings.on_node_failure, NodeFailure::Leave);
        assert!(!settings.leave_on_signal);
        refused(run_with(CONF, &[("on_member_loss", "panic")]), &["`restart` or `ignore`", "`panic`"]);
        refused(run_with(CONF, &[("on_node_failure", "restart")]), &["`close` or `leave`"]);
        refused(run_with(CONF, &[("leave_on_signal", "maybe")]), &["`true` or `false`"]);
        refused(
            resolve(Origin::Argument, &[("run_id", "r")], &[("LATTICE_RDZV_BACKEND", "redis")]),
            &["environment variable `LATTICE_RDZV_BACKEND`", "`etcd`", "`redis`"],
        );
    }

    #[test]
    fn settings_can_be_shown_as_json() {
        let json = serde_json::to_value(run_with(CONF, &[("spare_timeout", "1.5")]).unwrap()).unwrap();
        assert_eq!(json["settle_time"], 0.5);
        assert_eq!(json["spare_timeout"], 1.5);
        assert_eq!(json["on_member_loss"], "restart");
    }

    proptest! {
        #[test]
        fn any_settings_are_resolved_or_refused(
            values in prop::collection::btree_map(
                prop::sample::select(KEYS.iter().map(|key| key.name).chain(FOREIGN.iter().map(|(name, _)| *name)).collect::<Vec<_>>()),
                prop_oneof![".{0,12}", "[0-9:.]{1,8}", Just("https://a:1,b".to_owned())],
                0..8,
            )
        ) {
            let values = values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            match Settings::resolve(&Arguments { values, origin: CONF }, &BTreeMap::new()) {
                Ok(settings) => prop_assert!(1 <= settings.min_nodes && settings.min_nodes <= settings.max_nodes),
                Err(Error::Setting { message }) => prop_assert!(!message.contains('\n'), "{}", message),
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
