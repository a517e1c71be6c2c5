"""From the default etcd through every minor release, by the steps of UPGRADING, while a Job trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest
from chart.tools import CHART

from e2e.chart import RELEASE
from e2e.cluster import Cluster
from e2e.conftest import MakeJob, MakeNamespace
from e2e.members import NAMES, Training, train
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(900, func_only=True)


@pytest.fixture
def training(cluster: Cluster, namespaces: MakeNamespace, job: MakeJob) -> Iterator[Training]:
    yield from train(cluster, namespaces("versions"), job)


def test_three_members_go_from_3_5_to_3_7(training: Training) -> None:
    for tag in ("v3.5.35", "v3.6.16", "v3.7.3"):
        training.cluster.provide_etcd(tag)
    for tag in ("v3.5.35", "v3.6.16"):
        upgrade(training, f"image=quay.io/coreos/etcd:{tag}")
        finish(training, tag)
    upgrade(training, "etcd.extraArgs={--snapshot-count=10}")
    for number in range(20):
        training.chart.write("put", "/lattice/upgrade", str(number))
    for name in NAMES:
        wait_for(f"{name} has its snapshot", partial(has_snapshot, training, name))
    training.chart.write("del", "/lattice/upgrade")
    upgrade(training, "etcd.extraArgs={--snapshot-count=10000}", "image=quay.io/coreos/etcd:v3.7.3")
    finish(training, "v3.7.3")
    (container,) = training.chart.pods()[0]["spec"]["containers"]
    given = [argument for argument in container["args"] if argument.startswith("--snapshot-count")]
    assert given == ["--snapshot-count=10000"]


def upgrade(training: Training, *settings: str) -> None:
    """Runs `helm upgrade --reuse-values` as UPGRADING describes it."""
    set_them = [argument for setting in settings for argument in ("--set", setting)]
    training.chart.helm("upgrade", RELEASE, str(CHART), "--reuse-values", *set_them)
    training.whole()


def has_snapshot(training: Training, pod: str) -> bool:
    namespace = f"--namespace={training.chart.namespace}"
    return "saved snapshot" in training.cluster.kubernetes("logs", pod, namespace, "--container=etcd")


def finish(training: Training, tag: str) -> None:
    """Checks that all members have this version, and that the Job was not disturbed."""
    training.whole()
    statuses = json.loads(training.chart.etcdctl("endpoint", "status", "--cluster", "--write-out=json"))
    assert {one["Status"]["version"] for one in statuses} == {tag.removeprefix("v")}
    training.undisturbed()
