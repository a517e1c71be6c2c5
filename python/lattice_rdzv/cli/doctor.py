"""`lattice-rdzv doctor` finds problems that would keep nodes from forming a round, and prints a fix for each.

This module collects facts. `judgements` turns them into findings.
"""

import argparse
import json
import os
import sys
from importlib import metadata

from lattice_rdzv import _core

from . import service
from .judgements import (
    BACKEND,
    ENTRY_POINT_GROUP,
    Finding,
    Plugin,
    Probe,
    judge_environment,
    judge_lifelines,
    judge_plugin,
    judge_reach,
    judge_service,
    judge_torch,
)
from .terminal import coloured

EXAMPLES = """\
It looks at this machine and at the service. It writes a test key with a short lease and removes it. For one run, use
`lattice-rdzv status RUN`.

exit status:
  0 no check failed (warnings do not count), 1 a check failed

examples:
  lattice-rdzv doctor                                     as an agent would be configured here
  lattice-rdzv doctor --endpoint etcd-1:2379 --nnodes 2:4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `doctor`."""
    service.add_arguments(parser)
    parser.add_argument(
        "--nnodes",
        default="",
        help="number of nodes of the job, as for torchrun, such as `2:4` (default: PET_NNODES, LATTICE_NNODES)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if no check failed, and 1 otherwise. Warnings do not count."""
    findings = gather(arguments)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        print(describe(findings))
    failed = sum(finding.status == "fail" for finding in findings)
    if failed and not arguments.json:
        checks = "1 check" if failed == 1 else f"{failed} checks"
        print(f"{checks} failed. A job started here cannot rendezvous.", file=sys.stderr)
    return 1 if failed else 0


def gather(arguments: argparse.Namespace) -> list[Finding]:
    """Runs all checks. The service comes last, because it can take some seconds."""
    findings = judge_environment(os.environ)
    findings += [judge_plugin(find_plugin()), judge_torch(find_torch())]
    return findings + find_service(arguments)


def find_plugin() -> Plugin:
    """Loads the entry point as torch does."""
    entry_points = metadata.entry_points(group=ENTRY_POINT_GROUP, name=BACKEND)
    if not entry_points:
        return Plugin(registered="")
    entry_point = next(iter(entry_points))
    try:
        creator = entry_point.load()()
        if not callable(creator):
            return Plugin(entry_point.value, f"it does not return a callable, but: {creator!r}")
    except BaseException as error:  # the user needs to see every kind of error
        if isinstance(error, KeyboardInterrupt):
            raise
        return Plugin(entry_point.value, f"{type(error).__name__}: {error}")
    return Plugin(entry_point.value)


def find_torch() -> str | None:
    """Returns the version of the installed torch without importing it, which takes seconds."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def find_service(arguments: argparse.Namespace) -> list[Finding]:
    """Resolves the settings as an agent does, and probes the service that they name."""
    # torchrun passes this variable on as `--nnodes`.
    nnodes = arguments.nnodes or os.environ.get("PET_NNODES", "")
    try:
        settings = service.settings(arguments, nnodes=nnodes)
    except Exception as error:  # every failure becomes a finding
        return [Finding("settings", "fail", str(error), "correct the setting that the message names")]
    endpoints = ", ".join(settings.endpoints)
    # An endpoint without a port stands for two ports.
    hosted_at = settings.hosted_at
    shown = f"{endpoints}, else {hosted_at}" if hosted_at and hosted_at not in settings.endpoints else endpoints
    findings = [Finding("settings", "ok", f"endpoint {shown} (from {settings.endpoints_source})")]
    findings.append(judge_lifelines(_core.lifelines_absence(settings)))
    is_known = bool(nnodes or os.environ.get("LATTICE_NNODES"))
    findings += judge_reach(
        endpoints,
        settings.endpoints_source,
        only_this_machine=settings.only_this_machine,
        max_nodes=settings.max_nodes if is_known else None,
    )
    try:
        probe = Probe.from_json(_core.probe(settings, timeout_seconds=arguments.timeout), endpoint=endpoints)
    except Exception as error:  # every failure becomes a finding
        probe = Probe(endpoint=endpoints, error=str(error))
    return findings + judge_service(probe, hosted_at=hosted_at or "")


def describe(findings: list[Finding]) -> str:
    """Formats the findings, each with its fix. Pure."""
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    lines = []
    for finding in findings:
        lines.append(f"{coloured(finding.status.ljust(4), colours[finding.status])}  {finding.check}: {finding.found}")
        if finding.advice:
            lines.append(f"      -> {finding.advice}")
    return "\n".join(lines)
