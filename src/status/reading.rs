//! Reads a run without joining it. Reads only: nothing of the run or of the service changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::{
    picture::{RunStatus, ServiceStatus},
    probe::{with_deadline, with_shorter_timeout},
    records::{Observation, RunRecords},
    verdict::{judge, suspects, unreachable},
};
use crate::{
    backend::{Backend, Keys, Range, Revision, limits::Limits, pages::read_pages},
    error::{Error, Result},
    node::Search,
    protocol::{
        clocks::ClocksRecord,
        identity::NodeId,
        keys::RunKeys,
        records::{ClosedRecord, CoordinatorRecord, PlanShard, RoundRecord},
    },
    run::Entropy,
    settings::{Connection, RunName},
};

/// How many leases are read at the same time.
const LEASES_AT_ONCE: usize = 64;

/// How a run is read.
#[derive(Clone, Debug)]
pub struct Source {
    /// How the service is reached.
    pub connection: Connection,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// Randomness.
    pub entropy: Entropy,
    /// How long everything may take.
    pub limit: Duration,
}

impl Source {
    /// Finds the service. `keys` are of a run that will be read.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn connect(&self, keys: &RunKeys) -> Result<Arc<dyn Backend>> {
        let connection = &with_shorter_timeout(&self.connection, self.limit);
        let (environment, entropy) = (&self.environment, &self.entropy);
        let search =
            Search { connection, environment, ttl: self.limit, keys, max_nodes: 1, min_nodes: 1, entropy };
        Ok(search.connect().await?.backend)
    }

    /// Reads a run. `names` are nodes whose last sign of life is read, too.
    ///
    /// # Errors
    /// Those of connecting and reading. Records that cannot be read are left out, and `unreadable` contains the
    /// reasons.
    pub async fn status(&self, run: &RunName, names: &[String]) -> Result<RunStatus> {
        let status = async { self.reader(run).await?.status(names).await };
        with_deadline(Instant::now() + self.limit, self.limit, None, status).await
    }

    /// Connects, for reading a run.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn reader(&self, run: &RunName) -> Result<Reader> {
        let keys = RunKeys::new(&run.tenant, &run.run_id);
        let backend = self.connect(&keys).await?;
        Ok(Reader { backend, keys, run: run.clone(), entropy: self.entropy.clone() })
    }

    /// Reads a run. If the service does not respond, returns a status that reports this.
    ///
    /// # Errors
    /// Errors other than an unavailable service: settings, credentials, another protocol.
    pub async fn status_or_unreachable(&self, run: &RunName, names: &[String]) -> Result<RunStatus> {
        match self.status(run, names).await {
            Err(error @ (Error::Unavailable { .. } | Error::NotFound { .. } | Error::Timeout { .. })) => {
                let endpoint = match &error {
                    Error::Unavailable { endpoint, .. } => endpoint.clone(),
                    _ => String::new(),
                };
                let observation = Observation {
                    run_id: run.run_id.clone(),
                    tenant: run.tenant.clone(),
                    now: self.entropy.unix_time().unwrap_or_default(),
                    service: ServiceStatus { endpoint, ..ServiceStatus::default() },
                };
                Ok(unreachable(&observation, &error.to_string()))
            }
            other => other,
        }
    }

    /// The status of each run of a tenant, by run id.
    ///
    /// # Errors
    /// Those of connecting and reading.
    pub async fn runs(&self, tenant: &str) -> Result<Vec<RunStatus>> {
        let read = async {
            let backend = self.connect(&RunKeys::new(tenant, "")).await?;
            let mut runs = Vec::new();
            for run_id in run_ids(backend.as_ref(), tenant).await? {
                let keys = RunKeys::new(tenant, &run_id);
                let run = RunName { run_id, tenant: tenant.to_owned() };
                let (backend, entropy) = (Arc::clone(&backend), self.entropy.clone());
                runs.push(Reader { backend, keys, run, entropy }.status(&[]).await?);
            }
            Ok(runs)
        };
        with_deadline(Instant::now() + self.limit, self.limit, None, read).await
    }
}

/// A run that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRun {
    /// Its id.
    pub run_id: String,
    /// The revision of its closing. None if it is not closed.
    pub closed: Option<Revision>,
}

/// The ids of all runs of a tenant that have a record below `ctl/` or a node. It reads three keys for each run.
///
/// # Errors
/// Those of reading.
pub async fn run_ids(backend: &dyn Backend, tenant: &str) -> Result<Vec<String>> {
    let listed = list_runs(backend, tenant).await?;
    Ok(listed.into_iter().map(|listed| listed.run_id).collect())
}

/// As [`run_ids`], with what the same reads show.
///
/// # Errors
/// Those of reading.
pub async fn list_runs(backend: &dyn Backend, tenant: &str) -> Result<Vec<ListedRun>> {
    let mut listed = Vec::new();
    for run_id in names_below(backend, &RunKeys::runs(tenant)).await? {
        let keys = RunKeys::new(tenant, &run_id);
        let control = Range { limit: 1, keys_only: true, ..Range::new(keys.control()) };
        // `ctl/closed` is the first key below `ctl/`.
        let control = backend.range(control).await?.items.into_iter().next();
        let nodes = Range { limit: 1, keys_only: true, ..Range::new(Keys::prefix(keys.nodes())) };
        if control.is_none() && backend.range(nodes).await?.items.is_empty() {
            continue;
        }
        let closed = control.filter(|item| item.key == keys.closed().as_bytes());
        listed.push(ListedRun { run_id, closed: closed.map(|item| item.mod_revision) });
    }
    Ok(listed)
}

/// The tenants that have a key, in order.
///
/// # Errors
/// Those of reading.
pub async fn list_tenants(backend: &dyn Backend) -> Result<Vec<String>> {
    names_below(backend, RunKeys::ALL).await
}

/// The names of the folders below a prefix, in order. It reads one key for each.
async fn names_below(backend: &dyn Backend, all: &str) -> Result<Vec<String>> {
    let end = format!("{}0", all.trim_end_matches('/')).into_bytes();
    let mut from = all.as_bytes().to_vec();
    let mut names = Vec::new();
    loop {
        let range = Range { limit: 1, keys_only: true, ..Range::new(Keys::Span(from.clone(), end.clone())) };
        let found = backend.range(range).await?;
        let Some(item) = found.items.first() else { return Ok(names) };
        // As bytes, because a key of someone else need not be UTF-8.
        let Some(rest) = item.key.strip_prefix(all.as_bytes()) else { return Ok(names) };
        let part = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
        from = [all.as_bytes(), part, b"0"].concat();
        if let Ok(name) = percent_encoding::percent_decode(part).decode_utf8() {
            names.push(name.into_owned());
        }
    }
}

/// Reads one run through a connection.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The service.
    pub backend: Arc<dyn Backend>,
    /// The keys of the run.
    pub keys: RunKeys,
    /// Its name.
    pub run: RunName,
    /// The wall clock.
    pub entropy: Entropy,
}

impl Reader {
    /// Reads the run and judges it.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn status(&self, names: &[String]) -> Result<RunStatus> {
        let began = Instant::now();
        let (records, _) = self.records().await?;
        let mut observation = self.observation();
        observation.service.latency_seconds = Some(began.elapsed().as_secs_f64());
        self.ask_service(&mut observation.service).await;
        let mut status = judge(&records, &observation);
        self.add_last_seen(&records, names, &mut status).await;
        Ok(status)
    }

    /// What is observed before anything is read.
    pub(super) fn observation(&self) -> Observation {
        Observation {
            run_id: self.run.run_id.clone(),
            tenant: self.run.tenant.clone(),
            now: self.entropy.unix_time().unwrap_or_default(),
            service: ServiceStatus { endpoint: self.backend.endpoint(), ..ServiceStatus::default() },
        }
    }

    /// Reads what the service reports about itself. A service that does not permit that is not in trouble.
    pub(super) async fn ask_service(&self, service: &mut ServiceStatus) {
        if let Ok(status) = self.backend.status().await {
            service.describe(status);
        }
    }

    /// Adds when suspects, and the nodes with these names, last renewed their leases.
    pub(super) async fn add_last_seen(&self, records: &RunRecords, names: &[String], status: &mut RunStatus) {
        let wanted = records.nodes.iter().filter(|(_, node)| names.contains(&node.record.name));
        let asked: BTreeSet<NodeId> = suspects(status).into_iter().chain(wanted.map(|(id, _)| *id)).collect();
        let renewed = asked.into_iter().map(async |id| {
            let life = self.backend.lease_life(records.nodes.get(&id)?.lease).await.ok()??;
            let silence = life.granted.saturating_sub(life.remaining);
            Some((id.to_string(), self.entropy.unix_time()?.saturating_sub(silence).as_secs_f64()))
        });
        let seen: Vec<_> = stream::iter(renewed).buffer_unordered(LEASES_AT_ONCE).collect().await;
        status.set_last_seen(&seen.into_iter().flatten().collect());
    }

    /// Reads all records at one revision.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn records(&self) -> Result<(RunRecords, Revision)> {
        match self.read_once().await {
            Err(Error::FutureRevision | Error::Compacted { .. }) => self.read_once().await,
            other => other,
        }
    }

    async fn read_once(&self) -> Result<(RunRecords, Revision)> {
        let page = Limits::default().page;
        let mut records = RunRecords::default();
        let control = self.backend.range(Range::new(self.keys.control())).await?;
        let revision = control.header.revision;
        for item in &control.items {
            self.put_control(&mut records, item);
        }
        let backend = self.backend.as_ref();
        let clocks = Range { revision, ..Range::new(Keys::one(self.keys.clocks())) };
        let listing = |prefix: String, keys_only| {
            read_pages(backend, Range { keys: Keys::prefix(prefix), revision, limit: page, keys_only })
        };
        let (clocks, nodes) = tokio::try_join!(backend.range(clocks), listing(self.keys.nodes(), false))?;
        for item in &clocks.items {
            records.clocks = records.decode::<ClocksRecord>(item);
        }
        for item in &nodes.0 {
            records.put_node(item);
        }
        self.read_life(&mut records, revision).await?;
        Ok((records, revision))
    }

    /// Takes in a key below `ctl/`.
    pub(super) fn put_control(&self, records: &mut RunRecords, item: &crate::backend::KeyValue) {
        let key = item.key.as_slice();
        if key == self.keys.coordinator().as_bytes() {
            records.coordinator =
                records.decode::<CoordinatorRecord>(item).map(|record| (record, item.lease));
        } else if key == self.keys.round().as_bytes() {
            records.round = records.decode::<RoundRecord>(item);
        } else if key == self.keys.closed().as_bytes() {
            records.closed = records.decode::<ClosedRecord>(item);
        }
    }

    /// Reads which lives have ended, and what belongs to the life of the run: plan, finished nodes, history, reports of
    /// training.
    pub(super) async fn read_life(&self, records: &mut RunRecords, revision: Revision) -> Result<()> {
        let backend = self.backend.as_ref();
        let page = Limits::default().page;
        let listing = |prefix: String, keys_only| {
            read_pages(backend, Range { keys: Keys::prefix(prefix), revision, limit: page, keys_only })
        };
        let past = listing(self.keys.closed_lives(), true);
        let Some(life) = records.life().map(str::to_owned) else {
            records.put_past_lives(&past.await?.0);
            return Ok(());
        };
        let plan = records.round.as_ref().filter(|round| round.has_world());
        let plan = plan.map(|round| self.keys.plan(&life, round.round, &round.attempt));
        let world = async {
            match plan {
                Some(plan) => listing(plan, false).await.map(|(shards, _)| shards),
                None => Ok(Vec::new()),
            }
        };
        let lost = records.round.as_ref().map(|round| self.keys.lost(&life, round.round));
        let lost = async {
            match lost {
                Some(lost) => listing(lost, false).await.map(|(lost, _)| lost),
                None => Ok(Vec::new()),
            }
        };
        let (past, shards, lost, finished, history, resumed) = tokio::try_join!(
            past,
            world,
            lost,
            listing(self.keys.finished_life(&life), true),
            listing(self.keys.history(&life), false),
            listing(self.keys.resumed(&life), false),
        )?;
        records.put_past_lives(&past.0);
        records.world = shards
            .iter()
            .filter_map(|item| records.decode::<PlanShard>(item))
            .flat_map(|shard| shard.nodes)
            .collect();
        records.finished = finished.0.iter().filter_map(|item| RunKeys::node_of(&item.key)).collect();
        records.lost.clear();
        for item in &lost {
            records.put_lost(item);
        }
        records.history.clear();
        for item in &history.0 {
            records.put_history(item);
        }
        records.resumed.clear();
        for item in &resumed.0 {
            records.put_resumed(item);
        }
        Ok(())
    }
}
