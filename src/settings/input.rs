//! Reads the settings by key: the passed value, or otherwise the environment. Translates the keys of torch's own
//! backends.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use super::{
    Arguments, BackendKind, Certificate, Connection, Credentials, Ignored, LONGEST_NAME_BYTES,
    LONGEST_NODE_NAME_BYTES, LONGEST_SECONDS, Login, Origin, RunName,
    keys::{
        self, FOREIGN, Foreign, INJECTED_TIMEOUT_SECONDS, KEYS, PROTOCOL, SECRET_VARIABLE, SECRETS, TIMEOUT,
    },
    parse::{self, Given, setting},
};
use crate::{
    discovery::{RequiredScheme, Scheme, parse_list},
    error::{Error, Result},
};

/// The passed settings, with translated foreign keys, and the environment for missing ones.
pub(super) struct Input<'a> {
    origin: Origin,
    passed: BTreeMap<&'static str, Given>,
    protocol: Option<Given>,
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

    fn variable(&self, variable: &str) -> Option<Given> {
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

    pub(super) fn duration(&self, key: &str, bounds: RangeInclusive<f64>, default: f64) -> Result<Duration> {
        let read = self.read(key, |given| parse::duration(given, &bounds))?;
        Ok(read.unwrap_or(Duration::from_secs_f64(default)))
    }

    /// Describes how a setting can be passed, for the message that it is missing.
    fn ways(&self, key: &str) -> String {
        let passed = self.origin.describe(key);
        match keys::find(key).and_then(|key| key.variable) {
            Some(variable) => format!("pass {passed} or set environment variable `{variable}`"),
            None => format!("pass {passed}"),
        }
    }

    pub(super) fn run(&self) -> Result<RunName> {
        let tenant = self.name("tenant")?.unwrap_or_else(|| "default".to_owned());
        let Some(run_id) = self.name("run_id")? else {
            return Err(setting(format!(
                "the run has no id, by which its nodes find each other (`run_id`); {}, the same text on every node",
                self.ways("run_id")
            )));
        };
        Ok(RunName { tenant, run_id })
    }

    pub(super) fn nodes(&self) -> Result<(u32, u32)> {
        let both = self
            .passed
            .get("nnodes")
            .map(|given| Ok::<_, Error>((parse::nodes(given)?, given)))
            .transpose()?;
        let (mut smallest, mut largest) = both.map_or((None, None), |((smallest, largest), given)| {
            (Some((smallest, given)), Some((largest, given)))
        });
        for (end, key) in [(&mut smallest, "min_nodes"), (&mut largest, "max_nodes")] {
            let Some(given) = self.passed.get(key) else { continue };
            let count = parse::count(given)?;
            if let Some((_, other)) = end.filter(|(other, _)| *other != count) {
                return Err(conflict(other, given));
            }
            *end = Some((count, given));
        }
        let variable = self.given("nnodes").filter(|_| smallest.is_none() || largest.is_none());
        if let Some(given) = &variable {
            let (first, last) = parse::nodes(given)?;
            smallest = smallest.or(Some((first, given)));
            largest = largest.or(Some((last, given)));
        }
        match (smallest, largest) {
            (Some((smallest, from)), Some((largest, _))) if smallest > largest => Err(from.wrong(
                &format!("at most `{largest}`, the largest number of nodes"),
                "lower it, or pass both `min_nodes` and `max_nodes`",
            )),
            (Some((smallest, _)), Some((largest, _))) => Ok((smallest, largest)),
            (Some((smallest, _)), None) => Ok((smallest, smallest)),
            (None, Some((_, from))) => {
                Err(from.wrong("passed together with the smallest number of nodes", "pass `min_nodes`, too"))
            }
            (None, None) => Err(setting(format!(
                "how many nodes the run has is not said (`nnodes`); {}, `4` for a fixed size or `2:4` for an elastic \
                 one",
                self.ways("nnodes")
            ))),
        }
    }

    pub(super) fn node_name(&self) -> Result<String> {
        let Some(given) = self.given("node_name").or_else(|| self.given("host_name")) else {
            return Err(setting(format!(
                "this node has no name (`node_name`), and the host has none either; {}, another on every node",
                self.ways("node_name")
            )));
        };
        if given.value.contains('#') {
            return Err(
                given.wrong("without `#`", "nodes of one name are told apart by `#2`, so take it out")
            );
        }
        parse::name(&given, LONGEST_NODE_NAME_BYTES)
    }

    pub(super) fn one_way_to_say_the_port(&self) -> Result<()> {
        match (self.given("port"), self.given("port_range")) {
            (Some(one), Some(range)) => Err(conflict(&one, &range)),
            _ => Ok(()),
        }
    }

    pub(super) fn spare_timeout(&self, default: Option<Duration>) -> Result<Option<Duration>> {
        let Some(given) = self.given("spare_timeout") else { return Ok(default) };
        if matches!(given.value.trim().to_ascii_lowercase().as_str(), "off" | "none") {
            return Ok(None);
        }
        parse::duration(&given, &(0.0..=LONGEST_SECONDS)).map(Some).map_err(|_| {
            given.wrong(
                &format!("`off`, or seconds as a decimal number from 0 to {LONGEST_SECONDS}"),
                "`off` has a spare wait as long as the run lasts",
            )
        })
    }

    fn credentials(&self) -> Result<Credentials> {
        let cacert = self.read("cacert", parse::path)?;
        let certificate = match (self.given("cert"), self.given("key")) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                Some(Certificate { cert: parse::path(&cert)?, key: parse::path(&key)? })
            }
            (Some(cert), None) => {
                parse::path(&cert)?;
                let advice = format!("{} (a file that holds both is passed twice)", self.ways("key"));
                return Err(cert.wrong("given together with its private key", &advice));
            }
            (None, Some(key)) => {
                parse::path(&key)?;
                return Err(key.wrong("given together with its certificate", &self.ways("cert")));
            }
        };
        let login = match (self.given("user"), self.given("password_file")) {
            (None, None) => None,
            (Some(user), Some(file)) => {
                Some(Login { user: parse::user(&user)?, password_file: parse::path(&file)? })
            }
            (Some(user), None) => {
                parse::user(&user)?;
                return Err(user.wrong("given together with a password file", &self.ways("password_file")));
            }
            (None, Some(file)) => {
                parse::path(&file)?;
                // The message omits the value, because it may be the password itself.
                return Err(setting(format!(
                    "{} must be given together with a user; {}",
                    file.from,
                    self.ways("user")
                )));
            }
        };
        Ok(Credentials { cacert, certificate, login })
    }

    /// The scheme that `protocol` and TLS credentials require, if they agree.
    fn scheme(&self) -> Result<Option<RequiredScheme>> {
        let tls = self.given("cacert").or_else(|| self.given("cert"));
        let because = tls.map(|given| format!("TLS credentials are given ({})", given.from));
        let Some(given) = &self.protocol else {
            return Ok(because.map(|because| RequiredScheme { scheme: Scheme::Https, because }));
        };
        let scheme = parse::scheme(given)?;
        if let (Scheme::Http, Some(because)) = (scheme, because) {
            return Err(given.wrong("`https`", &format!("{because}, which plain http does not use")));
        }
        Ok(Some(RequiredScheme { scheme, because: format!("{} is `{scheme}`", given.from) }))
    }

    pub(super) fn connection(&self) -> Result<Connection> {
        let backend = self
            .read("backend", |given| parse::word(given, &[("etcd", BackendKind::Etcd)]))?
            .unwrap_or(BackendKind::Etcd);
        let credentials = self.credentials()?;
        let scheme = self.scheme()?;
        let endpoint = self.given("endpoint").map(|given| given.value);
        let connection = Connection {
            endpoint,
            is_host: self.read("is_host", parse::boolean)?,
            endpoint_origin: self.origin.describe("endpoint"),
            scheme,
            backend,
            credentials,
            connect_timeout: self.duration("connect_timeout", 1.0..=LONGEST_SECONDS, 30.0)?,
        };
        if let Some(text) = &connection.endpoint {
            parse_list(text, connection.scheme.as_ref()).map_err(|why| {
                setting(format!(
                    "{} must be {}, or a comma list of these, but {why}: `{}`",
                    connection.endpoint_origin,
                    crate::discovery::EXPECTED,
                    crate::discovery::shown(text)
                ))
            })?;
        }
        Ok(connection)
    }
}

fn conflict(one: &Given, other: &Given) -> Error {
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
        "{} is no known setting{meant}; known are {}, and the keys of torch's own rendezvous backends",
        crate::discovery::excerpt(&origin.describe(key)),
        known.join(", ")
    )))
}
