"""`lattice-rdzv dashboard` as a process, and its responses as a client without a browser receives them."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.parse import urlsplit

from harness.ports import free_port
from harness.status import validated
from harness.wait import wait_for


class Dashboard:
    """One dashboard. It keeps its port when it is restarted."""

    def __init__(self, folder: Path, *arguments: str, command: str = "dashboard", host: str = "127.0.0.1") -> None:
        self.port = free_port()
        self.arguments = [command, *arguments]
        listen = "--listen" if command == "dashboard" else "--listen-dashboard"
        self.arguments += [listen, f"{host}:{self.port}"]
        self.log = folder / f"dashboard-{self.port}.log"
        self.out = folder / f"dashboard-{self.port}.out"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it listens."""
        with self.log.open("ab") as log, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lattice_rdzv.cli", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )

        def listens() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            return any(str(self.port) in line for line in self.lines)

        wait_for("the dashboard listens", listens, detail=self.log.read_text)

    def stop(self) -> int:
        """Stops it with SIGTERM and returns its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10)

    @contextmanager
    def running(self) -> Iterator[Dashboard]:
        """Runs the dashboard for a context, and stops it at the end."""
        try:
            self.start()
            yield self
        finally:
            if self.process is not None:
                self.process.kill()
                self.process.wait()

    @property
    def lines(self) -> list[str]:
        """The lines that it has printed."""
        return self.out.read_text().splitlines()

    @property
    def url(self) -> str:
        """The address of the page."""
        return next(line for line in self.lines if str(self.port) in line)

    def memory_bytes(self) -> int:
        """The memory that the process has in use."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def get(
        self, path: str, *, method: str = "GET", tls: SSLContext | None = None, login: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Returns the status, the headers and the body of a response."""
        response = self.open(path, method=method, tls=tls, login=login, **headers)
        with response:
            return (
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read().decode(),
            )

    def open(
        self, path: str, *, method: str = "GET", tls: SSLContext | None = None, login: str | None = None, **headers: str
    ) -> HTTPResponse:
        """Returns a response that the caller reads."""
        kind: Any = HTTPConnection if tls is None else HTTPSConnection
        connection = kind("127.0.0.1", self.port, timeout=30, **({} if tls is None else {"context": tls}))
        if login is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        # The response then owns the connection.
        headers["Connection"] = "close"
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse()  # type: ignore[no-any-return]

    def events(self, path: str) -> Generator[tuple[str, str], None, None]:
        """Yields the name and the data of each event of a stream."""
        with self.open(path) as response:
            assert response.status == 200, response.read()
            assert response.getheader("content-type") == "text/event-stream"
            name = ""
            for line in response:
                text = line.decode().rstrip("\n")
                if text.startswith("event: "):
                    name = text.removeprefix("event: ")
                elif text.startswith("data: "):
                    yield name, text.removeprefix("data: ")

    def first(self, path: str, name: str) -> dict[str, Any]:
        """Returns the data of the first event of this name. Fails if a status does not have the structure of the schema."""
        data = next(data for found, data in self.events(path) if found == name)
        if name == "status":
            validated(data)
        return dict(json.loads(data))

    def unread(self, path: str) -> socket.socket:
        """Opens a connection that requests a stream and reads nothing."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {urlsplit(self.url).netloc}\r\n\r\n".encode())
        return connection
