//! One script, several services: the engine, the server, and real etcds execute random operations of a seed, and their
//! responses and events must match in every field.
//!
//! Only fields that cannot match are excluded: the IDs of clusters and members, terms, and the remaining time of a
//! lease. Other permitted differences are listed in [`EXPLAINED`] with their reasons, and are counted.
//! `LATTICE_TEST_ETCDS` names further etcd binaries besides `LATTICE_TEST_ETCD`, separated by colons.
//! `LATTICE_ORACLE_OPERATIONS` sets the number of operations for each etcd.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbCompare, PbDeleteRequest, PbDeleteResponse, PbEvent,
    PbKeyValue, PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseLeasesRequest, PbLeaseLeasesResponse,
    PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseStatus, PbLeaseTimeToLiveRequest,
    PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse,
    PbResponseHeader, PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
    PbWatchRequest, PbWatchRequestUnion, PbWatchResponse,
};
use futures_util::{StreamExt, stream};
use lattice_rdzv::backend::{
    Event, Revision,
    memory::engine::{Engine, Refusal, Span},
};
use tonic::{Request, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use crate::support::{
    choices::Choices,
    embedded::Embedded,
    etcd::{Etcd, binaries},
    within,
};

/// The number of operations after which the services are emptied.
const LIFE: usize = 500;
/// Long enough that no lease expires meanwhile.
const TTL_SECONDS: i64 = 3600;

/// A difference that has a reason: a word for the table, the reason, and a function that recognizes the difference.
struct Explained {
    what: &'static str,
    why: &'static str,
    applies: fn(&Step, &str, &str) -> bool,
}

const EXPLAINED: &[Explained] = &[
    Explained {
        what: "a range in an order that is none",
        why: "3.6 and later refuse it, and so do we; 3.4 and 3.5 leave the keys as they are",
        applies: |step, ours, _| {
            matches!(step, Step::Range(range) if range.sort_order > 2)
                && ours.ends_with("invalid sort option")
        },
    },
    Explained {
        what: "a transaction that is wrong in two ways",
        why: "3.4 and 3.5 look at all puts and then at all ranges, as we do; 3.6 and later take them as they come",
        applies: |step, ours, theirs| {
            const WRONG: [&str; 4] = [
                "key not found",
                "requested lease not found",
                "required revision is a future revision",
                "required revision has been compacted",
            ];
            let wrong = |answer: &str| WRONG.iter().any(|wrong| answer.ends_with(wrong));
            matches!(step, Step::Txn(_)) && wrong(ours) && wrong(theirs)
        },
    },
    Explained {
        what: "keys only, without their leases",
        why: "3.7 answers from its index, which has no leases; other releases and this server return them",
        applies: |step, ours, theirs| {
            format!("{step:?}").contains("keys_only: true") && without_leases(ours) == without_leases(theirs)
        },
    },
];

/// A text without the IDs of leases.
fn without_leases(text: &str) -> String {
    let mut parts = text.split("lease: ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|letter: char| letter.is_ascii_digit()))
}

/// One operation of the script.
#[derive(Clone, Debug)]
enum Step {
    Range(PbRangeRequest),
    Put(PbPutRequest),
    Delete(PbDeleteRequest),
    Txn(PbTxnRequest),
    Compact(PbCompactionRequest),
    Grant(PbLeaseGrantRequest),
    Revoke(PbLeaseRevokeRequest),
    TimeToLive(PbLeaseTimeToLiveRequest),
    Leases(PbLeaseLeasesRequest),
    Watch(Watch),
}

/// A watch from a revision on, until it has reported the change of `until`.
#[derive(Clone, Debug)]
struct Watch {
    key: Vec<u8>,
    range_end: Vec<u8>,
    start: Revision,
    until: Revision,
    previous: bool,
    filters: Vec<i32>,
}

impl Choices {
    fn raw_key(&mut self) -> Vec<u8> {
        let keys: [&[u8]; 8] = [b"a", b"aa", b"ab", b"b", b"c", b"d/1", b"d/2", &[0xff]];
        if self.one_in(60) { Vec::new() } else { keys[usize::try_from(self.below(8)).unwrap()].to_vec() }
    }

    fn range_end(&mut self, key: &[u8]) -> Vec<u8> {
        match self.below(6) {
            0 => vec![0],
            1 => self.raw_key(),
            2 => {
                let mut end = key.to_vec();
                if let Some(last) = end.last_mut().filter(|last| **last < 0xff) {
                    *last += 1;
                }
                end
            }
            _ => Vec::new(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        vec![b'0' + u8::try_from(self.below(4)).unwrap(); usize::try_from(self.below(3)).unwrap()]
    }

    fn lease(&mut self) -> i64 {
        if self.one_in(3) { 1 + self.number(5) } else { 0 }
    }

    fn revision(&mut self, newest: Revision) -> Revision {
        if self.one_in(2) { 0 } else { newest + 2 - self.number(40) }
    }

    fn bound(&mut self, newest: Revision) -> Revision {
        if self.one_in(6) { (newest - self.number(20)).max(0) } else { 0 }
    }

    fn range(&mut self, newest: Revision) -> PbRangeRequest {
        let key = self.raw_key();
        let range_end = self.range_end(&key);
        let sorted = self.one_in(3);
        // There are three valid orders.
        let orders = if self.one_in(20) { 5 } else { 3 };
        PbRangeRequest {
            key,
            range_end,
            limit: if self.one_in(2) { self.number(5) - 1 } else { 0 },
            revision: self.revision(newest),
            sort_order: if sorted { i32::try_from(self.below(orders)).unwrap() } else { 0 },
            sort_target: if sorted { i32::try_from(self.below(5)).unwrap() } else { 0 },
            serializable: self.one_in(4),
            keys_only: self.one_in(4),
            count_only: self.one_in(6),
            min_mod_revision: self.bound(newest),
            max_mod_revision: self.bound(newest),
            min_create_revision: self.bound(newest),
            max_create_revision: self.bound(newest),
        }
    }

    fn put(&mut self) -> PbPutRequest {
        let ignore_value = self.one_in(6);
        let ignore_lease = self.one_in(6);
        PbPutRequest {
            key: self.raw_key(),
            value: if ignore_value && !self.one_in(8) { Vec::new() } else { self.value() },
            lease: if ignore_lease && !self.one_in(8) { 0 } else { self.lease() },
            prev_kv: self.one_in(2),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> PbDeleteRequest {
        let key = self.raw_key();
        PbDeleteRequest { range_end: self.range_end(&key), key, prev_kv: self.one_in(2) }
    }

    fn raw_compare(&mut self, newest: Revision) -> PbCompare {
        let revision = newest - self.number(8);
        let target = self.below(5);
        let union = if self.one_in(20) { self.below(5) } else { target };
        let key = self.raw_key();
        PbCompare {
            result: i32::try_from(self.below(4)).unwrap(),
            target: i32::try_from(target).unwrap(),
            range_end: if self.one_in(3) { self.range_end(&key) } else { Vec::new() },
            key,
            target_union: (!self.one_in(30)).then(|| match union {
                0 => PbTargetUnion::Version(self.number(4)),
                1 => PbTargetUnion::CreateRevision(revision),
                2 => PbTargetUnion::ModRevision(revision),
                3 => PbTargetUnion::Value(self.value()),
                _ => PbTargetUnion::Lease(self.lease()),
            }),
        }
    }

    fn request_op(&mut self, newest: Revision, depth: u64) -> PbTxnRequestOp {
        let request = match self.below(if depth > 0 { 12 } else { 10 }) {
            // An invalid order is requested alone. If one service rejected the whole transaction and the other did not,
            // nothing after it could be compared.
            0..=2 => {
                let range = self.range(newest);
                let sort_order = range.sort_order.min(2);
                PbTxnOpRequest::RequestRange(PbRangeRequest { sort_order, ..range })
            }
            3..=4 => PbTxnOpRequest::RequestDeleteRange(self.delete()),
            5..=9 => PbTxnOpRequest::RequestPut(self.put()),
            _ => PbTxnOpRequest::RequestTxn(self.txn_request(newest, depth - 1)),
        };
        PbTxnRequestOp { request: (!self.one_in(200)).then_some(request) }
    }

    fn txn_request(&mut self, newest: Revision, depth: u64) -> PbTxnRequest {
        let most = if depth > 0 && self.one_in(150) { 140 } else { 4 };
        let operations = |choices: &mut Self| {
            (0..choices.below(most)).map(|_| choices.request_op(newest, depth)).collect()
        };
        let (success, failure) = (operations(self), operations(self));
        PbTxnRequest {
            compare: (0..self.below(3)).map(|_| self.raw_compare(newest)).collect(),
            success,
            failure,
        }
    }

    fn watch(&mut self, newest: Revision) -> Watch {
        let key = self.raw_key();
        Watch {
            range_end: self.range_end(&key),
            key,
            start: (newest - self.number(60)).max(1),
            until: newest,
            previous: self.one_in(2),
            filters: match self.below(6) {
                0 => vec![0],
                1 => vec![1],
                _ => Vec::new(),
            },
        }
    }

    fn step(&mut self, newest: Revision, compacted: Revision) -> Step {
        let id = 1 + self.number(5);
        match self.below(40) {
            0..=1 => Step::Grant(PbLeaseGrantRequest { ttl: TTL_SECONDS, id }),
            2 => Step::Grant(PbLeaseGrantRequest { ttl: i64::MAX / 4, id }),
            3 => Step::Revoke(PbLeaseRevokeRequest { id }),
            4 => Step::TimeToLive(PbLeaseTimeToLiveRequest { id, keys: self.one_in(2) }),
            5 => Step::Leases(PbLeaseLeasesRequest {}),
            6 if newest > compacted + 60 || self.one_in(10) => {
                let revision = newest + 1 - self.number(60);
                Step::Compact(PbCompactionRequest { revision, physical: true })
            }
            6..=8 => Step::Watch(self.watch(newest)),
            9..=15 => Step::Range(self.range(newest)),
            16..=23 => Step::Put(self.put()),
            24..=26 => Step::Delete(self.delete()),
            _ => loop {
                let txn = self.txn_request(newest, 2);
                if !is_deadly(&txn) {
                    break Step::Txn(txn);
                }
            },
        }
    }
}

/// An operation of which etcd dies, again after each restart: a delete without an end beside a put (see the engine's
/// `check`).
fn is_deadly(txn: &PbTxnRequest) -> bool {
    fn any(txn: &PbTxnRequest, holds: fn(&PbTxnOpRequest) -> bool) -> bool {
        txn.success.iter().chain(&txn.failure).filter_map(|operation| operation.request.as_ref()).any(
            |request| {
                if let PbTxnOpRequest::RequestTxn(within) = request {
                    any(within, holds)
                } else {
                    holds(request)
                }
            },
        )
    }
    any(
        txn,
        |request| matches!(request, PbTxnOpRequest::RequestDeleteRange(delete) if delete.range_end == [0]),
    ) && any(txn, |request| matches!(request, PbTxnOpRequest::RequestPut(_)))
}

/// The service that responds.
enum Subject {
    Engine(Box<Engine>),
    Remote(Channel),
}

const NOW: Duration = Duration::ZERO;

#[expect(clippy::unnecessary_wraps, reason = "a message's head is optional")]
fn head(revision: Revision) -> Option<PbResponseHeader> {
    Some(PbResponseHeader { revision, ..Default::default() })
}

/// A response without the identity of the service.
fn told<A: Debug>(answer: Result<A, Status>, head: fn(&mut A) -> &mut Option<PbResponseHeader>) -> String {
    match answer {
        Ok(mut answer) => {
            if let Some(head) = head(&mut answer) {
                *head = PbResponseHeader { revision: head.revision, ..Default::default() };
            }
            format!("{answer:?}")
        }
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Executes a request in the engine, and converts the result to a message as the server does.
macro_rules! of_engine {
    ($engine:expr, $request:expr, $do:ident, $answer:ty) => {
        $engine.$do(&$request.into()).map(<$answer>::from).map_err(Status::from)
    };
}

impl Subject {
    async fn answer(&mut self, step: Step) -> String {
        match step {
            Step::Range(request) => told(
                match self {
                    Self::Engine(engine) => of_engine!(engine, request, read, PbRangeResponse),
                    Self::Remote(channel) => call(channel, "KV/Range", request).await,
                },
                |answer| &mut answer.header,
            ),
            Step::Put(request) => told(
                match self {
                    Self::Engine(engine) => of_engine!(engine, request, put, PbPutResponse),
                    Self::Remote(channel) => call(channel, "KV/Put", request).await,
                },
                |answer| &mut answer.header,
            ),
            Step::Delete(request) => told(
                match self {
                    Self::Engine(engine) => of_engine!(engine, request, delete, PbDeleteResponse),
                    Self::Remote(channel) => call(channel, "KV/DeleteRange", request).await,
                },
                |answer| &mut answer.header,
            ),
            Step::Txn(request) => told(
                match self {
                    Self::Engine(engine) => of_engine!(engine, request, transact, PbTxnResponse),
                    Self::Remote(channel) => call(channel, "KV/Txn", request).await,
                },
                |answer| &mut answer.header,
            ),
            Step::Compact(request) => told(
                match self {
                    Self::Engine(engine) => {
                        let done = engine.compact(request.revision).map_err(Status::from);
                        done.map(|()| PbCompactionResponse { header: head(engine.revision()) })
                    }
                    Self::Remote(channel) => call(channel, "KV/Compact", request).await,
                },
                |answer| &mut answer.header,
            ),
            Step::Grant(request) => told(
                match self {
                    Self::Engine(engine) => {
                        let granted = engine.grant(NOW, request.id, request.ttl).map_err(Status::from);
                        granted.map(|ttl| PbLeaseGrantResponse {
                            header: head(engine.revision()),
                            id: request.id,
                            ttl: i64::try_from(ttl.as_secs()).unwrap(),
                            error: String::new(),
                        })
                    }
                    Self::Remote(channel) => call(channel, "Lease/LeaseGrant", request).await,
                },
                |answer| &mut answer.header,
            ),
            Step::Revoke(request) => told(
                match self {
                    Self::Engine(engine) => {
                        let done = engine.revoke(request.id).map_err(Status::from);
                        done.map(|()| PbLeaseRevokeResponse { header: head(engine.revision()) })
                    }
                    Self::Remote(channel) => call(channel, "Lease/LeaseRevoke", request).await,
                },
                |answer| &mut answer.header,
            ),
            Step::TimeToLive(request) => {
                let mut answer = match self {
                    Self::Engine(engine) => Ok(time_to_live(engine, &request)),
                    Self::Remote(channel) => call(channel, "Lease/LeaseTimeToLive", request).await,
                };
                if let Ok(PbLeaseTimeToLiveResponse { ttl, keys, .. }) = &mut answer {
                    // etcd's keys are in the order of a hash map, and the remaining time decreases.
                    keys.sort();
                    *ttl = (*ttl).min(1);
                }
                told(answer, |answer| &mut answer.header)
            }
            Step::Leases(request) => {
                let mut answer: Result<PbLeaseLeasesResponse, _> = match self {
                    Self::Engine(engine) => Ok(PbLeaseLeasesResponse {
                        header: head(engine.revision()),
                        leases: engine.leases().map(|id| PbLeaseStatus { id }).collect(),
                    }),
                    Self::Remote(channel) => call(channel, "Lease/LeaseLeases", request).await,
                };
                if let Ok(PbLeaseLeasesResponse { leases, .. }) = &mut answer {
                    // etcd's leases are in the order in which they expire.
                    leases.sort_by_key(|lease| lease.id);
                }
                told(answer, |answer| &mut answer.header)
            }
            Step::Watch(watch) => match self {
                Self::Engine(engine) => engine_watch(engine, &watch),
                Self::Remote(channel) => remote_watch(channel, &watch).await,
            },
        }
    }

    async fn revision(&mut self) -> Revision {
        match self {
            Self::Engine(engine) => engine.revision(),
            Self::Remote(channel) => {
                let request = PbRangeRequest { key: b"a".to_vec(), count_only: true, ..Default::default() };
                let answer: PbRangeResponse = call(channel, "KV/Range", request).await.unwrap();
                answer.header.unwrap().revision
            }
        }
    }
}

fn time_to_live(engine: &Engine, request: &PbLeaseTimeToLiveRequest) -> PbLeaseTimeToLiveResponse {
    let (header, id) = (head(engine.revision()), request.id);
    match engine.lease(NOW, id) {
        None => PbLeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() },
        Some(view) => PbLeaseTimeToLiveResponse {
            header,
            id,
            ttl: 1,
            granted_ttl: i64::try_from(view.granted.as_secs()).unwrap(),
            keys: if request.keys { view.keys } else { Vec::new() },
        },
    }
}

fn watched(watch: &Watch) -> Span {
    Span::of_request(if watch.key.is_empty() { vec![0] } else { watch.key.clone() }, watch.range_end.clone())
}

const EMPTY: &str = "cancelled: mvcc: watcher range is empty";

fn engine_watch(engine: &Engine, watch: &Watch) -> String {
    if watched(watch).is_empty() {
        return EMPTY.to_owned();
    }
    let batch = match engine.changes(&watched(watch), watch.start, usize::MAX, usize::MAX) {
        Err(Refusal::Compacted { oldest }) => return format!("compacted at {oldest}"),
        batch => batch.unwrap(),
    };
    let item = |item: lattice_rdzv::backend::KeyValue| {
        let lattice_rdzv::backend::KeyValue { key, value, create_revision, mod_revision, version, lease } =
            item;
        PbKeyValue { key, create_revision, mod_revision, version, value, lease }
    };
    let events = batch.events.into_iter().map(|event| {
        let creates = matches!(&event, Event::Put(item) if item.version == 1);
        let previous = engine.at(event.key(), event.revision() - 1).cloned();
        let prev_kv = previous.filter(|_| watch.previous && !creates).map(item);
        match event {
            Event::Put(put) => PbEvent { r#type: 0, kv: Some(item(put)), prev_kv },
            Event::Delete { key, revision } => {
                let kv = PbKeyValue { key, mod_revision: revision, ..Default::default() };
                PbEvent { r#type: 1, kv: Some(kv), prev_kv }
            }
        }
    });
    let wanted = events.filter(|event| !watch.filters.contains(&event.r#type));
    format!("{:?}", wanted.collect::<Vec<_>>())
}

/// Watches on a separate stream, until the event arrives that is the last one according to the engine.
async fn remote_watch(channel: &Channel, watch: &Watch) -> String {
    let mut events = Vec::new();
    let mut answers = open_watch(channel, watch).await;
    let created = next(&mut answers).await;
    if created.canceled && created.compact_revision == 0 {
        return format!("cancelled: {}", created.cancel_reason);
    }
    while events.last().is_none_or(|event: &PbEvent| event.kv.as_ref().unwrap().mod_revision < watch.until) {
        let answer = next(&mut answers).await;
        if answer.compact_revision > 0 {
            assert!(answer.canceled);
            return format!("compacted at {}", answer.compact_revision);
        }
        events.extend(answer.events);
    }
    format!("{events:?}")
}

async fn next(answers: &mut Streaming<PbWatchResponse>) -> PbWatchResponse {
    within("an answer of a watch", answers.message()).await.unwrap().unwrap()
}

#[expect(clippy::default_trait_access, reason = "the message has no public name")]
async fn open_watch(channel: &Channel, watch: &Watch) -> Streaming<PbWatchResponse> {
    let mut union = PbWatchRequestUnion::CreateRequest(Default::default());
    if let PbWatchRequestUnion::CreateRequest(request) = &mut union {
        request.key.clone_from(&watch.key);
        request.range_end.clone_from(&watch.range_end);
        request.start_revision = watch.start;
        request.prev_kv = watch.previous;
        request.filters.clone_from(&watch.filters);
    }
    let request = PbWatchRequest { request_union: Some(union) };
    let requests = stream::iter([request]).chain(stream::pending());
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let answers = grpc.streaming(Request::new(requests), path, ProstCodec::<PbWatchRequest, _>::default());
    within("a stream", answers).await.unwrap().into_inner()
}

async fn call<Q, A>(channel: &Channel, path: &str, request: Q) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/etcdserverpb.{path}")).unwrap();
    let answer = grpc.unary(Request::new(request), path, ProstCodec::<Q, A>::default());
    Ok(within("an answer", answer).await?.into_inner())
}

async fn remote(endpoint: &str) -> Subject {
    let channel = Channel::from_shared(endpoint.to_owned()).unwrap().connect().await.unwrap();
    Subject::Remote(channel)
}

/// A script with the results of the engine.
fn script(seed: u64, operations: usize) -> Vec<Step> {
    let mut choices = Choices(seed);
    let mut engine = Engine::default();
    let mut steps = Vec::new();
    while steps.len() < operations {
        let step = choices.step(engine.revision(), engine.compacted());
        // A watch ends with its last event, which the engine knows. If there is none, no watch is opened.
        let step = match step {
            Step::Watch(watch) => match expected_last(&engine, &watch) {
                Some(until) => Step::Watch(Watch { until, ..watch }),
                None => continue,
            },
            step => step,
        };
        // So that the revisions of the script are close to those of the services.
        apply(&mut engine, &step);
        steps.push(step);
    }
    steps
}

fn apply(engine: &mut Engine, step: &Step) {
    match step.clone() {
        Step::Put(request) => drop(engine.put(&request.into())),
        Step::Delete(request) => drop(engine.delete(&request.into())),
        Step::Txn(request) => drop(engine.transact(&request.into())),
        Step::Compact(request) => drop(engine.compact(request.revision)),
        Step::Grant(request) => drop(engine.grant(NOW, request.id, request.ttl)),
        Step::Revoke(request) => drop(engine.revoke(request.id)),
        Step::Range(_) | Step::TimeToLive(_) | Step::Leases(_) | Step::Watch(_) => {}
    }
}

/// The revision of the last past event that a watch reports. 0 if the watch ends at once.
fn expected_last(engine: &Engine, watch: &Watch) -> Option<Revision> {
    if watched(watch).is_empty() || watch.start < engine.compacted() {
        return Some(0);
    }
    let batch = engine.changes(&watched(watch), watch.start, usize::MAX, usize::MAX).unwrap();
    let kind = |event: &Event| i32::from(matches!(event, Event::Delete { .. }));
    batch.events.iter().rev().find(|event| !watch.filters.contains(&kind(event))).map(Event::revision)
}

/// Executes a script on two services, and compares. Returns how many differences were explained, by reason.
async fn compare(
    name: &str,
    seed: u64,
    steps: Vec<Step>,
    mut model: Subject,
    mut other: Subject,
) -> BTreeMap<&'static str, usize> {
    let mut explained = BTreeMap::new();
    for (number, step) in steps.into_iter().enumerate() {
        let ours = model.answer(step.clone()).await;
        let theirs = other.answer(step.clone()).await;
        if ours == theirs {
            continue;
        }
        let reason = EXPLAINED.iter().find(|explained| (explained.applies)(&step, &ours, &theirs));
        match reason {
            Some(reason) => *explained.entry(reason.what).or_default() += 1,
            None => panic!(
                "{name}, seed {seed}, step {number} differs\n{step:?}\nours:   {ours}\ntheirs: {theirs}"
            ),
        }
    }
    assert_eq!(model.revision().await, other.revision().await, "{name}, seed {seed}");
    explained
}

fn operations() -> usize {
    let named = std::env::var("LATTICE_ORACLE_OPERATIONS").ok().filter(|text| !text.is_empty());
    named.map_or(2000, |text| text.parse().unwrap())
}

fn engine() -> Subject {
    Subject::Engine(Box::default())
}

#[tokio::test]
async fn server_answers_as_the_engine_does() {
    let lives = operations().div_ceil(LIFE);
    for seed in 0..lives as u64 {
        let server = Embedded::start().await;
        let server_subject = remote(&server.endpoint()).await;
        let explained = compare("the server", seed, script(seed, LIFE), engine(), server_subject).await;
        assert!(explained.is_empty(), "these are our own: {explained:?}");
    }
    println!("the server: {} operations, no difference", lives * LIFE);
}

#[tokio::test]
async fn etcds_answer_as_the_engine_does() {
    let lives = operations().div_ceil(LIFE);
    for binary in binaries() {
        let mut explained = BTreeMap::<_, usize>::new();
        let mut version = String::new();
        for seed in 0..lives as u64 {
            let etcd = Etcd::of(&binary, "http", &[]).launch().await;
            if version.is_empty() {
                use lattice_rdzv::backend::Backend;
                version = format!("etcd {}", etcd.backend().status().await.unwrap().version);
            }
            let real = remote(etcd.endpoint()).await;
            for (what, count) in compare(&version, seed, script(seed, LIFE), engine(), real).await {
                *explained.entry(what).or_default() += count;
            }
        }
        println!(
            "{version}: {} operations, {} explained differences",
            lives * LIFE,
            explained.values().sum::<usize>()
        );
        for (what, count) in explained {
            let why = EXPLAINED.iter().find(|explained| explained.what == what).unwrap().why;
            println!("    {count} times {what}: {why}");
        }
    }
}
