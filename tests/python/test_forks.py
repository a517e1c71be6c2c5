"""Processes that were forked from a process that has joined. Each of them can be a separate node."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.programs import Program
from harness.service import Service

JOIN = """
    import ctypes, lattice_rdzv, os, sys
    def join(run_id, nnodes=1):
        return lattice_rdzv.join(
            run_id, nnodes=nnodes, endpoint={endpoint!r}, local_address="127.0.0.1", lease_ttl=10, settle_time=0.1,
            last_call_timeout=0.1, join_timeout=20)
    run = join({run_id!r})
    assert run.next_world().size == 1
"""


def test_children_of_one_process_form_a_world_with_different_ids(tmp_path: Path, etcd: Service, run_id: str) -> None:
    forking = Program(
        tmp_path,
        JOIN.format(endpoint=etcd.endpoint, run_id=run_id)
        + f"""
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            with join({run_id!r} + "-children", nnodes=3) as own:
                # In one piece: the children write to one file, and `print` may write a line in parts.
                os.write(1, f"id {{own.node_id}} size {{own.next_world().size}}\\n".encode())
            sys.exit(0)
        children.append(child)
    print("ended", [os.waitpid(child, 0)[1] for child in children], run.state, "id", run.node_id, flush=True)
""",
    )
    assert forking.wait(60) == 0, forking.output
    assert "ended [0, 0, 0] member" in forking.output
    assert forking.output.count("size 3") == 3, forking.output
    assert len(set(re.findall(r"\bid ([0-9a-z]+)", forking.output))) == 4, forking.output


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "--pid", "--fork", "true"]).returncode != 0,
    reason="needs the right to make a pid namespace",
)
def test_child_with_the_pid_of_its_parent_joins_by_itself(tmp_path: Path, etcd: Service, run_id: str) -> None:
    source = (
        JOIN.format(endpoint=etcd.endpoint, run_id=run_id)
        + f"""
    CLONE_NEWPID = 0x20000000
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWPID) == 0
    assert os.getpid() == 1
    child = os.fork()
    if child == 0:
        assert os.getpid() == 1
        with join({run_id!r} + "-child") as own:
            print("child's world", own.next_world().size, flush=True)
        try:
            run.next_world(timeout_seconds=1)
        except lattice_rdzv.LeftError:
            print("child: LeftError", flush=True)
        sys.exit(0)
    print("ended", os.waitpid(child, 0)[1], run.state, flush=True)
"""
    )
    # The namespace is that of the children of `unshare`.
    outer = Program(
        tmp_path,
        f"""
    import subprocess, sys, textwrap
    sys.exit(subprocess.run(["unshare", "--pid", "--fork", {sys.executable!r}, "-c", textwrap.dedent({source!r})]).returncode)
""",
    )
    assert outer.wait(60) == 0, outer.output
    assert "child's world 1" in outer.output
    assert "child: LeftError" in outer.output
    assert "ended 0 member" in outer.output
