"""The state of a run as text for people: verdict first, equal nodes grouped, outliers named. Pure."""

import re
import time
from collections.abc import Iterable, Sequence
from itertools import groupby

from lattice_rdzv.types import AwaitedNode, NodeStatus, RoundStatus, RunStatus

from .terminal import coloured, table

# A run with more nodes is shown in groups. In a group, nodes are named one by one if they are few: outliers.
LISTED_NODES = 20
OUTLIERS = 10
OUTLIER_PART = 0.25
SHOWN_ROUNDS = 10
SHOWN_AWAITED = 10
NAMES_WIDTH = 60

STATE_TEXTS = {"told": "has not requested the next round"}
STATE_COLOURS = {"formed": "green", "forming": "yellow", "stuck": "red", "unreachable": "red"}


# The order of a list of runs.
URGENCY = ("stuck", "forming", "unreachable", "formed", "closed", "absent")


def describe(status: RunStatus, *, now: float | None = None, width: int = 100, options: str = "") -> str:
    """Formats a run: its verdict, its nodes, and its last rounds. `options` are those that a suggested command needs as well."""
    now = status.at if now is None else now
    parts = [headline(status, now), *verdict_lines(status, now, options)]
    if status.nodes:
        parts += ["", node_table(status, now)]
    if status.rounds:
        parts += ["", table(history_rows(status.rounds[-SHOWN_ROUNDS:]))]
        if len(status.rounds) > SHOWN_ROUNDS:
            parts.append(
                f"  ({len(status.rounds) - SHOWN_ROUNDS} earlier rounds: lattice-rdzv timeline {status.run.id})"
            )
    if status.unreadable:
        count = len(status.unreadable)
        parts += ["", coloured(f"{count} records cannot be read and are left out", "yellow")]
        parts += [f"  {why}" for why in status.unreadable]
    return "\n".join(clipped(line, width) for line in "\n".join(parts).splitlines())


def headline(status: RunStatus, now: float) -> str:
    """The run, its state and for how long, and the service."""
    verdict = status.verdict
    state = verdict.state
    closed = status.run.closed
    state_text = state if closed is None else f"closed as {closed.outcome}"
    since = verdict.since if verdict.since is not None else status.run.phase_since
    age = f" for {duration(now - since)}, since {clock(since)}" if since is not None else ""
    service = status.service
    facts = [f"{service.version} at {service.endpoint}" if service.version else service.endpoint]
    if service.latency_seconds is not None:
        facts.append(f"{service.latency_seconds * 1000:.0f} ms")
    if service.has_leader is False:
        facts.append("no leader")
    shown = coloured(state_text.upper(), STATE_COLOURS.get(state, "blue"))
    return f"Run {status.run.id}: {shown}{age}   ({', '.join(fact for fact in facts if fact)})"


def verdict_lines(status: RunStatus, now: float, options: str) -> list[str]:
    """The sentence, the nodes that are awaited, the next event, the command, and notes."""
    verdict = status.verdict
    rows: list[tuple[str, str]] = [("", verdict.sentence)]
    if verdict.reason and verdict.state != "formed" and verdict.reason not in verdict.sentence:
        rows.append(("reason", verdict.reason))
    change = status.run.change
    if change is not None and change.why and verdict.state in ("forming", "stuck"):
        rows.append(("change", change.why))
    rows += [("waits for", awaited(node, now)) for node in verdict.waits_for[:SHOWN_AWAITED]]
    more = len(verdict.waits_for) - SHOWN_AWAITED
    if more > 0:
        rows.append(("", f"and {verdict.waits_for_count - SHOWN_AWAITED} more"))
    if verdict.next is not None:
        moment = f" {when(verdict.next.at, now)}" if verdict.next.at is not None else ""
        limit = f" ({verdict.next.limit})" if verdict.next.limit else ""
        rows.append(("next", f"{verdict.next.what}{moment}{limit}"))
    if verdict.command is not None:
        is_ours = verdict.command.startswith("lattice-rdzv ")
        rows.append(("do", f"{verdict.command} {options}" if options and is_ours else verdict.command))
    rows += [("note", note) for note in verdict.notes]
    run = status.run
    if run.master_address:
        rows.append(("master", f"{run.master_address}:{run.master_port}"))
    if run.coordinator is not None:
        rows.append(("coordinator", f"{run.coordinator.name}{seen(run.coordinator.last_seen, now)}"))
    label = max((len(name) for name, _ in rows), default=0)
    return [f"  {name.ljust(label)}  {text}" if name else f"  {text}" for name, text in rows]


def awaited(node: AwaitedNode, now: float) -> str:
    """A node that the run waits for."""
    rank = f" (rank {node.rank})" if node.rank is not None else ""
    since = f", for {duration(now - node.since)}" if node.since is not None else ""
    evidence = f": {node.evidence}" if node.evidence else ""
    return f"{node.name}{rank}{since}{evidence}{seen(node.last_seen, now)}"


def seen(last_seen: float | None, now: float) -> str:
    """The last sign of life, if it is known."""
    return "" if last_seen is None else f", last sign of life {duration(max(0.0, now - last_seen))} ago"


def node_table(status: RunStatus, now: float) -> str:
    """Each node in a row, or equal nodes in one."""
    if len(status.nodes) <= LISTED_NODES:
        header = ["NODE", "STATE", "ADDRESS", "TOPOLOGY"]
        return table([header, *(node_row(node, now) for node in status.nodes)])
    rows = [["COUNT", "STATE", "NODES"]]
    named: list[NodeStatus] = []
    for (state, why), nodes in groups(status.nodes):
        if len(nodes) <= OUTLIERS and len(nodes) <= OUTLIER_PART * len(status.nodes):
            named += nodes
        else:
            reason = f": {why}" if why else ""
            rows.append(
                [str(len(nodes)), STATE_TEXTS.get(state, state), f"{ranges(node.name for node in nodes)}{reason}"]
            )
    text = table(rows) if len(rows) > 1 else ""
    if not named:
        return text
    outliers = table([["NODE", "STATE", "ADDRESS", "TOPOLOGY"], *(node_row(node, now) for node in named)])
    return f"{text}\n\n{outliers}" if text else outliers


def groups(nodes: Sequence[NodeStatus]) -> list[tuple[tuple[str, str], list[NodeStatus]]]:
    """Nodes of one state with one reason, the largest group first."""

    def key(node: NodeStatus) -> tuple[str, str]:
        return node.state, node.why or ""

    grouped = [(which, list(members)) for which, members in groupby(sorted(nodes, key=key), key)]
    return sorted(grouped, key=lambda group: -len(group[1]))


def ranges(names: Iterable[str]) -> str:
    """Names with the numbers at their ends as ranges: `n[1-17,19]`."""
    found = [re.fullmatch(r"(.*?)(\d+)", name) or name for name in names]
    # Numbers with leading zeros have one width, also those that need no zero.
    padded = {(match[1], len(match[2])) for match in found if not isinstance(match, str) and re.match(r"0\d", match[2])}
    numbers: dict[tuple[str, int], list[int]] = {}
    for match in found:
        if isinstance(match, str):
            numbers.setdefault((match, 0), [])
        else:
            width = len(match[2]) if (match[1], len(match[2])) in padded else 0
            numbers.setdefault((match[1], width), []).append(int(match[2]))
    shown = []
    for (prefix, width), ends in numbers.items():
        spans: list[list[int]] = []
        for number in sorted(ends):
            if spans and number == spans[-1][1] + 1:
                spans[-1][1] = number
            else:
                spans.append([number, number])
        texts = [f"{first:0{width}}" if first == last else f"{first:0{width}}-{last:0{width}}" for first, last in spans]
        if not texts:
            shown.append(prefix)
        elif len(texts) == 1 and "-" not in texts[0]:
            shown.append(f"{prefix}{texts[0]}")
        else:
            shown.append(f"{prefix}[{','.join(texts)}]")
    text = ", ".join(shown)
    return text if len(text) <= NAMES_WIDTH else f"{text[: NAMES_WIDTH - 3]}..."


def node_row(node: NodeStatus, now: float) -> list[str]:
    """One node."""
    state = STATE_TEXTS.get(node.state, node.state)
    if node.rank is not None:
        state += f", rank {node.rank}"
    if node.since is not None:
        state += f", for {duration(now - node.since)}"
    if node.last_seen is not None:
        state += seen(node.last_seen, now)
    address = f"{node.address}:{node.port}" if node.port else node.address
    return [node.name, state, address or "-", node.topology or "-"]


def history_rows(rounds: Sequence[RoundStatus]) -> list[list[str]]:
    """A header and one row for each round."""
    rows = [["ROUND", "FORMED", "IN", "NODES", "NO WORLD", "REASON"]]
    for entry in rounds:
        still = entry.stood_still_seconds
        rows.append(
            [
                str(entry.round),
                clock(entry.formed_at),
                f"{entry.took_seconds:.1f} s",
                str(entry.size),
                "-" if still is None else f"{still:.1f} s",
                entry.why,
            ]
        )
    return rows


def line(status: RunStatus) -> str:
    """The run in one line: name, state, nodes, sentence."""
    verdict = status.verdict
    run = status.run
    state = f"closed ({run.closed.outcome})" if run.closed is not None else verdict.state
    return f"{run.id}  {state}  {verdict.sentence}"


def change_line(status: RunStatus) -> str:
    """The run in one line without times that pass, for a pipe."""
    verdict = status.verdict
    following = verdict.next
    moment = f" at {clock(following.at)}" if following is not None and following.at is not None else ""
    what = f"; next: {following.what}{moment}" if following is not None else ""
    return f"{verdict.state}: {verdict.sentence}{what}"


def run_rows(statuses: Sequence[RunStatus]) -> list[list[str]]:
    """A header and one row for each run, the most urgent first."""
    rows = [["RUN", "STATE", "ROUND", "NODES", "FOR", "VERDICT"]]
    for status in sorted(statuses, key=lambda status: URGENCY.index(status.verdict.state)):
        run, since = status.run, status.verdict.since or status.run.phase_since
        present = sum(count for state, count in status.counts.items() if state != "missing")
        state = f"closed ({run.closed.outcome})" if run.closed is not None else status.verdict.state
        rows.append(
            [
                run.id,
                state,
                "-" if not run.round else str(run.round),
                str(present),
                "-" if since is None else duration(status.at - since),
                status.verdict.sentence,
            ]
        )
    return rows


def duration(seconds: float) -> str:
    """A time span as a person says it."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds:.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def when(moment: float, now: float) -> str:
    """A moment, relative to now."""
    return f"in {duration(moment - now)}, at {clock(moment)}" if moment > now else "now"


def clock(moment: float | None) -> str:
    """The time of day."""
    return "?" if moment is None else time.strftime("%H:%M:%S", time.localtime(moment))


def clipped(text: str, width: int) -> str:
    """A line that fits, unless it has color, which has no width."""
    return text if len(text) <= width or "\x1b" in text else f"{text[: width - 1]}…"
