"""A process exits quietly and soon, with each version of Python, and independently of its other threads and its signals."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from pathlib import Path

import pytest
from conftest import JoinNode
from harness.programs import PATIENT_EXIT, Program
from harness.pythons import PYTHONS, name
from harness.service import Service
from harness.wait import wait_for

on_each_python = pytest.mark.parametrize("python", PYTHONS, ids=name)

# The number of exits in each test, because errors at exit occur only sometimes.
EXITS = 4

JOIN = """
    import lattice_rdzv, os, signal, sys, threading, time
    run = lattice_rdzv.join({run_id!r}, nnodes={nnodes!r}, endpoint={endpoint!r}, node_name="node-1",
        local_address="127.0.0.1", lease_ttl=10, settle_time=0.1, last_call_timeout=0.5, grow_delay=0.1)
"""


def joined(
    folder: Path, etcd: Service, run_id: str, then: str, *, python: str = PYTHONS[0], nnodes: str = "1"
) -> Program:
    """Starts a program that has joined a run and continues with `then`."""
    source = JOIN.format(run_id=run_id, nnodes=nnodes, endpoint=etcd.endpoint)
    return Program(folder, source + then, python=python)


def ends_quietly(program: Program) -> None:
    """Checks that the program exits with status 0 and prints no error."""
    assert program.wait() == 0, program.output
    for word in ("Traceback", "Error", "panicked", "FATAL", "Exception"):
        assert word not in program.output, program.output


@on_each_python
@pytest.mark.parametrize(
    "call",
    [
        "store.get_now(['key'])",
        "run.change",
        "run.wait_change(timeout_seconds=0.001)",
        "lattice_rdzv.join('x', port='y')",
    ],
)
def test_daemon_threads_may_call_in_a_tight_loop(
    tmp_path: Path, etcd: Service, run_id: str, python: str, call: str
) -> None:
    then = f"""
    store = run.next_world().store
    def loop():
        while True:
            try:
                {call}
            except BaseException:
                pass
    for _ in range(8):
        threading.Thread(target=loop, daemon=True).start()
    """
    for program in [joined(tmp_path, etcd, f"{run_id}-{number}", then, python=python) for number in range(EXITS)]:
        ends_quietly(program)


@on_each_python
def test_daemon_thread_ends_at_exit_so_that_it_can_be_joined(
    tmp_path: Path, etcd: Service, run_id: str, python: str
) -> None:
    # The application's hook was registered before the one of this package, and so runs after it.
    source = """
    import atexit, threading
    threads = []
    atexit.register(lambda: [thread.join() for thread in threads])
    """ + JOIN.format(run_id=run_id, nnodes="1", endpoint=etcd.endpoint)
    then = """
    store = run.next_world().store
    def loop():
        while True:
            store.get_now(["key"])
    threads.append(threading.Thread(target=loop, daemon=True))
    threads[0].start()
    """
    ends_quietly(Program(tmp_path, source + then, python=python))


@on_each_python
def test_finalizers_may_call_while_the_interpreter_shuts_down(
    tmp_path: Path, etcd: Service, run_id: str, python: str
) -> None:
    # Modules are cleared after the exit hooks, and cycles are collected last: both finalizers run after the runtime has stopped.
    then = """
    class Uses:
        def __init__(self, run, store):
            self.run, self.store, self.itself = run, store, self
        def __del__(self):
            calls = [self.run.leave, lambda: self.run.changing, lambda: self.run.state, lambda: repr(self.run),
                lambda: self.store.get("key"), self.run.next_world, lambda: lattice_rdzv.serve(port=0)]
            for call in calls:
                try:
                    call()
                except Exception:
                    pass
            os.write(1, b"finalized\\n")
    uses = Uses(run, run.next_world().store)
    del uses.itself
    cycle = Uses(run, uses.store)
    del run
    """
    program = joined(tmp_path, etcd, run_id, f"    {PATIENT_EXIT}{then}", python=python)
    assert program.wait() == 0, program.output
    assert program.output.count("finalized") == 2, program.output
    for word in ("Traceback", "panicked", "FATAL", "Exception ignored"):
        assert word not in program.output, program.output
    assert etcd.nodes(run_id) == []


@on_each_python
def test_exceptions_of_signal_handlers_do_not_hang_the_exit(
    tmp_path: Path, etcd: Service, run_id: str, python: str
) -> None:
    # A timer raises at any moment of joining, leaving, serving and stopping, but not while the program exits.
    then = """
    class Alarm(Exception):
        pass
    def alarm(number, frame):
        raise Alarm
    signal.signal(signal.SIGALRM, alarm)
    for number in range(100):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (number % 20 + 1))
            with lattice_rdzv.serve(port=0) as server:
                with lattice_rdzv.join("r", nnodes=1, endpoint=server.endpoint, local_address="127.0.0.1"):
                    time.sleep(0.05)
        except Alarm:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    print("done", flush=True)
    """
    program = joined(tmp_path, etcd, run_id, then, python=python)
    assert program.wait(90) == 0, program.output
    assert "done" in program.output


@on_each_python
def test_signal_at_exit_shortens_leaving(tmp_path: Path, own_etcd: Service, run_id: str, python: str) -> None:
    # The service is silent, so leaving takes 3 s; the signal's exception ends that, and the rest of the exit happens.
    then = """
    run.next_world()
    from lattice_rdzv import _core
    shutdown = _core.shutdown
    def reported():
        shutdown()
        print("shut down", flush=True)
    _core.shutdown = reported
    class Stop(Exception):
        pass
    def stop(number, frame):
        raise Stop
    signal.signal(signal.SIGUSR1, stop)
    print("ready", flush=True)
    sys.stdin = None
    while not os.path.exists({paused!r}):
        time.sleep(0.01)
    leave_all = _core.leave_all
    def leaving(timeout_seconds):
        signal.setitimer(signal.ITIMER_REAL, 0.2 if timeout_seconds > 1 else 0)
        leave_all(timeout_seconds=timeout_seconds)
        print("waited for", timeout_seconds, flush=True)
    signal.signal(signal.SIGALRM, stop)
    _core.leave_all = leaving
    """.format(paused=str(tmp_path / "paused"))
    program = joined(tmp_path, own_etcd, run_id, then, python=python)
    wait_for("the program is in a world", lambda: "ready" in program.output, detail=lambda: program.output)
    own_etcd.pause()
    try:
        (tmp_path / "paused").touch()
        assert program.wait() == 0, program.output
    finally:
        own_etcd.resume()
    assert "shut down" in program.output
    assert "waited for 3.0" not in program.output
    assert "waited for 0.5" in program.output


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@on_each_python
def test_child_of_multiprocessing_leaves(
    tmp_path: Path, etcd: Service, run_id: str, join: JoinNode, python: str, method: str
) -> None:
    (tmp_path / "child.py").write_text(
        f"""
import sys, threading, time
import lattice_rdzv
{PATIENT_EXIT}

def train():
    run = lattice_rdzv.join({run_id!r}, nnodes="1:2", endpoint={etcd.endpoint!r}, node_name="child",
        local_address="127.0.0.1", lease_ttl=60, settle_time=0.1, last_call_timeout=0.5, grow_delay=0.1)
    # A thread of the child that is not a daemon may use its run until it ends.
    def work():
        time.sleep(0.3)
        print("state", run.state, flush=True)
    run.next_world()
    threading.Thread(target=work).start()
"""
    )
    source = f"""
    import multiprocessing, sys
    sys.path.insert(0, {str(tmp_path)!r})
    import child
    if __name__ == "__main__":
        context = multiprocessing.get_context({method!r})
        process = context.Process(target=child.train)
        process.start()
        process.join()
        print("child ended", process.exitcode, flush=True)
    """
    program = Program(tmp_path, source, python=python)
    ends_quietly(program)
    assert "child ended 0" in program.output
    assert "state member" in program.output
    # Its lease lasts for a minute: it is gone because it has left.
    assert etcd.nodes(run_id) == []


@on_each_python
def test_sigterm_ends_the_program_and_is_announced(
    tmp_path: Path, etcd: Service, run_id: str, join: JoinNode, python: str
) -> None:
    then = """
    try:
        run.next_world()
        print("ready", flush=True)
        run.wait_change()
        while True:
            time.sleep(0.1)
    except SystemExit as end:
        print("status", end.code, flush=True)
        raise
    """
    program = joined(tmp_path, etcd, run_id, then, python=python, nnodes="2")
    peer = join("node-2")
    peer.next_world()
    wait_for("the program trains", lambda: "ready" in program.output, detail=lambda: program.output)
    program.process.send_signal(signal.SIGTERM)
    change = peer.wait_change(timeout_seconds=20)
    assert change is not None
    assert (change.kind, change.nodes) == ("leaving", ["node-1"])
    assert program.wait() == 128 + signal.SIGTERM, program.output
    assert "status 143" in program.output
    assert "Traceback" not in program.output


@on_each_python
def test_sigterm_is_announced_while_python_cannot_run_a_handler(
    tmp_path: Path, etcd: Service, run_id: str, join: JoinNode, python: str
) -> None:
    # One native call of the main thread, which holds the interpreter's lock and never returns.
    then = """
    from collections import deque
    from itertools import repeat
    run.next_world()
    print("ready", flush=True)
    deque(repeat(None), maxlen=0)
    """
    program = joined(tmp_path, etcd, run_id, then, python=python, nnodes="2")
    peer = join("node-2")
    peer.next_world()
    wait_for("the program trains", lambda: "ready" in program.output, detail=lambda: program.output)
    program.process.send_signal(signal.SIGTERM)
    change = peer.wait_change(timeout_seconds=20)
    program.process.kill()
    program.process.wait()
    assert change is not None
    assert (change.kind, change.nodes) == ("leaving", ["node-1"])


def test_sigterm_kills_if_leave_on_signal_is_off(tmp_path: Path, etcd: Service, run_id: str) -> None:
    source = f"""
    import lattice_rdzv, signal
    run = lattice_rdzv.join({run_id!r}, nnodes=2, endpoint={etcd.endpoint!r}, leave_on_signal=False, lease_ttl=3)
    print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.set_wakeup_fd(-1), flush=True)
    run.next_world()
    """
    program = Program(tmp_path, source)
    wait_for("the program waits", lambda: "True -1" in program.output, detail=lambda: program.output)
    program.process.send_signal(signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM


def test_signals_are_as_before_once_every_run_has_left(join: JoinNode, run_id: str) -> None:
    runs = [join("node-1", nnodes=1, run_id=f"{run_id}-{number}") for number in range(2)]
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    runs[0].leave()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    runs[1].close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_handler_of_the_application_keeps_its_signal(join: JoinNode) -> None:
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        run = join("node-1", nnodes=1)
        run.next_world()
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert run.change is None
        run.leave()
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_forked_child_is_ended_by_its_sigterm(tmp_path: Path, etcd: Service, run_id: str, join: JoinNode) -> None:
    then = """
    run.next_world()
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    os.kill(child, signal.SIGTERM)
    print("child ended", os.waitpid(child, 0)[1], run.wait_change(timeout_seconds=1), flush=True)
    """
    program = joined(tmp_path, etcd, run_id, then)
    ends_quietly(program)
    assert f"child ended {signal.SIGTERM.value} None" in program.output


def test_modules_of_the_exit_hook_hold_no_lock() -> None:
    # An exception that a signal handler raises between the two bytecodes of `with lock:` leaves the lock locked on
    # Python 3.14, and the exit would wait for it forever.
    importlib.import_module("lattice_rdzv.torch.handler")

    locks = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event)
    modules = [module for name, module in sys.modules.items() if name.startswith("lattice_rdzv.")]
    held = [
        f"{module.__name__}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, locks)
    ]
    assert len(modules) > 5
    assert held == []
