"""The node that a command names."""

import json
import sys

from lattice_rdzv import _core
from lattice_rdzv.types import NodeStatus, RunStatus

from .near import near, no_such_run


def look_up(settings: _core.Settings, name: str, timeout_seconds: float) -> NodeStatus | int:
    """Returns the node of this name or id. If there is none, prints the reason and returns the exit status."""
    status = RunStatus.from_json(json.loads(_core.status(settings, timeout_seconds=timeout_seconds).wait()))
    if status.verdict.state == "absent":
        print(no_such_run(settings, timeout_seconds), file=sys.stderr)
        return status.verdict.exit_status
    node = find(status, name)
    if isinstance(node, str):
        print(node, file=sys.stderr)
        return 1
    return node


def find(status: RunStatus, name: str) -> NodeStatus | str:
    """Returns the node of this name or id, or why there is none. Pure."""
    here = [node for node in status.nodes if node.state != "missing"]
    found = [node for node in here if name in (node.name, node.id)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(f"{node.id} at {node.address}" for node in found)
        return f"run `{status.run.id}` has {len(found)} nodes with this name; pass the id of one ({ids}): {name}"
    return f"run `{status.run.id}` has no node with this name or id{near(name, [node.name for node in here])}: {name}"
