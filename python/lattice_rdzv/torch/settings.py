"""From torchrun's parameters to the core's settings.

The core knows every key, its unit and its bounds; here is only what is torch's own: how an absent run id looks, which
ids torch cannot carry, and which class its callers expect when something is wrong.
"""

from __future__ import annotations

import os
import socket

from torch.distributed.elastic.rendezvous import RendezvousParameters

from lattice_rdzv import _core, _logs
from lattice_rdzv._run import as_text
from lattice_rdzv.errors import SettingsError

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
    if "host_name" in parameters.config:
        # The core takes it from us, as what to fall back on.
        raise ValueError(f"`host_name` of `{ORIGIN}` is no known setting; a node is named by: `node_name`")
    arguments = {key: as_text(value) for key, value in parameters.config.items() if value is not None}
    arguments["run_id"] = _run_id(parameters.run_id)
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
        settings = _core.Settings(arguments, os.environ, origin=ORIGIN)
    except SettingsError as error:
        raise ValueError(str(error)) from None
    for name, file in settings.credential_files:
        # Not opened: what is read from a pipe is gone.
        if not os.access(file, os.R_OK):
            raise ValueError(f"`{name}` must be a file that this process can read, and is: `{file}`")
    return settings


def _run_id(passed: str) -> str:
    source = "`--rdzv-id`"
    run_id = passed
    if passed.strip() in ("", _NO_RUN_ID):
        source = "environment `LATTICE_RDZV_ID`"
        run_id = os.environ.get("LATTICE_RDZV_ID", "")
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
