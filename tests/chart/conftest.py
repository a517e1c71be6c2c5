"""Fixtures of the chart's tests: clusters of real etcds in the rendered pods."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from chart.cluster import Cluster, missing
from chart.render import Objects, Renderer, merged
from chart.tools import ETCD_VERSIONS, skip_without, tool

MakeCluster = Callable[..., Cluster]
RunCluster = Callable[..., Cluster]


@pytest.fixture(params=ETCD_VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each version of etcd that the chart supports."""
    return str(request.param)


def image_of(version: str) -> str:
    """Returns the image with this etcd, by the version that its program prints."""
    printed = subprocess.run(
        [tool(f"etcd-{version}/etcd"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    match = re.search(r"etcd Version: (\S+)", printed)
    assert match is not None, printed
    return f"quay.io/coreos/etcd:v{match[1]}"


def need_pods() -> None:
    """Skips or fails a test if pods cannot run on this machine."""
    if (reason := missing()) is not None:
        skip_without(f"pods ({reason})")


@pytest.fixture
def run_cluster(tmp_path: Path) -> Iterator[RunCluster]:
    """Runs objects in clusters, and ends all of their processes and networks after the test."""
    need_pods()
    made: list[Cluster] = []
    # The user of a container must have access, which pytest's own folder may not give.
    folder = tmp_path / "cluster"
    folder.mkdir()

    def run(objects: Objects, etcd: Path, *, secrets: Mapping[str, Mapping[str, str]]) -> Cluster:
        made.append(Cluster(folder, objects, etcd, secrets=secrets))
        return made[-1]

    yield run
    for one in made:
        one.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(run_cluster: RunCluster) -> MakeCluster:
    """Creates clusters from values."""

    def make(
        values: Mapping[str, Any], version: str, *, secrets: Mapping[str, Mapping[str, str]] | None = None
    ) -> Cluster:
        objects = Renderer().objects(merged({"image": image_of(version)}, values))
        return run_cluster(objects, tool(f"etcd-{version}"), secrets=secrets or {})

    return make
