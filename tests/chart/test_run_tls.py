"""TLS, rendered and run with real certificates. Clients without a valid certificate are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from harness.wait import wait_for

from chart.authority import Authority
from chart.cluster import Cluster, Pod, members
from chart.conftest import MakeCluster
from chart.render import AUTH, MEMBERS, MTLS, Refused, merged

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(240)]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def secrets(authority: Authority) -> dict[str, dict[str, str]]:
    return {"rdzv-client-tls": authority.secret(), "rdzv-peer-tls": authority.secret()}


@pytest.mark.parametrize("kind", ["one", "three"])
def test_members_and_their_probes_work_over_mtls(
    cluster: MakeCluster, authority: Authority, version: str, kind: str
) -> None:
    """Members need no reverse lookup of each other, although their certificate has only a wildcard for them."""
    one = cluster(merged(MTLS, MEMBERS) if kind == "three" else MTLS, version, secrets=secrets(authority))
    one.hides_sources = True
    pod = started(one).pods[0]
    assert pod.etcd.probe("liveness")
    # As `kubectl exec` without any flag, because the variables name the files and the endpoint.
    wait_for(
        "it accepts a write", lambda: pod.etcd.execute("etcdctl", "put", "x", "1").returncode == 0, detail=pod.describe
    )
    assert len(members(pod)) == len(one.pods)
    assert all(
        url.startswith("https://") for member in members(pod) for url in member["clientURLs"] + member["peerURLs"]
    )


def test_renewed_certificate_is_read_without_a_restart(cluster: MakeCluster, authority: Authority) -> None:
    one = started(cluster(MTLS, "3.6.16", secrets=secrets(authority)))
    pod = one.pods[0]
    one.secrets["rdzv-client-tls"] = authority.secret("renewed")
    pod.volume("client-tls")
    handshake = subprocess.run(
        [
            *("nsenter", f"--net=/run/netns/{pod.namespace}", "openssl", "s_client", "-connect", f"{pod.address}:2379"),
            *("-servername", "lattice-rdzv-client.lattice.svc.cluster.local"),
        ],
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CN = renewed" in handshake.stdout, handshake.stdout + handshake.stderr


def may_write(pod: Pod, files: Mapping[str, str]) -> bool:
    """Returns whether a client in the pod's network may write with these files of a Secret. A refusal takes etcdctl's timeout."""
    flags = {"ca.crt": "cacert", "tls.crt": "cert", "tls.key": "key"}
    with TemporaryDirectory() as folder:
        for key, text in files.items():
            Path(folder, key).write_text(text)
        done = subprocess.run(
            [
                *("nsenter", f"--net=/run/netns/{pod.namespace}", pod.cluster.etcd / "etcdctl", "put", "x", "1"),
                *(f"--endpoints=https://{pod.address}:2379", "--dial-timeout=10s", "--command-timeout=10s"),
                *(f"--{flags[key]}={folder}/{key}" for key in files),
            ],
            capture_output=True,
            check=False,
        )
    return done.returncode == 0


def test_only_a_certificate_of_the_same_authority_may_write(
    cluster: MakeCluster, authority: Authority, version: str, tmp_path: Path
) -> None:
    # The certificate has the address, so that a client can connect without DNS.
    served = {"rdzv-client-tls": authority.secret(addresses=("10.213.7.1",)), "rdzv-peer-tls": authority.secret()}
    pod = started(cluster(MTLS, version, secrets=served)).pods[0]
    agent = authority.secret("agent")
    wait_for("its client may write", lambda: may_write(pod, agent), detail=pod.describe)
    stranger = Authority(tmp_path, "stranger")
    clients = {
        "no certificate": {"ca.crt": agent["ca.crt"]},
        "a certificate of another authority": {**stranger.secret("agent"), "ca.crt": authority.certificate},
        "an expired certificate": authority.secret("agent", expired=True),
        "a server that the client does not know": {**authority.secret("agent"), "ca.crt": stranger.certificate},
    }
    # In parallel, because each refusal takes etcdctl's timeout.
    with ThreadPoolExecutor() as pool:
        wrote = pool.map(partial(may_write, pod), clients.values())
    assert [client for client, written in zip(clients, wrote, strict=True) if written] == []
    plain = pod.etcd.execute("etcdctl", "put", "x", "2", variables={"ETCDCTL_ENDPOINTS": "http://127.0.0.1:2379"})
    assert plain.returncode != 0
    stored = pod.etcd.execute("etcdctl", "get", "x", "--print-value-only")
    assert stored.stdout == "1\n"


ON_A_VOLUME = {"persistence": {"enabled": True}}
PASSWORDS = {"root-password": "of-root", "lattice": "of-all"}
CLIENTS_ALONE = {"tls": {"client": MTLS["tls"]["client"]}}


@pytest.mark.parametrize(
    "values",
    [
        CLIENTS_ALONE,
        merged(CLIENTS_ALONE, ON_A_VOLUME),
        merged(MTLS, MEMBERS),
        AUTH,
        merged(CLIENTS_ALONE, AUTH),
        merged(AUTH, MEMBERS, {"serverService": {"clientPort": {"internalPort": 3379}}}),
    ],
    ids=["mtls", "mtls-volume", "mtls-three", "auth", "mtls-auth", "auth-three"],
)
def test_stranger_cannot_write_to_any_port(
    cluster: MakeCluster, authority: Authority, version: str, values: dict[str, Any]
) -> None:
    """Up to 3.5, etcd also serves the client API on the peer port, and requires no certificate there."""
    one = cluster(values, version, secrets={**secrets(authority), "rdzv-auth": PASSWORDS})
    check_strangers(started(one).pods[0])


def test_stranger_cannot_write_to_an_unencrypted_peer_port(
    cluster: MakeCluster, authority: Authority, version: str
) -> None:
    values = merged(CLIENTS_ALONE, MEMBERS)
    if version < "3.6":
        with pytest.raises(Refused, match="serves the client API on the peer port"):
            cluster(values, version)
    else:
        check_strangers(started(cluster(values, version, secrets=secrets(authority))).pods[0])


def check_strangers(pod: Pod) -> None:
    """Tries to write to every port of the pod, with TLS and without."""
    ports = {port["containerPort"] for each in pod.containers.values() for port in each.spec["ports"]}
    attempts = [(scheme, port) for port in {*ports, 2380, 2383} for scheme in ("http", "https")]
    assert len(attempts) >= 8
    with ThreadPoolExecutor(len(attempts)) as at_once:
        done = list(at_once.map(lambda attempt: write_as_stranger(pod, *attempt), attempts))
    assert not [attempt for attempt, wrote in zip(attempts, done, strict=True) if wrote], pod.describe()


def write_as_stranger(pod: Pod, scheme: str, port: int) -> bool:
    """Returns whether a client without a certificate and without a password can write a key to the pod's address."""
    return (
        subprocess.run(
            [
                *("nsenter", f"--net=/run/netns/{pod.namespace}", pod.cluster.etcd / "etcdctl", "put", "stranger", "1"),
                *(f"--endpoints={scheme}://{pod.address}:{port}", "--insecure-skip-tls-verify"),
                *("--dial-timeout=3s", "--command-timeout=3s"),
            ],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


def test_without_client_certificates_tls_serves_every_client_that_trusts_it(
    cluster: MakeCluster, authority: Authority, version: str, tmp_path: Path
) -> None:
    served = {"rdzv-client-tls": authority.secret(addresses=("10.213.7.1",)), "rdzv-peer-tls": authority.secret()}
    values = merged(MTLS, {"tls": {"client": {"requireClientCert": False}}})
    pod = started(cluster(values, version, secrets=served)).pods[0]
    wait_for("it may write", lambda: may_write(pod, {"ca.crt": authority.certificate}))


def test_peer_of_another_authority_is_no_member(cluster: MakeCluster, authority: Authority, tmp_path: Path) -> None:
    one = cluster(merged(MTLS, MEMBERS), "3.6.16", secrets=secrets(authority))
    pods = one.start()[:2]
    for pod in pods:
        pod.wait_ready()
    third = one.pods[2]
    third.wait_ready()
    third.terminate()
    one.secrets["rdzv-peer-tls"] = Authority(tmp_path, "stranger").secret()
    foreign = one.add("lattice-rdzv-2")
    foreign.start()
    refused = (
        "remote error: tls: bad certificate",
        "tls: unknown certificate authority",
        "certificate signed by unknown",
    )
    wait_for(
        "the others refuse it", lambda: any(words in pods[0].etcd.log for words in refused), detail=pods[0].describe
    )
    assert not foreign.ready()


def started(one: Cluster) -> Cluster:
    one.start()
    one.wait_ready()
    return one
