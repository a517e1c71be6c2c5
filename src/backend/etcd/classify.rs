//! Classifies an error of the client library as a [`Failure`]. Pure.
//!
//! The code alone is not sufficient, because a broken stream, an overloaded service and a write without quorum are
//! all `Unknown`. Therefore etcd's texts decide first (`api/v3rpc/rpctypes/error.go`), then the causes below the
//! transport, then the code.

use std::error::Error as StdError;

use tonic::Code;

use super::health::Condition;
use crate::{
    backend::LeaseId,
    error::{Applied, Error},
};

/// What failed, without the place and the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) cause: String,
    /// What the failure shows about the connection.
    pub(super) condition: Condition,
}

/// The kind of a failure, as in [`Error`], as far as a service causes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unavailable {
        applied: Applied,
    },
    NotEtcd,
    Denied,
    /// The token is unknown, too old, or missing. Nothing was done.
    LoginNeeded,
    LeaseNotFound,
    LeaseExists,
    Compacted,
    FutureRevision,
    Rejected,
    Setting,
}

const UNKNOWN: Kind = Kind::Unavailable { applied: Applied::Unknown };
const REFUSED: Kind = Kind::Unavailable { applied: Applied::No };

/// The texts of etcd, of which the first that is found counts: their meaning, and what they show about the connection.
const ETCD_TEXTS: &[(&str, Kind, Condition)] = &[
    ("required revision has been compacted", Kind::Compacted, Condition::Sound),
    ("required revision is a future revision", Kind::FutureRevision, Condition::Sound),
    ("requested lease not found", Kind::LeaseNotFound, Condition::Sound),
    ("lease not found", Kind::LeaseNotFound, Condition::Sound),
    ("lease already exists", Kind::LeaseExists, Condition::Sound),
    ("request is too large", Kind::Rejected, Condition::Sound),
    ("too many operations in txn request", Kind::Rejected, Condition::Sound),
    ("duplicate key given in txn request", Kind::Rejected, Condition::Sound),
    ("key is not provided", Kind::Rejected, Condition::Sound),
    ("key not found", Kind::Rejected, Condition::Sound),
    ("value is provided", Kind::Rejected, Condition::Sound),
    ("lease is provided", Kind::Rejected, Condition::Sound),
    ("too large lease TTL", Kind::Rejected, Condition::Sound),
    ("permission denied", Kind::Denied, Condition::Sound),
    ("authentication failed", Kind::Denied, Condition::Sound),
    ("invalid user ID or password", Kind::Denied, Condition::Sound),
    ("user name is empty", Kind::LoginNeeded, Condition::Sound),
    ("user name not found", Kind::Denied, Condition::Sound),
    ("invalid auth token", Kind::LoginNeeded, Condition::Sound),
    ("revision of auth store is old", Kind::LoginNeeded, Condition::Sound),
    // Refused before they are proposed to raft.
    ("too many requests", REFUSED, Condition::Sound),
    ("etcdserver: no leader", REFUSED, Condition::Leaderless),
    ("not supported for learner", REFUSED, Condition::Broken),
    // May have been proposed. The request that fills the database is applied, and answered like those that are refused afterwards.
    ("database space exceeded", UNKNOWN, Condition::Sound),
    ("etcdserver: request timed out", UNKNOWN, Condition::Leaderless),
    ("leader changed", UNKNOWN, Condition::Leaderless),
    ("server stopped", UNKNOWN, Condition::Broken),
    ("context deadline exceeded", UNKNOWN, Condition::Late),
];

/// The meaning of the causes below the transport.
const CAUSES: &[(&str, Kind, Condition)] = &[
    ("invalid peer certificate", Kind::Denied, Condition::Broken),
    ("received fatal alert", Kind::Denied, Condition::Broken),
    // A response that is not TLS, and one in HTTP/1, whose first letters are not an HTTP/2 frame.
    ("InvalidContentType", Kind::NotEtcd, Condition::Broken),
    ("frame with invalid size", Kind::NotEtcd, Condition::Broken),
    ("invalid compression flag", Kind::NotEtcd, Condition::Broken),
    ("invalid content-type", Kind::NotEtcd, Condition::Broken),
    ("message larger than max", Kind::Rejected, Condition::Sound),
    ("message length too large", Kind::Rejected, Condition::Sound),
    ("did not agree to HTTP/2", Kind::NotEtcd, Condition::Broken),
    // Nothing was sent.
    ("tcp connect error", REFUSED, Condition::Broken),
    ("dns error", REFUSED, Condition::Broken),
    ("Connection refused", REFUSED, Condition::Broken),
];

/// Classifies an error of the client.
pub(super) fn classify(error: &etcd_client::Error) -> Failure {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            let cause = chain(status.message(), StdError::source(status));
            of_cause(cause, Some(status.code()))
        }
        etcd_client::Error::TransportError(error) => {
            of_cause(chain(&error.to_string(), error.source()), None)
        }
        etcd_client::Error::InvalidArgs(_)
        | etcd_client::Error::InvalidUri(_)
        | etcd_client::Error::InvalidMetadataValue(_) => {
            Failure { kind: Kind::Setting, cause: error.to_string(), condition: Condition::Sound }
        }
        _ => of_cause(error.to_string(), None),
    }
}

/// Classifies the reason of a canceled watch.
pub(super) fn classify_reason(reason: &str) -> Failure {
    of_cause(reason.to_owned(), None)
}

fn of_cause(cause: String, code: Option<Code>) -> Failure {
    let known = ETCD_TEXTS.iter().chain(CAUSES).find(|(text, ..)| cause.contains(text));
    let (kind, condition) = known.map_or_else(|| of_code(code), |(_, kind, condition)| (*kind, *condition));
    let cause = match (cause.is_empty(), code) {
        (false, _) => cause,
        (true, Some(code)) => code.description().to_owned(),
        (true, None) => "no reason was given".to_owned(),
    };
    Failure { kind, cause, condition }
}

fn of_code(code: Option<Code>) -> (Kind, Condition) {
    match code {
        Some(Code::PermissionDenied | Code::Unauthenticated) => (Kind::Denied, Condition::Sound),
        Some(Code::Unimplemented) => (Kind::NotEtcd, Condition::Broken),
        Some(Code::InvalidArgument) => (Kind::Rejected, Condition::Sound),
        _ => (UNKNOWN, Condition::Broken),
    }
}

/// The text of an error with the texts of its causes, because "transport error" alone is not informative.
fn chain(message: &str, source: Option<&(dyn StdError + 'static)>) -> String {
    let mut parts = vec![message.to_owned()];
    let mut source = source;
    while let Some(error) = source {
        let text = error.to_string();
        // Many wrappers repeat the text of what they wrap.
        if !text.is_empty() && !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        source = error.source();
    }
    parts.retain(|part| !part.is_empty());
    parts.join(": ")
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        classify(&error)
    }
}

impl Failure {
    /// The error of this crate. `lease` is the lease of the call, and `writes` is true if the call could have changed
    /// anything.
    pub(super) fn into_error(self, endpoint: &str, lease: LeaseId, writes: bool) -> Error {
        let Self { kind, cause, .. } = self;
        let endpoint = endpoint.to_owned();
        match kind {
            Kind::Unavailable { applied } => {
                let applied = if writes { applied } else { Applied::No };
                Error::Unavailable { endpoint, cause, applied }
            }
            Kind::LoginNeeded => Error::Unavailable { endpoint, cause, applied: Applied::No },
            Kind::NotEtcd => Error::NotEtcd { endpoint, cause },
            Kind::Denied => Error::Denied { endpoint, cause },
            Kind::LeaseNotFound => Error::LeaseNotFound { lease },
            Kind::LeaseExists => Error::LeaseExists { lease },
            // The error of a refused read does not contain the oldest revision. That of a watch does, but is handled
            // elsewhere.
            Kind::Compacted => Error::Compacted { oldest: 0 },
            Kind::FutureRevision => Error::FutureRevision,
            Kind::Rejected => Error::Rejected { endpoint, cause },
            Kind::Setting => {
                Error::Setting { message: format!("the endpoint `{endpoint}` cannot be used: {cause}") }
            }
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) enum Dial {
    Setting(Error),
    Failure(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_status(code: Code, message: &str) -> Failure {
        classify(&etcd_client::Error::GRpcStatus(tonic::Status::new(code, message)))
    }

    #[test]
    fn failures_that_only_the_text_distinguishes() {
        let cases = [
            (
                Code::Unknown,
                "h2 protocol error: error reading a body from connection",
                UNKNOWN,
                Condition::Broken,
            ),
            (Code::Unknown, "etcdserver: too many requests", REFUSED, Condition::Sound),
            (Code::Unknown, "context deadline exceeded", UNKNOWN, Condition::Late),
            (Code::Unavailable, "etcdserver: no leader", REFUSED, Condition::Leaderless),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
                UNKNOWN,
                Condition::Leaderless,
            ),
            (Code::Unavailable, "etcdserver: leader changed", UNKNOWN, Condition::Leaderless),
            (Code::Unauthenticated, "etcdserver: invalid auth token", Kind::LoginNeeded, Condition::Sound),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
                Kind::LoginNeeded,
                Condition::Sound,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                Kind::Denied,
                Condition::Sound,
            ),
            (Code::PermissionDenied, "etcdserver: permission denied", Kind::Denied, Condition::Sound),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
                Kind::Compacted,
                Condition::Sound,
            ),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
                Kind::FutureRevision,
                Condition::Sound,
            ),
            (Code::NotFound, "etcdserver: requested lease not found", Kind::LeaseNotFound, Condition::Sound),
            (
                Code::FailedPrecondition,
                "etcdserver: lease already exists",
                Kind::LeaseExists,
                Condition::Sound,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
                Kind::Rejected,
                Condition::Sound,
            ),
            (Code::InvalidArgument, "etcdserver: request is too large", Kind::Rejected, Condition::Sound),
            (
                Code::ResourceExhausted,
                "grpc: received message larger than max (2 vs. 1)",
                Kind::Rejected,
                Condition::Sound,
            ),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", UNKNOWN, Condition::Sound),
            (Code::Unimplemented, "unknown service etcdserverpb.KV", Kind::NotEtcd, Condition::Broken),
            (Code::Internal, "something new", UNKNOWN, Condition::Broken),
        ];
        for (code, message, kind, condition) in cases {
            let expected = Failure { kind, cause: message.to_owned(), condition };
            assert_eq!(of_status(code, message), expected);
        }
    }

    #[test]
    fn read_is_never_applied() {
        let applied = |writes| match of_status(Code::Unknown, "broken").into_error("e", 0, writes) {
            Error::Unavailable { applied, .. } => applied,
            other => panic!("{other:?}"),
        };
        assert_eq!((applied(true), applied(false)), (Applied::Unknown, Applied::No));
    }

    #[test]
    fn cause_is_never_empty() {
        assert!(!of_status(Code::Unavailable, "").cause.is_empty());
        assert!(!classify_reason("").cause.is_empty());
    }

    #[test]
    fn each_cause_is_in_the_text_once() {
        let inner = std::io::Error::other("Connection refused (os error 111)");
        let outer = std::io::Error::other(inner);
        let text = chain("transport error", Some(&outer));
        assert_eq!(text, "transport error: Connection refused (os error 111)");
    }

    #[test]
    fn lease_is_the_callers() {
        let error =
            of_status(Code::NotFound, "etcdserver: requested lease not found").into_error("e", 7, true);
        assert!(matches!(error, Error::LeaseNotFound { lease: 7 }));
    }
}
