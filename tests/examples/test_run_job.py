"""The pods of the examples form a world, lose a pod, and end with success. A replacement has nothing left to do."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.service import Service

from examples.pods import Pod

MakePod = Callable[..., Pod]
# The labels of the pods of each kind of job. A pod that reads another label is a mistake.
UID = str(uuid.uuid4())
LABELS = {
    "job": {"batch.kubernetes.io/controller-uid": UID},
    "pytorchjob": {"training.kubeflow.org/job-name": "train"},
    "trainjob": {"jobset.sigs.k8s.io/jobset-uid": UID},
}


@pytest.fixture
def pod(tmp_path: Path, etcd: Service, torch: None) -> Iterator[MakePod]:
    """Creates pods of an example. They find the service by the variables of the chart's ConfigMap."""
    pods: list[Pod] = []
    config = {"LATTICE_RDZV_BACKEND": "etcd", "LATTICE_RDZV_ENDPOINTS": f"http://{etcd.endpoint}"}

    def make(example: str, kind: str, name: str, **given: str) -> Pod:
        folder = tmp_path / f"pod-{len(pods)}"
        folder.mkdir()
        pods.append(Pod(folder, example, kind, name, LABELS[example], {**config, **given}))
        return pods[-1]

    yield make
    for one in pods:
        one.kill()


@pytest.mark.timeout(600)
def test_job_survives_a_pod_and_its_successor_has_nothing_left_to_do(pod: MakePod) -> None:
    pods = [pod("job", "Job", f"train-{index}", TRAIN_STEPS="200", TRAIN_STEP_SECONDS="0.05") for index in range(4)]
    for one in pods:
        one.wait_log(r"rank \d of 4 on \S+: starts after step 0, to do 200")
    first = next(one for one in pods if "rank 0 of 4" in one.log)
    first.wait_log(r"rank 0 of 4 on \S+: step 20, loss")

    lost = pods.pop(1)
    lost.kill()

    for one in pods:
        step = int(one.wait_log(r"rank \d of 3 on \S+: starts after step (\d+)")[1])
        assert step >= 20, "from a checkpoint"
    assert [one.wait() for one in pods] == [0, 0, 0], "\n".join(one.log[-2000:] for one in pods)
    assert all("done after step 200" in one.log for one in pods)

    # Kubernetes creates another pod for the lost index, and counts its status.
    again = pod("job", "Job", lost.name)
    assert again.wait() == 0, again.log
    assert "starts after step" not in again.log


@pytest.mark.timeout(300)
@pytest.mark.parametrize("controller", ["pytorchjob", "trainjob"])
def test_additions_of_a_controller_have_no_effect(controller: str, pod: MakePod, etcd: Service) -> None:
    """Two of four nodes form a world, with the service that the chart runs."""
    few = {"TRAIN_STEPS": "20", "TRAIN_STEP_SECONDS": "0", "PET_RDZV_CONF": "last_call_timeout=1"}
    if controller == "pytorchjob":
        # pkg/controller.v1/pytorch/elastic.go sets these for the policy. Here, the address is the one of etcd.
        added = {
            "PET_RDZV_ENDPOINT": etcd.endpoint,
            "PET_RDZV_BACKEND": "lattice",
            "PET_NNODES": "2:4",
            "PET_MAX_RESTARTS": "3",
            "PET_NPROC_PER_NODE": "1",
        }
        pods = [pod(controller, "PyTorchJob", f"train-worker-{index}", **few, **added) for index in range(2)]
    else:
        # pkg/runtime/framework/plugins/torch/torch.go sets these. No process listens at this address.
        added = {
            "PET_NNODES": "4",
            "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "train-node-0-0.train",
            "PET_MASTER_PORT": "29500",
        }
        pods = [
            pod(controller, "TrainingRuntime", f"train-node-0-{index}", **few, **added, PET_NODE_RANK=str(index))
            for index in range(2)
        ]
    assert [one.wait() for one in pods] == [0, 0], "\n".join(one.log[-3000:] for one in pods)
    assert all("of 2 on" in one.log and "done after step 20" in one.log for one in pods)
