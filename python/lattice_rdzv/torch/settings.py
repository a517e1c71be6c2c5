"""Converts torchrun's parameters to the core's settings.

The core validates every key, its unit and its bounds. This module contains only the parts that are specific to torch: the
form of a missing run id, the ids that torch does not support, `--node-rank`, and the exception class that torch's callers
expect.
"""

from __future__ import annotations

import os
import socket

from torch.distributed.elastic.rendezvous import RendezvousParameters

from lattice_rdzv import _core, _logs
from lattice_rdzv._run import as_text
from lattice_rdzv.errors import SettingsError
from lattice_rdzv.torch import launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

ORIGIN = "--rdzv-conf"

# torchrun passes this id if the user passed none.
_NO_RUN_ID = "none"
# torch uses the id in names of directories and files, and appends to it. A file name has at most 255 bytes.
_RUN_ID_MAX_BYTES = 200


def from_parameters(parameters: RendezvousParameters) -> _core.Settings:
    """Returns the settings from torchrun's parameters and the environment.

    Raises:
        ValueError: A parameter is wrong, missing or unknown.
    """
    drawn = launcher.drew_run_id(parameters.run_id)
    if "host_name" in parameters.config:
        # Only this module passes this key to the core, as the default of `node_name`.
        raise ValueError(f"`host_name` in `{ORIGIN}` is not a setting; to name a node, use `node_name`")
    arguments = {key: as_text(value) for key, value in parameters.config.items() if value is not None}
    from_environment = os.environ.get("LATTICE_RDZV_ID", "") if drawn else ""
    run_id = from_environment or parameters.run_id
    arguments["run_id"] = _run_id(run_id, own_service=bool(parameters.endpoint.strip()))
    # torchrun passes 1:1 if the user did not pass `--nnodes`. The environment can then set it.
    if (parameters.min_nodes, parameters.max_nodes) != (1, 1) or not os.environ.get("LATTICE_NNODES", "").strip():
        arguments["min_nodes"] = str(parameters.min_nodes)
        arguments["max_nodes"] = str(parameters.max_nodes)
    if parameters.endpoint and parameters.endpoint.strip():
        arguments["endpoint"] = parameters.endpoint
    if parameters.local_addr:
        arguments["local_addr"] = parameters.local_addr
    node_rank = launcher.node_rank()
    if node_rank is not None and not arguments.get("node_index"):
        if node_rank < 0:
            raise ValueError(f"`--node-rank` must be 0 or more, but is `{node_rank}`; omit it to rank nodes by arrival")
        arguments["node_index"] = str(node_rank)
    arguments["host_name"] = socket.gethostname()
    try:
        _logs.level_from_environment()
        settings = _core.Settings(arguments, dict(os.environ), origin=ORIGIN)
    except SettingsError as error:
        raise ValueError(str(error)) from None
    if drawn and not from_environment and settings.max_nodes > 1:
        raise ValueError(
            f"`--rdzv-id` (`run_id` of a `LaunchConfig`) must be equal on each of up to {settings.max_nodes} nodes, "
            "but is empty, so torch generated a random id that no other node has; pass an id that is different for every "
            "job, or set `LATTICE_RDZV_ID`; if you pass a variable, such as `$JOB_ID`, check that it is set"
        )
    for name, file in settings.credential_files:
        # Checked without opening, because reading would consume the content of a pipe.
        if not os.access(file, os.R_OK):
            raise ValueError(f"`{name}` must be a file that this process can read, {_shown(name, file)}")
    return settings


def _shown(name: str, file: Path) -> str:
    """Describes the value, unless it may be the password itself, passed instead of a file."""
    if name == "password_file" and not os.path.lexists(file):
        return "not the password itself; no file exists at this path (the value may be a secret and is not repeated)"
    return f"but is `{file}`"


def _run_id(passed: str, *, own_service: bool) -> str:
    source = "`--rdzv-id`"
    run_id = passed
    if passed.strip() in ("", _NO_RUN_ID):
        source = "environment `LATTICE_RDZV_ID`"
        run_id = os.environ.get("LATTICE_RDZV_ID", "")
        if not run_id and passed and own_service:
            # If a node of this job hosts the service, the run needs no id. With an etcd, the core rejects this id.
            return _NO_RUN_ID
        if not run_id:
            raise ValueError(
                "the run has no id; pass `--rdzv-id`, equal on every node and different for every job, or set "
                f"`LATTICE_RDZV_ID`; every job would share torchrun's default, `none`; the passed id is: `{passed}`"
            )
    too_long = len(run_id.encode("utf-8", "surrogateescape")) - _RUN_ID_MAX_BYTES
    if too_long > 0:
        raise ValueError(
            f"the run id ({source}) must have at most {_RUN_ID_MAX_BYTES} bytes, because torch names directories after "
            f"it, but has {_RUN_ID_MAX_BYTES + too_long}: `{run_id[:40]}...`"
        )
    for character in run_id:
        if character == "/" or _is_control(character):
            raise ValueError(
                f"the run id ({source}) must not contain {character!a}, because torch names directories after "
                f"it, but is {run_id!a}"
            )
    return run_id


def _is_control(character: str) -> bool:
    # Python represents undecodable bytes of the command line as surrogates.
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000
