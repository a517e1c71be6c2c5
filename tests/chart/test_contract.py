"""The names, values and defaults on which users of the chart depend."""

import json
import re
import subprocess

import pytest
import yaml

from chart.render import MEMBERS, Renderer, default_values, leaves
from chart.tools import CHART, HELM_VERSIONS, ROOT, helm

# The interface that was promised to users. It must not be changed to fit the chart.
PROMISED = {
    "affinity": {},
    "clientService.externalPort": 2379,
    "clientService.internalPort": 2379,
    "clientService.name": "lattice-rdzv-client",
    "clientService.type": "ClusterIP",
    "image": "quay.io/coreos/etcd:v3.5.5",
    "imagePullPolicy": "IfNotPresent",
    "nodeSelector": {},
    "rendezvous.backend": "etcd",
    "replicaCount": 1,
    "resources": {},
    "serverService.clientPort.externalPort": 2379,
    "serverService.clientPort.internalPort": 2379,
    "serverService.name": "lattice-rdzv-server",
    "serverService.serverPort.externalPort": 2380,
    "serverService.serverPort.internalPort": 2380,
    "serverService.type": "ClusterIP",
}


@pytest.mark.parametrize("version", HELM_VERSIONS)
def test_helm_shows_every_promised_value_with_its_default(version: str) -> None:
    shown = subprocess.run([helm(version), "show", "values", CHART], capture_output=True, text=True, check=True)
    given = leaves(yaml.safe_load(shown.stdout))
    assert {key: given.get(key) for key in PROMISED} == PROMISED


def test_readmes_table_has_every_value_with_its_default() -> None:
    rows = re.findall(r"^\| `([^`|]+)` \| [^|]+ \| `(.*?)` \|", (CHART / "README.md").read_text(), re.MULTILINE)
    assert {key: json.loads(default.replace("\\|", "|")) for key, default in rows} == leaves(default_values())


@pytest.mark.parametrize("release", ["rdzv", "lattice-rdzv", "another-name"])
@pytest.mark.parametrize("version", HELM_VERSIONS)
def test_no_values_at_all_give_exactly_the_documented_objects(version: str, release: str) -> None:
    objects = Renderer(version, release=release).objects()
    assert objects.names() == {
        ("ConfigMap", "lattice-rdzv-config"),
        ("Deployment", "lattice-rdzv"),
        ("Service", "lattice-rdzv-client"),
        ("Service", "lattice-rdzv-server"),
    }
    assert len(objects.all) == 4
    assert objects.get("Deployment")["spec"]["selector"] == {"matchLabels": {"app": "lattice-rdzv"}}
    client = objects.get("Service", "lattice-rdzv-client")["spec"]["ports"]
    assert [(port["name"], port["port"]) for port in client] == [("client", 2379)]
    server = objects.get("Service", "lattice-rdzv-server")["spec"]["ports"]
    assert [(port["name"], port["port"]) for port in server] == [("client", 2379), ("server", 2380)]
    assert objects.agents["LATTICE_RDZV_BACKEND"] == "etcd"
    assert objects.etcd["image"] == "quay.io/coreos/etcd:v3.5.5"


def test_services_select_the_pods_of_their_workload_and_no_others() -> None:
    ephemeral, members = Renderer().objects(), Renderer().objects(MEMBERS)
    for objects, others in ((ephemeral, members), (members, ephemeral)):
        for service in (one for one in objects.all if one["kind"] == "Service"):
            selector = service["spec"]["selector"].items()
            assert selector <= objects.pod["metadata"]["labels"].items()
            assert not selector <= others.pod["metadata"]["labels"].items()


def test_deployments_selector_finds_its_own_pods() -> None:
    deployment = Renderer().objects().get("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_nothing_in_a_pod_changes_with_the_charts_version_or_the_release() -> None:
    """Otherwise, each upgrade would restart etcd."""
    pod = Renderer().objects().pod
    assert "0.2.0" not in yaml.safe_dump(pod)
    assert "helm.sh/chart" not in pod["metadata"]["labels"]


def test_values_without_effect_change_nothing() -> None:
    values = {"enabled": False, "global": {"registry": "x"}, "jfrog": {"username": "u", "password": "p"}}
    assert Renderer().objects(values).all == Renderer().objects().all


def test_all_objects_of_a_render_are_in_its_namespace() -> None:
    text = Renderer(namespace="elsewhere").text()
    assert "lattice.svc" not in text
    assert "lattice-rdzv-client.elsewhere.svc.cluster.local" in text


def test_readme_shows_how_to_install_the_chart() -> None:
    command = "helm install rdzv . --namespace lattice --create-namespace"
    assert command in (ROOT / "README.md").read_text()
    assert command in (CHART / "README.md").read_text()
