"""What a failing story leaves: Kubernetes' events and the pods' log lines, side by side in the order of time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from e2e.agents import Logs
from e2e.kubernetes import Kubernetes, Object

Entry = tuple[str, str]
_EVENT_WIDTH = 110
_LINES = 400


def side_by_side(events: Iterable[Entry], lines: Iterable[Entry], *, limit: int = _LINES) -> str:
    """The last entries of both, each with its time: events on the left, log lines on the right."""
    both = sorted([(_time(at), text, "") for at, text in events] + [(_time(at), "", text) for at, text in lines])
    return "\n".join(
        f"{at:%H:%M:%S}.{at.microsecond // 1000:03} | {event[:_EVENT_WIDTH]:{_EVENT_WIDTH}} | {line}"
        for at, event, line in both[-limit:]
    )


def gather(kubernetes: Kubernetes, namespaces: Iterable[str], logs: Iterable[Logs]) -> str:
    """The same, of namespaces as they are now and logs as they were followed."""
    events = [_event(one) for namespace in namespaces for one in kubernetes.list("events", namespace)]
    lines = [(at, f"{one.pod}: {text}") for log in logs for one in log.followers.values() for at, text in one.lines()]
    return side_by_side(events, lines)


def _event(one: Object) -> Entry:
    about = one["involvedObject"]
    at = one.get("eventTime") or one.get("lastTimestamp") or one["metadata"]["creationTimestamp"]
    return at, f"{about['kind']}/{about.get('name', '')} {one.get('reason', '')}: {one.get('message', '')}"


def _time(text: str) -> datetime:
    """RFC 3339, of a second or of a nanosecond; a line whose time cannot be read is put first."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    try:
        return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}").replace(tzinfo=timezone.utc)
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)
