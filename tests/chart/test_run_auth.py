"""Users and roles, rendered and run with the container that turns them on."""

from __future__ import annotations

import re
import runpy
import shutil
import threading
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

from chart.authority import Authority
from chart.cluster import Cluster, Pod, open_port
from chart.conftest import MakeCluster
from chart.render import AUTH, MEMBERS, MTLS, Renderer, merged
from chart.tools import CHART

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(240)]

TWO_TENANTS = merged(
    AUTH,
    {"auth": {"users": [{"name": "vision-jobs", "tenant": "vision"}, {"name": "speech-jobs", "tenant": "speech"}]}},
)
PASSWORDS = {"root-password": "of-root", "lattice": "of-all\n", "vision-jobs": "of-vision", "speech-jobs": "of-speech"}
SECRETS = {"rdzv-auth": PASSWORDS}
KEY = "/lattice/rdzv/vision/run/x"


def test_anonymous_and_wrong_passwords_are_refused(cluster: MakeCluster, version: str) -> None:
    pod = started(cluster(AUTH, version, secrets=SECRETS)).pods[0]
    assert put(pod, KEY, user="lattice:of-all") is None
    assert "user name is empty" in told(put(pod, KEY))
    assert "invalid user ID or password" in told(put(pod, KEY, user="lattice:wrong"))
    assert "permission denied" in told(put(pod, "/elsewhere", user="lattice:of-all"))
    assert put(pod, "/elsewhere", user="root:of-root") is None


def test_a_tenants_user_reaches_its_own_runs_alone(cluster: MakeCluster, version: str) -> None:
    pod = started(cluster(TWO_TENANTS, version, secrets=SECRETS)).pods[0]
    assert put(pod, KEY, user="vision-jobs:of-vision") is None
    assert "permission denied" in told(put(pod, KEY, user="speech-jobs:of-speech"))
    assert put(pod, "/lattice/rdzv/speech/run/x", user="speech-jobs:of-speech") is None


def test_a_wiped_store_is_in_no_service_before_it_is_closed_again(cluster: MakeCluster, version: str) -> None:
    one = started(cluster(AUTH, version, secrets=SECRETS))
    old = one.pods[0]
    old.terminate()
    shutil.rmtree(one.claim(old.name))
    new = one.add(old.name)
    # Its image comes later: what matters is that etcd alone is not ready.
    new.etcd.start()
    wait_for("etcd serves", lambda: new.etcd.probe("readiness"), detail=new.describe)
    assert put(new, KEY) is None, "a store that was wiped is open until authentication is on again"
    assert not new.ready()
    assert one.endpoints("lattice-rdzv-client") == []
    new.containers["auth"].start()
    new.wait_ready()
    assert "user name is empty" in told(put(new, KEY))
    assert one.endpoints("lattice-rdzv-client") == [new]


def test_three_members_with_mtls_and_roles(cluster: MakeCluster, version: str, tmp_path: Path) -> None:
    """All three containers do it at once, over TLS to a name that is not the address."""
    authority = Authority(tmp_path)
    secrets = {**SECRETS, "rdzv-client-tls": authority.secret("store"), "rdzv-peer-tls": authority.secret()}
    one = started(cluster(merged(MEMBERS, MTLS, AUTH), version, secrets=secrets))
    for pod in one.pods:
        # An election may come in between, and etcdctl does not try a write twice.
        wait_for("it takes a write", lambda pod=pod: put(pod, KEY, user="lattice:of-all") is None, detail=pod.describe)  # type: ignore[misc]
        assert "permission denied" in told(put(pod, "/elsewhere", user="lattice:of-all"))
        # A certificate alone is the user of its common name, and there is no user `store`.
        assert put(pod, KEY) is not None
        assert not open_port(pod, 2383)


def test_a_restarted_pod_finds_everything_done(cluster: MakeCluster) -> None:
    one = started(cluster(AUTH, "3.6.16", secrets=SECRETS))
    old = one.pods[0]
    before = auth_revision(old)
    old.terminate()
    new = one.add(old.name)
    new.start()
    new.wait_ready()
    assert "authentication is on" not in new.containers["auth"].log
    # Each write of users ends the tokens of all agents.
    assert auth_revision(new) == before


def test_a_changed_password_in_the_secret_is_taken_over(cluster: MakeCluster) -> None:
    one = started(cluster(AUTH, "3.6.16", secrets=SECRETS))
    pod = one.pods[0]
    one.secrets["rdzv-auth"] = {**PASSWORDS, "lattice": "of-tomorrow"}
    pod.volume("auth")
    wait_for("the new password counts", lambda: put(pod, KEY, user="lattice:of-tomorrow") is None, detail=pod.describe)
    assert "invalid user ID or password" in told(put(pod, KEY, user="lattice:of-all"))


def test_a_new_user_may_write_without_a_restart(cluster: MakeCluster) -> None:
    one = started(cluster(AUTH, "3.6.16", secrets=SECRETS))
    pod = one.pods[0]
    after = Renderer().objects(merged({"image": pod.etcd.spec["image"]}, TWO_TENANTS))
    assert after.pod == one.objects.pod, "another user changes the pod, so that all members restart"
    one.objects = after
    pod.volume("auth-script")
    wait_for("the new user may write", lambda: put(pod, KEY, user="vision-jobs:of-vision") is None, detail=pod.describe)


MANY = {"auth": {"users": [{"name": f"team-{number}", "tenant": f"team-{number}"} for number in range(20)]}}
MANY_PASSWORDS = {"root-password": "of-root", **{f"team-{number}": f"of-{number}" for number in range(20)}}


def test_looking_again_proposes_nothing(cluster: MakeCluster, tmp_path: Path) -> None:
    """Every call about users is a proposal that all members agree on and sync to disk, even one that only reads."""
    one = started(cluster(merged(MEMBERS, AUTH, MANY), "3.6.16", secrets={"rdzv-auth": MANY_PASSWORDS}))
    pod = one.pods[0]
    users = tmp_path / "users.json"
    users.write_text(one.config_map("lattice-rdzv-auth")["users.json"])
    for key, password in MANY_PASSWORDS.items():
        (tmp_path / key).write_text(password)
    script = runpy.run_path(str(CHART / "files" / "auth.py"))
    keeper = script["Keeper"](script["Etcd"](f"{pod.address}:2379"), users, tmp_path)

    def looks(count: int) -> float:
        before = proposals(pod)
        for _ in range(count):
            pod.inside(keeper.look)
        return proposals(pod) - before

    first = looks(1)
    assert first >= 20
    # The containers of the other members may still be at their first look.
    wait_for("100 looks propose nothing", lambda: looks(100) == 0, detail=pod.describe)
    print(f"20 users, three members: the first look made {first:g} proposals, later ones make none")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_probes_are_served_on_both_ip_families(address: str) -> None:
    if ":" in address and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    script = runpy.run_path(str(CHART / "files" / "auth.py"))
    server = script["probe_server"](0, script["Etcd"]("127.0.0.1:1"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = HTTPConnection(address, server.server_address[1], timeout=10)
    connection.request("GET", "/alive")
    assert connection.getresponse().read() == b"alive\n"
    connection.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("passwords", "words"),
    [
        ({"root-password": "of-root"}, "it needs the key: `lattice`"),
        ({**PASSWORDS, "lattice": ""}, "is empty: `lattice`"),
    ],
)
def test_an_incomplete_secret_is_reported_and_keeps_the_pod_unready(
    cluster: MakeCluster, passwords: dict[str, str], words: str
) -> None:
    one = cluster(AUTH, "3.6.16", secrets={"rdzv-auth": passwords})
    pod = one.start()[0]
    wait_for("it is told", lambda: words in pod.containers["auth"].log, detail=pod.describe)
    assert not pod.ready()


def test_a_different_root_password_is_reported(cluster: MakeCluster) -> None:
    one = started(cluster(AUTH, "3.6.16", secrets=SECRETS))
    old = one.pods[0]
    old.terminate()
    one.secrets["rdzv-auth"] = {**PASSWORDS, "root-password": "of-another"}
    new = one.add(old.name)
    new.start()
    words = "`root-password` in the Secret is not the password"
    wait_for("it is told", lambda: words in new.containers["auth"].log, detail=new.describe)
    # The store is closed all the same, and so agents are served.
    new.wait_ready()


def test_no_secret_shows_in_logs_or_objects(cluster: MakeCluster) -> None:
    one = started(cluster(AUTH, "3.6.16", secrets=SECRETS))
    everything = one.pods[0].describe() + str(one.objects.all) + " ".join(one.pods[0].etcd.command)
    for password in PASSWORDS.values():
        assert password.strip() not in everything


def started(one: Cluster) -> Cluster:
    one.start()
    one.wait_ready(timeout_seconds=90)
    return one


def put(pod: Pod, key: str, *, user: str | None = None) -> str | None:
    """What etcdctl complains of; none if the write went through."""
    variables = {"ETCDCTL_USER": user} if user else {}
    done = pod.etcd.execute("etcdctl", "put", key, "1", variables=variables)
    return None if done.returncode == 0 else done.stderr


def told(complaint: str | None) -> str:
    assert complaint is not None, "the write went through"
    return complaint


def proposals(pod: Pod) -> float:
    """The proposals that the cluster committed."""
    status, text = pod.get("/metrics", 2381)
    assert status == 200, text
    return float(re.search(r"^etcd_server_proposals_committed_total (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def auth_revision(pod: Pod) -> Any:
    done = pod.etcd.execute("etcdctl", "auth", "status", variables={"ETCDCTL_USER": "root:of-root"})
    assert "Authentication Status: true" in done.stdout, done.stderr
    return done.stdout
