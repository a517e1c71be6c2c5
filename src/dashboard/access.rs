//! Decides whether a request is served. The decision is a pure function of the request's headers and the policy.
//!
//! A dashboard on a loopback address needs no login, so any web page that the same browser shows could try to read it:
//! under a host name that the attacker resolves to 127.0.0.1 (DNS rebinding), or with requests from another site. Each
//! request must therefore name a host that this dashboard has, and must not come from another site. A link from another
//! site to the page itself is allowed, because browsers do not show the page to the site that links to it.

use std::net::IpAddr;

use axum::http::{HeaderMap, Method, Uri};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    error::{Error, Result},
    server::same,
};

/// Which requests are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Policy {
    /// The host names, in lower case, that a request may name besides `localhost` and loopback addresses.
    pub(super) hosts: Vec<String>,
    /// Whether the dashboard listens on all addresses, so that a request may name any of them.
    pub(super) any_address: bool,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The request is served, if it has the login.
    Granted,
    /// The method is not GET or HEAD.
    NotReadOnly,
    /// The header `Host` is missing or names another host.
    OtherHost,
    /// The request comes from another site.
    OtherSite,
}

/// The parts of a request that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    method: &'a Method,
    /// The host and the port that the client has connected to, as the client says.
    authority: Option<&'a str>,
    origin: Option<&'a str>,
    /// `same-origin`, `same-site`, `cross-site` or `none`, from browsers.
    site: Option<&'a str>,
    /// `navigate` if a person opens the page.
    mode: Option<&'a str>,
}

impl<'a> Asked<'a> {
    pub(super) fn of(method: &'a Method, uri: &'a Uri, headers: &'a HeaderMap) -> Self {
        // A header that is not text matches nothing.
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        // HTTP/2 has the host in the URI.
        let authority = uri.authority().map(axum::http::uri::Authority::as_str).or_else(|| text("host"));
        let (origin, site, mode) = (text("origin"), text("sec-fetch-site"), text("sec-fetch-mode"));
        Self { method, authority, origin, site, mode }
    }
}

impl Policy {
    /// Decides on everything but the login.
    pub(super) fn judge(&self, asked: Asked<'_>) -> Access {
        if !matches!(*asked.method, Method::GET | Method::HEAD) {
            return Access::NotReadOnly;
        }
        let Some(authority) = asked.authority.filter(|authority| self.has(host_of(authority))) else {
            return Access::OtherHost;
        };
        let is_own_origin = |origin: &str| {
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            rest.is_some_and(|rest| rest.eq_ignore_ascii_case(authority))
        };
        if asked.origin.is_some_and(|origin| !is_own_origin(origin)) {
            return Access::OtherSite;
        }
        match (asked.site, asked.mode) {
            (None | Some("same-origin" | "none"), _) | (_, Some("navigate")) => Access::Granted,
            _ => Access::OtherSite,
        }
    }

    fn has(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        // An attacker can make a name point to this machine, but not an address.
        let address = host.parse::<IpAddr>().ok();
        host == "localhost"
            || address.is_some_and(|address| address.is_loopback() || self.any_address)
            || self.hosts.contains(&host)
    }
}

/// The host of `host`, `host:port`, `[::1]` or `[::1]:port`.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

/// Whether a header `Authorization` has this user and password. The duration does not depend on where they differ.
pub(super) fn is_login(shown: Option<&[u8]>, user: &str, password: &str) -> bool {
    let Some((scheme, code)) = shown.and_then(|shown| shown.split_at_checked("Basic ".len())) else {
        return false;
    };
    let Ok(decoded) = STANDARD.decode(code) else { return false };
    scheme.eq_ignore_ascii_case(b"Basic ") && same(&decoded, format!("{user}:{password}").as_bytes())
}

/// Refuses an address that other machines reach, unless the connection is encrypted and requires a login.
///
/// # Errors
/// [`Error::Setting`].
pub(super) fn check_exposure(ip: IpAddr, has_tls: bool, has_login: bool) -> Result<()> {
    let missing = match (has_tls, has_login) {
        _ if ip.is_loopback() => return Ok(()),
        (true, true) => return Ok(()),
        (true, false) => "a login (`user`, `password_file`)",
        (false, true) => "TLS (`cert`, `key`)",
        (false, false) => "TLS (`cert`, `key`) and a login (`user`, `password_file`)",
    };
    Err(Error::Setting {
        message: format!(
            "the dashboard shows addresses and names of nodes, so on an address that other machines reach it requires \
             {missing}; pass them, or listen on 127.0.0.1 and use `ssh -L` or `kubectl port-forward`: {ip}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Method = Method::GET;

    fn asked<'a>(authority: Option<&'a str>, origin: Option<&'a str>, site: Option<&'a str>) -> Asked<'a> {
        Asked { method: &GET, authority, origin, site, mode: Some("cors") }
    }

    #[test]
    fn requests_are_served_only_under_a_known_host_name() {
        let local = Policy::default();
        let named = Policy { hosts: vec!["dash.example.com".into(), "10.0.0.7".into()], any_address: false };
        let everywhere = Policy { any_address: true, ..Policy::default() };
        let table: &[(&Policy, Option<&str>, bool)] = &[
            (&local, Some("localhost:8089"), true),
            (&local, Some("LocalHost"), true),
            (&local, Some("127.0.0.1:8089"), true),
            (&local, Some("127.8.9.1"), true),
            (&local, Some("[::1]:8089"), true),
            (&local, Some("[::1]"), true),
            (&local, None, false),
            (&local, Some(""), false),
            (&local, Some("evil.example.com:8089"), false),
            (&local, Some("localhost.evil.example.com"), false),
            (&local, Some("127.0.0.1.nip.io"), false),
            (&local, Some("10.0.0.7:8089"), false),
            (&local, Some("[fd00::1]:8089"), false),
            (&named, Some("Dash.Example.com:443"), true),
            (&named, Some("dash.example.com"), true),
            (&named, Some("10.0.0.7:8089"), true),
            (&named, Some("10.0.0.8:8089"), false),
            (&named, Some("xdash.example.com"), false),
            (&everywhere, Some("10.0.0.8:8089"), true),
            (&everywhere, Some("[fd00::1]:8089"), true),
            (&everywhere, Some("evil.example.com:8089"), false),
        ];
        for (policy, authority, served) in table {
            let access = policy.judge(asked(*authority, None, None));
            assert_eq!(access == Access::Granted, *served, "{authority:?}: {access:?}");
        }
    }

    #[test]
    fn requests_of_other_sites_are_refused_and_links_to_the_page_are_not() {
        let policy = Policy::default();
        let host = "localhost:8089";
        let table = [
            (None, None, "cors", Access::Granted),
            (Some("http://localhost:8089"), Some("same-origin"), "cors", Access::Granted),
            // Behind a proxy that ends TLS.
            (Some("https://localhost:8089"), Some("same-origin"), "cors", Access::Granted),
            (None, Some("none"), "navigate", Access::Granted),
            (None, Some("cross-site"), "navigate", Access::Granted),
            (None, Some("cross-site"), "no-cors", Access::OtherSite),
            (None, Some("same-site"), "cors", Access::OtherSite),
            (Some("http://localhost:9000"), Some("same-site"), "cors", Access::OtherSite),
            (Some("http://localhost"), None, "cors", Access::OtherSite),
            (Some("http://evil.example.com"), None, "cors", Access::OtherSite),
            (Some("http://evil.example.com"), Some("cross-site"), "navigate", Access::OtherSite),
            (Some("null"), None, "cors", Access::OtherSite),
            (Some(""), None, "cors", Access::OtherSite),
        ];
        for (origin, site, mode, expected) in table {
            let request = Asked { mode: Some(mode), ..asked(Some(host), origin, site) };
            assert_eq!(policy.judge(request), expected, "{origin:?} {site:?} {mode}");
        }
    }

    #[test]
    fn only_reading_methods_are_served() {
        for (method, access) in [
            (Method::GET, Access::Granted),
            (Method::HEAD, Access::Granted),
            (Method::POST, Access::NotReadOnly),
            (Method::OPTIONS, Access::NotReadOnly),
            (Method::DELETE, Access::NotReadOnly),
        ] {
            let request = Asked { method: &method, ..asked(Some("localhost"), None, None) };
            assert_eq!(Policy::default().judge(request), access);
        }
    }

    #[test]
    fn login_needs_the_user_and_the_password() {
        let encoded = |text: &str| format!("Basic {}", STANDARD.encode(text)).into_bytes();
        let right = encoded("me:secret");
        assert!(is_login(Some(&right), "me", "secret"));
        assert!(is_login(Some(&[b"basic ", &right[6..]].concat()), "me", "secret"));
        let with_colon = encoded("me:se:cret");
        assert!(is_login(Some(&with_colon), "me", "se:cret"));
        for wrong in
            [encoded("me:secre"), encoded("me:secrets"), encoded("you:secret"), encoded(""), encoded(":")]
        {
            assert!(!is_login(Some(&wrong), "me", "secret"));
        }
        for wrong in ["", "Basic", "Basic ", "Basic ???", "Bearer bWU6c2VjcmV0", "BasicXbWU6c2VjcmV0"] {
            assert!(!is_login(Some(wrong.as_bytes()), "me", "secret"), "{wrong}");
        }
        assert!(!is_login(None, "me", "secret"));
    }

    #[test]
    fn address_that_others_reach_requires_tls_and_a_login() {
        let table = [
            ("127.0.0.1", false, false, None),
            ("127.1.2.3", false, false, None),
            ("::1", false, false, None),
            ("10.0.0.7", true, true, None),
            ("0.0.0.0", true, true, None),
            ("10.0.0.7", false, false, Some("TLS (`cert`, `key`) and a login")),
            ("0.0.0.0", false, false, Some("TLS (`cert`, `key`) and a login")),
            ("::", false, true, Some("requires TLS (`cert`, `key`);")),
            ("fd00::1", true, false, Some("requires a login (`user`, `password_file`);")),
        ];
        for (ip, has_tls, has_login, refusal) in table {
            let checked = check_exposure(ip.parse().unwrap(), has_tls, has_login);
            match (checked, refusal) {
                (Ok(()), None) => {}
                (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{error}"),
                (checked, _) => panic!("{ip}: {checked:?}"),
            }
        }
    }
}
