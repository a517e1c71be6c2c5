"""The render of `engine: embedded`: one pod that serves agents as etcd does. Values that only etcd has are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from chart.render import AUTH, EMBEDDED, MTLS, Objects, Refused, Renderer, default_values, leaves, merged, nested
from chart.test_effects import EFFECTS
from chart.test_network_policy import POLICY, allowed
from chart.tools import CHART, HELM_VERSIONS

CLIENT_TLS = {"tls": {"client": MTLS["tls"]["client"]}}
PASSWORD = {"auth": AUTH["auth"]}
# All values below these belong to etcd, except for those that the embedded server has, too.
OF_ETCD = ("cluster.", "defragmentation.", "ephemeral.", "etcd.", "pdb.", "persistence.", "tls.peer.")
OF_BOTH = {"etcd.extraEnv", "etcd.logLevel", "etcd.metricsPort"}


def etcd_values() -> dict[str, Any]:
    """Returns the chart's table of values that only etcd has."""
    source = (CHART / "templates" / "_embedded.tpl").read_text()
    table = re.search(r'define "lattice.etcdValues" -}}\n(.*?){{- end', source, re.DOTALL)
    assert table is not None
    return dict(yaml.safe_load(table[1]))


def server(objects: Objects) -> dict[str, Any]:
    """Returns the only container."""
    (container,) = objects.pod["spec"]["containers"]
    assert container["name"] == "server"
    return dict(container)


def test_server_is_one_pod_without_a_disk_or_peers() -> None:
    objects = Renderer().objects(EMBEDDED)
    assert objects.names() == Renderer().objects().names()
    container = server(objects)
    assert container["image"] == "lattice-rdzv:0.2.0"
    assert container["command"] == ["lattice-rdzv", "serve"]
    assert container["args"] == ["--listen=*:2379", "--listen-metrics=*:2381"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"client": 2379, "metrics": 2381}
    assert "volumes" not in objects.pod["spec"]
    assert objects.workload["spec"]["replicas"] == 1
    for service in ("lattice-rdzv-client", "lattice-rdzv-server"):
        spec = objects.get("Service", service)["spec"]
        assert [(port["port"], port["targetPort"]) for port in spec["ports"]] == [(2379, "client")]


def test_probes_do_not_need_a_certificate() -> None:
    container = server(Renderer().objects(merged(EMBEDDED, CLIENT_TLS, PASSWORD)))
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"metrics"}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/livez",
        "liveness": "/livez",
        "readiness": "/readyz",
    }


@pytest.mark.parametrize("values", [{}, CLIENT_TLS, PASSWORD], ids=["open", "mtls", "password"])
def test_agents_get_the_variables_that_they_get_with_etcd(values: dict[str, Any]) -> None:
    with_etcd = merged(values, {"persistence": {"enabled": "auth" in values}})
    assert Renderer().objects(merged(EMBEDDED, values)).agents == Renderer().objects(with_etcd).agents


def test_ports_are_those_of_the_values() -> None:
    values = {"clientService": {"internalPort": 3001, "externalPort": 4001}, "etcd": {"metricsPort": 3002}}
    objects = Renderer().objects(merged(EMBEDDED, values))
    assert server(objects)["args"] == ["--listen=*:3001", "--listen-metrics=*:3002"]
    assert objects.get("Service", "lattice-rdzv-server")["spec"]["ports"][0]["targetPort"] == "client"
    assert objects.agents["LATTICE_RDZV_ENDPOINTS"].endswith(":4001")


def test_only_the_certificates_and_the_password_are_mounted() -> None:
    objects = Renderer().objects(merged(EMBEDDED, CLIENT_TLS, PASSWORD))
    arguments = set(server(objects)["args"])
    assert {
        "--cert=/etc/lattice-rdzv/tls/client/tls.crt",
        "--key=/etc/lattice-rdzv/tls/client/tls.key",
        "--client-ca=/etc/lattice-rdzv/tls/client/ca.crt",
        "--user=lattice",
        "--password-file=/etc/lattice-rdzv/auth/lattice",
    } <= arguments
    tls, auth = objects.pod["spec"]["volumes"]
    assert tls["secret"]["secretName"] == "rdzv-client-tls"
    assert auth["secret"] == {
        "secretName": "rdzv-auth",
        "defaultMode": 0o440,
        "items": [{"key": "lattice", "path": "lattice"}],
    }
    without = merged(EMBEDDED, CLIENT_TLS, {"tls": {"client": {"requireClientCert": False}}})
    assert not [one for one in server(Renderer().objects(without))["args"] if one.startswith("--client-ca")]


@pytest.mark.parametrize(
    ("level", "word"),
    [("debug", "debug"), ("info", "info"), ("warn", "warning"), ("error", "error"), ("fatal", "error")],
)
def test_log_levels_of_etcd_have_the_servers_names(level: str, word: str) -> None:
    (variable,) = server(Renderer().objects(merged(EMBEDDED, {"etcd": {"logLevel": level}})))["env"]
    assert variable == {"name": "LATTICE_RDZV_LOG", "value": word}


def test_helm_test_runs_a_rendezvous_with_the_servers_own_image() -> None:
    (pod,) = Renderer().hooks(EMBEDDED).all
    assert pod["metadata"]["name"] == "lattice-rdzv-test-rendezvous"
    assert {one["image"] for one in pod["spec"]["containers"]} == {"lattice-rdzv:0.2.0"}
    (pod,) = Renderer().hooks(merged(EMBEDDED, {"agents": {"image": "agent:1"}})).all
    assert {one["image"] for one in pod["spec"]["containers"]} == {"agent:1"}


def test_network_policy_admits_only_agents_and_prometheus() -> None:
    prometheus = {"matchLabels": {"monitoring": "true"}}
    values = merged(EMBEDDED, POLICY, {"networkPolicy": {"egress": True, "metricsNamespaceSelector": prometheus}})
    objects = Renderer().objects(values)
    assert allowed(objects, "client") == [
        {"podSelector": {}},
        {"podSelector": {"matchLabels": {"app": "lattice-rdzv-test"}}},
    ]
    assert allowed(objects, "metrics") == [{"namespaceSelector": prometheus}]
    assert allowed(objects, "server") == []
    assert objects.get("NetworkPolicy")["spec"]["egress"] == []


def test_table_of_etcds_values_is_complete_and_has_their_defaults() -> None:
    defaults = leaves(default_values())
    table = etcd_values()
    assert {path: one["default"] for path, one in table.items()} == {path: defaults[path] for path in table}
    assert all(one["why"] for one in table.values())
    assert {path for path in defaults if path.startswith(OF_ETCD)} - OF_BOTH <= table.keys()
    assert not OF_BOTH & table.keys()


@pytest.mark.parametrize("path", etcd_values())
def test_value_that_only_etcd_has_is_refused_with_the_reason(path: str) -> None:
    value = EFFECTS[path][0] if path in EFFECTS else True
    with pytest.raises(Refused) as refused:
        Renderer().text(merged(EMBEDDED, nested(path, value)))
    assert f"`{path}` ({etcd_values()[path]['why']})" in str(refused.value), refused.value


@pytest.mark.parametrize("version", HELM_VERSIONS)
def test_explicit_defaults_and_null_are_not_refused(version: str) -> None:
    written = merged(EMBEDDED, *(nested(path, one["default"]) for path, one in etcd_values().items()))
    empty = [path for path, one in etcd_values().items() if one["default"] in ([], {}, None)]
    taken_back = merged(EMBEDDED, *(nested(path, None) for path in empty))
    plain = Renderer(version).objects(EMBEDDED).all
    assert Renderer(version).objects(written).all == plain
    assert Renderer(version).objects(taken_back).all == plain
