"""`lattice-rdzv status`, as a person or a script meets it."""

import json

import pytest
from harness.service import Service

from lattice_rdzv import _core
from lattice_rdzv.cli import main, status


def test_a_run_is_shown_with_its_nodes_and_rounds(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "run_id": "shown",
        "nnodes": "1",
        "endpoint": etcd.endpoint,
        "node_name": "node-7",
        "local_addr": "127.0.0.1",
    }
    node = _core.Node.join(_core.Settings(given, {}), port=29507)
    try:
        node.next_world(timeout_seconds=30.0)
        assert main(["status", "shown", "--endpoint", etcd.endpoint, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [node["name"] for node in document["nodes"]] == ["node-7"]
        assert document["history"][-1]["names"] == ["node-7"]
        assert main(["status", "shown", "--endpoint", etcd.endpoint]) == 0
        told = capsys.readouterr().out
        assert "node-7" in told
        assert "rank 0" in told
    finally:
        node.leave(timeout_seconds=5.0)


def test_a_run_that_is_not_there_is_told(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "nowhere", "--endpoint", etcd.endpoint]) == 1
    assert capsys.readouterr().err.rstrip().endswith(": nowhere")


def test_status_wants_to_know_which_run(capsys: pytest.CaptureFixture[str]) -> None:
    # Nobody is asked: nobody listens on the discard port of this machine.
    assert main(["status", "--endpoint", "127.0.0.1:9"]) == 2
    assert "LATTICE_RDZV_ID" in capsys.readouterr().err


def test_a_rank_is_shown_as_the_service_has_it() -> None:
    nodes = [
        {"id": "a", "name": "node-1", "address": "10.0.0.1", "port": 7, "rank": 1, "leaving": False},
        {"id": "b", "name": "node-2", "address": "10.0.0.2", "port": 8, "rank": None, "leaving": False},
        {"id": "c", "name": "node-3", "address": "10.0.0.3", "port": 9, "rank": 0, "leaving": True},
    ]
    told = status.describe({"life": "l", "round": 4, "nodes": nodes}, "job").splitlines()
    shown = {line.split()[0]: line for line in told if "node-" in line}
    assert "rank 1" in shown["node-1"]
    assert "spare or seeking" in shown["node-2"]
    assert "leaving" in shown["node-3"]
    assert "rank" not in shown["node-3"]


def test_a_closed_run_says_who_closed_it_and_why() -> None:
    document = {"life": "l", "round": 3, "closed": {"outcome": "failed", "by": "node-2", "why": "exit code 1"}}
    told = status.describe(document, "job")
    assert "closed as failed by node-2: exit code 1" in told


def test_records_that_cannot_be_read_are_left_out_and_named(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    node = {"version": 1, "address": "a", "port": 1, "topology": None, "min": 1, "max": 1, "seeks": 1, "world": None}
    prefix = "/lattice/rdzv/default/spoilt/"
    for key, value in [
        ("ctl/round", b"rubbish"),
        ("nodes/00000000000000aa", b"rubbish"),
        ("nodes/00000000000000ab", json.dumps({**node, "leaving": False, "name": "n" * 1_000_000}).encode()),
        ("nodes/00000000000000ac", json.dumps({**node, "leaving": False, "name": "good\x1b[2J"}).encode()),
    ]:
        etcd.put(prefix + key, value)
    try:
        assert main(["status", "spoilt", "--endpoint", etcd.endpoint]) == 0
        told = capsys.readouterr().out
    finally:
        etcd.delete(prefix)
    assert "good\\u{1b}[2J" in told
    assert "\x1b" not in told
    assert len(told) < 2_000
    assert "3 records cannot be read" in told
    assert all(f"{prefix}{key}`" in told for key in ("ctl/round", "nodes/00000000000000aa", "nodes/00000000000000ab"))
