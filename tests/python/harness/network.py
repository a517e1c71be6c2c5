"""Machines for tests: network namespaces on one bridge. Their addresses are reachable only from each other."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# `ip netns exec` mounts the files of this folder over those in `/etc` (ip-netns(8)).
_ETC = Path("/etc/netns")
_groups = itertools.count()


@dataclass(frozen=True)
class Machine:
    """One machine."""

    namespace: str
    address: str
    host_name: str

    @property
    def wrapper(self) -> tuple[str, ...]:
        """The command line that runs another command on this machine."""
        named = f'hostname {self.host_name} && exec "$@"'
        return ("ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", named, "sh")


@contextmanager
def machines(count: int, *, own_name: str = "") -> Iterator[list[Machine]]:
    """Creates machines, and deletes them with all their interfaces at the end. Skips the test if that is not possible.

    On each machine, its own host name resolves to `own_name`, or to the address that other machines resolve.
    """
    why_not = _why_not()
    if why_not:
        pytest.skip(why_not)
    prefix = f"rdzv-test-{os.getpid()}-{next(_groups)}"
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
            _write_hosts(machine, own_name or machine.address, made)
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


def _why_not() -> str:
    """Returns why machines cannot be created here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "unshare", "iptables") if shutil.which(program) is None]
    return f"network namespaces need the program `{missing[0]}`" if missing else ""


def _write_hosts(own: Machine, own_name: str, machines: list[Machine]) -> None:
    lines = [f"{own_name if machine is own else machine.address} {machine.host_name}" for machine in machines]
    folder = _ETC / own.namespace
    folder.mkdir(parents=True)
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
