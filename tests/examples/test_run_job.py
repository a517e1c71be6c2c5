"""The Job's pods meet, lose one, take another in its place, and end with success, all as the example says."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.etcd import Etcd

from examples.pods import Pod

MakePod = Callable[..., Pod]


@pytest.fixture
def pod(tmp_path: Path, etcd: Etcd, torch: None) -> Iterator[MakePod]:
    """Makes pods of the Job, which find the service by what the chart's ConfigMap holds."""
    pods: list[Pod] = []
    labels = {"batch.kubernetes.io/controller-uid": str(uuid.uuid4())}
    told = {"LATTICE_RDZV_BACKEND": "etcd", "LATTICE_RDZV_ENDPOINTS": f"http://{etcd.endpoint}"}

    def make(name: str, **given: str) -> Pod:
        folder = tmp_path / f"pod-{len(pods)}"
        folder.mkdir()
        pods.append(Pod(folder, "job", "Job", name, labels, {**told, **given}))
        return pods[-1]

    yield make
    for one in pods:
        one.kill()


@pytest.mark.timeout(600)
def test_the_job_survives_a_pod_and_its_successor_has_nothing_left_to_do(pod: MakePod) -> None:
    pods = {name: pod(name, TRAIN_STEPS="200", TRAIN_STEP_SECONDS="0.05") for name in ("train-0", "train-1", "train-2")}
    late = pod("train-3", TRAIN_STEPS="200", TRAIN_STEP_SECONDS="0.05")
    for one in (*pods.values(), late):
        one.wait_log(r"rank \d of 4 on \S+: starts after step 0, to do 200")
    first = next(one for one in (*pods.values(), late) if "rank 0 of 4" in one.log)
    first.wait_log(r"rank 0 of 4 on \S+: step 20, loss")

    lost = pods["train-1"]
    lost.kill()

    others = [one for one in (*pods.values(), late) if one is not lost]
    for one in others:
        step = int(one.wait_log(r"rank \d of 3 on \S+: starts after step (\d+)")[1])
        assert step >= 20, "from a checkpoint"
    assert [one.wait() for one in others] == [0, 0, 0], "\n".join(one.log[-2000:] for one in others)
    for one in others:
        assert "of 3 on" in one.log
        assert "done after step 200" in one.log

    # Kubernetes makes another pod for the index that was lost, and counts its status.
    again = pod("train-1")
    assert again.wait() == 0, again.log
    assert "starts after step" not in again.log
