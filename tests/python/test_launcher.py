"""The options that the plugin reads from torchrun's command line, as torchrun itself parses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry as registry
from torch.distributed.run import main

from lattice_rdzv.torch import launcher


class _CreatedError(Exception):
    """Ends torchrun once it has asked for a handler."""


@pytest.fixture
def created() -> Iterator[list[RendezvousParameters]]:
    """Registers a backend `records` that keeps the parameters of torchrun, and the node index that the real backend would use."""
    seen: list[RendezvousParameters] = []

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        parameters.config["index"] = launcher.node_rank()
        parameters.config["is_torchrun"] = launcher.is_torchrun()
        seen.append(parameters)
        raise _CreatedError

    registry.register("records", create)
    yield seen
    del registry._registry["records"]


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        ((), ("train.py",), None),
        ((), ("train.py", "--node-rank", "5"), None),
        (("--node-rank", "0"), ("train.py",), 0),
        (("--node_rank=3",), ("train.py", "--node-rank", "5"), 3),
        (("--node-r", "2", "--no-python"), ("train.py", "train.py"), 2),
        (("--node-ra=1", "-m"), ("package.train", "--", "--node-rank=7"), 1),
    ],
)
def test_node_rank_is_the_one_on_torchruns_command_line(
    created: list[RendezvousParameters],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    script: tuple[str, ...],
    expected: int | None,
) -> None:
    monkeypatch.setattr(sys, "argv", ["torchrun", "--rdzv-backend", "records", "--nnodes", "2", *options, *script])
    with pytest.raises(_CreatedError):
        main()
    assert [(one.config["index"], one.config["is_torchrun"]) for one in created] == [(expected, True)]


def test_node_rank_of_the_program_is_not_torchruns(
    created: list[RendezvousParameters], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--node-rank", "4", "other.py"])
    with pytest.raises(_CreatedError):
        main(["--rdzv-backend", "records", "--nnodes", "2", "train.py"])
    assert [one.config["index"] for one in created] == [None]


def test_negative_node_rank_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--rdzv-backend", "lattice", "--rdzv-endpoint", "etcd:2379", "--rdzv-id", "run", "--nnodes", "2")
    monkeypatch.setattr(sys, "argv", ["torchrun", *options, "--node-rank", "-1", "train.py"])
    with pytest.raises(ValueError, match="`--node-rank` must be 0 or more, but is `-1`"):
        main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rdzv-endpoint", "/tmp/file"), "it has a path: `/tmp/file`"),
        (("--rdzv-endpoint", "127.0.0.1:9", "--rdzv-conf", "is_host=0,connect_timeout=1"), "tried for 1 s"),
    ],
    ids=["settings", "service"],
)
def test_error_is_logged_before_torchruns_traceback(options: tuple[str, ...], message: str) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "1:1",
        "--rdzv-backend",
        "lattice",
    ]
    done = subprocess.run([*command, "--rdzv-id", "job", *options, "train.py"], capture_output=True, text=True)
    assert done.returncode == 1
    before, traceback, after = done.stderr.partition("Traceback (most recent call last)")
    assert traceback
    assert before.count(message) == 1, done.stderr
    assert message in after.splitlines()[-1], done.stderr
