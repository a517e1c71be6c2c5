//! etcd's KV service: what a request means to the engine, and what the engine's answer is as a message.
//!
//! The head of an answer within a transaction bears only a revision, as etcd's does.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbCompare, PbCompareTarget, PbDeleteRequest, PbDeleteResponse,
    PbKeyValue, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp,
    PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use prost::Message;
use tonic::Status;

use super::api::Api;
use crate::backend::{
    KeyValue, Revision,
    memory::engine::{
        Action, Answer, Condition, Delete, Found, MAX_REQUEST_BYTES, Order, Outcome, Put, Read, Refusal,
        Relation, SortBy, Span, Target, Transaction, Within,
    },
};

impl Api {
    pub(super) fn range(&self, request: PbRangeRequest) -> Result<PbRangeResponse, Status> {
        let read = read(request)?;
        let found = self.access(|engine, _| engine.read(&read))?;
        Ok(PbRangeResponse { header: self.header_at(found.revision), ..range_response(found) })
    }

    pub(super) fn put(&self, request: PbPutRequest) -> Result<PbPutResponse, Status> {
        check_size(&request)?;
        let put = put(request);
        let done = self.access(|engine, _| engine.put(&put))?;
        let previous = done.outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Put(_, previous) => previous,
            _ => None,
        });
        Ok(PbPutResponse { header: self.header_at(done.revision), prev_kv: previous.map(key_value) })
    }

    pub(super) fn delete_range(&self, request: PbDeleteRequest) -> Result<PbDeleteResponse, Status> {
        check_size(&request)?;
        let delete = delete(request)?;
        let done = self.access(|engine, _| engine.delete(&delete))?;
        let mut response = PbDeleteResponse { header: self.header_at(done.revision), ..Default::default() };
        for outcome in done.outcomes {
            if let Outcome::Deleted(_, count, previous) = outcome {
                response.deleted = number(count);
                response.prev_kvs = previous.into_iter().map(key_value).collect();
            }
        }
        Ok(response)
    }

    pub(super) fn txn(&self, request: PbTxnRequest) -> Result<PbTxnResponse, Status> {
        let bytes = request.encoded_len();
        let transaction = transaction(request)?;
        if bytes > MAX_REQUEST_BYTES && transaction.writes() {
            return Err(Refusal::TooLarge.into());
        }
        let done = self.access(|engine, _| engine.transact(&transaction))?;
        let header = self.header_at(done.revision);
        let responses = done.outcomes.into_iter().map(response).collect();
        Ok(PbTxnResponse { header, succeeded: done.succeeded, responses })
    }

    pub(super) fn compact(&self, request: PbCompactionRequest) -> Result<PbCompactionResponse, Status> {
        let revision =
            self.access(|engine, _| engine.compact(request.revision).map(|()| engine.revision()))?;
        tracing::debug!("a client compacted history up to revision {}", request.revision);
        Ok(PbCompactionResponse { header: self.header_at(revision) })
    }
}

/// What goes through raft has a bound in etcd.
fn check_size(request: &impl Message) -> Answer<()> {
    if request.encoded_len() > MAX_REQUEST_BYTES { Err(Refusal::TooLarge) } else { Ok(()) }
}

fn span(key: Vec<u8>, range_end: Vec<u8>) -> Answer<Span> {
    if key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(Span::of_request(key, range_end)) }
}

fn read(request: PbRangeRequest) -> Answer<Read> {
    let order = match request.sort_order {
        0 => Order::Unsaid,
        1 => Order::Ascending,
        2 => Order::Descending,
        _ => return Err(Refusal::InvalidOrder),
    };
    let sort_by = match request.sort_target {
        0 => SortBy::Key,
        1 => SortBy::Version,
        2 => SortBy::Create,
        3 => SortBy::Mod,
        4 => SortBy::Value,
        _ => return Err(Refusal::InvalidOrder),
    };
    let within = Within {
        min_mod: request.min_mod_revision,
        max_mod: request.max_mod_revision,
        min_create: request.min_create_revision,
        max_create: request.max_create_revision,
    };
    Ok(Read {
        span: span(request.key, request.range_end)?,
        revision: request.revision,
        limit: usize::try_from(request.limit).unwrap_or(0),
        keys_only: request.keys_only,
        count_only: request.count_only,
        sort_by,
        order,
        within,
    })
}

fn put(request: PbPutRequest) -> Put {
    let PbPutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease } = request;
    Put { key, value, lease, ignore_value, ignore_lease, previous: prev_kv }
}

fn delete(request: PbDeleteRequest) -> Answer<Delete> {
    Ok(Delete { span: span(request.key, request.range_end)?, previous: request.prev_kv })
}

fn transaction(request: PbTxnRequest) -> Answer<Transaction> {
    let actions = |operations: Vec<PbTxnRequestOp>| operations.into_iter().map(action).collect::<Answer<_>>();
    Ok(Transaction {
        when: request.compare.into_iter().map(condition).collect::<Answer<_>>()?,
        then: actions(request.success)?,
        otherwise: actions(request.failure)?,
    })
}

fn action(operation: PbTxnRequestOp) -> Answer<Action> {
    Ok(match operation.request {
        Some(PbTxnOpRequest::RequestRange(request)) => Action::Read(read(request)?),
        Some(PbTxnOpRequest::RequestPut(request)) => Action::Put(put(request)),
        Some(PbTxnOpRequest::RequestDeleteRange(request)) => Action::Delete(delete(request)?),
        Some(PbTxnOpRequest::RequestTxn(request)) => Action::Transaction(transaction(request)?),
        // So etcd names an operation that is none.
        None => return Err(Refusal::KeyNotFound),
    })
}

/// A value of another kind than the target counts as none, as in etcd.
fn condition(compare: PbCompare) -> Answer<Condition> {
    let union = compare.target_union.as_ref();
    let target = match PbCompareTarget::try_from(compare.target).unwrap_or_default() {
        PbCompareTarget::Version => Target::Version(match union {
            Some(PbTargetUnion::Version(version)) => *version,
            _ => 0,
        }),
        PbCompareTarget::Create => Target::CreateRevision(match union {
            Some(PbTargetUnion::CreateRevision(revision)) => *revision,
            _ => 0,
        }),
        PbCompareTarget::Mod => Target::ModRevision(match union {
            Some(PbTargetUnion::ModRevision(revision)) => *revision,
            _ => 0,
        }),
        PbCompareTarget::Lease => Target::Lease(match union {
            Some(PbTargetUnion::Lease(lease)) => *lease,
            _ => 0,
        }),
        PbCompareTarget::Value => Target::Value(match union {
            Some(PbTargetUnion::Value(value)) => value.clone(),
            _ => Vec::new(),
        }),
    };
    let relation = match compare.result {
        1 => Relation::Greater,
        2 => Relation::Less,
        3 => Relation::NotEqual,
        _ => Relation::Equal,
    };
    Ok(Condition { span: span(compare.key, compare.range_end)?, target, relation })
}

#[expect(clippy::unnecessary_wraps, reason = "a message's head is optional, and always there")]
fn within(revision: Revision) -> Option<PbResponseHeader> {
    Some(PbResponseHeader { revision, ..Default::default() })
}

fn response(outcome: Outcome) -> PbResponseOp {
    let response = match outcome {
        Outcome::Put(revision, previous) => PbTxnOpResponse::ResponsePut(PbPutResponse {
            header: within(revision),
            prev_kv: previous.map(key_value),
        }),
        Outcome::Read(found) => PbTxnOpResponse::ResponseRange(range_response(found)),
        Outcome::Deleted(revision, count, previous) => {
            PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse {
                header: within(revision),
                deleted: number(count),
                prev_kvs: previous.into_iter().map(key_value).collect(),
            })
        }
        Outcome::Transaction(succeeded, outcomes) => PbTxnOpResponse::ResponseTxn(PbTxnResponse {
            header: within(0),
            succeeded,
            responses: outcomes.into_iter().map(response).collect(),
        }),
    };
    PbResponseOp { response: Some(response) }
}

fn range_response(found: Found) -> PbRangeResponse {
    PbRangeResponse {
        header: within(found.revision),
        kvs: found.items.into_iter().map(key_value).collect(),
        more: found.more,
        count: number(found.count),
    }
}

pub(super) fn key_value(item: KeyValue) -> PbKeyValue {
    let KeyValue { key, value, create_revision, mod_revision, version, lease } = item;
    PbKeyValue { key, create_revision, mod_revision, version, value, lease }
}

pub(super) fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
