"""Handlers through torch's registry, and what torch's agent and launcher do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.utils import store as store_utilities

from harness.service import Service
from harness.together import together
from lattice_rdzv.torch.handler import LatticeRendezvousHandler

MakeHandler = Callable[..., RendezvousHandler]


@contextmanager
def handlers(service: Service, run_id: str) -> Iterator[MakeHandler]:
    """Makes handlers of one run, with short times; they leave at the end."""
    made: list[RendezvousHandler] = []

    def handler(node_name: str = "node-1", **given: Any) -> RendezvousHandler:
        arguments: dict[str, Any] = {
            "backend": "lattice",
            "endpoint": service.endpoint,
            "run_id": run_id,
            "min_nodes": 1,
            "max_nodes": 1,
            "local_addr": "127.0.0.1",
            "timeout": 900,
            "node_name": node_name,
            "lease_ttl": "3",
            "settle_time": 0.1,
            "last_call_timeout": 1,
            "grow_delay": "0.1",
            "join_timeout": 20,
            "close_timeout": 3,
        }
        arguments.update(given)
        made.append(get_rendezvous_handler(RendezvousParameters(**arguments)))
        return made[-1]

    try:
        yield handler
    finally:
        for one in made:
            leave(one)


def leave(handler: RendezvousHandler) -> bool:
    """Ends a handler as Ctrl-C does: it leaves, and closes nothing."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        return handler.shutdown()


def meet(*handlers: RendezvousHandler) -> list[Any]:
    """One round of these handlers; their infos in the same order."""
    return together(*(handler.next_rendezvous for handler in handlers))


def is_alone(error: BaseException) -> bool:
    """Whether a traceback shows this error and no other of ours before it."""
    return error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)


def node(handler: RendezvousHandler) -> Any:
    """The native node of a handler."""
    assert isinstance(handler, LatticeRendezvousHandler)
    return handler._node


def finish(info: Any, *, timeout_seconds: float = 20) -> None:
    """What torch's agent does when its workers have succeeded."""
    store_utilities.barrier(info.store, info.world_size, "torchelastic/agent/terminal_state", timeout_seconds)


def fail(handler: RendezvousHandler, *, exit_code: int) -> None:
    """What torch's launcher does when a worker failed and no restarts are left."""
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=exit_code, error_file="<N/A>")
    try:
        raise ChildFailedError("train.py", {0: failure})
    except ChildFailedError:
        handler.shutdown()
