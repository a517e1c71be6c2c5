"""Suspicions of programs and operators: `Run.suspect` and `lattice-rdzv lost`."""

from __future__ import annotations

import json

import pytest
from harness.members import Member, Members, Start
from harness.service import Service
from harness.status import command
from harness.wait import wait_for


def lost(service: Service, run_id: str, *arguments: str) -> tuple[int, str]:
    """Runs `lattice-rdzv lost`, and returns its exit status and its output."""
    done = command("lost", run_id, *arguments, f"--endpoint={service.endpoint}", "--timeout=30")
    return done.returncode, done.stdout + done.stderr


def wait_lost(expected: int, service: Service, run_id: str, *arguments: str) -> str:
    """Waits for this exit status, because a member that does not run for a second is unknown. Returns the output."""
    results: list[tuple[int, str]] = []

    def has_status() -> bool:
        results.append(lost(service, run_id, *arguments))
        return results[-1][0] == expected

    wait_for(f"status {expected}", has_status, detail=lambda: str(results))
    return results[-1][1]


def suspect(member: Member, rank: int) -> str:
    """Returns the verdict that a member gets about a rank."""
    before = len(member.facts("verdict"))
    member.do(f"say('verdict', word=run.suspect({rank}, 'connection reset in all_reduce', timeout_seconds=30))")
    wait_for("a verdict", lambda: len(member.facts("verdict")) > before, timeout_seconds=60)
    return str(member.facts("verdict")[-1]["word"])


def wait_verdict(member: Member, rank: int, expected: str) -> None:
    """Waits for this verdict, because a member that does not run for a second is unknown."""
    wait_for(f"{rank} is {expected}", lambda: suspect(member, rank) == expected, detail=lambda: member.program.output)


@pytest.mark.parametrize("by", ["program", "operator"])
def test_suspect_that_refuses_connections_is_reported_with_this_evidence(
    start: Start, service: Service, run_id: str, by: str
) -> None:
    members = start(6, log="debug")
    members.await_lifelines()
    first = members.index(members.await_greetings(service, run_id))
    victim = (first + 3) % 6
    # All members with lifelines to the victim are stopped, so that its lifelines report nothing.
    stopped = [each for number, each in enumerate(members) if number not in (first, victim)]
    for each in stopped:
        each.pause()
    members[victim].kill()
    Members([members[first]]).await_quiet()
    if by == "program":
        wait_verdict(members[first], victim, "lost")
        seen = f"suspected by {members[first].name}: connection reset in all_reduce, then refused at"
    else:
        printed = wait_lost(0, service, run_id, members[victim].name, "--why=no power")
        assert "is lost: suspected by " in printed
        seen = "no power, then refused at"
    wait_for("the change", lambda: members[first].changes())
    (change,) = members[first].changes()
    assert change["kind"] == "lost"
    assert seen in str(change["why"])
    for each in stopped:
        each.resume()
    Members(each for each in members if each is not members[victim]).await_world(5)


def test_living_suspect_stays_a_member(start: Start, service: Service, run_id: str) -> None:
    members = start(3)
    for each in members:
        for rank in range(3):
            wait_verdict(each, rank, "alive")
    assert "is alive" in wait_lost(3, service, run_id, "node-1")
    members.await_quiet()


def test_stopped_suspect_is_lost_only_by_force_and_joins_again(start: Start, service: Service, run_id: str) -> None:
    members = start(4)
    coordinator = json.loads(service.get(f"/lattice/rdzv/default/{run_id}/ctl/coordinator") or b"{}")["name"]
    victim = next(each for each in members if each.name != coordinator)
    victim.pause()
    status, printed = lost(service, run_id, victim.name)
    assert (status, "--force" in printed) == (4, True), printed
    members.await_quiet()
    status, printed = lost(service, run_id, victim.name, "--force", "--why=frozen")
    assert (status, "is lost: frozen" in printed) == (0, True), printed
    members.await_reported([victim], "frozen")
    victim.resume()
    members.await_world(4)
    log = "reported this node dead, but it is alive: frozen"
    wait_for("the false alarm", lambda: log in victim.program.output, detail=lambda: victim.program.output)


def test_what_cannot_be_suspected_is_refused(start: Start, service: Service, run_id: str) -> None:
    members = start(2)
    members[0].do("exec(\"try: run.suspect(2)\\nexcept ValueError as error: say('refused', why=str(error))\")")
    wait_for("the refusal", lambda: members[0].facts("refused"))
    assert "no such rank" in str(members[0].facts("refused")[0]["why"])
    status, printed = lost(service, run_id, "node-l")
    assert (status, "node-1" in printed) == (1, True), printed
    assert lost(service, f"{run_id}-other", "node-1")[0] == 5
    members[1].kill()
    members.pop(1)
    members.await_world(1)
    status, printed = lost(service, run_id, "node-1")
    assert (status, "no node with this name" in printed) == (1, True), printed
