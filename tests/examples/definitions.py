"""The kinds of other controllers, as JSON schemas made from the definitions that their modules carry.

Strict where an API server is lenient: it drops a field that it does not know, and the example would not do what it says.
Rules in CEL and webhooks are not evaluated: those need the server.
"""

from functools import cache
from typing import Any

import yaml
from chart.tools import FOLDER, lack
from jsonschema import Draft202012Validator

# Ten times as fast where PyYAML was built with it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What every object has, of which a definition says no more than that it is an object.
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


@cache
def validator(kind: str, version: str) -> Draft202012Validator:
    """The schema of a kind in a version that is served."""
    group, number = version.split("/")
    for file in sorted(FOLDER.glob(f"definitions-*/{group}_*.yaml")):
        text = file.read_text()
        # Reading one takes seconds, so it is not read to be thrown away.
        if f"\n    kind: {kind}\n" not in text:
            continue
        for served in yaml.load(text, Loader=LOADER)["spec"]["versions"]:
            if served["name"] == number and served["served"]:
                schema = strict(served["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = METADATA
                return Draft202012Validator(schema)
    lack(f"the definition of {kind} in {version}")
    raise AssertionError("unreachable")


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema of Kubernetes as one of JSON schema that refuses what it does not name."""
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
