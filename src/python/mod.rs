//! The native module `lattice_rdzv._core`. It converts values, releases the GIL, and forwards calls. It decides
//! nothing. Its interface is `python/lattice_rdzv/_core.pyi`.
//!
//! Every call of a node or a store is a [`calls::Call`], and no native thread ever calls into Python. The state of a
//! process is not used in a process that is forked from it ([`runtime::OfProcess`]).

mod calls;
mod dashboard;
mod errors;
mod joined;
mod leaving;
mod logs;
mod members;
mod node;
mod operate;
mod recorder;
mod relay;
mod runtime;
mod seconds;
mod served;
mod server;
mod settings;
mod signals;
mod status;
mod store;
mod values;
mod world;

/// The native core, converted and forwarded.
#[pyo3::pymodule]
mod _core {
    use pyo3::prelude::*;

    use super::seconds::duration;
    #[pymodule_export]
    use super::{
        calls::{Call, Completions},
        dashboard::Dashboard,
        node::Node,
        server::Server,
        settings::Settings,
        status::StatusWatch,
        store::Store,
        values::{Change, Closed, Member},
        world::World,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::runtime::refuse_subinterpreter(module.py())?;
        super::runtime::watch_forks()?;
        super::runtime::find_main_thread(module.py())?;
        super::recorder::record();
        super::errors::resolve(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// What the service reports about itself, as JSON.
    #[pyfunction]
    #[pyo3(signature = (settings, *, timeout_seconds = 5.0))]
    fn probe(py: Python<'_>, settings: &Settings, timeout_seconds: f64) -> PyResult<String> {
        super::status::probe(py, settings, duration(timeout_seconds)?)
    }

    /// Why a node with these settings would have no lifelines on this machine; `None` if it would have them.
    #[pyfunction]
    fn lifelines_absence(settings: &Settings) -> Option<String> {
        crate::lifeline::absence(&settings.core).map(|absence| absence.to_string())
    }

    /// The status of the run, as JSON.
    #[pyfunction]
    #[pyo3(signature = (settings, *, timeout_seconds = 5.0, names = None, or_unreachable = false))]
    fn status(
        settings: &Settings,
        timeout_seconds: f64,
        names: Option<Vec<String>>,
        or_unreachable: bool,
    ) -> PyResult<Call> {
        Ok(super::status::run_status(
            settings,
            duration(timeout_seconds)?,
            names.unwrap_or_default(),
            or_unreachable,
        ))
    }

    /// The status of each run of the tenant, as a JSON list.
    #[pyfunction]
    #[pyo3(signature = (settings, *, timeout_seconds = 5.0))]
    fn runs(settings: &Settings, timeout_seconds: f64) -> PyResult<Call> {
        Ok(super::status::runs(settings, duration(timeout_seconds)?))
    }

    /// Closes a run without joining it.
    #[pyfunction]
    #[pyo3(signature = (settings, outcome, *, by, why = "", timeout_seconds = 5.0))]
    fn close_run(
        settings: &Settings,
        outcome: &str,
        by: &str,
        why: &str,
        timeout_seconds: f64,
    ) -> PyResult<Call> {
        let limit = duration(timeout_seconds)?;
        super::operate::close_run(settings, outcome, by.to_owned(), why.to_owned(), limit)
    }

    /// Requests that a node leaves its run as on SIGTERM.
    #[pyfunction]
    #[pyo3(signature = (settings, node, *, by, why = "", timeout_seconds = 5.0))]
    fn drain_node(
        settings: &Settings,
        node: &str,
        by: &str,
        why: &str,
        timeout_seconds: f64,
    ) -> PyResult<Call> {
        let limit = duration(timeout_seconds)?;
        super::operate::drain_node(settings, node.to_owned(), by.to_owned(), why.to_owned(), limit)
    }

    /// Asks the coordinator whether a node is dead. With `force`, declares it dead.
    #[pyfunction]
    #[pyo3(signature = (settings, node, *, by, why = "", force = false, timeout_seconds = 5.0))]
    fn report_lost(
        settings: &Settings,
        node: &str,
        by: &str,
        why: &str,
        force: bool,
        timeout_seconds: f64,
    ) -> PyResult<Call> {
        let limit = duration(timeout_seconds)?;
        super::operate::report_lost(settings, node.to_owned(), by.to_owned(), why.to_owned(), force, limit)
    }

    /// Identifies this process: its pid, and the number of forks between it and the process that imported this module.
    #[pyfunction]
    fn process_identity() -> (u32, u32) {
        super::runtime::process_identity()
    }

    /// Waits for log records: level (as in `logging`), target, message, and the run, the node and the round, if they are
    /// known.
    #[pyfunction]
    #[pyo3(signature = (*, timeout_seconds))]
    fn log_records(py: Python<'_>, timeout_seconds: f64) -> PyResult<Vec<super::logs::Entry>> {
        super::recorder::fetch(py, duration(timeout_seconds)?)
    }

    /// Makes the allocator return each large block to the system when it is freed.
    #[pyfunction]
    fn return_large_blocks() {
        crate::server::return_large_blocks();
    }

    /// Sets the lowest level that is recorded.
    #[pyfunction]
    fn log_level(level: i32) {
        super::recorder::set_level(level);
    }

    /// A non-blocking descriptor for `signal.set_wakeup_fd`.
    #[pyfunction]
    fn signal_descriptor(py: Python<'_>, forward_to: i32) -> PyResult<i32> {
        super::signals::descriptor(py, forward_to)
    }

    /// Ends the pending calls of other threads. From now on only this thread may call.
    #[pyfunction]
    fn end_calls() {
        super::runtime::end_calls();
    }

    /// Leaves the runs of all nodes of this process, at the same time.
    #[pyfunction]
    #[pyo3(signature = (*, timeout_seconds))]
    fn leave_all(py: Python<'_>, timeout_seconds: f64) -> PyResult<()> {
        super::leaving::leave_all(py, duration(timeout_seconds)?)
    }

    /// Stops the runtime of this process (at most 2 s) and ends pending calls.
    #[pyfunction]
    fn shutdown(py: Python<'_>) {
        super::runtime::shutdown(py);
    }
}
