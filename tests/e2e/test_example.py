"""The examples that need no controller, run by the commands of their pages, in the namespace that they name."""

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

from e2e.agents import START_SECONDS, mount_torch, torch_volume
from e2e.chart import Chart
from e2e.cluster import ROOT, Cluster
from e2e.conftest import MakeNamespace, MakePod, skip
from e2e.kubernetes import HOSTNAME, Kubernetes, Object, run, takes_pods
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(900, func_only=True)

NAMESPACE = "lattice"
# The user decides which label names the rack. The second label exists on every Kubernetes node.
ZONE = "topology.kubernetes.io/zone"


@pytest.fixture
def documented(cluster: Cluster, namespaces: MakeNamespace) -> Chart:
    """Installs the chart in the namespace of the documentation."""
    if cluster.kubernetes.list("namespaces", "", field=f"metadata.name={NAMESPACE}"):
        skip(f"the namespace `{NAMESPACE}` exists already, and may be in use")
    chart = Chart(cluster.kubernetes, namespaces(exactly=NAMESPACE))
    chart.install()
    return chart


def test_job_runs_unchanged(
    cluster: Cluster, documented: Chart, namespaces: MakeNamespace, agent_pod: MakePod, tmp_path: Path
) -> None:
    # An agent in another namespace without configuration finds the service in the namespace of the documentation, because
    # its own namespace has no service of this name.
    stranger = agent_pod(namespaces("team"), with_config=False)
    assert stranger.finds() == f"http://lattice-rdzv-client.{NAMESPACE}.svc.cluster.local.:2379"

    said = follow_page(cluster, copied(cluster, tmp_path, "job"))
    assert re.search(r"^rank 0 of 4 on train-\d: .*done after step 200$", said, re.MULTILINE), said
    documented.kubernetes.wait("job/train", "condition=Complete", NAMESPACE)
    pods = documented.kubernetes.list("pods", NAMESPACE, selector="app=train")
    assert len(pods) == 4
    assert {one["status"]["phase"] for one in pods} == {"Succeeded"}


def test_ranks_follow_a_label_of_the_kubernetes_node(cluster: Cluster, documented: Chart, tmp_path: Path) -> None:
    """The first container reads the label from the API server. Only this container has a token, which allows nothing else."""
    folder = copied(cluster, tmp_path, "topology-from-node")
    label = folder / "label.yaml"
    label.write_text(label.read_text().replace(ZONE, HOSTNAME))
    kubernetes = documented.kubernetes
    try:
        check_topology(
            cluster, folder, {one["metadata"]["name"]: one["metadata"]["name"] for one in workers(kubernetes)}
        )
    finally:
        kubernetes("delete", "clusterrolebinding,clusterrole", "lattice-train-node-labels")


def test_ranks_follow_the_zone_of_the_kubernetes_node(
    cluster: Cluster, documented: Chart, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Since 1.35, Kubernetes copies the label to the pod. With an older release, the job runs without a topology."""
    kubernetes = documented.kubernetes
    zones = {one["metadata"]["name"]: one["metadata"]["labels"].get(ZONE, "") for one in workers(kubernetes)}
    for index, node in enumerate(node for node, zone in zones.items() if not zone):
        zones[node] = f"zone-{index % 2}"
        kubernetes("label", "node", node, f"{ZONE}={zones[node]}")
        request.addfinalizer(partial(kubernetes, "label", "node", node, f"{ZONE}-"))
    server = json.loads(kubernetes("version", "--output=json"))["serverVersion"]
    copies_labels = (int(server["major"]), int(server["minor"].rstrip("+"))) >= (1, 35)
    print(f"\nKubernetes {server['gitVersion']} {'copies' if copies_labels else 'does not copy'} the zone to the pod")
    check_topology(
        cluster, copied(cluster, tmp_path, "topology"), {node: zones[node] if copies_labels else "" for node in zones}
    )


def workers(kubernetes: Kubernetes) -> list[Object]:
    return [one for one in kubernetes.list("nodes", "") if takes_pods(one)]


def check_topology(cluster: Cluster, example: Path, labels: dict[str, str]) -> None:
    """Runs the job, whose nodes must have the labels of their Kubernetes nodes, and equal labels must have adjacent ranks."""
    kubernetes = cluster.kubernetes
    follow_page(cluster, example, only="apply")
    kubernetes.wait("job/train", "jsonpath={.status.ready}=4", NAMESPACE, timeout_seconds=START_SECONDS)
    pods = {one["metadata"]["name"]: one for one in kubernetes.list("pods", NAMESPACE, selector="app=train")}
    wanted = {name.rpartition("-")[0]: labels[str(one["spec"]["nodeName"])] for name, one in pods.items()}
    # A container runs for a moment before its agent has joined.
    topology = partial(topology_of, kubernetes, next(iter(pods)))
    wait_for(
        "the run has the labels of all four nodes",
        lambda: topology() == wanted,
        timeout_seconds=START_SECONDS,
        detail=lambda: f"{topology()} instead of {wanted}",
    )
    kubernetes.wait("job/train", "condition=Complete", NAMESPACE, timeout_seconds=START_SECONDS)
    said = kubernetes("logs", "--selector=app=train", f"--namespace={NAMESPACE}", "--container=agent", "--tail=-1")
    ranked = dict(re.findall(r"^rank (\d) of 4 on (train-\d): starts", said, re.MULTILINE))
    in_rank_order = [wanted[node] for _, node in sorted(ranked.items())]
    assert len(in_rank_order) == 4
    assert len(list(groupby(in_rank_order))) == len(set(in_rank_order)), f"neighbors are apart: {in_rank_order}"


def topology_of(kubernetes: Kubernetes, pod: str) -> dict[str, str]:
    """Returns the topology of each node of the run, as a pod of the Job sees it."""
    status = ("sh", "-c", "lattice-rdzv status --timeout 30 --json $LATTICE_RDZV_ID || true")
    run = json.loads(kubernetes.execute(NAMESPACE, pod, *status, container="agent"))
    return {one["name"]: one["topology"] for one in run.get("nodes", [])}


def copied(cluster: Cluster, folder: Path, name: str) -> Path:
    """Returns a copy of the example with the image's name set as the page describes, and with torch from the nodes."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    example = folder / "examples" / name
    file = example / "kustomization.yaml"
    if "images" not in yaml.safe_load(file.read_text()):
        file = folder / "examples" / "job" / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    (image,) = kustomization["images"]
    # `kustomize edit set image` writes this, too.
    image["newName"], _, image["newTag"] = cluster.agent_image.rpartition(":")
    spec = {"containers": [{"name": "agent"}]}
    mount_torch(cluster, spec)
    patch = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train"},
        "spec": {"template": {"spec": spec}},
    }
    kustomization["patches"] = [*kustomization.get("patches", []), {"patch": json.dumps(patch)}]
    volumes = torch_volume(cluster, NAMESPACE)
    if volumes:
        (file.parent / "torch.yaml").write_text(yaml.safe_dump_all(volumes))
        kustomization["resources"].append("torch.yaml")
    file.write_text(yaml.safe_dump(kustomization))
    return example


def follow_page(cluster: Cluster, example: Path, *, only: str = "") -> str:
    """Runs the kubectl commands of the page's console, and returns the output of the last one."""
    (console,) = re.findall(r"```console\n(.*?)```", (example / "README.md").read_text(), re.DOTALL)
    commands = [line for line in console.splitlines() if line.startswith(f"kubectl {only}")]
    assert commands, console
    kubectl = cluster.kubernetes.kubectl
    environment = {"KUBECONFIG": str(cluster.kubernetes.kubeconfig), "PATH": f"{kubectl.parent}:{os.environ['PATH']}"}
    printed = ""
    for command in commands:
        printed = run(["sh", "-ec", f"cd '{example}'; {command}"], environment=environment, timeout_seconds=660)
    return printed
