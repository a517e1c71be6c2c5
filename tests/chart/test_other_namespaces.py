"""What agents in other namespaces read, as it is rendered."""

from __future__ import annotations

import re

from chart.render import Renderer


def test_the_same_is_told_in_every_namespace_of_agents() -> None:
    authority = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    values = {
        "agents": {"namespaces": ["team-a", "lattice"], "tenant": "vision"},
        "tls": {"client": {"enabled": True, "existingSecret": "s", "caCertificate": authority}},
    }
    objects = Renderer().objects(values)
    for name in ("lattice-rdzv-config", "lattice-rdzv-ca"):
        own, theirs = (
            objects.get("ConfigMap", name, namespace=namespace)["data"] for namespace in ("lattice", "team-a")
        )
        assert own == theirs
    assert objects.get("ConfigMap", "lattice-rdzv-ca")["data"] == {"ca.crt": authority}
    assert len([one for one in objects.all if one["kind"] == "ConfigMap"]) == 4


def test_every_key_can_be_a_variable() -> None:
    """One that cannot is left out by `envFrom` without a word to the agent."""
    keys = Renderer().objects({"agents": {"tenant": "t"}}).agents
    assert all(re.fullmatch("[A-Z_]+", key) for key in keys)
