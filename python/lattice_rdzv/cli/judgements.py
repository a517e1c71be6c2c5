"""Turns the facts that `doctor` collects into `Finding`s. All functions are pure."""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from lattice_rdzv import _core

from . import etcd_versions

OLDEST_TORCH = (2, 6)
ENTRY_POINT_GROUP = "torchrun.handlers"
BACKEND = "lattice"

# The variables that agents read: first those that name the service, in their order, then those for settings and logs.
ENDPOINT_VARIABLES = (
    "LATTICE_RDZV_ENDPOINTS",
    "LATTICE_RDZV_CLIENT_SERVICE_HOST",
    "LATTICE_RDZV_CLIENT_SERVICE_PORT",
    "LATTICE_RDZV_CLIENT_PORT",
)
OTHER_VARIABLES = (*_core.Settings.variables(), "LATTICE_RDZV_LOG", "LATTICE_RDZV_LOG_FORMAT")


class Finding(NamedTuple):
    """The result of one check."""

    check: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


class Probe(NamedTuple):
    """The result of a probe of the service: its state, or the error."""

    endpoint: str
    version: str = ""
    errors: tuple[str, ...] = ()
    has_leader: bool = True
    writable: bool | None = None
    error: str = ""
    kind: str = ""

    @classmethod
    def from_json(cls, text: str, *, endpoint: str) -> "Probe":
        """Parses the result of `_core.probe`."""
        document: dict[str, Any] = json.loads(text)
        write_error = document.get("write_error")
        return cls(
            endpoint=str(document.get("endpoint") or endpoint),
            version=str(document.get("version") or ""),
            errors=(*map(str, document.get("errors") or ()), *([str(write_error)] if write_error else [])),
            has_leader=bool(document.get("has_leader", True)),
            writable=document.get("writable"),
            error=str(document.get("error") or ""),
            kind=str(document.get("kind") or ""),
        )


class Plugin(NamedTuple):
    """The entry point that torch finds."""

    registered: str
    error: str = ""


def judge_environment(environment: Mapping[str, str]) -> list[Finding]:
    """Checks the environment: the variables that an agent reads, those that override them, and those without effect."""
    findings = []
    known = ENDPOINT_VARIABLES + OTHER_VARIABLES
    found = {name: without_user(environment[name]) for name in known if environment.get(name)}
    if "LATTICE_RDZV_PASSWORD_FILE" in found:
        # It may be the password itself, by mistake.
        found["LATTICE_RDZV_PASSWORD_FILE"] = "(set)"
    shown = ", ".join(f"{name}={value}" for name, value in found.items())
    passed = environment.get("PET_RDZV_ENDPOINT")
    if passed or any(name in found for name in ENDPOINT_VARIABLES):
        own = f"PET_RDZV_ENDPOINT={without_user(passed)}, which torchrun passes as `--rdzv-endpoint`" if passed else ""
        findings.append(Finding("environment", "ok", ", ".join(filter(None, (shown, own)))))
    else:
        findings.append(
            Finding(
                "environment",
                "ok",
                f"{shown or 'no LATTICE_* variable is set'}; no variable names the service",
                "without `--rdzv-endpoint`, agents in a pod use the Service `lattice-rdzv-client`; elsewhere they use localhost:2379 "
                "or host the embedded server at localhost:29400, which no other machine can join",
            )
        )

    for name, ours in (("PET_RDZV_ENDPOINT", "LATTICE_RDZV_ENDPOINTS"), ("PET_RDZV_ID", "LATTICE_RDZV_ID")):
        if not environment.get(name):
            continue
        hidden = [variable for variable in found if variable in ENDPOINT_VARIABLES or variable == ours]
        if name == "PET_RDZV_ID":
            hidden = [variable for variable in hidden if variable == ours]
        if hidden:
            findings.append(
                Finding(
                    "torchrun's own variables",
                    "warn",
                    f"{name}={without_user(environment[name])} overrides {', '.join(hidden)}",
                    f"torchrun passes {name} to every backend as an option, and options override variables; run `unset {name}`",
                )
            )
    backend = environment.get("PET_RDZV_BACKEND", "")
    if backend and backend != BACKEND:
        findings.append(
            Finding(
                "torchrun's own variables",
                "warn",
                f"PET_RDZV_BACKEND={backend}",
                f"torchrun uses that backend unless `--rdzv-backend {BACKEND}` is passed",
            )
        )
    if environment.get("LATTICE_RDZV_PASSWORD"):
        findings.append(
            Finding(
                "password",
                "fail",
                "LATTICE_RDZV_PASSWORD is set",
                "put the password into a file that only the job can read, and set LATTICE_RDZV_PASSWORD_FILE to its path",
            )
        )
    for name, meant in _core.Settings.unknown_variables(environment):
        found_unknown = f"{name} is set and has no effect, because no setting has that name"
        advice = f"did you mean {meant}?" if meant else "docs/settings.md lists the known variables"
        findings.append(Finding("unknown variables", "fail" if meant else "warn", found_unknown, advice))
    return findings


def judge_reach(endpoints: str, source: str, *, only_this_machine: bool, max_nodes: int | None) -> list[Finding]:
    """Checks whether nodes on other machines can reach these endpoints. `max_nodes` is `None` if it is not known."""
    if not only_this_machine or max_nodes == 1:
        return []
    return [
        Finding(
            "nodes on other machines",
            "warn" if max_nodes is None else "fail",
            f"{endpoints} (from {source}) refers to each node's own machine, so no other machine can join"
            + ("" if max_nodes is None else f" this job, which has up to {max_nodes} nodes"),
            "pass one address to all nodes in `--rdzv-endpoint`: that of a node or of an etcd that all nodes can reach; or set "
            "LATTICE_RDZV_ENDPOINTS; no action is needed if all nodes run on this machine",
        )
    ]


def without_user(value: str) -> str:
    """Masks a user and a password in front of a host, because users copy the output of doctor into issues."""
    before, at, host = value.rpartition("@")
    return f"***@{host}" if at and before else value


WHAT_TO_DO = {
    "refused": "start the service, or pass its address in `--endpoint` (agents: `--rdzv-endpoint`, LATTICE_RDZV_ENDPOINTS)",
    "unavailable": "start the service, or check its log and the network for the reason why it does not respond; or pass another "
    "address in `--endpoint` (agents: `--rdzv-endpoint`, LATTICE_RDZV_ENDPOINTS)",
    "not_etcd": "pass etcd's client port in `--endpoint` (agents: `--rdzv-endpoint`, LATTICE_RDZV_ENDPOINTS); its default is "
    "2379, whereas 2380 is the port for peers",
    "denied": "the service rejected the client: check LATTICE_RDZV_USER and LATTICE_RDZV_PASSWORD_FILE, or LATTICE_RDZV_CACERT, "
    "_CERT and _KEY, and the permissions of that user",
    "setting": "correct the setting that the message names",
    "other": "check the service's log for the error in the message, and check that the service is etcd 3.4 or newer",
}


def judge_lifelines(absence: str | None) -> Finding:
    """Judges whether a node on this machine can have lifelines, by the reason why not. Pure."""
    if absence is None:
        return Finding("lifelines", "ok", "a node on this machine can have them; other nodes must reach its port")
    return Finding(
        "lifelines",
        "warn",
        f"none: {absence}",
        "without lifelines, other nodes notice the death of this node when its lease expires",
    )


def judge_service(probe: Probe, *, hosted_at: str = "") -> list[Finding]:
    """Checks the service: whether it responds, its release, and whether an agent can write. If it does not respond, checks
    whether an agent would host it at `hosted_at`."""
    if probe.kind == "refused" and hosted_at:
        return [
            Finding(
                "service",
                "warn",
                f"no server is running at {hosted_at} yet: {probe.error}",
                "the first agent on the machine with that address hosts it for all nodes; if you use an etcd, start it, or pass its "
                "address in `--rdzv-endpoint`",
            )
        ]
    if probe.error:
        return [Finding("service", "fail", probe.error, WHAT_TO_DO.get(probe.kind, WHAT_TO_DO["other"]))]
    findings = [Finding("service", "ok", f"{probe.endpoint} responds"), judge_etcd(probe.version)]
    if not probe.has_leader:
        findings.append(
            Finding(
                "quorum",
                "fail",
                "the etcd member has no leader",
                "check the members with `etcdctl endpoint status --cluster`",
            )
        )
    if probe.writable:
        findings.append(Finding("permission to write", "ok", "a test key with a short lease was written and removed"))
    else:
        findings.append(
            Finding(
                "permission to write",
                "fail",
                "; ".join(probe.errors) or "a test key could not be written",
                "give the user a role that can read and write under /lattice/rdzv/<tenant>/; if an alarm is active, run "
                "`etcdctl alarm list` and see etcd's maintenance guide",
            )
        )
    if probe.writable and probe.errors:
        findings.append(
            Finding("the service's own alarms", "warn", "; ".join(probe.errors), "run `etcdctl alarm list`")
        )
    return findings


def judge_etcd(version: str) -> Finding:
    """Checks a release of etcd for known bugs."""
    check = "etcd's release"
    if "+lattice-rdzv" in version:
        # The part before the plus is the release whose API the server implements. It does not have the bugs of that release.
        return Finding(check, "ok", f"none: this is the embedded server, which implements the API of etcd {version}")
    parsed = etcd_versions.parse(version)
    if parsed is None:
        return Finding(check, "warn", f"unknown version: {version or '(none)'}", "expected a version such as 3.5.33")
    line = parsed[:2]
    if line < etcd_versions.OLDEST:
        return Finding(
            check, "fail", version, "the oldest supported release is 3.4; upgrade, one minor release at a time"
        )
    holes = etcd_versions.open_holes(parsed)
    if not holes:
        return Finding(check, "ok", version)
    recommended = ".".join(str(number) for number in etcd_versions.RECOMMENDED[line])
    listed = "; ".join(f"{hole.what} ({hole.source})" for hole in holes)
    return Finding(check, "warn", f"{version} has known bugs: {listed}", f"upgrade to {recommended} or newer")


def judge_plugin(plugin: Plugin) -> Finding:
    """Checks whether torchrun finds the backend, because torch only logs the reason if it does not."""
    check = f"torchrun backend `{BACKEND}`"
    if not plugin.registered:
        return Finding(
            check,
            "fail",
            f"no entry point of that name in the group `{ENTRY_POINT_GROUP}`",
            "install the wheel into the environment that torchrun runs in, with that environment's pip: "
            "`python -m pip install --no-index --find-links=dist lattice-rdzv`",
        )
    if plugin.error:
        return Finding(
            check,
            "fail",
            f"{plugin.registered} does not load: {plugin.error}",
            "torch logs this error and then reports that the backend is not registered; reinstall the package",
        )
    return Finding(check, "ok", plugin.registered)


def judge_torch(version: str | None) -> Finding:
    """Checks whether this torch loads backends from entry points."""
    if version is None:
        return Finding(
            "torch",
            "warn",
            "not installed",
            "required only for torchrun; install it with `python -m pip install torch`",
        )
    numbers = version.split("+")[0].split(".")
    line = tuple(int(number) if number.isdigit() else 0 for number in numbers[:2])
    if line < OLDEST_TORCH:
        return Finding(
            "torch",
            "fail",
            f"{version} does not load backends from entry points",
            "use torch 2.6 or newer, or import lattice_rdzv.torch in your own launcher and register the backend there",
        )
    return Finding("torch", "ok", version)
