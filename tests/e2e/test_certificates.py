"""cert-manager issues the certificates of the chart. Its real controllers run beside the tests, with its kinds in the cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chart.render import MEMBERS, merged
from chart.test_dashboard import NAME
from chart.tools import FOLDER, tool

from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.kubernetes import Object
from e2e.test_policies import SMALL, helm_test, secret, with_agents

pytestmark = pytest.mark.timeout(600, func_only=True)

CERT_MANAGER = "cert-manager-1.19.1"


@pytest.fixture
def cert_manager(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    """Runs the controllers. Certificates and issuers are deleted with their kinds."""
    if cluster.no_faults:
        pytest.skip("the kinds of cert-manager are installed only in a cluster of these tests")
    program = tool(f"{CERT_MANAGER}/cert-manager")
    kinds = f"--filename={FOLDER / f'definitions-{CERT_MANAGER}'}"
    cluster.kubernetes("apply", "--server-side", kinds)
    log = tmp_path / "cert-manager.log"
    try:
        cluster.kubernetes("wait", kinds, "--for=condition=Established", "--timeout=60s")
        with log.open("wb") as file:
            process = subprocess.Popen([program, cluster.kubernetes.kubeconfig], stdout=file, stderr=file)
        try:
            yield
        finally:
            process.kill()
            process.wait()
            print(log.read_text(errors="replace"))
    finally:
        cluster.kubernetes("delete", kinds)


def of_cert_manager(kind: str, name: str, namespace: str, spec: Object) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "cert-manager.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def authority(name: str, namespace: str) -> list[Object]:
    """Returns an issuer of this name with a separate CA."""
    certificate = {"isCA": True, "commonName": name, "secretName": name, "issuerRef": {"name": "self-signed"}}
    return [
        of_cert_manager("Issuer", "self-signed", namespace, {"selfSigned": {}}),
        of_cert_manager("Certificate", name, namespace, certificate),
        of_cert_manager("Issuer", name, namespace, {"ca": {"secretName": name}}),
    ]


@pytest.mark.usefixtures("cert_manager")
def test_members_agents_and_the_page_use_certificates_of_cert_manager(cluster: Cluster, chart: Chart) -> None:
    cluster.kubernetes.apply(
        secret(chart.namespace, "page-login", {"lattice": "of-browsers"}),
        *(one for name in ("clients", "peers") for one in authority(name, chart.namespace)),
    )
    tls: dict[str, Any] = {
        "client": {"enabled": True, "issuerRef": {"name": "clients"}},
        "peer": {"enabled": True, "issuerRef": {"name": "peers"}},
    }
    page = {
        "enabled": True,
        "image": cluster.agent_image,
        "tls": {"issuerRef": {"name": "clients"}},
        "login": {"existingSecret": "page-login"},
        **SMALL,
    }
    chart.install(merged(MEMBERS, with_agents(cluster), {"tls": tls, "dashboard": page}))
    assert "Phase:          Succeeded" in helm_test(chart)
    cluster.kubernetes.roll_out(f"deployment/{NAME}", chart.namespace)
