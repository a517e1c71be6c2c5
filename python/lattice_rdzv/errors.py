"""Exceptions of this package. All derive from `RendezvousError`, and some also from a built-in exception.

The native core raises them with one message. `ClosedError` also contains the node that closed the run and the reason.
"""

from __future__ import annotations

__all__ = [
    "ClosedError",
    "JoinTimeoutError",
    "LeftError",
    "OutcomeUnknownError",
    "RecordError",
    "RendezvousError",
    "SettingsError",
    "StoreResetError",
    "StoreTimeoutError",
    "UnreachableError",
]


class RendezvousError(Exception):
    """Base class of all exceptions that this package raises."""


class SettingsError(RendezvousError, ValueError):
    """A setting is wrong, missing, unknown, or differs from the setting of the run."""


class UnreachableError(RendezvousError, ConnectionError):
    """The rendezvous service could not be found, did not respond, or is not an etcd."""


class JoinTimeoutError(RendezvousError, TimeoutError):
    """No world included this node within the time limit."""


class ClosedError(RendezvousError):
    """The run is closed, which is final.

    Its arguments are the message for users, and the values of `outcome`, `by`, and `why`.
    """

    # All values are in `args`. The core would execute the Python code of an `__init__` when it raises this error, also in a
    # daemon thread while the interpreter exits.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def outcome(self) -> str:
        """`succeeded`, `failed` or `ended`."""
        return self._argument(1, "ended")

    @property
    def by(self) -> str:
        """The name of the node that closed the run."""
        return self._argument(2, "")

    @property
    def why(self) -> str:
        """The reason that this node gave."""
        return self._argument(3, "")

    def _argument(self, index: int, default: str) -> str:
        return str(self.args[index]) if len(self.args) > index else default


class RecordError(RendezvousError):
    """The service contains a record of this run that this version cannot read."""


class LeftError(RendezvousError):
    """The node has left the run, or belongs to the process from which this one was forked."""


class StoreTimeoutError(RendezvousError, TimeoutError):
    """A store call did not complete within the time limit."""


class StoreResetError(RendezvousError):
    """The rendezvous service lost its data, or was restored from an older backup: the store's keys are gone.

    Raised once for each such event: by pending calls, or else by the next call.
    """


class OutcomeUnknownError(RendezvousError):
    """It is unknown whether a write was applied."""
