//! Reports a service: whether it responds, what it is, and whether this client can write.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::{
    backend::{Backend, Operation, Txn},
    error::{Applied, Error, Result},
    node::Search,
    protocol::{
        identity::{NodeId, nonce},
        keys::RunKeys,
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
    let connection = &with_shorter_timeout(connection, limit);
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
    let (found, status) = match with_deadline(deadline, limit, None, asked).await {
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
    let written =
        with_deadline(deadline, limit, Some(&found.backend), try_writing(&found.backend, &trial, entropy));
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

/// Returns this connection with a shorter timeout, so that its error, which has more details, occurs first.
pub(super) fn with_shorter_timeout(connection: &Connection, limit: Duration) -> Connection {
    Connection { connect_timeout: (limit * 3 / 4).min(connection.connect_timeout), ..connection.clone() }
}

pub(super) async fn with_deadline<T>(
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
