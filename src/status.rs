//! Reads the state of a service and of a run without joining it, and returns it as JSON.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::{
    backend::{Backend, Keys, Operation, Range, Txn},
    error::{Applied, Error, Result},
    node::Search,
    protocol::{
        identity::{NodeId, nonce},
        keys::RunKeys,
        printable::printable,
        reading::RecordGet,
        records::{
            ClosedRecord, CoordinatorRecord, HistoryRecord, NodeRecord, PlanShard, Record, RoundRecord,
        },
    },
    run::Entropy,
    settings::Connection,
};

/// The TTL of the trial's lease. The trial's key is deleted with it if the trial is interrupted.
const TRIAL_TTL: Duration = Duration::from_secs(5);

/// Returns the state that the service reports, and whether the client can write; or `error`.
pub async fn probe(
    connection: &Connection,
    tenant: &str,
    environment: &BTreeMap<String, String>,
    entropy: &Entropy,
    limit: Duration,
) -> Value {
    let deadline = Instant::now() + limit;
    let connection = &patient(connection, limit);
    // A run id that no job has.
    let trial = RunKeys::new(tenant, &format!("probe-{}", nonce(entropy.bits())));
    let asked = async {
        let search = Search {
            connection,
            environment,
            ttl: TRIAL_TTL,
            keys: &trial,
            max_nodes: 1,
            min_nodes: 1,
            entropy,
        };
        let found = search.connect().await?;
        let status = found.backend.status().await?;
        Ok((found, status))
    };
    let (found, status) = match within(deadline, limit, None, asked).await {
        Ok(answer) => answer,
        Err(error) => {
            let endpoint = match &error {
                Error::Unavailable { endpoint, .. }
                | Error::NotEtcd { endpoint, .. }
                | Error::Denied { endpoint, .. }
                | Error::Rejected { endpoint, .. } => endpoint.as_str(),
                _ => "",
            };
            let kind = match &error {
                Error::Unavailable { cause, .. } if is_refusal(cause) => "refused",
                Error::Unavailable { .. } | Error::NotFound { .. } | Error::Timeout { .. } => "unavailable",
                Error::NotEtcd { .. } => "not_etcd",
                Error::Denied { .. } => "denied",
                Error::Setting { .. } => "setting",
                _ => "other",
            };
            return json!({ "endpoint": endpoint, "error": error.to_string(), "kind": kind });
        }
    };
    let written = within(deadline, limit, Some(&found.backend), try_writing(&found.backend, &trial, entropy));
    let write_error = written.await.err().map(|error| error.to_string());
    json!({
        "endpoint": found.backend.endpoint(),
        "source": found.source.name,
        "version": status.version,
        "cluster_id": format!("{:x}", status.cluster_id),
        "member_id": format!("{:x}", status.member_id),
        "has_leader": status.leader != 0,
        "db_size_bytes": status.db_size,
        "errors": status.errors,
        "writable": write_error.is_none(),
        "write_error": write_error,
    })
}

/// Whether the machine responds and no server listens there, by the system's error number. A proxy that reports this
/// about a server behind it counts as a listener.
fn is_refusal(cause: &str) -> bool {
    cause.contains(&format!("(os error {})", libc::ECONNREFUSED))
}

/// Puts one key with a short lease and revokes the lease, which deletes the key.
async fn try_writing(backend: &Arc<dyn Backend>, trial: &RunKeys, entropy: &Entropy) -> Result<()> {
    let lease = NodeId::from_random(entropy.bits()).first_lease();
    backend.lease_grant(lease, TRIAL_TTL).await?;
    let put = Operation::put(trial.round(), "", lease);
    let written = backend.txn(Txn::new(put)).await;
    let given_back = backend.lease_revoke(lease).await;
    written?;
    given_back
}

/// Returns the state of a run. Missing parts are null or empty.
///
/// # Errors
/// Those of connecting and reading. Records that cannot be read are left out, and `unreadable` says why.
pub async fn run(
    connection: &Connection,
    keys: &RunKeys,
    environment: &BTreeMap<String, String>,
    entropy: &Entropy,
    limit: Duration,
) -> Result<Value> {
    let deadline = Instant::now() + limit;
    let connection = &patient(connection, limit);
    let read = async {
        let search =
            Search { connection, environment, ttl: limit, keys, max_nodes: 1, min_nodes: 1, entropy };
        let found = search.connect().await?;
        read_run(found.backend.as_ref(), keys).await
    };
    within(deadline, limit, None, read).await
}

async fn read_run(backend: &dyn Backend, keys: &RunKeys) -> Result<Value> {
    let (mut txn, coordinator) = RecordGet::<CoordinatorRecord>::first(keys.coordinator());
    let round = RecordGet::<RoundRecord>::next(&mut txn, keys.round());
    let closed = RecordGet::<ClosedRecord>::next(&mut txn, keys.closed());
    let control = backend.txn(txn).await?;
    let mut unreadable = Unreadable::default();
    let coordinator = unreadable.keep(coordinator.record(&control)).flatten();
    let round = unreadable.keep(round.record(&control)).flatten();
    let closed = unreadable.keep(closed.record(&control)).flatten();
    let revision = control.header.revision;
    let nodes = listing::<NodeRecord>(backend, keys.nodes(), revision, &mut unreadable).await?;
    let life = round.as_ref().map(|round| &round.life).or(closed.as_ref().map(|closed| &closed.life));
    let history = match life {
        Some(life) => {
            listing::<HistoryRecord>(backend, keys.history(life), revision, &mut unreadable).await?
        }
        None => Vec::new(),
    };
    let mut ranks = BTreeMap::new();
    if let Some(RoundRecord { life, round, attempt, .. }) = round.as_ref().filter(|round| round.has_world()) {
        let plan = keys.plan(life, *round, attempt);
        let shards = listing::<PlanShard>(backend, plan, revision, &mut unreadable).await?;
        let entries = shards.into_iter().flat_map(|(_, shard)| shard.nodes);
        ranks.extend(entries.map(|entry| (entry.id.to_string(), entry.rank)));
    }
    let nodes: Vec<Value> = nodes
        .into_iter()
        .map(|(id, node)| {
            json!({
                "rank": ranks.get(&id),
                "id": id,
                "name": node.name,
                "address": node.address,
                "port": node.port,
                "topology": node.topology,
                "index": node.index,
                "leaving": node.leaving,
            })
        })
        .collect();
    let history: Vec<HistoryRecord> = history.into_iter().map(|(_, record)| record).collect();
    Ok(json!({
        "endpoint": backend.endpoint(),
        "life": life,
        "round": round.as_ref().map(|round| round.round),
        "phase": round.as_ref().map(|round| round.phase),
        "size": round.as_ref().map(|round| round.size),
        "min_nodes": round.as_ref().map(|round| round.min),
        "max_nodes": round.as_ref().map(|round| round.max),
        "why": round.as_ref().map(|round| &round.why),
        "master_address": round.as_ref().map(|round| &round.master_address),
        "master_port": round.as_ref().map(|round| round.master_port),
        "change": round.as_ref().map(|round| &round.change),
        "coordinator": coordinator.map(|coordinator| coordinator.node),
        "nodes": nodes,
        "history": history,
        "closed": closed,
        "unreadable": unreadable.0,
    }))
}

/// The errors of records that cannot be read. The other records are still shown.
#[derive(Default)]
struct Unreadable(Vec<String>);

impl Unreadable {
    fn keep<T>(&mut self, read: Result<T>) -> Option<T> {
        read.map_err(|error| self.0.push(error.to_string())).ok()
    }
}

/// Returns the readable records under a prefix at a revision, each with the last part of its key.
async fn listing<R: Record>(
    backend: &dyn Backend,
    prefix: String,
    revision: i64,
    unreadable: &mut Unreadable,
) -> Result<Vec<(String, R)>> {
    let range = Range { revision, ..Range::new(Keys::prefix(prefix)) };
    let mut records = Vec::new();
    for item in backend.range(range).await?.items {
        let key = String::from_utf8_lossy(&item.key).into_owned();
        if let Some(record) = unreadable.keep(R::decode(&key, &item.value)) {
            let last = key.rsplit('/').next().unwrap_or_default();
            records.push((printable(last).into_owned(), record));
        }
    }
    Ok(records)
}

/// Returns this connection with a shorter timeout, so that its error, which has more details, occurs first.
fn patient(connection: &Connection, limit: Duration) -> Connection {
    Connection { connect_timeout: (limit * 3 / 4).min(connection.connect_timeout), ..connection.clone() }
}

async fn within<T>(
    deadline: Instant,
    limit: Duration,
    backend: Option<&Arc<dyn Backend>>,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout_at(deadline, call).await.unwrap_or_else(|_| {
        Err(Error::Unavailable {
            endpoint: backend.map_or_else(|| "?".to_owned(), |backend| backend.endpoint()),
            cause: format!("it did not answer within {:.1} s", limit.as_secs_f64()),
            applied: Applied::Unknown,
        })
    })
}
