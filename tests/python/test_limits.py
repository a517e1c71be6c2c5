"""Processes that have no threads left, whose threads race, or that write to a closed pipe."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import JoinNode
from harness.programs import Program
from harness.service import Service
from harness.together import Pending
from harness.wait import wait_for

import lattice_rdzv


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, which may become a user that has no other process")
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_join_without_threads_is_an_error_with_the_reason(
    tmp_path: Path, etcd: Service, run_id: str, threads: int
) -> None:
    limited = Program(
        tmp_path,
        f"""
    import lattice_rdzv, os, resource, socket
    # The other user may not read the packages.
    from lattice_rdzv import _listen, _logs, _membership, _process, _signals, _threads
    resource.setrlimit(resource.RLIMIT_NPROC, ({threads}, {threads}))
    os.setuid(200_000 + os.getpid())
    try:
        lattice_rdzv.join({run_id!r}, nnodes=1, endpoint={etcd.endpoint!r}, join_timeout=20)
    except lattice_rdzv.RendezvousError as error:
        print("error:", error, flush=True)
""",
    )
    assert limited.wait() == 0, limited.output
    assert "error: " in limited.output
    assert "ulimit -u" in limited.output
    assert "panicked" not in limited.output


def test_second_thread_in_next_world_is_refused(join: JoinNode) -> None:
    run = join("node-1", nnodes=2)
    first = Pending(run.next_world)
    refused = []

    def again() -> bool:
        try:
            # Either of the two may be first. The other one is refused.
            run.next_world(timeout_seconds=0.2)
        except lattice_rdzv.JoinTimeoutError:
            return False
        except lattice_rdzv.RendezvousError as error:
            refused.append(str(error))
        return bool(refused) or first.done

    wait_for("one of the threads is refused", again)
    if refused:
        assert "another thread" in refused[0]
        join("node-2", nnodes=2).next_world()
        assert first.result().size == 2
    else:
        with pytest.raises(lattice_rdzv.RendezvousError, match="another thread"):
            first.result()


def test_threads_that_race_on_one_run_get_its_errors_only(join: JoinNode) -> None:
    run = join("node-1", nnodes=1)
    unexpected: list[BaseException] = []

    def race() -> None:
        try:
            for _ in range(30):
                with contextlib.suppress(lattice_rdzv.RendezvousError):
                    run.next_world(timeout_seconds=0.05)
        except BaseException as error:
            unexpected.append(error)

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert unexpected == []


def test_status_to_a_reader_that_has_gone_prints_no_traceback(join: JoinNode, etcd: Service, run_id: str) -> None:
    join("node-1", nnodes=1).next_world()
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lattice_rdzv.cli", "status", run_id, "--endpoint", etcd.endpoint]
    status = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert status.stderr == ""
    assert status.returncode == 141
