"""The rendered ConfigMaps for agents in other namespaces."""

from __future__ import annotations

import re

from chart.render import AUTH, Renderer, merged


def test_every_namespace_of_agents_gets_the_configmap() -> None:
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
    """`envFrom` skips a key that is not a valid variable name, and the agent is not notified."""
    keys = Renderer().objects({"agents": {"tenant": "t"}}).agents
    assert all(re.fullmatch("[A-Z_]+", key) for key in keys)


def test_each_namespace_gets_its_user_and_tenant() -> None:
    users = [{"name": "all"}, {"name": "a-jobs", "tenant": "a"}]
    namespaces = ["plain", {"name": "team-a", "user": "a-jobs"}, {"name": "team-b", "tenant": "b"}]
    objects = Renderer().objects(merged(AUTH, {"auth": {"users": users}, "agents": {"namespaces": namespaces}}))

    def read(namespace: str) -> tuple[str | None, str | None, str | None]:
        data = objects.get("ConfigMap", "lattice-rdzv-config", namespace=namespace)["data"]
        return tuple(data.get(f"LATTICE_RDZV_{key}") for key in ("USER", "TENANT", "PASSWORD_FILE"))

    folder = "/etc/lattice-rdzv/auth"
    assert read("lattice") == ("all", None, f"{folder}/all")
    assert read("plain") == ("all", None, f"{folder}/all")
    assert read("team-a") == ("a-jobs", "a", f"{folder}/a-jobs")
    assert read("team-b") == ("all", "b", f"{folder}/all")
    # A user of one tenant can access no other.
    values = {"auth": {"users": users}, "agents": {"namespaces": namespaces, "tenant": "shared"}}
    objects = Renderer().objects(merged(AUTH, values))
    assert [read(name)[1] for name in ("lattice", "plain", "team-a", "team-b")] == ["shared", "shared", "a", "b"]
