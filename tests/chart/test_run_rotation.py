"""Replaces the CA of all certificates by the procedure of the chart's README, step by step, while two agents train."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

from chart.authority import Authority
from chart.cluster import Cluster, Pod
from chart.conftest import MakeCluster
from chart.render import EMBEDDED, MEMBERS, MTLS, Renderer, merged
from chart.test_run_tls import may_write
from chart.tools import CHART

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(400)]

CLIENT_TLS = {"tls": {"client": MTLS["tls"]["client"]}}
SERVERS = ("rdzv-client-tls", "rdzv-peer-tls")
AGENTS = "agent-tls"
# The addresses of the pods in these tests, so that clients can connect by address.
ADDRESSES = tuple(f"10.213.7.{number}" for number in range(1, 30))
# An agent that writes to the store of its round until SIGTERM.
AGENT = """
import signal, threading
import lattice_rdzv
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
with lattice_rdzv.join("rotation", nnodes=2, lease_ttl=60) as run:
    world = run.next_world(timeout_seconds=60)
    count = 0
    while not stop.wait(0.1):
        count = world.store.add(f"count-{world.rank}", 1)
        print(f"round {world.round} rank {world.rank} count {count}", flush=True)
"""


@pytest.fixture
def old(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "old")


@pytest.fixture
def new(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "new")


def secret(leaf: Authority, *trusted: Authority) -> dict[str, str]:
    """Returns a Secret with a certificate of one CA and with these trusted CAs."""
    return {**leaf.secret(addresses=ADDRESSES), "ca.crt": "".join(one.certificate for one in trusted)}


def write(one: Cluster, name: str, files: Mapping[str, str]) -> None:
    """Changes a Secret, and its files in every running pod, as a kubelet does."""
    one.secrets[name] = dict(files)
    for pod in (pod for pod in one.pods if pod.running):
        for volume in pod.spec["volumes"]:
            if volume.get("secret", {}).get("secretName") == name:
                pod.volume(volume["name"])


def agents(one: Cluster, values: Mapping[str, Any]) -> Pod:
    """Starts a pod with two agents. It is the rendered pod of `helm test` with a separate Secret."""
    (pod,) = [
        hook
        for hook in Renderer().hooks(merged(values, {"agents": {"image": "lattice-rdzv:agent"}})).all
        if hook["metadata"]["name"] == "lattice-rdzv-test-rendezvous"
    ]
    for container in pod["spec"]["containers"]:
        container["args"] = [AGENT]
    for volume in pod["spec"]["volumes"]:
        volume["secret"]["secretName"] = AGENTS
    pod["spec"]["terminationGracePeriodSeconds"] = 20
    made = one.add("agents", pod)
    made.start()
    return made


def lines(container: Any) -> list[tuple[int, int, int]]:
    """Returns round, rank and count of each line."""
    found = re.findall(r"^round (\d+) rank (\d+) count (\d+)$", container.log, re.MULTILINE)
    return [(int(round_), int(rank), int(count)) for round_, rank, count in found]


def progress(pod: Pod) -> None:
    """Waits until each agent has written ten more times."""
    before = {name: len(lines(container)) for name, container in pod.containers.items()}

    def continued() -> bool:
        assert all(container.running for container in pod.containers.values()), pod.describe()
        return all(len(lines(container)) >= before[name] + 10 for name, container in pod.containers.items())

    wait_for("both agents write", continued, timeout_seconds=60, detail=pod.describe)


def roll_out(one: Cluster, training: Pod) -> None:
    """Restarts the members as `kubectl rollout restart` does: one after the other, when the previous one is ready."""
    for name in sorted((pod.name for pod in one.pods if pod.is_store), reverse=True):
        (pod,) = [pod for pod in one.pods if pod.name == name]
        pod.terminate()
        again = one.add(name)
        again.start()
        again.wait_ready()
        progress(training)


def check_ended_well(training: Pod) -> None:
    """Checks that no agent was in another round, lost a write, or failed."""
    training.terminate()
    ranks = set()
    for container in training.containers.values():
        written = lines(container)
        ranks |= {rank for _, rank, _ in written}
        assert {round_ for round_, _, _ in written} == {1}
        assert [count for _, _, count in written] == list(range(1, len(written) + 1))
        assert "Traceback" not in container.log
    assert ranks == {0, 1}


class Strangers:
    """Clients with a certificate of each CA. All of them trust both CAs."""

    def __init__(self, old: Authority, new: Authority) -> None:
        self._authorities = {"old": old, "new": new}

    def served(self, one: Cluster) -> set[str]:
        """Returns the clients that every member serves."""
        both = "".join(authority.certificate for authority in self._authorities.values())
        clients = {name: {**authority.secret("agent"), "ca.crt": both} for name, authority in self._authorities.items()}
        calls = [(name, pod) for name in clients for pod in one.pods if pod.is_store]
        # In parallel, because each refusal takes etcdctl's timeout.
        with ThreadPoolExecutor() as pool:
            wrote = pool.map(lambda call: may_write(call[1], clients[call[0]]), calls)
        return clients.keys() - {name for (name, _), written in zip(calls, wrote, strict=True) if not written}

    def are_served(self, one: Cluster, *names: str) -> None:
        """Waits until every member serves exactly these clients."""
        wait_for(f"{names} are served", lambda: self.served(one) == set(names), timeout_seconds=90)


def trust(one: Cluster, *authorities: Authority) -> None:
    """Changes only `ca.crt` of every Secret."""
    text = "".join(authority.certificate for authority in authorities)
    for name, files in list(one.secrets.items()):
        write(one, name, {**files, "ca.crt": text})


def certify(one: Cluster, leaf: Authority) -> None:
    """Changes only `tls.crt` and `tls.key` of every Secret."""
    for name, files in list(one.secrets.items()):
        write(one, name, {**leaf.secret(addresses=ADDRESSES), "ca.crt": files["ca.crt"]})


def test_readme_has_these_steps() -> None:
    readme = (CHART / "README.md").read_text()
    steps = readme.split("### Rotating certificates")[1].split("## See also")[0]
    numbered = re.split(r"^\d\. ", steps, flags=re.MULTILINE)[1:]
    wanted = [
        ("Put both CAs", "into `ca.crt`"),
        (
            "Run `helm upgrade` with your values",
            "rollout restart statefulset/lattice-rdzv",
            "kubectl -n lattice rollout status",
        ),
        ("Replace `tls.crt` and `tls.key` by certificates of the new CA",),
        ("Remove the old CA from `ca.crt`", "repeat step 2"),
    ]
    assert len(numbered) == len(wanted)
    for step, words in zip(numbered, wanted, strict=True):
        assert all(word in step for word in words), step


@pytest.mark.parametrize("version", ["3.5.35", "3.6.16"])
def test_agents_keep_training_while_the_ca_of_three_members_is_replaced(
    cluster: MakeCluster, tmp_path: Path, old: Authority, new: Authority, version: str
) -> None:
    values = merged(MTLS, MEMBERS)
    one = cluster(values, version, secrets={name: secret(old, old) for name in (*SERVERS, AGENTS)})
    one.start()
    one.wait_ready()
    training = agents(one, values)
    progress(training)
    strangers = Strangers(old, new)

    # Step 1: both CAs are in every Secret. Step 2: the members are restarted, because they read `ca.crt` only at the start.
    trust(one, old, new)
    progress(training)
    strangers.are_served(one, "old")
    roll_out(one, training)
    strangers.are_served(one, "old", "new")
    # Step 3: certificates of the new CA.
    certify(one, new)
    progress(training)
    # Step 4: only the new CA, and step 2 again.
    trust(one, new)
    roll_out(one, training)
    strangers.are_served(one, "new")
    check_ended_well(training)


def test_agents_keep_training_while_the_ca_of_the_embedded_server_is_replaced(
    cluster: MakeCluster, tmp_path: Path, old: Authority, new: Authority
) -> None:
    """The server reads all three files at each handshake, so no step needs a restart."""
    values = merged(EMBEDDED, CLIENT_TLS)
    one = cluster(values, "3.6.16", secrets={name: secret(old, old) for name in ("rdzv-client-tls", AGENTS)})
    one.start()
    one.wait_ready()
    training = agents(one, values)
    progress(training)
    strangers = Strangers(old, new)
    steps: list[tuple[Callable[[], None], set[str]]] = [
        (lambda: trust(one, old, new), {"old", "new"}),
        (lambda: certify(one, new), {"old", "new"}),
        (lambda: trust(one, new), {"new"}),
    ]
    for step, served in steps:
        step()
        progress(training)
        strangers.are_served(one, *served)
    check_ended_well(training)
