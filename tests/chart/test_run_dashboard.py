"""The page's user of etcd, the page itself, and `lattice-rdzv status` in a pod, with real servers in the rendered pods."""

from __future__ import annotations

import base64
import copy
import ssl
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

from chart.authority import Authority
from chart.cluster import Cluster, Pod
from chart.conftest import MakeCluster, RunCluster, image_of
from chart.render import AUTH, EMBEDDED, MTLS, Renderer, merged
from chart.test_dashboard import NAME, PAGE
from chart.test_run_auth import put, refusal, started
from chart.tools import tool

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(240)]

CLIENT_TLS = {"tls": {"client": MTLS["tls"]["client"]}}
PASSWORD = {"auth": AUTH["auth"]}
VISION = {"auth": {"users": [{"name": "lattice", "tenant": "vision"}]}}
SECRETS = {"rdzv-auth": {"root-password": "of-root", "lattice": "of-agents", NAME: "of-page", "second": "of-second"}}
KEY = "/lattice/rdzv/vision/run/x"
READER = f"{NAME}:of-page"
# Contains the package of these tests, see `Container._has_package`.
IMAGE = {"dashboard": {"image": "lattice-rdzv:0.2.0"}, "agents": {"image": "lattice-rdzv:0.2.0"}}


def read(pod: Pod, key: str, user: str) -> str:
    """Returns the value of a key, or etcdctl's error."""
    done = pod.etcd.execute("etcdctl", "get", key, "--print-value-only", variables={"ETCDCTL_USER": user})
    return (done.stdout + done.stderr).strip()


def test_page_reads_the_runs_of_its_tenant_and_writes_nothing(cluster: MakeCluster, version: str) -> None:
    pod = started(cluster(merged(AUTH, VISION, PAGE), version, secrets=SECRETS)).pods[0]
    assert put(pod, KEY, user="lattice:of-agents") is None
    assert read(pod, KEY, READER) == "1"
    assert "permission denied" in refusal(put(pod, KEY, user=READER))
    done = pod.etcd.execute("etcdctl", "del", KEY, variables={"ETCDCTL_USER": READER})
    assert done.returncode != 0
    assert "permission denied" in done.stderr
    for elsewhere in ("/lattice/rdzv/speech/run/x", "/elsewhere"):
        assert "permission denied" in read(pod, elsewhere, READER)
    assert "invalid user ID or password" in read(pod, KEY, f"{NAME}:wrong")
    assert read(pod, KEY, "lattice:of-agents") == "1"


def test_user_that_becomes_the_pages_loses_its_right_to_write(cluster: MakeCluster) -> None:
    users = {"auth": {"users": [{"name": "lattice", "tenant": ""}, {"name": "second", "tenant": ""}]}}
    one = started(cluster(merged(AUTH, users), "3.6.16", secrets=SECRETS))
    pod = one.pods[0]
    assert put(pod, KEY, user="second:of-second") is None
    page = {
        "auth": {"users": users["auth"]["users"][:1]},
        "dashboard": {"etcd": {"user": "second"}, "tenant": "vision"},
    }
    one.objects = Renderer().objects(merged({"image": image_of("3.6.16")}, AUTH, PAGE, page))
    pod.volume("auth-script")
    wait_for(
        "it may not write any more",
        lambda: "permission denied" in (put(pod, KEY, user="second:of-second") or ""),
        detail=pod.describe,
    )
    wait_for("it may read", lambda: read(pod, KEY, "second:of-second") == "1", detail=pod.describe)


@pytest.fixture
def make(run_cluster: RunCluster, tmp_path: Path) -> MakeCluster:
    """Starts a cluster of values whose pods have the package, with its certificates."""
    authority = Authority(tmp_path)

    def cluster(values: dict[str, Any]) -> Cluster:
        secrets = {
            **SECRETS,
            "rdzv-client-tls": authority.secret(),
            "page-tls": authority.secret(addresses=("127.0.0.1",)),
            "page-login": {"lattice": "of-browsers"},
        }
        one = run_cluster(Renderer().objects(values), tool("etcd-3.6.16"), secrets=secrets)
        one.start()
        one.wait_ready()
        return one

    return cluster


# A node that joins a run and stays in it until it is killed.
NODE = """
import lattice_rdzv, os, time
run = lattice_rdzv.join(os.environ["JOB"], nnodes=1)
run.next_world()
print("formed", flush=True)
time.sleep(3600)
"""


def agent(one: Cluster, values: dict[str, Any], job: str) -> Pod:
    """Starts a pod with the settings of agents, which runs a node of this run."""
    hook = copy.deepcopy(Renderer().hooks(values).get("Pod", "lattice-rdzv-test-rendezvous"))
    container = hook["spec"]["containers"][0]
    hook["spec"]["containers"] = [container]
    container["args"] = [NODE]
    container["env"] = [{"name": "JOB", "value": job}]
    pod = one.add(f"agent-{job}", hook)
    pod.start()
    log = next(iter(pod.containers.values()))
    wait_for("its world forms", lambda: "formed" in log.log, detail=pod.describe)
    return pod


ENGINES: dict[str, dict[str, Any]] = {
    "embedded": merged(EMBEDDED, IMAGE),
    "embedded-mtls-password": merged(EMBEDDED, IMAGE, CLIENT_TLS, PASSWORD),
    "etcd": merged({"image": "quay.io/coreos/etcd:v3.6.16"}, IMAGE),
    "etcd-mtls-roles": merged({"image": "quay.io/coreos/etcd:v3.6.16"}, IMAGE, CLIENT_TLS, AUTH, VISION),
}
each_engine = pytest.mark.parametrize("engine", ENGINES)


@each_engine
def test_status_in_a_pod_needs_no_argument_if_there_is_one_run(make: Any, engine: str) -> None:
    values = ENGINES[engine]
    one = make(values)
    first = agent(one, values, "first")
    container = next(iter(first.containers.values()))
    done = container.execute("lattice-rdzv", "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Run first: FORMED"), done.stdout
    agent(one, values, "second")
    # With two runs, it lists both; with the variable of the job, it shows that run.
    done = container.execute("lattice-rdzv", "status")
    assert {"first", "second"} <= set(done.stdout.split()), done.stdout + done.stderr
    done = container.execute("lattice-rdzv", "status", variables={"LATTICE_RDZV_ID": "second"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Run second: FORMED"), done.stdout


@each_engine
def test_page_runs_in_its_pod_and_shows_the_runs(make: Any, engine: str) -> None:
    values = merged(PAGE, ENGINES[engine])
    one = make(values)
    page = one.add(f"{NAME}-5d8f", one.objects.get("Deployment", NAME)["spec"]["template"])
    page.start()
    page.wait_ready()
    agent(one, values, "job")
    port = page.containers["dashboard"].ports["metrics"]
    text = ""

    def scrape() -> bool:
        nonlocal text
        status, text = page.get("/metrics", port)
        return status == 200 and 'run="job",state="formed"} 1' in text

    wait_for("the run is in the metrics", scrape, detail=lambda: text + page.describe())
    trust = ssl.create_default_context(cadata=one.secrets["page-tls"]["ca.crt"])

    def get(login: str | None) -> int:
        request = urllib.request.Request(f"https://127.0.0.1:{page.containers['dashboard'].ports['page']}/")
        if login is not None:
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=10, context=trust) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    logins = {None: 401, "lattice:wrong": 401, "lattice:of-browsers": 200}
    assert {login: page.inside(lambda login=login: get(login)) for login in logins} == logins
    # No secret of the page is in its log.
    for password in ("of-page", "of-browsers", "of-agents"):
        assert password not in page.describe()
    page.containers["dashboard"].terminate(30)
    assert not page.running
