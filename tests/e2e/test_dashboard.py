"""`dashboard.enabled`: the page in a pod reads an etcd with certificates and users, behind NetworkPolicies."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart.authority import Authority
from chart.render import AUTH, MTLS, merged
from chart.test_dashboard import NAME, PAGE

from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakePod
from e2e.kubernetes import Failed
from e2e.test_policies import SMALL, secret
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(600, func_only=True)

# Prints the body of a response.
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"


@pytest.mark.addresses
def test_page_reads_etcd_and_cannot_write(cluster: Cluster, chart: Chart, agent_pod: MakePod, tmp_path: Path) -> None:
    authority = Authority(tmp_path, namespace=chart.namespace)
    passwords = {"root-password": "of-root", "lattice": "of-agents", NAME: "of-page"}
    cluster.kubernetes.apply(
        secret(chart.namespace, "rdzv-client-tls", authority.secret()),
        secret(chart.namespace, "page-tls", authority.secret()),
        secret(chart.namespace, "page-login", {"lattice": "of-browsers"}),
        secret(chart.namespace, "rdzv-auth", passwords),
    )
    # No pod is an agent, so the page reaches etcd by its own rule alone.
    policy = {"networkPolicy": {"enabled": True, "agentPodSelector": {"matchLabels": {"role": "agent"}}}}
    page = {
        "auth": {"image": cluster.agent_image},
        "tls": {"client": MTLS["tls"]["client"]},
        "dashboard": {"image": cluster.agent_image, "resources": SMALL["resources"]},
    }
    chart.install(merged(AUTH, PAGE, policy, page))
    deployment = f"deployment/{NAME}"
    cluster.kubernetes.roll_out(deployment, chart.namespace)
    (pod,) = cluster.kubernetes.list("pods", chart.namespace, selector=f"app={NAME}")

    # Prometheus' request, from another pod.
    address = pod["status"]["podIP"]
    address = f"[{address}]" if ":" in address else address
    prometheus = agent_pod(chart.namespace, "prometheus", with_config=False)
    wait_for(
        "the page reads etcd",
        lambda: "\nlattice_service_up 1\n" in prometheus("python3", "-c", FETCH, f"http://{address}:8090/metrics"),
        detail=lambda: cluster.kubernetes("logs", deployment, f"--namespace={chart.namespace}"),
    )
    # The command in the page's pod has the rights of the page. It can read, and finds no run.
    with pytest.raises(Failed, match="there is no run of this tenant"):
        cluster.kubernetes.execute(chart.namespace, deployment, "lattice-rdzv", "status", "--all", "--timeout=60")
    user = f"--user={NAME}:of-page"
    key = "/lattice/rdzv/default/x"
    chart.etcdctl("put", key, "1", "--user=lattice:of-agents")
    assert chart.etcdctl("get", key, "--print-value-only", user).strip() == "1"
    with pytest.raises(Failed, match="permission denied"):
        chart.etcdctl("put", key, "2", user)
