//! `Store`: a key-value space.

#![expect(
    clippy::needless_pass_by_value,
    reason = "a list from Python arrives as a value, to be read without the GIL"
)]

use std::sync::Arc;

use pyo3::{prelude::*, pybacked::PyBackedBytes};

use super::{
    errors::store_error,
    node::Joined,
    runtime::{Interrupt, OfProcess, block_on},
    seconds::duration,
};
use crate::{
    error::Result,
    store::{Item, Store as CoreStore},
};

/// A key-value space. Keys are text, values bytes; every write applies once, whatever the network does.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Store {
    own: OfProcess<Own>,
}

#[derive(Debug)]
struct Own {
    core: Arc<CoreStore>,
    interrupt: Arc<Interrupt>,
}

impl Store {
    pub(super) fn new(core: Arc<CoreStore>, joined: &Joined) -> Self {
        Self { own: OfProcess::new(Own { core, interrupt: Arc::clone(&joined.interrupt) }) }
    }

    fn core(&self) -> PyResult<&CoreStore> {
        Ok(&self.own.get()?.core)
    }

    /// A wait, which `Node.interrupt` ends.
    fn wait<T: Send>(&self, py: Python<'_>, call: impl Future<Output = Result<T>> + Send) -> PyResult<T> {
        block_on(py, Some(&self.own.get()?.interrupt), call)?.map_err(store_error)
    }
}

/// A call that waits for the service only.
fn call<T: Send>(py: Python<'_>, call: impl Future<Output = Result<T>> + Send) -> PyResult<T> {
    block_on(py, None, call)?.map_err(store_error)
}

#[pymethods]
impl Store {
    #[pyo3(signature = (key, value, *, timeout_seconds = 300.0))]
    fn set(&self, py: Python<'_>, key: &str, value: &[u8], timeout_seconds: f64) -> PyResult<()> {
        call(py, self.core()?.set(key, value, duration(timeout_seconds)?))
    }

    /// Waits for the key.
    #[pyo3(signature = (key, *, timeout_seconds = 300.0, until_change = false))]
    fn get(
        &self,
        py: Python<'_>,
        key: &str,
        timeout_seconds: f64,
        until_change: bool,
    ) -> PyResult<Option<Vec<u8>>> {
        self.wait(py, self.core()?.get(key, until_change, duration(timeout_seconds)?))
    }

    /// What the keys hold now; `None` where there is nothing.
    #[pyo3(signature = (keys, *, timeout_seconds = 300.0))]
    fn get_now(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        timeout_seconds: f64,
    ) -> PyResult<Vec<Option<Vec<u8>>>> {
        call(py, self.core()?.get_now(&keys, duration(timeout_seconds)?))
    }

    /// Waits for all of the keys.
    #[pyo3(signature = (keys, *, timeout_seconds = 300.0, until_change = false))]
    fn multi_get(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        timeout_seconds: f64,
        until_change: bool,
    ) -> PyResult<Vec<Option<Vec<u8>>>> {
        self.wait(py, self.core()?.multi_get(&keys, until_change, duration(timeout_seconds)?))
    }

    #[pyo3(signature = (items, *, timeout_seconds = 300.0))]
    fn multi_set(
        &self,
        py: Python<'_>,
        items: Vec<(String, PyBackedBytes)>,
        timeout_seconds: f64,
    ) -> PyResult<()> {
        let items: Vec<_> = items.into_iter().map(|(key, value)| (key, value.to_vec())).collect();
        call(py, self.core()?.multi_set(&items, duration(timeout_seconds)?))
    }

    /// Adds to a counter and returns its new value.
    #[pyo3(signature = (key, amount = 1, *, timeout_seconds = 300.0, finished = false))]
    fn add(
        &self,
        py: Python<'_>,
        key: &str,
        amount: i64,
        timeout_seconds: f64,
        finished: bool,
    ) -> PyResult<i64> {
        call(py, self.core()?.add(key, amount, finished, duration(timeout_seconds)?))
    }

    /// Puts `desired` if the key holds `expected`.
    #[pyo3(signature = (key, expected, desired, *, timeout_seconds = 300.0))]
    fn compare_set(
        &self,
        py: Python<'_>,
        key: &str,
        expected: &[u8],
        desired: &[u8],
        timeout_seconds: f64,
    ) -> PyResult<Vec<u8>> {
        call(py, self.core()?.compare_set(key, expected, desired, duration(timeout_seconds)?))
    }

    #[pyo3(signature = (key, value, *, timeout_seconds = 300.0))]
    fn append(&self, py: Python<'_>, key: &str, value: &[u8], timeout_seconds: f64) -> PyResult<()> {
        call(py, self.core()?.append(key, value, duration(timeout_seconds)?))
    }

    #[pyo3(signature = (key, *, timeout_seconds = 300.0))]
    fn delete(&self, py: Python<'_>, key: &str, timeout_seconds: f64) -> PyResult<bool> {
        call(py, self.core()?.delete(key, duration(timeout_seconds)?))
    }

    /// Named `wait_for_keys` because `wait` is this module's way to run a call.
    #[pyo3(name = "wait", signature = (keys, *, timeout_seconds = 300.0))]
    fn wait_for_keys(&self, py: Python<'_>, keys: Vec<String>, timeout_seconds: f64) -> PyResult<()> {
        self.wait(py, self.core()?.wait(&keys, duration(timeout_seconds)?))
    }

    #[pyo3(signature = (keys, *, timeout_seconds = 300.0))]
    fn check(&self, py: Python<'_>, keys: Vec<String>, timeout_seconds: f64) -> PyResult<bool> {
        call(py, self.core()?.check(&keys, duration(timeout_seconds)?))
    }

    #[pyo3(signature = (*, timeout_seconds = 300.0))]
    fn count(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<u64> {
        call(py, self.core()?.count(duration(timeout_seconds)?))
    }

    #[pyo3(signature = (*, timeout_seconds = 300.0))]
    fn list(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<Vec<String>> {
        call(py, self.core()?.list(duration(timeout_seconds)?))
    }

    #[pyo3(signature = (key, value, *, timeout_seconds = 300.0))]
    fn queue_push(&self, py: Python<'_>, key: &str, value: &[u8], timeout_seconds: f64) -> PyResult<()> {
        call(py, self.core()?.queue_push(key, value, duration(timeout_seconds)?))
    }

    #[pyo3(signature = (key, *, block = true, timeout_seconds = 300.0))]
    fn queue_pop(
        &self,
        py: Python<'_>,
        key: &str,
        block: bool,
        timeout_seconds: f64,
    ) -> PyResult<Option<Vec<u8>>> {
        let item = self.wait(py, self.core()?.queue_take(key, block, duration(timeout_seconds)?))?;
        if item.is_some() {
            // A signal may have come in the same tick. If its handler raises, the next pop returns this item.
            py.check_signals()?;
        }
        Ok(item.map(Item::accept))
    }

    /// Keeps a value that `queue_pop` returned and that did not reach its receiver, for the next `queue_pop`.
    fn queue_keep(&self, key: &str, value: &[u8]) -> PyResult<()> {
        self.core()?.queue_keep(key, value).map_err(store_error)
    }

    #[pyo3(signature = (key, *, timeout_seconds = 300.0))]
    fn queue_len(&self, py: Python<'_>, key: &str, timeout_seconds: f64) -> PyResult<u64> {
        call(py, self.core()?.queue_len(key, duration(timeout_seconds)?))
    }
}
