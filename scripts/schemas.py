"""Writes docs/status.schema.json and docs/timeline.schema.json from `lattice_rdzv.types`: `python scripts/schemas.py`.

The schemas describe what `lattice-rdzv status --json` and `lattice-rdzv timeline --json` print. They allow further fields,
because fields are added within one version.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from lattice_rdzv.types import RunStatus, Timeline

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Each type, its file, and what the file describes.
DOCUMENTS: tuple[tuple[type, Path, str], ...] = (
    (RunStatus, DOCS / "status.schema.json", "The status of a run, as `lattice-rdzv status --json` prints it"),
    (Timeline, DOCS / "timeline.schema.json", "The events of a run, as `lattice-rdzv timeline --json` prints them"),
)
PRIMITIVES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def text(kind: type, title: str) -> str:
    """Returns the JSON Schema of a type."""
    definitions: dict[str, Any] = {}
    root = of_type(kind, definitions)
    definitions[kind.__name__]["properties"]["schema"] = {"const": 1}
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **root, "$defs": definitions}
    return json.dumps(document, indent=2) + "\n"


def of_type(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a type. Dataclasses become definitions."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in PRIMITIVES:
        return {"type": PRIMITIVES[kind]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": of_type(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": of_type(arguments[1], definitions)}
    if origin in (typing.Union, types.UnionType):
        options = [of_type(each, definitions) for each in arguments if each is not type(None)]
        return {"anyOf": [*options, {"type": "null"}] if type(None) in arguments else options}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}
            hints = typing.get_type_hints(kind)
            fields = dataclasses.fields(kind)
            definitions[kind.__name__] = {
                "type": "object",
                "description": (kind.__doc__ or "").strip(),
                "properties": {field.name: of_type(hints[field.name], definitions) for field in fields},
                # A field with one value says which of several types an object has, so it is always there.
                "required": [
                    field.name
                    for field in fields
                    if field.default is dataclasses.MISSING or len(typing.get_args(hints[field.name])) == 1
                ],
            }
        return {"$ref": f"#/$defs/{kind.__name__}"}
    raise TypeError(f"no schema for {kind}")


if __name__ == "__main__":
    for kind, path, title in DOCUMENTS:
        path.write_text(text(kind, title))
    sys.exit(0)
