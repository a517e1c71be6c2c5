"""The embedded store as a server of this process: what an etcd would be, without one. For tests, laptops, small clusters.

It holds everything in memory and has no files: when it stops, all is gone. Thin over the core's `Server`: it remembers
that a server is stopped once, at the end of its `with` block or of the process.
"""

from __future__ import annotations

from lattice_rdzv import _core, _process

# Type checkers read it as true. Importing it from `typing` would take longer than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
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
) -> Server:
    """Starts a server in this process, and returns it when it serves.

        with lattice_rdzv.serve(port=0) as server:  # a free port
            run = lattice_rdzv.join("my-run", nnodes=1, endpoint=server.endpoint)

    Args:
        host: The address to listen on, and no other; `*` is every address of the machine. Off this machine's own, give certificates or a user.
        port: 0 for a free one.
        cert: The server's certificate, with `key`: it then speaks TLS.
        key: The certificate's key.
        client_ca: The authority that clients' certificates must be of.
        user: The one user that may ask, with `password_file`.
        password_file: The file with that user's password.
        metrics: Host and port of a second listener, which serves `/metrics`, `/livez` and `/readyz` over plain HTTP and
            without a password: for Prometheus and for probes, which have no certificate.

    Raises:
        SettingsError: The address is not one of this machine's or is taken, or a file cannot be used.
    """

    def start() -> _core.Server:
        return _core.Server.start(
            host, port, cert=cert, key=key, client_ca=client_ca, user=user, password_file=password_file,
            metrics=metrics,
        )  # fmt: skip

    return Server(_process.serve(start))


class Server:
    """A server that runs. Made by `serve`; use it with `with`, which stops it at the end."""

    def __init__(self, native: _core.Server) -> None:
        self._native = native

    @property
    def endpoint(self) -> str:
        """Where clients on this machine reach it, for example `http://127.0.0.1:29400`."""
        return self._native.endpoint

    @property
    def metrics_endpoint(self) -> str | None:
        """Where programs on this machine reach the port for probes and Prometheus; `None` without `metrics`."""
        return self._native.metrics_endpoint

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until another thread stops it; false if the time was over first."""
        return self._native.wait(timeout_seconds=timeout_seconds)

    def stop(self) -> None:
        """Tells its clients and ends, within two seconds. What it held is gone. Again, or in a forked child, it does
        nothing."""
        _process.stopped(self._native)
        self._native.stop()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<lattice_rdzv.Server {self.endpoint}>"
