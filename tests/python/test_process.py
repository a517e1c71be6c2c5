"""Processes that import the package, fork, exit during calls, and are interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import pytest
from conftest import JoinNode
from harness.programs import PATIENT_EXIT, Program
from harness.service import Service
from harness.together import Pending, together
from harness.wait import wait_for

import lattice_rdzv

JOIN = """
    import lattice_rdzv, os, sys, threading, time
    run = lattice_rdzv.join(
        {run_id!r}, nnodes={nnodes!r}, endpoint={endpoint!r}, node_name={name!r}, local_address="127.0.0.1",
        lease_ttl=10, settle_time=0.1, last_call_timeout=0.5, grow_delay=0.1)
"""


def program(folder: Path, etcd: Service, run_id: str, then: str, *, nnodes: str = "1", name: str = "node-1") -> Program:
    """Starts a program that has joined and continues with `then`."""
    source = JOIN.format(run_id=run_id, nnodes=nnodes, endpoint=etcd.endpoint, name=name)
    return Program(folder, source + then)


def test_import_costs_little() -> None:
    # The peak of the memory cannot be used, because a process inherits it from its parent.
    measure = (
        "import sys\n"
        "def kilobytes():\n"
        "    return sum(int(line.split()[1]) for line in open('/proc/self/smaps_rollup') if line.startswith('Private_'))\n"
        "before = kilobytes()\n"
        "import lattice_rdzv\n"
        "grown = kilobytes() - before\n"
        "heavy = [name for name in ('asyncio', 'torch', 'numpy', 'jax') if name in sys.modules]\n"
        "import json; print(json.dumps([grown, heavy]))\n"
    )
    results = [
        json.loads(subprocess.run([sys.executable, "-c", measure], check=True, capture_output=True).stdout)
        for _ in range(5)
    ]
    assert results[0][1] == []
    assert min(grown for grown, _ in results) < 15 * 1024


def test_entry_point_imports_no_torch() -> None:
    source = "import sys, lattice_rdzv.torch as t; assert 'torch' not in sys.modules; assert t.entry_point() is t.entry_point()"
    subprocess.run([sys.executable, "-c", source], check=True)


def test_process_that_ends_leaves_by_itself(tmp_path: Path, etcd: Service, run_id: str, join: JoinNode) -> None:
    peer_program = program(tmp_path, etcd, run_id, f"    {PATIENT_EXIT}; run.next_world()\n", nnodes="1:2")
    assert peer_program.wait() == 0, peer_program.output
    assert etcd.nodes(run_id) == []
    peer = join("node-2", nnodes="1:2")
    assert peer.next_world().size == 1


@pytest.mark.parametrize(
    "ending",
    [
        "run.next_world()",
        "threading.Thread(target=run.wait_change, daemon=True).start(); run.next_world()",
        "threading.Thread(target=lambda: run.store.wait('never', timeout_seconds=60), daemon=True).start()",
        "run.next_world(); sys.exit(0)",
        "world = run.next_world(); store = world.store; del run",
    ],
)
def test_exits_are_quiet(tmp_path: Path, etcd: Service, run_id: str, ending: str) -> None:
    programs = [program(tmp_path, etcd, f"{run_id}-{number}", f"    {ending}\n") for number in range(4)]
    for one in programs:
        assert one.wait() == 0, one.output
        assert "Traceback" not in one.output
        assert "panicked" not in one.output


def test_forked_child_is_no_member_and_ends_nothing(tmp_path: Path, etcd: Service, run_id: str, join: JoinNode) -> None:
    forking = program(
        tmp_path,
        etcd,
        run_id,
        """
    world = run.next_world()
    child = os.fork()
    if child == 0:
        try:
            run.next_world(timeout_seconds=1)
        except lattice_rdzv.LeftError:
            print("child: LeftError", flush=True)
        run.leave()
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    print("child ended", status, "closed", run.closed, "state", run.state, flush=True)
    change = run.wait_change(timeout_seconds=20)
    print("change", change.kind, flush=True)
""",
        nnodes="1:2",
    )
    wait_for("the child has ended", lambda: "child ended 0" in forking.output, detail=lambda: forking.output)
    assert "child: LeftError" in forking.output
    assert "state member" in forking.output
    newcomer = join("node-2", nnodes="1:2")
    wait_for("the parent still receives changes", lambda: "change newcomers" in forking.output)
    assert forking.wait() == 0, forking.output
    assert newcomer.next_world().size == 1


def test_forked_child_can_join_for_itself(tmp_path: Path, etcd: Service, run_id: str) -> None:
    forking = program(
        tmp_path,
        etcd,
        run_id,
        f"""
    run.next_world()
    children = []
    for number in range(5):
        child = os.fork()
        if child == 0:
            with lattice_rdzv.join({run_id!r} + f"-child-{{number}}", nnodes=1, endpoint={etcd.endpoint!r}) as own:
                assert own.next_world().size == 1
            sys.exit(0)
        children.append(child)
    print([os.waitpid(child, 0)[1] for child in children], run.state, flush=True)
""",
    )
    assert forking.wait() == 0, forking.output
    assert "[0, 0, 0, 0, 0] member" in forking.output


BLOCKING = {
    "next_world": ("2", "pass", "run.next_world()"),
    "wait_change": ("1", "run.next_world()", "run.wait_change()"),
    "store_get": ("1", "w = run.next_world()", "w.store.wait('never', timeout_seconds=600)"),
    "store_multi_get": ("1", "w = run.next_world()", "w.store.multi_wait(['a', 'b'], timeout_seconds=600)"),
    "queue_pop": ("1", "w = run.next_world()", "w.store.queue_pop('never', block=True, timeout_seconds=600)"),
}


# Sends SIGINT half a second after the program was about to wait.
INTERRUPT = f"""
    ready = threading.Event()
    def interrupt():
        ready.wait()
        time.sleep(0.5)
        global sent
        sent = time.monotonic()
        os.kill(os.getpid(), {signal.SIGINT.value})
    threading.Thread(target=interrupt, daemon=True).start()
"""


def took_to_be_interrupted(waiting: Program, capsys: pytest.CaptureFixture[str], what: str) -> None:
    # A wait that ignores signals ends in ten minutes, but the program must end within 30 s. The time is only printed, because a
    # machine under load is slow.
    assert waiting.wait() == 0, waiting.output
    took = re.search(r"took ([0-9.]+)", waiting.output)
    assert took is not None, waiting.output
    with capsys.disabled():
        print(f"\nCtrl-C ended {what} within {float(took.group(1)):.3f} s")


@pytest.mark.parametrize("call", BLOCKING)
def test_ctrl_c_ends_each_wait(
    tmp_path: Path, etcd: Service, run_id: str, call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nnodes, before, source = BLOCKING[call]
    then = f"""{INTERRUPT}
    try:
        {before}
        ready.set()
        {source}
    except KeyboardInterrupt:
        print("took", time.monotonic() - sent, flush=True)
"""
    took_to_be_interrupted(program(tmp_path, etcd, run_id, then, nnodes=nnodes), capsys, call)


def test_ctrl_c_ends_a_join_that_hangs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = f"""
    import lattice_rdzv, os, socket, threading, time
    silent = socket.create_server(("127.0.0.1", 0))
{INTERRUPT}
    try:
        ready.set()
        lattice_rdzv.join(
            "any", nnodes=1, endpoint=f"127.0.0.1:{{silent.getsockname()[1]}}", connect_timeout=600, join_timeout=600
        )
    except KeyboardInterrupt:
        print("took", time.monotonic() - sent, flush=True)
"""
    took_to_be_interrupted(Program(tmp_path, source), capsys, "a join that hangs")


def test_joining_does_not_configure_logging(tmp_path: Path, etcd: Service, run_id: str) -> None:
    then = """
    import logging
    run.next_world()
    ours = logging.getLogger("lattice_rdzv")
    print("configured", ours.level, ours.handlers, logging.getLogger().handlers, flush=True)
"""
    quiet = program(tmp_path, etcd, run_id, then)
    assert quiet.wait() == 0, quiet.output
    assert "configured 0 [] []" in quiet.output
    assert "round" not in quiet.output


def test_log_line_names_its_module_once(tmp_path: Path, etcd: Service, run_id: str) -> None:
    source = JOIN.format(run_id=run_id, nnodes="1", endpoint=etcd.endpoint, name="node-1")
    talking = Program(tmp_path, source + "    run.next_world()\n    run.close()\n", LATTICE_RDZV_LOG="debug")
    assert talking.wait() == 0, talking.output
    modules = re.findall(r" (?:DEBUG|INFO|WARNING) lattice_rdzv\.(\w+): (.*)", talking.output)
    assert {"node", "coordinator"} <= {module for module, _ in modules}, talking.output
    assert not [line for module, line in modules if line.startswith((f"{module}:", "lattice_rdzv"))]


def test_redirected_stderr_gets_the_log(tmp_path: Path, etcd: Service, run_id: str) -> None:
    then = """
    import contextlib, io
    run.next_world()
    with contextlib.redirect_stderr(io.StringIO()) as redirected:
        # Forms a round, whose log lines can only come now.
        run.next_world()
        run.leave()
        lattice_rdzv._logs.stop(lattice_rdzv._core.shutdown)
    print("redirected", "round 2" in redirected.getvalue(), flush=True)
"""
    source = JOIN.format(run_id=run_id, nnodes="1", endpoint=etcd.endpoint, name="node-1")
    talking = Program(tmp_path, source + then, LATTICE_RDZV_LOG="info")
    assert talking.wait() == 0, talking.output
    assert "redirected True" in talking.output


def test_threads_that_wait_for_no_signal_do_not_wake_up(join: JoinNode) -> None:
    store = join("node-1", nnodes=1).next_world().store

    def wakeups() -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        with pytest.raises(lattice_rdzv.StoreTimeoutError):
            store.wait("never", timeout_seconds=2)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before

    # With a look for signals each 50 ms there would be 40.
    assert Pending(wakeups).result() < 20


@pytest.mark.parametrize(("level", "shows"), [("off", False), ("error", False), ("info", True)])
def test_environment_rules_the_log(tmp_path: Path, etcd: Service, run_id: str, level: str, shows: bool) -> None:
    source = JOIN.format(run_id=run_id, nnodes="1", endpoint=etcd.endpoint, name="node-1")
    talking = Program(tmp_path, source + "    run.next_world()\n", LATTICE_RDZV_LOG=level)
    assert talking.wait() == 0, talking.output
    assert ("lattice_rdzv" in talking.output) == shows, talking.output


def test_application_that_configured_logging_gets_the_records_once(tmp_path: Path, etcd: Service, run_id: str) -> None:
    source = "    import logging; logging.basicConfig(level='INFO', format='app: %(message)s')\n"
    talking = Program(
        tmp_path,
        source
        + JOIN.format(run_id=run_id, nnodes="1", endpoint=etcd.endpoint, name="node-1")
        + "    run.next_world()\n",
    )
    assert talking.wait() == 0, talking.output
    lines = [line for line in talking.output.splitlines() if "round" in line]
    assert lines
    assert all(line.startswith("app: ") for line in lines), talking.output


def test_threads_that_start_the_logs_at_once_start_one_thread(tmp_path: Path) -> None:
    # The first is held up in the middle of starting, until the second has come and gone.
    starting = Program(
        tmp_path,
        """
    import threading
    from lattice_rdzv import _core, _logs, _threads
    configure, start, started = _logs._configure, _threads.start, []
    def count(function):
        started.append(function)
        start(function)
    _threads.start = count
    def meanwhile():
        second = threading.Thread(target=_logs.start)
        second.start()
        second.join()
        configure()
    _logs._configure = meanwhile
    _logs.start()
    print(len(started), "thread of the logs")
    _logs.stop(_core.shutdown)
""",
    )
    assert starting.wait() == 0, starting.output
    assert "1 thread of the logs" in starting.output


def test_logs_can_be_started_again_after_a_signal_interrupted_their_start(tmp_path: Path) -> None:
    starting = Program(
        tmp_path,
        """
    import logging
    from lattice_rdzv import _core, _logs
    configure = _logs._configure
    def interrupted():
        raise KeyboardInterrupt
    _logs._configure = interrupted
    try:
        _logs.start()
    except KeyboardInterrupt:
        print("interrupted")
    _logs._configure = configure
    _logs.start()
    _logs.stop(_core.shutdown)
""",
    )
    assert starting.wait() == 0, starting.output
    assert "interrupted" in starting.output


def test_forked_child_has_its_own_logs(tmp_path: Path) -> None:
    forking = Program(
        tmp_path,
        """
    import os
    from lattice_rdzv import _core, _logs, _threads
    _logs.start()
    start = _threads.start
    def reported(function):
        print("a thread of the child", flush=True)
        start(function)
    _threads.start = reported
    child = os.fork()
    if child == 0:
        _logs.start()
    else:
        print("child ended", os.waitpid(child, 0)[1], flush=True)
    _logs.stop(_core.shutdown)
""",
    )
    assert forking.wait() == 0, forking.output
    assert forking.output.count("a thread of the child") == 1
    assert "child ended 0" in forking.output


def test_node_that_is_killed_is_lost_within_its_lease(
    tmp_path: Path, etcd: Service, run_id: str, join: JoinNode
) -> None:
    peer = join("node-2")
    victim = program(
        tmp_path, etcd, run_id, "    run.next_world(); print('in', flush=True); time.sleep(600)\n", nnodes="2"
    )
    peer.next_world()
    wait_for("the other node is in", lambda: "\nin" in f"\n{victim.output}", detail=lambda: victim.output)
    victim.process.kill()
    victim.process.wait()
    change = peer.wait_change(timeout_seconds=60)
    assert change is not None
    assert change.kind == "lost"
    assert "node-1" in change.why


def test_waiting_node_logs_who_is_present_and_how_many_are_missing(tmp_path: Path, etcd: Service, run_id: str) -> None:
    waiting = program(
        tmp_path,
        etcd,
        run_id,
        """
    try:
        run.next_world(timeout_seconds=7)
    except lattice_rdzv.JoinTimeoutError as error:
        print(error)
""",
        nnodes="3",
    )
    assert waiting.wait() == 0, waiting.output
    assert "1 of at least 3 nodes joined (node-1)" in waiting.output, waiting.output


def test_waiting_node_replaces_its_line_on_a_terminal(etcd: Service, run_id: str, join: JoinNode) -> None:
    source = JOIN.format(run_id=run_id, nnodes="2", endpoint=etcd.endpoint, name="node-1")
    terminal, slave = pty.openpty()
    # Narrower than the line, which therefore has several rows.
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    waiting = subprocess.Popen(
        # It stays until it is killed, because a closed run would have no world for the other node.
        [sys.executable, "-c", textwrap.dedent(source + "    run.next_world()\n    run.wait_change()\n")],
        stderr=slave,
        env={**os.environ, "LATTICE_RDZV_LOG": "info", "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""

    def shows(what: bytes, times: int) -> bool:
        nonlocal shown
        shown += os.read(terminal, 65536)
        return shown.count(what) >= times

    try:
        wait_for("three lines of the wait", lambda: shows(b"1 of at least 2", 3), detail=lambda: repr(shown))
        join("node-2", nnodes=2).next_world()
        wait_for("the world", lambda: shows(b"round 1: ", 1), detail=lambda: repr(shown))
    finally:
        waiting.kill()
        waiting.wait()
        os.close(terminal)
    first, *others, after = re.split(r"\r(?:\x1b\[A)+\x1b\[J", shown.decode())
    assert re.search(r"1 of at least 2 nodes joined \(node-1\); waiting up to \d+ s more \(join_timeout\)$", first), (
        shown
    )
    assert all(re.fullmatch(r"[^\r\n]*lattice_rdzv.waiting: [^\r\n]*", line) for line in others), shown
    assert "nodes joined" not in after, shown


def test_nodes_of_threads_of_one_process(join: JoinNode) -> None:
    runs = [join(f"node-{number}", nnodes=8) for number in range(8)]
    worlds = together(*(run.next_world for run in runs))
    assert sorted(world.rank for world in worlds) == list(range(8))
