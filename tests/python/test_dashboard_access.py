"""Access to the dashboard, its responses, and its costs, without a browser."""

from __future__ import annotations

import json
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import JoinNode
from harness.certificates import Certificates
from harness.dashboard import Dashboard
from harness.etcd import Etcd
from harness.ports import free_port
from harness.records import WrittenRun, put_all
from harness.service import Service
from harness.status import command, validated
from harness.wait import wait_for

import lattice_rdzv
from lattice_rdzv.cli import main

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def dashboard(etcd: Service, tmp_path: Path) -> Iterator[Dashboard]:
    """The dashboard of the shared etcd."""
    with Dashboard(tmp_path, "--endpoint", etcd.endpoint).running() as dashboard:
        yield dashboard


@pytest.fixture
def login(tmp_path: Path) -> list[str]:
    """The options for a login."""
    (tmp_path / "password").write_text("page-secret\n")
    return ["--user", "ops", "--password-file", str(tmp_path / "password")]


def test_requests_under_another_name_or_from_another_site_are_refused(dashboard: Dashboard) -> None:
    here = f"127.0.0.1:{dashboard.port}"
    for path in ("/", "/events/runs", "/events/run/default/x", "/metrics", "/livez", "/scripts/app.js", "/nothing"):
        assert dashboard.get(path, Host="evil.example.com")[0] == 421, path
        assert dashboard.get(path, Origin="http://evil.example.com")[0] == 403, path
        assert dashboard.get(path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="cors")[0] == 403, path
        assert dashboard.get(path, method="POST")[0] == 405, path
    status, _, text = dashboard.get("/", Host=f"evil.example.com:{dashboard.port}")
    assert (status, "`--host`" in text) == (421, True)
    assert dashboard.get("/", Host=f"localhost:{dashboard.port}")[0] == 200
    assert dashboard.get("/", Origin=f"http://{here}")[0] == 200
    # A link on another page leads here.
    assert dashboard.get("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert dashboard.get("/", method="HEAD")[2] == ""
    assert dashboard.get("/", method="DELETE")[1]["allow"] == "GET, HEAD"
    assert dashboard.get("/events/run/another-tenant/x")[0] == 404


def test_every_response_forbids_what_the_page_does_not_need(dashboard: Dashboard) -> None:
    for path, host in (
        ("/", "localhost"),
        ("/nothing", "localhost"),
        ("/", "evil.example.com"),
        ("/style.css", "localhost"),
    ):
        _, headers, _ = dashboard.get(path, Host=host)
        policy = headers["content-security-policy"]
        assert policy.startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
        )
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.startswith("access-control")]


def test_address_that_others_reach_requires_tls_and_a_login(
    certificates: Certificates, login: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = ["--cert", str(certificates.server), "--key", str(certificates.server_key)]
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for options, missing in (
        ([], "TLS (`cert`, `key`) and a login"),
        (tls, "a login (`user`, `password_file`)"),
        (login, "TLS (`cert`, `key`)"),
    ):
        assert main(["dashboard", "--endpoint", "127.0.0.1:9", "--listen", "*:0", *options]) == 2
        printed = capsys.readouterr().err
        assert f"requires {missing}" in printed
        assert "page-secret" not in printed
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    with pytest.raises(lattice_rdzv.SettingsError, match="requires TLS"):
        lattice_rdzv.serve(port=0, dashboard=("*", 0))
    with Dashboard(tmp_path, "--endpoint", "127.0.0.1:9", *tls, *login, host="*").running() as dashboard:
        trust = ssl.create_default_context(cafile=str(certificates.authority))
        assert dashboard.get("/", tls=trust)[0] == 401
        assert dashboard.get("/", tls=trust, login="ops:page-secret")[0] == 200
        # An address cannot be made to point here by others. A name can, and needs `--host`.
        assert dashboard.get("/", tls=trust, login="ops:page-secret", Host="10.1.2.3")[0] == 200
        assert dashboard.get("/", tls=trust, login="ops:page-secret", Host="dash.example.com")[0] == 421


def test_login_protects_every_path_and_takes_a_new_password(etcd: Service, login: list[str], tmp_path: Path) -> None:
    port = free_port()
    options = [
        "--endpoint",
        etcd.endpoint,
        *login,
        "--host",
        "Dash.example.com",
        "--listen-metrics",
        f"127.0.0.1:{port}",
    ]
    with Dashboard(tmp_path, *options).running() as dashboard:
        for path in ("/", "/scripts/app.js", "/events/runs", "/metrics", "/livez", "/nothing"):
            status, headers, _ = dashboard.get(path)
            assert (status, headers["www-authenticate"].split()[0]) == (401, "Basic"), path
        assert dashboard.get("/", login="ops:page-secret", Host="dash.example.com:1")[0] == 200
        assert dashboard.get("/", login="ops:guess")[0] == 401
        assert dashboard.get("/", login="root:page-secret")[0] == 401
        (tmp_path / "password").write_text("changed\n")
        wait_for("the new password counts", lambda: dashboard.get("/", login="ops:changed")[0] == 200)
        assert dashboard.get("/", login="ops:page-secret")[0] == 401
        assert "page-secret" not in dashboard.log.read_text()
        # Probes and Prometheus cannot log in, and get nothing else.
        endpoints = [f"http://127.0.0.1:{dashboard.port}", f"http://127.0.0.1:{port}"]
        wait_for("both are printed", lambda: dashboard.lines == endpoints, detail=lambda: str(dashboard.lines))
        metrics = Dashboard(tmp_path)
        metrics.port = port
        assert [metrics.get(path)[0] for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
        assert [metrics.get(path)[0] for path in ("/", "/events/runs", "/scripts/app.js")] == [404, 404, 404]
        assert dashboard.stop() == 0


def test_events_are_what_the_command_prints_hold_no_secret_and_need_only_the_right_to_read(
    own_etcd: Etcd, tmp_path: Path
) -> None:
    WrittenRun("written", 64, 60, missing=[17], changed_ago=20, seeking=range(40)).write(own_etcd)
    for words in (
        "user add root:not-used-by-us", "role add root", "user grant-role root root", "role add reader",
        "role grant-permission reader read /lattice/rdzv/default/ --prefix=true", "user add viewer:etcd-secret",
        "user grant-role viewer reader", "auth enable",
    ):  # fmt: skip
        own_etcd.etcdctl(*words.split())
    (tmp_path / "etcd-password").write_text("etcd-secret\n")
    environment = {"LATTICE_RDZV_USER": "viewer", "LATTICE_RDZV_PASSWORD_FILE": str(tmp_path / "etcd-password")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with Dashboard(tmp_path, "--endpoint", own_etcd.endpoint).running() as dashboard:
            seen = ""
            for path in ("/events/run/default/written", "/events/run/default/no%2Fsuch", "/events/runs"):
                events = []
                for name, data in dashboard.events(path):
                    events.append(name)
                    seen += data
                    if name == "status":
                        validated(data)
                    if name in ("checked", "runs") and "status" in events:
                        break
            for path in ("/", "/metrics", "/scripts/app.js", "/scripts/run.js"):
                seen += str(dashboard.get(path))
            assert "etcd-secret" not in seen + dashboard.log.read_text()
            shown = dashboard.first("/events/run/default/written", "status")
            printed = json.loads(command("status", "written", "--endpoint", own_etcd.endpoint, "--json").stdout)
    for volatile in ("at", "service"):
        shown.pop(volatile)
        printed.pop(volatile)
    assert shown == printed


def test_watching_writes_nothing_and_ends_with_the_last_browser(own_etcd: Etcd, tmp_path: Path) -> None:
    for name in ("one", "two"):
        WrittenRun(name, 8, 4).write(own_etcd)

    def contents() -> bytes:
        return own_etcd.etcdctl("get", "", "--from-key", "--write-out=json")

    before = contents()
    with Dashboard(tmp_path, "--endpoint", own_etcd.endpoint).running() as dashboard:
        assert own_etcd.watches() == 0
        pages = [dashboard.open("/events/run/default/one") for _ in range(3)]
        for page in pages:
            assert b"event: status" in page.readline()
        # There are seven watches for one run, for any number of browsers.
        wait_for("one run is watched", lambda: own_etcd.watches() == 7)
        # Stays open, because the watches end 5 s after the last browser.
        listing = dashboard.events("/events/runs")
        assert json.loads(next(data for name, data in listing if name == "runs"))["shown"] == 2
        wait_for("both runs are watched", lambda: own_etcd.watches() == 14)
        assert "lattice_dashboard_runs_followed 2" in dashboard.get("/metrics")[2]
        for page in pages:
            page.close()
        assert contents() == before, "the revision and every key are as before"
    assert contents() == before


def test_watches_end_a_few_seconds_after_the_last_browser(own_etcd: Etcd, tmp_path: Path) -> None:
    WrittenRun("one", 8, 4).write(own_etcd)
    with Dashboard(tmp_path, "--endpoint", own_etcd.endpoint).running() as dashboard:
        events = dashboard.events("/events/run/default/one")
        next(name for name, _ in events if name == "status")
        wait_for("the run is watched", lambda: own_etcd.watches() == 7)
        events.close()
        wait_for("nothing is watched", lambda: own_etcd.watches() == 0, timeout_seconds=60)


@pytest.mark.timeout(900)
def test_slow_browsers_do_not_grow_the_memory(own_etcd: Etcd, tmp_path: Path) -> None:
    run = WrittenRun("large", 2_000, 1_000).write(own_etcd)
    path = "/events/run/default/large"
    with Dashboard(tmp_path, "--endpoint", own_etcd.endpoint).running() as dashboard:
        size = len(json.dumps(dashboard.first(path, "status")))
        slow = [dashboard.unread(path) for _ in range(20)]
        steady = dashboard.events(path)
        change = iter(range(10_000))

        def send_changes(count: int) -> None:
            for _ in range(count):
                number = next(change)
                record = {**run.node(number % 50), "port": 30_000 + number}
                put_all(own_etcd, [(run.node_key(number % 50), record)])
                next(data for name, data in steady if name == "status" and f'"port":{record["port"]},' in data)

        send_changes(5)
        before = dashboard.memory_bytes()
        send_changes(120)
        grown = dashboard.memory_bytes() - before
        sent = 120 * size
        assert grown < sent / 3, f"{grown} bytes more, where {sent} were sent that 20 browsers have not read"
        for connection in slow:
            connection.close()


def test_number_of_open_pages_is_limited(dashboard: Dashboard) -> None:
    pages = [dashboard.open("/events/run/default/none") for _ in range(64)]
    status, headers, text = dashboard.get("/events/run/default/none")
    assert (status, headers["retry-after"]) == (503, "10")
    assert "64 pages" in text
    for page in pages:
        page.close()

    def is_open() -> bool:
        with dashboard.open("/events/run/default/none") as response:
            return response.status == 200

    wait_for("a place is free", is_open)


def test_client_that_sends_nothing_or_too_much_is_disconnected(dashboard: Dashboard) -> None:
    with socket.create_connection(("127.0.0.1", dashboard.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Long: " + b"x" * 60_000 + b"\r\n\r\n")
        assert b" 431 " in connection.recv(100)
    with socket.create_connection(("127.0.0.1", dashboard.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        assert not connection.recv(100).startswith(b"HTTP/1.1 200"), "the headers do not end"
    assert dashboard.get("/")[0] == 200


def test_server_shows_the_runs_of_all_its_tenants(join: JoinNode, tmp_path: Path) -> None:
    port = free_port()
    with Dashboard(tmp_path, "--listen", f"127.0.0.1:{port}", command="serve").running() as dashboard:
        endpoint = f"http://127.0.0.1:{port}"
        assert dashboard.lines == [endpoint, f"http://127.0.0.1:{dashboard.port}"]
        join("a", nnodes=1, run_id="first job/ä", endpoint=endpoint).next_world()
        join("b", nnodes=2, run_id="second", tenant="vision", endpoint=endpoint)

        def listed() -> dict[tuple[str, str], str]:
            found: dict[tuple[str, str], str] = {}
            for name, data in dashboard.events("/events/runs"):
                if name == "runs":
                    return found
                status = validated(data)
                assert (status.service.endpoint, status.nodes) == (endpoint, ())
                found[status.run.tenant, status.run.id] = status.verdict.state
            raise AssertionError("the stream ended")

        expected = {("default", "first job/ä"): "formed", ("vision", "second"): "forming"}
        wait_for("both runs are listed", lambda: listed() == expected, detail=lambda: str(listed()))
        status = dashboard.first("/events/run/default/first%20job%2F%C3%A4", "status")
        assert [node["name"] for node in status["nodes"]] == ["a"]
        assert dashboard.stop() == 0


def test_dashboard_in_a_program(join: JoinNode) -> None:
    with lattice_rdzv.serve(port=0, dashboard=("127.0.0.1", 0), dashboard_hosts=["dash.example.com"]) as server:
        assert server.dashboard_endpoint is not None
        dashboard = Dashboard(Path())
        dashboard.port = int(server.dashboard_endpoint.rsplit(":", 1)[1])
        assert dashboard.get("/", Host="dash.example.com")[0] == 200
        join("a", nnodes=1, run_id="here", endpoint=server.endpoint).next_world()
        assert dashboard.first("/events/run/default/here", "status")["verdict"]["state"] == "formed"
    with pytest.raises(OSError, match="refused"):
        dashboard.get("/")


def test_command_has_examples_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dashboard", "--help"])
    assert "examples:" in capsys.readouterr().out
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "dashboard" in script
    assert "--listen-dashboard" in script
