"""What cannot work is refused while it is rendered, by a message that names the value to change."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from chart.render import AUTH, MEMBERS, MTLS, Refused, Renderer, merged
from chart.tools import CHART, HELM_VERSIONS, NEWEST_HELM

V36 = {"image": "quay.io/coreos/etcd:v3.6.16"}
V37 = {"image": "quay.io/coreos/etcd:v3.7.3"}
PERSISTENT = {"persistence": {"enabled": True}}

# name: values, what the message has to say (all of it), Kubernetes
REFUSALS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "two members": (
        {"replicaCount": 2},
        ["an even number of etcd members", "--set replicaCount=3 --set persistence.enabled=true", "is: 2"],
        "1.30.0",
    ),
    "four members": ({"replicaCount": 4, **PERSISTENT}, ["even number", "replicaCount=5", "is: 4"], "1.30.0"),
    "seven members": ({"replicaCount": 7, **PERSISTENT}, ["take 1, 3 or 5", "is: 7"], "1.30.0"),
    "members without volumes": (
        {"replicaCount": 3},
        ["several members need volumes", "--set persistence.enabled=true", "is: 3"],
        "1.30.0",
    ),
    "an image as a map": (
        {"image": {"repository": "x"}},
        ["one string", "--set image=quay.io/coreos/etcd:v3.5.21", '`image` is: {"repository":"x"}'],
        "1.30.0",
    ),
    "v2 with 3.6": (
        {**V36, "etcd": {"enableV2": True}},
        ["no v2 API", "`etcd.enableV2`", "quay.io/coreos/etcd:v3.6.16"],
        "1.30.0",
    ),
    "v2 on a volume": (
        {**PERSISTENT, "etcd": {"enableV2": True}},
        ["3.6 does not start", "`etcd.enableV2`", "`persistence.enabled`"],
        "1.30.0",
    ),
    "auth with v2": (
        merged(AUTH, {"etcd": {"enableV2": True}}),
        ["open through v2", "`etcd.enableV2`", "`auth.enabled`"],
        "1.30.0",
    ),
    "auth on an emptyDir": (
        {"auth": {"enabled": True, "existingSecret": "rdzv-auth"}},
        ["part of the data", "--set persistence.enabled=true", "`tls.client.requireClientCert`"],
        "1.30.0",
    ),
    "auth without a Secret": (
        {**PERSISTENT, "auth": {"enabled": True}},
        ["`root-password`", "--set auth.existingSecret=rdzv-auth"],
        "1.30.0",
    ),
    "a Secret for auth that is off": (
        {"auth": {"existingSecret": "rdzv-auth"}},
        ["--set auth.enabled=true", "rdzv-auth"],
        "1.30.0",
    ),
    "a user twice": (
        merged(AUTH, {"auth": {"users": [{"name": "jobs"}, {"name": "jobs", "tenant": "a"}]}}),
        ["stands twice", "`jobs`"],
        "1.30.0",
    ),
    "TLS without a Secret": (
        {"tls": {"client": {"enabled": True}}},
        ["`tls.crt`, `tls.key` and `ca.crt`", "namespace `lattice`", "--set tls.client.existingSecret=rdzv-client-tls"],
        "1.30.0",
    ),
    "peers' TLS without a Secret": (
        {"tls": {"peer": {"enabled": True}}},
        ["--set tls.peer.existingSecret=rdzv-peer-tls"],
        "1.30.0",
    ),
    "a Secret for TLS that is off": (
        {"tls": {"client": {"existingSecret": "rdzv-tls"}}},
        ["--set tls.client.enabled=true", "rdzv-tls"],
        "1.30.0",
    ),
    "an authority without TLS": (
        {"tls": {"client": {"caCertificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}}},
        ["--set tls.client.enabled=true"],
        "1.30.0",
    ),
    "an open load balancer": (
        {"clientService": {"type": "LoadBalancer"}},
        [
            "anybody may read and write it",
            "`tls.client.requireClientCert`",
            "`auth.enabled`",
            "--set clientService.allowUnauthenticated=true",
            "`clientService.type` is: `LoadBalancer`",
        ],
        "1.30.0",
    ),
    "a load balancer for passwords in the clear": (
        merged(AUTH, {"clientService": {"type": "LoadBalancer"}}),
        ["passwords in the clear", "--set tls.client.enabled=true", "--set clientService.allowUnauthenticated=true"],
        "1.30.0",
    ),
    "a drain that takes the quorum": (
        merged(MEMBERS, {"pdb": {"maxUnavailable": 2}}),
        ["of 3 members 1 may be missing", "`pdb.maxUnavailable` is: 2"],
        "1.30.0",
    ),
    "agents of another tenant than their user": (
        merged(AUTH, {"auth": {"users": [{"name": "jobs", "tenant": "vision"}]}, "agents": {"tenant": "speech"}}),
        ["the first of `auth.users`", "`vision`, `speech`"],
        "1.30.0",
    ),
    "an open port on machines": (
        {"clientService": {"type": "NodePort"}},
        ["`clientService.type` is: `NodePort`"],
        "1.30.0",
    ),
    "a load balancer with server TLS alone": (
        merged(MTLS, {"tls": {"client": {"requireClientCert": False}}, "clientService": {"type": "LoadBalancer"}}),
        ["anybody may read and write it"],
        "1.30.0",
    ),
    "an open load balancer for peers": (
        {"serverService": {"type": "LoadBalancer"}},
        ["anybody may read and write it", "--set serverService.allowUnauthenticated=true"],
        "1.30.0",
    ),
    "peers' port behind clients' certificates alone": (
        {
            "tls": {"client": {"enabled": True, "existingSecret": "rdzv-client-tls"}},
            "serverService": {"type": "LoadBalancer"},
        },
        ["the peers' port", "--set tls.peer.enabled=true", "`LoadBalancer`"],
        "1.30.0",
    ),
    "a machine's port without its type": (
        {"clientService": {"nodePort": 30079}},
        ["--set clientService.type=NodePort", "`clientService.nodePort` is: 30079"],
        "1.30.0",
    ),
    "a peers' machine port without its type": (
        {"serverService": {"serverPort": {"nodePort": 30080}}},
        ["`serverService.serverPort.nodePort` is: 30080"],
        "1.30.0",
    ),
    "source ranges without a load balancer": (
        {"clientService": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        ["nobody would be kept out", "--set clientService.type=LoadBalancer"],
        "1.30.0",
    ),
    "an image without a version": (
        {"image": "registry.example:5000/etcd"},
        ["set `etcd.version`", "--set etcd.version=3.5.21", "registry.example:5000/etcd"],
        "1.30.0",
    ),
    "an image by its digest alone": (
        {"image": "quay.io/coreos/etcd@sha256:" + "0" * 64},
        ["set `etcd.version`", "sha256:"],
        "1.30.0",
    ),
    "an image with a floating tag": ({"image": "quay.io/coreos/etcd:latest"}, ["set `etcd.version`"], "1.30.0"),
    "an etcd that is too old": (
        {"image": "quay.io/coreos/etcd:v3.3.27"},
        ["3.4 or newer", "`image`", "`3.3.27`"],
        "1.30.0",
    ),
    "an experimental flag for 3.7": (
        {**V37, "etcd": {"extraArgs": ["--experimental-initial-corrupt-check=true"]}},
        ["no experimental flags", "`etcd.extraArgs`", "`--experimental-initial-corrupt-check`"],
        "1.30.0",
    ),
    "a flag that is gone": (
        {**V36, "etcd": {"extraArgs": ["--enable-v2=true"]}},
        ["does not start with this flag", "`--enable-v2`"],
        "1.30.0",
    ),
    "a flag twice": (
        {"etcd": {"extraArgs": ["--data-dir=/tmp"]}},
        ["repeats a flag", "`--data-dir`"],
        "1.30.0",
    ),
    "an argument that is no flag": ({"etcd": {"extraArgs": ["-name x"]}}, ["--flag=value", "`-name x`"], "1.30.0"),
    "no syncing on a disk": (
        {"etcd": {"unsafeNoFsync": True}},
        ["`etcd.unsafeNoFsync`", "--set ephemeral.medium=Memory"],
        "1.30.0",
    ),
    "a store in memory as large as its limit": (
        {"ephemeral": {"medium": "Memory"}, "resources": {"limits": {"memory": "1.5Gi"}}},
        ["`resources.limits.memory` above 1610612736 bytes", "`etcd.quotaBackendBytes`", "is: `1.5Gi`"],
        "1.30.0",
    ),
    "volumes in memory": (
        {**PERSISTENT, "ephemeral": {"medium": "Memory"}},
        ["exclude each other", "`ephemeral.medium`"],
        "1.30.0",
    ),
    "claims that an old Kubernetes keeps": (
        {"persistence": {"enabled": True, "whenDeleted": "Delete"}},
        ["before 1.27", "v1.26.0", "`persistence.whenDeleted`"],
        "1.26.0",
    ),
    "two Services of one name": (
        {"serverService": {"name": "lattice-rdzv-client"}},
        ["one name", "`clientService.name` or `serverService.name`"],
        "1.30.0",
    ),
    "a Service with the members' name": (
        {"clientService": {"name": "lattice-rdzv-members"}},
        ["one name", "lattice-rdzv-members"],
        "1.30.0",
    ),
    "clients on the peers' port": (
        {"clientService": {"internalPort": 2380}},
        ["ports of their own", "`etcd.metricsPort`", "2380, 2379, 2380, 2381"],
        "1.30.0",
    ),
    "metrics on the clients' port": ({"etcd": {"metricsPort": 2379}}, ["ports of their own"], "1.30.0"),
    "one port twice on the server Service": (
        {"serverService": {"serverPort": {"externalPort": 2379}}},
        ["needs two ports", "are: 2379"],
        "1.30.0",
    ),
    "your own etcd and members": (
        {"external": {"endpoints": ["etcd-1:2379"]}, **MEMBERS},
        ["`external.endpoints`", "`replicaCount`"],
        "1.30.0",
    ),
    "your own etcd and a policy": (
        {"external": {"endpoints": ["etcd-1:2379"]}, "networkPolicy": {"enabled": True}},
        ["`external.endpoints`", "`networkPolicy.enabled`"],
        "1.30.0",
    ),
    "your own etcd and a ServiceMonitor": (
        {"external": {"endpoints": ["etcd-1:2379"]}, "metrics": {"serviceMonitor": {"enabled": True}}},
        ["`external.endpoints`", "`metrics`"],
        "1.30.0",
    ),
    "your own etcd and alerts": (
        {"external": {"endpoints": ["etcd-1:2379"]}, "metrics": {"prometheusRule": {"enabled": True}}},
        ["`external.endpoints`", "`metrics`"],
        "1.30.0",
    ),
    "a test of your own etcd over TLS without a Secret": (
        {
            "external": {"endpoints": ["https://etcd-1:2379"]},
            "tls": {"client": {"enabled": True}},
            "agents": {"image": "agent:1"},
        },
        ["namespace `lattice`", "--set tls.client.existingSecret=rdzv-client-tls"],
        "1.30.0",
    ),
    "your own etcd with the other scheme": (
        {"external": {"endpoints": ["https://etcd-1:2379"]}},
        ["`tls.client.enabled=false`", "`http://`", "https://etcd-1:2379"],
        "1.30.0",
    ),
    "alerts without metrics": (
        {"metrics": {"prometheusRule": {"enabled": True}}},
        ["--set metrics.serviceMonitor.enabled=true"],
        "1.30.0",
    ),
    "namespaces by name on an old Kubernetes": (
        {"networkPolicy": {"enabled": True}, "agents": {"namespaces": ["team-a"]}},
        ["`networkPolicy.agentNamespaceSelector`", "`team-a`"],
        "1.20.0",
    ),
}


@cache
def message_of(name: str, version: str) -> str:
    values, _, kubernetes = REFUSALS[name]
    with pytest.raises(Refused) as refused:
        Renderer(version, kubernetes).text(values)
    return str(refused.value)


@pytest.mark.parametrize("version", HELM_VERSIONS)
@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name: str, version: str) -> None:
    message = message_of(name, version)
    for part in REFUSALS[name][1]:
        assert part in message, message


def test_every_refusal_in_the_templates_is_tested() -> None:
    """What cannot be rendered without a cluster is listed."""
    unseen = {
        "the live store has %d members, and etcd does not follow a changed count by itself",
        "the members of the live store know each other by other URLs",
    }
    templates = "".join(path.read_text() for path in (CHART / "templates").glob("*.tpl"))
    words = [match.split(";")[0] for match in re.findall(r'fail (?:\(printf )?"([^"]+)"', templates)]
    assert len(words) > 30
    messages = [message_of(name, NEWEST_HELM) for name in REFUSALS]
    for text in words:
        if any(text.startswith(one) for one in unseen):
            continue
        pattern = re.escape(text.split(". ")[0]).replace("%s", ".*").replace("%d", "[0-9]+").replace("%t", ".*")
        assert any(re.search(pattern, message) for message in messages), f"no refusal has these words: {text}"


def in_memory(limit: str | int) -> dict[str, Any]:
    """A store of 1536000000 bytes beside that memory limit."""
    return {
        "ephemeral": {"medium": "Memory", "sizeLimit": "1536M"},
        "resources": {"limits": {"memory": limit}},
    }


@pytest.mark.parametrize(
    "limit", [1536000001, "1536000001000m", "1536001k", "1537M", "2e9", "1500001Ki", "1465Mi", "1.5Gi"]
)
def test_a_memory_limit_above_the_store_is_taken_in_each_notation(limit: str | int) -> None:
    assert Renderer().objects(in_memory(limit)).etcd["resources"]["limits"]["memory"] == limit


@pytest.mark.parametrize(
    "limit", [1536000000, "1536000000000m", "1536000k", "1536M", "1.5e9", "1500000Ki", "1464Mi", "0.001T"]
)
def test_a_memory_limit_that_the_store_alone_fills_is_refused_in_each_notation(limit: str | int) -> None:
    with pytest.raises(Refused, match="above 1536000000 bytes"):
        Renderer().text(in_memory(limit))


def test_your_own_etcd_over_tls_needs_no_secret_where_the_chart_mounts_none() -> None:
    values = {"external": {"endpoints": ["https://etcd-1:2379"]}, "tls": {"client": {"enabled": True}}}
    assert Renderer().objects(values).agents["LATTICE_RDZV_CACERT"] == "/etc/lattice-rdzv/tls/ca.crt"


def test_what_is_published_on_purpose_is_rendered() -> None:
    values = {"type": "LoadBalancer", "allowUnauthenticated": True}
    objects = Renderer().objects({"clientService": values, "serverService": values})
    assert objects.get("Service", "lattice-rdzv-client")["spec"]["type"] == "LoadBalancer"
    assert objects.get("Service", "lattice-rdzv-server")["spec"]["type"] == "LoadBalancer"


USERS_OVER_TLS = merged(AUTH, {"tls": {"client": {**MTLS["tls"]["client"], "requireClientCert": False}}})


@pytest.mark.parametrize("closed", [MTLS, USERS_OVER_TLS], ids=["mtls", "auth"])
def test_a_closed_store_may_be_published(closed: dict[str, Any]) -> None:
    objects = Renderer().objects(merged(closed, {"clientService": {"type": "LoadBalancer"}}))
    assert objects.get("Service", "lattice-rdzv-client")["spec"]["type"] == "LoadBalancer"


def test_the_member_count_is_in_what_the_api_server_lets_nobody_change() -> None:
    """A StatefulSet's selector is immutable, which holds without a look-up too."""
    three = Renderer().objects(MEMBERS).workload["spec"]
    five = Renderer().objects(merged(MEMBERS, {"replicaCount": 5})).workload["spec"]
    assert three["selector"] != five["selector"]


def test_a_refused_chart_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        Renderer(arguments=("--output-dir", str(tmp_path))).text({"replicaCount": 2})
    assert not list(tmp_path.rglob("*.yaml"))
