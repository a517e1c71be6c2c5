"""The API as type checkers see it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lattice_rdzv.types import JoinSettings

# The type checkers have no caches here.
pytestmark = pytest.mark.timeout(600)

NAMED = {
    "run_id",
    "nnodes",
    "endpoint",
    "node_name",
    "host_name",
    "local_addr",
    "port",
    "topology",
    "tenant",
    "submission",
}

PROGRAM = """
import socket

import lattice_rdzv
from lattice_rdzv import aio

def trains() -> None:
    with lattice_rdzv.join("run", nnodes="2:4", lease_ttl=3, on_node_failure="leave") as run:
        for world in run:
            rank: int = world.rank
            value: bytes = world.store.wait("key")
            present: bytes | None = run.store.get("key", timeout_seconds=None)
            swapped: bool = world.store.compare_set("key", value, bytearray(b"b"))
            names: list[str] = [member.name for member in world.members()]
        held: socket.socket = run.next_world(hold_port=True).master_socket()
        outcome: str = run.closed.outcome if run.closed else ""
    size: int | None = lattice_rdzv.status("run").run.size

async def awaits() -> None:
    async with await aio.join("run", nnodes=2, lease_ttl=3) as run:
        async for world in run:
            value: bytes = await world.store.wait("key")
    size: int | None = (await aio.status("run")).run.size
    async with await aio.serve(port=0) as server:
        stopped: bool = await server.wait(1.0)
        endpoint: str = server.endpoint

lattice_rdzv.join("run", lease_tll=3)  # wrong
lattice_rdzv.join("run", node_index=1.5)  # wrong
lattice_rdzv.join("run", on_node_failure="stop")  # wrong
lattice_rdzv.join("run", on_member_loss="stop")  # wrong
lattice_rdzv.join("run", on_newcomer="stop")  # wrong
lattice_rdzv.join("run", backend="redis")  # wrong
lattice_rdzv.status("run", lease_tll=3)  # wrong
lattice_rdzv.join("run").next_world(hold=True)  # wrong
lattice_rdzv.join("run").next_world().size = 3  # wrong
async def wrong() -> None:
    await aio.join("run", lease_tll=3)  # wrong
    await aio.status("run", lease_tll=3)  # wrong
    (await aio.join("run")).rank  # wrong
"""

WRONG = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")}


def test_join_names_every_setting_of_the_core() -> None:
    keys = (Path(__file__).resolve().parents[2] / "src" / "settings" / "keys.rs").read_text()
    table = keys.split("const KEYS")[1].split("];")[0]
    known = set(re.findall(r'(?:key\(|with_variable\(|name: )"(\w+)"', table))
    assert set(JoinSettings.__annotations__) == known - NAMED


@pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed: it is part of the extra `lint`"
)
def test_wrong_names_are_type_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mypy import api

    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    said, trouble, _ = api.run(["--strict", "--python-version", "3.10", "--no-color-output", program.name])
    assert not trouble
    found = {int(number) for number in re.findall(r"^program\.py:(\d+): error", said, re.MULTILINE)}
    assert found == WRONG, said


@pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None, reason="pyright is not installed: it is part of the extra `lint`"
)
def test_pyright_finds_the_same_errors(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    # pyright looks for packages where the `python` of the path does.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "pyright", "--outputjson", "program.py"]
    ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    found = json.loads(ran.stdout)["generalDiagnostics"]
    errors = {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}
    assert errors == WRONG, ran.stdout
