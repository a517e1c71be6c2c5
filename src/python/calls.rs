//! `Call`, a call of the core that Python waits for, and `Completions`, which notifies an event loop that calls are
//! done.
//!
//! Problem: the synchronous API blocks a thread for each call. An event loop has one thread for all of its calls, must
//! be able to cancel each of them separately, and cannot be called from the threads of the runtime. Design: each method
//! that waits returns a `Call`, which has not begun. [`Call::wait`] runs it in the caller's thread. [`Call::start`]
//! runs it as a task, which stores its result in the call, its number in a queue, and one byte in a descriptor that the
//! event loop watches. The loop's thread fetches the numbers and converts the results to Python objects.
//!
//! [`Call::cancel`] ends a wait before it returns and affects no other call. A write continues until its end, because a
//! partial write cannot be undone. A result that was not fetched is dropped, so an item of a queue stays with its node.

use std::{
    future::poll_fn,
    io::{Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::net::UnixStream,
    },
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use pyo3::{IntoPyObjectExt as _, exceptions::PyRuntimeError, prelude::*};
use tokio::task::AbortHandle;

use super::runtime::{OfProcess, Process, block_on};
use crate::lock::lock;

/// Makes the result for Python, in a thread of Python.
type Outcome = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;
type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A call of the core. `wait` or `start` begins it, once.
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Call {
    own: OfProcess<Own>,
}

struct Own {
    on_cancel: OnCancel,
    progress: Arc<Mutex<Progress>>,
    task: OnceLock<AbortHandle>,
}

/// What happens to a call that has begun when it is canceled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnCancel {
    End,
    Continue,
}

enum Progress {
    Pending(Work),
    /// A write that was canceled.
    Abandoned(Work),
    Done(Outcome),
    /// The result was fetched, or the call was canceled.
    Over,
}

/// Sets the progress and returns the previous one, which is to be dropped without the lock.
fn replace(progress: &Mutex<Progress>, new: Progress) -> Progress {
    std::mem::replace(&mut lock(progress), new)
}

impl Call {
    /// A wait, which ends when it is canceled. `deliver` makes the result, in a thread of Python.
    pub(super) fn wait_for<T, R>(
        work: impl Future<Output = T> + Send + 'static,
        deliver: impl FnOnce(Python<'_>, T) -> PyResult<R> + Send + 'static,
    ) -> Self
    where
        T: Send + 'static,
        R: for<'py> IntoPyObject<'py>,
    {
        Self::new(OnCancel::End, work, deliver)
    }

    /// A write, which continues until its end when it is canceled.
    pub(super) fn write<T, R>(
        work: impl Future<Output = T> + Send + 'static,
        deliver: impl FnOnce(Python<'_>, T) -> PyResult<R> + Send + 'static,
    ) -> Self
    where
        T: Send + 'static,
        R: for<'py> IntoPyObject<'py>,
    {
        Self::new(OnCancel::Continue, work, deliver)
    }

    fn new<T, R>(
        on_cancel: OnCancel,
        work: impl Future<Output = T> + Send + 'static,
        deliver: impl FnOnce(Python<'_>, T) -> PyResult<R> + Send + 'static,
    ) -> Self
    where
        T: Send + 'static,
        R: for<'py> IntoPyObject<'py>,
    {
        let work = async move {
            let end = work.await;
            let outcome: Outcome = Box::new(move |py| deliver(py, end)?.into_py_any(py));
            outcome
        };
        let progress = Arc::new(Mutex::new(Progress::Pending(Box::pin(work))));
        Self { own: OfProcess::new(Own { on_cancel, progress, task: OnceLock::new() }) }
    }
}

/// Continues the work of a call until there is a result, or the call was canceled.
fn poll(progress: &Mutex<Progress>, context: &mut Context<'_>) -> Poll<()> {
    let mut progress = lock(progress);
    let (work, abandoned) = match &mut *progress {
        Progress::Pending(work) => (work, false),
        Progress::Abandoned(work) => (work, true),
        Progress::Done(_) | Progress::Over => return Poll::Ready(()),
    };
    work.as_mut().poll(context).map(|outcome| {
        *progress = if abandoned { Progress::Over } else { Progress::Done(outcome) };
    })
}

#[pymethods]
impl Call {
    /// Runs the call in this thread and returns its result.
    fn wait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let progress = &self.own.get()?.progress;
        match block_on(py, poll_fn(|context| poll(progress, context))) {
            Ok(()) => self.result(py),
            Err(error) => {
                drop(replace(progress, Progress::Over));
                Err(error)
            }
        }
    }

    /// Runs the call as a task, and returns the number that `completions` will have when it is done.
    fn start(&self, py: Python<'_>, completions: &Completions) -> PyResult<u64> {
        let own = self.own.get()?;
        let queue = Arc::clone(completions.queue.get()?);
        let mut ongoing = Process::current().begin(py)?;
        let handle = ongoing.handle.clone();
        let number = queue.next.fetch_add(1, Ordering::Relaxed);
        let progress = Arc::clone(&own.progress);
        let task = handle.spawn(async move {
            tokio::select! {
                biased;
                () = poll_fn(|context| poll(&progress, context)) => queue.push(number),
                // At exit, the event loop may not be notified of the end of a call.
                () = ongoing.ending() => drop(replace(&progress, Progress::Over)),
            }
        });
        // A second `start` of a call finds it in progress, and its task ends with the first.
        let _ = own.task.set(task.abort_handle());
        Ok(number)
    }

    /// The result of a call that is done. Can be fetched once.
    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match replace(&self.own.get()?.progress, Progress::Over) {
            Progress::Done(outcome) => outcome(py),
            Progress::Pending(_) | Progress::Abandoned(_) | Progress::Over => {
                Err(PyRuntimeError::new_err("the call is not done, was cancelled, or its result was fetched"))
            }
        }
    }

    /// Drops the result. Ends the call if it is a wait; a write that has begun continues.
    fn cancel(&self) {
        let Some(own) = self.own.in_this_process() else { return };
        let task = own.task.get();
        // A thread of the runtime may be polling the work right now. Then this waits as long as a poll takes, which
        // does not need Python. When this returns, the resources of the call are released.
        let mut progress = lock(&own.progress);
        *progress = match std::mem::replace(&mut *progress, Progress::Over) {
            Progress::Pending(work) | Progress::Abandoned(work)
                if own.on_cancel == OnCancel::Continue && task.is_some() =>
            {
                Progress::Abandoned(work)
            }
            _ => Progress::Over,
        };
        if let (Some(task), Progress::Over) = (task, &*progress) {
            task.abort();
        }
    }
}

/// Notifies an event loop of calls that are done.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Completions {
    queue: OfProcess<Arc<Queue>>,
}

/// Both ends of the descriptor stay open until the last call has ended.
#[derive(Debug)]
struct Queue {
    done: Mutex<Vec<u64>>,
    next: AtomicU64,
    read: UnixStream,
    write: UnixStream,
}

impl Queue {
    fn push(&self, number: u64) {
        let mut done = lock(&self.done);
        if done.is_empty() {
            // Its reader fetches all numbers at once, so one byte is sufficient until then, and there is always room
            // for it.
            let _ = (&self.write).write(&[0]);
        }
        done.push(number);
    }

    fn fetch(&self) -> Vec<u64> {
        let mut bytes = [0; 64];
        while matches!((&self.read).read(&mut bytes), Ok(1..)) {}
        std::mem::take(&mut lock(&self.done))
    }
}

#[pymethods]
impl Completions {
    #[new]
    fn new() -> PyResult<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let queue = Queue { done: Mutex::default(), next: AtomicU64::new(0), read, write };
        Ok(Self { queue: OfProcess::new(Arc::new(queue)) })
    }

    /// The descriptor, which is readable while there are numbers to fetch.
    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.queue.get()?.read.as_raw_fd())
    }

    /// The numbers of the calls that were done since the last time.
    fn fetch(&self) -> PyResult<Vec<u64>> {
        Ok(self.queue.get()?.fetch())
    }
}
