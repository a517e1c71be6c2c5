"""The kinds of other controllers as JSON schemas for kubeconform, made from the definitions in the controllers' modules.

The schemas are strict. An API server drops a field that it does not know, so the object would have no error and not work as
described. Rules in CEL and webhooks are not evaluated, because they need a server.
"""

import re
from functools import cache
from typing import Any

import yaml

from chart.render import LOADER
from chart.tools import FOLDER, skip_without

# The metadata of every object. A definition only has the type `object` for it.
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


# A group with a dot belongs to Kubernetes only if it ends with `.k8s.io`.
_OWN = re.compile(r"([a-z]+|[a-z.]+\.k8s\.io)/|v1$")


def is_foreign(version: str) -> bool:
    """Returns whether the `apiVersion` of an object belongs to another controller."""
    return _OWN.match(version) is None


@cache
def schema(kind: str, version: str) -> dict[str, Any]:
    """Returns the schema of a kind in a served version."""
    group, number = version.split("/")
    for file in sorted(FOLDER.glob(f"definitions-*/{group}_*.yaml")):
        text = file.read_text()
        # A definition takes seconds to parse, so only the right one is parsed.
        if f"\n    kind: {kind}\n" not in text:
            continue
        for served in yaml.load(text, Loader=LOADER)["spec"]["versions"]:
            if served["name"] == number and served["served"]:
                found = strict(served["schema"]["openAPIV3Schema"])
                found["properties"]["metadata"] = METADATA
                return found
    skip_without(f"the definition of {kind} in {version}")
    raise AssertionError("unreachable")


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Converts a structural schema of Kubernetes to a JSON schema that refuses unknown fields."""
    out = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if "properties" in schema:
        out["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            out[key] = strict(schema[key])
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not is_open:
        out["additionalProperties"] = False
        if schema.get("x-kubernetes-embedded-resource"):
            out.setdefault("properties", {}).update(
                {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": METADATA}
            )
    if schema.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    if out.pop("nullable", False) and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    return out
