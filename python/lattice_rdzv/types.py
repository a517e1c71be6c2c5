"""Types of arguments and results.

`RunStatus` and its parts are what `lattice_rdzv.status` returns. `docs/status.schema.json` describes the same structure as
JSON. `RunStatus.schema` is its version: within one version, fields are added and never renamed or removed. `Timeline` and its
events are what `lattice-rdzv timeline --json` prints, with the schema `docs/timeline.schema.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypedDict, TypeVar

__all__ = [
    "AnnouncedEvent",
    "AwaitedNode",
    "ChangeStatus",
    "ClosedEvent",
    "ClosedStatus",
    "CoordinatorStatus",
    "FormedEvent",
    "JoinSettings",
    "Loss",
    "LostEvent",
    "NextEvent",
    "NodeStatus",
    "PresentEvent",
    "RoundStatus",
    "RunFacts",
    "RunStatus",
    "ServiceStatus",
    "SizingStatus",
    "Suspicion",
    "Timeline",
    "Verdict",
]

_T = TypeVar("_T")
# The version of `RunStatus` that this module reads.
SCHEMA = 1

Suspicion = Literal["lost", "gone", "alive", "unknown", "unanswered"]
"""The verdict about a member that a program suspects; see `lattice_rdzv.Run.suspect`."""


class JoinSettings(TypedDict, total=False):
    """The settings that `lattice_rdzv.join` takes besides its named arguments. docs/settings.md describes each."""

    min_nodes: int | str | None
    max_nodes: int | str | None
    sizes: Sequence[int] | str | None
    node_unit: int | str | None
    wanted: int | str | None
    is_host: bool | int | str | None
    backend: Literal["etcd"] | None
    cacert: str | None
    cert: str | None
    key: str | None
    user: str | None
    password_file: str | None
    port_range: str | None
    lifelines: bool | int | str | None
    lifeline_port: int | str | None
    node_index: int | str | None
    lease_ttl: float | str | None
    join_timeout: float | str | None
    spare_timeout: float | str | None
    settle_time: float | str | None
    last_call_timeout: float | str | None
    rejoin_timeout: float | str | None
    grow_delay: float | str | None
    reuse_delay: float | str | None
    close_timeout: float | str | None
    connect_timeout: float | str | None
    host_timeout: float | str | None
    on_member_loss: Literal["restart", "ignore"] | None
    on_newcomer: Literal["restart", "ignore"] | None
    on_node_failure: Literal["close", "leave"] | None
    leave_on_signal: bool | int | str | None


State = Literal["formed", "forming", "stuck", "closed", "absent", "unreachable"]
NodeState = Literal["member", "waiting", "told", "spare", "leaving", "finished", "excluded", "missing"]
ChangeKind = Literal["lost", "leaving", "seeking", "newcomers", "closed", "replaced"]


@dataclass(frozen=True)
class AwaitedNode:
    """A node that the run waits for, since when, and the evidence that it is missing or late."""

    name: str
    id: str | None
    rank: int | None
    since: float | None
    evidence: str
    last_seen: float | None


@dataclass(frozen=True)
class NextEvent:
    """What happens next without outside intervention: the event, when, and the setting that determines when."""

    what: str
    at: float | None
    limit: str | None


@dataclass(frozen=True)
class Verdict:
    """The answer: what the run does or waits for, what happens next, and the command that would change it."""

    state: State
    exit_status: int
    sentence: str
    reason: str
    since: float | None
    waits_for: tuple[AwaitedNode, ...]
    waits_for_count: int
    next: NextEvent | None
    command: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ServiceStatus:
    """The rendezvous service, as the reader found it."""

    endpoint: str
    version: str | None
    latency_seconds: float | None
    has_leader: bool | None
    errors: tuple[str, ...]


@dataclass(frozen=True)
class ChangeStatus:
    """The change of the world that was announced."""

    kind: ChangeKind
    why: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ClosedStatus:
    """How the run was closed."""

    life: str
    by: str
    why: str
    outcome: Literal["succeeded", "failed", "ended"]
    submission: str | None


@dataclass(frozen=True)
class CoordinatorStatus:
    """The node that decides the rounds."""

    name: str
    id: str
    last_seen: float | None


@dataclass(frozen=True)
class SizingStatus:
    """The settings `sizes`, `node_unit` and `wanted`, as far as they are set."""

    sizes: tuple[int, ...] = ()
    node_unit: int | None = None
    wanted: int | None = None


@dataclass(frozen=True)
class RunFacts:
    """The run itself: its round, its settings, its coordinator, and how it was closed."""

    id: str
    tenant: str
    life: str | None
    phase: Literal["forming", "running", "restoring", "changing", "closed"] | None
    phase_since: float | None
    round: int | None
    size: int | None
    min_nodes: int | None
    max_nodes: int | None
    sizing: SizingStatus | None
    why: str | None
    master_address: str | None
    master_port: int | None
    host: str | None
    submission: str | None
    change: ChangeStatus | None
    closed: ClosedStatus | None
    coordinator: CoordinatorStatus | None


@dataclass(frozen=True)
class NodeStatus:
    """A node that is present, or a member whose record is gone."""

    name: str
    id: str
    rank: int | None
    state: NodeState
    why: str | None
    since: float | None
    address: str
    port: int
    topology: str | None
    index: int | None
    last_seen: float | None
    false_alarms: int = 0


@dataclass(frozen=True)
class Loss:
    """A member that a round lost, with the evidence if more is known than that its lease ended."""

    name: str
    evidence: str | None
    told_seconds: float | None = None


@dataclass(frozen=True)
class RoundStatus:
    """A round of the run's history. `resumed_after_seconds` is `None` unless the program calls `Run.report_resumed`."""

    round: int
    formed_at: int | None
    took_seconds: float
    stood_still_seconds: float | None
    size: int
    newcomers: int
    cause: ChangeKind | None
    why: str
    coordinator: str
    names: tuple[str, ...]
    lost: tuple[Loss, ...]
    resumed_after_seconds: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """A run as an operator sees it. A value that does not exist is `None` or empty. Times are seconds since 1970."""

    schema: int
    verdict: Verdict
    at: float
    service: ServiceStatus
    run: RunFacts
    counts: dict[NodeState, int]
    nodes: tuple[NodeStatus, ...]
    rounds: tuple[RoundStatus, ...]
    unreadable: tuple[str, ...]

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> RunStatus:
        """Returns the status that `lattice-rdzv status --json` printed, without fields that this version does not know.

        Raises:
            ValueError: The status has another `schema`.
        """
        if document["schema"] != SCHEMA:
            raise ValueError(f"the status has the schema {document['schema']}, but this version reads {SCHEMA}")
        verdict, run = document["verdict"], document["run"]
        sizing, change = run["sizing"], run["change"]
        verdict = {
            **verdict,
            "waits_for": tuple(_known(AwaitedNode, node) for node in verdict["waits_for"]),
            "notes": tuple(verdict["notes"]),
            "next": _optional(NextEvent, verdict["next"]),
        }
        run = {
            **run,
            "sizing": _optional(
                SizingStatus, None if sizing is None else {**sizing, "sizes": tuple(sizing.get("sizes", ()))}
            ),
            "change": _optional(ChangeStatus, None if change is None else {**change, "names": tuple(change["names"])}),
            "closed": _optional(ClosedStatus, run["closed"]),
            "coordinator": _optional(CoordinatorStatus, run["coordinator"]),
        }
        rounds = (
            {**one, "names": tuple(one["names"]), "lost": tuple(_known(Loss, each) for each in one["lost"])}
            for one in document["rounds"]
        )
        return cls(
            schema=document["schema"],
            verdict=_known(Verdict, verdict),
            at=document["at"],
            service=_known(ServiceStatus, {**document["service"], "errors": tuple(document["service"]["errors"])}),
            run=_known(RunFacts, run),
            counts=dict(document["counts"]),
            nodes=tuple(_known(NodeStatus, node) for node in document["nodes"]),
            rounds=tuple(_known(RoundStatus, one) for one in rounds),
            unreadable=tuple(document["unreadable"]),
        )


def _known(kind: Callable[..., _T], fields: dict[str, Any]) -> _T:
    """Returns a value with these fields. Fields that a later release has added are left out."""
    names = _names(kind)
    return kind(**{name: value for name, value in fields.items() if name in names})


def _optional(kind: Callable[..., _T], fields: dict[str, Any] | None) -> _T | None:
    return None if fields is None else _known(kind, fields)


@cache
def _names(kind: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind))


@dataclass(frozen=True)
class AnnouncedEvent:
    """The announcement that a round ends."""

    at: float | None
    round: int
    cause: ChangeKind
    why: str
    event: Literal["announced"] = "announced"


@dataclass(frozen=True)
class LostEvent:
    """The loss of a member, with its evidence."""

    at: float | None
    name: str
    evidence: str
    event: Literal["lost"] = "lost"


@dataclass(frozen=True)
class FormedEvent:
    """A round that formed. `resumed_after_seconds` is `None` unless the program calls `Run.report_resumed`."""

    at: float | None
    round: int
    size: int
    newcomers: int
    took_seconds: float
    stood_still_seconds: float | None
    why: str
    names: tuple[str, ...]
    resumed_after_seconds: float | None = None
    event: Literal["formed"] = "formed"


@dataclass(frozen=True)
class ClosedEvent:
    """The end of the run."""

    at: float | None
    outcome: Literal["succeeded", "failed", "ended"]
    by: str
    why: str
    event: Literal["closed"] = "closed"


@dataclass(frozen=True)
class PresentEvent:
    """The state of a run that has no valid world, when it was read."""

    at: float
    event: Literal["forming", "stuck"]
    what: str


TimelineEvent = AnnouncedEvent | LostEvent | FormedEvent | ClosedEvent | PresentEvent


@dataclass(frozen=True)
class Timeline:
    """The events of a run in order. `at` is in seconds since 1970 by the coordinator's clock, or `None` if it is not known."""

    schema: int
    run: str
    events: tuple[TimelineEvent, ...]
