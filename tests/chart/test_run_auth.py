"""Users and roles, rendered and run with the container that enables them."""

from __future__ import annotations

import base64
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
    assert "user name is empty" in refusal(put(pod, KEY))
    assert "invalid user ID or password" in refusal(put(pod, KEY, user="lattice:wrong"))
    assert "permission denied" in refusal(put(pod, "/elsewhere", user="lattice:of-all"))
    assert put(pod, "/elsewhere", user="root:of-root") is None


def test_user_of_a_tenant_reaches_only_the_runs_of_this_tenant(cluster: MakeCluster, version: str) -> None:
    pod = started(cluster(TWO_TENANTS, version, secrets=SECRETS)).pods[0]
    assert put(pod, KEY, user="vision-jobs:of-vision") is None
    assert "permission denied" in refusal(put(pod, KEY, user="speech-jobs:of-speech"))
    assert put(pod, "/lattice/rdzv/speech/run/x", user="speech-jobs:of-speech") is None


def test_etcd_that_lost_its_data_is_not_ready_before_it_requires_passwords_again(
    cluster: MakeCluster, version: str
) -> None:
    one = started(cluster(AUTH, version, secrets=SECRETS))
    old = one.pods[0]
    old.terminate()
    shutil.rmtree(one.claim(old.name))
    new = one.add(old.name)
    # Without the container `auth`, whose image may be pulled later, the pod must not be ready.
    new.etcd.start()
    wait_for("etcd serves", lambda: new.etcd.probe("readiness"), detail=new.describe)
    assert put(new, KEY) is None, "an etcd that lost its data is open until authentication is enabled again"
    assert not new.ready()
    assert one.endpoints("lattice-rdzv-client") == []
    new.containers["auth"].start()
    new.wait_ready()
    assert "user name is empty" in refusal(put(new, KEY))
    wait_for("it is an endpoint", lambda: one.endpoints("lattice-rdzv-client") == [new], detail=new.describe)


def test_three_members_with_mtls_and_roles(cluster: MakeCluster, version: str, tmp_path: Path) -> None:
    """All three containers `auth` work at the same time, over TLS to a name that is not the address."""
    authority = Authority(tmp_path)
    secrets = {**SECRETS, "rdzv-client-tls": authority.secret("store"), "rdzv-peer-tls": authority.secret()}
    one = started(cluster(merged(MEMBERS, MTLS, AUTH), version, secrets=secrets))
    for pod in one.pods:
        # There may be an election in between, and etcdctl does not retry a write.
        def accepts_a_write(pod: Any = pod) -> bool:
            return put(pod, KEY, user="lattice:of-all") is None

        wait_for("it accepts a write", accepts_a_write, detail=pod.describe)

        def is_denied_elsewhere(pod: Any = pod) -> bool:
            return "permission denied" in (put(pod, "/elsewhere", user="lattice:of-all") or "")

        wait_for("it denies one elsewhere", is_denied_elsewhere, detail=pod.describe)
        # A client with only a certificate is the user of its common name, but there is no user `store`.
        assert put(pod, KEY) is not None
        assert not open_port(pod, 2383)


# The gateway of older releases does not use the certificate for the port without TLS.
@pytest.mark.timeout(500)
@pytest.mark.parametrize("version", ["3.5.35", "3.6.16", "3.7.3"])
def test_certificate_of_etcd_with_a_users_name_is_warned_of(cluster: MakeCluster, version: str, tmp_path: Path) -> None:
    """etcd chooses at random whether its JSON gateway has this certificate, so several starts are needed. Each of them becomes ready."""
    secrets = {**SECRETS, "rdzv-client-tls": Authority(tmp_path).secret("lattice")}
    one = cluster(merged({"tls": {"client": MTLS["tls"]["client"]}}, AUTH), version, secrets=secrets)
    (pod,) = one.start()
    pod.wait_ready()
    starts = 1
    while not may_read(pod):
        assert starts < 60, f"none of {starts} starts of etcd chose the certificate"
        starts += 1
        pod.terminate()
        pod = one.add(pod.name)
        pod.start()
        pod.wait_ready()
    auth = pod.containers["auth"]
    wait_for("the warning", lambda: "issue a certificate with another common name" in auth.log, detail=pod.describe)
    assert not may_read(pod, Accept="*/*")


def may_read(pod: Pod, **headers: str) -> bool:
    """Returns whether etcd's JSON gateway serves a read on the loopback interface without a password."""

    def status() -> int:
        connection = HTTPConnection("127.0.0.1", 2383, timeout=10)
        try:
            connection.request("POST", "/v3/kv/range", f'{{"key": "{text(KEY)}"}}', headers)
            return connection.getresponse().status
        finally:
            connection.close()

    return pod.inside(status) == 200


def text(key: str) -> str:
    """Encodes a key for the JSON gateway."""
    return base64.b64encode(key.encode()).decode()


def test_restarted_pod_changes_no_user(cluster: MakeCluster) -> None:
    one = started(cluster(AUTH, "3.6.16", secrets=SECRETS))
    old = one.pods[0]
    before = auth_revision(old)
    old.terminate()
    new = one.add(old.name)
    new.start()
    new.wait_ready()
    assert "authentication is on" not in new.containers["auth"].log
    # Each change of users invalidates the tokens of all agents.
    assert auth_revision(new) == before


def test_changed_password_in_the_secret_is_applied(cluster: MakeCluster) -> None:
    one = started(cluster(AUTH, "3.6.16", secrets=SECRETS))
    pod = one.pods[0]
    one.secrets["rdzv-auth"] = {**PASSWORDS, "lattice": "of-tomorrow"}
    pod.volume("auth")
    wait_for(
        "the new password is valid", lambda: put(pod, KEY, user="lattice:of-tomorrow") is None, detail=pod.describe
    )
    assert "invalid user ID or password" in refusal(put(pod, KEY, user="lattice:of-all"))


def test_new_user_may_write_without_a_restart(cluster: MakeCluster) -> None:
    one = started(cluster(AUTH, "3.6.16", secrets=SECRETS))
    pod = one.pods[0]
    after = Renderer().objects(merged({"image": pod.etcd.spec["image"]}, TWO_TENANTS))
    assert after.pod == one.objects.pod, "another user changes the pod, so all members would restart"
    one.objects = after
    pod.volume("auth-script")
    wait_for("the new user may write", lambda: put(pod, KEY, user="vision-jobs:of-vision") is None, detail=pod.describe)


def test_user_of_another_tenant_than_before_loses_the_old_runs(cluster: MakeCluster) -> None:
    one = started(cluster(TWO_TENANTS, "3.6.16", secrets=SECRETS))
    pod = one.pods[0]
    moved = merged(TWO_TENANTS, {"auth": {"users": [{"name": "vision-jobs", "tenant": "audio"}]}})
    one.objects = Renderer().objects(merged({"image": pod.etcd.spec["image"]}, moved))
    pod.volume("auth-script")
    user, audio = "vision-jobs:of-vision", "/lattice/rdzv/audio/run/x"
    wait_for("the user may write there", lambda: put(pod, audio, user=user) is None, detail=pod.describe)
    wait_for("and not here", lambda: "permission denied" in (put(pod, KEY, user=user) or ""), detail=pod.describe)


def test_user_that_is_removed_from_the_values_is_deleted_and_no_other(cluster: MakeCluster, version: str) -> None:
    one = started(cluster(TWO_TENANTS, version, secrets=SECRETS))
    pod = one.pods[0]
    for command in (["user", "add", "own:of-own"], ["user", "grant-role", "own", "lattice-rdzv-speech"]):
        done = pod.etcd.execute("etcdctl", *command, variables={"ETCDCTL_USER": "root:of-root"})
        assert done.returncode == 0, done.stderr
    fewer = merged(TWO_TENANTS, {"auth": {"users": [{"name": "vision-jobs", "tenant": "vision"}]}})
    one.objects = Renderer().objects(merged({"image": pod.etcd.spec["image"]}, fewer))
    pod.volume("auth-script")
    speech = "/lattice/rdzv/speech/run/x"
    wait_for(
        "the user is deleted",
        lambda: "invalid user ID or password" in (put(pod, speech, user="speech-jobs:of-speech") or ""),
        detail=pod.describe,
    )
    assert "no longer in the values: `speech-jobs`" in pod.containers["auth"].log
    assert put(pod, KEY, user="vision-jobs:of-vision") is None
    assert put(pod, speech, user="own:of-own") is None


MANY = {"auth": {"users": [{"name": f"team-{number}", "tenant": f"team-{number}"} for number in range(20)]}}
MANY_PASSWORDS = {"root-password": "of-root", **{f"team-{number}": f"of-{number}" for number in range(20)}}


def test_repeated_check_of_users_proposes_nothing(
    cluster: MakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call about users is a proposal that all members must agree on and sync to disk, even a call that only reads. A login
    takes much processor time, too."""
    one = started(cluster(merged(MEMBERS, AUTH, MANY), "3.6.16", secrets={"rdzv-auth": MANY_PASSWORDS}))
    pod = one.pods[0]
    users = tmp_path / "users.json"
    users.write_text(one.config_map("lattice-rdzv-auth")["users.json"])
    for key, password in MANY_PASSWORDS.items():
        (tmp_path / key).write_text(password)
    script = runpy.run_path(str(CHART / "files" / "auth.py"))
    # A call of this many users may wait for a disk that other programs use, too.
    script["Etcd"].call.__globals__["TIMEOUT_SECONDS"] = 60.0
    keeper = script["Keeper"](script["Etcd"](f"{pod.address}:2379"), users, tmp_path)

    def looked() -> bool:
        try:
            pod.inside(keeper.look)
        except (OSError, script["Refused"]):
            # There was an election.
            return False
        return True

    def proposals_of_looks(count: int) -> float:
        before = proposals(pod)
        for _ in range(count):
            wait_for("a check succeeds", looked, timeout_seconds=60, detail=pod.describe)
        return proposals(pod) - before

    first = proposals_of_looks(1)
    assert first >= 20
    # The containers of the other members may still be in their first check.
    wait_for(
        "100 checks propose nothing", lambda: proposals_of_looks(100) == 0, timeout_seconds=120, detail=pod.describe
    )
    print(f"20 users, three members: the first check made {first:g} proposals, later ones make none")

    logins = []
    call = script["Etcd"].call

    def counted(etcd: Any, method: str, request: dict[str, Any]) -> Any:
        logins.extend([request["name"]] if method == "auth/authenticate" else [])
        return call(etcd, method, request)

    monkeypatch.setattr(script["Etcd"], "call", counted)
    monkeypatch.setitem(call.__globals__, "REVIEW_SECONDS", 0.0)
    wait_for("a review succeeds", looked, timeout_seconds=60, detail=pod.describe)
    assert set(logins) == {"root"}, "a review without a change of the Secret checks passwords"
    (tmp_path / "team-7").write_text("of-tomorrow")
    wait_for("a check succeeds", looked, timeout_seconds=60, detail=pod.describe)
    assert set(logins) >= {"root", "team-0", "team-7", "team-19"}, (
        "passwords are not checked after a change of the Secret"
    )


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
def test_incomplete_secret_is_reported_and_keeps_the_pod_unready(
    cluster: MakeCluster, passwords: dict[str, str], words: str
) -> None:
    one = cluster(AUTH, "3.6.16", secrets={"rdzv-auth": passwords})
    pod = one.start()[0]
    wait_for("the log has the error", lambda: words in pod.containers["auth"].log, detail=pod.describe)
    assert not pod.ready()


def test_different_root_password_is_reported(cluster: MakeCluster) -> None:
    one = started(cluster(AUTH, "3.6.16", secrets=SECRETS))
    old = one.pods[0]
    old.terminate()
    one.secrets["rdzv-auth"] = {**PASSWORDS, "root-password": "of-another"}
    new = one.add(old.name)
    new.start()
    words = "`root-password` in the Secret is not the password"
    wait_for("the log has the error", lambda: words in new.containers["auth"].log, detail=new.describe)
    # etcd requires passwords nevertheless, so the pod is ready and serves agents.
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
    """Writes a key. Returns etcdctl's error, or `None` if the write succeeded."""
    variables = {"ETCDCTL_USER": user} if user else {}
    done = pod.etcd.execute("etcdctl", "put", key, "1", variables=variables)
    return None if done.returncode == 0 else done.stderr


def refusal(error: str | None) -> str:
    assert error is not None, "the write succeeded"
    return error


def proposals(pod: Pod) -> float:
    """Returns the number of proposals that the cluster has committed."""
    status, text = pod.get("/metrics", 2381)
    assert status == 200, text
    return float(re.search(r"^etcd_server_proposals_committed_total (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def auth_revision(pod: Pod) -> Any:
    done = pod.etcd.execute("etcdctl", "auth", "status", variables={"ETCDCTL_USER": "root:of-root"})
    assert "Authentication Status: true" in done.stdout, done.stderr
    return done.stdout
