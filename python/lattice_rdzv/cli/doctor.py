"""`lattice-rdzv doctor`: what would keep a job from meeting, and what to do about each thing.

This looks; what to make of it is in `judgements`.
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
    judge_plugin,
    judge_reach,
    judge_service,
    judge_torch,
)
from .terminal import coloured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How the service is reached."""
    service.add_arguments(parser)
    parser.add_argument(
        "--nnodes", default="", help="how many nodes the job has, as for torchrun: `2:4` (default: LATTICE_NNODES)"
    )


def run(arguments: argparse.Namespace) -> int:
    """0 if nothing failed, 1 otherwise; warnings do not count."""
    findings = gather(arguments)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        print(describe(findings))
    failed = any(finding.status == "fail" for finding in findings)
    if failed and not arguments.json:
        print("A job would not meet here.", file=sys.stderr)
    return 1 if failed else 0


def gather(arguments: argparse.Namespace) -> list[Finding]:
    """Looks at everything, the service last, because it may take a while."""
    findings = judge_environment(os.environ)
    findings += [judge_plugin(find_plugin()), judge_torch(find_torch())]
    return findings + find_service(arguments)


def find_plugin() -> Plugin:
    """The entry point, loaded as torch would."""
    entry_points = metadata.entry_points(group=ENTRY_POINT_GROUP, name=BACKEND)
    if not entry_points:
        return Plugin(registered="")
    entry_point = next(iter(entry_points))
    try:
        creator = entry_point.load()()
        if not callable(creator):
            return Plugin(entry_point.value, f"it returns no callable: {creator!r}")
    except BaseException as error:  # whatever it is, it is what the person needs to see
        if isinstance(error, KeyboardInterrupt):
            raise
        return Plugin(entry_point.value, f"{type(error).__name__}: {error}")
    return Plugin(entry_point.value)


def find_torch() -> str | None:
    """The installed torch, without the seconds that importing it takes."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def find_service(arguments: argparse.Namespace) -> list[Finding]:
    """What an agent's settings would be here, and what the service that they name says."""
    # What torchrun would pass on as `--nnodes`.
    nnodes = arguments.nnodes or os.environ.get("PET_NNODES", "")
    try:
        settings = service.settings(arguments, nnodes=nnodes)
    except Exception as error:  # any failure is a finding, not an end
        return [Finding("settings", "fail", str(error), "the message says which setting, and what it may be")]
    endpoints = ", ".join(settings.endpoints)
    # An endpoint without a port stands for two.
    hosted_at = settings.hosted_at
    shown = f"{endpoints}, else {hosted_at}" if hosted_at and hosted_at not in settings.endpoints else endpoints
    findings = [Finding("settings", "ok", f"endpoint {shown} (from {settings.endpoints_source})")]
    is_known = bool(nnodes or os.environ.get("LATTICE_NNODES"))
    findings += judge_reach(
        endpoints,
        settings.endpoints_source,
        only_this_machine=settings.only_this_machine,
        max_nodes=settings.max_nodes if is_known else None,
    )
    try:
        probe = Probe.from_json(_core.probe(settings, timeout_seconds=arguments.timeout), endpoint=endpoints)
    except Exception as error:  # any failure is a finding, not an end
        probe = Probe(endpoint=endpoints, error=str(error))
    return findings + judge_service(probe, hosted_at=hosted_at or "")


def describe(findings: list[Finding]) -> str:
    """The findings for a person, each with what to do about it. Pure."""
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    lines = []
    for finding in findings:
        lines.append(f"{coloured(finding.status.ljust(4), colours[finding.status])}  {finding.check}: {finding.found}")
        if finding.advice:
            lines.append(f"      -> {finding.advice}")
    return "\n".join(lines)
