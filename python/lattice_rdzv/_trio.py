"""The calls of `lattice_rdzv.aio` in trio: one system task watches their descriptor. Imported where trio runs."""

from __future__ import annotations

import trio

from lattice_rdzv._calls import Calls

_calls: trio.lowlevel.RunVar[Calls] = trio.lowlevel.RunVar("lattice_rdzv.calls")


def calls() -> Calls:
    """Returns the calls of the present `trio.run`."""
    try:
        return _calls.get()
    except LookupError:
        calls = Calls(trio.Event)
        _calls.set(calls)
        trio.lowlevel.spawn_system_task(_watch, calls)
        return calls


async def _watch(calls: Calls) -> None:
    # It ends with the run of trio, which cancels it.
    while True:
        await trio.lowlevel.wait_readable(calls.completions.fileno())
        calls.wake()
