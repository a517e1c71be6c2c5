"""Interface of the native core. This module is private; the public names are in `lattice_rdzv`.

Every method that waits returns a `Call`. Every function that waits releases the GIL and checks for signals at least every
50 ms. If a signal handler raises, the wait ends with that exception. Time limits are in seconds (`timeout_seconds`), and
`None` means no limit unless a docstring names another default. A call that fails raises its error from `Call.wait` and
`Call.result`.
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
    "Dashboard",
    "Member",
    "Node",
    "Server",
    "Settings",
    "StatusWatch",
    "Store",
    "World",
    "__version__",
    "close_run",
    "drain_node",
    "end_calls",
    "leave_all",
    "lifelines_absence",
    "log_level",
    "log_records",
    "probe",
    "process_identity",
    "report_lost",
    "return_large_blocks",
    "runs",
    "shutdown",
    "signal_descriptor",
    "status",
]

__version__: Final[str]

_T = TypeVar("_T")

@final
class Call(Generic[_T]):
    """A call of the core, which begins with `wait` or `start`. A call can begin once."""

    def wait(self) -> _T:
        """Runs the call in this thread and returns its result. Checks for signals at least every 50 ms."""
    def start(self, completions: Completions) -> int:
        """Runs the call as a task, and returns the number by which `completions` reports its end."""
    def result(self) -> _T:
        """Returns the result of a call that has ended, once.

        Raises:
            RuntimeError: The call has not ended, was cancelled, or its result was already returned.
        """
    def cancel(self) -> None:
        """Drops the result. A waiting call ends; a write continues until its end."""

@final
class Completions:
    """Reports to an event loop which of its calls have ended."""

    def __new__(cls) -> Completions: ...
    def fileno(self) -> int:
        """Returns a descriptor that is readable while there are numbers to fetch."""
    def fetch(self) -> list[int]:
        """Returns the numbers of the calls that have ended since the last `fetch`."""

@final
class Settings:
    """The validated, immutable settings of a node. Creating them neither resolves names nor connects.

    Args:
        arguments: Passed settings by key, as texts. An empty text counts as not passed.
        environment: Environment variables, for settings that are not passed.
        origin: Source of the arguments, for messages: `argument`, `--rdzv-conf`, or `command line`.

    Raises:
        SettingsError: A setting is wrong, missing or unknown.
        ValueError: `origin` is another text.
    """

    def __new__(
        cls, arguments: Mapping[str, str], environment: Mapping[str, str], *, origin: str = "argument"
    ) -> Settings: ...
    @staticmethod
    def variables() -> list[str]:
        """Returns the environment variables that are read for settings that are not passed, without those that name the
        service."""
    @staticmethod
    def unknown_variables(environment: Mapping[str, str]) -> list[tuple[str, str | None]]:
        """Returns the variables that are set, have no effect, and may be meant for this package, each with the most similar
        known variable."""
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
    def port(self) -> int | None: ...
    @property
    def port_range(self) -> tuple[int, int] | None: ...
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
        """Endpoint at which this node would host the embedded server if no server responds there, or `None`."""

    @property
    def endpoints(self) -> list[str]:
        """Endpoints of the source that discovery chose, before names are resolved."""
    @property
    def only_this_machine(self) -> bool:
        """Whether these endpoints mean the local machine on every machine, so that no other machine can join."""
    @property
    def endpoints_source(self) -> str:
        """Source of the endpoints, for example `environment LATTICE_RDZV_ENDPOINTS`."""
    @property
    def credential_files(self) -> list[tuple[str, Path]]:
        """Files from which credentials are read when connecting, each with its setting."""
    @property
    def ignored(self) -> list[tuple[str, str]]:
        """Settings of other backends that are accepted and have no effect here, each with its reason."""

@final
class Change:
    """Reason why the world of a node is about to be replaced. A value: it can be compared, hashed and pickled."""

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
        """Returns run id, life, round, rank, size, master address, master port, and the reason of the round."""
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
        """Store of this round.

        If the service loses its data or is restored from an older backup, the pending calls raise `StoreResetError`, or the
        next call does if none is pending.
        """
    def store_put_back(self) -> Store:
        """Returns the store of this round for torch: after the service lost its data, this node rewrites the keys that it
        has written, and pending calls keep waiting."""
    def members(self, *, timeout_seconds: float | None = 30.0) -> Call[list[Member]]:
        """Reads all members from the service, by rank.

        Raises:
            UnreachableError: The service did not respond within the limit.
            RecordError: A record of the plan cannot be read.
        """

@final
class Node:
    """One node's session in a run."""

    @staticmethod
    def join(settings: Settings, *, port: int | None = None, line_seconds: float | None = None) -> Call[Node]:
        """Connects, takes a lease, and writes this node's record, which requests a world.

        Args:
            settings: Settings of the node.
            port: Port on which this node serves if it becomes rank 0.
            line_seconds: Interval of the log lines while the node waits. Default: 30 s, after a first one at 5 s.

        Raises:
            UnreachableError: The service was not found, or did not respond within `connect_timeout`.
            SettingsError: The run has other limits of its size, or a file of the settings cannot be used.
            ClosedError: The run is closed.
            RecordError: A record of the run cannot be read.
        """
    def next_world(self, *, port: int | None = None, timeout_seconds: float | None = None) -> Call[World]:
        """Waits for the next world that includes this node and was not returned yet.

        Args:
            port: Port on which this node serves if it becomes rank 0. Default: the port of the last call or of `join`.
            timeout_seconds: Time limit. Default: `join_timeout` for the first world, and `spare_timeout` for a spare.

        Raises:
            JoinTimeoutError: No world included this node within the limit.
            ClosedError: The run is closed.
            UnreachableError: The service does not respond any more.
            LeftError: This node has left, or the process was forked from the one that joined.
        """
    def num_nodes_waiting(self) -> int:
        """Returns 1 if the world that was returned last is about to be replaced, or the run was closed without success, and
        0 otherwise. Sends no request."""
    @property
    def change(self) -> Change | None:
        """Reason why the world that was returned last is about to be replaced, or `None`."""
    def wait_change(self, *, timeout_seconds: float | None = None) -> Call[Change | None]:
        """Waits for `change`. Returns `None` if the limit has passed, or if no change can follow."""
    @property
    def closed(self) -> Closed | None:
        """Outcome of the run, or `None` while it is open as far as this node knows."""
    def store(self) -> Store:
        """Returns the store of the whole run. Its calls wait until the run has begun."""
    def wait_begun(self, *, timeout_seconds: float) -> Call[None]:
        """Waits until the run has begun.

        Raises:
            JoinTimeoutError: The run has not begun within the limit.
            ClosedError: The run is closed.
            LeftError: This node has left.
        """
    def unfinished(self, *, timeout_seconds: float = 5.0) -> Call[list[str]]:
        """Reads the names of the members of this node's world that are alive and have not arrived at the exit barrier.
        Returns none if this node is in another world, or if the plan of its world was deleted because the run has
        continued.

        Raises:
            UnreachableError: The service did not respond within the limit.
        """
    def suspect(self, rank: int, *, why: str = "", timeout_seconds: float = 5.0) -> Call[tuple[str, str]]:
        """Has the coordinator ask whether the member with this rank of the world that was returned last is dead. The result
        is as that of `report_lost`."""
    def report_resumed(self) -> None:
        """Reports that the program trains in the world that was returned last. Returns at once, and writes in the background."""
    def leave(self, *, timeout_seconds: float | None = None) -> Call[bool]:
        """Leaves the run and revokes the lease, within `close_timeout` by default. Idempotent; does not raise if the service
        fails. Returns whether the service acknowledged it."""
    def close(
        self, outcome: Literal["succeeded", "failed", "ended"], *, why: str = "", timeout_seconds: float | None = None
    ) -> Call[bool]:
        """Closes the run, which is final, and leaves, within `close_timeout` by default. Returns whether the run is closed,
        by this node or another one."""
    def abandon(self) -> None:
        """Begins to leave, and returns at once. The exit hook waits until the node has left. Dropping a node has this effect,
        too."""
    def mark_leaving_on(self, signals: Sequence[int]) -> None:
        """Announces that this node is leaving when the signal relay receives one of these signals. Replaces the signals of
        an earlier call."""
    @property
    def run_id(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def hosts(self) -> bool:
        """Whether this node hosts the embedded server."""
    @property
    def endpoint(self) -> str:
        """Endpoint of the service that this node uses now."""
    @property
    def state(self) -> Literal["joining", "seeking", "spare", "member", "uncertain", "closed", "left"]: ...

@final
class Store:
    """A key-value store. Keys are texts, and values are bytes. Every write is applied exactly once, even if the network
    loses requests or responses.

    Every call raises `StoreTimeoutError` if its limit has passed, and retries failures of the connection until then. It
    raises `StoreResetError` if the service has lost the data, `OutcomeUnknownError` if it cannot be known whether a write
    was applied, `LeftError` if the node has left, `ClosedError` if the run was closed before it began, and
    `RendezvousError` for a key that the service cannot hold.
    """

    def set(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> Call[None]:
        """Sets the value of a key."""
    def get(self, key: str, *, timeout_seconds: float | None = 300.0, until_change: bool = False) -> Call[bytes | None]:
        """Waits for the key. With `until_change`, returns `None` as soon as this node knows that the world of the round
        changes or that the run is closed, if the key does not exist then."""
    def get_now(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> Call[list[bytes | None]]:
        """Returns the present values, with `None` for keys that do not exist."""
    def multi_get(
        self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0, until_change: bool = False
    ) -> Call[list[bytes | None]]:
        """Waits for all keys. With `until_change`, returns `None` for keys that do not exist when the world changes."""
    def multi_set(self, items: Sequence[tuple[str, Buffer]], *, timeout_seconds: float | None = 300.0) -> Call[None]:
        """Sets the values of several keys."""
    def add(
        self, key: str, amount: int = 1, *, timeout_seconds: float | None = 300.0, finished: bool = False
    ) -> Call[int]:
        """Adds to a counter, which begins at 0, and returns its new value. `finished` marks this node as finished in the
        same transaction: the other nodes no longer wait for it, and its end is not a failure.

        Raises:
            RendezvousError: The value of the key is not a number, the sum exceeds 64 bits, or `finished` was passed to the
                store of the run.
        """
    def compare_set(
        self, key: str, expected: Buffer, desired: Buffer, *, timeout_seconds: float | None = 300.0
    ) -> Call[tuple[bool, bytes]]:
        """Sets the value to `desired` if it is `expected`, or if the key does not exist and `expected` is empty. Returns
        whether it did so, and the value afterwards (`expected` if the key does not exist and `expected` is not empty)."""
    def append(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> Call[None]:
        """Appends to the value of a key, which is empty if the key does not exist."""
    def delete(self, key: str, *, timeout_seconds: float | None = 300.0) -> Call[bool]:
        """Deletes a key, and returns whether it existed."""
    def wait(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> Call[None]:
        """Waits until all keys exist. A queue exists while it has values."""
    def check(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> Call[bool]:
        """Returns whether all keys exist now. A queue exists while it has values."""
    def count(self, *, timeout_seconds: float | None = 300.0) -> Call[int]:
        """Returns the number of keys."""
    def list(self, *, timeout_seconds: float | None = 300.0) -> Call[list[str]]:
        """Returns all keys."""
    def queue_push(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> Call[None]:
        """Adds a value at the end of a queue."""
    def queue_pop(self, key: str, *, block: bool = True, timeout_seconds: float | None = 300.0) -> Call[bytes | None]:
        """Removes and returns the first value of a queue. If the queue is empty, waits with `block`, and returns `None`
        otherwise. If a limit, a signal or `cancel` ends the call while it removes a value, this node keeps the value for its
        next `queue_pop`."""
    def queue_keep(self, key: str, value: Buffer) -> Call[None]:
        """Keeps a value that `queue_pop` returned, but that did not reach its receiver, for the next `queue_pop` of this
        node. When the node leaves, the kept values are added at the end of their queues."""
    def queue_len(self, key: str, *, timeout_seconds: float | None = 300.0) -> Call[int]:
        """Returns the number of values in a queue."""

@final
class Server:
    """The embedded server in this process. It serves until it is stopped."""

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
        dashboard: tuple[str, int] | None = None,
        dashboard_hosts: Sequence[str] | None = None,
    ) -> Call[Server]:
        """Starts the server.

        Args:
            host: Address to listen on. `*` means all addresses.
            port: Port to listen on. 0 means any free port.
            cert: File with the server's certificate, which enables TLS. Requires `key`.
            key: File with the private key of the certificate.
            client_ca: File with the CA that must have signed the clients' certificates.
            user: Name with which clients must log in. Requires `password_file`.
            password_file: File with the password, which is read at each login.
            metrics: Address and port of a second listener for metrics and probes.
            dashboard: Address and port of a listener for the dashboard.
            dashboard_hosts: Further host names of the dashboard.

        Raises:
            SettingsError: The address is not one of this machine or is in use, a file cannot be used, the counterpart of a setting
                is missing, or the dashboard would be open to other machines without TLS and a login.
        """
    @property
    def endpoint(self) -> str:
        """Endpoint for clients on this machine, for example `http://127.0.0.1:29400`."""
    @property
    def metrics_endpoint(self) -> str | None:
        """Address of the listener for metrics and probes, or `None`."""
    @property
    def dashboard_endpoint(self) -> str | None:
        """URL of the dashboard for browsers on this machine, or `None`."""
    @property
    def member_id(self) -> int:
        """Random id, by which clients distinguish this server from an earlier one."""
    def wait(self, *, timeout_seconds: float | None = None) -> Call[bool]:
        """Waits until the server is stopped. Returns false if the limit has passed."""
    def stop(self) -> Call[None]:
        """Notifies the clients and stops, within 2 s. Idempotent. Does nothing in a forked child."""

@final
class Dashboard:
    """Runs as a page in a browser. It is served until it is stopped."""

    @staticmethod
    def start(
        settings: Settings,
        host: str,
        port: int,
        *,
        hosts: Sequence[str] | None = None,
        cert: str | PathLike[str] | None = None,
        key: str | PathLike[str] | None = None,
        user: str | None = None,
        password_file: str | PathLike[str] | None = None,
        metrics: tuple[str, int] | None = None,
        timeout_seconds: float = 5.0,
    ) -> Call[Dashboard]:
        """Starts the dashboard. It connects to the service when a browser shows a run, so the service can start later.

        Args:
            settings: The tenant, and how its service is reached.
            host: Address to listen on. `*` means all addresses.
            port: Port to listen on. 0 means any free port.
            hosts: Further host names under which browsers reach the dashboard.
            cert: File with the certificate, which enables TLS. Requires `key`.
            key: File with the private key of the certificate.
            user: Name with which browsers must log in. Requires `password_file`.
            password_file: File with the password.
            metrics: Address and port of a second listener for metrics and probes.
            timeout_seconds: Time limit for each read.

        Raises:
            SettingsError: The address is not one of this machine or is in use, a file cannot be used, the counterpart of a setting
                is missing, or other machines can reach the address and TLS or the login is missing.
        """
    @property
    def endpoint(self) -> str:
        """URL for browsers on this machine, for example `http://127.0.0.1:8089`."""
    @property
    def metrics_endpoint(self) -> str | None:
        """URL of the listener for metrics and probes, or `None`."""
    def wait(self, *, timeout_seconds: float | None = None) -> Call[bool]:
        """Waits until the dashboard is stopped. Returns false if the limit has passed."""
    def stop(self) -> Call[None]:
        """Closes all pages and stops, within 2 s. Idempotent. Does nothing in a forked child."""

def probe(settings: Settings, *, timeout_seconds: float = 5.0) -> str:
    """Reads the state of the service and returns it as JSON: endpoint, version, cluster id, errors, and whether this client
    can write (a separate key with a short lease). If the service cannot be reached, the JSON contains the error and its
    kind: `refused` (no program listens there), `unavailable`, `not_etcd`, `denied`, `setting`, or `other`."""

def lifelines_absence(settings: Settings) -> str | None:
    """Returns why a node with these settings would have no lifelines on this machine, or `None` if it would have them."""

def status(
    settings: Settings,
    *,
    timeout_seconds: float = 5.0,
    names: Sequence[str] | None = None,
    or_unreachable: bool = False,
) -> Call[str]:
    """Reads the run from the service and returns its status as JSON (`lattice_rdzv.types.RunStatus`).

    Args:
        settings: The run, and how its service is reached.
        timeout_seconds: Time limit for the whole call.
        names: Nodes whose last sign of life is read too.
        or_unreachable: Describe a service that does not respond as a status, instead of raising an error.

    Raises:
        UnreachableError: The service was not found, or did not respond within the limit.
    """

def runs(settings: Settings, *, timeout_seconds: float = 5.0) -> Call[str]:
    """Reads the status of each run of the tenant and returns them as a JSON list.

    Raises:
        UnreachableError: The service was not found, or did not respond within the limit.
    """

@final
class StatusWatch:
    """Follows a run by watches, without joining it."""

    def __new__(cls, settings: Settings, *, timeout_seconds: float = 5.0) -> StatusWatch: ...
    def next(self, *, timeout_seconds: float) -> Call[tuple[str, bool]]:
        """Waits for the next change, at most for `timeout_seconds`. Returns the status as JSON, and whether the run changed.
        The first call returns at once.

        Raises:
            UnreachableError: The service was not found, or did not respond within the limit of the watch.
        """

def close_run(
    settings: Settings, outcome: str, *, by: str, why: str = "", timeout_seconds: float = 5.0
) -> Call[tuple[bool, str, str, str] | None]:
    """Closes the run for good, without joining it. Returns whether this call closed it, and the outcome, the closer and the
    reason of the closing. `None` if there is no such run.

    Raises:
        UnreachableError: The service was not found, or did not respond within the limit.
    """

def drain_node(settings: Settings, node: str, *, by: str, why: str = "", timeout_seconds: float = 5.0) -> Call[bool]:
    """Requests that the node with this id leaves the run as on SIGTERM. Returns whether that node is in the run.

    Raises:
        UnreachableError: The service was not found, or did not respond within the limit.
    """

def process_identity() -> tuple[int, int]:
    """Returns the PID and the number of forks since the process that imported this module. The PID alone can repeat in a new
    PID namespace."""

def log_records(*, timeout_seconds: float) -> list[tuple[int, str, str, tuple[str | None, str | None, int | None]]]:
    """Waits for log records, and returns level (as in `logging`), logger (`lattice_rdzv.node`), and message of each. After
    `shutdown`, returns the remaining records at once."""

def report_lost(
    settings: Settings, node: str, *, by: str, why: str = "", force: bool = False, timeout_seconds: float = 5.0
) -> Call[tuple[str, str]]:
    """Has the coordinator ask whether the node with this id is dead, or, with `force`, declares it dead. The result is a word
    and a detail: `lost` and the evidence; `gone`, because the node has left or its lease has ended; `alive`; `unknown`,
    because its address does not show it; `unanswered` in time; `void` and the reason."""

def return_large_blocks() -> None:
    """Makes the allocator return each large block to the system when it is freed. For a process that only serves."""

def log_level(level: int) -> None:
    """Sets the lowest level that is recorded."""

def signal_descriptor(forward_to: int) -> int:
    """Returns a non-blocking descriptor for `signal.set_wakeup_fd`, which stays open until the process ends. A relay reads it
    and announces within a millisecond that the nodes that asked for a signal (`Node.mark_leaving_on`) are leaving, without
    Python. The relay forwards each byte to the descriptor `forward_to`, unless that is -1.

    Raises:
        OSError: `forward_to` is closed, or there are too many open files.
    """

def end_calls() -> None:
    """Ends the pending calls of other threads, which get `SystemExit`. From then on, only this thread can make calls, and
    calls of other threads never return. For the exit hook, when all other threads are daemon threads."""

def leave_all(*, timeout_seconds: float) -> None:
    """Leaves the runs of all nodes of this process concurrently. For the exit hook."""

def shutdown() -> None:
    """Stops the runtime of this process, within 2 s, and ends pending calls. Idempotent. For the exit hook."""
