//! etcd's KV service: converts requests for the engine, and results of the engine to messages.
//!
//! As in etcd, the header of a response within a transaction contains only a revision.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbCompare, PbCompareTarget, PbDeleteRequest, PbDeleteResponse,
    PbKeyValue, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp,
    PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use prost::Message;
use tonic::Status;

use super::{api::Api, bodies::Meter};
use crate::backend::{
    KeyValue, Revision,
    memory::engine::{
        Action, Answer, Condition, Delete, Done, Found, MAX_REQUEST_BYTES, Order, Outcome, Put, Read,
        Refusal, Relation, SortBy, Span, Target, Transaction, Within,
    },
};

impl Api {
    pub(super) fn range(&self, request: PbRangeRequest, meter: &Meter) -> Result<PbRangeResponse, Status> {
        let read = request.into();
        let found = self.access(|engine, _| {
            meter.count(engine.read_bytes(&read))?;
            engine.read(&read).map_err(Status::from)
        })?;
        Ok(PbRangeResponse { header: self.header_at(found.revision), ..found.into() })
    }

    pub(super) fn put(&self, request: PbPutRequest, meter: &Meter) -> Result<PbPutResponse, Status> {
        check_size(&request)?;
        let put = request.into();
        let done = self.access(|engine, _| {
            meter.count(engine.put_bytes(&put))?;
            engine.put(&put).map_err(Status::from)
        })?;
        Ok(PbPutResponse { header: self.header_at(done.revision), ..done.into() })
    }

    pub(super) fn delete_range(
        &self,
        request: PbDeleteRequest,
        meter: &Meter,
    ) -> Result<PbDeleteResponse, Status> {
        check_size(&request)?;
        let delete = request.into();
        let done = self.access(|engine, _| {
            meter.count(engine.delete_bytes(&delete))?;
            engine.delete(&delete).map_err(Status::from)
        })?;
        Ok(PbDeleteResponse { header: self.header_at(done.revision), ..done.into() })
    }

    pub(super) fn txn(&self, request: PbTxnRequest, meter: &Meter) -> Result<PbTxnResponse, Status> {
        let bytes = request.encoded_len();
        let transaction = Transaction::from(request);
        if bytes > MAX_REQUEST_BYTES && transaction.writes() {
            return Err(Refusal::TooLarge.into());
        }
        let mut no_room = None;
        let room = |bytes| {
            meter.count(bytes).map_err(|status| {
                no_room = Some(status);
                Refusal::TooManyRequests
            })
        };
        let done = self.access(|engine, _| engine.transact_within(&transaction, room));
        let done = done.map_err(|refusal| no_room.unwrap_or_else(|| refusal.into()))?;
        Ok(PbTxnResponse { header: self.header_at(done.revision), ..done.into() })
    }

    pub(super) fn compact(&self, request: PbCompactionRequest) -> Result<PbCompactionResponse, Status> {
        let revision =
            self.access(|engine, _| engine.compact(request.revision).map(|()| engine.revision()))?;
        tracing::debug!("a client compacted history up to revision {}", request.revision);
        Ok(PbCompactionResponse { header: self.header_at(revision) })
    }
}

/// etcd bounds the size of requests that go through raft.
fn check_size(request: &impl Message) -> Answer<()> {
    if request.encoded_len() > MAX_REQUEST_BYTES { Err(Refusal::TooLarge) } else { Ok(()) }
}

impl From<PbRangeRequest> for Read {
    fn from(request: PbRangeRequest) -> Self {
        let order = match request.sort_order {
            0 => Order::Unsaid,
            1 => Order::Ascending,
            2 => Order::Descending,
            _ => Order::Unknown,
        };
        let sort_by = match request.sort_target {
            0 => SortBy::Key,
            1 => SortBy::Version,
            2 => SortBy::Create,
            3 => SortBy::Mod,
            4 => SortBy::Value,
            _ => SortBy::Unknown,
        };
        let within = Within {
            min_mod: request.min_mod_revision,
            max_mod: request.max_mod_revision,
            min_create: request.min_create_revision,
            max_create: request.max_create_revision,
        };
        Self {
            span: Span::of_request(request.key, request.range_end),
            revision: request.revision,
            limit: usize::try_from(request.limit).unwrap_or(0),
            keys_only: request.keys_only,
            count_only: request.count_only,
            sort_by,
            order,
            within,
        }
    }
}

impl From<PbPutRequest> for Put {
    fn from(request: PbPutRequest) -> Self {
        let PbPutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease } = request;
        Self { key, value, lease, ignore_value, ignore_lease, previous: prev_kv }
    }
}

impl From<PbDeleteRequest> for Delete {
    fn from(request: PbDeleteRequest) -> Self {
        Self { span: Span::of_request(request.key, request.range_end), previous: request.prev_kv }
    }
}

impl From<PbTxnRequest> for Transaction {
    fn from(request: PbTxnRequest) -> Self {
        let actions = |operations: Vec<PbTxnRequestOp>| operations.into_iter().map(Action::from).collect();
        Self {
            when: request.compare.into_iter().map(Condition::from).collect(),
            then: actions(request.success),
            otherwise: actions(request.failure),
        }
    }
}

impl From<PbTxnRequestOp> for Action {
    fn from(operation: PbTxnRequestOp) -> Self {
        match operation.request {
            Some(PbTxnOpRequest::RequestRange(request)) => Self::Read(request.into()),
            Some(PbTxnOpRequest::RequestPut(request)) => Self::Put(request.into()),
            Some(PbTxnOpRequest::RequestDeleteRange(request)) => Self::Delete(request.into()),
            Some(PbTxnOpRequest::RequestTxn(request)) => Self::Transaction(request.into()),
            None => Self::Nothing,
        }
    }
}

impl From<PbCompare> for Condition {
    /// A value of another kind than the target counts as missing, as in etcd.
    fn from(compare: PbCompare) -> Self {
        let PbCompare { result, target, key, range_end, target_union } = compare;
        let target = match (PbCompareTarget::try_from(target).unwrap_or_default(), target_union) {
            (PbCompareTarget::Version, Some(PbTargetUnion::Version(version))) => Target::Version(version),
            (PbCompareTarget::Version, _) => Target::Version(0),
            (PbCompareTarget::Create, Some(PbTargetUnion::CreateRevision(revision))) => {
                Target::CreateRevision(revision)
            }
            (PbCompareTarget::Create, _) => Target::CreateRevision(0),
            (PbCompareTarget::Mod, Some(PbTargetUnion::ModRevision(revision))) => {
                Target::ModRevision(revision)
            }
            (PbCompareTarget::Mod, _) => Target::ModRevision(0),
            (PbCompareTarget::Lease, Some(PbTargetUnion::Lease(lease))) => Target::Lease(lease),
            (PbCompareTarget::Lease, _) => Target::Lease(0),
            (PbCompareTarget::Value, Some(PbTargetUnion::Value(value))) => Target::Value(value),
            (PbCompareTarget::Value, _) => Target::Value(Vec::new()),
        };
        let relation = match result {
            1 => Relation::Greater,
            2 => Relation::Less,
            3 => Relation::NotEqual,
            _ => Relation::Equal,
        };
        Self { span: Span::of_request(key, range_end), target, relation }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a message's head is optional, and always there")]
fn response_header(revision: Revision) -> Option<PbResponseHeader> {
    Some(PbResponseHeader { revision, ..Default::default() })
}

impl From<Done> for PbPutResponse {
    fn from(done: Done) -> Self {
        let previous = done.outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Put(_, previous) => previous,
            _ => None,
        });
        Self { header: response_header(done.revision), prev_kv: previous.map(key_value) }
    }
}

impl From<Done> for PbDeleteResponse {
    fn from(done: Done) -> Self {
        let deleted = done.outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Deleted(_, count, previous) => Some((count, previous)),
            _ => None,
        });
        let (count, previous) = deleted.unwrap_or_default();
        delete_response(done.revision, count, previous)
    }
}

impl From<Done> for PbTxnResponse {
    fn from(done: Done) -> Self {
        let responses = done.outcomes.into_iter().map(response).collect();
        Self { header: response_header(done.revision), succeeded: done.succeeded, responses }
    }
}

impl From<Found> for PbRangeResponse {
    fn from(found: Found) -> Self {
        Self {
            header: response_header(found.revision),
            kvs: found.items.into_iter().map(key_value).collect(),
            more: found.more,
            count: number(found.count),
        }
    }
}

fn response(outcome: Outcome) -> PbResponseOp {
    let response = match outcome {
        Outcome::Put(revision, previous) => {
            let prev_kv = previous.map(key_value);
            PbTxnOpResponse::ResponsePut(PbPutResponse { header: response_header(revision), prev_kv })
        }
        Outcome::Read(found) => PbTxnOpResponse::ResponseRange(found.into()),
        Outcome::Deleted(revision, count, previous) => {
            PbTxnOpResponse::ResponseDeleteRange(delete_response(revision, count, previous))
        }
        Outcome::Transaction(succeeded, outcomes) => PbTxnOpResponse::ResponseTxn(PbTxnResponse {
            header: response_header(0),
            succeeded,
            responses: outcomes.into_iter().map(response).collect(),
        }),
    };
    PbResponseOp { response: Some(response) }
}

fn delete_response(revision: Revision, count: usize, previous: Vec<KeyValue>) -> PbDeleteResponse {
    let prev_kvs = previous.into_iter().map(key_value).collect();
    PbDeleteResponse { header: response_header(revision), deleted: number(count), prev_kvs }
}

pub(super) fn key_value(item: KeyValue) -> PbKeyValue {
    let KeyValue { key, value, create_revision, mod_revision, version, lease } = item;
    PbKeyValue { key, create_revision, mod_revision, version, value, lease }
}

pub(super) fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
