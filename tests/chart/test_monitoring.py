"""What Prometheus is told, as it is rendered."""

from __future__ import annotations

from chart.render import Renderer

MONITORING = {"metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}


def test_alerts_are_about_the_targets_of_the_service_monitor() -> None:
    objects = Renderer().objects(MONITORING)
    service = objects.get("Service", "lattice-rdzv-metrics")
    monitor = objects.get("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    for rule in objects.get("PrometheusRule")["spec"]["groups"][0]["rules"]:
        assert rule["expr"].count("{") == rule["expr"].count('{namespace="lattice",service="lattice-rdzv-metrics"}')
        assert rule["annotations"].keys() == {"summary", "description"}
