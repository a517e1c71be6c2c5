//! The native module `lattice_rdzv._core`: converts, releases the GIL, forwards; it decides nothing. Its interface is
//! `python/lattice_rdzv/_core.pyi`.
//!
//! Every call of a node or a store is a [`calls::Call`], and no native thread ever calls into Python. What belongs to a process is
//! not touched in one that is forked from it ([`runtime::OfProcess`]).

mod calls;
mod errors;
mod logs;
mod members;
mod node;
mod runtime;
mod seconds;
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
        node::Node,
        server::Server,
        settings::Settings,
        store::Store,
        values::{Change, Closed, Member},
        world::World,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::runtime::refuse_subinterpreter(module.py())?;
        super::runtime::watch_forks()?;
        super::runtime::find_main_thread(module.py())?;
        super::logs::record();
        super::errors::resolve(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// What the service says of itself, as JSON.
    #[pyfunction]
    #[pyo3(signature = (settings, *, timeout_seconds = 5.0))]
    fn probe(py: Python<'_>, settings: &Settings, timeout_seconds: f64) -> PyResult<String> {
        super::status::probe(py, settings, duration(timeout_seconds)?)
    }

    /// The run as the service has it, as JSON.
    #[pyfunction]
    #[pyo3(signature = (settings, *, timeout_seconds = 5.0))]
    fn status(settings: &Settings, timeout_seconds: f64) -> PyResult<Call> {
        Ok(super::status::run_status(settings, duration(timeout_seconds)?))
    }

    /// Identifies this process: its pid, and how many forks lie between it and the process that imported this module.
    #[pyfunction]
    fn process_identity() -> (u32, u32) {
        super::runtime::process_identity()
    }

    /// Waits for log records: level (as in `logging`), target, message.
    #[pyfunction]
    #[pyo3(signature = (*, timeout_seconds))]
    fn log_records(py: Python<'_>, timeout_seconds: f64) -> PyResult<Vec<(i32, String, String)>> {
        super::logs::fetch(py, duration(timeout_seconds)?)
    }

    /// The least level that is recorded.
    #[pyfunction]
    fn log_level(level: i32) {
        super::logs::set_level(level);
    }

    /// A non-blocking descriptor for `signal.set_wakeup_fd`.
    #[pyfunction]
    fn signal_descriptor(py: Python<'_>, forward_to: i32) -> PyResult<i32> {
        super::signals::descriptor(py, forward_to)
    }

    /// Ends the pending calls of other threads. From here on only this thread may call.
    #[pyfunction]
    fn end_calls() {
        super::runtime::end_calls();
    }

    /// Leaves the runs of all nodes of this process, at the same time.
    #[pyfunction]
    #[pyo3(signature = (*, timeout_seconds))]
    fn leave_all(py: Python<'_>, timeout_seconds: f64) -> PyResult<()> {
        super::members::leave_all(py, duration(timeout_seconds)?)
    }

    /// Stops the runtime of this process (at most 2 s) and ends pending calls.
    #[pyfunction]
    fn shutdown(py: Python<'_>) {
        super::runtime::shutdown(py);
    }
}
