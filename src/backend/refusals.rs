//! Reports once what the service refuses.
//!
//! A refused write is repeated, because the service may accept it later, for example after space was freed or a leader
//! was elected. Until then a run merely seems to wait for nodes. Therefore the first refusal is logged as a warning
//! with the text of the service, and messages of waiting nodes contain it, too. The same text is logged again only
//! after the write was accepted once.

use std::{collections::BTreeMap, sync::Mutex};

use crate::{error::Error, lock::lock};

/// The writes that are refused at present, each with the text of the service.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<&'static str, String>>);

impl Refusals {
    /// Records an error of this write, and logs a warning if it is a refusal that was not reported yet.
    pub fn note(&self, write: &'static str, error: &Error) {
        let Some((endpoint, words)) = refusal(error) else { return };
        let known = lock(&self.0).insert(write, words.to_owned());
        if known.as_deref() != Some(words) {
            tracing::warn!(
                "`{endpoint}` refuses {write}, and the run cannot form a round meanwhile; it is repeated{}: {words}",
                advice(words)
            );
        }
    }

    /// Records that the write was accepted.
    pub fn clear(&self, write: &'static str) {
        lock(&self.0).remove(write);
    }

    /// The present refusals, for a message. Empty if there are none.
    pub fn describe(&self) -> String {
        let refused = lock(&self.0);
        let parts = refused.iter().map(|(write, words)| format!("; the service refuses {write}: {words}"));
        parts.collect()
    }
}

/// The endpoint that refuses, and its text, if the error is a refusal of the service.
fn refusal(error: &Error) -> Option<(&str, &str)> {
    match error {
        // An error of the connection is not a refusal, because no service has responded.
        Error::Unavailable { endpoint, cause, .. } => {
            let begin = cause.find("etcdserver: ")?;
            Some((endpoint, &cause[begin..]))
        }
        Error::Denied { endpoint, cause } | Error::Rejected { endpoint, cause } => Some((endpoint, cause)),
        _ => None,
    }
}

/// What to do about the refusal, if that is known.
fn advice(words: &str) -> &'static str {
    if words.contains("database space exceeded") {
        "; compact and defragment etcd or raise its `--quota-backend-bytes`, then run `etcdctl alarm disarm`"
    } else if words.contains("permission denied") {
        "; grant the user read and write access to the prefix of the run's keys"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Applied;

    fn unavailable(cause: &str) -> Error {
        Error::Unavailable { endpoint: "e".into(), cause: cause.into(), applied: Applied::No }
    }

    #[test]
    fn only_what_the_service_says_is_a_refusal() {
        let space = "etcdserver: mvcc: database space exceeded";
        assert_eq!(refusal(&unavailable(&format!("code: {space}"))), Some(("e", space)));
        let denied = Error::Denied { endpoint: "e".into(), cause: "permission denied".into() };
        assert_eq!(refusal(&denied), Some(("e", "permission denied")));
        for other in [unavailable("connection refused"), Error::FutureRevision, Error::Left] {
            assert_eq!(refusal(&other), None, "{other}");
        }
    }

    #[test]
    fn it_is_described_until_the_write_is_accepted() {
        let refusals = Refusals::default();
        refusals.note("the plan", &unavailable("etcdserver: no leader"));
        refusals.note("the plan", &unavailable("connection refused"));
        assert_eq!(refusals.describe(), "; the service refuses the plan: etcdserver: no leader");
        refusals.clear("another");
        assert!(!refusals.describe().is_empty());
        refusals.clear("the plan");
        assert_eq!(refusals.describe(), "");
    }
}
