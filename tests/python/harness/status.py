"""The command `lattice-rdzv` as a process, and its JSON, checked against the schema of the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema

from harness.wait import wait_for
from lattice_rdzv.types import RunStatus

DOCS = Path(__file__).parents[3] / "docs"
SCHEMA = json.loads((DOCS / "status.schema.json").read_text())
TIMELINE_SCHEMA = json.loads((DOCS / "timeline.schema.json").read_text())


def command(*arguments: str, timeout_seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    line = [sys.executable, "-m", "lattice_rdzv.cli", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout_seconds, check=False)


def validated(text: str) -> RunStatus:
    """Parses a status that the command printed. Fails unless the schema accepts it and describes each of its fields."""
    document: dict[str, Any] = json.loads(text)
    jsonschema.validate(document, _closed(SCHEMA))
    return RunStatus.from_json(document)


def validated_timeline(text: str) -> list[dict[str, Any]]:
    """The events of a timeline that the command printed, if the schema accepts it and has each of its fields."""
    document: dict[str, Any] = json.loads(text)
    jsonschema.validate(document, _closed(TIMELINE_SCHEMA))
    events: list[dict[str, Any]] = document["events"]
    return events


def _closed(schema: Any) -> Any:
    """Returns the schema without further fields, because here, a field that it does not describe is an error."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {**closed, "additionalProperties": False} if "properties" in schema else closed


def read(run_id: str, endpoint: str, *options: str) -> tuple[int, RunStatus]:
    """Returns the exit status of `status --json`, and the status that it printed."""
    # A later `--timeout` in the options takes precedence.
    done = command("status", run_id, "--endpoint", endpoint, "--json", "--timeout=30", *options)
    assert done.stdout, done.stderr
    return done.returncode, validated(done.stdout)


def wait_for_status(
    what: str,
    run_id: str,
    endpoint: str,
    holds: Callable[[RunStatus], bool],
    *,
    timeout_seconds: float = 60.0,
) -> tuple[int, RunStatus]:
    """Waits until the status of a run satisfies a condition."""
    seen: list[str] = []

    def condition() -> tuple[int, RunStatus] | None:
        exit_status, status = read(run_id, endpoint)
        seen.append(f"{exit_status}: {status.verdict}")
        return (exit_status, status) if holds(status) else None

    return wait_for(
        what, condition, timeout_seconds=timeout_seconds, every_seconds=0.5, detail=lambda: "\n".join(seen[-3:])
    )
