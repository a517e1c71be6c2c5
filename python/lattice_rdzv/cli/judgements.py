"""What `doctor` makes of what it found: facts in, `Finding`s out. Nothing here looks at the world."""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from lattice_rdzv import _core

from . import etcd_versions

OLDEST_TORCH = (2, 6)
ENTRY_POINT_GROUP = "torchrun.handlers"
BACKEND = "lattice"

# What agents read, in the order in which they look for the service; then the rest, which is for settings and logs.
ENDPOINT_VARIABLES = (
    "LATTICE_RDZV_ENDPOINTS",
    "LATTICE_RDZV_CLIENT_SERVICE_HOST",
    "LATTICE_RDZV_CLIENT_SERVICE_PORT",
    "LATTICE_RDZV_CLIENT_PORT",
)
OTHER_VARIABLES = (*_core.Settings.variables(), "LATTICE_RDZV_LOG")


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


class Probe(NamedTuple):
    """What the service said of itself, or why it said nothing."""

    endpoint: str
    version: str = ""
    errors: tuple[str, ...] = ()
    has_leader: bool = True
    writable: bool | None = None
    error: str = ""
    kind: str = ""

    @classmethod
    def from_json(cls, text: str, *, endpoint: str) -> "Probe":
        """What `_core.probe` returned."""
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
    """What torch will find of ours."""

    registered: str
    error: str = ""


def judge_environment(environment: Mapping[str, str]) -> list[Finding]:
    """What an agent would read here, what hides it, and what nobody reads."""
    findings = []
    known = ENDPOINT_VARIABLES + OTHER_VARIABLES
    found = {name: without_user(environment[name]) for name in known if environment.get(name)}
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
                f"{shown or 'none of our variables is set'}; no variable names the service",
                "without `--rdzv-endpoint` agents look for the Service `lattice-rdzv-client` in a pod; elsewhere they use "
                "localhost:2379, or host the service at localhost:29400, which no other machine can join",
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
                    f"{name}={without_user(environment[name])} hides {', '.join(hidden)}",
                    f"torchrun passes {name} to every backend as if it had been an option, and options win: `unset {name}`",
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
                "put the password into a file that only the job can read, and name it in LATTICE_RDZV_PASSWORD_FILE",
            )
        )
    for name, meant in _core.Settings.unknown_variables(environment):
        found_unknown = f"{name} is set and has no effect, because no setting has that name"
        advice = f"did you mean {meant}?" if meant else "docs/settings.md lists the known ones"
        findings.append(Finding("unknown variables", "fail" if meant else "warn", found_unknown, advice))
    return findings


def judge_reach(endpoints: str, source: str, *, only_this_machine: bool, max_nodes: int | None) -> list[Finding]:
    """Whether nodes on other machines can join by these endpoints. `max_nodes` is `None` if it is not known."""
    if not only_this_machine or max_nodes == 1:
        return []
    return [
        Finding(
            "nodes on other machines",
            "warn" if max_nodes is None else "fail",
            f"{endpoints} (from {source}) is what each machine calls itself: no other machine can join"
            + ("" if max_nodes is None else f" this job, which takes up to {max_nodes} nodes"),
            "pass an address of one node, or of an etcd, that all nodes reach as `--rdzv-endpoint`, the same on every node, "
            "or set LATTICE_RDZV_ENDPOINTS; no action is needed if all nodes run on this machine",
        )
    ]


def without_user(value: str) -> str:
    """A value without what may be a user and a password in front of a host: what doctor prints goes into issues."""
    before, at, host = value.rpartition("@")
    return f"***@{host}" if at and before else value


WHAT_TO_DO = {
    "refused": "start the service, or name it with `--endpoint` (agents: `--rdzv-endpoint`, LATTICE_RDZV_ENDPOINTS)",
    "unavailable": "start the service, or see in its log, and in what is between it and here, why it does not answer; or "
    "name another with `--endpoint` (agents: `--rdzv-endpoint`, LATTICE_RDZV_ENDPOINTS)",
    "not_etcd": "name etcd's client port with `--endpoint` (agents: `--rdzv-endpoint`, LATTICE_RDZV_ENDPOINTS); 2379 by "
    "default, while 2380 is for its peers",
    "denied": "the service is there: look at LATTICE_RDZV_USER and LATTICE_RDZV_PASSWORD_FILE, or at LATTICE_RDZV_CACERT, "
    "_CERT and _KEY, and at what that user may do",
    "setting": "the message says which setting, and what it may be",
    "other": "the message says what went wrong: see in the service's log what it has to say of that, and that it is etcd 3.4 "
    "or newer",
}


def judge_service(probe: Probe, *, hosted_at: str = "") -> list[Finding]:
    """Whether it answers, which release it is, whether it lets us write; or, if it is not there, whether a node would
    host it at `hosted_at`."""
    if probe.kind == "refused" and hosted_at:
        return [
            Finding(
                "service",
                "warn",
                f"nobody serves yet at {hosted_at}: {probe.error}",
                "the first agent on the machine whose address that is hosts it for all; if an etcd is meant, start it, "
                "or name it with `--rdzv-endpoint`",
            )
        ]
    if probe.error:
        return [Finding("service", "fail", probe.error, WHAT_TO_DO.get(probe.kind, WHAT_TO_DO["other"]))]
    findings = [Finding("service", "ok", f"{probe.endpoint} answers"), judge_etcd(probe.version)]
    if not probe.has_leader:
        findings.append(
            Finding(
                "quorum",
                "fail",
                "the etcd member that answers knows no leader",
                "see `etcdctl endpoint status --cluster`",
            )
        )
    if probe.writable:
        findings.append(Finding("permission to write", "ok", "a key of ours under a short lease was put and removed"))
    else:
        findings.append(
            Finding(
                "permission to write",
                "fail",
                "; ".join(probe.errors) or "a key of ours could not be put",
                "give the user a role that may read and write under /lattice/rdzv/; if an alarm is raised, see "
                "`etcdctl alarm list` and etcd's maintenance guide",
            )
        )
    if probe.writable and probe.errors:
        findings.append(
            Finding("the service's own alarms", "warn", "; ".join(probe.errors), "see `etcdctl alarm list`")
        )
    return findings


def judge_etcd(version: str) -> Finding:
    """Whether a release of etcd is one to trust a run to."""
    check = "etcd's release"
    if "+lattice-rdzv" in version:
        # What stands before the plus is the release whose API it serves; etcd's holes are not its own.
        return Finding(check, "ok", f"none, the embedded store: {version}")
    parsed = etcd_versions.parse(version)
    if parsed is None:
        return Finding(
            check, "warn", f"not one that can be judged: {version or 'none was told'}", "expected like 3.5.33"
        )
    line = parsed[:2]
    if line < etcd_versions.OLDEST:
        return Finding(check, "fail", version, "3.4 is the oldest that works; upgrade, one minor release at a time")
    holes = etcd_versions.open_holes(parsed)
    if not holes:
        return Finding(check, "ok", version)
    recommended = ".".join(str(number) for number in etcd_versions.RECOMMENDED[line])
    told = "; ".join(f"{hole.what} ({hole.source})" for hole in holes)
    return Finding(check, "warn", f"{version} has known holes: {told}", f"upgrade to {recommended} or newer")


def judge_plugin(plugin: Plugin) -> Finding:
    """Whether torchrun will find our backend; torch itself only logs why not."""
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
            "torch logs this and then says that the backend is not registered; install the package again",
        )
    return Finding(check, "ok", plugin.registered)


def judge_torch(version: str | None) -> Finding:
    """Whether this torch loads backends from entry points."""
    if version is None:
        return Finding("torch", "warn", "not installed", "only needed for torchrun: `python -m pip install torch`")
    numbers = version.split("+")[0].split(".")
    line = tuple(int(number) if number.isdigit() else 0 for number in numbers[:2])
    if line < OLDEST_TORCH:
        return Finding(
            "torch",
            "fail",
            f"{version} does not load backends from entry points",
            "use torch 2.6 or newer; or import lattice_rdzv.torch in a launcher of your own and register it there",
        )
    return Finding("torch", "ok", version)
