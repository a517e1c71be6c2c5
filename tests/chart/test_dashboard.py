"""The render of `dashboard.enabled`: the page that shows runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.render import AUTH, EMBEDDED, MEMBERS, MTLS, Objects, Refused, Renderer, merged
from chart.test_network_policy import POLICY, allowed
from chart.tools import CHART, HELM_VERSIONS, program

NAME = "lattice-rdzv-dashboard"
PAGE: dict[str, Any] = {
    "dashboard": {
        "enabled": True,
        "image": "agent:1",
        "tls": {"existingSecret": "page-tls"},
        "login": {"existingSecret": "page-login"},
    }
}
CLIENT_TLS = {"tls": {"client": MTLS["tls"]["client"]}}
PASSWORD = {"auth": AUTH["auth"]}
EXTERNAL = {"external": {"endpoints": ["https://etcd-1:2379"]}}
ALERTS = {"metrics": {"prometheusRule": {"enabled": True}}}
MONITORS: dict[str, dict[str, Any]] = {
    'service="lattice-rdzv-dashboard-metrics"': {"metrics": {"serviceMonitor": {"enabled": True}}},
    'job="lattice/lattice-rdzv-dashboard"': {"metrics": {"podMonitor": {"enabled": True}}},
}


def pod(objects: Objects) -> dict[str, Any]:
    """Returns the pod template of the page."""
    return dict(objects.get("Deployment", NAME)["spec"]["template"])


def container(objects: Objects) -> dict[str, Any]:
    (one,) = pod(objects)["spec"]["containers"]
    return dict(one)


def environment(objects: Objects) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container(objects)["env"]}


def mounts(objects: Objects) -> dict[str, Any]:
    """Returns the Secret at each path, with its selected keys."""
    volumes = {one["name"]: one["secret"] for one in pod(objects)["spec"]["volumes"]}
    return {
        one["mountPath"]: (
            volumes[one["name"]]["secretName"],
            [item["key"] for item in volumes[one["name"]].get("items", [])],
        )
        for one in container(objects)["volumeMounts"]
    }


def test_nothing_of_the_page_is_rendered_by_default() -> None:
    for values in ({}, merged(MEMBERS, MTLS, AUTH, POLICY), EMBEDDED):
        assert NAME not in Renderer().text(values)


@pytest.mark.parametrize("version", HELM_VERSIONS)
def test_page_is_one_pod_with_tls_and_a_login(version: str) -> None:
    objects = Renderer(version).objects(PAGE)
    assert objects.names() - Renderer(version).objects().names() == {("Deployment", NAME), ("Service", NAME)}
    one = container(objects)
    assert one["image"] == "agent:1"
    assert one["command"] == ["lattice-rdzv", "dashboard"]
    assert one["args"] == [
        "--listen=*:8089",
        "--listen-metrics=*:8090",
        "--cert=/etc/lattice-rdzv/dashboard/tls/tls.crt",
        "--key=/etc/lattice-rdzv/dashboard/tls/tls.key",
        "--user=lattice",
        "--password-file=/etc/lattice-rdzv/dashboard/login/lattice",
        *(f"--host={NAME}{end}" for end in ("", ".lattice", ".lattice.svc", ".lattice.svc.cluster.local")),
    ]
    assert environment(objects) == {
        "LATTICE_RDZV_ENDPOINTS": objects.agents["LATTICE_RDZV_ENDPOINTS"],
        "LATTICE_RDZV_TENANT": "default",
    }
    assert mounts(objects) == {
        "/etc/lattice-rdzv/dashboard/tls": ("page-tls", ["tls.crt", "tls.key"]),
        "/etc/lattice-rdzv/dashboard/login": ("page-login", ["lattice"]),
    }
    assert objects.get("Deployment", NAME)["spec"]["replicas"] == 1


def test_probes_need_no_login() -> None:
    one = container(Renderer().objects(PAGE))
    ports = {port["name"]: port["containerPort"] for port in one["ports"]}
    assert ports == {"page": 8089, "metrics": 8090}
    probes = {kind: one[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {
        kind: {"path": path, "port": "metrics"}
        for kind, path in {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}.items()
    }


def test_no_selector_matches_the_pods_of_both_the_page_and_the_service() -> None:
    objects = Renderer().objects(merged(PAGE, {"metrics": {"serviceMonitor": {"enabled": True}}}))
    for selecting in (one for one in objects.all if one["kind"] in ("Service", "Deployment")):
        selector = selecting["spec"]["selector"]
        selector = selector.get("matchLabels", selector).items()
        own, other = pod(objects)["metadata"]["labels"], objects.pod["metadata"]["labels"]
        if not selecting["metadata"]["name"].startswith(NAME):
            own, other = other, own
        assert selector <= own.items(), selecting
        assert not selector <= other.items(), selecting


def test_with_roles_the_page_has_a_user_that_only_reads_its_tenant() -> None:
    users = {"auth": {"users": [{"name": "vision-jobs", "tenant": "vision"}]}}
    objects = Renderer().objects(merged(PAGE, AUTH, users))
    reader = {"name": NAME, "tenant": "vision", "readOnly": True}
    assert json.loads(objects.get("ConfigMap", "lattice-rdzv-auth")["data"]["users.json"])[1:] == [reader]
    assert environment(objects)["LATTICE_RDZV_TENANT"] == "vision"
    assert environment(objects)["LATTICE_RDZV_USER"] == NAME
    assert environment(objects)["LATTICE_RDZV_PASSWORD_FILE"] == f"/etc/lattice-rdzv/auth/{NAME}"
    assert mounts(objects)["/etc/lattice-rdzv/auth"] == ("rdzv-auth", [NAME])
    # Agents keep their user, and without the page there is no other.
    assert objects.agents["LATTICE_RDZV_USER"] == "vision-jobs"
    without = Renderer().objects(merged(AUTH, users)).get("ConfigMap", "lattice-rdzv-auth")["data"]["users.json"]
    assert [user["name"] for user in json.loads(without)] == ["vision-jobs"]


def test_page_reads_one_tenant_even_if_agents_may_use_all() -> None:
    objects = Renderer().objects(merged(PAGE, AUTH))
    users = json.loads(objects.get("ConfigMap", "lattice-rdzv-auth")["data"]["users.json"])
    assert users[-1] == {"name": NAME, "tenant": "default", "readOnly": True}


def test_with_mtls_the_page_has_a_client_certificate() -> None:
    objects = Renderer().objects(merged(PAGE, CLIENT_TLS))
    folder = "/etc/lattice-rdzv/tls/client"
    assert mounts(objects)[folder] == ("rdzv-client-tls", [])
    paths = {name: value for name, value in environment(objects).items() if value.startswith(folder)}
    assert paths == {
        "LATTICE_RDZV_CACERT": f"{folder}/ca.crt",
        "LATTICE_RDZV_CERT": f"{folder}/tls.crt",
        "LATTICE_RDZV_KEY": f"{folder}/tls.key",
    }


@pytest.mark.parametrize("values", [{}, CLIENT_TLS, PASSWORD], ids=["open", "mtls", "password"])
def test_embedded_server_is_read_in_the_same_way(values: dict[str, Any]) -> None:
    embedded = Renderer().objects(merged(PAGE, EMBEDDED, values))
    with_etcd = Renderer().objects(merged(PAGE, values, {"persistence": {"enabled": "auth" in values}}))
    own, other = environment(embedded), environment(with_etcd)
    if "auth" in values:
        # The embedded server has one user and no roles.
        assert own.pop("LATTICE_RDZV_USER") == "lattice"
        assert other.pop("LATTICE_RDZV_USER") == NAME
        assert own.pop("LATTICE_RDZV_PASSWORD_FILE") != other.pop("LATTICE_RDZV_PASSWORD_FILE")
        assert mounts(embedded)["/etc/lattice-rdzv/auth"] == ("rdzv-auth", ["lattice"])
    assert own == other
    image = merged(PAGE, {"dashboard": {"image": ""}}, EMBEDDED)
    assert container(Renderer().objects(image))["image"] == EMBEDDED["image"]


def test_external_etcd_can_have_the_page() -> None:
    external = {
        "external": {"user": "reader", "existingSecret": "own-auth"},
        "tls": {"client": {"enabled": True, "existingSecret": "own-tls"}},
        **ALERTS,
    }
    objects = Renderer().objects(merged(PAGE, EXTERNAL, external, MONITORS['job="lattice/lattice-rdzv-dashboard"']))
    assert objects.kinds() == ["ConfigMap", "Deployment", "PodMonitor", "PrometheusRule", "Service"]
    assert environment(objects)["LATTICE_RDZV_ENDPOINTS"] == "https://etcd-1:2379"
    assert mounts(objects)["/etc/lattice-rdzv/auth"] == ("own-auth", ["reader"])
    assert mounts(objects)["/etc/lattice-rdzv/tls/client"] == ("own-tls", [])
    (group,) = objects.get("PrometheusRule")["spec"]["groups"]
    assert group["name"] == "lattice-rdzv-runs"


def test_policies_admit_the_page_to_etcd_and_browsers_to_the_page() -> None:
    selector = {"podSelector": {"matchLabels": {"app": NAME}}}
    policy = {"networkPolicy": {"agentPodSelector": {"matchLabels": {"role": "agent"}}}}
    objects = Renderer().objects(merged(PAGE, POLICY, policy))
    assert selector in allowed(objects, "client")
    assert selector not in allowed(Renderer().objects(merged(POLICY, policy)), "client")
    own = objects.get("NetworkPolicy", NAME)["spec"]
    assert own["podSelector"] == selector["podSelector"]
    assert own["policyTypes"] == ["Ingress"]
    assert own["ingress"] == [
        {"from": [{"podSelector": {}}], "ports": [{"port": "page"}]},
        {"from": [{"podSelector": {}}], "ports": [{"port": "metrics"}]},
    ]
    block = {"ipBlock": {"cidr": "10.0.0.0/8"}}
    further = {
        "networkPolicy": {"egress": True, "metricsNamespaceSelector": {"matchLabels": {"monitoring": "true"}}},
        "dashboard": {"networkPolicy": {"from": [block]}},
    }
    own = Renderer().objects(merged(PAGE, POLICY, further)).get("NetworkPolicy", NAME)["spec"]
    assert own["ingress"] == [
        {"from": [block], "ports": [{"port": "page"}]},
        {
            "from": [{"namespaceSelector": {"matchLabels": {"monitoring": "true"}}}],
            "ports": [{"port": "metrics"}],
        },
    ]
    store = {"podSelector": {"matchLabels": {"app": "lattice-rdzv", "lattice-rdzv/store": "ephemeral"}}}
    assert own["egress"][0] == {"to": [store], "ports": [{"port": "client"}]}
    assert own["egress"][1] == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


@pytest.mark.parametrize("target", MONITORS)
def test_prometheus_scrapes_the_page_and_the_alerts_use_its_metrics(target: str) -> None:
    objects = Renderer().objects(merged(PAGE, ALERTS, MONITORS[target]))
    if "service=" in target:
        service = objects.get("Service", f"{NAME}-metrics")
        monitor = objects.get("ServiceMonitor")["spec"]
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
        # The Service of the page may be published, so it does not have the port that needs no login.
        assert [port["targetPort"] for port in objects.get("Service", NAME)["spec"]["ports"]] == ["page"]
    else:
        monitor = objects.get("PodMonitor", NAME)["spec"]
        assert monitor["selector"]["matchLabels"].items() <= pod(objects)["metadata"]["labels"].items()
        ports = [port["name"] for port in container(objects)["ports"]]
        assert monitor["podMetricsEndpoints"][0]["port"] in ports
    for rule in runs_rules(objects):
        assert rule["expr"].count("{") == rule["expr"].count(f'{{namespace="lattice",{target}')
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        runbook = (CHART / rule["annotations"]["runbook"]).read_text()
        assert f"`{rule['alert']}`" in runbook, "the runbook does not name the alert"


def runs_rules(objects: Objects) -> list[dict[str, Any]]:
    (group,) = (one for one in objects.get("PrometheusRule")["spec"]["groups"] if one["name"] == "lattice-rdzv-runs")
    return list(group["rules"])


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    promtool = program("promtool", "prometheus")
    return subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", MONITORS)
def test_prometheus_accepts_every_rule(target: str, tmp_path: Path) -> None:
    rules = Renderer().objects(merged(PAGE, ALERTS, MONITORS[target])).get("PrometheusRule")["spec"]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    # An invalid rule makes this check fail.
    rules["groups"][-1]["rules"][0]["expr"] += " by"
    file.write_text(yaml.safe_dump(rules))
    assert promtool("check", "rules", file).returncode != 0


# An alert, the series with which it fires, and the series with which it does not.
SERIES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "LatticeRdzvDashboardDown": ({"up": "0x60"}, {"up": "1x60"}),
    "LatticeRdzvUnreachable": ({"lattice_service_up": "0x60"}, {"lattice_service_up": "1x60"}),
    "LatticeRdzvRunStuck": (
        {'lattice_run_state,tenant="t",run="r",state="stuck"': "1x60"},
        {
            'lattice_run_state,tenant="t",run="r",state="stuck"': "0x60",
            'lattice_run_state,tenant="t",run="r",state="formed"': "1x60",
        },
    ),
    # There is a sample for each minute, beginning at time 0.
    "LatticeRdzvRunWaitsLong": (
        {'lattice_run_waiting_since_timestamp_seconds,tenant="t",run="r"': "600x60"},
        {'lattice_run_waiting_since_timestamp_seconds,tenant="t",run="r"': "3300x60"},
    ),
    "LatticeRdzvRunStandsStill": (
        {'lattice_run_standstill_seconds_total,tenant="t",run="r"': "0+30x60"},
        {'lattice_run_standstill_seconds_total,tenant="t",run="r"': "0+3x60"},
    ),
    "LatticeRdzvFalseAlarms": (
        {'lattice_run_false_alarms_total,tenant="t",run="r"': "0+1x60"},
        {'lattice_run_false_alarms_total,tenant="t",run="r"': "1x60"},
    ),
    "LatticeRdzvLossesToldLate": (
        {
            'lattice_run_told_seconds_bucket,tenant="t",run="r",evidence="connection",le="1"': "0x60",
            'lattice_run_told_seconds_bucket,tenant="t",run="r",evidence="connection",le="2.5"': "0+1x60",
            'lattice_run_told_seconds_bucket,tenant="t",run="r",evidence="connection",le="+Inf"': "0+1x60",
        },
        {
            'lattice_run_told_seconds_bucket,tenant="t",run="r",evidence="connection",le="1"': "0+1x60",
            'lattice_run_told_seconds_bucket,tenant="t",run="r",evidence="connection",le="2.5"': "0+1x60",
            'lattice_run_told_seconds_bucket,tenant="t",run="r",evidence="connection",le="+Inf"': "0+1x60",
        },
    ),
    "LatticeRdzvRunsOmitted": ({"lattice_runs_omitted": "1x60"}, {"lattice_runs_omitted": "0x60"}),
}


def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    target = 'service="lattice-rdzv-dashboard-metrics"'
    objects = Renderer().objects(merged(PAGE, ALERTS, MONITORS[target]))
    rules = runs_rules(objects)
    assert [rule["alert"] for rule in rules] == list(SERIES)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "runs", "rules": rules}]}))
    labels = f'namespace="lattice",{target}'

    def case(rule: dict[str, Any], series: dict[str, str], *, fires: bool) -> dict[str, Any]:
        inputs = []
        for name, values in series.items():
            metric, _, own = name.partition(",")
            inputs.append({"series": f"{metric}{{{labels}{',' if own else ''}{own}}}", "values": values})
        of_run = {"tenant": "t", "run": "r"} if "by (tenant, run" in rule["expr"] else {}
        summary = rule["annotations"]["summary"].replace("{{ $labels.run }}", "r")
        alert = {
            "exp_labels": {**rule["labels"], **of_run},
            "exp_annotations": {**rule["annotations"], "summary": summary},
        }
        tested = {"eval_time": "59m", "alertname": rule["alert"], "exp_alerts": [alert] if fires else []}
        return {"interval": "1m", "input_series": inputs, "alert_rule_test": [tested]}

    cases = [case(rule, SERIES[rule["alert"]][not fires], fires=fires) for rule in rules for fires in (True, False)]
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases})
    )
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_values_of_an_alert_are_in_the_metrics() -> None:
    """A test of the core compares the names of the metrics with the core's."""
    text = (CHART / "templates" / "prometheusrule.yaml").read_text()
    assert set(re.findall(r'(?:state|evidence)="([a-z]+)"', text)) == {"stuck", "connection"}


def test_certificate_can_come_from_cert_manager() -> None:
    issuer = {
        "dashboard": {"tls": {"existingSecret": "", "issuerRef": {"name": "my-ca"}}, "hosts": ["rdzv.example.com"]}
    }
    objects = Renderer().objects(merged(PAGE, issuer))
    certificate = objects.get("Certificate", NAME)["spec"]
    assert certificate["secretName"] == f"{NAME}-tls"
    assert mounts(objects)["/etc/lattice-rdzv/dashboard/tls"][0] == f"{NAME}-tls"
    hosts = [argument.removeprefix("--host=") for argument in container(objects)["args"] if "--host=" in argument]
    assert certificate["dnsNames"] == hosts
    assert "rdzv.example.com" in hosts


def test_page_never_serves_without_tls_and_a_login() -> None:
    for path in ("tls", "login"):
        with pytest.raises(Refused, match=f"dashboard.{path}"):
            Renderer().text(merged(PAGE, {"dashboard": {path: {"existingSecret": ""}}}))


def test_two_renders_are_equal() -> None:
    values = merged(PAGE, AUTH, CLIENT_TLS, POLICY)
    assert Renderer().text(values) == Renderer().text(values)
