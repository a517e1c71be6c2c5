"""The strict schemas of Kubernetes' own kinds."""

import json
from functools import cache
from typing import Any

from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7 as SPECIFICATION

from chart.tools import schemas


@cache
def validator(kubernetes: str, kind: str, version: str) -> Draft7Validator:
    """Returns the validator of a kind, for which an unknown field is an error."""
    folder = schemas(kubernetes)
    group = version.split("/")[0].split(".")[0]
    name = "-".join([kind.lower(), *([group] if "/" in version else []), version.split("/")[-1]])
    definitions = (folder / "_definitions.json").read_text()
    registry: Registry[Any] = Registry().with_resource(
        "_definitions.json", Resource.from_contents(json.loads(definitions), default_specification=SPECIFICATION)
    )
    return Draft7Validator(json.loads((folder / f"{name}.json").read_text()), registry=registry)
