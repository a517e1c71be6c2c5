//! Reads the settings by key: the passed value, or otherwise the environment. Translates the keys of torch's own
//! backends.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Arguments, Ignored, LONGEST_NAME_BYTES, LONGEST_SECONDS, Origin,
    keys::{
        self, FOREIGN, Foreign, INJECTED_TIMEOUT_SECONDS, KEYS, PROTOCOL, SECRET_VARIABLE, SECRETS, TIMEOUT,
    },
    parse::{self, Given, setting},
};
use crate::error::{Error, Result};

/// The passed settings, with translated foreign keys, and the environment for missing ones.
pub(super) struct Input<'a> {
    pub(super) origin: Origin,
    pub(super) passed: BTreeMap<&'static str, Given>,
    pub(super) protocol: Option<Given>,
    environment: &'a BTreeMap<String, String>,
    pub(super) ignored: Vec<Ignored>,
}

impl<'a> Input<'a> {
    pub(super) fn new(arguments: &Arguments, environment: &'a BTreeMap<String, String>) -> Result<Self> {
        let origin = arguments.origin;
        for key in arguments.values.keys() {
            check_key(key, origin)?;
        }
        if environment.get(SECRET_VARIABLE).is_some_and(|value| !value.is_empty()) {
            return Err(secret(&format!("environment variable `{SECRET_VARIABLE}`")));
        }
        let given = |key: &str| {
            let value = arguments.values.get(key).filter(|value| !value.trim().is_empty())?;
            Some(Given { from: origin.describe(key), value: value.clone() })
        };
        let mut input = Self {
            origin,
            passed: BTreeMap::new(),
            protocol: given(PROTOCOL),
            environment,
            ignored: Vec::new(),
        };
        for key in KEYS {
            if let Some(given) = given(key.name) {
                input.passed.insert(key.name, given);
            }
        }
        for (name, meaning) in FOREIGN {
            let Some(given) = given(name) else { continue };
            match meaning {
                Foreign::Is(ours) => input.translate(ours, given)?,
                Foreign::NoEffect(reason) => input.ignore(name, reason),
                Foreign::Number(reason) => {
                    parse::positive_whole_number(&given)?;
                    input.ignore(name, reason);
                }
                Foreign::Word(words, reason) => {
                    let lower = Given { value: given.value.to_ascii_lowercase(), ..given };
                    parse::word(&lower, words)?;
                    input.ignore(name, reason);
                }
            }
        }
        if let Some(given) = given(TIMEOUT) {
            input.timeout(given)?;
        }
        Ok(input)
    }

    fn ignore(&mut self, key: &str, reason: &str) {
        self.ignored.push(Ignored { key: key.to_owned(), reason: reason.to_owned() });
    }

    /// Translates a foreign key that corresponds to a key of this package.
    fn translate(&mut self, ours: &'static str, given: Given) -> Result<()> {
        match self.passed.get(ours) {
            Some(other) if other.value.trim() != given.value.trim() => Err(conflict(other, &given)),
            Some(_) => Ok(()),
            None => {
                self.passed.insert(ours, given);
                Ok(())
            }
        }
    }

    /// torch's `timeout`: the launcher adds 900 by default. Another number comes from the user and means how long to
    /// wait for the rendezvous.
    fn timeout(&mut self, given: Given) -> Result<()> {
        let duration = parse::duration(&given, &(1.0..=LONGEST_SECONDS))?;
        let injected =
            self.origin == Origin::RdzvConf && duration == Duration::from_secs_f64(INJECTED_TIMEOUT_SECONDS);
        if injected {
            return Ok(());
        }
        if self.passed.contains_key("join_timeout") {
            self.ignore(TIMEOUT, "`join_timeout` is given");
        } else {
            self.passed.insert("join_timeout", given);
        }
        Ok(())
    }

    pub(super) fn variable(&self, variable: &str) -> Option<Given> {
        let value = self.environment.get(variable).filter(|value| !value.trim().is_empty())?;
        Some(Given { from: format!("environment variable `{variable}`"), value: value.clone() })
    }

    /// Returns the passed value, or otherwise the value in the environment.
    pub(super) fn given(&self, key: &str) -> Option<Given> {
        let variable = keys::find(key).and_then(|key| key.variable);
        self.passed.get(key).cloned().or_else(|| self.variable(variable?))
    }

    pub(super) fn read<T>(&self, key: &str, parse: impl FnOnce(&Given) -> Result<T>) -> Result<Option<T>> {
        self.given(key).as_ref().map(parse).transpose()
    }

    pub(super) fn name(&self, key: &str) -> Result<Option<String>> {
        self.read(key, |given| parse::name(given, LONGEST_NAME_BYTES))
    }

    /// Describes how a setting can be passed, for the message that it is missing.
    pub(super) fn ways(&self, key: &str) -> String {
        let passed = self.origin.describe(key);
        match keys::find(key).and_then(|key| key.variable) {
            Some(variable) => format!("pass {passed} or set environment variable `{variable}`"),
            None => format!("pass {passed}"),
        }
    }

    pub(super) fn one_way_to_say_the_port(&self) -> Result<()> {
        match (self.given("port"), self.given("port_range")) {
            (Some(one), Some(range)) => Err(conflict(&one, &range)),
            _ => Ok(()),
        }
    }
}

pub(super) fn conflict(one: &Given, other: &Given) -> Error {
    let shown = |given: &Given| {
        if given.holds_a_files_content() {
            "the content of a file".to_owned()
        } else {
            format!("`{}`", crate::discovery::excerpt(&given.value))
        }
    };
    setting(format!(
        "{} and {} contradict each other, pass only one of them: {} and {}",
        one.from,
        other.from,
        shown(one),
        shown(other)
    ))
}

fn secret(from: &str) -> Error {
    setting(format!(
        "{from} would carry a secret by value, where `ps` or a log shows it (torch logs all of `--rdzv-conf`); put it \
         into a file that only this user can read, and pass the path as `password_file` or set environment variable \
         `LATTICE_RDZV_PASSWORD_FILE`"
    ))
}

/// Checks whether a key can be passed. The message never contains the value, which may be a secret under a misspelled
/// key.
fn check_key(key: &str, origin: Origin) -> Result<()> {
    if SECRETS.contains(&key.to_ascii_lowercase().as_str()) {
        return Err(secret(&origin.describe(key)));
    }
    if keys::is_known(key) {
        return Ok(());
    }
    let meant = keys::nearest(key).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
    // `host_name` is set by callers, not by users.
    let known: Vec<String> =
        KEYS.iter().filter(|key| key.name != "host_name").map(|key| format!("`{}`", key.name)).collect();
    Err(setting(format!(
        "{} is not a known setting{meant}; the known settings are {}, and the keys of torch's own rendezvous backends",
        crate::discovery::excerpt(&origin.describe(key)),
        known.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{discovery::Scheme, settings::fixtures::*};

    #[test]
    fn keys_without_effect_must_still_be_what_torch_accepts() {
        for (key, value, expected) in [
            ("store_type", "anything", "`tcp` or `file`"),
            ("read_timeout", "-10", "a positive whole number"),
            ("read_timeout", "0", "a positive whole number"),
            ("read_timeout", "soon", "a positive whole number"),
            ("heartbeat_timeout", "-1", "a positive whole number"),
            ("keep_alive_interval", "0", "a positive whole number"),
            ("keep_alive_max_attempt", "1.5", "a positive whole number"),
        ] {
            refused(
                run_with(CONF, &[(key, value)]),
                &[&format!("`{key}` of `--rdzv-conf`"), expected, value],
            );
        }
        assert!(run_with(CONF, &[("store_type", " TCP"), ("read_timeout", "60")]).is_ok());
    }

    #[test]
    fn error_for_an_unknown_key_lists_the_known_ones() {
        let message = refused(
            run_with(CONF, &[("join_timout", "3")]),
            &[
                "`join_timout` of `--rdzv-conf`",
                "did you mean `join_timeout`?",
                "`run_id`, `tenant`",
                "`leave_on_signal`",
            ],
        );
        assert!(!message.contains("host_name"), "{message}");
        let message =
            refused(run_with(Origin::Argument, &[("colour_of_the_sky", "blue")]), &["not a known setting;"]);
        assert!(!message.contains("did you mean"));
    }

    #[test]
    fn job_of_torchs_own_backends_moves_over_by_one_word() {
        let c10d = run_with(
            CONF,
            &[("timeout", "900"), ("is_host", "true"), ("store_type", "tcp"), ("read_timeout", "60")],
        )
        .unwrap();
        assert_eq!(c10d.connection.is_host, Some(true));
        let ignored: Vec<String> = c10d.ignored.into_iter().map(|ignored| ignored.key).collect();
        assert_eq!(ignored, ["store_type", "read_timeout"]);

        let etcd_v2 = run_with(
            CONF,
            &[
                ("endpoint", "etcd-a,etcd-b:2380"),
                ("protocol", "HTTPS"),
                ("ssl_cert", "/tls/cert.pem"),
                ("ssl_cert_key", "/tls/key.pem"),
                ("ca_cert", "/tls/ca.pem"),
                ("read_timeout", "60"),
                ("join_timeout", "100"),
                ("last_call_timeout", "20"),
                ("close_timeout", "10"),
                ("heartbeat_timeout", "5"),
                ("keep_alive_interval", "5"),
                ("keep_alive_max_attempt", "3"),
                ("cas_backoff_max_seconds", "0.5"),
            ],
        )
        .unwrap();
        assert_eq!(etcd_v2.join_timeout, Duration::from_secs(100));
        assert_eq!(etcd_v2.last_call_timeout, Duration::from_secs(20));
        assert_eq!(etcd_v2.close_timeout, Duration::from_secs(10));
        assert_eq!(etcd_v2.connection.credentials.cacert, Some("/tls/ca.pem".into()));
        assert!(etcd_v2.connection.credentials.certificate.is_some());
        assert_eq!(etcd_v2.connection.scheme.map(|required| required.scheme), Some(Scheme::Https));

        let legacy = run_with(
            CONF,
            &[
                ("min_nodes", "2"),
                ("protocol", "http"),
                ("etcd_prefix", "custom"),
                ("timeout", "300"),
                // torch's own handler does not look at it either.
                ("min_workers", "1"),
            ],
        )
        .unwrap();
        assert_eq!((legacy.min_nodes, legacy.max_nodes), (2, 2));
        assert_eq!(legacy.join_timeout, Duration::from_secs(300));
        assert_eq!(legacy.connection.scheme.map(|required| required.scheme), Some(Scheme::Http));
    }

    #[test]
    fn timeout_that_the_launcher_adds_counts_only_if_a_user_set_it() {
        let join = |origin, passed: &[(&str, &str)]| run_with(origin, passed).unwrap().join_timeout.as_secs();
        assert_eq!(join(CONF, &[("timeout", "900")]), 600);
        assert_eq!(join(CONF, &[("timeout", "900.0")]), 600);
        assert_eq!(join(CONF, &[("timeout", "120")]), 120);
        assert_eq!(join(Origin::Argument, &[("timeout", "900")]), 900);
        let both = run_with(CONF, &[("timeout", "120"), ("join_timeout", "50")]).unwrap();
        assert_eq!(both.join_timeout.as_secs(), 50);
        assert_eq!(both.ignored.len(), 1);
    }

    #[test]
    fn two_keys_for_one_thing_must_agree() {
        refused(
            run_with(CONF, &[("ca_cert", "/a"), ("cacert", "/b")]),
            &["`ca_cert`", "`cacert`", "contradict", "`/a`", "`/b`"],
        );
        assert!(run_with(CONF, &[("ca_cert", "/a"), ("cacert", "/a")]).is_ok());
        refused(run_with(CONF, &[("port", "1"), ("port_range", "1:2")]), &["`port`", "`port_range`"]);
    }
}
