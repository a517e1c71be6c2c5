"""`lattice-rdzv status` shows the state of a run."""

import argparse
import json
import sys
from typing import Any

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError

from . import service
from .terminal import coloured, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `status`."""
    parser.add_argument("run_id", nargs="?", default="", help="run id (default: LATTICE_RDZV_ID)")
    parser.add_argument("--tenant", default="", help="tenant of the run (default: LATTICE_RDZV_TENANT, or `default`)")
    service.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if the run exists, and 1 if it does not exist or cannot be read."""
    try:
        settings = service.settings(arguments, run_id=arguments.run_id, tenant=arguments.tenant)
        if settings.run_id == service.NO_RUN:
            print("the run id is missing; pass it as an argument, or set LATTICE_RDZV_ID", file=sys.stderr)
            return 2
        document: dict[str, Any] = json.loads(_core.status(settings, timeout_seconds=arguments.timeout).wait())
    except RendezvousError as error:
        print(error, file=sys.stderr)
        return 1
    there = any(document.get(part) for part in ("life", "nodes", "history", "closed", "unreadable"))
    if arguments.json:
        print(json.dumps(document, indent=2))
    elif there:
        print(describe(document, settings.run_id))
    else:
        print(f"there is no run with this id at {', '.join(settings.endpoints)}: {settings.run_id}", file=sys.stderr)
    return 0 if there else 1


def describe(document: dict[str, Any], run_id: str) -> str:
    """Formats the state of a run: a headline, its facts, its nodes, and its rounds. Pure."""
    parts = [f"Run {run_id}: {headline(document)}"]
    nodes = document.get("nodes") or []
    names = {str(node.get("id")): str(node.get("name")) for node in nodes}
    coordinator = str(document.get("coordinator") or "")
    master = document.get("master_address")
    facts = [
        ("reason", document.get("why")),
        ("change", document.get("change")),
        ("master", f"{master}:{document.get('master_port')}" if master else None),
        ("coordinator", names.get(coordinator, coordinator)),
    ]
    known = [[name, _text(value)] for name, value in facts if value not in (None, "", [])]
    if known:
        parts.append(table(known))
    if nodes:
        without_rank = _state_without_rank(document)
        rows = [_node_row(node, without_rank) for node in nodes]
        parts.append("\n" + table([["NODE", "STATE", "ADDRESS", "TOPOLOGY"], *rows]))
    history = document.get("history") or []
    if history:
        parts.append("\n" + table(history_rows(history)))
    unreadable = document.get("unreadable") or []
    if unreadable:
        parts.append(f"\n{coloured(f'{len(unreadable)} records cannot be read and are left out', 'yellow')}")
        parts.extend(f"  {why}" for why in unreadable)
    return "\n".join(parts)


def headline(document: dict[str, Any]) -> str:
    """Returns what the run is doing, in one phrase. Pure."""
    closed = document.get("closed")
    if closed:
        why = f": {closed['why']}" if closed.get("why") else ""
        return f"{coloured('closed', 'yellow')} as {closed.get('outcome')} by {closed.get('by')}{why}"
    number, size, least, most = (document.get(part) for part in ("round", "size", "min_nodes", "max_nodes"))
    present = sum(not node.get("leaving") for node in document.get("nodes") or [])
    if not size:
        return f"waiting for the first round ({present} of at least {least or '?'} nodes)"
    if document.get("phase") == "restoring":
        return f"restoring round {number} ({present} of {size} nodes)"
    if document.get("change"):
        return f"waiting for the round after round {number} ({present} nodes, at least {least} needed)"
    return f"running round {number} ({size} of at most {most} nodes)"


def _state_without_rank(document: dict[str, Any]) -> str:
    """Returns the state of a node that has no rank in the current round."""
    if document.get("closed"):
        return "not in the last round"
    size, most = document.get("size"), document.get("max_nodes")
    if not size:
        return "waiting for the first round"
    return "spare" if size == most and not document.get("change") else "waiting for the next round"


def history_rows(history: list[dict[str, Any]]) -> list[list[str]]:
    """Returns a header and one row for each round: number, nodes, duration, reason. Pure."""
    rows = [["ROUND", "NODES", "FORMED IN", "REASON"]]
    for entry in sorted(history, key=lambda entry: int(entry["round"])):
        took = entry.get("took_seconds")
        rows.append(
            [
                str(entry["round"]),
                str(entry.get("size", "?")),
                "?" if took is None else f"{float(took):.1f} s",
                str(entry.get("why", "")),
            ]
        )
    return rows


def _node_row(node: dict[str, Any], without_rank: str) -> list[str]:
    rank = node.get("rank")
    state = "leaving" if node.get("leaving") else without_rank if rank is None else f"rank {rank}"
    port = f":{node['port']}" if node.get("port") else ""
    return [str(node.get("name", "?")), state, f"{node.get('address', '')}{port}", str(node.get("topology") or "-")]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("why") or value.get("name") or json.dumps(value))
    return str(value)
