"""Names that a mistyped name may have meant. Pure, apart from reading the runs."""

import difflib
import json
from collections.abc import Iterable

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError
from lattice_rdzv.types import RunStatus

SHOWN = 3


def near(name: str, known: Iterable[str]) -> str:
    """Returns the nearest of the known names as a sentence, or all of them if they are few and none is near."""
    names = sorted(set(known))
    found = difflib.get_close_matches(name, names, n=SHOWN, cutoff=0.5) or (names if len(names) <= SHOWN else [])
    return f"; did you mean {' or '.join(f'`{each}`' for each in found)}?" if found else ""


def no_such_run(settings: _core.Settings, timeout_seconds: float) -> str:
    """Returns that there is no such run, and the nearest ids."""
    endpoints = ", ".join(settings.endpoints)
    try:
        runs = [
            RunStatus.from_json(one) for one in json.loads(_core.runs(settings, timeout_seconds=timeout_seconds).wait())
        ]
    except RendezvousError:
        runs = []
    hint = near(settings.run_id, [run.run.id for run in runs])
    return f"there is no run with this id at {endpoints}: {settings.run_id}{hint}"
