//! The tokio runtime of this process, and how a Python thread waits for tasks in it.
//!
//! Problem: threads do not survive a fork. A child that used its parent's runtime would wait forever, and dropping that
//! runtime would join threads that do not exist. A thread that waits without checking for signals does not react to
//! Ctrl-C. And work that continues while the interpreter exits crashes it.
//!
//! Design: the state of a process is stored in one slot that is keyed by the identity of the process. A forked child
//! finds another identity there, creates its own state, and never uses that of the parent again, not even its locks.
//! Waits are divided into ticks without the GIL, with a check for signals between them. [`shutdown`] ends every pending
//! call, waits until each has returned to Python, and only then stops the runtime. No call begins after it.
//!
//! Only daemon threads can still call while the interpreter exits. Python before 3.14 ends such a thread by unwinding
//! its stack as soon as it requests the GIL, which aborts the process if a frame of this library is on that stack.
//! Therefore this library executes no Python code in such a thread: it raises `SystemExit`, a built-in, and parks a
//! thread that calls again. Values that a program polls do so, too, because Python 3.10 itself may crash while a daemon
//! thread still runs Python code: with a plain property instead of `run.change`, 9 of 600 exits crashed.

use std::{
    cell::Cell,
    pin::pin,
    sync::{
        Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use pyo3::{
    exceptions::{PyImportError, PySystemExit},
    prelude::*,
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::watch,
    time::sleep,
};

use super::{
    errors::{LeftError, RendezvousError},
    logs::Queue,
    members::Members,
    relay::Relay,
};
use crate::lock::lock;

/// The time between two checks for signals. A person notices 100 ms.
const TICK: Duration = Duration::from_millis(50);

/// The time limit of `shutdown`.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// The number of worker threads. Keep-alives, watches, and a coordinator mostly wait, and the machine is there for the
/// training.
const WORKERS: usize = 2;

/// How long the thread for lookups exists.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The number of forks between this process and the one that imported the module.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Identifies this process among its ancestors. The pid alone is not sufficient, because in a new pid namespace a child
/// of pid 1 can be pid 1 again.
pub(super) type Identity = (u32, u32);

pub(super) fn process_identity() -> Identity {
    (std::process::id(), FORKS.load(Ordering::Relaxed))
}

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Counts forks from now on. Idempotent.
pub(super) fn watch_forks() -> PyResult<()> {
    static REGISTERED: OnceLock<i32> = OnceLock::new();
    let error = *REGISTERED.get_or_init(|| {
        // SAFETY: the handler only increments an atomic, which is async-signal-safe, and Python never unloads the
        // library that holds it.
        unsafe { libc::pthread_atfork(None, None, Some(count_fork)) }
    });
    if error == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(error).into()) }
}

/// The thread that was Python's main thread at the import.
static MAIN_THREAD: AtomicU64 = AtomicU64::new(0);

/// Stores the main thread of Python, which is not that of the process if Python is embedded.
pub(super) fn find_main_thread(py: Python<'_>) -> PyResult<()> {
    let ident: Option<u64> =
        py.import("threading")?.call_method0("main_thread")?.getattr("ident")?.extract()?;
    MAIN_THREAD.store(ident.unwrap_or(0), Ordering::Relaxed);
    Ok(())
}

/// The time between two checks for signals in this thread. Python handles signals only in its main thread, so other
/// threads do not check.
pub(super) fn tick() -> Option<Duration> {
    // SAFETY: neither call has preconditions.
    let (id, thread) = unsafe { (libc::gettid(), libc::pthread_self()) };
    // After a fork, the thread that forked is the main thread, and has the process id.
    let may_be_main =
        u32::try_from(id) == Ok(std::process::id()) || MAIN_THREAD.load(Ordering::Relaxed) == thread;
    may_be_main.then_some(TICK)
}

/// Refuses an import outside the main interpreter, because one runtime is shared in a process, and the end of a
/// subinterpreter would stop it.
pub(super) fn refuse_subinterpreter(_: Python<'_>) -> PyResult<()> {
    // SAFETY: the caller is attached to an interpreter, so there is a current one.
    let id = unsafe { pyo3::ffi::PyInterpreterState_GetID(pyo3::ffi::PyInterpreterState_Get()) };
    if id == 0 {
        return Ok(());
    }
    Err(PyImportError::new_err(format!(
        "lattice_rdzv works in the main interpreter only, because all of a process shares its threads; import it there, \
         or in another process, and not in subinterpreter: {id}"
    )))
}

/// The state of one process, which is not used in processes that are forked from it.
#[derive(Debug)]
pub(super) struct Process {
    identity: Identity,
    runtime: Mutex<State>,
    idle: Condvar,
    /// Notified when pending calls must end.
    ending: watch::Sender<()>,
    /// Its log records.
    pub(super) logs: Queue,
    /// Its nodes.
    pub(super) members: Members,
    /// Notifies its nodes of signals.
    pub(super) relay: Relay,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The number of calls that have begun and have not returned to Python.
    calls: usize,
    /// The thread that runs the exit hook. When it is set, no other thread may begin a call.
    exiting: Option<ThreadId>,
}

#[derive(Debug)]
enum Phase {
    /// It was not used yet.
    Unused,
    Running(Runtime),
    Ended,
}

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());

impl Process {
    /// The state of this very process.
    pub(super) fn current() -> &'static Self {
        let identity = process_identity();
        let found = CURRENT.load(Ordering::Acquire);
        // SAFETY: the pointer is null or came from `Box::leak` below, so its target is never freed. It is only shared,
        // and its mutable parts have locks.
        if let Some(process) = unsafe { found.as_ref() }.filter(|process| process.identity == identity) {
            return process;
        }
        let state = State { phase: Phase::Unused, calls: 0, exiting: None };
        let made: *mut Self = Box::leak(Box::new(Self {
            identity,
            runtime: Mutex::new(state),
            idle: Condvar::new(),
            ending: watch::Sender::new(()),
            logs: Queue::default(),
            members: Members::default(),
            relay: Relay::default(),
        }));
        // The thread that loses this race leaks a few hundred bytes, once in a process. A child leaks its parent's
        // state likewise.
        let winner = match CURRENT.compare_exchange(found, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            Err(other) => other,
        };
        // SAFETY: as above. The pointer is not null.
        unsafe { &*winner }
    }

    pub(super) fn begin(&'static self, py: Python<'_>) -> PyResult<Ongoing> {
        self.admit(py)?;
        // Without the GIL, because the first call starts threads.
        py.detach(|| self.enter())?.ok_or_else(|| self.refuse(py))
    }

    /// Refuses this thread if another thread runs the exit hook.
    pub(super) fn admit(&self, py: Python<'_>) -> PyResult<()> {
        if self.refuses_this_thread() { Err(self.refuse(py)) } else { Ok(()) }
    }

    /// Whether another thread than this one runs the exit hook.
    fn refuses_this_thread(&self) -> bool {
        lock(&self.runtime).exiting.is_some_and(|exiting| exiting != thread::current().id())
    }

    /// Refuses a call because the interpreter exits. The thread that runs the exit hook gets an error. Any other thread
    /// is a daemon thread: it gets `SystemExit`, which ends it without a traceback, and is parked if it calls again.
    fn refuse(&self, py: Python<'_>) -> PyErr {
        const WHY: &str = "the interpreter is exiting, so lattice_rdzv accepts no more calls";
        thread_local!(static REFUSED: Cell<bool> = const { Cell::new(false) });
        if !self.refuses_this_thread() {
            return RendezvousError::new_err(WHY);
        }
        if REFUSED.replace(true) {
            py.detach(park_for_good);
        }
        PySystemExit::new_err(WHY)
    }

    /// Begins a call. `None` if the runtime has ended.
    pub(super) fn enter(&'static self) -> PyResult<Option<Ongoing>> {
        let mut state = lock(&self.runtime);
        if matches!(state.phase, Phase::Unused) {
            state.phase = Phase::Running(start()?);
        }
        let Phase::Running(runtime) = &state.phase else { return Ok(None) };
        let handle = runtime.handle().clone();
        state.calls += 1;
        Ok(Some(Ongoing { process: self, handle, ending: self.ending.subscribe() }))
    }

    fn end(&self) {
        let deadline = Instant::now() + SHUTDOWN_LIMIT;
        let mut state = lock(&self.runtime);
        state.exiting.get_or_insert_with(|| thread::current().id());
        let phase = std::mem::replace(&mut state.phase, Phase::Ended);
        self.ending.send_replace(());
        self.logs.end();
        while state.calls > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        if let Phase::Running(runtime) = phase {
            runtime.shutdown_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

/// Starts the runtime, and one thread for resolving names, which exists as long. Otherwise tokio would start it when it
/// is needed, and if no more threads were available by then, the lookup would stay in the queue forever.
fn start() -> PyResult<Runtime> {
    reserve_threads(WORKERS + 1).map_err(|error| no_threads(&error))?;
    let build = || {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(WORKERS).thread_name("lattice-rdzv").thread_keep_alive(FOREVER).enable_all();
        let runtime = builder.build()?;
        runtime.spawn_blocking(|| ());
        Ok(runtime)
    };
    // tokio panics if it cannot start its first worker, for example because another process has used up the threads
    // meanwhile.
    let panicked = |_| Err(std::io::Error::from(std::io::ErrorKind::WouldBlock));
    std::panic::catch_unwind(build).unwrap_or_else(panicked).map_err(|error| no_threads(&error))
}

/// Starts this number of threads at once and ends them, because tokio does not report a worker that it could not start.
fn reserve_threads(count: usize) -> std::io::Result<()> {
    let ended = std::sync::RwLock::new(());
    std::thread::scope(|scope| {
        // The threads wait for this lock, so that all of them exist at the same time.
        let _held = ended.write();
        for _ in 0..count {
            std::thread::Builder::new().spawn_scoped(scope, || drop(ended.read()))?;
        }
        Ok(())
    })
}

fn no_threads(error: &std::io::Error) -> PyErr {
    RendezvousError::new_err(format!(
        "the {} threads that this package needs in each process cannot be started; raise the limit of processes \
         (`ulimit -u`, or the pids limit of the container), or start fewer threads: {error}",
        WORKERS + 1
    ))
}

fn park_for_good() {
    loop {
        thread::park();
    }
}

/// A call in progress, from its beginning until it has returned to Python.
pub(super) struct Ongoing {
    process: &'static Process,
    pub(super) handle: Handle,
    ending: watch::Receiver<()>,
}

impl Ongoing {
    /// Ends when the interpreter exits.
    pub(super) async fn ending(&mut self) {
        // The sender is never dropped.
        let _ = self.ending.changed().await;
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        lock(&self.process.runtime).calls -= 1;
        self.process.idle.notify_all();
    }
}

/// The end of a tick.
enum Tick<T> {
    Done(T),
    Ending,
    Nothing,
}

/// Waits for a future without the GIL. The future is dropped when a signal handler raises, and when the interpreter
/// exits. If the future is done, its result takes precedence over a signal.
pub(super) fn block_on<T, F>(py: Python<'_>, future: F) -> PyResult<T>
where
    T: Send,
    F: Future<Output = T> + Send,
{
    let process = Process::current();
    let mut ongoing = process.begin(py)?;
    let handle = ongoing.handle.clone();
    let mut future = pin!(future);
    let tick = tick();
    loop {
        let end = py.detach(|| {
            handle.block_on(async {
                tokio::select! {
                    biased;
                    end = future.as_mut() => Tick::Done(end),
                    () = ongoing.ending() => Tick::Ending,
                    () = sleep(tick.unwrap_or(FOREVER)), if tick.is_some() => Tick::Nothing,
                }
            })
        });
        match end {
            // At exit the nodes leave, which ends the call of a daemon thread with an error that must not be shown.
            Tick::Done(end) if !process.refuses_this_thread() => return Ok(end),
            Tick::Done(_) | Tick::Ending => {
                // The call ends before its thread may be parked, because the exit hook waits for pending calls.
                drop(ongoing);
                return Err(process.refuse(py));
            }
            Tick::Nothing => py.check_signals()?,
        }
    }
}

/// Runs code that needs the runtime and does not wait, such as starting a task.
pub(super) fn in_runtime<T>(py: Python<'_>, work: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    let ongoing = Process::current().begin(py)?;
    let _inside = ongoing.handle.enter();
    work()
}

/// Ends the pending calls of other threads. From now on only this thread, which runs the exit hook, may call.
pub(super) fn end_calls() {
    let process = Process::current();
    lock(&process.runtime).exiting = Some(thread::current().id());
    process.ending.send_replace(());
}

/// Stops the runtime of this process and ends pending calls, within [`SHUTDOWN_LIMIT`]. Idempotent.
pub(super) fn shutdown(py: Python<'_>) {
    // Without the GIL, because the calls that are to end need it when they return.
    py.detach(|| Process::current().end());
}

/// A native value that belongs to the process that made it. A forked child neither uses nor drops it. Otherwise it
/// would revoke its parent's lease, or wait for a lock whose holder does not exist.
#[derive(Debug)]
pub(super) struct OfProcess<T> {
    owner: Identity,
    value: Option<T>,
}

impl<T> OfProcess<T> {
    pub(super) fn new(value: T) -> Self {
        Self { owner: process_identity(), value: Some(value) }
    }

    /// The value, unless this is a forked child.
    pub(super) fn in_this_process(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.owner == process_identity())
    }

    /// # Errors
    /// `LeftError` in a forked child.
    pub(super) fn get(&self) -> PyResult<&T> {
        self.in_this_process().ok_or_else(|| {
            LeftError::new_err(format!(
                "this node belongs to process {}, which joined; process {} was forked from it and has to join by \
                 itself",
                self.owner.0,
                std::process::id()
            ))
        })
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if self.owner != process_identity() {
            std::mem::forget(self.value.take());
        }
    }
}
