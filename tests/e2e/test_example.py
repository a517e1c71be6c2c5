"""The example that people copy first, as its page says, in the namespace that it names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from e2e.agents import START_SECONDS, lend_torch, torch_volume
from e2e.chart import Chart
from e2e.cluster import ROOT, Cluster
from e2e.conftest import MakeNamespace, MakePod

pytestmark = pytest.mark.timeout(600)

NAMESPACE = "lattice"


def test_the_job_runs_as_it_stands(
    cluster: Cluster, namespaces: MakeNamespace, agent_pod: MakePod, tmp_path: Path
) -> None:
    kubernetes = cluster.kubernetes
    Chart(kubernetes, namespaces(exactly=NAMESPACE)).install()
    # In another namespace, and nothing told it: where nothing of the name is in its own, that of the documentation.
    stranger = agent_pod(namespaces("team"), with_config=False)
    assert stranger.finds() == f"http://lattice-rdzv-client.{NAMESPACE}.svc.cluster.local.:2379"
    for one in overlaid(cluster, tmp_path):
        kubernetes.apply(one)
    kubernetes.wait("job/train", "jsonpath={.status.ready}=4", NAMESPACE)
    kubernetes.wait("job/train", "condition=Complete", NAMESPACE, timeout_seconds=START_SECONDS)
    where = (f"--namespace={NAMESPACE}", "--selector=app=train", "--tail=-1", "--max-log-requests=8")
    said = kubernetes("logs", *where).splitlines()
    assert [line for line in said if line.startswith("rank 0 of 4 on train-") and "done after step 200" in line], said
    pods = kubernetes.list("pods", NAMESPACE, selector="app=train")
    assert len(pods) == 4
    assert {one["status"]["phase"] for one in pods} == {"Succeeded"}


def overlaid(cluster: Cluster, folder: Path) -> list[dict[str, object]]:
    """The objects of `kubectl kustomize`, with the image's name set as the page says, and torch from the nodes."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    file = folder / "examples" / "job" / "kustomization.yaml"
    asked = yaml.safe_load(file.read_text())
    (image,) = asked["images"]
    image["newName"], _, image["newTag"] = cluster.agent_image.rpartition(":")
    file.write_text(yaml.safe_dump(asked))
    printed = cluster.kubernetes("kustomize", str(file.parent))
    objects = [dict(one) for one in yaml.safe_load_all(printed)]
    (job,) = [one for one in objects if one["kind"] == "Job"]
    lend_torch(cluster, job["spec"]["template"]["spec"])
    return [*torch_volume(cluster, NAMESPACE), *objects]
