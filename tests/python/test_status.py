"""`lattice-rdzv status`, as users and scripts run it."""

import json

import pytest
from conftest import JoinNode
from harness.service import Service

import lattice_rdzv
from lattice_rdzv import _core
from lattice_rdzv.cli import main, status
from lattice_rdzv.types import NodeStatus, RunStatus


def test_a_run_is_shown_with_its_nodes_and_rounds(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "run_id": "shown",
        "nnodes": "1",
        "endpoint": etcd.endpoint,
        "node_name": "node-7",
        "local_addr": "127.0.0.1",
    }
    node = _core.Node.join(_core.Settings(given, {}), port=29507).wait()
    try:
        node.next_world(timeout_seconds=30.0).wait()
        assert main(["status", "shown", "--endpoint", etcd.endpoint, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [node["name"] for node in document["nodes"]] == ["node-7"]
        assert document["history"][-1]["names"] == ["node-7"]
        assert main(["status", "shown", "--endpoint", etcd.endpoint]) == 0
        told = capsys.readouterr().out
        assert "node-7" in told
        assert "rank 0" in told
    finally:
        node.leave(timeout_seconds=5.0).wait()


def test_a_missing_run_is_an_error(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "nowhere", "--endpoint", etcd.endpoint]) == 1
    assert capsys.readouterr().err.rstrip().endswith(": nowhere")


def test_a_missing_run_id_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    # No server listens on the discard port, and none is needed.
    assert main(["status", "--endpoint", "127.0.0.1:9"]) == 2
    assert "LATTICE_RDZV_ID" in capsys.readouterr().err


def test_each_node_is_shown_with_its_state() -> None:
    nodes = [
        {"id": "a", "name": "node-1", "address": "10.0.0.1", "port": 7, "rank": 1, "leaving": False},
        {"id": "b", "name": "node-2", "address": "10.0.0.2", "port": 8, "rank": None, "leaving": False},
        {"id": "c", "name": "node-3", "address": "10.0.0.3", "port": 9, "rank": 0, "leaving": True},
    ]
    told = status.describe({"life": "l", "round": 4, "size": 2, "max_nodes": 2, "nodes": nodes}, "job").splitlines()
    shown = {line.split()[0]: line for line in told if "node-" in line}
    assert "rank 1" in shown["node-1"]
    assert "spare" in shown["node-2"]
    assert "leaving" in shown["node-3"]
    assert "rank" not in shown["node-3"]


RUNNING = {"life": "l", "round": 3, "phase": "running", "size": 2, "min_nodes": 2, "max_nodes": 3}
WAITING = [{"id": name, "name": name, "rank": None, "leaving": False} for name in ("a", "b")]


@pytest.mark.parametrize(
    ("document", "headline", "state"),
    [
        (
            {**RUNNING, "round": 0, "phase": "forming", "size": 0},
            "waiting for the first round (2 of at least 2 nodes)",
            "",
        ),
        (RUNNING, "running round 3 (2 of at most 3 nodes)", "waiting for the next round"),
        ({**RUNNING, "max_nodes": 2}, "running round 3 (2 of at most 2 nodes)", "spare"),
        (
            {**RUNNING, "max_nodes": 2, "change": {"kind": "lost", "why": "lost node-9"}},
            "waiting for the round after round 3 (2 nodes, at least 2 needed)",
            "waiting for the next round",
        ),
        ({**RUNNING, "phase": "restoring"}, "restoring round 3 (2 of 2 nodes)", "waiting for the next round"),
        (
            {**RUNNING, "closed": {"outcome": "succeeded", "by": "a"}},
            "closed as succeeded by a",
            "not in the last round",
        ),
    ],
)
def test_the_headline_and_the_states_agree(document: dict[str, object], headline: str, state: str) -> None:
    lines = status.describe({**document, "nodes": WAITING}, "job").splitlines()
    assert lines[0] == f"Run job: {headline}"
    rows = [line for line in lines if line.split()[:1] in (["a"], ["b"])]
    assert len(rows) == 2
    assert all((state or "waiting for the first round") in row for row in rows)


def test_a_closed_run_shows_the_node_that_closed_it_and_the_reason() -> None:
    document = {"life": "l", "round": 3, "closed": {"outcome": "failed", "by": "node-2", "why": "exit code 1"}}
    told = status.describe(document, "job")
    assert told.startswith("Run job: closed as failed by node-2: exit code 1")
    assert "running" not in told


def test_unreadable_records_are_left_out_and_named(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    node = {"version": 1, "address": "a", "port": 1, "topology": None, "min": 1, "max": 1, "seeks": 1, "world": None}
    prefix = "/lattice/rdzv/default/spoiled/"
    for key, value in [
        ("ctl/round", b"rubbish"),
        ("nodes/00000000000000aa", b"rubbish"),
        ("nodes/00000000000000ab", json.dumps({**node, "leaving": False, "name": "n" * 1_000_000}).encode()),
        ("nodes/00000000000000ac", json.dumps({**node, "leaving": False, "name": "good\x1b[2J"}).encode()),
    ]:
        etcd.put(prefix + key, value)
    try:
        assert main(["status", "spoiled", "--endpoint", etcd.endpoint]) == 0
        told = capsys.readouterr().out
    finally:
        etcd.delete(prefix)
    assert "good\\u{1b}[2J" in told
    assert "\x1b" not in told
    assert len(told) < 2_000
    assert "3 records cannot be read" in told
    assert all(f"{prefix}{key}`" in told for key in ("ctl/round", "nodes/00000000000000aa", "nodes/00000000000000ab"))


def test_status_is_public(join: JoinNode, etcd: Service, run_id: str) -> None:
    join("node-1", nnodes=1).next_world()
    report = lattice_rdzv.status(run_id, endpoint=etcd.endpoint)
    assert set(report) == set(RunStatus.__annotations__)
    assert set(report["nodes"][0]) == set(NodeStatus.__annotations__)
    assert (report["size"], [node["name"] for node in report["nodes"]]) == (1, ["node-1"])
    with pytest.raises(lattice_rdzv.SettingsError, match="lease_ttl"):
        lattice_rdzv.status(run_id, endpoint=etcd.endpoint, lease_tll="5")  # type: ignore[call-arg]
