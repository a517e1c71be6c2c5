"""Handlers from torch's registry, and the calls of torch's agent and launcher."""

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
    """Creates handlers of one run, with short times, which leave at the end."""
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
            "lease_ttl": "10",
            "settle_time": 0.1,
            "last_call_timeout": 1,
            "grow_delay": "0.1",
            "join_timeout": 60,
            "close_timeout": 30,
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
    """Ends a handler as Ctrl-C does: it leaves, but does not close the run."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        return handler.shutdown()


def form_round(*handlers: RendezvousHandler) -> list[Any]:
    """Forms a round of these handlers. Returns their infos in the order of the handlers."""
    return together(*(handler.next_rendezvous for handler in handlers))


def is_alone(error: BaseException) -> bool:
    """Returns whether a traceback shows only this error, without another one of this package before it."""
    return error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)


def node(handler: RendezvousHandler) -> Any:
    """Returns the native node of a handler."""
    assert isinstance(handler, LatticeRendezvousHandler)
    return handler._node


def finish(info: Any, *, timeout_seconds: float = 20) -> None:
    """Does what torch's agent does when its workers have succeeded."""
    store_utilities.barrier(info.store, info.world_size, "torchelastic/agent/terminal_state", timeout_seconds)


def fail(handler: RendezvousHandler, *, exit_code: int) -> None:
    """Does what torch's launcher does when a worker has failed and no restarts are left."""
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=exit_code, error_file="<N/A>")
    try:
        raise ChildFailedError("train.py", {0: failure})
    except ChildFailedError:
        handler.shutdown()
