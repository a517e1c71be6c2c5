"""`lattice-rdzv status`, as users and scripts run it, and `lattice_rdzv.status`."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import JoinNode
from harness.etcd import Etcd
from harness.service import Service
from harness.status import command, read, validated
from harness.together import together
from harness.wait import wait_for

import lattice_rdzv
from lattice_rdzv.cli import main, status_text, timeline
from lattice_rdzv.types import (
    AwaitedNode,
    ChangeStatus,
    FormedEvent,
    NextEvent,
    NodeState,
    NodeStatus,
    RunFacts,
    RunStatus,
    ServiceStatus,
    Verdict,
)

ROOT = Path(__file__).parents[2]


def test_run_is_shown_with_its_verdict_nodes_and_rounds(join: JoinNode, etcd: Service, run_id: str) -> None:
    join("node-7", nnodes=1).next_world()
    exit_status, status = read(run_id, etcd.endpoint)
    assert (exit_status, status.verdict.state, status.verdict.sentence) == (
        0,
        "formed",
        "round 1 runs with 1 node of at most 1",
    )
    assert [(node.name, node.state, node.rank) for node in status.nodes] == [("node-7", "member", 0)]
    assert status.rounds[-1].names == ("node-7",)
    assert status.run.coordinator is not None
    assert status.run.coordinator.last_seen is not None
    done = command("status", run_id, "--endpoint", etcd.endpoint)
    assert done.returncode == 0
    assert done.stdout.startswith(f"Run {run_id}: FORMED for ")
    assert "member, rank 0" in done.stdout


def test_command_and_python_show_one_structure(join: JoinNode, etcd: Service, run_id: str) -> None:
    join("node-1", nnodes=1).next_world()
    _, printed = read(run_id, etcd.endpoint)
    status = lattice_rdzv.status(run_id, endpoint=etcd.endpoint, timeout_seconds=30)
    # The coordinator renews its lease in between.
    assert replace(status.run, coordinator=None) == replace(printed.run, coordinator=None)
    assert (status.schema, status.rounds) == (1, printed.rounds)
    assert validated(json.dumps(asdict(status))) == status
    with pytest.raises(AttributeError):
        status.at = 0.0  # type: ignore[misc]
    with pytest.raises(lattice_rdzv.SettingsError, match="lease_ttl"):
        lattice_rdzv.status(run_id, endpoint=etcd.endpoint, lease_tll="5")  # type: ignore[call-arg]


def schema_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schemas", ROOT / "scripts" / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_schemas_in_the_repository_are_those_of_the_types() -> None:
    script = schema_script()
    for kind, path, title in script.DOCUMENTS:
        assert path.read_text() == script.text(kind, title), "run `python scripts/schemas.py`"


def test_missing_run_is_refused_with_the_nearest_name(join: JoinNode, own_etcd: Etcd) -> None:
    join("node-1", nnodes=1, run_id="llama-7b", endpoint=own_etcd.endpoint).next_world()
    join("node-1", nnodes=1, run_id="vision", endpoint=own_etcd.endpoint).next_world()
    for subcommand in (["status"], ["timeline"], ["drain"], ["close", "--outcome", "ended", "--why", "x"]):
        words = [subcommand[0], "lama-7b", *subcommand[1:], *(["node-1"] if subcommand == ["drain"] else [])]
        done = command(*words, "--endpoint", own_etcd.endpoint)
        assert done.returncode == 5, done
        assert "did you mean `llama-7b`?" in done.stderr
        assert "Traceback" not in done.stderr
    exit_status, status = read("lama-7b", own_etcd.endpoint)
    assert (exit_status, status.verdict.state) == (5, "absent")


def test_without_a_run_id_the_only_run_or_a_list_is_shown(join: JoinNode, own_etcd: Etcd) -> None:
    endpoint = own_etcd.endpoint
    for name in ("status", "timeline"):
        assert command(name, "--endpoint", endpoint).returncode == 5
    join("node-1", nnodes=1, run_id="first job/ä", endpoint=endpoint).next_world()
    done = command("status", "--endpoint", endpoint)
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "Run first job/ä")
    assert command("timeline", "--endpoint", endpoint).stdout.startswith("Run first job/ä: 1 round;")
    join("node-1", nnodes=2, run_id="second", endpoint=endpoint)
    done = command("status", "--endpoint", endpoint)
    assert done.returncode == 0
    rows = done.stdout.splitlines()
    # The most urgent run comes first.
    assert [row.split()[0] for row in rows] == ["RUN", "second", "first"]
    assert "forming" in rows[1]
    assert "formed" in rows[2]
    done = command("status", "--watch", "--endpoint", endpoint)
    assert (done.returncode, done.stdout) == (2, "")
    assert "name it, for example one of: first job/ä, second" in done.stderr
    done = command("timeline", "--endpoint", endpoint)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there are 2 runs of this tenant" in done.stderr
    assert "name one of them: first job/ä, second" in done.stderr
    listed = json.loads(command("status", "--all", "--json", "--endpoint", endpoint).stdout)
    assert [validated(json.dumps(one)).run.id for one in listed] == ["first job/ä", "second"]


def test_service_that_does_not_respond_has_a_status_of_its_own() -> None:
    # No server listens on the discard port.
    done = command("status", "job", "--endpoint", "127.0.0.1:9", "--json", "--timeout", "1")
    assert done.returncode == 8
    status = validated(done.stdout)
    assert (status.verdict.state, status.verdict.exit_status) == ("unreachable", 8)
    with pytest.raises(lattice_rdzv.UnreachableError):
        lattice_rdzv.status("job", endpoint="127.0.0.1:9", timeout_seconds=1)
    assert command("status", "--endpoint", "127.0.0.1:9", "--timeout", "1").returncode == 8


def test_wrong_usage_has_a_status_of_its_own() -> None:
    assert command("status", "job", "--no-such-option").returncode == 2
    assert command("status", "job", "--endpoint", "http://").returncode == 2
    assert command("close", "job").returncode == 2


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
        assert main(["status", "spoiled", "--endpoint", etcd.endpoint]) == 3
        told = capsys.readouterr().out
    finally:
        etcd.delete(prefix)
    assert "good\\u{1b}[2J" in told
    assert "\x1b" not in told
    assert len(told) < 2_000
    assert "3 records cannot be read" in told
    assert all(f"{prefix}{key}`" in told for key in ("ctl/round", "nodes/00000000000000aa", "nodes/00000000000000ab"))


def test_sign_of_life_of_a_node_is_shown_by_name(join: JoinNode, etcd: Service, run_id: str) -> None:
    first, second = join("a"), join("b")
    first.next_world()
    second.next_world()
    _, status = read(run_id, etcd.endpoint, "--node", "b")
    (node,) = (node for node in status.nodes if node.name == "b")
    assert node.last_seen is not None
    # etcd tells a lease's time in whole seconds.
    assert -1.0 <= status.at - node.last_seen <= 5.0


class Watch:
    """`status --watch`, with its output in a file or on a terminal."""

    def __init__(self, out: Path, *arguments: str, stdout: int | None = None) -> None:
        self.out = out
        with out.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lattice_rdzv.cli", "status", "--watch", *arguments],
                stdout=file if stdout is None else stdout,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "120", "LINES": "40"},
            )

    def lines(self) -> list[str]:
        return self.out.read_text().splitlines()

    def wait(self, text: str) -> None:
        wait_for(f"the watch prints `{text}`", lambda: text in self.out.read_text(), detail=self.out.read_text)


def test_watch_prints_one_line_for_each_change_in_a_pipe(
    join: JoinNode, etcd: Service, run_id: str, tmp_path: Path
) -> None:
    first = join("a", nnodes="2:3")
    watch = Watch(tmp_path / "out", run_id, "--endpoint", etcd.endpoint)
    watch.wait("waiting for 1 more node: 1 of at least 2 here (a)")
    join("b", nnodes="2:3")
    watch.wait("round 1 runs with 2 nodes")
    join("c", nnodes="2:3")
    watch.wait("a, b have not requested round 2 since the change was announced")
    first.close("failed", why="test")
    assert watch.process.wait(30) == 7, watch.out.read_text()
    lines = [line.split("  ", 1)[1] for line in watch.lines()]
    assert all(one != other for one, other in pairwise(lines)), lines
    assert lines[-1].startswith(f"closed: run `{run_id}` was closed as failed by `a`: test")


def test_watch_redraws_in_place_on_a_terminal(join: JoinNode, etcd: Service, run_id: str, tmp_path: Path) -> None:
    join("a", nnodes=1).next_world()
    terminal, slave = pty.openpty()
    watch = Watch(tmp_path / "unused", run_id, "--endpoint", etcd.endpoint, stdout=slave)
    os.close(slave)
    shown = b""

    def redrawn() -> bool:
        nonlocal shown
        shown += os.read(terminal, 65536)
        return shown.count(b"Run ") >= 3

    try:
        wait_for("the watch redraws", redrawn, detail=lambda: repr(shown))
    finally:
        watch.process.terminate()
        watch.process.wait()
        os.close(terminal)
    text = shown.decode()
    first, second = text.split("\x1b[J")[1:3]
    height = first.replace("\r", "").rstrip("\n").count("\n")
    assert f"\x1b[{height}F" in first or first.endswith(f"\x1b[{height}F"), repr(text)
    assert "member, rank 0" in second


def test_watching_writes_nothing(join: JoinNode, own_etcd: Etcd, tmp_path: Path) -> None:
    join("a", nnodes="1:2", run_id="quiet", endpoint=own_etcd.endpoint, lease_ttl=60).next_world()

    def contents() -> bytes:
        return own_etcd.etcdctl("get", "", "--from-key", "--write-out=json")

    def settled() -> bool:
        before = contents()
        read("quiet", own_etcd.endpoint)
        return before == contents()

    wait_for("the coordinator has written its times", lambda: own_etcd.get("/lattice/rdzv/default/quiet/clocks"))
    wait_for("the run is quiet", settled)
    before = contents()
    watch = Watch(tmp_path / "out", "quiet", "--endpoint", own_etcd.endpoint, "--json")
    wait_for("the watch has printed the run", watch.lines)
    for arguments in (["status", "quiet"], ["status", "--all"], ["timeline", "quiet"]):
        assert command(*arguments, "--endpoint", own_etcd.endpoint).returncode == 0
    watch.process.terminate()
    watch.process.wait()
    assert {validated(line).run.id for line in watch.lines()} == {"quiet"}
    assert contents() == before, "the revision and every key are as before"


def node(number: int, state: NodeState = "member", why: str | None = None) -> NodeStatus:
    rank = number if state in ("member", "told") else None
    return NodeStatus(
        f"n{number:04}", f"{number:016x}", rank, state, why, None, f"10.0.0.{number}", 1, "rack-1", None, None
    )


def status_of(*nodes: NodeStatus, state: str = "formed", **facts: object) -> RunStatus:
    verdict = Verdict(
        state=state,  # type: ignore[arg-type]
        exit_status=0,
        sentence="round 4 runs",
        reason="",
        since=940.0,
        waits_for=(),
        waits_for_count=0,
        next=None,
        command=None,
        notes=(),
    )
    run = RunFacts(
        id="job", tenant="default", life="l", phase="running", phase_since=None, round=4, size=len(nodes), min_nodes=1,
        max_nodes=2000, sizing=None, why=None, master_address=None, master_port=None, host=None, submission=None,
        change=None, closed=None, coordinator=None,
    )  # fmt: skip
    service = ServiceStatus("http://etcd:2379", "3.6.1", 0.003, True, ())
    counts: dict[NodeState, int] = {}
    for each in nodes:
        counts[each.state] = counts.get(each.state, 0) + 1
    status = RunStatus(1, verdict, 1000.0, service, run, counts, nodes, (), ())
    return replace(status, verdict=replace(verdict, **facts))  # type: ignore[arg-type]


def test_thousand_nodes_fit_on_a_screen_and_outliers_are_named() -> None:
    nodes = [node(number) for number in range(1000) if number not in (17, 500)]
    nodes += [node(17, "told", "it has not requested it"), node(500, "missing", "its lease ended")]
    text = status_text.describe(status_of(*nodes), width=100)
    assert len(text.splitlines()) < 30
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "998    member  n[0000-0016,0018-0499,0501-0999]" in text
    assert "n0017" in text
    assert "has not requested the next round, rank 17" in text
    assert "n0500" in text
    # Many equal nodes are one line, whatever their state.
    text = status_text.describe(
        status_of(*(node(number, "told", "it has not requested it") for number in range(500))), width=100
    )
    assert len(text.splitlines()) < 10
    assert "n[0000-0499]: it has not requested it" in text


def test_verdict_names_whom_since_when_and_what_happens_next() -> None:
    awaited = AwaitedNode("n17", "a", 17, 957.0, "its lease ended", 950.0)
    following = NextEvent("round 4 forms without n17", 1049.0, "rejoin_timeout")
    change = ChangeStatus("newcomers", "n18 wants to join", ("n18",))
    status = status_of(
        node(1), state="forming", waits_for=(awaited,), next=following, command="lattice-rdzv drain job n17"
    )
    status = replace(status, run=replace(status.run, change=change))
    text = status_text.describe(status, options="--endpoint etcd:2379")
    since, due = (status_text.clock(moment) for moment in (940.0, 1049.0))
    assert text.splitlines()[0] == f"Run job: FORMING for 60 s, since {since}   (3.6.1 at http://etcd:2379, 3 ms)"
    assert "n17 (rank 17), for 43 s: its lease ended, last sign of life 50 s ago" in text
    assert f"round 4 forms without n17 in 49 s, at {due} (rejoin_timeout)" in text
    assert re.search(r"^  change +n18 wants to join$", text, re.MULTILINE)
    # The command reaches the service that this one has reached.
    assert re.search(r"^  do +lattice-rdzv drain job n17 --endpoint etcd:2379$", text, re.MULTILINE)
    text = status_text.describe(
        replace(status, verdict=replace(status.verdict, command="etcdctl endpoint health")), options="--x"
    )
    assert re.search(r"^  do +etcdctl endpoint health$", text, re.MULTILINE)


def test_status_of_a_later_release_is_read_without_its_new_fields() -> None:
    status = status_of(node(1), state="forming")
    change = ChangeStatus("newcomers", "n18 wants to join", ("n18",))
    status = replace(status, run=replace(status.run, change=change))

    def with_more(value: Any) -> Any:
        if isinstance(value, dict):
            return {**{key: with_more(each) for key, each in value.items()}, "added": 1}
        return [with_more(each) for each in value] if isinstance(value, (list, tuple)) else value

    document = with_more(asdict(status))
    document["counts"].pop("added")
    assert RunStatus.from_json(document) == status
    with pytest.raises(ValueError, match="has the schema 2"):
        RunStatus.from_json({**document, "schema": 2})


def test_most_urgent_runs_come_first() -> None:
    states = ["closed", "formed", "forming", "stuck", "formed"]
    header, *rows = status_text.run_rows([status_of(node(1), state=state) for state in states])
    assert header[-2:] == ["FOR", "VERDICT"]
    assert [row[1] for row in rows] == ["stuck", "forming", "formed", "formed", "closed"]


def test_timeline_shows_when_the_program_trained_in_the_rounds_of_which_it_reports_that(
    join: JoinNode, etcd: Service, run_id: str
) -> None:
    patient: dict[str, object] = {"nnodes": "1:2", "last_call_timeout": 60}
    first, second = join("node-1", **patient), join("node-2", **patient)
    first.report_resumed()
    together(first.next_world, second.next_world)
    for each in (second, first, first):
        each.report_resumed()

    def resumed() -> list[float | None]:
        return [one.resumed_after_seconds for one in lattice_rdzv.status(run_id, endpoint=etcd.endpoint).rounds]

    wait_for("the report", lambda: resumed()[-1] is not None)
    second.leave()
    first.next_world()
    assert resumed()[-1] is None
    exit_status, status = read(run_id, etcd.endpoint)
    assert exit_status == 0
    formed = [event for event in timeline.events(status) if isinstance(event, FormedEvent)]
    shown = [timeline.sentence(event) for event in formed]
    assert "; training after " in shown[-2]
    assert "training" not in shown[-1]


def test_timeline_counts_the_standstill_that_has_not_ended() -> None:
    change = ChangeStatus("newcomers", "n18 wants to join", ("n18",))
    status = status_of(node(1), state="forming")
    status = replace(status, run=replace(status.run, change=change))
    assert "without a world for 60.0 s in total" in timeline.describe(status, timeline.events(status))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["n1", "n2", "n3", "n9"], "n[1-3,9]"),
        (["n1"], "n1"),
        (["a", "b-7"], "a, b-7"),
        (["n08", "n09", "n10"], "n[08-10]"),
        (
            [f"host{number * 2}" for number in range(100)],
            f"host[{','.join(str(n * 2) for n in range(100))}"[:57] + "...",
        ),
    ],
)
def test_names_are_shown_as_ranges(names: list[str], text: str) -> None:
    assert status_text.ranges(names) == text


def test_help_shows_examples_and_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["status", "--help"])
    text = capsys.readouterr().out
    assert "lattice-rdzv status my-job --watch" in text
    assert "3 forming, 4 stuck, 5 no such run" in text


def test_completion_completes_commands_and_options(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(command("completion", "bash").stdout)
    source = f"""
        source {script}
        complete_words() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lattice_rdzv; echo "${{COMPREPLY[@]}}"; }}
        complete_words lattice-rdzv sta
        complete_words lattice-rdzv status --wa
        complete_words lattice-rdzv close job --outcome fa
    """
    done = subprocess.run(["bash", "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["status", "--watch", "failed"]
