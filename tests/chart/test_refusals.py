"""Values that cannot work together fail at render time with a message that names the value to change."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chart.render import AUTH, EMBEDDED, MEMBERS, MTLS, Refused, Renderer, default_values, merged
from chart.test_contract import PROMISED
from chart.test_dashboard import PAGE
from chart.tools import CHART, HELM_VERSIONS

V36 = {"image": "quay.io/coreos/etcd:v3.6.16"}
V37 = {"image": "quay.io/coreos/etcd:v3.7.3"}
PERSISTENT = {"persistence": {"enabled": True}}
PASSWORD = {"auth": AUTH["auth"]}
EXTERNAL = {"endpoints": ["etcd-1:2379"]}
NOW = "1.30.0"

SERVICES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "clientService": lambda service: {"clientService": service},
    "serverService": lambda service: {"serverService": service},
    "dashboard.service": lambda service: merged(PAGE, {"dashboard": {"service": service}}),
}

# The flags that the chart guards. The list is empty if the template has another form.
GUARDED = re.findall(
    r"^([a-z0-9-]+): ",
    (CHART / "templates" / "_flags.tpl")
    .read_text()
    .partition('define "lattice.guardedFlags"')[2]
    .partition("{{- end")[0],
    re.MULTILINE,
)

GUARDED_VARIABLES = ["ETCD_" + flag.upper().replace("-", "_") for flag in GUARDED]

# name in the table of templates/_refusals.tpl: values, what the message must contain, Kubernetes
REFUSALS: dict[str, list[tuple[dict[str, Any], list[str], str]]] = {
    "even-members": [
        ({"replicaCount": 2}, ["must be 1, 3, or 5, but is 2", "replicaCount=3 --set persistence.enabled=true"], NOW),
        ({"replicaCount": 6, **PERSISTENT}, ["but is 6", "replicaCount=5"], NOW),
    ],
    "many-members": [({"replicaCount": 7, **PERSISTENT}, ["must be 1, 3, or 5, but is 7"], NOW)],
    "drain-takes-quorum": [
        (merged(MEMBERS, {"pdb": {"maxUnavailable": 2}}), ["`pdb.maxUnavailable` must be at most 1, but is 2"], NOW)
    ],
    "members-without-volumes": [({"replicaCount": 3}, ["`replicaCount` is 3", "--set persistence.enabled=true"], NOW)],
    "volume-and-ephemeral": [
        (
            {**PERSISTENT, "ephemeral": {"medium": "Memory"}},
            ["exclude each other", "`ephemeral.medium` is `Memory`"],
            NOW,
        )
    ],
    "no-fsync-on-disk": [
        ({"etcd": {"unsafeNoFsync": True}}, ["`etcd.unsafeNoFsync`", "--set ephemeral.medium=Memory"], NOW)
    ],
    "revisions-that-are-a-time": [
        (
            {"etcd": {"autoCompactionMode": "revision"}},
            ["`etcd.autoCompactionRetention` is `1h`", "autoCompactionRetention=10000"],
            NOW,
        )
    ],
    "time-without-unit": [
        ({"etcd": {"autoCompactionRetention": 10000}}, ["is `10000`", "`90m`", "up to 720"], NOW),
        ({"etcd": {"autoCompactionRetention": "1.5"}}, ["is `1.5`", "autoCompactionMode=revision"], NOW),
    ],
    "memory-limit-below-data": [
        (
            {"ephemeral": {"medium": "Memory"}, "resources": {"limits": {"memory": "1.5Gi"}}},
            ["`resources.limits.memory` must be above 1610612736 bytes, but is `1.5Gi`", "`etcd.quotaBackendBytes`"],
            NOW,
        )
    ],
    "volume-below-quota": [
        (
            {**PERSISTENT, "etcd": {"quotaBackendBytes": 8589934592}, "persistence": {"enabled": True, "size": "7Gi"}},
            ["`persistence.size` is `7Gi`", "8589934592 bytes", "`etcd.quotaBackendBytes`"],
            NOW,
        ),
        ({"ephemeral": {"sizeLimit": 1000000000}}, ["`ephemeral.sizeLimit`", "2147483648", "`1000000000`"], NOW),
    ],
    "delete-claims-on-old-kubernetes": [
        (
            {"persistence": {"enabled": True, "whenDeleted": "Delete"}},
            ["before 1.27", "v1.26.0", "`persistence.whenDeleted`"],
            "1.26.0",
        )
    ],
    "old-etcd": [({"image": "quay.io/coreos/etcd:v3.3.27"}, ["3.4 or newer", "`image`", "`3.3.27`"], NOW)],
    "v2-on-new-etcd": [({**V36, "etcd": {"enableV2": True}}, ["no v2 API", "quay.io/coreos/etcd:v3.6.16"], NOW)],
    "v2-with-auth": [
        (merged(AUTH, {"etcd": {"enableV2": True}}), ["every client could write through v2", "`auth.enabled`"], NOW)
    ],
    "v2-on-volume": [
        ({**PERSISTENT, "etcd": {"enableV2": True}}, ["3.6 does not start", "`persistence.enabled`"], NOW)
    ],
    "dashboard-off": [({"dashboard": {"login": {"existingSecret": "s"}}}, ["--set dashboard.enabled=true"], NOW)],
    "dashboard-without-image": [
        (merged(PAGE, {"dashboard": {"image": ""}}), ["`dashboard.image`", "`agents.image`", "make image"], NOW)
    ],
    "dashboard-without-tls": [
        (
            merged(PAGE, {"dashboard": {"tls": {"existingSecret": ""}}}),
            ["--set dashboard.tls.existingSecret=rdzv-dashboard-tls", "namespace `lattice`"],
            NOW,
        )
    ],
    "dashboard-secret-and-issuer": [
        (
            merged(PAGE, {"dashboard": {"tls": {"issuerRef": {"name": "ca"}}}}),
            ["`dashboard.tls.issuerRef` exclude"],
            NOW,
        )
    ],
    "dashboard-without-login": [
        (
            merged(PAGE, {"dashboard": {"login": {"existingSecret": "", "user": "ops"}}}),
            ["the key `ops`", "--set dashboard.login.existingSecret=rdzv-dashboard-login"],
            NOW,
        )
    ],
    "dashboard-ports": [(merged(PAGE, {"dashboard": {"metricsPort": 8089}}), ["must differ. Both are: 8089"], NOW)],
    "dashboard-user-of-agents": [
        (merged(PAGE, AUTH, {"dashboard": {"etcd": {"user": "lattice"}}}), ["another user", "`lattice`"], NOW)
    ],
    "dashboard-policy-without-clients": [
        (
            merged(PAGE, {"networkPolicy": {"enabled": True}, "dashboard": {"service": {"type": "LoadBalancer"}}}),
            ["`dashboard.service.type` is `LoadBalancer`", "`dashboard.networkPolicy.from`"],
            NOW,
        )
    ],
    "dashboard-external-without-password": [
        (
            merged(PAGE, {"external": {"endpoints": ["etcd-1:2379"], "user": "u"}}),
            ["the key `u`", "`external.existingSecret`"],
            NOW,
        )
    ],
    "dashboard-external-without-certificate": [
        (
            merged(PAGE, {"external": {"endpoints": ["https://etcd-1:2379"]}, "tls": {"client": {"enabled": True}}}),
            ["`dashboard.etcd.existingSecret`", "`ca.crt`"],
            NOW,
        )
    ],
    "client-tls-without-secret": [
        (
            {"tls": {"client": {"enabled": True}}},
            ["namespace `lattice`", "--set tls.client.existingSecret=rdzv-client-tls"],
            NOW,
        )
    ],
    "peer-tls-without-secret": [
        ({"tls": {"peer": {"enabled": True}}}, ["--set tls.peer.existingSecret=rdzv-peer-tls"], NOW)
    ],
    "client-secret-without-tls": [
        ({"tls": {"client": {"existingSecret": "rdzv-tls"}}}, ["--set tls.client.enabled=true", "rdzv-tls"], NOW)
    ],
    "peer-secret-without-tls": [
        ({"tls": {"peer": {"existingSecret": "rdzv-tls"}}}, ["--set tls.peer.enabled=true", "rdzv-tls"], NOW)
    ],
    **{
        f"{side}-secret-and-issuer": [
            (
                {"tls": {side: {"enabled": True, "existingSecret": "s", "issuerRef": {"name": "ca"}}}},
                [f"`tls.{side}.existingSecret` and `tls.{side}.issuerRef` exclude each other"],
                NOW,
            )
        ]
        for side in ("client", "peer")
    },
    **{
        f"{side}-issuer-without-tls": [
            ({"tls": {side: {"issuerRef": {"name": "ca"}}}}, [f"--set tls.{side}.enabled=true"], NOW)
        ]
        for side in ("client", "peer")
    },
    "unknown-user-of-namespace": [
        (
            merged(AUTH, {"agents": {"namespaces": [{"name": "team-a", "user": "stranger"}]}}),
            ["`agents.namespaces`", "`stranger`"],
            NOW,
        )
    ],
    "user-of-namespace-without-auth": [
        ({"agents": {"namespaces": [{"name": "team-a", "user": "lattice"}]}}, ["--set auth.enabled=true"], NOW)
    ],
    "external-user-without-endpoints": [({"external": {"user": "jobs"}}, ["`external.endpoints` is empty"], NOW)],
    "external-test-without-password": [
        (
            {"external": {**EXTERNAL, "user": "jobs"}, "agents": {"image": "agent:1"}},
            ["set `external.existingSecret`", "`jobs`"],
            NOW,
        )
    ],
    "ca-without-tls": [
        (
            {"tls": {"client": {"caCertificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}}},
            ["--set tls.client.enabled=true"],
            NOW,
        )
    ],
    "mtls-with-plain-peers": [
        (
            merged(MEMBERS, {"tls": {"client": MTLS["tls"]["client"]}}),
            [
                "serves the client API on the peer port",
                "--set tls.peer.enabled=true",
                "etcd 3.6",
                "UPGRADING.md",
                "`3.5.5`",
            ],
            NOW,
        )
    ],
    "auth-on-ephemeral": [
        (
            {"auth": {"enabled": True, "existingSecret": "rdzv-auth"}},
            ["part of the data", "--set persistence.enabled=true", "`tls.client.requireClientCert`"],
            NOW,
        )
    ],
    "auth-without-secret": [
        ({**PERSISTENT, "auth": {"enabled": True}}, ["`root-password`", "--set auth.existingSecret=rdzv-auth"], NOW)
    ],
    "secret-without-auth": [({"auth": {"existingSecret": "rdzv-auth"}}, ["--set auth.enabled=true", "rdzv-auth"], NOW)],
    "user-twice": [
        (
            merged(AUTH, {"auth": {"users": [{"name": "jobs"}, {"name": "jobs", "tenant": "a"}]}}),
            ["must name each user once", "`jobs`"],
            NOW,
        )
    ],
    "tenant-of-namespace-without-right": [
        (
            merged(
                AUTH,
                {
                    "auth": {"users": [{"name": "all"}, {"name": "jobs", "tenant": "vision"}]},
                    "agents": {"namespaces": [{"name": "team", "user": "jobs", "tenant": "speech"}]},
                },
            ),
            ["must be the tenant of the user there", "`team`"],
            NOW,
        )
    ],
    "tenant-of-another-user": [
        (
            merged(AUTH, {"auth": {"users": [{"name": "jobs", "tenant": "vision"}]}, "agents": {"tenant": "speech"}}),
            ["the first of `auth.users`", "only the tenant `vision`", "`agents.tenant` is `speech`"],
            NOW,
        )
    ],
    "service-names": [
        (
            {"serverService": {"name": "lattice-rdzv-client"}},
            ["would have one name", "`clientService.name` or `serverService.name`"],
            NOW,
        ),
        ({"clientService": {"name": "lattice-rdzv-members"}}, ["would have one name", "lattice-rdzv-members"], NOW),
    ],
    "container-ports": [
        (
            {"clientService": {"internalPort": 2380}},
            ["`etcd.metricsPort`", "must differ", "2380, 2379, 2380, 2381"],
            NOW,
        ),
        ({"etcd": {"metricsPort": 2379}}, ["must differ"], NOW),
    ],
    "server-ports": [
        ({"serverService": {"serverPort": {"externalPort": 2379}}}, ["must differ", "Both are: 2379"], NOW)
    ],
    "clientService-node-port": [
        (
            {"clientService": {"nodePort": 30079}},
            ["--set clientService.type=NodePort", "`clientService.nodePort` is: 30079"],
            NOW,
        )
    ],
    "serverService-node-port": [
        (
            {"serverService": {"serverPort": {"nodePort": 30080}}},
            ["`serverService.serverPort.nodePort` is: 30080"],
            NOW,
        )
    ],
    "clientService-open": [
        (
            {"clientService": {"type": "LoadBalancer"}},
            [
                "every client that reaches etcd can write to it",
                "`tls.client.requireClientCert`",
                "`auth.enabled`",
                "--set clientService.allowUnauthenticated=true",
                "`clientService.type` is `LoadBalancer`",
            ],
            NOW,
        ),
        (
            merged(MTLS, {"tls": {"client": {"requireClientCert": False}}, "clientService": {"type": "NodePort"}}),
            ["every client that reaches etcd can write to it"],
            NOW,
        ),
    ],
    "serverService-open": [
        (
            {"serverService": {"type": "LoadBalancer"}},
            ["every client that reaches etcd can write to it", "--set serverService.allowUnauthenticated=true"],
            NOW,
        )
    ],
    **{
        f"{service}-plain-passwords": [
            (
                merged(AUTH, {service: {"type": "LoadBalancer"}}),
                ["unencrypted", "--set tls.client.enabled=true", f"--set {service}.allowUnauthenticated=true"],
                NOW,
            )
        ]
        for service in ("clientService", "serverService")
    },
    **{
        f"{key}-source-ranges": [
            (
                values({"loadBalancerSourceRanges": ["10.0.0.0/8"]}),
                ["has no effect here", f"--set {key}.type=LoadBalancer"],
                NOW,
            )
        ]
        for key, values in SERVICES.items()
    },
    **{
        f"{key}-load-balancer-class": [
            (values({"loadBalancerClass": "example.com/lb"}), ["`example.com/lb`", f"`{key}.type`"], NOW)
        ]
        for key, values in SERVICES.items()
    },
    **{
        f"{key}-external-policy": [
            (values({"externalTrafficPolicy": "Local"}), [f"`{key}.externalTrafficPolicy`", "`ClusterIP`"], NOW)
        ]
        for key, values in SERVICES.items()
    },
    "serverService-plain-peers": [
        (
            merged(MEMBERS, V36, {"tls": {"client": MTLS["tls"]["client"]}, "serverService": {"type": "LoadBalancer"}}),
            ["the peer port", "--set tls.peer.enabled=true", "`LoadBalancer`"],
            NOW,
        )
    ],
    "two-monitors": [
        (
            {"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
            ["twice", "`metrics.podMonitor.enabled`"],
            NOW,
        )
    ],
    "alerts-without-metrics": [
        ({"metrics": {"prometheusRule": {"enabled": True}}}, ["--set metrics.serviceMonitor.enabled=true"], NOW)
    ],
    "policy-without-namespace-names": [
        (
            {"networkPolicy": {"enabled": True}, "agents": {"namespaces": ["team-a"]}},
            ["`networkPolicy.agentNamespaceSelector`", "`team-a`"],
            "1.20.0",
        )
    ],
    "policy-without-prometheus": [
        (
            {"networkPolicy": {"enabled": True}, "metrics": {monitor: {"enabled": True}}},
            ["`networkPolicy.metricsNamespaceSelector`", "blocks Prometheus"],
            NOW,
        )
        for monitor in ("serviceMonitor", "podMonitor")
    ],
    "policy-without-ip-blocks": [
        (
            merged(MTLS, {"networkPolicy": {"enabled": True}, "clientService": {"type": kind}}),
            ["`networkPolicy.ipBlocks`", "from outside of the cluster"],
            NOW,
        )
        for kind in ("LoadBalancer", "NodePort")
    ],
    "external-with-own-etcd": [
        ({"external": EXTERNAL, **MEMBERS}, ["`external.endpoints`", "`replicaCount`"], NOW),
        ({"external": EXTERNAL, "networkPolicy": {"enabled": True}}, ["`networkPolicy.enabled`"], NOW),
        ({"external": EXTERNAL, "metrics": {"serviceMonitor": {"enabled": True}}}, ["`metrics`"], NOW),
        ({"external": EXTERNAL, "metrics": {"podMonitor": {"enabled": True}}}, ["`metrics`"], NOW),
        ({"external": EXTERNAL, "metrics": {"prometheusRule": {"enabled": True}}}, ["`metrics`"], NOW),
    ],
    "external-with-engine": [({**EMBEDDED, "external": EXTERNAL}, ["`engine` is `embedded`", "runs no server"], NOW)],
    "embedded-image-of-etcd": [
        (
            {"engine": "embedded"},
            ["contains the package `lattice-rdzv`", "--set image=", "quay.io/coreos/etcd:v3.5.5"],
            NOW,
        ),
        ({"engine": "embedded", "image": "mirror.example:5000/etcd@sha256:" + "0" * 64}, ["`lattice-rdzv`"], NOW),
    ],
    # Each of these values has a test in test_embedded.py.
    "embedded-values-of-etcd": [
        (
            merged(EMBEDDED, MEMBERS, {"etcd": {"quotaBackendBytes": 1073741824}}),
            [
                "`engine: embedded`",
                "`replicaCount` (the embedded server is one process and has no peers)",
                "`persistence.enabled` (the embedded server keeps everything in memory)",
                "`etcd.quotaBackendBytes` (the limit of the embedded server is 1 GiB",
            ],
            NOW,
        )
    ],
    "embedded-several-users": [
        (
            merged(EMBEDDED, PASSWORD, {"auth": {"users": [{"name": "jobs"}, {"name": "team-a"}]}}),
            ["has one user", "`auth.users` has 2", "`jobs`, `team-a`"],
            NOW,
        )
    ],
    "embedded-tenants": [
        (
            merged(EMBEDDED, PASSWORD, {"auth": {"users": [{"name": "jobs", "tenant": "vision"}]}}),
            ["has no roles", "`auth.users`", "`vision`"],
            NOW,
        )
    ],
    "embedded-ports": [
        (merged(EMBEDDED, {"etcd": {"metricsPort": 2379}}), ["`etcd.metricsPort` must differ", "Both are: 2379"], NOW)
    ],
    "external-test-without-tls-secret": [
        (
            {
                "external": {"endpoints": ["https://etcd-1:2379"]},
                "tls": {"client": {"enabled": True}},
                "agents": {"image": "agent:1"},
            },
            ["namespace `lattice`", "--set tls.client.existingSecret=rdzv-client-tls"],
            NOW,
        )
    ],
    "external-scheme": [
        (
            {"external": {"endpoints": ["https://etcd-1:2379"]}},
            ["`tls.client.enabled=false`", "`http://`", "https://etcd-1:2379"],
            NOW,
        )
    ],
    "argument-without-flag": [
        ({"etcd": {"extraArgs": ["-name x", "a\nb: c"]}}, ["--flag=value", r"change `-name x`, `a\nb: c`"], NOW)
    ],
    "argument-that-bypasses-a-value": [
        (
            {"etcd": {"extraArgs": [f"--{flag}{value}" for flag in GUARDED]}},
            ["remove these flags from `etcd.extraArgs`", *(f"`--{flag}`: " for flag in GUARDED)],
            NOW,
        )
        for value in ("", "=true")
    ],
    "argument-of-the-chart": [
        ({"etcd": {"extraArgs": ["--data-dir=/tmp", "--name=x"]}}, ["repeats a flag", "`--data-dir`, `--name`"], NOW)
    ],
    "experimental-argument-on-new-etcd": [
        (
            {**V37, "etcd": {"extraArgs": ["--experimental-initial-corrupt-check=true"]}},
            ["no experimental flags", "`etcd.extraArgs`", "`--experimental-initial-corrupt-check`"],
            NOW,
        )
    ],
    "variable-that-bypasses-a-value": [
        (
            {"etcd": {"extraEnv": [{"name": variable, "value": "true"} for variable in GUARDED_VARIABLES]}},
            ["remove these variables from `etcd.extraEnv`", *(f"`{variable}`: " for variable in GUARDED_VARIABLES)],
            NOW,
        )
    ],
    # The checks that come before the table.
    "image-as-a-map": [
        (
            {"image": {"repository": "x"}},
            ["one string", "--set image=quay.io/coreos/etcd:v3.5.21", '`image` is: {"repository":"x"}'],
            NOW,
        )
    ],
    "image-without-a-version": [
        (
            {"image": "registry.example:5000/etcd"},
            ["set `etcd.version`", "--set etcd.version=3.5.21", "registry.example:5000/etcd"],
            NOW,
        ),
        ({"image": "quay.io/coreos/etcd@sha256:" + "0" * 64}, ["set `etcd.version`", "sha256:"], NOW),
        ({"image": "quay.io/coreos/etcd:latest"}, ["set `etcd.version`"], NOW),
    ],
}


def message_of(values: dict[str, Any], version: str, kubernetes: str) -> str:
    with pytest.raises(Refused) as refused:
        Renderer(version, kubernetes).text(values)
    return str(refused.value)


@pytest.mark.parametrize("version", [HELM_VERSIONS[0], HELM_VERSIONS[-1]])
@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name: str, version: str) -> None:
    for values, parts, kubernetes in REFUSALS[name]:
        message = message_of(values, version, kubernetes)
        for part in parts:
            assert part in message, message


def test_every_refusal_of_the_table_is_tested() -> None:
    """tests/e2e covers the refusals that need a running StatefulSet."""
    source = "".join(
        (CHART / "templates" / name).read_text()
        for name in ("_refusals.tpl", "_embedded.tpl", "_dashboard.tpl", "_flags.tpl")
    )
    names: set[str] = set()
    for name in re.findall(r"^([^ \n]+|{{ \$\w+ }}-[a-z-]+):\n(?:  {{.*\n)*  when:", source, re.MULTILINE):
        sides = {"{{ $side }}": ("client", "peer"), "{{ $key }}": ("clientService", "serverService")}
        variable = next((one for one in sides if name.startswith(one)), None)
        names |= {name} if variable is None else {name.replace(variable, side) for side in sides[variable]}
    assert len(names) > 40
    assert len(GUARDED) > 20
    assert names - {"live-members", "live-peers"} <= REFUSALS.keys()


def test_mtls_of_several_members_is_accepted_if_the_peer_port_serves_no_clients() -> None:
    values = merged(MEMBERS, V36, {"tls": {"client": MTLS["tls"]["client"]}})
    assert Renderer().objects(values).flags["client-cert-auth"] == "true"
    assert Renderer().objects(merged(MEMBERS, MTLS)).flags["peer-client-cert-auth"] == "true"


@pytest.mark.parametrize("version", HELM_VERSIONS)
def test_values_of_an_older_chart_are_refused_with_a_fix(version: str) -> None:
    """`--reuse-values` replaces the chart's own values by the values of the old chart."""
    new = default_values().keys() - {path.split(".")[0] for path in PROMISED}
    message = message_of(dict.fromkeys(new), version, NOW)
    assert "--reset-then-reuse-values" in message
    assert "`persistence`" in message


def in_memory(limit: str | int) -> dict[str, Any]:
    """Returns values with 1536000000 bytes of data in memory and this memory limit."""
    return {
        "ephemeral": {"medium": "Memory", "sizeLimit": "1536M"},
        "resources": {"limits": {"memory": limit}},
    }


@pytest.mark.parametrize(
    "limit", [1536000001, "1536000001000m", "1536001k", "1537M", "2e9", "1500001Ki", "1465Mi", "1.5Gi"]
)
def test_memory_limit_above_the_data_is_accepted_in_each_notation(limit: str | int) -> None:
    assert Renderer().objects(in_memory(limit)).etcd["resources"]["limits"]["memory"] == limit


@pytest.mark.parametrize(
    "limit", [1536000000, "1536000000000m", "1536000k", "1536M", "1.5e9", "1500000Ki", "1464Mi", "0.001T"]
)
def test_memory_limit_below_the_data_is_refused_in_each_notation(limit: str | int) -> None:
    with pytest.raises(Refused, match="must be above 1536000000 bytes"):
        Renderer().text(in_memory(limit))


def test_external_etcd_with_tls_needs_no_secret_if_the_chart_mounts_none() -> None:
    values = {"external": {"endpoints": ["https://etcd-1:2379"]}, "tls": {"client": {"enabled": True}}}
    assert Renderer().objects(values).agents["LATTICE_RDZV_CACERT"] == "/etc/lattice-rdzv/tls/ca.crt"


def test_intentionally_published_etcd_is_rendered() -> None:
    values = {"type": "LoadBalancer", "allowUnauthenticated": True}
    objects = Renderer().objects({"clientService": values, "serverService": values})
    assert objects.get("Service", "lattice-rdzv-client")["spec"]["type"] == "LoadBalancer"
    assert objects.get("Service", "lattice-rdzv-server")["spec"]["type"] == "LoadBalancer"


USERS_OVER_TLS = merged(AUTH, {"tls": {"client": {**MTLS["tls"]["client"], "requireClientCert": False}}})


@pytest.mark.parametrize("closed", [MTLS, USERS_OVER_TLS], ids=["mtls", "auth"])
def test_protected_etcd_can_be_published(closed: dict[str, Any]) -> None:
    objects = Renderer().objects(merged(closed, {"clientService": {"type": "LoadBalancer"}}))
    assert objects.get("Service", "lattice-rdzv-client")["spec"]["type"] == "LoadBalancer"


def test_member_count_is_in_the_immutable_selector() -> None:
    """A StatefulSet's selector is immutable, so the chart needs no lookup in a cluster."""
    three = Renderer().objects(MEMBERS).workload["spec"]
    five = Renderer().objects(merged(MEMBERS, {"replicaCount": 5})).workload["spec"]
    assert three["selector"] != five["selector"]


def test_refused_chart_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        Renderer(arguments=("--output-dir", str(tmp_path))).text({"replicaCount": 2})
    assert not list(tmp_path.rglob("*.yaml"))
