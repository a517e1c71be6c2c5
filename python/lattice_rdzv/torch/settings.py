"""From torchrun's parameters to the core's settings.

The core knows every key, its unit and its bounds; here is only what is torch's own: how an absent run id looks, which
ids torch cannot carry, and which class its callers expect when something is wrong.
"""

from __future__ import annotations

import os
import socket
import sys

from torch.distributed.elastic.rendezvous import RendezvousParameters

from lattice_rdzv import _core, _logs
from lattice_rdzv._run import as_text
from lattice_rdzv.errors import SettingsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

ORIGIN = "--rdzv-conf"

# What torchrun passes when nobody passed an id.
_NO_RUN_ID = "none"
# torch makes directories and file names of the id; a name has at most 255 bytes, and torch appends to it.
_RUN_ID_MAX_BYTES = 200


def from_parameters(parameters: RendezvousParameters) -> _core.Settings:
    """The settings that torchrun's parameters and the environment make together.

    Raises:
        ValueError: A parameter is wrong, missing or unknown.
    """
    drawn = _was_drawn(parameters.run_id)
    if "host_name" in parameters.config:
        # The core takes it from us, as what to fall back on.
        raise ValueError(f"`host_name` of `{ORIGIN}` is no known setting; a node is named by: `node_name`")
    arguments = {key: as_text(value) for key, value in parameters.config.items() if value is not None}
    from_environment = os.environ.get("LATTICE_RDZV_ID", "") if drawn else ""
    run_id = from_environment or parameters.run_id
    arguments["run_id"] = _run_id(run_id, own_service=bool(parameters.endpoint.strip()))
    # torchrun passes 1:1 where nobody passed `--nnodes`: then the environment may still say it.
    if (parameters.min_nodes, parameters.max_nodes) != (1, 1) or not os.environ.get("LATTICE_NNODES", "").strip():
        arguments["min_nodes"] = str(parameters.min_nodes)
        arguments["max_nodes"] = str(parameters.max_nodes)
    if parameters.endpoint and parameters.endpoint.strip():
        arguments["endpoint"] = parameters.endpoint
    if parameters.local_addr:
        arguments["local_addr"] = parameters.local_addr
    arguments["host_name"] = socket.gethostname()
    try:
        _logs.level_from_environment()
        settings = _core.Settings(arguments, dict(os.environ), origin=ORIGIN)
    except SettingsError as error:
        raise ValueError(str(error)) from None
    if drawn and not from_environment and settings.max_nodes > 1:
        raise ValueError(
            f"`--rdzv-id` (`run_id` of a `LaunchConfig`) must be the same text on each of up to {settings.max_nodes} "
            "nodes, and is empty, so torch drew a random id that no other node has; pass an id, another for every job, or "
            "set `LATTICE_RDZV_ID`; if you pass a variable, such as `$JOB_ID`, see whether it is set"
        )
    for name, file in settings.credential_files:
        # Not opened: what is read from a pipe is gone.
        if not os.access(file, os.R_OK):
            raise ValueError(f"`{name}` must be a file that this process can read, {_shown(name, file)}")
    return settings


def _shown(name: str, file: Path) -> str:
    """The value, unless it may be the password itself, which someone passed in place of a file."""
    if name == "password_file" and not os.path.lexists(file):
        return "never the password itself; nothing exists at its value, which may be a secret and is not repeated here"
    return f"but is `{file}`"


def _was_drawn(run_id: str) -> bool:
    """Whether torch's launcher drew this id, because the one that it was given is empty.

    The id itself does not tell: a person may pass a number, too. But only where it draws one, `launch_agent` has it in a
    variable of its own while it makes the handler.
    """
    # Not imported where nobody launched anything: it takes a while.
    launcher = sys.modules.get("torch.distributed.launcher.api")
    launch_agent = getattr(launcher, "launch_agent", None)
    if launch_agent is None:
        return False
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is launch_agent.__code__:
            return frame.f_locals.get("run_id") == run_id
    return False


def _run_id(passed: str, *, own_service: bool) -> str:
    source = "`--rdzv-id`"
    run_id = passed
    if passed.strip() in ("", _NO_RUN_ID):
        source = "environment `LATTICE_RDZV_ID`"
        run_id = os.environ.get("LATTICE_RDZV_ID", "")
        if not run_id and passed and own_service:
            # Where it is the service of this job alone, one that a node hosts, it needs no name; on an etcd the core
            # refuses it.
            return _NO_RUN_ID
        if not run_id:
            raise ValueError(
                "the run has no id: pass `--rdzv-id`, the same on every node and another for every job, or set "
                f"`LATTICE_RDZV_ID`; torchrun's default is one that every job would share, `none`; passed was: `{passed}`"
            )
    too_long = len(run_id.encode("utf-8", "surrogateescape")) - _RUN_ID_MAX_BYTES
    if too_long > 0:
        raise ValueError(
            f"the run id ({source}) must have at most {_RUN_ID_MAX_BYTES} bytes, because torch names directories after "
            f"it, and has {_RUN_ID_MAX_BYTES + too_long}: `{run_id[:40]}...`"
        )
    for character in run_id:
        if character == "/" or _is_control(character):
            raise ValueError(
                f"the run id ({source}) must not contain {character!a}, because torch names directories after "
                f"it, and is: {run_id!a}"
            )
    return run_id


def _is_control(character: str) -> bool:
    # Surrogates are what undecodable bytes of the command line become.
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000
