//! Converts between the requests of a backend and those of the engine.

use super::{
    CLUSTER_ID, ENDPOINT,
    engine::{Action, Condition, Delete, Outcome, Put, Read, Refusal, Relation, Span, Target, Transaction},
};
use crate::{
    backend::{Compare, Header, Operation, OperationResult, Revision, Txn, TxnParts},
    error::{Applied, Error, Result},
};

/// The header of a response at this revision.
pub(super) fn header(revision: Revision) -> Header {
    Header { cluster_id: CLUSTER_ID, revision }
}

/// The engine's request for a transaction.
pub(super) fn transaction(txn: Txn) -> Result<Transaction, Refusal> {
    let actions = |operations: Vec<Operation>| operations.into_iter().map(action).collect::<Result<_, _>>();
    let TxnParts { when, then, otherwise } = txn.into_parts();
    Ok(Transaction {
        when: when.into_iter().map(condition).collect::<Result<_, _>>()?,
        then: actions(then)?,
        otherwise: actions(otherwise)?,
    })
}

fn condition(compare: Compare) -> Result<Condition, Refusal> {
    let (key, relation, target) = match compare {
        Compare::UnchangedSince(keys, revision) => {
            let target = Target::ModRevision(revision + 1);
            return Ok(Condition { span: Span::try_from(&keys)?, target, relation: Relation::Less });
        }
        Compare::CreateRevision(key, revision) => (key, Relation::Equal, Target::CreateRevision(revision)),
        Compare::ModRevision(key, revision) => (key, Relation::Equal, Target::ModRevision(revision)),
        Compare::Version(key, version) => (key, Relation::Equal, Target::Version(version)),
        Compare::Exists(key) => (key, Relation::Greater, Target::Version(0)),
        Compare::Value(key, value) => (key, Relation::Equal, Target::Value(value)),
        Compare::Lease(key, lease) => (key, Relation::Equal, Target::Lease(lease)),
    };
    Ok(Condition { span: Span::one(&key), target, relation })
}

fn action(operation: Operation) -> Result<Action, Refusal> {
    Ok(match operation {
        Operation::Put { key, value, lease } => Action::Put(Put { key, value, lease, ..Put::default() }),
        Operation::Touch { key } => {
            Action::Put(Put { key, ignore_value: true, ignore_lease: true, ..Put::default() })
        }
        Operation::Get(keys) => Action::Read(Read::all(Span::try_from(&keys)?)),
        Operation::Delete(keys) => Action::Delete(Delete { span: Span::try_from(&keys)?, previous: false }),
    })
}

/// The result of one operation.
pub(super) fn result(outcome: Outcome) -> OperationResult {
    match outcome {
        // This crate sends no nested transactions.
        Outcome::Put(..) | Outcome::Transaction(..) => OperationResult::Put,
        Outcome::Read(found) => OperationResult::Get(found.items),
        Outcome::Deleted(_, count, _) => OperationResult::Delete(i64::try_from(count).unwrap_or(i64::MAX)),
    }
}

/// The error if the service was not reached or did not respond.
pub(super) fn unavailable(cause: &str, applied: Applied) -> Error {
    Error::Unavailable { endpoint: ENDPOINT.to_owned(), cause: cause.to_owned(), applied }
}

/// The error if the engine refuses the request.
pub(super) fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Compacted { oldest } => Error::Compacted { oldest },
        Refusal::FutureRevision => Error::FutureRevision,
        Refusal::LeaseNotFound(lease) => Error::LeaseNotFound { lease },
        Refusal::LeaseExists(lease) => Error::LeaseExists { lease },
        _ => Error::Rejected { endpoint: ENDPOINT.to_owned(), cause: refusal.to_string() },
    }
}
