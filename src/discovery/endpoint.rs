//! An endpoint of the service, as users write it: `host`, `host:port`, `https://host:port`, `[::1]:2379`, `::1`.
//!
//! Parsing is strict if a mistake would otherwise stay unnoticed (a path, a user name, a port out of range). The
//! display form of an [`Endpoint`] parses to an equal endpoint. Names are not resolved here.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Serialize, Serializer};

/// The default port of an endpoint: etcd's client port.
pub const DEFAULT_PORT: u16 = 2379;

/// The expected form of an endpoint, for messages.
pub(crate) const EXPECTED: &str = "`host`, `host:port`, `http://host:port` or `https://host:port` (an IPv6 address with a port in brackets)";

/// The expected form of a port, for messages.
pub(crate) const NO_PORT: &str = "the port is no number from 1 to 65535";

/// Whether the connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain HTTP/2.
    Http,
    /// HTTP/2 over TLS.
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// A host: an IP address, or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
    /// A name, in lower case.
    Name(String),
}

impl Host {
    /// Whether it must be resolved in DNS: a name other than `localhost`.
    pub fn needs_dns(&self) -> bool {
        matches!(self, Self::Name(name) if name != "localhost")
    }

    /// Whether it means the local machine on every machine: `localhost`, a loopback address, or the unspecified
    /// address.
    pub fn is_this_machine(&self) -> bool {
        match self {
            Self::V4(address) => address.is_loopback() || address.is_unspecified(),
            Self::V6(address) => address.is_loopback() || address.is_unspecified(),
            Self::Name(name) => name == "localhost",
        }
    }

    /// Parses a host: an IP address, IPv6 with or without brackets, or a name. The error describes the problem.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(inside) = text.strip_prefix('[') {
            let Some(inside) = inside.strip_suffix(']') else {
                return Err("the bracket is not closed".to_owned());
            };
            return inside.parse().map(Self::V6).map_err(|_| not_v6());
        }
        if text.contains(':') {
            let wrong = if text.matches(':').count() == 1 { "it has a port".to_owned() } else { not_v6() };
            return text.parse().map(Self::V6).map_err(|_| wrong);
        }
        let looks_like_v4 = text
            .rsplit('.')
            .next()
            .is_some_and(|last| !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()));
        if looks_like_v4 {
            return text
                .parse()
                .map(Self::V4)
                .map_err(|_| "it ends in a number but is no IPv4 address".to_owned());
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err("the host is missing".to_owned());
        }
        let fine = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if name.len() > 253 || !name.split('.').all(fine) {
            return Err("it is no host name (letters, digits, `-` and `_`, parted by dots)".to_owned());
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

fn not_v6() -> String {
    "it is no IPv6 address (one with a zone, `%eth0`, is not supported)".to_owned()
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(formatter),
            Self::V6(address) => address.fmt(formatter),
            Self::Name(name) => formatter.write_str(name),
        }
    }
}

/// The address of one server of the service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Its host.
    pub host: Host,
    /// Its port. 0 means any free port, on which the only node of a run hosts the embedded server.
    pub port: u16,
}

/// An endpoint as it was written. The scheme and the port can be missing, and the port can be 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) scheme: Option<Scheme>,
    pub(crate) host: Host,
    pub(crate) port: Option<u16>,
}

impl Written {
    /// Parses an endpoint. The error describes the problem and repeats no part of the text, which may contain a
    /// password.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) = match text.split_once("://") {
            None => (None, text),
            Some((written, rest)) => match written.to_ascii_lowercase().as_str() {
                "http" => (Some(Scheme::Http), rest),
                "https" => (Some(Scheme::Https), rest),
                _ => return Err("its scheme is neither `http` nor `https`".to_owned()),
            },
        };
        if rest.contains('@') {
            return Err(
                "a user name or password does not belong in an endpoint, where logs show it (use `user` and \
                 `password_file`)"
                    .to_owned(),
            );
        }
        // URLs copied from etcd often end in a slash, which has no meaning.
        let rest = if scheme.is_some() { rest.strip_suffix('/').unwrap_or(rest) } else { rest };
        if rest.contains(['/', '?', '#']) {
            return Err("it has a path".to_owned());
        }
        let (host, port) = split_port(rest)?;
        let port = port.map(|port| if port == "0" { Ok(0) } else { parse_port(port) }).transpose()?;
        Ok(Self { scheme, host: Host::parse(host)?, port })
    }

    pub(crate) fn with_default(self, default: Scheme) -> Endpoint {
        let port = self.port.unwrap_or(DEFAULT_PORT);
        Endpoint { scheme: self.scheme.unwrap_or(default), host: self.host, port }
    }
}

fn split_port(text: &str) -> Result<(&str, Option<&str>), String> {
    if text.starts_with('[') {
        let Some(end) = text.find(']') else { return Err("the bracket is not closed".to_owned()) };
        let (host, after) = text.split_at(end + 1);
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err("what follows the bracket is no port".to_owned()),
        };
    }
    Ok(match text.split_once(':') {
        // Several colons without brackets: an IPv6 address. c10d reads the part after the last colon as a port. This
        // parser does so only if the text is not an address without a port.
        Some((_, after)) if after.contains(':') => match text.rsplit_once(':') {
            Some((host, port)) if text.parse::<Ipv6Addr>().is_err() && host.parse::<Ipv6Addr>().is_ok() => {
                (host, Some(port))
            }
            _ => (text, None),
        },
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    })
}

/// Parses a port from 1 to 65535, digits only.
pub(crate) fn parse_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0).ok_or_else(|| NO_PORT.to_owned())
}

/// Formats a text for a message: without the part before an `@`, without control characters, and shortened.
pub(crate) fn shown(text: &str) -> String {
    let redacted = match text.rsplit_once('@') {
        None => text.to_owned(),
        Some((_, after)) => format!("***@{after}"),
    };
    excerpt(&redacted)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        match host {
            Host::V6(address) => write!(formatter, "{scheme}://[{address}]:{port}"),
            host => write!(formatter, "{scheme}://{host}:{port}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// Without a scheme, it is `http`.
    fn from_str(text: &str) -> Result<Self, String> {
        match Written::parse(text)? {
            Written { port: Some(0), .. } => Err(NO_PORT.to_owned()),
            written => Ok(written.with_default(Scheme::Http)),
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Formats a value for a message: control characters are escaped, and a long value is shortened.
pub(crate) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut out = String::new();
    for character in text.chars().take(LONGEST) {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    if text.chars().count() > LONGEST {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host() -> impl Strategy<Value = Host> {
        prop_oneof![
            any::<Ipv4Addr>().prop_map(Host::V4),
            any::<Ipv6Addr>().prop_map(Host::V6),
            "[a-z]([a-z0-9_-]{0,20}[a-z])?(\\.[a-z]{1,10}){0,3}\\.?".prop_map(Host::Name),
        ]
    }

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        let scheme = prop_oneof![Just(Scheme::Http), Just(Scheme::Https)];
        (scheme, host(), 1..=u16::MAX).prop_map(|(scheme, host, port)| Endpoint { scheme, host, port })
    }

    proptest! {
        #[test]
        fn endpoint_is_read_as_it_is_shown(endpoint in endpoint()) {
            prop_assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
        }

        #[test]
        fn what_is_accepted_shows_as_something_that_is_accepted(text in "[a-z0-9:./\\[\\]@ -]{0,24}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
            }
        }
    }

    #[test]
    fn every_way_to_write_one_is_understood() {
        for (text, shown) in [
            ("etcd", "http://etcd:2379"),
            (" etcd:2380 ", "http://etcd:2380"),
            ("ETCD.Example", "http://etcd.example:2379"),
            ("http://etcd", "http://etcd:2379"),
            ("https://etcd:443/", "https://etcd:443"),
            ("HTTPS://10.0.0.1", "https://10.0.0.1:2379"),
            ("::1", "http://[::1]:2379"),
            ("[::1]", "http://[::1]:2379"),
            ("[::1]:2380", "http://[::1]:2380"),
            ("https://[fd00:0::1]:2380", "https://[fd00::1]:2380"),
            // As c10d reads it, where it cannot be an address.
            ("fd00::1:29400", "http://[fd00::1]:29400"),
            ("fd00::1:2940", "http://[fd00::1:2940]:2379"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn host_is_this_machine_where_the_text_alone_says_so() {
        let hosts = ["localhost", "LOCALHOST", "127.0.0.1", "127.0.1.1", "::1", "0.0.0.0", "::"];
        assert!(hosts.iter().all(|host| Host::parse(host).unwrap().is_this_machine()));
        let others = ["node0", "10.0.0.1", "fd00::1", "localhost.example"];
        assert!(!others.iter().any(|host| Host::parse(host).unwrap().is_this_machine()));
    }

    #[test]
    fn mistake_is_an_error_and_not_guessed() {
        for text in [
            "",
            ":2379",
            "etcd:",
            "etcd:0",
            "etcd:65536",
            "etcd:+80",
            "etcd:x",
            "etcd:2379/v3",
            "http://etcd/a",
            "http://",
            "http:///",
            "ftp://etcd",
            "tcp://etcd:2379",
            "unix:///run/etcd",
            "u:p@etcd",
            "http://u@etcd:1",
            "[::1",
            "[::1]2379",
            "[etcd]:2379",
            "::1::2",
            "fe80::1%eth0",
            "10.0.0",
            "256.1.1.1",
            "et cd",
            "e\ttcd",
            "etcd?x=1",
            "etcd#x",
            "ätcd",
            "a..b",
            ".",
            "etcd:2379/",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn message_shows_neither_a_password_nor_a_control_character() {
        assert_eq!(shown("http://root:hunter2@etcd:2379"), "***@etcd:2379");
        assert_eq!(shown("a\u{1b}[31m"), "a\\u{1b}[31m");
        assert!(shown(&"x".repeat(1000)).chars().count() < 130);
    }
}
