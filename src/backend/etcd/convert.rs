//! Converts this crate's requests to those of etcd's client, and its responses back.

use std::time::Duration;

use etcd_client::{CompareOp, DeleteOptions, EventType, GetOptions, PutOptions, TxnOp, TxnOpResponse};

use crate::backend::{Compare, Event, Header, KeyValue, Keys, Operation, OperationResult};

/// The first key and, unless it is one key, the end of a request, as etcd represents them.
pub(super) fn bounds(keys: Keys) -> (Vec<u8>, Option<Vec<u8>>) {
    match keys {
        Keys::One(key) => (key, None),
        Keys::Prefix(prefix) if prefix.is_empty() => (vec![0], Some(vec![0])),
        Keys::Prefix(prefix) => {
            let mut end = prefix.clone();
            while end.pop_if(|last| *last == u8::MAX).is_some() {}
            match end.last_mut() {
                Some(last) => *last += 1,
                // There is no key after the prefix.
                None => end.push(0),
            }
            (prefix, Some(end))
        }
        // etcd does not treat an empty end as the end of a range. A range that ends where it begins is empty.
        Keys::Span(from, to) if to.is_empty() => (from.clone(), Some(from)),
        Keys::Span(from, to) => (from, Some(to)),
    }
}

/// Detects what etcd fails to reject, because it treats the end of such a delete as a key. If the put keeps the value
/// of its key, which is deleted by then, every etcd member that applies the transaction dies (3.5.21: "unexpected error
/// during txn with writes"), again after each restart.
pub(super) fn puts_what_it_deletes_without_end(branch: &[Operation]) -> bool {
    let deleted = branch.iter().filter_map(|operation| match operation {
        Operation::Delete(keys) => Some(bounds(keys.clone())).filter(|(_, end)| end.as_deref() == Some(&[0])),
        _ => None,
    });
    let deleted = deleted.map(|(from, _)| from).min();
    let put = |operation: &Operation| match operation {
        Operation::Put { key, .. } | Operation::Touch { key } => {
            deleted.as_ref().is_some_and(|from| key >= from)
        }
        _ => false,
    };
    branch.iter().any(put)
}

pub(super) fn get_options(keys: Keys) -> (Vec<u8>, GetOptions) {
    match bounds(keys) {
        (key, Some(end)) => (key, GetOptions::new().with_range(end)),
        (key, None) => (key, GetOptions::new()),
    }
}

pub(super) fn compare(compare: Compare) -> etcd_client::Compare {
    match compare {
        Compare::CreateRevision(key, revision) => {
            etcd_client::Compare::create_revision(key, CompareOp::Equal, revision)
        }
        Compare::ModRevision(key, revision) => {
            etcd_client::Compare::mod_revision(key, CompareOp::Equal, revision)
        }
        Compare::UnchangedSince(keys, revision) => {
            let (key, end) = bounds(keys);
            let compare = etcd_client::Compare::mod_revision(key, CompareOp::Less, revision + 1);
            match end {
                Some(end) => compare.with_range(end),
                None => compare,
            }
        }
        Compare::Version(key, version) => etcd_client::Compare::version(key, CompareOp::Equal, version),
        Compare::Exists(key) => etcd_client::Compare::version(key, CompareOp::Greater, 0),
        Compare::Value(key, value) => etcd_client::Compare::value(key, CompareOp::Equal, value),
        Compare::Lease(key, lease) => etcd_client::Compare::lease(key, CompareOp::Equal, lease),
    }
}

pub(super) fn operation(operation: Operation) -> TxnOp {
    match operation {
        Operation::Put { key, value, lease } => {
            TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
        }
        Operation::Touch { key } => {
            TxnOp::put(key, [], Some(PutOptions::new().with_ignore_value().with_ignore_lease()))
        }
        Operation::Get(keys) => {
            let (key, options) = get_options(keys);
            TxnOp::get(key, Some(options))
        }
        Operation::Delete(keys) => {
            let (key, end) = bounds(keys);
            let options = end.map(|end| DeleteOptions::new().with_range(end));
            TxnOp::delete(key, options)
        }
    }
}

pub(super) fn operation_result(response: TxnOpResponse) -> OperationResult {
    match response {
        // This crate sends no nested transactions.
        TxnOpResponse::Put(_) | TxnOpResponse::Txn(_) => OperationResult::Put,
        TxnOpResponse::Get(mut answer) => {
            OperationResult::Get(answer.take_kvs().into_iter().map(key_value).collect())
        }
        TxnOpResponse::Delete(answer) => OperationResult::Delete(answer.deleted()),
    }
}

pub(super) fn key_value(item: etcd_client::KeyValue) -> KeyValue {
    let (create_revision, mod_revision) = (item.create_revision(), item.mod_revision());
    let (version, lease) = (item.version(), item.lease());
    let (key, value) = item.into_key_value();
    KeyValue { key, value, create_revision, mod_revision, version, lease }
}

pub(super) fn event(event: &etcd_client::Event) -> Option<Event> {
    let item = event.kv()?;
    Some(match event.event_type() {
        EventType::Put => Event::Put(key_value(item.clone())),
        EventType::Delete => Event::Delete { key: item.key().to_vec(), revision: item.mod_revision() },
    })
}

pub(super) fn header(header: Option<&etcd_client::ResponseHeader>) -> Header {
    header.map_or_else(Header::default, |header| Header {
        cluster_id: header.cluster_id(),
        revision: header.revision(),
    })
}

pub(super) fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
