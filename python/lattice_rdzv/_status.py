"""`status`: a run as the rendezvous service has it, without joining."""

from __future__ import annotations

from lattice_rdzv import _core

# Type checkers read it as true. Importing it from `typing` would take longer than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from lattice_rdzv.types import JoinSettings, RunStatus


def status(
    run_id: str | None = None,
    *,
    endpoint: str | Sequence[str] | None = None,
    tenant: str | None = None,
    timeout_seconds: float = 5.0,
    **settings: Unpack[JoinSettings],
) -> RunStatus:
    """Reads a run without joining it: what it does or waits for, what happens next, its nodes, and its rounds.

    `status(...).verdict` is the summary. `lattice-rdzv status --json` prints this structure, too. Reading writes nothing.

    Args:
        run_id: Name of the run. Default: `LATTICE_RDZV_ID`.
        endpoint: Where the rendezvous service is, as for `join`.
        tenant: Tenant of the run, as for `join`.
        timeout_seconds: Time limit for the whole call.
        settings: Other settings of `join`, such as `cacert`.

    Raises:
        SettingsError: A setting is wrong, missing or unknown.
        UnreachableError: The service was not found or did not respond.
    """
    return report(call(run_id, endpoint=endpoint, tenant=tenant, timeout_seconds=timeout_seconds, **settings).wait())


def call(
    run_id: str | None,
    *,
    endpoint: str | Sequence[str] | None,
    tenant: str | None,
    timeout_seconds: float,
    **settings: Unpack[JoinSettings],
) -> _core.Call[str]:
    """Returns the call that reads a run."""
    from lattice_rdzv._run import settings_of

    # A connection waits at least a second.
    given: JoinSettings = {"connect_timeout": max(1.0, timeout_seconds), **settings}
    found = settings_of(run_id, nnodes=1, endpoint=endpoint, tenant=tenant, **given)
    return _core.status(found, timeout_seconds=timeout_seconds)


def report(text: str) -> RunStatus:
    """Parses the result of the call."""
    import json

    from lattice_rdzv.types import RunStatus

    return RunStatus.from_json(json.loads(text))
