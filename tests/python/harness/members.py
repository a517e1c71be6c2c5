"""Programs that follow their run, and the connections between them: for tests of lifelines."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.paused import pause
from harness.programs import Program
from harness.service import Service
from harness.wait import PATIENCE_SECONDS, wait_for

# The leases outlive the tests, so they report nothing.
TTL_SECONDS = 60
# Within this time, nothing may be reported. A wrong report comes within milliseconds.
QUIET_SECONDS = 3.0

MEMBER = """
    import ctypes, json, lattice_rdzv, os, signal, socket, subprocess, sys, threading, time
    settings = {settings!r}
    run = lattice_rdzv.join({run_id!r}, endpoint={endpoint!r}, lease_ttl={ttl}, last_call_timeout=60, **settings)
    def say(what, **facts):
        os.write(1, (json.dumps(dict(what=what, **facts)) + "\\n").encode())
    def follow():
        while True:
            world = run.next_world()
            say("world", rank=world.rank, size=world.size, round=world.round, why=world.why)
            change = run.wait_change()
            say("change", kind=change.kind, why=change.why)
    threading.Thread(target=follow, daemon=True).start()
    for line in sys.stdin:
        exec(line)
"""


class Member:
    """A program that follows its run, and executes statements."""

    def __init__(self, folder: Path, service: Service, run_id: str, name: str, **settings: object) -> None:
        self.name = name
        log = str(settings.pop("log", "warning"))
        ttl = settings.pop("lease_ttl", TTL_SECONDS)
        every = {"node_name": name, "nnodes": "1:16", "local_address": "127.0.0.1", **settings}
        source = MEMBER.format(settings=every, run_id=run_id, endpoint=service.endpoint, ttl=ttl)
        self._reading, self._writing = os.pipe()
        self.program = Program(folder, source, stdin=self._reading, LATTICE_RDZV_LOG=log)
        os.close(self._reading)

    @property
    def pid(self) -> int:
        """The pid of the program."""
        return self.program.process.pid

    def facts(self, what: str) -> list[dict[str, object]]:
        """Returns the facts of this kind that the program has reported."""
        # The end of the last line may be missing.
        lines = [line for line in self.program.output.splitlines() if line.startswith("{") and line.endswith("}")]
        return [fact for fact in map(json.loads, lines) if fact["what"] == what]

    def changes(self) -> list[dict[str, object]]:
        """Returns the changes that it has reported."""
        return self.facts("change")

    def world(self) -> dict[str, object]:
        """Returns its last world."""
        return self.facts("world")[-1]

    def do(self, statement: str) -> None:
        """Makes it execute a statement."""
        os.write(self._writing, f"{statement}\n".encode())

    def pause(self) -> None:
        """Stops it until `resume`. None of its threads runs when this function returns."""
        pause(self.program.process)

    def resume(self) -> None:
        """Continues it."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Ends it, whatever its state."""
        self.program.process.kill()
        self.program.process.wait()
        os.close(self._writing)


class Members(list[Member]):
    """The members of one run, by rank."""

    def await_world(self, size: int, *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until all of them are in a world of this size."""
        wait_for(
            f"a world of {size}",
            lambda: all(each.facts("world") and each.world()["size"] == size for each in self),
            timeout_seconds=timeout_seconds,
            detail=lambda: "\n".join(f"{each.name}: {each.program.output}" for each in self),
        )

    def await_lifelines(self) -> None:
        """Waits until each of them has its lifelines open on both sides."""
        expected = 2 * min(2, len(self) - 1)
        wait_for("the lifelines", lambda: all(open_lifelines(each.pid, self) >= expected for each in self))

    def await_greetings(self, service: Service, run_id: str) -> Member:
        """Waits until all have greeted the coordinator, and returns it. They must log at level `debug`."""
        key = f"/lattice/rdzv/default/{run_id}/ctl/coordinator"
        log = re.compile(r"asked a node whose lifeline ended node=(\w+).*answer=Greeted")
        term_ends = time.monotonic() + 5

        def coordinator() -> Member | None:
            nonlocal term_ends
            name = json.loads(service.get(key) or b"{}").get("name")
            for each in self:
                if each.name == name and len(set(log.findall(each.program.output))) == len(self) - 1:
                    return each
            # A coordinator asks once, for a second. If a member was paused, the coordinator of the next term asks it again.
            if time.monotonic() > term_ends:
                term_ends = time.monotonic() + 5
                service.delete(key)
            return None

        return wait_for("all have greeted", coordinator, timeout_seconds=60, detail=lambda: self[0].program.output)

    def await_reported(self, lost: list[Member], evidence: str = "refused at") -> None:
        """Waits until the others have formed a world without these members, and checks that each was reported with evidence."""
        rest = Members(each for each in self if each not in lost)
        rest.await_world(len(rest))
        reasons = " ".join(str(fact["why"]) for each in rest for fact in each.changes() + each.facts("world"))
        for each in lost:
            # A reason has the evidence of three nodes only.
            assert re.search(rf"{each.name}(, node-\d+)*: ([^;]*{evidence}|as these)", reasons), reasons

    def end(self) -> None:
        """Ends all of them."""
        for each in self:
            each.end()

    def await_quiet(self) -> None:
        """Checks that no change has been reported, and that none is for a time."""
        with pytest.raises(AssertionError, match="not within"):
            wait_for("a change", lambda: any(each.changes() for each in self), timeout_seconds=QUIET_SECONDS)


def open_lifelines(pid: int, members: list[Member]) -> int:
    """Returns the number of established connections between a process and the processes of the other members."""
    ends = {each.pid: sockets(each.pid) for each in members}
    own = ends.pop(pid)
    others = {(local, remote) for table in ends.values() for local, remote in table}
    return sum((remote, local) in others for local, remote in own)


def sockets(pid: int, *, state: str = "01") -> set[tuple[str, str]]:
    """Yields the two ports, in hex, of each socket of a process in a state: established (01) or listening (0A)."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and fields[9] in inodes:
                found.add((fields[1].rsplit(":")[-1], fields[2].rsplit(":")[-1]))
    return found


def listening_ports(pid: int) -> set[int]:
    """Returns the ports on which a process listens."""
    return {int(local, 16) for local, _ in sockets(pid, state="0A")}


Start = Callable[..., Members]


def start_members(folder: Path, service: Service, run_id: str, count: int, **settings: object) -> Members:
    """Starts members that are all in one world. Their ranks follow their names."""
    members = Members()
    for number in range(count):
        node = {"nnodes": f"1:{count}", "node_index": number}
        members.append(Member(folder, service, run_id, f"node-{number}", **{**node, **settings}))
    try:
        members.await_world(count, timeout_seconds=90)
    except AssertionError:
        members.end()
        raise
    return members
