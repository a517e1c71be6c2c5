"""The optional objects of the chart besides etcd: certificates, a dashboard, a CronJob."""

from __future__ import annotations

import json
import re

import pytest
from harness.wait import wait_for

from chart.cluster import Cluster
from chart.conftest import MakeCluster
from chart.render import AUTH, MEMBERS, MTLS, Renderer, merged
from chart.tools import CHART

ISSUED = {"tls": {side: {"enabled": True, "issuerRef": {"name": "ca"}} for side in ("client", "peer")}}
NIGHTLY = {"defragmentation": {"enabled": True}}


def test_certificates_have_every_name_that_clients_and_peers_use() -> None:
    objects = Renderer().objects(merged(MEMBERS, ISSUED))
    secrets = {one["name"]: one["secret"]["secretName"] for one in objects.pod["spec"]["volumes"] if "secret" in one}
    for side in ("client", "peer"):
        spec = objects.get("Certificate", f"lattice-rdzv-{side}")["spec"]
        assert spec["secretName"] == secrets[f"{side}-tls"]
        assert {"server auth", "client auth"} <= set(spec["usages"])
    client = objects.get("Certificate", "lattice-rdzv-client")["spec"]["dnsNames"]
    hosts = re.findall(r"https://([^:]+):", objects.agents["LATTICE_RDZV_ENDPOINTS"])
    assert len(hosts) == 3
    wildcard = "*.lattice-rdzv-members.lattice.svc.cluster.local"
    assert wildcard in client
    assert all(host.split(".", 1)[1] == wildcard.removeprefix("*.") for host in hosts)
    assert "lattice-rdzv-client.lattice.svc.cluster.local" in client
    assert objects.get("Certificate", "lattice-rdzv-peer")["spec"]["dnsNames"] == [wildcard]


def test_dashboard_shows_metrics_that_etcd_has(cluster: MakeCluster) -> None:
    one: Cluster = cluster({"metrics": {"grafanaDashboard": {"enabled": True}}}, "3.6.16")
    dashboard = json.loads(one.objects.get("ConfigMap", "lattice-rdzv-dashboard")["data"]["lattice-rdzv.json"])
    assert dashboard == json.loads((CHART / "files" / "dashboard.json").read_text())
    (pod,) = one.start()
    pod.wait_ready()
    _, metrics = pod.get("/metrics", 2381)
    names = set(re.findall(r"etcd_[a-z_]+", str(dashboard["panels"])))
    assert len(names) > 8
    assert not [name for name in names if name not in metrics]


@pytest.mark.namespaces
@pytest.mark.timeout(240)
def test_cron_job_defragments_each_member(cluster: MakeCluster) -> None:
    one = cluster(
        merged(MEMBERS, AUTH, NIGHTLY), "3.6.16", secrets={"rdzv-auth": {"root-password": "r", "lattice": "l"}}
    )
    one.start()
    one.wait_ready(timeout_seconds=90)
    template = one.objects.get("CronJob", "lattice-rdzv-defragmentation")["spec"]["jobTemplate"]["spec"]["template"]
    job = one.add("defragmentation", template)
    job.start()
    container = job.containers["defragment"]
    wait_for("it has ended", lambda: not container.running, timeout_seconds=90, detail=job.describe)
    assert container.log.count("Finished defragmenting etcd member") == 3, container.log


def test_cron_job_has_the_files_for_tls() -> None:
    objects = Renderer().objects(merged(MEMBERS, MTLS, NIGHTLY))
    job = objects.get("CronJob", "lattice-rdzv-defragmentation")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = job["containers"]
    assert container["args"][0] == "defrag"
    assert {one["name"] for one in container["env"]} >= {"ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY"}
    assert container["volumeMounts"][0]["name"] in {volume["name"] for volume in job["volumes"]}
