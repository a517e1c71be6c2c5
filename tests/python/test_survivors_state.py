"""The state of survivors: its source, its hash, and invalid states."""

from __future__ import annotations

import enum
import os
import socket
import subprocess
import sys
import textwrap
import threading
from datetime import timedelta
from pathlib import Path

import numpy
import pytest
import torch
import torch.distributed as dist
from harness.service import Service
from torch._C._distributed_c10d import HashStore

from lattice_rdzv.torch.elastic import State, sockets
from lattice_rdzv.torch.elastic.backend import backend_of
from lattice_rdzv.torch.elastic.connecting import Breaker, connecting
from lattice_rdzv.torch.elastic.hashing import hash_tensor
from lattice_rdzv.torch.elastic.job import Failures, Place, _place
from lattice_rdzv.torch.elastic.state import _take, decode, describe, encode
from lattice_rdzv.torch.elastic.transfer import Plan, Row, plan


def row(*, valid: int = 1, step: int = 5, samples: int = 50, digest: int = 1) -> Row:
    return Row(valid, step, samples, digest, digest)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(), row()], Plan(0, [])),
        # Equal progress is not equal content.
        ([row(), row(digest=2)], Plan(0, [1])),
        ([row(step=4), row(step=6), row(step=6)], Plan(1, [0])),
        ([row(samples=40), row()], Plan(1, [0])),
        # An invalid member is never the source, however advanced it is.
        ([row(step=9, valid=0), row()], Plan(1, [0])),
        ([row(valid=0), row(valid=0)], None),
    ],
)
def test_most_advanced_valid_member_sends_its_state(rows: list[Row], expected: Plan | None) -> None:
    assert plan(rows) == expected


def test_hash_depends_on_each_byte_and_its_position() -> None:
    content = torch.arange(1000, dtype=torch.float32)
    first = hash_tensor(content)
    for position in (0, 1, 499, 999):
        changed = content.clone()
        changed[position] += 1
        assert hash_tensor(changed) != first
    assert hash_tensor(content.flip(0)) != first
    assert hash_tensor(content.clone()) == first
    assert hash_tensor(torch.zeros(3)) != hash_tensor(torch.zeros(4))
    for dtype in (torch.bool, torch.int8, torch.bfloat16, torch.complex64):
        assert hash_tensor(torch.ones(3, dtype=dtype)) == hash_tensor(torch.ones(3, dtype=dtype))


def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, State]:
    torch.manual_seed(steps)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    state = State(model=model, optimizer=optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        state.advance(samples=5)
    return model, optimizer, state


def test_state_that_was_sent_equals_the_original() -> None:
    _, _, source = trained(3)
    model, _, receiver = trained(0)
    assert source.digest() != receiver.digest()
    tree, tensors = source.parts()
    copies = [tensor.detach().clone() for tensor in tensors]
    receiver.replace(decode(encode(tree)), copies, step=source.step, samples=source.samples)
    assert receiver.row() == source.row()
    assert (receiver.step, receiver.samples) == (3, 15)
    model(torch.randn(5, 3)).sum().backward()
    receiver.discard_step()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_order_of_a_dictionary_does_not_count() -> None:
    assert describe({"a": 1, "b": (2, 3.0)}) == describe({"b": (2, 3.0), "a": 1})
    assert describe({"a": 1}) != describe({"a": 1.0})


def test_part_that_cannot_be_sent_is_an_error_with_its_place() -> None:
    class Part:
        def state_dict(self) -> object:
            return {"inner": [object()]}

        def load_state_dict(self, state_dict: object) -> None:
            pass

    with pytest.raises(TypeError, match=r"`part\.inner\[0\]` cannot be sent.*`object`"):
        State(part=Part()).digest()
    with pytest.raises(TypeError, match="`model` must have `state_dict`"):
        State(model=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be 0 or more, but are -1"):
        State().advance(samples=-1)


def test_other_backends_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`group_backend` must be `gloo`, but is `nccl`"):
        backend_of("nccl")


def test_place_of_a_process_follows_from_its_launcher() -> None:
    assert _place({}, "host") == Place(None, None, None)
    assert _place({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, "host") == Place("host/2", "host", 2)
    machine = {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "3"}
    assert _place(machine, "host") == Place("host/2", "host", 14)


def test_only_the_connections_of_a_group_are_shut_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        earlier = [socket.create_connection(server.getsockname()), server.accept()[0]]
        group = sockets.GroupSockets()
        # Sockets of Python are not inherited, those of gloo are.
        private = [socket.create_connection(server.getsockname()), server.accept()[0]]
        own = [socket.create_connection(server.getsockname()), server.accept()[0]]
        for each in own:
            each.set_inheritable(True)
        assert group.find() == 2
        assert not any(each.get_inheritable() for each in own), "programs do not inherit them from here on"
        # Another file gets the number of one that was closed.
        number = own[1].detach()
        os.close(number)
        reused = os.open("/dev/null", os.O_RDONLY)
        assert group.shut_down() == 1
        assert own[0].recv(1) == b""
        for one, other in (earlier, private):
            one.sendall(b"x")
            assert other.recv(1) == b"x"
        os.close(reused)
        for each in (*earlier, *private, own[0]):
            each.close()


def test_connection_that_is_closed_while_it_is_recorded_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class ClosedMeanwhile(sockets._duplicate):
        def __enter__(self) -> socket.socket | None:
            found = super().__enter__()
            if self._descriptor == number:
                # As a thread of gloo does, which does not wait for the GIL.
                os.close(number)
            return found

    with socket.create_server(("127.0.0.1", 0)) as server:
        group = sockets.GroupSockets()
        own = [socket.create_connection(server.getsockname()), server.accept()[0]]
        for each in own:
            each.set_inheritable(True)
        number = own[1].detach()
        with monkeypatch.context() as context:
            context.setattr(sockets, "_duplicate", ClosedMeanwhile)
            assert group.find() == 2
        assert group.shut_down() == 1
        own[0].close()


class Level(enum.IntEnum):
    HIGH = 3


def test_forming_ends_with_the_world_and_the_next_group_forms() -> None:
    """As before torch 2.9, where gloo would wait for the missing rank until its own limit."""
    broken = Breaker()
    store = HashStore()
    store.set_timeout(timedelta(seconds=5))
    threading.Timer(0.2, broken.set).start()
    with (
        pytest.raises(RuntimeError, match="gloo did not connect all ranks"),
        connecting(broken, timedelta(seconds=60)),
    ):
        dist.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=timedelta(seconds=5))
    assert not dist.is_initialized()
    with connecting(Breaker(), timedelta(seconds=60)):
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        # With TORCH_DISTRIBUTED_DEBUG=DETAIL, torch makes two groups of gloo for one.
        dist.new_group([0], backend="gloo")
    assert dist.get_backend() == "gloo"
    dist.destroy_process_group()


def test_value_of_a_subclass_is_sent_as_a_plain_one() -> None:
    """A scheduler that computes with NumPy has such values. The receiver creates no objects of other classes."""
    taken = _take({"lr": numpy.float64(0.5), "level": Level.HIGH, "is_last": True, "none": None}, "scheduler", [])
    assert decode(encode(taken)) == {"lr": 0.5, "level": 3, "is_last": True, "none": None}


def test_failure_of_the_group_that_repeats_without_a_step_is_the_programs() -> None:
    failures = Failures()
    assert [failures.repeats(step) for step in (1, 1, 2, 2, 2, 2, 2)] == [False] * 6 + [True]


def test_forked_child_holds_no_connection_of_the_group() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        group = sockets.GroupSockets()
        own = [socket.create_connection(server.getsockname()), server.accept()[0]]
        for each in own:
            each.set_inheritable(True)
        assert group.find() == 2
        child = os.fork()
        if child == 0:
            try:
                os.fstat(own[0].fileno())
            except OSError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        for each in own:
            each.close()


ALONE = """
    import torch
    from lattice_rdzv.torch import elastic
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = elastic.State(model=model, optimizer=optimizer, in_place=True)
    def train(world, ddp):
        while state.step < 3:
            world.begin_step()
            ddp(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            state.advance(samples=1)
    job = elastic.join({run_id!r}, nnodes=1, endpoint={endpoint!r}, local_address="127.0.0.1")
    build = lambda world: world.ddp(model)
"""


def test_forked_child_of_a_step_ends_on_sigterm(etcd: Service, run_id: str, tmp_path: Path) -> None:
    source = """
    import multiprocessing, time
    def load(ready):
        ready.set()
        time.sleep(600)
    def train(world, ddp):
        fork = multiprocessing.get_context("fork")
        ready = fork.Event()
        child = fork.Process(target=load, args=(ready,), daemon=True)
        child.start()
        # Python discards a signal that arrives while the child is being forked.
        ready.wait()
        child.terminate()
        child.join(30)
        print("ended with", child.exitcode)
        child.kill()
    job.run(state, train, build=build)
    """
    assert "ended with -15" in run_alone(etcd, run_id, source, tmp_path)


def run_alone(service: Service, run_id: str, source: str, folder: Path) -> str:
    begin = textwrap.dedent(ALONE).format(run_id=run_id, endpoint=service.endpoint)
    program = folder / "program.py"
    program.write_text(begin + textwrap.dedent(source))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_state_is_lost_when_no_member_has_a_valid_one(etcd: Service, run_id: str, tmp_path: Path) -> None:
    said = run_alone(
        etcd,
        run_id,
        """
        state.invalidate()
        with job:
            try:
                job.run(state, train, build=build)
            except elastic.StateLost as error:
                print(error)
                state.restored(step=1, samples=10)
                job.run(state, train, build=build)
        print(state.step, state.samples, job.rendezvous.closed.outcome)
        """,
        tmp_path,
    )
    assert "none of the 1 members of this world has a valid state" in said
    assert said.splitlines()[-1] == "3 12 succeeded"


def test_error_of_the_program_is_raised_as_it_is(etcd: Service, run_id: str, tmp_path: Path) -> None:
    said = run_alone(
        etcd,
        run_id,
        """
        def fail(world, ddp):
            raise RuntimeError("out of memory")
        try:
            with job:
                job.run(state, fail, build=build)
        except RuntimeError as error:
            print(type(error).__name__, error)
        print(torch.distributed.is_initialized(), job.rendezvous.state)
        """,
        tmp_path,
    )
    assert said == "RuntimeError out of memory\nFalse left\n"
