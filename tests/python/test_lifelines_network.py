"""Lifelines in a faulty or misleading network: proxies, and firewalls that drop, reject, forget and reset.

The processes are in a separate network namespace, where the test cuts connections and sets the rules of a firewall.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.embedded import Embedded
from harness.members import Members, listening_ports, open_lifelines, start_members
from harness.service import Service
from harness.status import read, wait_for_status
from harness.wait import wait_for

CLONE_NEWNET = 0x40000000
TOOLS = ("unshare", "ip", "ss", "iptables")

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS)
    or subprocess.run(["unshare", "--net", "iptables", "--list"], capture_output=True).returncode != 0,
    reason="needs the right to make a network namespace, and the programs ip, ss and iptables",
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Runs an embedded server in a network namespace, which this thread enters, too."""
    system = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert system.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    try:
        run("ip", "link", "set", "lo", "up")
        with Embedded(tmp_path / "service").running() as server:
            yield server
    finally:
        assert system.setns(before, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(before)


@pytest.fixture
def members(tmp_path: Path, service: Service, run_id: str) -> Iterator[Members]:
    """Provides three members with open lifelines."""
    members = start_members(tmp_path, service, run_id, 3, grow_delay=0)
    try:
        members.await_lifelines()
        yield Members(members)
    finally:
        members.end()


def run(*command: str) -> None:
    """Runs a command."""
    subprocess.run(command, check=True, capture_output=True)


def lifeline_port(pid: int) -> int:
    """Returns the port of a member's lifelines, which is the only port on which a member of a world listens."""
    (port,) = listening_ports(pid)
    return port


def cut(port: int) -> None:
    """Ends all connections to a port."""
    run("ss", "--kill", "dport", "=", str(port))


def add_rule(port: int, *target: str) -> None:
    """Adds a rule for packets to a port."""
    run("iptables", "--append", "INPUT", "--protocol", "tcp", "--dport", str(port), "--jump", *target)


def test_restart_of_a_proxy_causes_no_loss(members: Members) -> None:
    for each in members:
        cut(lifeline_port(each.pid))
    members.await_quiet()
    members.await_lifelines()


@pytest.mark.parametrize("target", ["DROP", "REJECT"])
def test_firewall_that_drops_or_rejects_leaves_the_decision_to_the_lease(members: Members, target: str) -> None:
    port = lifeline_port(members[1].pid)
    add_rule(port, target)
    cut(port)
    wait_for("the lifelines end", lambda: open_lifelines(members[1].pid, members) < 4)
    members.await_quiet()
    # A death behind that firewall is left to the lease, too.
    members.pop(1).kill()
    members.await_quiet()


def test_firewall_that_forgets_idle_connections_leaves_the_decision_to_the_lease(
    tmp_path: Path, service: Service, run_id: str
) -> None:
    forget = Path("/proc/sys/net/netfilter")
    (forget / "nf_conntrack_tcp_timeout_established").write_text("1")
    (forget / "nf_conntrack_tcp_loose").write_text("0")
    port = service.endpoint.rsplit(":", 1)[1]
    others = ("--protocol", "tcp", "!", "--sport", port, "!", "--dport", port)
    run("iptables", "--append", "INPUT", *others, "--match", "conntrack", "--ctstate", "INVALID", "--jump", "DROP")
    started = start_members(tmp_path, service, run_id, 3, grow_delay=0)
    members = Members(started)
    try:
        members.await_lifelines()
        # After a second without a packet, the firewall has forgotten the lifelines.
        members.await_quiet()
        members.pop(1).kill()
        members.await_quiet()
    finally:
        Members(started).end()


def test_firewall_that_resets_looks_like_a_death_and_costs_one_node_a_new_join(
    members: Members, service: Service, run_id: str
) -> None:
    # Uses the command, because the threads of this process are in another network namespace.
    _, status = read(run_id, service.endpoint)
    assert status.run.coordinator is not None
    coordinator = status.run.coordinator.name
    # A coordinator would be back before its successor announces its loss, in most cases.
    victim = next(each for each in members if each.name != coordinator)
    before = victim.world()["round"]
    port = lifeline_port(victim.pid)
    add_rule(port, "REJECT", "--reject-with", "tcp-reset")
    cut(port)

    def output() -> str:
        return "\n".join(each.program.output for each in members)

    log = "reported this node dead, but it is alive"
    wait_for("the false alarm", lambda: log in victim.program.output, timeout_seconds=60, detail=output)

    def are_together() -> bool:
        worlds = [each.world() for each in members]
        # If it is back before the announcement, no other world forms.
        is_over = worlds[0]["round"] != before or "this node is back in round" in victim.program.output
        return is_over and len({world["round"] for world in worlds}) == 1 and worlds[0]["size"] == 3

    wait_for("a world of all three", are_together, timeout_seconds=60, detail=output)
    assert all(each.program.process.poll() is None for each in members)
    wait_for_status(
        "only its false alarm is counted",
        run_id,
        service.endpoint,
        lambda status: {node.name for node in status.nodes if node.false_alarms} == {victim.name},
    )
