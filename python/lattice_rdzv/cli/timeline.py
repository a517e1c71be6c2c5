"""`lattice-rdzv timeline` shows the rounds of a run, the changes that ended them, and the time in between."""

import argparse
import dataclasses
import json
import sys

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError
from lattice_rdzv.types import (
    AnnouncedEvent,
    ClosedEvent,
    FormedEvent,
    LostEvent,
    PresentEvent,
    RunStatus,
    Timeline,
    TimelineEvent,
)

from . import service
from .near import no_such_run
from .status_text import clock, duration
from .terminal import table

SCHEMA = 1
NO_EVIDENCE = "its lease ended"
EXAMPLES = """\
exit status:
  0 shown, 5 no such run, 8 service unreachable, 2 wrong usage, 1 other errors

examples:
  lattice-rdzv timeline                     of LATTICE_RDZV_ID, or else of the only run of the tenant
  lattice-rdzv timeline my-job
  lattice-rdzv timeline my-job --json | jq '.events[] | select(.event == "lost")'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `timeline`."""
    service.add_run_arguments(parser, optional=True)


def run(arguments: argparse.Namespace) -> int:
    """Prints the timeline. Returns 0 if the run exists."""
    try:
        settings = chosen(arguments)
        if isinstance(settings, int):
            return settings
        call = _core.status(settings, timeout_seconds=arguments.timeout, or_unreachable=True)
        status = RunStatus.from_json(json.loads(call.wait()))
    except RendezvousError as error:
        # A service that is not reached is a status, not an error.
        return service.failed(error, unreachable=1)
    if status.verdict.state == "absent":
        print(no_such_run(settings, arguments.timeout), file=sys.stderr)
        return status.verdict.exit_status
    if status.verdict.state == "unreachable":
        print(status.verdict.sentence, file=sys.stderr)
        return status.verdict.exit_status
    found = events(status)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(Timeline(SCHEMA, status.run.id, found)), indent=2))
    else:
        print(describe(status, found))
    return 0


def chosen(arguments: argparse.Namespace) -> _core.Settings | int:
    """Returns the settings for the named run, or else for the only run of the tenant. Otherwise prints what there is, and returns
    the exit status."""
    settings = service.settings(arguments, run_id=arguments.run_id, tenant=arguments.tenant)
    if settings.run_id != service.NO_RUN:
        return settings
    runs = service.read_runs(arguments, settings)
    if isinstance(runs, int):
        return runs
    names = [one["run"]["id"] for one in runs]
    if len(names) == 1:
        return service.settings(arguments, run_id=names[0], tenant=arguments.tenant)
    some = f"; name one of them: {', '.join(names[:5])}" if names else ""
    print(f"there are {len(names)} runs of this tenant at {', '.join(settings.endpoints)}{some}", file=sys.stderr)
    return service.USAGE if names else service.ABSENT


def events(status: RunStatus) -> tuple[TimelineEvent, ...]:
    """Returns what happened in the run, in order. Pure."""
    found: list[TimelineEvent] = []
    before: int | None = None
    for entry in status.rounds:
        formed = entry.formed_at
        began = None if formed is None else formed - entry.took_seconds
        if began is not None and before is not None:
            # The time of a round is in whole seconds.
            began = max(began, float(before))
        before = formed
        if entry.cause is not None:
            found.append(AnnouncedEvent(began, entry.round - 1, entry.cause, entry.why))
        found += [LostEvent(began, loss.name, loss.evidence or NO_EVIDENCE) for loss in entry.lost]
        found.append(
            FormedEvent(
                formed,
                entry.round,
                entry.size,
                entry.newcomers,
                entry.took_seconds,
                entry.stood_still_seconds,
                entry.why,
                entry.names,
                entry.resumed_after_seconds,
            )
        )
    run = status.run
    if run.change is not None and run.round is not None:
        at = status.verdict.since
        found.append(AnnouncedEvent(at, run.round, run.change.kind, run.change.why))
        if run.change.kind == "lost":
            seen = {node.name: node.why for node in status.nodes if node.state == "missing"}
            found += [LostEvent(at, name, seen.get(name) or NO_EVIDENCE) for name in run.change.names]
    if run.closed is not None:
        found.append(ClosedEvent(None, run.closed.outcome, run.closed.by, run.closed.why))
    elif status.verdict.state in ("forming", "stuck"):
        found.append(PresentEvent(status.at, status.verdict.state, status.verdict.sentence))
    return tuple(found)


def describe(status: RunStatus, found: tuple[TimelineEvent, ...]) -> str:
    """Formats the events, with the time between them. Pure."""
    still = sum(entry.stood_still_seconds or 0.0 for entry in status.rounds)
    if status.run.change is not None and status.verdict.since is not None and status.run.closed is None:
        still += max(0.0, status.at - status.verdict.since)
    count = len(status.rounds)
    rounds = "1 round" if count == 1 else f"{count} rounds"
    rows = [["TIME", "AFTER", "EVENT"]]
    before: float | None = None
    for event in found:
        after = "" if event.at is None or before is None else duration(event.at - before)
        rows.append([clock(event.at), after, sentence(event)])
        before = event.at if event.at is not None else before
    heading = f"Run {status.run.id}: {rounds}; without a world for {still:.1f} s in total"
    return f"{heading}\n\n{table(rows)}"


def sentence(event: TimelineEvent) -> str:
    """One event in words. Pure."""
    match event:
        case AnnouncedEvent():
            return f"round {event.round} ends ({event.cause}): {event.why}"
        case LostEvent():
            return f"lost {event.name}: {event.evidence}"
        case FormedEvent():
            still = event.stood_still_seconds
            stood = "" if still is None else f"; without a world for {still:.1f} s"
            nodes = "1 node" if event.size == 1 else f"{event.size} nodes"
            resumed = event.resumed_after_seconds
            trained = "" if resumed is None else f"; training after {resumed:.1f} s more"
            return f"round {event.round} formed with {nodes} in {event.took_seconds:.1f} s{stood}{trained}"
        case ClosedEvent():
            why = f": {event.why}" if event.why else ""
            return f"closed as {event.outcome} by {event.by}{why}"
        case PresentEvent():
            return f"now {event.event}: {event.what}"
