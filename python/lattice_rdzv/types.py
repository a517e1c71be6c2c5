"""Types of arguments and results, for type checkers. Nothing of the package needs this module at run time.

The types of `status` are provisional: the report may gain and rename entries before 1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

__all__ = ["ClosedStatus", "JoinSettings", "NodeStatus", "RoundStatus", "RunStatus"]


class JoinSettings(TypedDict, total=False):
    """The settings that `lattice_rdzv.join` takes besides its named arguments. docs/settings.md describes each."""

    min_nodes: int | str | None
    max_nodes: int | str | None
    sizes: Sequence[int] | str | None
    node_unit: int | str | None
    wanted: int | str | None
    is_host: bool | int | str | None
    backend: str | None
    cacert: str | None
    cert: str | None
    key: str | None
    user: str | None
    password_file: str | None
    port_range: str | None
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
    on_member_loss: str | None
    on_newcomer: str | None
    on_node_failure: Literal["close", "leave"] | None
    leave_on_signal: bool | int | str | None


class NodeStatus(TypedDict):
    """A node of a run, member or not."""

    rank: int | None
    id: str
    name: str
    address: str
    port: int
    topology: str | None
    index: int | None
    leaving: object


class RoundStatus(TypedDict, total=False):
    """A round of the run's history."""

    round: int
    size: int
    why: str
    names: list[str]
    took_seconds: float | None


class ClosedStatus(TypedDict):
    """How the run was closed."""

    life: str
    outcome: Literal["succeeded", "failed", "ended"]
    by: str
    why: str
    submission: str | None


class RunStatus(TypedDict):
    """A run as the rendezvous service has it. What does not exist is `None` or empty."""

    endpoint: str
    life: str | None
    round: int | None
    phase: str | None
    size: int | None
    min_nodes: int | None
    max_nodes: int | None
    why: str | None
    master_address: str | None
    master_port: int | None
    change: object
    coordinator: str | None
    nodes: list[NodeStatus]
    history: list[RoundStatus]
    closed: ClosedStatus | None
    unreadable: list[str]
