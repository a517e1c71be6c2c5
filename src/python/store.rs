//! `Store`: a key-value space.

use std::{sync::Arc, time::Duration};

use pyo3::{prelude::*, types::PyMemoryView};
use tokio::{sync::OnceCell, time::Instant};

use super::{calls::Call, errors::store_error, joined::Joined, runtime::OfProcess, seconds::limit};
use crate::{
    error::Result,
    store::{Item, Store as CoreStore},
};

/// A key-value space. Keys are text, and values are bytes. Each write is applied once.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Store {
    own: OfProcess<Arc<Space>>,
}

/// The store of a round, or the run-wide store, which is known after the run has begun.
#[derive(Debug)]
struct Space {
    joined: Arc<Joined>,
    core: OnceCell<Arc<CoreStore>>,
}

impl Space {
    /// The core's store, and the remaining time.
    async fn core(&self, limit: Duration) -> Result<(&CoreStore, Duration)> {
        let began = Instant::now();
        let core = self.core.get_or_try_init(|| self.joined.core.run_store(limit)).await?;
        Ok((core, limit.saturating_sub(began.elapsed())))
    }
}

/// A value that Python passes: any object with the buffer protocol.
struct Value(Vec<u8>);

impl<'a, 'py> FromPyObject<'a, 'py> for Value {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = value.cast::<pyo3::types::PyBytes>() {
            return Ok(Self(bytes.as_bytes().to_vec()));
        }
        // `pyo3::buffer` needs Python 3.11 in the stable ABI.
        PyMemoryView::from(&value)?.call_method0("tobytes")?.extract().map(Self)
    }
}

impl Store {
    /// A round's store.
    pub(super) fn of_round(joined: Arc<Joined>, core: Arc<CoreStore>) -> Self {
        Self { own: OfProcess::new(Arc::new(Space { joined, core: OnceCell::new_with(Some(core)) })) }
    }

    /// The run-wide store. Its first call waits until the run has begun.
    pub(super) fn of_run(joined: Arc<Joined>) -> Self {
        Self { own: OfProcess::new(Arc::new(Space { joined, core: OnceCell::new() })) }
    }

    fn space(&self) -> PyResult<Arc<Space>> {
        self.own.get().map(Arc::clone)
    }
}

/// A call of a store, of the kind `wait_for` or `write`, with a closure that receives the core's store and the
/// remaining time.
macro_rules! call {
    ($kind:ident, $store:ident, $timeout:expr, |$core:ident, $left:ident| $work:expr) => {
        call!($kind, $store, $timeout, |$core, $left| $work, |_, end| end)
    };
    ($kind:ident, $store:ident, $timeout:expr, |$core:ident, $left:ident| $work:expr, |$py:tt, $end:ident| $result:expr) => {{
        let (space, limit) = ($store.space()?, limit($timeout)?);
        let work = async move {
            let ($core, $left) = space.core(limit).await?;
            $work.await
        };
        Ok(Call::$kind(work, |$py, end: Result<_>| {
            let $end = end.map_err(store_error)?;
            Ok($result)
        }))
    }};
}

#[pymethods]
impl Store {
    #[pyo3(signature = (key, value, *, timeout_seconds = 300.0))]
    fn set(&self, key: String, value: Value, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(write, self, timeout_seconds, |core, left| core.set(&key, &value.0, left))
    }

    #[pyo3(signature = (key, *, timeout_seconds = 300.0, until_change = false))]
    fn get(&self, key: String, timeout_seconds: Option<f64>, until_change: bool) -> PyResult<Call> {
        call!(wait_for, self, timeout_seconds, |core, left| core.get(&key, until_change, left))
    }

    #[pyo3(signature = (keys, *, timeout_seconds = 300.0))]
    fn get_now(&self, keys: Vec<String>, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(wait_for, self, timeout_seconds, |core, left| core.get_now(&keys, left))
    }

    #[pyo3(signature = (keys, *, timeout_seconds = 300.0, until_change = false))]
    fn multi_get(
        &self,
        keys: Vec<String>,
        timeout_seconds: Option<f64>,
        until_change: bool,
    ) -> PyResult<Call> {
        call!(wait_for, self, timeout_seconds, |core, left| core.multi_get(&keys, until_change, left))
    }

    #[pyo3(signature = (items, *, timeout_seconds = 300.0))]
    fn multi_set(&self, items: Vec<(String, Value)>, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let items: Vec<_> = items.into_iter().map(|(key, value)| (key, value.0)).collect();
        call!(write, self, timeout_seconds, |core, left| core.multi_set(&items, left))
    }

    #[pyo3(signature = (key, amount = 1, *, timeout_seconds = 300.0, finished = false))]
    fn add(&self, key: String, amount: i64, timeout_seconds: Option<f64>, finished: bool) -> PyResult<Call> {
        call!(write, self, timeout_seconds, |core, left| core.add(&key, amount, finished, left))
    }

    /// Returns whether it put `desired`, and what the key holds afterwards.
    #[pyo3(signature = (key, expected, desired, *, timeout_seconds = 300.0))]
    fn compare_set(
        &self,
        key: String,
        expected: Value,
        desired: Value,
        timeout_seconds: Option<f64>,
    ) -> PyResult<Call> {
        call!(write, self, timeout_seconds, |core, left| core.swap(&key, &expected.0, &desired.0, left))
    }

    #[pyo3(signature = (key, value, *, timeout_seconds = 300.0))]
    fn append(&self, key: String, value: Value, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(write, self, timeout_seconds, |core, left| core.append(&key, &value.0, left))
    }

    #[pyo3(signature = (key, *, timeout_seconds = 300.0))]
    fn delete(&self, key: String, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(write, self, timeout_seconds, |core, left| core.delete(&key, left))
    }

    #[pyo3(signature = (keys, *, timeout_seconds = 300.0))]
    fn wait(&self, keys: Vec<String>, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(wait_for, self, timeout_seconds, |core, left| core.wait(&keys, left))
    }

    #[pyo3(signature = (keys, *, timeout_seconds = 300.0))]
    fn check(&self, keys: Vec<String>, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(wait_for, self, timeout_seconds, |core, left| core.check(&keys, left))
    }

    #[pyo3(signature = (*, timeout_seconds = 300.0))]
    fn count(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(wait_for, self, timeout_seconds, |core, left| core.count(left))
    }

    #[pyo3(signature = (*, timeout_seconds = 300.0))]
    fn list(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(wait_for, self, timeout_seconds, |core, left| core.list(left))
    }

    #[pyo3(signature = (key, value, *, timeout_seconds = 300.0))]
    fn queue_push(&self, key: String, value: Value, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(write, self, timeout_seconds, |core, left| core.queue_push(&key, &value.0, left))
    }

    /// The item stays with its node until the result is fetched.
    #[pyo3(signature = (key, *, block = true, timeout_seconds = 300.0))]
    fn queue_pop(&self, key: String, block: bool, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(wait_for, self, timeout_seconds, |core, left| core.queue_take(&key, block, left), |py, item| {
            if item.is_some() {
                // A signal may have arrived in the same tick. If its handler raises, the next pop returns this item.
                py.check_signals()?;
            }
            item.map(Item::accept)
        })
    }

    /// Keeps a value that was popped but did not reach its receiver, for the node's next pop.
    fn queue_keep(&self, key: String, value: Value) -> PyResult<Call> {
        call!(wait_for, self, None, |core, _left| async { core.queue_keep(&key, &value.0) })
    }

    #[pyo3(signature = (key, *, timeout_seconds = 300.0))]
    fn queue_len(&self, key: String, timeout_seconds: Option<f64>) -> PyResult<Call> {
        call!(wait_for, self, timeout_seconds, |core, left| core.queue_len(&key, left))
    }
}
