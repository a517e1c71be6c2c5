"""Three members, rendered and run: one cluster, that bears a rolling restart, a lost member, a lost volume, and upgrades."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest
from harness.wait import wait_for

from chart.cluster import Cluster, Pod, header, members
from chart.conftest import MakeCluster, image_of
from chart.render import MEMBERS, Renderer, merged
from chart.tools import tool

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(240)]


def test_three_members_are_one_cluster(cluster: MakeCluster, version: str) -> None:
    one = started(cluster(MEMBERS, version))
    listed = members(one.pods[0])
    print(one.pods[0].etcd.execute("etcdctl", "member", "list", "--write-out=table").stdout)
    assert sorted(member["name"] for member in listed) == ["lattice-rdzv-0", "lattice-rdzv-1", "lattice-rdzv-2"]
    assert len({header(pod)["cluster_id"] for pod in one.pods}) == 1
    assert len({header(pod)["member_id"] for pod in one.pods}) == 3
    put(one.pods[0], "x", "1")
    assert [get(pod, "x") for pod in one.pods] == ["1", "1", "1"]
    endpoints(one, *(pod.name for pod in one.pods))


def test_five_members_bear_the_loss_of_two(cluster: MakeCluster) -> None:
    one = started(cluster(merged(MEMBERS, {"replicaCount": 5}), "3.6.16"))
    assert len(members(one.pods[0])) == 5
    for pod in one.pods[3:]:
        pod.kill()
    put(one.pods[0], "x", "1")


def test_without_a_quorum_a_member_is_alive_and_not_ready(cluster: MakeCluster, version: str) -> None:
    """Killing it would not bring the others back, and Kubernetes would do so again and again."""
    one = started(cluster(MEMBERS, version))
    last = member(one, 0)
    member(one, 1).kill()
    member(one, 2).kill()
    wait_for("it is not ready", lambda: not last.ready(), detail=last.describe)
    assert last.etcd.probe("liveness"), last.describe()
    assert last.etcd.probe("startup")
    assert not one.endpoints("lattice-rdzv-client")


def test_a_member_that_waits_for_the_others_is_not_killed(cluster: MakeCluster, version: str) -> None:
    """Machines come up one after the other; a start without the others may take as long as it takes."""
    one = cluster(MEMBERS, version)
    first = one.add("lattice-rdzv-0")
    # The others have pods, whose images are still pulled.
    for index in (1, 2):
        one.add(f"lattice-rdzv-{index}")
    first.start()
    wait_for("it lives", lambda: first.etcd.probe("startup"), timeout_seconds=60, detail=first.describe)
    assert first.etcd.probe("liveness")
    assert not first.ready()
    for pod in one.pods[1:]:
        pod.start()
    one.wait_ready()
    assert len(members(first)) == 3


@pytest.mark.parametrize("newest", ["3.5.35", "3.6.16", "3.7.3"])
def test_a_member_that_lost_its_volume_rejoins_by_the_runbook(cluster: MakeCluster, newest: str) -> None:
    one = started(cluster(MEMBERS, newest))
    put(member(one, 0), "x", "1")
    lost = member(one, 1)
    lost_id = f"{header(lost)['member_id']:x}"
    lost.kill()
    shutil.rmtree(one.claim("lattice-rdzv-1"))
    # By itself it cannot: the cluster knows it with data that it does not have.
    alone = one.add("lattice-rdzv-1")
    alone.start()
    wait_for("it fails", lambda: not alone.etcd.running, detail=alone.describe)
    shutil.rmtree(one.claim("lattice-rdzv-1"))
    # docs/runbooks/volume-lost.md, its commands.
    survivor = member(one, 0)

    def removed() -> bool:
        """Not while a new leader is elected, which may be under way: the lost one may have been it."""
        done = survivor.etcd.execute("etcdctl", "member", "remove", lost_id)
        return done.returncode == 0 or "member not found" in done.stderr

    wait_for("the member is removed", removed, detail=survivor.describe)
    peer = "http://lattice-rdzv-1.lattice-rdzv-members.lattice.svc.cluster.local:2380"

    def added() -> bool:
        """Refused for some seconds, until this member counts the others as connected."""
        done = survivor.etcd.execute("etcdctl", "member", "add", "lattice-rdzv-1", f"--peer-urls={peer}")
        return done.returncode == 0

    wait_for("the member is added", added, detail=survivor.describe)
    # Kubernetes starts it again all the time, also now, and what it writes as a member of a cluster that is to be made anew
    # goes with its claim.
    alone.start()
    wait_for("it fails again", lambda: not alone.etcd.running, detail=alone.describe)
    one.objects = Renderer().objects(
        merged(MEMBERS, {"image": image_of(newest), "cluster": {"initialState": "existing"}})
    )
    shutil.rmtree(one.claim("lattice-rdzv-1"))
    for index in (1, 2, 0):
        replace(one, index)
    assert [get(pod, "x") for pod in one.pods] == ["1", "1", "1"]
    assert len(members(one.pods[0])) == 3


def test_a_cluster_goes_from_3_4_to_3_5(cluster: MakeCluster) -> None:
    """One member at a time, as UPGRADING.md says. The later releases are tried in pods, by tests/e2e/test_versions.py."""
    one = started(cluster(MEMBERS, "3.4"))
    before = header(one.pods[0])["cluster_id"]
    put(one.pods[0], "x", "0")
    one.objects = Renderer().objects(merged(MEMBERS, {"image": image_of("3.5.35")}))
    one.etcd = tool("etcd-3.5.35")
    for index in (2, 1, 0):
        replace(one, index)
    wait_for("the cluster speaks 3.5", lambda: spoken(one) == {"3.5"}, timeout_seconds=60)
    assert [get(pod, "x") for pod in one.pods] == ["0"] * 3
    assert {header(pod)["cluster_id"] for pod in one.pods} == {before}


def test_a_store_made_anew_is_another_cluster_under_another_token_alone(cluster: MakeCluster) -> None:
    """docs/runbooks/quorum-lost.md: with the old token clients would take the empty store for the one they knew."""
    one = started(cluster(MEMBERS, "3.6.16"))
    first = header(one.pods[0])["cluster_id"]
    ids = []
    for values in (MEMBERS, merged(MEMBERS, {"cluster": {"token": "lattice-rdzv-1760000000"}})):
        for pod in one.pods:
            pod.kill()
        shutil.rmtree(one.folder / "claims")
        one.objects = Renderer().objects(merged({"image": image_of("3.6.16")}, values))
        started(one)
        ids.append(header(one.pods[0])["cluster_id"])
    assert ids[0] == first
    assert ids[1] != first


def spoken(one: Cluster) -> set[str | None]:
    """The cluster version that each member tells, as UPGRADING.md looks at it."""
    told = (
        re.search('^etcd_cluster_version{cluster_version="(.*)"} 1$', pod.get("/metrics", 2381)[1], re.MULTILINE)
        for pod in one.pods
    )
    return {match[1] if match else None for match in told}


def started(one: Cluster) -> Cluster:
    one.start()
    one.wait_ready()
    return one


def member(one: Cluster, index: int) -> Pod:
    return next(pod for pod in one.pods if pod.name == f"lattice-rdzv-{index}")


def replace(one: Cluster, index: int) -> None:
    """Ends a member's pod by SIGTERM if it runs, and waits for a new one to be ready."""
    old = member(one, index)
    old.terminate()
    new = one.add(old.name)
    new.start()
    new.wait_ready()


def put(pod: Pod, key: str, value: str) -> None:
    """Waits out an election, which comes also when the machine is busy: etcdctl does not try a write twice."""
    wait_for(f"{pod.name} takes a write", lambda: write(pod, key, value).returncode == 0, detail=pod.describe)


def endpoints(one: Any, *names: str) -> None:
    """Waits until the clients' Service sends to these members and no other."""
    wait_for(
        f"the Service sends to {names}",
        lambda: {pod.name for pod in one.endpoints("lattice-rdzv-client")} == set(names),
    )


def write(pod: Pod, key: str, value: str) -> Any:
    return pod.etcd.execute("etcdctl", "put", key, value)


def get(pod: Pod, key: str) -> str:
    return run(pod, "etcdctl", "get", key, "--print-value-only")


def run(pod: Pod, *command: str) -> str:
    done = pod.etcd.execute(*command)
    assert done.returncode == 0, done.stderr + pod.describe()
    return done.stdout.strip()
