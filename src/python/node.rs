//! `Node`: one node's session in a run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pyo3::{exceptions::PyValueError, prelude::*};

use super::{
    calls::Call,
    errors::RendezvousError,
    runtime::{OfProcess, Process},
    seconds::{duration, optional_duration},
    settings::Settings,
    store::Store,
    values::{Change, Closed},
    world::World,
};
use crate::{
    Error,
    discovery::SystemLookup,
    node::{Node as CoreNode, Place, Search, check_service, local_address},
    protocol::{keys::RunKeys, records::Outcome},
    run::Entropy,
};

/// What leaving may still take where closing took all the time there was.
const LEAST_LEAVE: Duration = Duration::from_millis(100);

/// A node, as its worlds and stores share it.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) core: Arc<CoreNode>,
    /// Whether a call of `next_world` is under way.
    awaits_world: AtomicBool,
}

/// The one `next_world` of a node that is under way.
struct AwaitsWorld(Arc<Joined>);

impl AwaitsWorld {
    fn begin(joined: &Arc<Joined>) -> PyResult<Self> {
        if joined.awaits_world.swap(true, Ordering::AcqRel) {
            return Err(RendezvousError::new_err(format!(
                "another thread or task is waiting in `next_world` of this node; only one may, because the call gives \
                 up the node's present world: {}",
                joined.core.name()
            )));
        }
        Ok(Self(Arc::clone(joined)))
    }
}

impl Drop for AwaitsWorld {
    fn drop(&mut self) {
        self.0.awaits_world.store(false, Ordering::Release);
    }
}

/// One node's session in a run.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Node {
    joined: OfProcess<Arc<Joined>>,
}

#[pymethods]
impl Node {
    /// Connects, takes a lease and puts this node's record, after which it seeks a world. A node that nobody receives
    /// leaves again.
    #[staticmethod]
    #[pyo3(signature = (settings, *, port = None))]
    fn join(settings: &Settings, port: Option<u16>) -> Call {
        let Settings { core, environment, .. } = settings;
        let (core, environment) = (core.clone(), environment.clone());
        let work = async move {
            let entropy = Entropy::from_system();
            let keys = RunKeys::new(&core.run.tenant, &core.run.run_id);
            let search = Search::of_node(&core, &environment, &keys, &entropy);
            let (found, host) = search.connect_or_host().await?;
            check_service(&core, &keys, &found, &entropy).await?;
            let address = local_address(&core, &found.source, &SystemLookup).await;
            let place = Place { address, port: port.unwrap_or(0), host };
            let core = CoreNode::join_found(found, core, entropy, place).await?;
            let joined = Arc::new(Joined { core: Arc::new(core), awaits_world: AtomicBool::new(false) });
            Process::current().members.add(&joined);
            Ok::<_, Error>(Self { joined: OfProcess::new(joined) })
        };
        Call::write(work, |_, node| Ok(node?))
    }

    /// Waits for the next world that includes this node and was not returned yet. It counts as returned when the result
    /// of the call is fetched.
    #[pyo3(signature = (*, port = None, timeout_seconds = None))]
    fn next_world(&self, port: Option<u16>, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let limit = optional_duration(timeout_seconds)?;
        let awaits = AwaitsWorld::begin(self.joined.get()?)?;
        let work = async move {
            let facts = awaits.0.core.await_world(port, limit).await;
            (awaits, facts)
        };
        Ok(Call::wait_for(work, |_, (awaits, facts)| {
            let (joined, facts) = (&awaits.0, facts?);
            joined.core.set_returned(&facts);
            Ok(World::new(Arc::clone(joined), facts))
        }))
    }

    /// 1 if the world last returned is about to be replaced or was closed without success, else 0; one atomic read.
    fn num_nodes_waiting(&self) -> u32 {
        self.joined.in_this_process().map_or(0, |joined| joined.core.num_nodes_waiting())
    }

    #[getter]
    fn change(&self) -> PyResult<Option<Change>> {
        Ok(self.joined.get()?.core.change().map(Change::from))
    }

    #[pyo3(signature = (*, timeout_seconds = None))]
    fn wait_change(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let limit = optional_duration(timeout_seconds)?;
        let joined = self.joined()?;
        let work = async move { joined.core.wait_change(limit).await };
        Ok(Call::wait_for(work, |_, change| Ok(change.map(Change::from))))
    }

    /// How the run was closed; `None` while it is open as far as this node knows.
    #[getter]
    fn closed(&self) -> PyResult<Option<Closed>> {
        Ok(self.joined.get()?.core.subscribe().borrow().closed.clone().map(Closed::from))
    }

    /// The run-wide store, which outlives rounds.
    fn store(&self) -> PyResult<Store> {
        Ok(Store::of_run(self.joined()?))
    }

    /// Waits until the run has begun.
    #[pyo3(signature = (*, timeout_seconds))]
    fn wait_begun(&self, timeout_seconds: f64) -> PyResult<Call> {
        let limit = duration(timeout_seconds)?;
        let joined = self.joined()?;
        let work = async move { joined.core.run_store(limit).await };
        Ok(Call::wait_for(work, |_, store| {
            store?;
            Ok(())
        }))
    }

    /// Names of the members of this node's world that are alive and have not asked for their exit barrier; none once
    /// this node is in another world, or the run has moved on so far that the plan is gone.
    #[pyo3(signature = (*, timeout_seconds = 5.0))]
    fn unfinished(&self, timeout_seconds: f64) -> PyResult<Call> {
        let limit = duration(timeout_seconds)?;
        let joined = self.joined()?;
        let work = async move {
            let core = &joined.core;
            let Some(world) = core.returned() else { return Ok(Vec::new()) };
            tokio_timeout(limit, core.unfinished(&world), "unfinished", core).await
        };
        Ok(Call::wait_for(work, |_, names| Ok(names?)))
    }

    /// Tells the others that this node is about to go, while it is still there; whether that was acknowledged.
    #[pyo3(signature = (*, why = "", timeout_seconds = 1.0))]
    fn mark_leaving(&self, why: &str, timeout_seconds: f64) -> PyResult<Call> {
        let limit = duration(timeout_seconds)?;
        let (joined, why) = (self.joined()?, why.to_owned());
        let work = async move {
            say_leaving(&joined.core, &why);
            joined.core.mark_leaving(limit).await
        };
        Ok(Call::write(work, |_, done| Ok(done)))
    }

    /// Leaves the run and gives the lease back.
    #[pyo3(signature = (*, timeout_seconds = None))]
    fn leave(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let limit = optional_duration(timeout_seconds)?;
        let joined = self.joined()?;
        Ok(Call::write(async move { joined.core.leave(limit).await }, |_, done| Ok(done)))
    }

    /// Closes the run for good, then leaves. Whether the run is closed (by whomever).
    #[pyo3(signature = (outcome, *, why = "", timeout_seconds = None))]
    fn close(&self, outcome: &str, why: &str, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let outcome = match outcome {
            "succeeded" => Outcome::Succeeded,
            "failed" => Outcome::Failed,
            "ended" => Outcome::Ended,
            other => {
                return Err(PyValueError::new_err(format!(
                    "`outcome` must be `succeeded`, `failed` or `ended`, and is: `{other}`"
                )));
            }
        };
        let (joined, why) = (self.joined()?, why.to_owned());
        let limit = optional_duration(timeout_seconds)?.unwrap_or(joined.core.settings().close_timeout);
        let work = async move {
            let began = Instant::now();
            let closed = joined.core.close(outcome, &why, Some(limit)).await;
            joined.core.leave(Some(limit.saturating_sub(began.elapsed()).max(LEAST_LEAVE))).await;
            closed
        };
        Ok(Call::write(work, |_, done| Ok(done)))
    }

    /// Begins to leave, and returns at once. The exit hook waits until the node has left.
    fn abandon(&self) {
        if let Some(joined) = self.joined.in_this_process() {
            Process::current().abandon(joined);
        }
    }

    /// Has the relay mark this node leaving when one of these signals arrives; replaces what was set before.
    fn mark_leaving_on(&self, signals: Vec<i32>) -> PyResult<()> {
        Process::current().relay.follow(&self.joined.get()?.core, signals);
        Ok(())
    }

    #[getter]
    fn run_id(&self) -> PyResult<&str> {
        Ok(self.joined.get()?.core.run_id())
    }

    #[getter]
    fn node_id(&self) -> PyResult<String> {
        Ok(self.joined.get()?.core.id().map_or_else(String::new, |id| id.to_string()))
    }

    #[getter]
    fn name(&self) -> PyResult<String> {
        Ok(self.joined.get()?.core.name())
    }

    #[getter]
    fn address(&self) -> PyResult<&str> {
        Ok(self.joined.get()?.core.address())
    }

    /// Whether this node hosts the service for the others.
    #[getter]
    fn hosts(&self) -> PyResult<bool> {
        Ok(self.joined.get()?.core.hosts())
    }

    /// The endpoint in use.
    #[getter]
    fn endpoint(&self) -> PyResult<String> {
        Ok(self.joined.get()?.core.endpoint())
    }

    #[getter]
    fn state(&self) -> PyResult<&'static str> {
        Ok(self.joined.get()?.core.subscribe().borrow().state.as_str())
    }

    fn __repr__(&self) -> String {
        let Some(joined) = self.joined.in_this_process() else {
            return "<Node of the process from which this one was forked>".to_owned();
        };
        let core = &joined.core;
        let state = core.subscribe().borrow().state.as_str();
        format!("<Node name={:?} run_id={:?} state={state:?}>", core.name(), core.run_id())
    }
}

impl Node {
    fn joined(&self) -> PyResult<Arc<Joined>> {
        self.joined.get().map(Arc::clone)
    }
}

impl Drop for Node {
    /// A node that no variable holds any more can neither train nor leave by itself.
    fn drop(&mut self) {
        self.abandon();
    }
}

/// A call of ours that has no limit of its own.
async fn tokio_timeout<T>(
    limit: Duration,
    call: impl Future<Output = crate::Result<T>>,
    what: &str,
    core: &CoreNode,
) -> crate::Result<T> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        Err(Error::Unavailable {
            endpoint: core.endpoint(),
            cause: format!("`{what}` was not answered within {:.1} s", limit.as_secs_f64()),
            applied: crate::error::Applied::No,
        })
    })
}

pub(super) fn say_leaving(core: &CoreNode, why: &str) {
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    tracing::info!(
        target: "lattice_rdzv::node",
        "`{}` tells the others of run `{}` that it is about to leave{why}", core.name(), core.run_id()
    );
}
