"""Machines of a test's own: network namespaces on one bridge, each with an address that only they reach."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# `ip netns exec` puts what is here over `/etc` (ip-netns(8)).
_ETC = Path("/etc/netns")


@dataclass(frozen=True)
class Machine:
    """One of them."""

    namespace: str
    address: str
    host_name: str

    @property
    def wrapper(self) -> tuple[str, ...]:
        """What a command is started with to run there."""
        return ("ip", "netns", "exec", self.namespace)


def why_not() -> str:
    """Why there can be no machines here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return "" if shutil.which("ip") else "network namespaces need the program `ip`"


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """That many machines, gone with all their interfaces at the end."""
    prefix = f"rdzv-test-{os.getpid()}"
    hub = f"{prefix}-hub"
    made = [Machine(f"{prefix}-{number}", f"10.77.0.{number + 1}", f"machine-{number}") for number in range(count)]
    try:
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge0", "up")
        for number, machine in enumerate(made):
            cable = f"cable{number}"
            _ip("netns", "add", machine.namespace)
            _ip("-n", hub, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", machine.namespace)
            _ip("-n", hub, "link", "set", cable, "master", "bridge0", "up")
            _ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", machine.namespace, "link", "set", interface, "up")
            _ip("-n", machine.namespace, "route", "add", "default", "dev", "eth0")
            _write_hosts(machine, made)
        yield made
    finally:
        for namespace in [hub, *(machine.namespace for machine in made)]:
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)
            shutil.rmtree(_ETC / namespace, ignore_errors=True)


@contextmanager
def virtual_address(address: str, target: Machine, machines: list[Machine]) -> Iterator[None]:
    """Forwards an address that no machine has to one of them, as a Service of Kubernetes does."""
    rule = ["OUTPUT", "-d", address, "-p", "tcp", "-j", "DNAT", "--to-destination", target.address]
    for machine in machines:
        subprocess.run([*machine.wrapper, "iptables", "-t", "nat", "-A", *rule], check=True, capture_output=True)
    try:
        yield
    finally:
        for machine in machines:
            subprocess.run([*machine.wrapper, "iptables", "-t", "nat", "-D", *rule], check=True, capture_output=True)


def _write_hosts(own: Machine, machines: list[Machine]) -> None:
    """The names of all machines, as Debian has them: a machine's own name stands for a loopback address."""
    lines = [f"{'127.0.1.1' if machine is own else machine.address} {machine.host_name}" for machine in machines]
    folder = _ETC / own.namespace
    folder.mkdir(parents=True)
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + "\n" + "\n".join(lines) + "\n")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
