"""The native core, converted and forwarded. Public names live in `lattice_rdzv`; this module is private.

Every method that waits returns a `Call`. Every function that waits releases the GIL, looks for signals at least every
100 ms (a handler that raises ends the call with its exception), and takes its limit as `timeout_seconds`.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar, final

from typing_extensions import Buffer

__all__ = [
    "Call",
    "Change",
    "Closed",
    "Completions",
    "Member",
    "Node",
    "Server",
    "Settings",
    "Store",
    "World",
    "__version__",
    "end_calls",
    "leave_all",
    "log_level",
    "log_records",
    "probe",
    "process_identity",
    "shutdown",
    "signal_descriptor",
    "status",
]

__version__: Final[str]

_T = TypeVar("_T")

@final
class Call(Generic[_T]):
    """A call of the core. It begins with `wait` or `start`, once."""

    def wait(self) -> _T:
        """Runs the call in this thread, without the GIL, and returns its result. It looks for signals at least every
        100 ms; a handler that raises ends the call with its exception."""
    def start(self, completions: Completions) -> int:
        """Runs the call as a task, and returns the number that `completions` will have when it is done."""
    def result(self) -> _T:
        """The result of a call that is done. Can be fetched once."""
    def cancel(self) -> None:
        """Drops the result. Ends the call if it is a wait; a write continues."""

@final
class Completions:
    """Tells an event loop which of its calls are done."""

    def __new__(cls) -> Completions: ...
    def fileno(self) -> int:
        """The descriptor, which is readable while there are numbers to fetch."""
    def fetch(self) -> list[int]:
        """The numbers of the calls that were done since the last time."""

@final
class Settings:
    """What a run is configured with, validated and immutable.

    Raises `SettingsError` for a wrong, missing or unknown setting. Resolves nothing and connects nowhere.
    """

    def __new__(
        cls, arguments: Mapping[str, str], environment: Mapping[str, str], *, origin: str = "argument"
    ) -> Settings: ...
    @staticmethod
    def variables() -> list[str]:
        """The environment variables that hold what is not passed, but for those that name the service."""
    @staticmethod
    def unknown_variables(environment: Mapping[str, str]) -> list[tuple[str, str | None]]:
        """Variables that are set and have no effect, each with the known one that may be meant."""
    @property
    def run_id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def min_nodes(self) -> int: ...
    @property
    def max_nodes(self) -> int: ...
    @property
    def node_name(self) -> str: ...
    @property
    def local_address(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...
    @property
    def port_range(self) -> tuple[int, int] | None: ...
    @property
    def submission(self) -> str | None: ...
    @property
    def lease_ttl_seconds(self) -> float: ...
    @property
    def join_timeout_seconds(self) -> float: ...
    @property
    def close_timeout_seconds(self) -> float: ...
    @property
    def leave_on_signal(self) -> bool: ...
    @property
    def on_node_failure(self) -> Literal["close", "leave"]: ...
    @property
    def hosted_at(self) -> str | None:
        """The endpoint at which a node would host the service, should nobody serve there; `None` if none would."""

    @property
    def endpoints(self) -> list[str]:
        """The endpoints of the source that discovery chose, before names are resolved."""
    @property
    def only_this_machine(self) -> bool:
        """Whether these endpoints stand for whichever machine uses them, so that no other machine can join."""
    @property
    def endpoints_source(self) -> str:
        """Where they came from, for example `environment LATTICE_RDZV_ENDPOINTS`."""
    @property
    def credential_files(self) -> list[tuple[str, Path]]:
        """The files that credentials are read from when connecting, each with the setting that names it."""
    @property
    def ignored(self) -> list[tuple[str, str]]:
        """Settings of other backends that are accepted and have no effect here, each with its reason."""

@final
class Change:
    """Why the world that a node is in is about to be replaced. A value: it can be compared, hashed and pickled."""

    def __new__(cls, round: int, kind: str, why: str, nodes: Sequence[str]) -> Change: ...  # noqa: A002
    @property
    def round(self) -> int:
        """Number of the round that is about to be replaced."""
    @property
    def kind(self) -> Literal["lost", "leaving", "seeking", "newcomers", "closed", "replaced"]:
        """Kind of the change."""
    @property
    def why(self) -> str:
        """Reason in words, such as `lost node-3` or `2 nodes want to join: node-4, node-5`."""
    @property
    def nodes(self) -> list[str]:
        """Names of the first nodes that the change is about."""
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[type[Change], tuple[int, str, str, list[str]]]: ...

@final
class Member:
    """One node of a world. A value: it can be compared, hashed and pickled."""

    def __new__(cls, rank: int, name: str, node_id: str, topology: str | None = None) -> Member: ...
    @property
    def rank(self) -> int:
        """Rank of the node, from 0 to the size of its world - 1."""
    @property
    def name(self) -> str:
        """Name of the node, with `#2` and so on if another node of the world has the same name."""
    @property
    def node_id(self) -> str:
        """Random id of the node, which no other node has."""
    @property
    def topology(self) -> str | None:
        """Label of the node's place, such as a rack, or `None`."""
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[type[Member], tuple[int, str, str, str | None]]: ...

@final
class Closed:
    """How a run was closed. A value, and a sequence of the three fields."""

    def __new__(cls, outcome: str, by: str, why: str) -> Closed: ...
    @property
    def outcome(self) -> Literal["succeeded", "failed", "ended"]:
        """Outcome of the run."""
    @property
    def by(self) -> str:
        """Name of the node or command that closed the run."""
    @property
    def why(self) -> str:
        """Reason that it gave, or an empty string."""
    def __getitem__(self, index: int, /) -> str: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[type[Closed], tuple[str, str, str]]: ...

@final
class World:
    """The nodes of a completed round, as one of them sees it."""

    def fields(self) -> tuple[str, str, int, int, int, str, int, str]:
        """Run id, life, round, rank, size, master address, master port, and why it was formed."""
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def round(self) -> int: ...
    @property
    def master_address(self) -> str: ...
    @property
    def master_port(self) -> int: ...
    @property
    def store(self) -> Store:
        """The store of this round.

        If the service loses its data or is restored from an older backup, pending calls end with `StoreResetError`, or
        else the next call does.
        """
    def store_put_back(self) -> Store:
        """The same store, whose own writes are put back after the service came back empty; pending calls wait on."""
    def members(self, *, timeout_seconds: float | None = 30.0) -> Call[list[Member]]:
        """All members by rank, read from the service now."""

@final
class Node:
    """One node's session in a run."""

    @staticmethod
    def join(settings: Settings, *, port: int | None = None) -> Call[Node]:
        """Connects, takes a lease and puts this node's record, after which it seeks a world.

        `port` is where this node would serve as master. Blocks up to `connect_timeout` for a service that does not
        answer. Raises `UnreachableError`, `SettingsError` (other min or max than the run's), `ClosedError`,
        `RecordError`.
        """
    def next_world(self, *, port: int | None = None, timeout_seconds: float | None = None) -> Call[World]:
        """Waits for the next world that includes this node and was not returned yet.

        Default limit: `join_timeout` for a first place, none for a spare without `spare_timeout`. Raises
        `JoinTimeoutError`, `ClosedError`, `UnreachableError`, `LeftError`.
        """
    def num_nodes_waiting(self) -> int:
        """1 if the world last returned is about to be replaced or was closed without success, else 0; one atomic read."""
    @property
    def change(self) -> Change | None: ...
    def wait_change(self, *, timeout_seconds: float | None = None) -> Call[Change | None]: ...
    @property
    def closed(self) -> Closed | None:
        """How the run was closed; `None` while it is open as far as this node knows."""
    def store(self) -> Store:
        """The run-wide store, which outlives rounds. Its calls wait until the run has begun."""
    def wait_begun(self, *, timeout_seconds: float) -> Call[None]:
        """Waits until the run has begun. Raises `JoinTimeoutError`, `ClosedError`, `LeftError`."""
    def unfinished(self, *, timeout_seconds: float = 5.0) -> Call[list[str]]:
        """Names of the members of this node's world that are alive and have not asked for their exit barrier; none once
        this node is in another world, or the run has moved on so far that the plan is gone. Raises `UnreachableError` if
        the service does not answer."""
    def mark_leaving(self, *, why: str = "", timeout_seconds: float = 1.0) -> Call[bool]:
        """Tells the others that this node is about to go, while it is still there; whether that was acknowledged."""
    def leave(self, *, timeout_seconds: float | None = None) -> Call[bool]:
        """Leaves the run and gives the lease back. Idempotent, never raises for the service's sake; default limit
        `close_timeout`; whether the service acknowledged it."""
    def close(
        self, outcome: Literal["succeeded", "failed", "ended"], *, why: str = "", timeout_seconds: float | None = None
    ) -> Call[bool]:
        """Closes the run for good, then leaves. Whether the run is closed (by whomever)."""
    def abandon(self) -> None:
        """Begins to leave, and returns at once. The exit hook waits until the node has left. Dropping a node does this."""
    def mark_leaving_on(self, signals: Sequence[int]) -> None:
        """Marks this node as leaving when the relay receives one of these signals; replaces what was set before."""
    @property
    def run_id(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def hosts(self) -> bool:
        """Whether this node hosts the service for the others."""
    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
    @property
    def state(self) -> Literal["joining", "seeking", "spare", "member", "uncertain", "closed", "left"]: ...

@final
class Store:
    """A key-value space. Keys are text, values bytes; every write applies once, whatever the network does.

    A time-out raises `StoreTimeoutError`. Transport errors are retried until then.
    """

    def set(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> Call[None]: ...
    def get(self, key: str, *, timeout_seconds: float | None = 300.0, until_change: bool = False) -> Call[bytes | None]:
        """Waits for the key. With `until_change`, returns `None` as soon as the round's world is known to change, or
        the run is closed, with whatever outcome; at once if that is known already and the key is not there."""
    def get_now(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> Call[list[bytes | None]]:
        """What the keys hold now; `None` where there is nothing."""
    def multi_get(
        self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0, until_change: bool = False
    ) -> Call[list[bytes | None]]:
        """Waits for all of the keys: one range over their common prefix, then one watch. `None` only with
        `until_change`, for keys that are not there when the world changes."""
    def multi_set(
        self, items: Sequence[tuple[str, Buffer]], *, timeout_seconds: float | None = 300.0
    ) -> Call[None]: ...
    def add(
        self, key: str, amount: int = 1, *, timeout_seconds: float | None = 300.0, finished: bool = False
    ) -> Call[int]:
        """Adds to a counter and returns its new value. `finished` marks this node as finished in the same
        transaction: from then on it is neither waited for nor lost when it goes."""
    def compare_set(
        self, key: str, expected: Buffer, desired: Buffer, *, timeout_seconds: float | None = 300.0
    ) -> Call[tuple[bool, bytes]]:
        """Puts `desired` if the key holds `expected` (or is absent and `expected` is empty). Returns whether it did, and
        what the key holds afterwards (`expected` if the key is absent and `expected` is not empty)."""
    def append(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> Call[None]: ...
    def delete(self, key: str, *, timeout_seconds: float | None = 300.0) -> Call[bool]: ...
    def wait(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> Call[None]: ...
    def check(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> Call[bool]: ...
    def count(self, *, timeout_seconds: float | None = 300.0) -> Call[int]: ...
    def list(self, *, timeout_seconds: float | None = 300.0) -> Call[list[str]]: ...
    def queue_push(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> Call[None]: ...
    def queue_pop(self, key: str, *, block: bool = True, timeout_seconds: float | None = 300.0) -> Call[bytes | None]:
        """Takes the first value of a queue. If the call ends by a time limit, a signal or `cancel`, a value that it was
        taking is kept for the next `queue_pop` of this node."""
    def queue_keep(self, key: str, value: Buffer) -> Call[None]:
        """Keeps a value that `queue_pop` returned and that did not reach its receiver, for the next `queue_pop` of this
        node. Leaving puts what is still kept back at the end of its queue."""
    def queue_len(self, key: str, *, timeout_seconds: float | None = 300.0) -> Call[int]: ...

@final
class Server:
    """The embedded store as a server of this process. It serves until it is stopped."""

    @staticmethod
    def start(
        host: str,
        port: int,
        *,
        cert: str | PathLike[str] | None = None,
        key: str | PathLike[str] | None = None,
        client_ca: str | PathLike[str] | None = None,
        user: str | None = None,
        password_file: str | PathLike[str] | None = None,
        metrics: tuple[str, int] | None = None,
    ) -> Server: ...
    @property
    def endpoint(self) -> str:
        """Where clients on this machine reach it, for example `http://127.0.0.1:29400`."""
    @property
    def metrics_endpoint(self) -> str | None:
        """Where programs on this machine reach the port for probes and Prometheus, if there is one."""
    @property
    def member_id(self) -> int:
        """By which clients tell it from another."""
    def wait(self, *, timeout_seconds: float | None = None) -> bool:
        """Waits until it is stopped by another thread; false if the time was over first."""
    def stop(self) -> None:
        """Tells its clients and ends, within two seconds. Does nothing in a forked child, nor a second time."""

def probe(settings: Settings, *, timeout_seconds: float = 5.0) -> str:
    """What the service says of itself, as JSON: endpoint, version, cluster id, errors, whether it lets us write
    (a key of our own under a short lease), or the error and its kind: `refused` (nobody listens there),
    `unavailable`, `not_etcd`, `denied`, `setting`, `other`."""

def status(settings: Settings, *, timeout_seconds: float = 5.0) -> Call[str]:
    """Reads the run from the service and returns it as JSON: round, coordinator, nodes, history, closing.

    Raises:
        UnreachableError: The service was not found, or did not respond within the limit.
    """

def process_identity() -> tuple[int, int]:
    """Identifies this process among its ancestors: its pid, and how many forks lie between it and the process that imported
    this module. The pid alone can repeat in a new pid namespace."""

def log_records(*, timeout_seconds: float) -> list[tuple[int, str, str]]:
    """Waits for log records: level (as in `logging`), target (`lattice_rdzv.node`), message. After `shutdown` it
    returns at once with what is left, and may still be called."""

def log_level(level: int) -> None:
    """The least level that is recorded."""

def signal_descriptor(forward_to: int) -> int:
    """A non-blocking descriptor for `signal.set_wakeup_fd`, which stays open until the process ends. It leads to the
    relay, which marks the nodes that asked for a signal (`Node.mark_leaving_on`) within a millisecond, without Python. The
    relay passes each byte on to `forward_to`, unless that is -1."""

def end_calls() -> None:
    """Ends the pending calls of other threads and lets only this thread make new ones; for the exit hook, before leaving.
    The other threads are daemon threads: they get `SystemExit`, and one that calls again never returns."""

def leave_all(*, timeout_seconds: float) -> None:
    """Leaves the runs of all nodes of this process, at the same time; for the exit hook."""

def shutdown() -> None:
    """Stops the runtime of this process (at most 2 s) and ends pending calls; for `atexit`. Idempotent."""
