"""`lattice-rdzv status`: a run as the service has it."""

import argparse
import json
import sys
from typing import Any

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError

from . import service
from .terminal import coloured, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run, and where."""
    parser.add_argument("run_id", nargs="?", default="", help="the run; default: LATTICE_RDZV_ID")
    parser.add_argument("--tenant", default="", help="the run's tenant; default: LATTICE_RDZV_TENANT, else `default`")
    service.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """0 if the run is there, 1 if it is not or cannot be read."""
    try:
        settings = service.settings(arguments, run_id=arguments.run_id, tenant=arguments.tenant)
        if settings.run_id == service.NO_RUN:
            print("which run? Pass its id, or set LATTICE_RDZV_ID", file=sys.stderr)
            return 2
        document: dict[str, Any] = json.loads(_core.status(settings, timeout_seconds=arguments.timeout))
    except RendezvousError as error:
        print(error, file=sys.stderr)
        return 1
    there = any(document.get(part) for part in ("life", "nodes", "history", "closed", "unreadable"))
    if arguments.json:
        print(json.dumps(document, indent=2))
    elif there:
        print(describe(document, settings.run_id))
    else:
        print(f"no run of that id at {', '.join(settings.endpoints)}: {settings.run_id}", file=sys.stderr)
    return 0 if there else 1


def describe(document: dict[str, Any], run_id: str) -> str:
    """The same for a person. Pure."""
    parts = [f"run {run_id}"]
    closed = document.get("closed")
    if closed:
        why = f": {closed['why']}" if closed.get("why") else ""
        parts[0] += f"  {coloured('closed', 'yellow')} as {closed.get('outcome')} by {closed.get('by')}{why}"
    names = {str(node.get("id")): str(node.get("name")) for node in document.get("nodes") or []}
    coordinator = str(document.get("coordinator") or "")
    size, least, most = (document.get(part) for part in ("size", "min_nodes", "max_nodes"))
    master = document.get("master_address")
    facts = [
        ("round", document.get("round")),
        ("phase", document.get("phase")),
        ("world", None if size is None else f"{size} nodes of {least} to {most}"),
        ("why", document.get("why")),
        ("change", document.get("change")),
        ("master", f"{master}:{document.get('master_port')}" if master else None),
        ("coordinator", names.get(coordinator, coordinator)),
    ]
    known = [[name, _text(value)] for name, value in facts if value not in (None, "", [])]
    if known:
        parts.append(table(known))
    nodes = document.get("nodes") or []
    if nodes:
        parts.append(f"\n{len(nodes)} nodes")
        parts.append(table([_node_row(node) for node in nodes]))
    history = document.get("history") or []
    if history:
        parts.append("\nrounds")
        parts.append(table(history_rows(history)))
    unreadable = document.get("unreadable") or []
    if unreadable:
        parts.append(f"\n{coloured(f'{len(unreadable)} records cannot be read and are left out', 'yellow')}")
        parts.extend(f"  {why}" for why in unreadable)
    return "\n".join(parts)


def history_rows(history: list[dict[str, Any]]) -> list[list[str]]:
    """One row a round: number, size, how long it took, why. Pure."""
    rows = [["round", "nodes", "took", "why"]]
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


def _node_row(node: dict[str, Any]) -> list[str]:
    rank = node.get("rank")
    state = "leaving" if node.get("leaving") else "spare or seeking" if rank is None else f"rank {rank}"
    port = f":{node['port']}" if node.get("port") else ""
    return [str(node.get("name", "?")), state, f"{node.get('address', '')}{port}", str(node.get("topology") or "")]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("why") or value.get("name") or json.dumps(value))
    return str(value)
