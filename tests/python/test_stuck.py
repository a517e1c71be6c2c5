"""The ways in which a run is stuck, as docs/operations.md describes them. Each test produces one of them, and `status` names the
cause and what happens next."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import JoinNode
from harness import network
from harness.binaries import etcd_binary
from harness.etcd import Etcd
from harness.network import Machine
from harness.programs import Program
from harness.service import Service
from harness.slow import SlowLink, etcd_without_quorum
from harness.status import command, read, validated, validated_timeline, wait_for_status
from harness.together import Pending
from harness.wait import PATIENCE_SECONDS, wait_for

import lattice_rdzv

pytestmark = pytest.mark.timeout(240)

# A node that enters each world and does nothing else. `hangs` does not ask for the next round when its world ends.
NODE = """
    import sys, threading, lattice_rdzv
    run = lattice_rdzv.join(
        {run_id!r}, nnodes={nnodes!r}, endpoint={endpoint!r}, node_name={name!r}, local_address="127.0.0.1",
        lease_ttl=10, settle_time=0.1, last_call_timeout=0.5, grow_delay=0.1, join_timeout=200, reuse_delay=120)
    print("joined", flush=True)
    with run:
        for world in run:
            print("world", world.round, world.rank, world.size, flush=True)
            if {hangs!r}:
                threading.Event().wait()
            run.wait_change()
"""

MakeProgram = Callable[..., Program]


@pytest.fixture
def program(tmp_path: Path, etcd: Service, run_id: str) -> Iterator[MakeProgram]:
    """Starts nodes in separate processes, and ends them after the test."""
    programs: list[Program] = []

    def start(name: str, *, nnodes: str = "2", hangs: bool = False, log: str = "warning") -> Program:
        source = NODE.format(run_id=run_id, nnodes=nnodes, endpoint=etcd.endpoint, name=name, hangs=hangs)
        programs.append(Program(tmp_path, source, LATTICE_RDZV_LOG=log))
        return programs[-1]

    yield start
    for one in programs:
        one.process.kill()
        one.process.wait()


def wait_for_output(program: Program, what: str, *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Waits until the output of a program matches a pattern."""
    wait_for(
        f"a program writes `{what}`",
        lambda: re.search(what, program.output),
        timeout_seconds=timeout_seconds,
        detail=lambda: program.output,
    )


def test_too_few_nodes_is_stuck_a_minute_after_the_last_arrival(
    program: MakeProgram, etcd: Service, run_id: str, say: Callable[[str], None]
) -> None:
    program("node-1", nnodes="3")
    exit_status, forming = wait_for_status(
        "the node is seen, with times", run_id, etcd.endpoint, lambda status: status.verdict.since is not None
    )
    assert (exit_status, forming.verdict.state) == (3, "forming")
    assert forming.verdict.sentence == "waiting for 2 more nodes: 1 of at least 3 here (node-1)"
    exit_status, stuck = wait_for_status(
        "the run is stuck", run_id, etcd.endpoint, lambda status: status.verdict.state == "stuck", timeout_seconds=150
    )
    assert exit_status == 4
    assert "no node has arrived for more than 60 s" in stuck.verdict.notes
    assert (stuck.verdict.waits_for_count, stuck.verdict.sentence) == (2, forming.verdict.sentence)
    assert stuck.verdict.next is not None
    assert stuck.verdict.next.what.startswith("round 1 forms when 3 are here")
    say(command("status", run_id, "--endpoint", etcd.endpoint).stdout)


def test_node_with_another_nnodes_is_named_after_it_has_left(
    program: MakeProgram, etcd: Service, run_id: str, say: Callable[[str], None]
) -> None:
    first = program("node-1", log="info")
    wait_for_status("node-1 is here", run_id, etcd.endpoint, lambda status: status.run.coordinator is not None)
    other = program("node-2", nnodes="4")
    assert other.wait() == 1
    exit_status, status = wait_for_status(
        "node-2 has left and is named",
        run_id,
        etcd.endpoint,
        # On a machine under load, its lease may have to end first.
        lambda status: (
            [node.name for node in status.nodes] == ["node-1"] and "node-2" in " ".join(status.verdict.notes)
        ),
    )
    assert exit_status in (3, 4), "it is stuck a minute after the last arrival"
    present = validated_timeline(command("timeline", run_id, "--endpoint", etcd.endpoint, "--json").stdout)[-1]
    assert present["event"] == "forming"
    (note,) = (note for note in status.verdict.notes if "node-2" in note)
    assert note.startswith("node-2 was rejected")
    assert note.endswith("nnodes 4:4, but the run has 2:2")
    wait_for_output(first, "node-2 was rejected: nnodes 4:4, but the run has 2:2")
    say(command("status", run_id, "--endpoint", etcd.endpoint).stdout)


def test_member_that_hangs_is_named_and_a_drain_frees_the_others(
    program: MakeProgram, etcd: Service, run_id: str, say: Callable[[str], None]
) -> None:
    first = program("node-1", nnodes="2:4")
    hanging = program("node-2", nnodes="2:4", hangs=True)
    for one in (first, hanging):
        wait_for_output(one, "world")
    third = program("node-3", nnodes="2:4")
    exit_status, status = wait_for_status(
        "node-2 is awaited, with times",
        run_id,
        etcd.endpoint,
        lambda status: [node.name for node in status.verdict.waits_for if node.since] == ["node-2"],
    )
    assert (exit_status, status.verdict.state) == (3, "forming")
    verdict = status.verdict
    assert verdict.sentence.startswith("node-2 has not requested round")
    assert verdict.next is not None
    assert verdict.next.limit == "rejoin_timeout"
    assert verdict.next.at is not None
    assert 0 < verdict.next.at - status.at <= 91
    # Its process lives, so the workers are what to look at.
    assert verdict.waits_for[0].last_seen is not None
    say(command("status", run_id, "--endpoint", etcd.endpoint).stdout)
    assert verdict.command == f"lattice-rdzv drain {run_id} node-2"
    drained = command(*verdict.command.split()[1:], "--wait", "--why", "it hangs", "--endpoint", etcd.endpoint)
    assert drained.returncode == 0, drained.stdout + drained.stderr
    assert "node `node-2` was asked to leave" in drained.stdout
    assert "node `node-2` has left; round" in drained.stdout
    assert hanging.wait() == 143, "as on SIGTERM"
    wait_for("node-3 is in a round", lambda: "world" in third.output, detail=lambda: third.output)
    exit_status, _ = wait_for_status(
        "the others are in a round", run_id, etcd.endpoint, lambda status: status.verdict.state == "formed"
    )
    assert exit_status == 0


def test_spare_that_gets_no_place_is_named_with_the_reason(
    program: MakeProgram, etcd: Service, run_id: str, say: Callable[[str], None]
) -> None:
    members = [program("node-1"), program("node-2")]
    for one in members:
        wait_for_output(one, "world")
    spare = program("node-3")
    exit_status, status = wait_for_status(
        "the spare is seen",
        run_id,
        etcd.endpoint,
        lambda status: status.counts.get("spare") == 1 and status.verdict.state == "formed",
    )
    assert exit_status == 0
    assert status.verdict.notes == ("node-3 waits as a spare: all 2 places are taken (max_nodes)",)
    say(command("status", run_id, "--endpoint", etcd.endpoint).stdout)
    # A spare takes the place of a node that is drained.
    done = command("drain", run_id, "node-1", "--wait", "--endpoint", etcd.endpoint)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for("the spare is in a round", lambda: "world" in spare.output, detail=lambda: spare.output)


def test_service_without_quorum_or_response_is_named(
    join: JoinNode, own_etcd: Etcd, tmp_path: Path, say: Callable[[str], None]
) -> None:
    (tmp_path / "one").mkdir()
    with etcd_without_quorum(tmp_path / "one") as endpoint:
        done = command("status", "job", "--endpoint", endpoint, "--json", "--timeout", "3")
        status = validated(done.stdout)
        assert (done.returncode, status.verdict.state) == (8, "unreachable")
        assert endpoint in status.verdict.sentence
        say(command("status", "job", "--endpoint", endpoint, "--timeout", "3").stdout)
    join("a", nnodes=1, run_id="paused", endpoint=own_etcd.endpoint, lease_ttl=60).next_world()
    own_etcd.pause()
    try:
        done = command("status", "paused", "--endpoint", own_etcd.endpoint, "--json", "--timeout", "2")
        assert (done.returncode, validated(done.stdout).verdict.state) == (8, "unreachable")
    finally:
        own_etcd.resume()
    assert read("paused", own_etcd.endpoint)[0] == 0


def test_slow_service_is_named(join: JoinNode, own_etcd: Etcd, say: Callable[[str], None]) -> None:
    join("a", nnodes=1, run_id="slow", endpoint=own_etcd.endpoint).next_world()
    link = SlowLink(own_etcd.port)
    endpoint = link.endpoint
    link.seconds = 0.3
    try:
        exit_status, status = read("slow", endpoint, "--timeout", "30")
        say(command("status", "slow", "--endpoint", endpoint, "--timeout", "30").stdout)
    finally:
        link.close()
    assert (exit_status, status.verdict.state) == (0, "formed")
    assert any(note.startswith(f"the service at http://{endpoint} is slow") for note in status.verdict.notes)


# A node whose workers must reach rank 0, as those of torch must. If they cannot, it asks for another round.
WORKER = """
    import socket, sys, threading, lattice_rdzv
    run = lattice_rdzv.join(
        "policy", nnodes=2, endpoint={endpoint!r}, node_name={name!r}, lease_ttl=10, settle_time=0.1,
        last_call_timeout=0.5, join_timeout=200)
    with run:
        while True:
            world = run.next_world(hold_port=True)
            listener = world.master_socket() if world.rank == 0 else None
            if listener is not None:
                listener.listen()
            else:
                try:
                    socket.create_connection((world.master_address, world.master_port), timeout=1.0)
                    print("connected", world.round, flush=True)
                    run.wait_change()
                except OSError as error:
                    print("round", world.round, error, flush=True)
                    continue
            run.wait_change()
"""


@pytest.fixture
def three() -> Iterator[list[Machine]]:
    """Provides three machines."""
    with network.machines(3) as made:
        yield made


@pytest.mark.namespaces
def test_network_policy_between_nodes_is_a_loop_that_names_rank_0(
    three: list[Machine], tmp_path: Path, say: Callable[[str], None]
) -> None:
    service, one, other = three
    etcd = EtcdOn(service, tmp_path)
    nodes: list[subprocess.Popen[bytes]] = []
    for here, there in ((one, other), (other, one)):
        rule = ["INPUT", "-s", there.address, "-j", "DROP"]
        subprocess.run([*here.wrapper, "iptables", "-A", *rule], check=True, capture_output=True)
    try:
        endpoint = etcd.start()
        for machine in (one, other):
            source = textwrap.dedent(WORKER.format(endpoint=endpoint, name=machine.host_name))
            with (tmp_path / f"{machine.host_name}.log").open("wb") as log:
                line = [*machine.wrapper, sys.executable, "-c", source]
                nodes.append(subprocess.Popen(line, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

        def status() -> subprocess.CompletedProcess[str]:
            line = [*service.wrapper, sys.executable, "-m", "lattice_rdzv.cli", "status", "policy"]
            return subprocess.run(
                [*line, "--endpoint", endpoint, "--json"], capture_output=True, text=True, check=False, timeout=60
            )

        done = wait_for(
            "the loop is named",
            lambda: done if (done := status()).returncode == 4 else None,
            timeout_seconds=120,
            every_seconds=0.5,
            detail=lambda: status().stdout + "".join(log.read_text() for log in tmp_path.glob("*.log"))[-3000:],
        )
        found = validated(done.stdout)
        assert found.verdict.state == "stuck"
        assert "because a member requested the next one" in found.verdict.sentence
        master = f"{found.run.master_address}:{found.run.master_port}"
        assert any(f"first {master} (rank 0): NetworkPolicy" in note for note in found.verdict.notes)
        line = [*service.wrapper, sys.executable, "-m", "lattice_rdzv.cli", "status", "policy", "--endpoint", endpoint]
        say(subprocess.run(line, capture_output=True, text=True, check=False).stdout)
    finally:
        for process in nodes:
            process.kill()
            process.wait()
        etcd.stop()


class EtcdOn:
    """An etcd on a separate machine."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Starts etcd, waits until it responds, and returns its endpoint."""
        address = self._machine.address
        flags = [
            f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls=http://{address}:2379",
            f"--advertise-client-urls=http://{address}:2379",
            "--unsafe-no-fsync",
        ]
        line = [*self._machine.wrapper, str(etcd_binary()), *flags]
        with (self._folder / "etcd.txt").open("wb") as log:
            self._process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        health = [
            *self._machine.wrapper,
            str(etcd_binary("etcdctl")),
            f"--endpoints={address}:2379",
            "endpoint",
            "health",
        ]
        wait_for("etcd responds", lambda: subprocess.run(health, check=False, capture_output=True).returncode == 0)
        return f"{address}:2379"

    def stop(self) -> None:
        """Kills etcd."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def test_closed_run_id_names_the_closing_and_the_delay(
    join: JoinNode, program: MakeProgram, etcd: Service, run_id: str, say: Callable[[str], None]
) -> None:
    first = join("node-1", nnodes=1)
    first.next_world()
    first.close("failed", why="loss is NaN")
    waiting = program("node-2", nnodes="1")
    exit_status, status = read(run_id, etcd.endpoint)
    assert (exit_status, status.verdict.state) == (7, "closed")
    assert status.verdict.sentence == f"run `{run_id}` was closed as failed by `node-1`: loss is NaN"
    assert status.verdict.next is not None
    assert status.verdict.next.limit == "reuse_delay"
    say(command("status", run_id, "--endpoint", etcd.endpoint).stdout)
    assert waiting.process.poll() is None


def test_closing_from_outside_ends_every_node_with_the_reason(program: MakeProgram, etcd: Service, run_id: str) -> None:
    nodes = [program("node-1"), program("node-2")]
    for one in nodes:
        wait_for_output(one, "world")
    close = ("close", run_id, "--endpoint", etcd.endpoint, "--why", "a test", "--outcome")
    done = command(*close, "ended")
    assert (done.returncode, done.stdout) == (0, f"run `{run_id}` is closed as ended: a test\n")
    for one in nodes:
        assert one.wait() == 1
        assert "ClosedError" in one.output
        assert "a test" in one.output
    again = command(*close, "ended")
    assert (again.returncode, "already closed as ended" in again.stderr) == (0, True)
    other = command(*close, "succeeded")
    assert (other.returncode, "already closed as ended" in other.stderr) == (1, True)


def test_mistyped_node_is_refused_with_the_nearest_names(join: JoinNode, etcd: Service, run_id: str) -> None:
    first, second = join("worker-1"), join("worker-2")
    Pending(first.next_world)
    second.next_world()
    done = command("drain", run_id, "worker1", "--endpoint", etcd.endpoint)
    assert done.returncode == 1
    assert "did you mean `worker-1`" in done.stderr
    assert lattice_rdzv.status(run_id, endpoint=etcd.endpoint, timeout_seconds=30).counts == {"member": 2}


def test_timeline_shows_rounds_changes_and_losses_in_order(
    program: MakeProgram, etcd: Service, run_id: str, say: Callable[[str], None]
) -> None:
    first, second = program("node-1", nnodes="1:2"), program("node-2", nnodes="1:2")
    both = re.compile(r"^world \d+ \d 2$", re.MULTILINE)
    wait_for("both are in a round", lambda: both.search(second.output), detail=lambda: first.output + second.output)
    second.process.kill()
    second.process.wait()
    wait_for_status(
        "the loss is a round's cause",
        run_id,
        etcd.endpoint,
        lambda status: bool(status.rounds) and status.rounds[-1].cause == "lost",
    )
    done = command("timeline", run_id, "--endpoint", etcd.endpoint, "--json")
    assert done.returncode == 0
    events = validated_timeline(done.stdout)
    assert [event["event"] for event in events][-3:] == ["announced", "lost", "formed"]
    lost, formed = events[-2:]
    assert lost["name"] == "node-2"
    # The lifeline of node-1 shows more than the end of a lease, where there are lifelines.
    assert "node-1" in lost["evidence"] or lost["evidence"] == "its lease ended"
    assert formed["stood_still_seconds"] is not None
    times = [event["at"] for event in events]
    assert times == sorted(times)
    text = command("timeline", run_id, "--endpoint", etcd.endpoint).stdout
    assert f"lost node-2: {lost['evidence']}" in text
    assert "without a world for" in text
    say(text)
    closing = ("close", run_id, "--outcome", "ended", "--why", "test", "--endpoint", etcd.endpoint)
    assert command(*closing).returncode == 0
    closed = validated_timeline(command("timeline", run_id, "--endpoint", etcd.endpoint, "--json").stdout)[-1]
    assert (closed["event"], closed["outcome"], closed["why"]) == ("closed", "ended", "test")


def test_waiting_node_logs_when_the_round_starts(etcd: Service, run_id: str, tmp_path: Path) -> None:
    source = NODE.replace("last_call_timeout=0.5", "last_call_timeout=150")
    nodes = [
        Program(
            tmp_path,
            source.format(run_id=run_id, nnodes="2:3", endpoint=etcd.endpoint, name=name, hangs=False),
            LATTICE_RDZV_LOG="info",
        )
        for name in ("node-1", "node-2")
    ]
    line = r"2 of at most 3 nodes joined \(.*\), the round starts in 1\d\d s, or as soon as 3 nodes"
    try:
        # The first line of a node may not have counted the other node yet. The next one comes 30 s later.
        for one in nodes:
            wait_for_output(one, line, timeout_seconds=90)
    finally:
        for one in nodes:
            one.process.kill()
            one.process.wait()
