//! What an error of the client means. Pure: an error in, a [`Failure`] out.
//!
//! Codes alone do not say it (a broken stream, an overloaded service and a write without quorum are all `Unknown`), so
//! etcd's own texts decide first (`api/v3rpc/rpctypes/error.go`), then the causes below the transport, then the code.

use std::error::Error as StdError;

use tonic::Code;

use crate::{
    backend::LeaseId,
    error::{Applied, Error},
};

/// What failed, without where and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) cause: String,
    /// Whether another connection, perhaps to another etcd member, may do better.
    pub(super) gives_up: bool,
}

/// The kind of a failure: [`Error`]'s, as far as a service is behind it.
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

/// etcd's own texts, the first that is found counts: what they mean, and whether another connection may do better.
const ETCD_TEXTS: &[(&str, Kind, bool)] = &[
    ("required revision has been compacted", Kind::Compacted, false),
    ("required revision is a future revision", Kind::FutureRevision, false),
    ("requested lease not found", Kind::LeaseNotFound, false),
    ("lease not found", Kind::LeaseNotFound, false),
    ("lease already exists", Kind::LeaseExists, false),
    ("request is too large", Kind::Rejected, false),
    ("too many operations in txn request", Kind::Rejected, false),
    ("duplicate key given in txn request", Kind::Rejected, false),
    ("key is not provided", Kind::Rejected, false),
    ("key not found", Kind::Rejected, false),
    ("value is provided", Kind::Rejected, false),
    ("lease is provided", Kind::Rejected, false),
    ("too large lease TTL", Kind::Rejected, false),
    ("permission denied", Kind::Denied, false),
    ("authentication failed", Kind::Denied, false),
    ("invalid user ID or password", Kind::Denied, false),
    ("user name is empty", Kind::LoginNeeded, false),
    ("user name not found", Kind::Denied, false),
    ("invalid auth token", Kind::LoginNeeded, false),
    ("revision of auth store is old", Kind::LoginNeeded, false),
    // Refused before they are proposed to raft.
    ("too many requests", REFUSED, false),
    ("etcdserver: no leader", REFUSED, true),
    ("database space exceeded", REFUSED, false),
    ("not supported for learner", REFUSED, true),
    // Proposed, perhaps.
    ("etcdserver: request timed out", UNKNOWN, true),
    ("leader changed", UNKNOWN, true),
    ("server stopped", UNKNOWN, true),
    ("context deadline exceeded", UNKNOWN, true),
];

/// What the causes below the transport say.
const CAUSES: &[(&str, Kind, bool)] = &[
    ("invalid peer certificate", Kind::Denied, true),
    ("received fatal alert", Kind::Denied, true),
    // An answer that is no TLS, and one in HTTP/1, whose first letters are no HTTP/2 frame.
    ("InvalidContentType", Kind::NotEtcd, true),
    ("frame with invalid size", Kind::NotEtcd, true),
    ("invalid compression flag", Kind::NotEtcd, true),
    ("invalid content-type", Kind::NotEtcd, true),
    ("message larger than max", Kind::Rejected, false),
    ("message length too large", Kind::Rejected, false),
    ("did not agree to HTTP/2", Kind::NotEtcd, true),
    // Nothing was sent.
    ("tcp connect error", REFUSED, true),
    ("dns error", REFUSED, true),
    ("Connection refused", REFUSED, true),
];

/// What an error of the client means.
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
            Failure { kind: Kind::Setting, cause: error.to_string(), gives_up: false }
        }
        _ => of_cause(error.to_string(), None),
    }
}

/// What the reason of a cancelled watch means.
pub(super) fn classify_reason(reason: &str) -> Failure {
    of_cause(reason.to_owned(), None)
}

fn of_cause(cause: String, code: Option<Code>) -> Failure {
    let known = ETCD_TEXTS.iter().chain(CAUSES).find(|(text, ..)| cause.contains(text));
    let (kind, gives_up) = known.map_or_else(|| of_code(code), |(_, kind, gives_up)| (*kind, *gives_up));
    let cause = match (cause.is_empty(), code) {
        (false, _) => cause,
        (true, Some(code)) => code.description().to_owned(),
        (true, None) => "no reason was given".to_owned(),
    };
    Failure { kind, cause, gives_up }
}

fn of_code(code: Option<Code>) -> (Kind, bool) {
    match code {
        Some(Code::PermissionDenied | Code::Unauthenticated) => (Kind::Denied, false),
        Some(Code::Unimplemented) => (Kind::NotEtcd, true),
        Some(Code::InvalidArgument) => (Kind::Rejected, false),
        _ => (UNKNOWN, true),
    }
}

/// An error's text with those of its causes: "transport error" alone says nothing.
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
    /// The crate's error for it. `lease` is what the call was about, `writes` whether it could have changed anything.
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
            // A refused read does not say what is left; a watch does, and takes another way.
            Kind::Compacted => Error::Compacted { oldest: 0 },
            Kind::FutureRevision => Error::FutureRevision,
            Kind::Rejected => Error::Rejected { endpoint, cause },
            Kind::Setting => {
                Error::Setting { message: format!("the endpoint `{endpoint}` cannot be used: {cause}") }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_status(code: Code, message: &str) -> Failure {
        classify(&etcd_client::Error::GRpcStatus(tonic::Status::new(code, message)))
    }

    #[test]
    fn what_only_the_text_tells() {
        let cases = [
            (Code::Unknown, "h2 protocol error: error reading a body from connection", UNKNOWN, true),
            (Code::Unknown, "etcdserver: too many requests", REFUSED, false),
            (Code::Unknown, "context deadline exceeded", UNKNOWN, true),
            (Code::Unavailable, "etcdserver: no leader", REFUSED, true),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
                UNKNOWN,
                true,
            ),
            (Code::Unavailable, "etcdserver: leader changed", UNKNOWN, true),
            (Code::Unauthenticated, "etcdserver: invalid auth token", Kind::LoginNeeded, false),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", Kind::LoginNeeded, false),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                Kind::Denied,
                false,
            ),
            (Code::PermissionDenied, "etcdserver: permission denied", Kind::Denied, false),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
                Kind::Compacted,
                false,
            ),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
                Kind::FutureRevision,
                false,
            ),
            (Code::NotFound, "etcdserver: requested lease not found", Kind::LeaseNotFound, false),
            (Code::FailedPrecondition, "etcdserver: lease already exists", Kind::LeaseExists, false),
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request", Kind::Rejected, false),
            (Code::InvalidArgument, "etcdserver: request is too large", Kind::Rejected, false),
            (
                Code::ResourceExhausted,
                "grpc: received message larger than max (2 vs. 1)",
                Kind::Rejected,
                false,
            ),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", REFUSED, false),
            (Code::Unimplemented, "unknown service etcdserverpb.KV", Kind::NotEtcd, true),
            (Code::Internal, "something new", UNKNOWN, true),
        ];
        for (code, message, kind, gives_up) in cases {
            let expected = Failure { kind, cause: message.to_owned(), gives_up };
            assert_eq!(of_status(code, message), expected);
        }
    }

    #[test]
    fn a_read_is_never_applied() {
        let applied = |writes| match of_status(Code::Unknown, "broken").into_error("e", 0, writes) {
            Error::Unavailable { applied, .. } => applied,
            other => panic!("{other:?}"),
        };
        assert_eq!((applied(true), applied(false)), (Applied::Unknown, Applied::No));
    }

    #[test]
    fn a_cause_is_never_empty() {
        assert!(!of_status(Code::Unavailable, "").cause.is_empty());
        assert!(!classify_reason("").cause.is_empty());
    }

    #[test]
    fn causes_are_told_once_each() {
        let inner = std::io::Error::other("Connection refused (os error 111)");
        let outer = std::io::Error::other(inner);
        let text = chain("transport error", Some(&outer));
        assert_eq!(text, "transport error: Connection refused (os error 111)");
    }

    #[test]
    fn the_lease_is_the_callers() {
        let error =
            of_status(Code::NotFound, "etcdserver: requested lease not found").into_error("e", 7, true);
        assert!(matches!(error, Error::LeaseNotFound { lease: 7 }));
    }
}
