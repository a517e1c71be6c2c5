"""Runs the embedded, etcd-compatible server in this process. For tests, laptops, and small clusters.

The server keeps all data in memory and writes no files, so the data is lost when it stops. This module wraps the core's
`Server` and stops each server at the end of its `with` block or of the process.
"""

from __future__ import annotations

from lattice_rdzv import _core, _process

# Type checkers read it as true. Importing it from `typing` would take longer than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from types import TracebackType

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 29400


def serve(
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    cert: str | PathLike[str] | None = None,
    key: str | PathLike[str] | None = None,
    client_ca: str | PathLike[str] | None = None,
    user: str | None = None,
    password_file: str | PathLike[str] | None = None,
    metrics: tuple[str, int] | None = None,
    dashboard: tuple[str, int] | None = None,
    dashboard_hosts: Sequence[str] = (),
) -> Server:
    """Starts a server in this process, and returns it when it accepts connections.

        with lattice_rdzv.serve(port=0) as server:  # a free port
            run = lattice_rdzv.join("my-run", nnodes=1, endpoint=server.endpoint)

    Args:
        host: The address to listen on. `*` means every address of the machine. If other machines can reach the address, pass
            a certificate and a user, or a certificate and `client_ca`.
        port: The port to listen on. 0 selects a free port.
        cert: File with the server's certificate. Enables TLS and requires `key`.
        key: File with the private key of the certificate.
        client_ca: File with the CA of the certificates that clients must have.
        user: The user as whom clients must log in. Requires `password_file`.
        password_file: File with the password of that user.
        metrics: Host and port of a second listener, which serves `/metrics`, `/livez` and `/readyz` over plain HTTP and
            without a password: for Prometheus and for probes, which have no certificate. With `dashboard`, `/metrics` includes
            the metrics of runs.
        dashboard: Host and port of a listener for the dashboard of the runs that this server holds, with the same
            certificate and login. If other machines can reach the address, both are required.
        dashboard_hosts: Further host names under which browsers reach the dashboard.

    Raises:
        SettingsError: The address does not belong to this machine or is in use, a file cannot be used, or the dashboard
            would be open to other machines without TLS and a login.
    """
    _process.begin()
    starting = _core.Server.start(
        host, port, cert=cert, key=key, client_ca=client_ca, user=user, password_file=password_file,
        metrics=metrics, dashboard=dashboard, dashboard_hosts=list(dashboard_hosts),
    )  # fmt: skip
    return Server(_process.serving(starting.wait()))


class ServerFacts:
    """What `Server` and `aio.Server` have in common."""

    def __init__(self, native: _core.Server) -> None:
        self._native = native

    @property
    def endpoint(self) -> str:
        """The endpoint for clients on this machine, for example `http://127.0.0.1:29400`."""
        return self._native.endpoint

    @property
    def metrics_endpoint(self) -> str | None:
        """Where programs on this machine reach the port for probes and Prometheus; `None` without `metrics`."""
        return self._native.metrics_endpoint

    @property
    def dashboard_endpoint(self) -> str | None:
        """The URL of the dashboard for browsers on this machine; `None` without `dashboard`."""
        return self._native.dashboard_endpoint

    def __repr__(self) -> str:
        return f"<lattice_rdzv.Server {self.endpoint}>"


class Server(ServerFacts):
    """A running server. Created by `serve`. Use it in a `with` statement, which stops it at the end."""

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until another thread stops the server. Returns false if the time limit expires first."""
        return self._native.wait(timeout_seconds=timeout_seconds).wait()

    def stop(self) -> None:
        """Notifies the clients and stops within two seconds. All data is lost. A second call, or a call in a forked child,
        does nothing."""
        _process.stopped(self._native)
        self._native.stop().wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
