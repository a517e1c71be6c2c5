"""What agents, `helm test` and Prometheus do with the rendered store, done for real."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

from chart.authority import Authority
from chart.cluster import Cluster
from chart.conftest import MakeCluster
from chart.render import AUTH, MEMBERS, MTLS, Object, Renderer, merged
from chart.tools import CHART, ROOT

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(240)]

MONITORING = {"metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}
# Who may read and write one tenant's runs alone.
USERS = {"auth": {"users": [{"name": "lattice", "tenant": "vision"}]}}
MODES: dict[str, dict[str, Any]] = {"open": {}, "members": MEMBERS, "closed": merged(MEMBERS, MTLS, AUTH, USERS)}


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, dict[str, str]]:
    authority = Authority(tmp_path)
    return {
        "rdzv-client-tls": authority.secret("store"),
        "rdzv-peer-tls": authority.secret(),
        "rdzv-auth": {"root-password": "of-root", "lattice": "of-all"},
    }


def test_every_metric_of_an_alert_is_one_that_etcd_has(cluster: MakeCluster, version: str) -> None:
    one = started(cluster(MONITORING, version))
    pod = one.pods[0]
    # Histograms show when there is something in them.
    assert pod.etcd.execute("etcdctl", "put", "x", "1").returncode == 0
    port = one.objects.get("Service", "lattice-rdzv-metrics")["spec"]["ports"][0]
    status, text = pod.get("/metrics", pod.etcd.ports[port["targetPort"]])
    assert status == 200
    exposed = set(re.findall(r"^([a-z_]+)(?:\{|\s)", text, re.MULTILINE))
    rules = one.objects.get("PrometheusRule")["spec"]["groups"][0]["rules"]
    named = {name for rule in rules for name in re.findall(r"\b([a-z_]+)\{", rule["expr"])} - {"up"}
    assert len(named) > 5
    assert named <= exposed, named - exposed
    # The quota that is alerted on is the one that was asked for.
    quota = re.search(r"^etcd_server_quota_backend_bytes (\S+)$", text, re.MULTILINE)
    assert quota is not None
    assert float(quota[1]) == float(one.objects.flags["quota-backend-bytes"])


@pytest.mark.parametrize("mode", MODES)
def test_helm_test_finds_the_store(
    cluster: MakeCluster, version: str, mode: str, secrets: dict[str, dict[str, str]]
) -> None:
    one = started(cluster(MODES[mode], version, secrets=secrets))
    (hook,) = hooks(one, MODES[mode]).all
    statuses = run_to_its_end(one, hook)
    assert set(statuses.values()) == {0}, statuses
    # By the variables of Kubernetes too, but for TLS, where no certificate is for an address.
    assert ("by-variables" in statuses) == (mode != "closed")


@pytest.mark.parametrize("mode", MODES)
def test_helm_test_fails_without_a_store(cluster: MakeCluster, mode: str, secrets: dict[str, dict[str, str]]) -> None:
    one = started(cluster(MODES[mode], "3.6.16", secrets=secrets))
    (hook,) = hooks(one, MODES[mode]).all
    for pod in one.pods:
        pod.kill()
    hook["spec"]["containers"] = [two for two in hook["spec"]["containers"] if two["name"] == "by-name"]
    hook["spec"]["containers"][0]["args"] = [
        re.sub("=[0-9]+s$", "=2s", argument) for argument in hook["spec"]["containers"][0]["args"]
    ]
    assert set(run_to_its_end(one, hook).values()) == {1}


@pytest.mark.parametrize("mode", MODES)
def test_two_agents_meet_with_what_the_chart_gives_them(
    cluster: MakeCluster, mode: str, secrets: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """`helm test` with an image of the agents: one `envFrom`, with TLS a volume more."""
    package = installed_package()
    # In the closed mode the tenant is that of the user.
    values = merged(MODES[mode], {"agents": {"image": "agent:1", "tenant": "" if mode == "closed" else "vision"}})
    one = started(cluster(values, "3.6.16", secrets=secrets))
    (hook,) = [hook for hook in hooks(one, values).all if hook["metadata"]["name"].endswith("rendezvous")]
    for container in hook["spec"]["containers"]:
        container["env"].append({"name": "PYTHONPATH", "value": "/opt/package"})
        container["volumeMounts"] = [
            *container.get("volumeMounts", []),
            {"name": "package", "mountPath": "/opt/package", "readOnly": True},
        ]
    hook["spec"].setdefault("volumes", []).append({"name": "package", "emptyDir": {}})
    pod = one.add("lattice-rdzv-test-rendezvous", {"metadata": hook["metadata"], "spec": hook["spec"]})
    shutil.copytree(package, pod.volume("package") / "lattice_rdzv")
    pod.start()
    statuses = {name: container.wait(150) for name, container in pod.containers.items()}
    assert statuses == {"node-1": 0, "node-2": 0}, pod.describe()
    said = {
        line.split(",")[0] for one in pod.containers.values() for line in one.log.splitlines() if line[:5] == "rank "
    }
    assert said == {"rank 0 of 2", "rank 1 of 2"}, pod.describe()


def test_agents_read_what_they_are_told() -> None:
    """The package's own sources know every name in the ConfigMap."""
    sources = (ROOT / "src" / "discovery" / "mod.rs").read_text() + (ROOT / "src" / "settings" / "keys.rs").read_text()
    known = set(re.findall(r'"(LATTICE_[A-Z_]+)"', sources))
    told = Renderer().objects(merged(MODES["closed"], {"agents": {"tenant": "vision"}})).agents
    assert len(told) == 10
    assert told.keys() <= known, told.keys() - known
    readme = (CHART / "README.md").read_text()
    assert all(name in readme or f"`_{name.rsplit('_', 1)[1]}`" in readme for name in told)


def installed_package() -> Path:
    """The package as it is installed here, native module and all."""
    found = importlib.util.find_spec("lattice_rdzv")
    if found is None or found.origin is None or not list(Path(found.origin).parent.glob("_core*.so")):
        pytest.skip("the package is not installed here (make test installs it; make chart alone does not)")
    return Path(found.origin).parent


def hooks(one: Cluster, values: dict[str, Any]) -> Any:
    return Renderer().hooks(merged({"image": one.objects.etcd["image"]}, values))


def run_to_its_end(one: Cluster, hook: Object) -> dict[str, int]:
    pod = one.add(hook["metadata"]["name"], {"metadata": hook["metadata"], "spec": hook["spec"]})
    pod.start()
    wait_for(
        "the test ends",
        lambda: not any(container.running for container in pod.containers.values()),
        timeout_seconds=60,
        detail=pod.describe,
    )
    return {name: container.wait() for name, container in pod.containers.items()}


def started(one: Cluster) -> Cluster:
    one.start()
    one.wait_ready()
    return one
