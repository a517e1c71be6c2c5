"""The rendezvous handler: implements the interface of torch's agent with one node of a run.

This module defines the behavior that torch leaves open:

- `num_nodes_waiting` is the only way to influence a running agent. Above 0, the agent restarts its workers, and this does
  not count against `--max-restarts`.
- torch calls `shutdown` after success, failure, timeouts, and Ctrl-C alike, and it means that this agent is done. The
  module `verdict` decides whether the run has succeeded, has failed, or continues without this node.
- A spare that is no longer needed ends with `SystemExit(0)`, because torch's own graceful exit breaks torchrun up to 2.15.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import weakref

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from lattice_rdzv import _core, _logs
from lattice_rdzv._membership import Membership
from lattice_rdzv.errors import ClosedError, JoinTimeoutError, RendezvousError, UnreachableError
from lattice_rdzv.torch import launcher
from lattice_rdzv.torch.errors import as_torch_error
from lattice_rdzv.torch.events import Events, NodeState
from lattice_rdzv.torch.master import Master, allow_open_files
from lattice_rdzv.torch.signals import end_agent, ending_signals, torch_signals
from lattice_rdzv.torch.store import LatticeStore
from lattice_rdzv.torch.verdict import Progress, Verdict, failure, verdict

logger: logging.Logger = logging.getLogger("lattice_rdzv.torch")

BACKEND = "lattice"

# Time limit of `shutdown` for reading whether the exit barrier is full, if the barrier itself has not returned.
_BARRIER_CHECK_SECONDS = 2.0
# Time limit of `set_closed` before the first round for reading whether the run is already closed.
_STATUS_SECONDS = 5.0


class LatticeRendezvousHandler(RendezvousHandler):
    """Rendezvous handler for torch's agent. Connects with the first `next_rendezvous`."""

    def __init__(self, settings: _core.Settings) -> None:
        self._settings = settings
        self._membership = Membership(settings)
        self._events = Events(settings)
        # torch's `PrefixStore` keeps only the C++ part of a store alive, so the handler keeps the Python part for the round.
        self._store: LatticeStore | None = None
        self._master = Master(settings, self._membership)
        self._told_change = False
        self._done: bool | None = None
        # A program can launch again while it handles the failure of an earlier launch.
        earlier = sys.exc_info()[1]
        self._earlier = weakref.ref(earlier) if isinstance(earlier, ChildFailedError) else None

    @property
    def _node(self) -> _core.Node | None:
        return self._membership.node

    def get_backend(self) -> str:
        """Returns the name of the backend: `lattice`."""
        return BACKEND

    def get_run_id(self) -> str:
        """Returns the run id."""
        return self._settings.run_id

    @property
    def use_agent_store(self) -> bool:
        """Whether the agent of rank 0 serves the workers' store, and not the worker of rank 0."""
        return os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"

    def next_rendezvous(self) -> RendezvousInfo:
        """Waits for the next world that includes this node.

        Raises:
            RendezvousClosedError: The run is closed, by the node and for the reason that the message names.
            RendezvousConnectionError: The service was not found, does not respond, or is not an etcd.
            RendezvousTimeoutError: No world included this node within `join_timeout`.
            RendezvousStateError: The settings of this node differ from those of the run, or a record cannot be read.
            SystemExit: The run succeeded without this node. The status is 0.
        """
        self._told_change = False
        name, run_id = self._settings.node_name, self.get_run_id()
        message = f"The node '{name}' attempts to join the next round of the rendezvous '{run_id}'."
        self._events.record("next_rendezvous", message)
        try:
            info = self._enter(self._next_world())
        except ClosedError as error:
            if error.outcome == "succeeded":
                logger.info("%s; this node was not needed and exits with status 0", error)
                self._events.record("next_rendezvous", str(error), NodeState.SUCCEEDED)
                raise SystemExit(0) from None
            self._failed("next_rendezvous", error)
            raise as_torch_error(error) from None
        except (RendezvousError, OSError) as error:
            self._failed("next_rendezvous", error)
            raise as_torch_error(error) from None
        except RendezvousConnectionError as error:
            self._failed("next_rendezvous", error)
            raise
        return info

    def num_nodes_waiting(self) -> int:
        """Returns 1 if the agent must restart its workers, because the world is about to change or the run was closed
        without success, and 0 otherwise. Sends no request."""
        node = self._node
        if node is None:
            return 0
        waiting = node.num_nodes_waiting()
        if waiting and not self._told_change:
            self._told_change = True
            # torch's own log line reports every change as "new nodes".
            logger.info("the workers %s: %s", "restart" if node.closed is None else "stop", _why(node))
        return waiting

    def is_closed(self) -> bool:
        """Returns whether the run is closed, as far as this node knows."""
        return self._done is not None or (self._node is not None and self._node.closed is not None)

    def set_closed(self) -> None:
        """Closes the run for every node.

        Raises:
            RendezvousConnectionError: The service did not acknowledge the closing within `close_timeout`.
        """
        if self._done is not None:
            return
        try:
            self._done = self._set_closed()
        except ClosedError:
            self._done = True
        except (RendezvousError, OSError) as error:
            self._events.failed("set_closed", error)
            raise as_torch_error(error) from None
        finally:
            self._master.release()
            self._membership.release()
        if self._done:
            message = f"The node '{self._settings.node_name}' has closed the rendezvous '{self.get_run_id()}'."
            self._events.record("set_closed", message, NodeState.SUCCEEDED)
        else:
            raise RendezvousConnectionError(
                f"run `{self.get_run_id()}` was not closed: either this node is no longer in it, or the service did not "
                f"acknowledge the closing within `close_timeout`, which is {self._settings.close_timeout_seconds:g} s"
            )

    def shutdown(self) -> bool:
        """Ends this node's part in the run.

        Closes the run as succeeded if all nodes have arrived at the exit barrier. Closes it as failed if
        `on_node_failure` is `close` and the workers of this node failed: a `ChildFailedError` is being handled, or
        torch's agent ends without an exception before the exit barrier. Otherwise only this node leaves. Idempotent,
        takes at most `close_timeout` (30 s), and raises only because of a signal.

        Returns:
            Whether the service acknowledged the closing or the departure.
        """
        if self._done is None and self._membership.is_of_this_process:
            try:
                self._done = self._shutdown(self._in_flight())
            except RendezvousError as error:
                logger.warning("cannot leave run `%s`: %s", self.get_run_id(), error)
                self._events.failed("shutdown", error)
                self._done = False
            finally:
                self._master.release()
                self._membership.release()
        return bool(self._done)

    def _next_world(self) -> _core.World:
        if self._done is not None:
            raise ClosedError(f"this node has left run `{self.get_run_id()}`, because its handler was shut down")
        self._membership.handle_signals(torch_signals(), end_agent)
        port = self._master.listen()
        node = self._node or self._join()
        if self._settings.leave_on_signal:
            # Each time, because torch sets its own handlers when it starts workers.
            self._membership.announce_signals(ending_signals())
        return node.next_world(port=port).wait()

    def _join(self) -> _core.Node:
        node = self._membership.join()
        for name, reason in self._settings.ignored:
            logger.info("`%s` has no effect here: %s", name, reason)
        return node

    def _set_closed(self) -> bool:
        node = self._node
        if node is None:
            # Joining a closed run would begin a new life.
            if self._is_closed_already():
                return True
            node = self._join()
            self._wait_for_a_life(node)
        return node.close("ended", why="closed by the program").wait()

    def _wait_for_a_life(self, node: _core.Node) -> None:
        # A node closes the life that it is in. Before it knows its life, it cannot close the run.
        try:
            node.wait_begun(timeout_seconds=self._settings.close_timeout_seconds).wait()
        except JoinTimeoutError:
            logger.debug("run `%s` has not begun within `close_timeout`", self.get_run_id())

    def _is_closed_already(self) -> bool:
        limit_seconds = min(_STATUS_SECONDS, self._settings.close_timeout_seconds)
        try:
            run = json.loads(_core.status(self._settings, timeout_seconds=limit_seconds).wait())
        except UnreachableError as error:
            # If this node hosts the embedded server, the server does not run yet. Otherwise, joining fails as well.
            logger.debug("run `%s` could not be read before it is closed: %s", self.get_run_id(), error)
            return False
        facts = run["run"]
        return facts["closed"] is not None and facts["closed"]["life"] == facts["life"]

    def _enter(self, world: _core.World) -> RendezvousInfo:
        node = self._node
        assert node is not None
        store = LatticeStore(world.store_put_back(), node, rank=world.rank, size=world.size, round_number=world.round)
        # The previous store was kept until now, because workers of the previous round may have used it while they stopped.
        self._store = store
        if world.rank == 0 and self.use_agent_store:
            store.exchange.on_local_size = lambda local_size: allow_open_files(world.size * local_size)
            try:
                self._master.serve(world)
            except (RuntimeError, OSError) as error:
                raise RendezvousConnectionError(
                    f"rank 0's agent could not serve the workers' store on port {world.master_port}: {error}"
                ) from None
        else:
            self._master.release()
        _logs.note_origin(round=world.round)
        message = (
            f"The node '{self._settings.node_name}' has joined round {world.round} of the rendezvous "
            f"'{self.get_run_id()}' as rank {world.rank} in a world of size {world.size}."
        )
        endpoint = f"{world.master_address}:{world.master_port}"
        self._events.record("next_rendezvous", message, rank=world.rank, master_endpoint=endpoint)
        return RendezvousInfo(
            store, world.rank, world.size, RendezvousStoreInfo(world.master_address, world.master_port)
        )

    def _shutdown(self, in_flight: BaseException | None) -> bool:
        node, store = self._node, self._store
        if node is None:
            return True
        limit_seconds = self._settings.close_timeout_seconds
        began = time.monotonic()
        progress = _progress(store, timeout_seconds=min(_BARRIER_CHECK_SECONDS, limit_seconds))
        limit_seconds = max(0.0, limit_seconds - (time.monotonic() - began))
        match verdict(progress, in_flight, on_node_failure=self._settings.on_node_failure):
            case Verdict.SUCCEEDED:
                call = node.close("succeeded", timeout_seconds=limit_seconds)
                end, state = "has closed", NodeState.SUCCEEDED
            case Verdict.FAILED:
                call = node.close("failed", why=failure(in_flight), timeout_seconds=limit_seconds)
                end, state = "has closed, because its workers failed,", NodeState.FAILED
            case Verdict.LEAVE:
                call = node.leave(timeout_seconds=limit_seconds)
                end, state = "has left", NodeState.SUCCEEDED
        acknowledged = call.wait()
        message = f"The node '{self._settings.node_name}' {end} the rendezvous '{self.get_run_id()}'."
        self._events.record("shutdown", message, state)
        return acknowledged

    def _failed(self, method: str, error: Exception) -> None:
        if launcher.is_torchrun():
            # torchrun prints a traceback of some 40 lines, whose last line has the message.
            logger.error("%s", error)
        self._events.failed(method, error)

    def _in_flight(self) -> BaseException | None:
        error = sys.exc_info()[1]
        is_earlier = self._earlier is not None and self._earlier() is error
        return None if is_earlier else error


def _progress(store: LatticeStore | None, *, timeout_seconds: float) -> Progress:
    if store is None:
        return Progress.NO_ROUND
    if store.exit_barrier.asked:
        full = store.exit_barrier.is_full(timeout_seconds=timeout_seconds)
        return Progress.ALL_ARRIVED if full else Progress.ARRIVED
    # With this variable, torch's agent skips the exchange.
    identical = os.environ.get("TORCH_ELASTIC_WORKER_IDENTICAL", "0") == "1"
    return Progress.WORKERS if store.exchange.is_used or identical else Progress.NO_AGENT


def _why(node: _core.Node) -> str:
    closed = node.closed
    if closed is not None:
        return f"the run was closed as {closed.outcome} by {closed.by}" + (f": {closed.why}" if closed.why else "")
    change = node.change
    return change.why if change is not None else "the world is about to change"
