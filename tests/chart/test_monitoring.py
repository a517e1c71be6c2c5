"""Rendered objects for Prometheus."""

from __future__ import annotations

from chart.render import Renderer, merged
from chart.tools import CHART

MONITORING = {"metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}


def test_alerts_are_about_the_targets_of_the_service_monitor() -> None:
    objects = Renderer().objects(MONITORING)
    service = objects.get("Service", "lattice-rdzv-metrics")
    monitor = objects.get("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    for rule in objects.get("PrometheusRule")["spec"]["groups"][0]["rules"]:
        assert rule["expr"].count("{") == rule["expr"].count('{namespace="lattice",service="lattice-rdzv-metrics"}')
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert (CHART / rule["annotations"]["runbook"]).is_file()


def test_alerts_link_to_published_runbooks() -> None:
    values = merged(MONITORING, {"metrics": {"prometheusRule": {"runbookBaseURL": "https://docs.example.com/rdzv/"}}})
    for rule in Renderer().objects(values).get("PrometheusRule")["spec"]["groups"][0]["rules"]:
        page = rule["annotations"]["runbook"].removeprefix("docs/runbooks/")
        assert rule["annotations"]["runbook_url"] == f"https://docs.example.com/rdzv/{page}"


def test_no_member_at_all_is_critical() -> None:
    rules = Renderer().objects(MONITORING).get("PrometheusRule")["spec"]["groups"][0]["rules"]
    critical = {rule["alert"]: rule["expr"] for rule in rules if rule["labels"]["severity"] == "critical"}
    assert critical["LatticeRdzvDown"].endswith("== 0")


def test_alerts_are_about_the_targets_of_a_pod_monitor() -> None:
    """Prometheus names the job of a PodMonitor after its namespace and name."""
    values = {"metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}
    objects = Renderer().objects(values)
    assert ("Service", "lattice-rdzv-metrics") not in objects.names()
    monitor = objects.get("PodMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= objects.pod["metadata"]["labels"].items()
    assert monitor["podMetricsEndpoints"][0]["port"] in [port["name"] for port in objects.etcd["ports"]]
    for rule in objects.get("PrometheusRule")["spec"]["groups"][0]["rules"]:
        assert rule["expr"].count("{") == rule["expr"].count('{namespace="lattice",job="lattice/lattice-rdzv"}')
