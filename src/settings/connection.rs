//! How the service is reached: endpoint, scheme, and credentials.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Serialize;

use super::{
    Arguments, LONGEST_SECONDS,
    input::Input,
    parse::{self, setting},
    times::seconds,
};
use crate::{
    discovery::{Asked, RequiredScheme, Scheme, parse_list},
    error::Result,
};

/// The kind of service behind the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// An etcd, 3.4 or newer.
    Etcd,
}

/// The client's credentials. Files are read at each connection, so that renewed files take effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Credentials {
    /// The CA that signed the service's certificate. None means the system's CAs. `cacert`, `LATTICE_RDZV_CACERT`.
    pub cacert: Option<PathBuf>,
    /// The client certificate and its private key: `cert` and `key`, `LATTICE_RDZV_CERT` and `LATTICE_RDZV_KEY`.
    pub certificate: Option<Certificate>,
    /// User and password: `user` and `password_file`, `LATTICE_RDZV_USER` and `LATTICE_RDZV_PASSWORD_FILE`.
    pub login: Option<Login>,
}

/// A client's certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// The file of the certificate.
    pub cert: PathBuf,
    /// The file of its private key.
    pub key: PathBuf,
}

/// A user of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The file that contains the password. The password itself is never passed, because `ps` shows arguments and
    /// torch logs its configuration.
    pub password_file: PathBuf,
}

/// How the service is reached. Commands that read runs without joining them need only these settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// The passed endpoint, or a comma-separated list, already checked. If it is none,
    /// [`crate::discovery::candidates`] finds the endpoint.
    pub endpoint: Option<String>,
    /// The name of the endpoint setting in messages.
    pub endpoint_origin: String,
    /// The scheme that `protocol` or TLS credentials require.
    pub scheme: Option<RequiredScheme>,
    /// Whether this node hosts the embedded server at the endpoint if no server responds there: `is_host`. Default:
    /// true if exactly one endpoint was passed, its address belongs to this machine, and its port is not etcd's.
    pub is_host: Option<bool>,
    /// The kind of service: `backend`, `LATTICE_RDZV_BACKEND`. Default `etcd`.
    pub backend: BackendKind,
    /// The client's credentials.
    pub credentials: Credentials,
    /// How long a first connection is tried before it is an error, and how long the service can be unavailable at a
    /// time while a node joins. Default 30 s: a pod can start before its Service, and a user with a wrong endpoint
    /// should not wait for `join_timeout`.
    #[serde(serialize_with = "seconds")]
    pub connect_timeout: Duration,
}

impl Connection {
    /// Returns how the service is reached, for a command that joins no run.
    ///
    /// # Errors
    ///
    /// As [`super::Settings::resolve`], for the settings that it reads.
    pub fn resolve(arguments: &Arguments, environment: &BTreeMap<String, String>) -> Result<Self> {
        Input::new(arguments, environment)?.connection()
    }

    /// Returns the input of [`crate::discovery::candidates`].
    pub fn asked(&self) -> Asked {
        Asked {
            endpoint: self.endpoint.clone(),
            origin: self.endpoint_origin.clone(),
            scheme: self.scheme.clone(),
        }
    }
}

impl Input<'_> {
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
                    "{} must be {}, or a comma-separated list of these, but {why}: `{}`",
                    connection.endpoint_origin,
                    crate::discovery::EXPECTED,
                    crate::discovery::shown(text)
                ))
            })?;
        }
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::fixtures::*;
    use crate::settings::{Origin, RunName};

    #[test]
    fn secret_by_value_is_refused_and_never_repeated() {
        let secret = "hunter2";
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{secret}");
        let user = format!("root:{secret}");
        let endpoint = format!("http://root:{secret}@etcd:2379");
        let tricky = format!("http://a@b:{secret}@etcd:2379,c@d");
        for (key, value) in [
            ("password", secret),
            ("Password", secret),
            ("token", secret),
            ("pasword", secret),
            ("user", &user),
            ("key", &pem),
            ("cert", &pem),
            ("cacert", &pem),
            ("password_file", &pem),
            ("endpoint", &endpoint),
            ("endpoint", &tricky),
        ] {
            for origin in [Origin::Argument, CONF] {
                let message = refused(run_with(origin, &[(key, value)]), &[]);
                assert!(!message.contains(secret), "{key}: {message}");
            }
        }
        refused(run_with(CONF, &[("password", secret)]), &["`password_file`", "`ps`"]);
        let message = refused(run_with(CONF, &[("ssl_cert_key", &pem), ("key", "/k")]), &["contradict"]);
        assert!(!message.contains(secret), "{message}");
        let message = refused(
            resolve(Origin::Argument, &[("run_id", "r")], &[("LATTICE_RDZV_PASSWORD", secret)]),
            &["`LATTICE_RDZV_PASSWORD`", "`LATTICE_RDZV_PASSWORD_FILE`"],
        );
        assert!(!message.contains(secret));
    }

    #[test]
    fn credentials_come_in_pairs() {
        refused(run_with(CONF, &[("cert", "/c")]), &["`cert`", "`key`", "`LATTICE_RDZV_KEY`"]);
        refused(
            run_with(CONF, &[("ssl_cert_key", "/k")]),
            &["`ssl_cert_key`", "`cert`", "`LATTICE_RDZV_CERT`"],
        );
        refused(run_with(CONF, &[("user", "u")]), &["`user`", "`password_file`"]);
        let message =
            refused(run_with(CONF, &[("password_file", "hunter2")]), &["`password_file`", "`user`"]);
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn tls_credentials_and_plain_http_contradict_each_other() {
        refused(
            run_with(CONF, &[("cacert", "/ca"), ("endpoint", "http://etcd:2379")]),
            &["`--rdzv-endpoint`", "TLS credentials", "`https://`", "`http://etcd:2379`"],
        );
        refused(
            run_with(CONF, &[("cacert", "/ca"), ("protocol", "http")]),
            &["`protocol`", "TLS credentials"],
        );
        refused(run_with(CONF, &[("protocol", "https"), ("endpoint", "http://etcd")]), &["`protocol`"]);
        refused(run_with(CONF, &[("protocol", "grpc")]), &["`http` or `https`"]);
        assert!(run_with(CONF, &[("cacert", "/ca"), ("endpoint", "https://etcd,etcd-b")]).is_ok());
    }

    #[test]
    fn command_needs_no_more_than_it_reads() {
        let arguments = Arguments { values: map(&[("endpoint", "etcd:2379")]), origin: Origin::CommandLine };
        let connection = Connection::resolve(&arguments, &BTreeMap::new()).unwrap();
        assert_eq!(connection.asked().origin, "`--endpoint`");
        let message = RunName::resolve(&arguments, &BTreeMap::new()).unwrap_err().to_string();
        assert!(message.contains("`--run-id`"), "{message}");
    }
}
