"""The examples that need no controller, by the commands of their pages, in the namespace that they name."""

from __future__ import annotations

import json
import os
import re
import shutil
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest
import yaml
from harness.wait import wait_for

from e2e.agents import START_SECONDS, lend_torch, torch_volume
from e2e.chart import Chart
from e2e.cluster import ROOT, Cluster
from e2e.conftest import MakeNamespace, MakePod, lack
from e2e.kubernetes import Kubernetes, run

pytestmark = pytest.mark.timeout(900, func_only=True)

NAMESPACE = "lattice"
# Which label is a rack's is the user's to say; this one every machine has.
ZONE, MACHINE = "topology.kubernetes.io/zone", "kubernetes.io/hostname"


@pytest.fixture
def documented(cluster: Cluster, namespaces: MakeNamespace) -> Chart:
    """The chart in the namespace of the documentation."""
    if cluster.kubernetes.list("namespaces", "", field=f"metadata.name={NAMESPACE}"):
        lack(f"there is a namespace `{NAMESPACE}` already, which is somebody's")
    chart = Chart(cluster.kubernetes, namespaces(exactly=NAMESPACE))
    chart.install()
    return chart


def test_the_job_runs_as_it_stands(
    cluster: Cluster, documented: Chart, namespaces: MakeNamespace, agent_pod: MakePod, tmp_path: Path
) -> None:
    # In another namespace, and nothing told it: where nothing of the name is in its own, that of the documentation.
    stranger = agent_pod(namespaces("team"), with_config=False)
    assert stranger.finds() == f"http://lattice-rdzv-client.{NAMESPACE}.svc.cluster.local.:2379"

    said = follow_page(cluster, copied(cluster, tmp_path, "job"))
    assert re.search(r"^rank 0 of 4 on train-\d: .*done after step 200$", said, re.MULTILINE), said
    documented.kubernetes.wait("job/train", "condition=Complete", NAMESPACE)
    pods = documented.kubernetes.list("pods", NAMESPACE, selector="app=train")
    assert len(pods) == 4
    assert {one["status"]["phase"] for one in pods} == {"Succeeded"}


def test_ranks_go_by_a_label_of_the_machine(cluster: Cluster, documented: Chart, tmp_path: Path) -> None:
    """The first container reads it from the API server, with a token that it alone has and rights to nothing else."""
    folder = copied(cluster, tmp_path, "topology-from-node")
    label = folder / "label.yaml"
    label.write_text(label.read_text().replace(ZONE, MACHINE))
    follow_page(cluster, folder, only="apply")
    kubernetes = documented.kubernetes
    try:
        kubernetes.wait("job/train", "jsonpath={.status.ready}=4", NAMESPACE, timeout_seconds=START_SECONDS)
        pods = {one["metadata"]["name"]: one for one in kubernetes.list("pods", NAMESPACE, selector="app=train")}
        machines = {name.rpartition("-")[0]: str(one["spec"]["nodeName"]) for name, one in pods.items()}
        # A container runs for a moment before its agent has joined.
        topology = partial(topology_of, kubernetes, next(iter(pods)))
        wait_for(
            "the run knows all four nodes",
            lambda: len(topology()) == 4,
            every_seconds=0.5,
            timeout_seconds=START_SECONDS,
        )
        assert topology() == machines
        kubernetes.wait("job/train", "condition=Complete", NAMESPACE, timeout_seconds=START_SECONDS)
        said = kubernetes("logs", "--selector=app=train", f"--namespace={NAMESPACE}", "--container=agent", "--tail=-1")
        ranked = dict(re.findall(r"^rank (\d) of 4 on (train-\d): starts", said, re.MULTILINE))
        in_rank_order = [machines[node] for _, node in sorted(ranked.items())]
        assert len(in_rank_order) == 4
        assert len(list(groupby(in_rank_order))) == len(set(in_rank_order)), f"neighbors are apart: {in_rank_order}"
    finally:
        kubernetes("delete", "clusterrolebinding,clusterrole", "lattice-train-node-labels")


def topology_of(kubernetes: Kubernetes, pod: str) -> dict[str, str]:
    """What the run in a Job's pod knows of where its nodes are."""
    status = ("sh", "-c", "lattice-rdzv status --json $LATTICE_RDZV_ID || true")
    run = json.loads(kubernetes.execute(NAMESPACE, pod, *status, container="agent"))
    return {one["name"]: one["topology"] for one in run.get("nodes", [])}


def copied(cluster: Cluster, folder: Path, name: str) -> Path:
    """The example's folder, with the image's name set as the page says, and torch from the machines."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    example = folder / "examples" / name
    file = example / "kustomization.yaml"
    asked = yaml.safe_load(file.read_text())
    (image,) = asked["images"]
    # What `kustomize edit set image` writes.
    image["newName"], _, image["newTag"] = cluster.agent_image.rpartition(":")
    spec = {"containers": [{"name": "agent"}]}
    lend_torch(cluster, spec)
    lent = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train"},
        "spec": {"template": {"spec": spec}},
    }
    asked["patches"] = [*asked.get("patches", []), {"patch": json.dumps(lent)}]
    volumes = torch_volume(cluster, NAMESPACE)
    if volumes:
        (example / "torch.yaml").write_text(yaml.safe_dump_all(volumes))
        asked["resources"].append("torch.yaml")
    file.write_text(yaml.safe_dump(asked))
    return example


def follow_page(cluster: Cluster, example: Path, *, only: str = "") -> str:
    """Does what the page's console says to do with kubectl, and returns what the last command printed."""
    (console,) = re.findall(r"```console\n(.*?)```", (example / "README.md").read_text(), re.DOTALL)
    commands = [line for line in console.splitlines() if line.startswith(f"kubectl {only}")]
    assert commands, console
    kubectl = cluster.kubernetes.kubectl
    environment = {"KUBECONFIG": str(cluster.kubernetes.kubeconfig), "PATH": f"{kubectl.parent}:{os.environ['PATH']}"}
    printed = ""
    for command in commands:
        printed = run(["sh", "-ec", f"cd '{example}'; {command}"], environment=environment, timeout_seconds=660)
    return printed
