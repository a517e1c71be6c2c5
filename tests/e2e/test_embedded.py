"""`engine: embedded`: a job with the embedded server, whose only pod is lost, and then with certificates and a password."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart.authority import Authority
from chart.render import AUTH, MTLS

from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeJob
from e2e.kubernetes import is_ready
from e2e.test_policies import SMALL, helm_test, secret

pytestmark = pytest.mark.timeout(600, func_only=True)


@pytest.mark.addresses
def test_job_survives_the_loss_of_the_embedded_server(
    cluster: Cluster, chart: Chart, job: MakeJob, tmp_path: Path
) -> None:
    chart.install({"engine": "embedded", "image": cluster.agent_image, **SMALL})
    assert "Phase:          Succeeded" in helm_test(chart)
    one = job(chart.namespace, nodes=2, nnodes="2:3", conf="last_call_timeout=3")
    one.world(2)
    (old,) = chart.pods()

    cluster.kubernetes("delete", "pod", old["metadata"]["name"], f"--namespace={chart.namespace}")
    one.wait("another server serves", lambda: [pod for pod in chart.pods() if is_ready(pod)])
    (new,) = chart.pods()
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    status = ("sh", "-c", "lattice-rdzv status $LATTICE_RDZV_ID || true")

    def is_restored() -> bool:
        shown = cluster.kubernetes.execute(chart.namespace, one.pod_of("train-0"), *status)
        return "train-0" in shown and "train-1" in shown

    one.wait("both nodes are registered again", is_restored)
    assert len(one.lines("started")) == 2, "no worker was started again"
    one.scale(3)
    assert {line.restart_count for line in one.world(3)} == {0}
    one.end()
    one.succeeded()

    # Probes need neither the certificate nor the password, and the two nodes of `helm test` have both.
    authority = Authority(tmp_path, namespace=chart.namespace)
    cluster.kubernetes.apply(
        secret(chart.namespace, "rdzv-client-tls", authority.secret()),
        secret(chart.namespace, "rdzv-auth", {"lattice": "of-agents"}),
    )
    chart.upgrade({"tls": {"client": MTLS["tls"]["client"]}, "auth": AUTH["auth"]})
    assert "Phase:          Succeeded" in helm_test(chart)
