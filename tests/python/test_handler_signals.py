"""Signals: which signals the node announces to its peers, and which handlers are not replaced."""

from __future__ import annotations

import os
import signal
import time

import pytest
from harness.handlers import MakeHandler, leave
from harness.together import Pending
from harness.wait import wait_for
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
)


def test_signal_ends_the_wait_with_torchs_exception(make: MakeHandler) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    handler = make(min_nodes=2, max_nodes=2)

    def interrupt() -> None:
        wait_for("a handler is installed", lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    Pending(interrupt)
    # Without the signal, the wait would time out.
    with pytest.raises(SignalException) as caught:
        handler.next_rendezvous()
    assert caught.value.sigval == signal.SIGTERM
    leave(handler)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_handler_of_the_application_is_not_replaced(make: MakeHandler) -> None:
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        handler = make()
        handler.next_rendezvous()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for("the application receives the signal", lambda: received)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_signal_that_the_application_handles_is_not_announced(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    received: list[int] = []

    def is_announced() -> bool:
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for("the application receives the signal", lambda: received)
        received.clear()
        return bool(nodes_waiting(second, within_seconds=1.0))

    signal.signal(signal.SIGHUP, lambda number, frame: received.append(number))
    try:
        pending = Pending(second.next_rendezvous)
        first.next_rendezvous()
        pending.result()
        assert not is_announced()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_announced_signals_are_updated_each_round(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch installs its own handler when it starts workers. The exception of that handler must not end this test.
    from torch.distributed.elastic.multiprocessing import api

    monkeypatch.setattr(api, "_terminate_process_handler", lambda number, frame: None)
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGUSR1")
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        for _ in range(2):
            pending = Pending(second.next_rendezvous)
            first.next_rendezvous()
            pending.result()
            signal.signal(signal.SIGUSR1, api._terminate_process_handler)
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for("the signal is announced", second.num_nodes_waiting)
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_earlier_wakeup_descriptor_may_be_closed(make: MakeHandler) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    handler = make()
    try:
        handler.next_rendezvous()
    finally:
        os.close(writing)
        os.close(reading)
    assert leave(handler)
    assert signal.set_wakeup_fd(-1) == -1


def test_wakeup_descriptor_that_is_already_closed_ends_no_rendezvous(make: MakeHandler) -> None:
    reading, writing = os.pipe()
    # A high number, so that no other file gets it meanwhile.
    high = os.dup2(writing, 900)
    os.set_blocking(high, False)
    signal.set_wakeup_fd(high)
    for descriptor in (high, writing, reading):
        os.close(descriptor)
    handler = make()
    assert handler.next_rendezvous().world_size == 1
    assert leave(handler)
    assert signal.set_wakeup_fd(-1) == -1


def test_replaced_descriptor_is_set_again(make: MakeHandler) -> None:
    handler = make()
    handler.next_rendezvous()
    ours = signal.set_wakeup_fd(-1)
    assert ours != -1
    handler.next_rendezvous()
    assert signal.set_wakeup_fd(-1) != -1


def test_two_handlers_may_end_in_the_order_in_which_they_were_made(make: MakeHandler, run_id: str) -> None:
    first, second = make("node-1"), make("node-1", run_id=f"{run_id}-2")
    first.next_rendezvous()
    second.next_rendezvous()
    leave(first)
    leave(second)
    assert signal.set_wakeup_fd(-1) == -1


def test_earlier_wakeup_descriptor_still_receives_signals(make: MakeHandler) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        handler = make()
        handler.next_rendezvous()
        os.kill(os.getpid(), signal.SIGUSR1)

        def read() -> bytes:
            try:
                return os.read(reading, 16)
            except BlockingIOError:
                return b""

        assert wait_for("the byte arrives", read) == bytes([signal.SIGUSR1])
        leave(handler)
        assert signal.set_wakeup_fd(-1) == writing
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        os.close(reading)
        os.close(writing)


def nodes_waiting(handler: RendezvousHandler, *, within_seconds: float) -> int:
    """Returns `num_nodes_waiting`, and waits for a number above 0, which announces a change of the world."""
    deadline = time.monotonic() + within_seconds
    while not handler.num_nodes_waiting() and time.monotonic() < deadline:
        time.sleep(0.02)
    return handler.num_nodes_waiting()
