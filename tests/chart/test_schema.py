"""values.schema.json: a mistake is refused with the name of the key."""

import json
from typing import Any

import jsonschema
import pytest

from chart.render import WHOLE, Refused, Renderer, default_values, leaves, nested
from chart.tools import CHART, HELM_VERSIONS

SCHEMA = json.loads((CHART / "values.schema.json").read_text())

# A mistake, and the text that the message must contain.
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "clientservice.type": ({"clientservice": {"type": "x"}}, "clientservice"),
    "an empty image": ({"image": ""}, "image"),
    "replicas": ({"replicas": 3}, "replicas"),
    "no members": ({"replicaCount": 0}, "replicaCount"),
    "half a member": ({"replicaCount": 1.5}, "replicaCount"),
    "members in words": ({"replicaCount": "three"}, "replicaCount"),
    "a type of Service": ({"clientService": {"type": "ClusterIp"}}, "type"),
    "a port out of range": ({"clientService": {"externalPort": 65536}}, "externalPort"),
    "a port in words": ({"clientService": {"internalPort": "2379"}}, "internalPort"),
    "a Service's name": ({"clientService": {"name": "Rdzv_Client"}}, "name"),
    "an unknown backend": ({"rendezvous": {"backend": "zookeeper"}}, "backend"),
    "a pull policy": ({"imagePullPolicy": "Sometimes"}, "imagePullPolicy"),
    "persistence.enable": ({"persistence": {"enable": True}}, "enable"),
    "a size": ({"persistence": {"size": "8 GB"}}, "size"),
    "a medium": ({"ephemeral": {"medium": "memory"}}, "medium"),
    "an access mode": ({"persistence": {"accessModes": ["RWO"]}}, "accessModes"),
    "a retention": ({"etcd": {"autoCompactionRetention": "one hour"}}, "autoCompactionRetention"),
    "a quota in words": ({"etcd": {"quotaBackendBytes": "2Gi"}}, "quotaBackendBytes"),
    "a log level": ({"etcd": {"logLevel": "trace"}}, "logLevel"),
    "etcd.version": ({"etcd": {"version": "3.5"}}, "version"),
    "enableV2": ({"etcd": {"enableV2": "yes"}}, "enableV2"),
    "an endpoint with a path": ({"external": {"endpoints": ["http://etcd:2379/v3"]}}, "endpoints"),
    "an endpoint with a password": ({"external": {"endpoints": ["root:secret@etcd:2379"]}}, "endpoints"),
    "a user named root": ({"auth": {"users": [{"name": "root"}]}}, "users"),
    "no users": ({"auth": {"users": []}}, "users"),
    "a probe's key": ({"probes": {"liveness": {"period": 1}}}, "period"),
    "a range": ({"clientService": {"loadBalancerSourceRanges": ["10.0.0.1"]}}, "loadBalancerSourceRanges"),
    "a label that is no text": ({"commonLabels": {"a": 1}}, "commonLabels"),
    "a certificate": ({"tls": {"client": {"caCertificate": "/etc/ca.crt"}}}, "caCertificate"),
    "tls.enabled": ({"tls": {"enabled": True}}, "enabled"),
}


@pytest.mark.parametrize("version", HELM_VERSIONS)
@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_refused_with_its_key(name: str, version: str) -> None:
    values, key = MISTAKES[name]
    with pytest.raises(Refused) as refused:
        Renderer(version).text(values)
    assert "schema" in str(refused.value), refused.value
    assert key in str(refused.value)


def test_schema_has_no_external_references() -> None:
    references = [value for key, value in leaves_of(SCHEMA) if key == "$ref"]
    assert references
    assert all(reference.startswith("#/definitions/") for reference in references)
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def leaves_of(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, list):
        return [leaf for one in node for leaf in leaves_of(one)]
    if not isinstance(node, dict):
        return []
    return [leaf for key, value in node.items() for leaf in [(key, value), *leaves_of(value)]]


def test_defaults_are_valid() -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(default_values())


@pytest.mark.parametrize("path", [path for path in leaves(default_values()) if path not in ("global", "jfrog")])
def test_every_value_is_typed(path: str) -> None:
    """A value of a type that no value has is refused, which shows that the schema has a type for every value."""
    wrong = nested(path, [[1]])
    errors = list(jsonschema.Draft7Validator(SCHEMA).iter_errors(wrong))
    assert errors, path


def test_every_map_of_values_is_closed() -> None:
    """A key that values.yaml does not have is refused at every level."""

    def maps(values: dict[str, Any], above: str) -> list[str]:
        out = [above]
        for key, value in values.items():
            if isinstance(value, dict) and value and f"{above}{key}" not in WHOLE:
                out += maps(value, f"{above}{key}.")
        return out

    for path in maps(default_values(), ""):
        errors = list(jsonschema.Draft7Validator(SCHEMA).iter_errors(nested(f"{path}slip", 1)))
        assert any("slip" in error.message for error in errors), path
