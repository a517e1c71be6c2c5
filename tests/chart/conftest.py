"""Fixtures of the chart's suites: clusters of real etcds in the rendered pods."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from chart.cluster import Cluster, missing
from chart.render import Renderer, merged
from chart.tools import ETCD_VERSIONS, lack, tool

MakeCluster = Callable[..., Cluster]


@pytest.fixture(params=ETCD_VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each etcd that the chart is for."""
    return str(request.param)


def image_of(version: str) -> str:
    """The image that would hold this etcd, by the version that its program itself tells."""
    told = subprocess.run(
        [tool(f"etcd-{version}/etcd"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    match = re.search(r"etcd Version: (\S+)", told)
    assert match is not None, told
    return f"quay.io/coreos/etcd:v{match[1]}"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Makes clusters of values, none of whose processes and networks outlives the test."""
    if (reason := missing()) is not None:
        lack(f"pods ({reason})")
    made: list[Cluster] = []
    # Where the user of a container may come, which is not so under pytest's own folder.
    folder = tmp_path / "cluster"
    folder.mkdir()

    def make(
        values: Mapping[str, Any], version: str, *, secrets: Mapping[str, Mapping[str, str]] | None = None
    ) -> Cluster:
        objects = Renderer().objects(merged({"image": image_of(version)}, values))
        made.append(Cluster(folder, objects, tool(f"etcd-{version}"), secrets=secrets or {}))
        return made[-1]

    yield make
    for one in made:
        one.close()
    shutil.rmtree(folder, ignore_errors=True)
