"""The embedded server, as `lattice_rdzv.serve` and as the command `lattice-rdzv serve`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from harness.certificates import Certificates
from harness.ports import free_port
from harness.programs import Program
from harness.together import together
from harness.wait import wait_for

import lattice_rdzv
from lattice_rdzv.cli import listen


def join(endpoint: str, name: str, **settings: str) -> lattice_rdzv.Run:
    return lattice_rdzv.join(
        "served", nnodes=2, endpoint=endpoint, node_name=name, local_address="127.0.0.1", lease_ttl=10, settle_time=0.1,
        **settings,  # type: ignore[arg-type]
    )  # fmt: skip


def form_world(endpoint: str, **settings: str) -> None:
    """Forms a world of two nodes with the service."""
    with join(endpoint, "node-1", **settings) as one, join(endpoint, "node-2", **settings) as two:
        worlds = together(one.next_world, two.next_world)
        assert sorted(world.rank for world in worlds) == [0, 1]
        worlds[0].store.set("key", b"value")
        assert worlds[1].store.get("key") == b"value"


def is_port_open(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1):
            return True
    except OSError:
        return False


def test_nodes_form_a_world_without_an_etcd() -> None:
    with lattice_rdzv.serve(port=0) as server:
        form_world(server.endpoint)
        with urllib.request.urlopen(f"{server.endpoint}/metrics", timeout=30) as page:
            assert b"lattice_rdzv_leases" in page.read()
    assert not is_port_open(server.endpoint)
    server.stop()
    assert server.wait(timeout_seconds=0)


def test_it_listens_on_the_given_address_with_a_new_id_each_time() -> None:
    with lattice_rdzv.serve(port=free_port()) as server:
        port = urlsplit(server.endpoint).port or 0
        with pytest.raises(lattice_rdzv.SettingsError, match=str(port)):
            lattice_rdzv.serve(port=port)
        assert not server.wait(timeout_seconds=0.01)
        first = server._native.member_id
    with lattice_rdzv.serve(port=port) as server:
        assert server._native.member_id != first
    with pytest.raises(lattice_rdzv.SettingsError, match=r"192\.0\.2\.1"):
        lattice_rdzv.serve("192.0.2.1", 0)


def test_half_of_a_pair_is_an_error() -> None:
    for half in ({"cert": "a.pem"}, {"key": "a.key"}, {"client_ca": "a.pem"}):
        with pytest.raises(lattice_rdzv.SettingsError, match="`cert` and `key`"):
            lattice_rdzv.serve(port=0, **half)  # type: ignore[arg-type]
    for half in ({"user": "me"}, {"password_file": "file"}):
        with pytest.raises(lattice_rdzv.SettingsError, match="`password_file`"):
            lattice_rdzv.serve(port=0, **half)  # type: ignore[arg-type]
    # The value may be a password by mistake, so the error does not repeat it.
    with pytest.raises(lattice_rdzv.SettingsError, match=r"`password_file`.*has 17 bytes") as refused:
        lattice_rdzv.serve(port=0, user="me", password_file="/nowhere/password")
    assert "/nowhere" not in str(refused.value)
    with pytest.raises(lattice_rdzv.SettingsError, match="/nowhere/cert"):
        lattice_rdzv.serve(port=0, cert="/nowhere/cert", key="/nowhere/key")


def test_certificates_in_both_directions(certificates: Certificates) -> None:
    with lattice_rdzv.serve(
        port=0, cert=certificates.server, key=certificates.server_key, client_ca=certificates.authority
    ) as server:
        authority = str(certificates.authority)
        form_world(server.endpoint, cacert=authority, cert=str(certificates.client), key=str(certificates.client_key))
        with pytest.raises(lattice_rdzv.UnreachableError):
            join(server.endpoint, "stranger", cacert=authority, connect_timeout="3")


def test_password(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("secret\n")
    wrong.write_text("guess\n")
    with lattice_rdzv.serve(port=0, user="me", password_file=right) as server:
        form_world(server.endpoint, user="me", password_file=str(right))
        with pytest.raises(lattice_rdzv.UnreachableError, match="denied access"):
            join(server.endpoint, "stranger", user="me", password_file=str(wrong))
        with pytest.raises(lattice_rdzv.UnreachableError, match="denied access"):
            join(server.endpoint, "stranger")


def test_exits_are_quiet_and_let_a_node_leave_first(tmp_path: Path) -> None:
    source = """
        import lattice_rdzv, sys, threading
        server = lattice_rdzv.serve(port=0)
        run = lattice_rdzv.join("alone", nnodes=1, endpoint=server.endpoint, local_address="127.0.0.1", settle_time=0.1)
        run.next_world()
        threading.Thread(target=server.wait, daemon=True).start()
    """
    programs = [Program(tmp_path, source, LATTICE_RDZV_LOG="info") for _ in range(4)]
    for one in programs:
        assert one.wait() == 0, one.output
        assert "has stopped" in one.output
        assert not re.search("Traceback|panicked|WARNING(?!.*was paused)", one.output), one.output


def test_forked_child_neither_stops_it_nor_keeps_its_port(tmp_path: Path) -> None:
    source = """
        import lattice_rdzv, os, sys, time, urllib.request
        from urllib.parse import urlsplit
        reading, writing = os.pipe()
        with lattice_rdzv.serve(port=0) as server:
            child = os.fork()
            if child:
                urllib.request.urlopen(server.endpoint + "/health", timeout=30).close()
        # The child has left the block, too, and keeps the descriptors that it inherited until the parent writes.
        if child == 0:
            os.read(reading, 1)
            os._exit(0)
        with lattice_rdzv.serve(port=urlsplit(server.endpoint).port) as again:
            urllib.request.urlopen(again.endpoint + "/health", timeout=30).close()
            os.write(writing, b".")
            os.waitpid(child, 0)
            urllib.request.urlopen(again.endpoint + "/health", timeout=30).close()
        print("done", flush=True)
    """
    program = Program(tmp_path, source)
    assert program.wait() == 0, program.output
    assert "done" in program.output, program.output


class Serve:
    """The command, in a separate process."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._log = folder / "serve.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lattice_rdzv.cli", "serve", *arguments],
                stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "LATTICE_RDZV_LOG": "info"},
            )  # fmt: skip
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().decode().strip()
        self.metrics = self.process.stdout.readline().decode().strip() if "--listen-metrics" in arguments else ""

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_serves_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    serve = Serve(tmp_path, "--listen", "127.0.0.1:0")
    form_world(serve.endpoint)
    assert serve.end(number) == 0, serve.log
    # The server warns if a busy machine pauses it.
    lines = [line for line in serve.log.splitlines() if "was paused" not in line]
    assert len(lines) == 2, serve.log
    assert "listens on 127.0.0.1" in lines[0]
    assert "has stopped" in lines[1]


def test_command_warns_once_if_every_client_is_accepted(tmp_path: Path) -> None:
    serve = Serve(tmp_path, "--listen", "0.0.0.0:0")
    wait_for("a warning", lambda: "WARNING" in serve.log, detail=lambda: serve.log)
    assert serve.end(signal.SIGTERM) == 0
    assert serve.log.count("neither TLS nor a password") == 1
    assert urlsplit(serve.endpoint).hostname == "127.0.0.1", "this machine reaches the server at this address"


def read_page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as page:
        return str(page.read().decode())


def test_metrics_port_asks_for_no_certificate(certificates: Certificates, tmp_path: Path) -> None:
    serve = Serve(
        tmp_path,
        *("--listen", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0", "--cert", str(certificates.server)),
        *("--key", str(certificates.server_key), "--client-ca", str(certificates.authority)),
    )
    trusting = ssl.create_default_context(cafile=certificates.authority)
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
        urllib.request.urlopen(f"{serve.endpoint}/livez", timeout=30, context=trusting).close()
    assert read_page(f"{serve.metrics}/livez") == "ok\n"
    assert read_page(f"{serve.metrics}/readyz") == "ok\n"
    assert "\netcd_server_has_leader 1\n" in read_page(f"{serve.metrics}/metrics")
    files = {"cacert": certificates.authority, "cert": certificates.client, "key": certificates.client_key}
    form_world(serve.endpoint, **{name: str(file) for name, file in files.items()})
    assert serve.end(signal.SIGTERM) == 0, serve.log


def test_metrics_port_of_a_server_in_this_process() -> None:
    with lattice_rdzv.serve(port=0) as server:
        assert server.metrics_endpoint is None
    with lattice_rdzv.serve(port=0, metrics=("127.0.0.1", 0)) as server:
        endpoint = server.metrics_endpoint
        assert endpoint is not None
        assert read_page(f"{endpoint}/livez") == "ok\n"
        port = urlsplit(endpoint).port
        with pytest.raises(lattice_rdzv.SettingsError, match=str(port)):
            lattice_rdzv.serve(port=0, metrics=("127.0.0.1", port or 0))
    assert not is_port_open(endpoint)


def test_port_that_is_taken_ends_the_command(tmp_path: Path) -> None:
    with lattice_rdzv.serve(port=0) as server:
        port = urlsplit(server.endpoint).port
        serve = Serve(tmp_path, "--listen", f"127.0.0.1:{port}")
        assert serve.end(signal.SIGTERM) == 1
        assert f"port {port}" in serve.log


def test_addresses() -> None:
    assert listen.address("node0:29400") == ("node0", 29400)
    assert listen.address("node0") == ("node0", 29400)
    assert listen.address(":7") == ("127.0.0.1", 7)
    assert listen.address("[::1]:7") == ("::1", 7)
    assert listen.address("[::1]") == ("::1", 29400)
    for wrong in ("node0:x", "node0:70000", "node0:-1"):
        with pytest.raises(argparse.ArgumentTypeError, match=wrong):
            listen.address(wrong)
    assert listen.address("*:7") == ("*", 7)
    assert listen.address_with_port(":7") == ("127.0.0.1", 7)
    for wrong in ("node0", "[::1]"):
        with pytest.raises(argparse.ArgumentTypeError, match="host:port"):
            listen.address_with_port(wrong)


def test_name_that_is_a_loopback_address_here_is_warned_of() -> None:
    for host, endpoint in [
        ("localhost", "http://127.0.0.1:7"),
        ("127.0.0.1", "http://127.0.0.1:7"),
        ("::1", "http://[::1]:7"),
        ("head", "https://10.0.0.7:7"),
        ("0.0.0.0", "http://127.0.0.1:7"),
        ("*", "http://127.0.0.1:7"),
    ]:
        assert listen.loopback_warning(host, endpoint) is None, host
    warning = listen.loopback_warning("head", "http://127.0.1.1:7")
    assert warning is not None
    assert warning.startswith("`head` is 127.0.1.1 on this machine, so other machines cannot connect")


@pytest.mark.parametrize("read", ["password_file", "cert"])
def test_other_threads_run_while_a_server_reads_its_files(tmp_path: Path, read: str) -> None:
    # A pipe is read once another thread of the same program has written it, which needs the interpreter.
    starting = Program(
        tmp_path,
        f"""
    import os, threading
    import lattice_rdzv
    pipe = {str(tmp_path / "pipe")!r}
    os.mkfifo(pipe)
    def write():
        with open(pipe, "w") as file:
            file.write("secret")
    threading.Thread(target=write).start()
    files = dict(user="user", password_file=pipe) if {read!r} == "password_file" else dict(cert=pipe, key=os.devnull)
    try:
        with lattice_rdzv.serve(port=0, **files):
            print("served")
    except lattice_rdzv.SettingsError as error:
        print(error)
""",
    )
    assert starting.wait() == 0, starting.output
    assert ("served" if read == "password_file" else "in PEM form") in starting.output


def test_command_may_open_as_many_files_as_its_user(tmp_path: Path) -> None:
    low = "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]"
    low += "; resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))"
    raised = "; from lattice_rdzv.cli.serve import raise_open_files; raise_open_files()"
    shown = "; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard)"
    for step, expected in (("", b"False"), (raised, b"True")):
        output = subprocess.run(
            [sys.executable, "-c", low + step + shown], check=True, capture_output=True, cwd=tmp_path, timeout=30
        ).stdout
        assert output.strip() == expected
