//! `Node`: one node's session in a run.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pyo3::prelude::*;

use super::{
    calls::Call,
    joined::{AwaitsWorld, Joined},
    leaving, operate,
    runtime::{OfProcess, Process, in_runtime},
    seconds::{duration, optional_duration},
    settings::Settings,
    signals,
    store::Store,
    values::{Change, Closed},
    world::World,
};
use crate::{
    Error,
    discovery::SystemLookup,
    lifeline,
    node::{Node as CoreNode, Place, Search, check_service, local_address},
    protocol::keys::RunKeys,
    run::Entropy,
};

/// The minimum time for leaving, if closing used all the time that there was.
const LEAST_LEAVE: Duration = Duration::from_millis(100);

/// One node's session in a run.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Node {
    joined: OfProcess<Arc<Joined>>,
}

#[pymethods]
impl Node {
    /// Connects, acquires a lease, and writes this node's record, which requests a world. If the result is not fetched,
    /// the node leaves again.
    #[staticmethod]
    #[pyo3(signature = (settings, *, port = None, line_seconds = None))]
    fn join(settings: &Settings, port: Option<u16>, line_seconds: Option<f64>) -> PyResult<Call> {
        let Settings { core, environment, .. } = settings;
        let (core, environment) = (core.clone(), environment.clone());
        let line_interval = line_seconds.map(duration).transpose()?;
        let work = async move {
            let entropy = Entropy::from_system();
            let keys = RunKeys::new(&core.run.tenant, &core.run.run_id);
            let search = Search::of_node(&core, &environment, &keys, &entropy);
            let (found, host) = search.connect_or_host().await?;
            check_service(&core, &keys, &found, &entropy).await?;
            let address = local_address(&core, &found.source, &SystemLookup).await;
            let lifelines = lifeline::open(&core);
            let place = Place { address, port: port.unwrap_or(0), host, lifelines };
            let mut core = CoreNode::join_found(found, core, entropy, place).await?;
            if let Some(interval) = line_interval {
                core.log_waiting_every(interval);
            }
            let joined = Arc::new(Joined::new(core));
            Process::current().members.add(&joined);
            signals::follow_drain(&joined.core);
            Ok::<_, Error>(Self { joined: OfProcess::new(joined) })
        };
        Ok(Call::write(work, |_, node| Ok(node?)))
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

    /// 1 if the world that was returned last is about to be replaced or was closed without success, otherwise 0.
    fn num_nodes_waiting(&self, py: Python<'_>) -> PyResult<u32> {
        let Some(joined) = self.joined.in_this_process() else { return Ok(0) };
        Process::current().admit(py)?;
        Ok(joined.core.num_nodes_waiting())
    }

    #[getter]
    fn change(&self, py: Python<'_>) -> PyResult<Option<Change>> {
        Ok(self.polled(py)?.core.change().map(Change::from))
    }

    #[pyo3(signature = (*, timeout_seconds = None))]
    fn wait_change(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let limit = optional_duration(timeout_seconds)?;
        let joined = self.joined()?;
        let work = async move { joined.core.wait_change(limit).await };
        Ok(Call::wait_for(work, |_, change| Ok(change.map(Change::from))))
    }

    /// How the run was closed. `None` while it is open, as far as this node knows.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<Option<Closed>> {
        Ok(self.polled(py)?.core.subscribe().borrow().closed.clone().map(Closed::from))
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

    /// The names of the members of this node's world that are alive and have not entered their exit barrier. Empty
    /// after this node entered another world, or after later rounds replaced the plan.
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

    /// Asks the coordinator whether the member with this rank of the world that was returned last is dead.
    #[pyo3(signature = (rank, *, why = "", timeout_seconds = 5.0))]
    fn suspect(&self, rank: u32, why: &str, timeout_seconds: f64) -> PyResult<Call> {
        let limit = duration(timeout_seconds)?;
        let (joined, why) = (self.joined()?, why.to_owned());
        let work = async move { joined.core.suspect(rank, &why, limit).await };
        Ok(Call::write(work, |_, answer| Ok(operate::words(answer?))))
    }

    /// Reports in the background that the program trains in the world that was returned last.
    fn report_resumed(&self, py: Python<'_>) -> PyResult<()> {
        let Some(resumption) = self.joined.get()?.core.resumption() else { return Ok(()) };
        in_runtime(py, || {
            tokio::spawn(resumption.write());
            Ok(())
        })
    }

    /// Leaves the run and revokes the lease.
    #[pyo3(signature = (*, timeout_seconds = None))]
    fn leave(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let limit = optional_duration(timeout_seconds)?;
        let joined = self.joined()?;
        Ok(Call::write(async move { joined.core.leave(limit).await }, |_, done| Ok(done)))
    }

    /// Closes the run for good, then leaves. Returns whether the run is closed, by this node or another one.
    #[pyo3(signature = (outcome, *, why = "", timeout_seconds = None))]
    fn close(&self, outcome: &str, why: &str, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let outcome = operate::outcome_of(outcome)?;
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

    /// Starts to leave, and returns at once. The exit hook waits until the node has left.
    fn abandon(&self) {
        if let Some(joined) = self.joined.in_this_process() {
            leaving::abandon(Process::current(), joined);
        }
    }

    /// Makes the relay mark this node as leaving when one of these signals arrives. Replaces earlier signals.
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
    fn state(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.polled(py)?.core.subscribe().borrow().state.as_str())
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

    /// The node, for a value that threads may poll until the interpreter exits.
    fn polled(&self, py: Python<'_>) -> PyResult<&Arc<Joined>> {
        Process::current().admit(py)?;
        self.joined.get()
    }
}

impl Drop for Node {
    /// A node that no variable refers to any more can neither train nor leave by itself.
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Runs a call of the core that has no time limit by itself.
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
