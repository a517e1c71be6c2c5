"""What type checkers know of the API."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from lattice_rdzv.types import JoinSettings

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
        outcome: str = run.closed.outcome if run.closed else ""
    size: int | None = lattice_rdzv.status("run")["size"]

async def awaits() -> None:
    async with await aio.join("run", nnodes=2, lease_ttl=3) as run:
        async for world in run:
            value: bytes = await world.store.wait("key")
    size: int | None = (await aio.status("run"))["size"]

lattice_rdzv.join("run", lease_tll=3)  # wrong
lattice_rdzv.status("run", lease_tll=3)  # wrong
async def wrong() -> None:
    await aio.join("run", lease_tll=3)  # wrong
    await aio.status("run", lease_tll=3)  # wrong
    (await aio.join("run")).rank  # wrong
"""


def test_join_names_every_setting_of_the_core() -> None:
    keys = (Path(__file__).resolve().parents[2] / "src" / "settings" / "keys.rs").read_text()
    table = keys.split("const KEYS")[1].split("];")[0]
    known = set(re.findall(r'(?:key\(|with_variable\(|name: )"(\w+)"', table))
    assert set(JoinSettings.__annotations__) == known - NAMED


@pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed: it is part of the extra `lint`"
)
def test_wrong_names_are_errors_of_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mypy import api

    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    said, trouble, _ = api.run(["--strict", "--python-version", "3.10", "--no-color-output", program.name])
    assert not trouble
    wrong = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")}
    found = {int(number) for number in re.findall(r"^program\.py:(\d+): error", said, re.MULTILINE)}
    assert found == wrong, said
