"""The report of a failed scenario: Kubernetes' events and the pods' log lines, side by side and ordered by time."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone

from e2e.agents import Logs
from e2e.kubernetes import Failed, Kubernetes, Object

Entry = tuple[str, str]
_EVENT_WIDTH = 110
_LINES = 400


def side_by_side(events: Iterable[Entry], lines: Iterable[Entry], *, limit: int = _LINES) -> str:
    """Returns the last entries of both, each with its time: events on the left, log lines on the right."""
    both = sorted([(_time(at), text, "") for at, text in events] + [(_time(at), "", text) for at, text in lines])
    return "\n".join(
        f"{at:%H:%M:%S}.{at.microsecond // 1000:03} | {event[:_EVENT_WIDTH]:{_EVENT_WIDTH}} | {line}"
        for at, event, line in both[-limit:]
    )


def gather(kubernetes: Kubernetes, namespaces: Iterable[str], logs: Iterable[Logs]) -> str:
    """Returns the report. It has the logs that were followed, the present events of the namespaces, and the log lines of the
    namespaces' other pods, such as those of the service."""
    events: list[Entry] = []
    followed = [one for log in logs for one in log.followers.values()]
    lines = [(at, f"{one.pod}: {text}") for one in followed for at, text in one.lines()]
    names = {one.pod for one in followed}
    for namespace in namespaces:
        events += [_event(one) for one in kubernetes.list("events", namespace)]
        pods = [one for one in kubernetes.list("pods", namespace) if one["metadata"]["name"] not in names]
        lines += [entry for pod in pods for entry in _said(kubernetes, pod)]
    return side_by_side(events, lines)


def _said(kubernetes: Kubernetes, pod: Object) -> list[Entry]:
    """Returns the last lines of a pod's containers and of their predecessors, or none if a container has not started."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    options = (f"--namespace={namespace}", "--all-containers", "--ignore-errors", "--timestamps", f"--tail={_LINES}")
    replaced = any(one["restartCount"] for one in pod["status"].get("containerStatuses", []))
    printed = ""
    for which in ("--previous=true", "--previous=false") if replaced else ("--previous=false",):
        with suppress(Failed):
            printed += kubernetes("logs", name, which, *options)
    return [(at, f"{name}: {text}") for at, _, text in (line.partition(" ") for line in printed.splitlines())]


def _event(one: Object) -> Entry:
    about = one["involvedObject"]
    at = one.get("eventTime") or one.get("lastTimestamp") or one["metadata"]["creationTimestamp"]
    return at, f"{about['kind']}/{about.get('name', '')} {one.get('reason', '')}: {one.get('message', '')}"


def _time(text: str) -> datetime:
    """Parses a time of RFC 3339 with or without nanoseconds. A line whose time cannot be parsed is sorted first."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    try:
        return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}").replace(tzinfo=timezone.utc)
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)
