"""Every value has an effect: each is set to another value, and the render must change in the right places."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.render import (
    AUTH,
    DUMPER,
    MEMBERS,
    MTLS,
    Object,
    Refused,
    Renderer,
    default_values,
    leaves,
    merged,
    nested,
    parse,
)

# For each value: the objects and the paths in them that it changes.
PLACES = Path(__file__).parent / "golden" / "effects.json"

PERSISTENT = {"persistence": {"enabled": True}}
BALANCER = merged(MTLS, {"clientService": {"type": "LoadBalancer"}, "serverService": {"type": "LoadBalancer"}})
MONITOR = {"metrics": {"serviceMonitor": {"enabled": True}}}
POD_MONITOR = {"metrics": {"podMonitor": {"enabled": True}}}
POLICY = {"networkPolicy": {"enabled": True}}
EXTERNAL = {"external": {"endpoints": ["http://etcd-1:2379"]}}
ISSUER = {"name": "my-ca", "kind": "ClusterIssuer"}
EXPOSED = {"type": "LoadBalancer"}
SELECTOR = {"matchLabels": {"who": "changed"}}
V36 = {"image": "quay.io/coreos/etcd:v3.6.16"}

PAGE = {
    "dashboard": {
        "enabled": True,
        "image": "agent:1",
        "tls": {"existingSecret": "page-tls"},
        "login": {"existingSecret": "page-login"},
    }
}
PAGE_BALANCER = merged(PAGE, {"dashboard": {"service": {"type": "LoadBalancer"}}})
PAGE_ISSUER = merged(PAGE, {"dashboard": {"tls": {"existingSecret": "", "issuerRef": ISSUER}}})

# For each value: its new value, the other values, and a text that only the changed render has. PLACES has the changed places.
EFFECTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "engine": ("embedded", {"image": "lattice-rdzv:1"}, "--listen=*:2379"),
    "replicaCount": (5, MEMBERS, "replicas: 5"),
    "image": ("mirror.example/etcd:v3.5.9", {}, "image: mirror.example/etcd:v3.5.9"),
    "imagePullPolicy": ("Always", {}, "imagePullPolicy: Always"),
    "imagePullSecrets": ([{"name": "changed"}], {}, "imagePullSecrets:\n      - name: changed"),
    "resources": ({"limits": {"memory": "99Mi"}}, {}, "memory: 99Mi"),
    "nodeSelector": ({"disk": "changed"}, {}, "disk: changed"),
    "affinity": ({"nodeAffinity": {"changed": 1}}, {}, "changed: 1"),
    "clientService.name": ("changed", {}, "name: changed\n"),
    "clientService.type": ("NodePort", MTLS, "type: NodePort"),
    "clientService.externalPort": (3379, {}, "port: 3379"),
    "clientService.internalPort": (3379, {}, "http://0.0.0.0:3379"),
    "clientService.nodePort": (30079, BALANCER, "nodePort: 30079"),
    "clientService.annotations": ({"who": "changed"}, {}, "who: changed"),
    "clientService.labels": ({"who": "changed"}, {}, "who: changed"),
    "clientService.appProtocol": ("grpc", {}, "appProtocol: grpc"),
    **{
        f"{service}.{key}": effect
        for service, balancer, plain in (
            ("clientService", BALANCER, {}),
            ("serverService", BALANCER, {}),
            ("dashboard.service", PAGE_BALANCER, PAGE),
        )
        for key, effect in {
            "loadBalancerSourceRanges": (["10.9.0.0/16"], balancer, "- 10.9.0.0/16"),
            "loadBalancerClass": ("example.com/lb", balancer, "loadBalancerClass: example.com/lb"),
            "externalTrafficPolicy": ("Local", balancer, "externalTrafficPolicy: Local"),
            "internalTrafficPolicy": ("Local", plain, "internalTrafficPolicy: Local"),
            "ipFamilyPolicy": ("PreferDualStack", plain, "ipFamilyPolicy: PreferDualStack"),
            "ipFamilies": (["IPv6"], plain, "- IPv6"),
        }.items()
    },
    "serverService.name": ("changed", {}, "http://changed.lattice.svc.cluster.local:2379"),
    "serverService.type": ("NodePort", MTLS, "type: NodePort"),
    "serverService.clientPort.externalPort": (3379, {}, "lattice-rdzv-server.lattice.svc.cluster.local:3379"),
    "serverService.clientPort.internalPort": (3379, {}, "http://0.0.0.0:2379,http://0.0.0.0:3379"),
    "serverService.clientPort.nodePort": (30079, BALANCER, "nodePort: 30079"),
    "serverService.serverPort.externalPort": (3380, {}, "port: 3380"),
    "serverService.serverPort.internalPort": (3380, {}, "--listen-peer-urls=http://127.0.0.1:3380"),
    "serverService.serverPort.nodePort": (30080, BALANCER, "nodePort: 30080"),
    "serverService.annotations": ({"who": "changed"}, {}, "who: changed"),
    "serverService.labels": ({"who": "changed"}, {}, "who: changed"),
    "agents.configMap.includeEndpoint": (False, {}, ""),
    "agents.namespaces": ([{"name": "team-a", "tenant": "changed"}], {}, "LATTICE_RDZV_TENANT: changed"),
    "agents.tenant": ("vision", {}, "LATTICE_RDZV_TENANT: vision"),
    "agents.tlsMountPath": ("/changed", MTLS, "LATTICE_RDZV_CACERT: /changed/ca.crt"),
    "agents.authMountPath": ("/changed", AUTH, "LATTICE_RDZV_PASSWORD_FILE: /changed/lattice"),
    "agents.image": ("agent:1", {}, "image: agent:1"),
    "external.user": ("changed", EXTERNAL, "LATTICE_RDZV_USER: changed"),
    "external.existingSecret": (
        "changed",
        merged(EXTERNAL, {"external": {"user": "u"}, "agents": {"image": "agent:1"}}),
        "secretName: changed",
    ),
    "external.endpoints": (["http://etcd-1:2379"], {}, "LATTICE_RDZV_ENDPOINTS: http://etcd-1:2379"),
    "etcd.version": ("3.6.4", {}, "path: /livez"),
    "etcd.enableV2": (False, {}, ""),
    "etcd.autoCompactionMode": (
        "revision",
        {"etcd": {"autoCompactionRetention": 100}},
        "--auto-compaction-mode=revision",
    ),
    "etcd.autoCompactionRetention": ("90m", {}, "--auto-compaction-retention=90m"),
    # Larger than what a float of six digits shows.
    "etcd.quotaBackendBytes": (8589934592, {}, "--quota-backend-bytes=8589934592"),
    "etcd.maxRequestBytes": (10485760, {}, "--max-request-bytes=10485760"),
    "etcd.unsafeNoFsync": (False, {"ephemeral": {"medium": "Memory"}}, ""),
    "etcd.logLevel": ("debug", {}, "--log-level=debug"),
    "etcd.metricsPort": (9381, {}, "--listen-metrics-urls=http://0.0.0.0:9381"),
    "etcd.extraArgs": (["--heartbeat-interval=200"], {}, "--heartbeat-interval=200"),
    "etcd.extraEnv": ([{"name": "GOMAXPROCS", "value": "2"}], {}, "name: GOMAXPROCS"),
    "cluster.token": ("changed", MEMBERS, "--initial-cluster-token=changed-$("),
    "cluster.initialState": ("existing", MEMBERS, "--initial-cluster-state=existing"),
    "clusterDomain": ("changed.local", {}, "lattice-rdzv-client.lattice.svc.changed.local"),
    "ephemeral.medium": ("Memory", {}, "medium: Memory"),
    "ephemeral.sizeLimit": ("3Gi", {}, "sizeLimit: 3Gi"),
    "persistence.enabled": (True, {}, "kind: StatefulSet"),
    "persistence.size": ("99Gi", PERSISTENT, "storage: 99Gi"),
    "persistence.storageClass": ("fast", PERSISTENT, "storageClassName: fast"),
    "persistence.accessModes": (["ReadWriteOncePod"], PERSISTENT, "- ReadWriteOncePod"),
    "persistence.annotations": ({"who": "changed"}, PERSISTENT, "who: changed"),
    "persistence.labels": ({"who": "changed"}, PERSISTENT, "who: changed"),
    "persistence.whenDeleted": ("Delete", PERSISTENT, "whenDeleted: Delete"),
    "tls.client.enabled": (True, {"tls": {"client": {"existingSecret": "s"}}}, "--cert-file="),
    "tls.client.existingSecret": ("changed", MTLS, "secretName: changed"),
    **{
        f"tls.{side}.issuerRef": (ISSUER, {"tls": {side: {"enabled": True}}}, "kind: Certificate")
        for side in ("client", "peer")
    },
    **{
        f"tls.{side}.certificateDuration": (
            "77h",
            {"tls": {side: {"enabled": True, "issuerRef": ISSUER}}},
            "duration: 77h",
        )
        for side in ("client", "peer")
    },
    "tls.client.requireClientCert": (False, MTLS, ""),
    "tls.client.caCertificate": ("-----BEGIN CERTIFICATE-----\nQQ==\n", MTLS, "name: lattice-rdzv-ca"),
    "tls.peer.enabled": (True, {"tls": {"peer": {"existingSecret": "s"}}}, "--peer-cert-file="),
    "tls.peer.existingSecret": ("changed", MTLS, "secretName: changed"),
    "auth.enabled": (True, {**PERSISTENT, "auth": {"existingSecret": "s"}}, "name: auth"),
    "auth.existingSecret": ("changed", AUTH, "secretName: changed"),
    "auth.users": ([{"name": "changed", "tenant": "a"}], AUTH, "LATTICE_RDZV_USER: changed"),
    "auth.image": ("python:changed", AUTH, "image: python:changed"),
    "auth.port": (9382, AUTH, "containerPort: 9382"),
    "auth.loopbackPort": (9383, merged(MTLS, AUTH), ",http://127.0.0.1:9383"),
    "auth.resources": ({"limits": {"memory": "98Mi"}}, AUTH, "memory: 98Mi"),
    "networkPolicy.enabled": (True, {}, "kind: NetworkPolicy"),
    "networkPolicy.agentNamespaceSelector": (SELECTOR, POLICY, "who: changed"),
    "networkPolicy.agentPodSelector": (SELECTOR, POLICY, "who: changed"),
    "networkPolicy.metricsNamespaceSelector": (SELECTOR, POLICY, "who: changed"),
    "networkPolicy.egress": (True, POLICY, "- Egress"),
    "networkPolicy.ipBlocks": ([{"cidr": "10.9.0.0/16"}], POLICY, "cidr: 10.9.0.0/16"),
    "podSecurityContext": ({"runAsUser": 777}, {}, "runAsUser: 777"),
    "containerSecurityContext": ({"readOnlyRootFilesystem": False}, {}, "readOnlyRootFilesystem: false"),
    "serviceAccount.create": (True, {}, "kind: ServiceAccount"),
    "serviceAccount.name": ("changed", {}, "serviceAccountName: changed"),
    "serviceAccount.annotations": ({"who": "changed"}, {"serviceAccount": {"create": True}}, "who: changed"),
    "tolerations": ([{"key": "changed"}], {}, "- key: changed"),
    "topologySpreadConstraints": ([{"topologyKey": "changed"}], {}, "topologyKey: changed"),
    "priorityClassName": ("changed", {}, "priorityClassName: changed"),
    "podAnnotations": ({"who": "changed"}, {}, "who: changed"),
    "podLabels": ({"who": "changed"}, {}, "who: changed"),
    "commonLabels": ({"who": "changed"}, {}, "who: changed"),
    "commonAnnotations": ({"who": "changed"}, {}, "who: changed"),
    "dnsConfig": ({"nameservers": ["192.0.2.1"]}, {}, "- 192.0.2.1"),
    "runtimeClassName": ("changed", {}, "runtimeClassName: changed"),
    "extraVolumes": ([{"name": "changed", "emptyDir": {}}], {}, "name: changed"),
    "extraVolumeMounts": ([{"name": "changed", "mountPath": "/changed"}], {}, "mountPath: /changed"),
    "extraContainers": ([{"name": "changed", "image": "changed:1"}], {}, "image: changed:1"),
    "extraObjects": (
        ["{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-changed'}}"],
        {},
        "name: rdzv-changed",
    ),
    "tests.annotations": ({"who": "changed"}, {}, "who: changed"),
    "terminationGracePeriodSeconds": (77, {}, "terminationGracePeriodSeconds: 77"),
    "pdb.enabled": (False, MEMBERS, ""),
    "pdb.maxUnavailable": (2, merged(MEMBERS, {"replicaCount": 5}), "maxUnavailable: 2"),
    "defragmentation.enabled": (True, {}, "kind: CronJob"),
    "defragmentation.schedule": ("7 7 * * 7", {"defragmentation": {"enabled": True}}, "schedule: 7 7 * * 7"),
    "metrics.grafanaDashboard.enabled": (True, {}, "name: lattice-rdzv-dashboard"),
    "metrics.grafanaDashboard.labels": (
        {"who": "changed"},
        {"metrics": {"grafanaDashboard": {"enabled": True}}},
        "who: changed",
    ),
    "metrics.serviceMonitor.enabled": (True, {}, "kind: ServiceMonitor"),
    "metrics.serviceMonitor.interval": ("77s", MONITOR, "interval: 77s"),
    "metrics.serviceMonitor.labels": ({"who": "changed"}, MONITOR, "who: changed"),
    **{
        f"metrics.{monitor}.{key}": ([{"action": "drop", "regex": "changed"}], around, "regex: changed")
        for monitor, around in {"serviceMonitor": MONITOR, "podMonitor": POD_MONITOR}.items()
        for key in ("relabelings", "metricRelabelings")
    },
    "metrics.podMonitor.enabled": (True, {}, "kind: PodMonitor"),
    "metrics.podMonitor.interval": ("77s", POD_MONITOR, "interval: 77s"),
    "metrics.podMonitor.labels": ({"who": "changed"}, POD_MONITOR, "who: changed"),
    "metrics.prometheusRule.runbookBaseURL": (
        "https://changed.example.com",
        merged(MONITOR, {"metrics": {"prometheusRule": {"enabled": True}}}),
        "runbook_url: https://changed.example.com/",
    ),
    "metrics.prometheusRule.enabled": (True, MONITOR, "kind: PrometheusRule"),
    "metrics.prometheusRule.labels": (
        {"who": "changed"},
        merged(MONITOR, {"metrics": {"prometheusRule": {"enabled": True}}}),
        "who: changed",
    ),
    "dashboard.enabled": (
        True,
        nested("dashboard", {**PAGE["dashboard"], "enabled": False}),
        "name: lattice-rdzv-dashboard",
    ),
    "dashboard.image": ("page:1", PAGE, "image: page:1"),
    "dashboard.tenant": ("vision", PAGE, "value: vision"),
    "dashboard.hosts": (["changed.example.com"], PAGE, "--host=changed.example.com"),
    "dashboard.port": (9089, PAGE, "--listen=*:9089"),
    "dashboard.metricsPort": (9090, PAGE, "--listen-metrics=*:9090"),
    "dashboard.resources": ({"limits": {"memory": "97Mi"}}, PAGE, "memory: 97Mi"),
    "dashboard.tls.existingSecret": ("changed", PAGE, "secretName: changed"),
    "dashboard.tls.issuerRef": (
        ISSUER,
        merged(PAGE, {"dashboard": {"tls": {"existingSecret": ""}}}),
        "kind: Certificate",
    ),
    "dashboard.tls.certificateDuration": ("77h", PAGE_ISSUER, "duration: 77h"),
    "dashboard.login.user": ("changed", PAGE, "--user=changed"),
    "dashboard.login.existingSecret": ("changed", PAGE, "secretName: changed"),
    "dashboard.etcd.user": ("changed", merged(PAGE, AUTH), "/etc/lattice-rdzv/auth/changed"),
    "dashboard.etcd.existingSecret": ("changed", merged(PAGE, MTLS), "secretName: changed"),
    "dashboard.service.type": ("NodePort", PAGE, "type: NodePort"),
    "dashboard.service.port": (9443, PAGE, "port: 9443"),
    "dashboard.service.annotations": ({"who": "changed"}, PAGE, "who: changed"),
    "dashboard.service.labels": ({"who": "changed"}, PAGE, "who: changed"),
    "dashboard.networkPolicy.from": (
        [{"ipBlock": {"cidr": "10.7.0.0/16"}}],
        merged(PAGE, POLICY),
        "cidr: 10.7.0.0/16",
    ),
    **{
        f"probes.{probe}.{time}": (77, {}, f"{time}: 77")
        for probe in ("startup", "liveness", "readiness")
        for time in ("periodSeconds", "timeoutSeconds", "failureThreshold")
    },
}

# The other values of these are refused without them.
ALLOWED_ONLY_WITH = {
    "tls.client.enabled": "tls.client.enabled=true",
    "tls.peer.enabled": "tls.peer.enabled=true",
    "auth.enabled": "auth.enabled=true",
    "tls.client.issuerRef": "`tls.client.issuerRef` instead",
    "tls.peer.issuerRef": "`tls.peer.issuerRef` instead",
    "external.existingSecret": "set `external.existingSecret`",
    "dashboard.enabled": "dashboard.enabled=true",
    "dashboard.tls.issuerRef": "`dashboard.tls.issuerRef` instead",
    "engine": "set `etcd.version`",
}

NO_RENDERED_EFFECT = {
    "rendezvous.backend": "`etcd` is the only backend that agents have; every other value is refused (test_schema)",
    "clientService.allowUnauthenticated": "it allows a Service that is refused otherwise (test_refusals)",
    "serverService.allowUnauthenticated": "it allows a Service that is refused otherwise (test_refusals)",
    "cluster.allowRecreate": "it disables a check that needs a lookup in a cluster, which this render does not have",
    "global": "a value of parent charts, accepted because the strict schema would refuse it",
    "enabled": "the condition of a parent chart, which only Helm reads",
    "jfrog": "passed by installers of 0.1.0, accepted because the strict schema would refuse it",
}


def test_each_value_is_tested_or_exempt() -> None:
    assert EFFECTS.keys() | NO_RENDERED_EFFECT.keys() == leaves(default_values()).keys()
    assert not EFFECTS.keys() & NO_RENDERED_EFFECT.keys()


@pytest.mark.parametrize("path", EFFECTS)
def test_value_has_an_effect(path: str) -> None:
    value, around, shown = EFFECTS[path]
    assert leaves(default_values())[path] != value
    if path in ALLOWED_ONLY_WITH:
        with pytest.raises(Refused, match=ALLOWED_ONLY_WITH[path]):
            Renderer().text(around)
        before = Renderer().text()
    else:
        before = Renderer().text(around)
    after = Renderer().text(merged(around, nested(path, value)))
    before, after = (yaml.dump_all(parse(text), Dumper=DUMPER) for text in (before, after))
    assert not shown or (shown in after and shown not in before), after
    found = sorted(changed_places(by_name(before), by_name(after)))
    assert found
    places = json.loads(PLACES.read_text())
    if os.environ.get("LATTICE_CHART_GOLDEN") == "write":
        places[path] = found
        PLACES.write_text(json.dumps(places, indent=1, sort_keys=True) + "\n")
    assert found == places[path]


def test_only_tested_values_have_reviewed_places() -> None:
    assert json.loads(PLACES.read_text()).keys() == EFFECTS.keys()


def by_name(text: str) -> Object:
    """Returns the objects of a render by kind, name, and namespace if it is not the release's."""
    return {
        f"{one['kind']} {one['metadata']['name']}{'' if namespace == 'lattice' else f' in {namespace}'}": one
        for one in parse(text)
        for namespace in [one["metadata"].get("namespace")]
    }


def changed_places(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yields the paths of the values that differ. A list whose length differs is one value."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from changed_places(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from changed_places(one, other, f"{path}[{index}]")
    elif before != after:
        yield path


@pytest.mark.parametrize(
    ("values", "absent"),
    [
        ({"etcd": {"enableV2": False}}, "--enable-v2"),
        ({"ephemeral": {"medium": "Memory"}, "etcd": {"unsafeNoFsync": False}}, "--unsafe-no-fsync"),
        (merged(MEMBERS, {"pdb": {"enabled": False}}), "PodDisruptionBudget"),
        (merged(MTLS, {"tls": {"client": {"requireClientCert": False}}}), "--trusted-ca-file"),
        (merged(MTLS, {"tls": {"client": {"requireClientCert": False}}}), "LATTICE_RDZV_CERT"),
        ({"agents": {"configMap": {"includeEndpoint": False}}}, "LATTICE_RDZV_ENDPOINTS"),
        ({"podSecurityContext": None, "containerSecurityContext": None}, "securityContext"),
        ({"podSecurityContext": None}, "fsGroup"),
    ],
)
def test_disabled_feature_is_not_rendered(values: dict[str, Any], absent: str) -> None:
    assert absent not in Renderer().text(values)


def test_storage_class_can_be_none_at_all() -> None:
    claim = Renderer().objects({"persistence": {"enabled": True, "storageClass": "-"}}).workload["spec"]
    assert claim["volumeClaimTemplates"][0]["spec"]["storageClassName"] == ""


def test_labels_of_the_values_do_not_replace_the_charts_own() -> None:
    """Otherwise, a Service would no longer select its pods."""
    stray = {"app": "mine", "lattice-rdzv/store": "mine", "lattice-rdzv/metrics": "no"}
    values = {
        "commonLabels": stray,
        "podLabels": stray,
        "clientService": {"labels": stray},
        "metrics": {"serviceMonitor": {"enabled": True, "labels": stray}},
    }
    objects = Renderer().objects(values)
    assert objects.pod["metadata"]["labels"]["app"] == "lattice-rdzv"
    assert objects.pod["metadata"]["labels"]["lattice-rdzv/store"] == "ephemeral"
    assert objects.get("Service", "lattice-rdzv-client")["metadata"]["labels"]["app"] == "lattice-rdzv"
    metrics = objects.get("Service", "lattice-rdzv-metrics")["metadata"]["labels"]
    assert objects.get("ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= metrics.items()


def test_both_ports_for_clients_are_served_and_reached() -> None:
    """The Services may have two ports of etcd, and any external ports."""
    values = {
        "clientService": {"internalPort": 3001, "externalPort": 4001},
        "serverService": {
            "clientPort": {"internalPort": 3002, "externalPort": 4002},
            "serverPort": {"internalPort": 3003, "externalPort": 4003},
        },
    }
    objects = Renderer().objects(values)
    container = {port["name"]: port["containerPort"] for port in objects.etcd["ports"]}
    reached = {
        (service, port["name"]): container[port["targetPort"]]
        for service in ("lattice-rdzv-client", "lattice-rdzv-server")
        for port in objects.get("Service", service)["spec"]["ports"]
    }
    assert reached == {
        ("lattice-rdzv-client", "client"): 3001,
        ("lattice-rdzv-server", "client"): 3002,
        ("lattice-rdzv-server", "server"): 3003,
    }
    assert objects.flags["listen-client-urls"] == "http://0.0.0.0:3001,http://0.0.0.0:3002"
    assert objects.flags["advertise-client-urls"] == "http://lattice-rdzv-server.lattice.svc.cluster.local:4002"
    assert objects.agents["LATTICE_RDZV_ENDPOINTS"].endswith(":4001")


@pytest.mark.parametrize(("quota", "size"), [(0, 2 * 536870912 + 536870912), (1073741824, 2 * 1073741824 + 536870912)])
def test_memory_volume_is_as_large_as_the_quota_needs(quota: int, size: int) -> None:
    objects = Renderer().objects({"ephemeral": {"medium": "Memory"}, "etcd": {"quotaBackendBytes": quota}})
    assert objects.pod["spec"]["volumes"] == [
        {"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": str(size)}}
    ]
    assert objects.flags["quota-backend-bytes"] == str(quota or 536870912)
    assert objects.flags["unsafe-no-fsync"] == "true"


def test_fsync_is_never_disabled_on_a_disk() -> None:
    for values in ({}, PERSISTENT, MEMBERS, V36):
        assert "unsafe-no-fsync" not in Renderer().objects(values).flags


EMPTY = [path for path, value in leaves(default_values()).items() if value in ([], {}) and path in EFFECTS]


@pytest.mark.parametrize("path", EMPTY)
def test_null_removes_a_list_or_a_map(path: str) -> None:
    """In Helm, `--set etcd.extraArgs=null` removes a value that was set before."""
    # The other values are those with which this one has an effect.
    around = EFFECTS[path][1]
    if path.endswith("issuerRef"):
        around = merged(MTLS, PAGE)
    plain, removed = (Renderer().objects(merged(around, one)) for one in ({}, nested(path, None)))
    assert plain.all == removed.all


def test_no_number_is_rendered_as_a_float() -> None:
    """Helm reads the numbers of a values file as floats, and Go prints floats of a million or more as 1e+06."""
    around = merged(MEMBERS, {"etcd": {"autoCompactionMode": "revision", "autoCompactionRetention": 1000000}})
    numbers = [path for path, value in leaves(default_values()).items() if type(value) is int and "ort" not in path]
    values = merged(
        around, *(nested(path, 7000000) for path in numbers if path not in ("replicaCount", "pdb.maxUnavailable"))
    )
    text = Renderer().text(values)
    assert "--auto-compaction-retention=1000000" in text
    sizes = {"persistence": {"size": 8000000000}}
    claim = Renderer().objects(merged(values, sizes)).workload["spec"]["volumeClaimTemplates"][0]
    assert claim["spec"]["resources"]["requests"]["storage"] == "8000000000"
    assert 'sizeLimit: "8000000000"' in Renderer().text({"ephemeral": {"sizeLimit": 8000000000}})
    assert text.count("7000000") >= len(numbers) - 2
    assert not re.search(r"[0-9]e\+[0-9]", text)
