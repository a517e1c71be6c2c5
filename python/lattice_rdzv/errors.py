"""What can go wrong, as classes: one base, and a built-in beside it where one fits.

The native core raises these by name with one message; `ClosedError` also carries who closed the run and why.
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
    """Anything that this package raises by itself."""


class SettingsError(RendezvousError, ValueError):
    """A setting is wrong, missing, unknown, or not the one that the run began with."""


class UnreachableError(RendezvousError, ConnectionError):
    """The service could not be found, did not answer, or is not what the endpoint should lead to."""


class JoinTimeoutError(RendezvousError, TimeoutError):
    """No world included this node within the time that was given."""


class ClosedError(RendezvousError):
    """The run is closed, which is final.

    Args:
        message: What to tell a person.
        outcome: `succeeded`, `failed` or `ended`.
        by: The name of the node that closed the run, or of the command.
        why: What that node said.
    """

    # All of it is in `args`. An `__init__` would be Python code that the core executes when it raises this error, also in a
    # daemon thread while the interpreter exits.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def outcome(self) -> str:
        """`succeeded`, `failed` or `ended`."""
        return self._argument(1, "ended")

    @property
    def by(self) -> str:
        """The name of the node that closed the run, or of the command."""
        return self._argument(2, "")

    @property
    def why(self) -> str:
        """What that node said."""
        return self._argument(3, "")

    def _argument(self, index: int, default: str) -> str:
        return str(self.args[index]) if len(self.args) > index else default


class RecordError(RendezvousError):
    """The service holds something under this run that this version cannot read."""


class LeftError(RendezvousError):
    """The node has left the run, or belongs to the process from which this one was forked."""


class StoreTimeoutError(RendezvousError, TimeoutError):
    """A store call did not come to an end within the time that was given."""


class StoreResetError(RendezvousError):
    """The service came back empty: what the store held is gone."""


class OutcomeUnknownError(RendezvousError):
    """Whether a write was applied can no longer be found out."""
