"""Deaths that lifelines report, and events that they must not report as a death.

The leases of these nodes have a TTL of a minute and each test is shorter, so no lease can have reported these deaths.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from harness.members import Member, Start
from harness.service import Service
from harness.wait import wait_for

import lattice_rdzv

DEATHS = {
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "exit": "os._exit(7)",
    "segfault": "ctypes.string_at(0)",
    "abort": "os.abort()",
}


@pytest.mark.parametrize("death", DEATHS)
def test_death_of_a_process_is_reported_before_its_lease_ends(
    start: Start, service: Service, run_id: str, death: str
) -> None:
    members = start(3)
    members.await_lifelines()
    coordinator = json.loads(service.get(f"/lattice/rdzv/default/{run_id}/ctl/coordinator") or b"{}")["name"]
    victim = next(each for each in members if each.name != coordinator)
    victim.do(DEATHS[death])
    members.await_reported([victim])
    members.remove(victim)
    members.await_world(2)
    # The history has the time from the end of a connection to the announcement, which is far below the minute of a lease.
    (loss,) = lattice_rdzv.status(run_id, endpoint=service.endpoint, timeout_seconds=30).rounds[-1].lost
    assert loss.name == victim.name
    assert loss.told_seconds is not None
    assert 0 < loss.told_seconds < 60


@pytest.mark.parametrize("victims", [[0, 1], [2, 3], [1, 3, 5], [0, 2, 4]], ids=str)
def test_each_of_several_deaths_at_once_is_reported(start: Start, victims: list[int]) -> None:
    members = start(6)
    members.await_lifelines()
    lost = [members[number] for number in victims]
    for each in lost:
        each.kill()
    members.await_reported(lost)


def test_deaths_that_no_neighbor_survives_to_see_are_reported(start: Start, service: Service, run_id: str) -> None:
    members = start(9, log="debug")
    members.await_lifelines()
    first = members.index(members.await_greetings(service, run_id))
    lost = [members[(first + step) % 9] for step in range(2, 7)]
    for each in lost:
        each.kill()
    members.await_reported(lost)


def test_death_of_each_member_in_turn_is_reported_the_coordinators_included(start: Start) -> None:
    members = start(4)
    while len(members) > 1:
        members.await_lifelines()
        victim = members[0]
        victim.kill()
        members.await_reported([victim])
        members.remove(victim)


def test_death_between_a_change_and_the_next_world_is_reported(start: Start) -> None:
    members = start(4)
    members.await_lifelines()
    # This node receives the change but does not request the next round, so no world forms before its death.
    members[2].do("run.next_world = lambda: time.sleep(3600)")
    members[3].do("run.leave(); os._exit(0)")
    wait_for("the change", lambda: members[2].changes())
    members[2].kill()
    members.pop()
    members.await_reported([members[2]])


def test_node_that_leaves_is_not_reported_as_lost(start: Start) -> None:
    members = start(3)
    members.await_lifelines()
    members[1].do("run.leave(); os._exit(0)")
    leaver = members.pop(1)
    members.await_world(2)
    assert [fact["kind"] for each in members for fact in each.changes()] == ["leaving", "leaving"]
    assert leaver.program.wait() == 0


def test_stopped_process_is_not_suspected(start: Start) -> None:
    members = start(3)
    members.await_lifelines()
    members[1].pause()
    members.await_quiet()
    members[1].resume()
    members.await_quiet()


def test_on_a_machine_under_load_only_the_death_is_reported(start: Start) -> None:
    members = start(4)
    members.await_lifelines()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        members.await_quiet()
        victim = members[2]
        victim.kill()
        members.await_reported([victim])
    finally:
        for each in busy:
            each.kill()
            each.wait()


def test_forked_child_hides_no_death_and_its_end_is_none(start: Start) -> None:
    members = start(3)
    members.await_lifelines()
    members[1].do("os.fork() or os._exit(0)")
    members[1].do("os.fork() or time.sleep(60)")
    members[1].do("subprocess.Popen(['sleep', '60'], close_fds=False)")
    members.await_quiet()
    members[1].kill()
    members.await_reported([members[1]])
    os.killpg(members[1].pid, signal.SIGKILL)


def test_process_that_is_replaced_by_exec_is_reported(start: Start) -> None:
    members = start(3)
    members.await_lifelines()
    members[1].do("os.execv('/bin/sleep', ['sleep', '60'])")
    members.await_reported([members[1]])


def test_time_until_a_loss_is_announced_counts_from_the_last_renewal(
    start: Start, service: Service, run_id: str
) -> None:
    members = start(3, lifelines=False, lease_ttl=10)
    coordinator = json.loads(service.get(f"/lattice/rdzv/default/{run_id}/ctl/coordinator") or b"{}")["name"]
    victim = next(each for each in members if each.name != coordinator)
    victim.kill()
    members.remove(victim)
    members.await_world(2, timeout_seconds=60)
    (loss,) = lattice_rdzv.status(run_id, endpoint=service.endpoint, timeout_seconds=30).rounds[-1].lost
    assert (loss.name, loss.evidence) == (victim.name, None)
    assert loss.told_seconds is not None
    assert loss.told_seconds >= 10, "the TTL of the lease is part of it"


def test_without_lifelines_a_death_is_left_to_the_lease(start: Start) -> None:
    members = start(3, lifelines=False)
    members[1].kill()
    lost = members.pop(1)
    members.await_quiet()
    assert "lifeline" not in lost.program.output


def test_port_that_cannot_be_bound_turns_lifelines_off_with_one_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        members = start(2, lifeline_port=taken.getsockname()[1])
    wait_for("both log it", lambda: all("no lifelines" in each.program.output for each in members))
    for each in members:
        (line,) = (line for line in each.program.output.splitlines() if "no lifelines" in line)
        assert "lifeline_port" in line
    members[1].kill()
    members.pop(1)
    members.await_quiet()


def test_node_that_waits_for_a_world_has_no_lifelines(
    tmp_path: Path, start: Start, service: Service, run_id: str
) -> None:
    members = start(2, nnodes="2:2")
    members.await_lifelines()
    spare = Member(tmp_path, service, run_id, "spare", nnodes="2:2")
    wait_for("the spare joins", lambda: len(service.nodes(run_id)) == 3)
    spare.kill()
    members.await_quiet()
    assert len(service.nodes(run_id)) == 3, "its lease has not ended"
    spare.end()
