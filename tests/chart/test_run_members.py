"""Three members, rendered and run as one cluster, with lost members, a lost volume, an upgrade, and lost data."""

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


def test_five_members_tolerate_the_loss_of_two(cluster: MakeCluster) -> None:
    one = started(cluster(merged(MEMBERS, {"replicaCount": 5}), "3.6.16"))
    assert len(members(one.pods[0])) == 5
    for pod in one.pods[3:]:
        pod.kill()
    put(one.pods[0], "x", "1")


def test_without_a_quorum_a_member_is_alive_and_not_ready(cluster: MakeCluster, version: str) -> None:
    """A restart of this member would not restore the others, and Kubernetes would repeat it."""
    one = started(cluster(MEMBERS, version))
    last = member(one, 0)
    member(one, 1).kill()
    member(one, 2).kill()
    wait_for("it is not ready", lambda: not last.ready(), detail=last.describe)
    assert last.etcd.probe("liveness"), last.describe()
    assert last.etcd.probe("startup")
    assert not one.endpoints("lattice-rdzv-client")


def test_member_that_waits_for_the_others_is_not_killed(cluster: MakeCluster, version: str) -> None:
    """Kubernetes nodes start one after the other, so a member may have to wait for the others without limit."""
    one = cluster(MEMBERS, version)
    first = one.add("lattice-rdzv-0")
    # The images of the other pods are still being pulled.
    for index in (1, 2):
        one.add(f"lattice-rdzv-{index}")
    first.start()
    wait_for("it has started", lambda: first.etcd.probe("startup"), timeout_seconds=60, detail=first.describe)
    assert first.etcd.probe("liveness")
    assert not first.ready()
    for pod in one.pods[1:]:
        pod.start()
    one.wait_ready()
    assert len(members(first)) == 3


@pytest.mark.parametrize("newest", ["3.5.35", "3.6.16", "3.7.3"])
def test_member_that_lost_its_volume_rejoins_by_the_runbook(cluster: MakeCluster, newest: str) -> None:
    one = started(cluster(MEMBERS, newest))
    put(member(one, 0), "x", "1")
    lost = member(one, 1)
    lost_id = f"{header(lost)['member_id']:x}"
    lost.kill()
    shutil.rmtree(one.claim("lattice-rdzv-1"))
    # The member cannot rejoin by itself, because the cluster expects it to have its data.
    alone = one.add("lattice-rdzv-1")
    alone.start()
    wait_for("it fails", lambda: not alone.etcd.running, detail=alone.describe)
    shutil.rmtree(one.claim("lattice-rdzv-1"))
    # The commands of docs/runbooks/volume-lost.md.
    survivor = member(one, 0)

    def removed() -> bool:
        """Fails during an election, which is necessary if the lost member was the leader."""
        done = survivor.etcd.execute("etcdctl", "member", "remove", lost_id)
        return done.returncode == 0 or "member not found" in done.stderr

    wait_for("the member is removed", removed, detail=survivor.describe)
    peer = "http://lattice-rdzv-1.lattice-rdzv-members.lattice.svc.cluster.local:2380"

    def added() -> bool:
        """Refused for some seconds, until this member regards the others as connected."""
        done = survivor.etcd.execute("etcdctl", "member", "add", "lattice-rdzv-1", f"--peer-urls={peer}")
        return done.returncode == 0

    wait_for("the member is added", added, detail=survivor.describe)
    # Kubernetes restarts the container repeatedly, also now. It then writes data as a member of a new cluster, which the
    # deletion of the claim removes.
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


def test_cluster_is_upgraded_from_3_4_to_3_5(cluster: MakeCluster) -> None:
    """One member at a time, as UPGRADING.md describes. tests/e2e/test_versions.py tests later releases in pods."""
    one = started(cluster(MEMBERS, "3.4"))
    before = header(one.pods[0])["cluster_id"]
    put(one.pods[0], "x", "0")
    one.objects = Renderer().objects(merged(MEMBERS, {"image": image_of("3.5.35")}))
    one.etcd = tool("etcd-3.5.35")
    for index in (2, 1, 0):
        replace(one, index)
    wait_for("the cluster version is 3.5", lambda: cluster_versions(one) == {"3.5"}, timeout_seconds=60)
    assert [get(pod, "x") for pod in one.pods] == ["0"] * 3
    assert {header(pod)["cluster_id"] for pod in one.pods} == {before}


def test_recreated_etcd_has_another_cluster_id_only_with_another_token(cluster: MakeCluster) -> None:
    """See docs/runbooks/quorum-lost.md. With the old token, clients would not detect that the data is lost."""
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


def cluster_versions(one: Cluster) -> set[str | None]:
    """Returns the cluster versions in the metrics of the members, which UPGRADING.md uses."""
    found = (
        re.search('^etcd_cluster_version{cluster_version="(.*)"} 1$', pod.get("/metrics", 2381)[1], re.MULTILINE)
        for pod in one.pods
    )
    return {match[1] if match else None for match in found}


def started(one: Cluster) -> Cluster:
    one.start()
    one.wait_ready()
    return one


def member(one: Cluster, index: int) -> Pod:
    return next(pod for pod in one.pods if pod.name == f"lattice-rdzv-{index}")


def replace(one: Cluster, index: int) -> None:
    """Ends a member's pod by SIGTERM if it is running, and waits until a new pod is ready."""
    old = member(one, index)
    old.terminate()
    new = one.add(old.name)
    new.start()
    new.wait_ready()


def put(pod: Pod, key: str, value: str) -> None:
    """Retries during an election, which a busy machine can cause, because etcdctl does not retry a write."""
    wait_for(f"{pod.name} accepts a write", lambda: write(pod, key, value).returncode == 0, detail=pod.describe)


def endpoints(one: Any, *names: str) -> None:
    """Waits until these members are the endpoints of the clients' Service."""
    wait_for(
        f"the endpoints of the Service are {names}",
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
