"""The values that the API returns, and the documentation of its names."""

from __future__ import annotations

import inspect
import multiprocessing
import multiprocessing.connection
import pickle
from typing import Any

import pytest
from conftest import JoinNode
from harness.together import together
from harness.wait import wait_for

import lattice_rdzv
from lattice_rdzv import aio
from lattice_rdzv.errors import LeftError

MEMBER = lattice_rdzv.Member(1, "node-1", "0a", "rack")
CHANGE = lattice_rdzv.Change(2, "lost", "lost node-1", ["node-1"])
CLOSED = lattice_rdzv.Closed("failed", "node-1", "out of memory")
WORLD = lattice_rdzv.World("run", "life", 2, 0, 4, "node-1", 29500, "all are here")


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (MEMBER, lattice_rdzv.Member(1, "node-1", "0a")),
        (CHANGE, lattice_rdzv.Change(2, "lost", "lost node-1", [])),
        (CLOSED, lattice_rdzv.Closed("failed", "node-1", "")),
        (WORLD, lattice_rdzv.World("run", "life", 2, 1, 4, "node-1", 29500, "all are here")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_compared_hashed_and_pickled(value: Any, other: Any) -> None:
    copy = pickle.loads(pickle.dumps(value))
    assert copy is not value
    assert copy == value
    assert hash(copy) == hash(value)
    assert {value, copy, other} == {value, other}
    assert value != other
    assert value != "something else"
    assert repr(copy) == repr(value)
    assert type(value).__module__ == "lattice_rdzv"


def test_node_returns_these_values(join: JoinNode) -> None:
    first, second = join("node-1"), join("node-2")
    worlds = together(first.next_world, second.next_world)
    members = worlds[0].members()
    assert members == worlds[1].members()
    assert members == [
        lattice_rdzv.Member(member.rank, member.name, member.node_id, member.topology) for member in members
    ]
    assert worlds[0] != worlds[1]
    copy = pickle.loads(pickle.dumps(worlds[0]))
    assert copy == worlds[0]
    with pytest.raises(LeftError, match="copy"):
        copy.members()
    second.close("failed", why="because")
    wait_for("node-1 knows that the run is closed", lambda: first.closed)
    assert first.closed == lattice_rdzv.Closed("failed", "node-2", "because")
    # The same values without the names of the fields, as in earlier versions.
    closed: Any = first.closed
    outcome, by, why = closed
    assert (outcome, by, why) == ("failed", "node-2", "because")


def test_repr_never_raises(join: JoinNode) -> None:
    run = join("node-1", nnodes=1)
    world = run.next_world()
    objects = [run, world, world.store, run.store, *world.members()]

    def represent(answers: multiprocessing.connection.Connection) -> None:
        answers.send([repr(one) for one in objects])

    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=represent, args=(theirs,))
    child.start()
    assert ours.poll(20)
    assert len(ours.recv()) == len(objects)
    child.join(20)
    run.leave()
    assert all(repr(one) for one in objects)


PUBLIC = [getattr(lattice_rdzv, name) for name in lattice_rdzv.__all__ if name not in ("__version__", "errors")]


@pytest.mark.parametrize(
    "public", [*PUBLIC, aio.Run, aio.Store, aio.World, aio.join], ids=lambda public: public.__qualname__
)
def test_names_are_documented_at_run_time(public: Any) -> None:
    assert public.__module__ in ("lattice_rdzv", "lattice_rdzv.errors", "lattice_rdzv.aio")
    assert inspect.getdoc(public)
    if inspect.isclass(public):
        for name in dir(public):
            if not name.startswith("_") and not hasattr(OSError, name):
                assert inspect.getdoc(getattr(public, name)), name
