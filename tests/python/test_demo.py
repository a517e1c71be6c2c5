"""`lattice-rdzv demo`: the scenario and its tables."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from harness.binaries import etcd_binary

from lattice_rdzv.cli import demo
from lattice_rdzv.types import RoundStatus


def test_tables_show_the_ranks_and_the_reason_of_each_round() -> None:
    history = [
        RoundStatus(1, None, 1.0, None, 2, 2, None, "2 nodes", "node-1", ("node-1", "node-2"), ()),
        RoundStatus(2, None, 3.2, 3.2, 1, 0, "lost", "lost node-1", "node-2", ("node-2",), ()),
    ]
    lines = demo.picture(history, {"node-1": -9, "node-2": 0}).splitlines()
    assert lines[1].split() == ["node-1", "rank", "0", "-", "killed"]
    assert lines[2].split() == ["node-2", "rank", "1", "rank", "0", "status", "0"]
    assert lines[-1].split() == ["2", "?", "3.2", "s", "1", "3.2", "s", "lost", "node-1"]


def test_worlds_of_the_workers_must_be_rounds_of_the_service_in_order() -> None:
    assert demo.contains([["a"], ["c"]], [["a"], ["b"], ["c"]])
    assert not demo.contains([["c"], ["a"]], [["a"], ["b"], ["c"]])


def test_missing_etcd_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(argparse.Namespace(etcd=str(tmp_path / "etcd"), keep=False)) == 2
    assert capsys.readouterr().err.endswith(f"{tmp_path / 'etcd'}\n")


@pytest.mark.timeout(500)
@pytest.mark.parametrize("on", ["the embedded server", "an etcd"])
def test_demo_succeeds(on: str) -> None:
    binary = etcd_binary()
    assert binary is not None, "the extra `test` brings an etcd"
    result = subprocess.run(
        [sys.executable, "-m", "lattice_rdzv.cli", "demo", *(["--etcd", str(binary)] if on == "an etcd" else [])],
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert "killed" in result.stdout
    assert "lost node-" in result.stdout
    assert "the same processes form a new group" in result.stdout
