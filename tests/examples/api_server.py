"""A real kube-apiserver on loopback with a separate etcd. It has no nodes and no controllers, but makes every check of an object.

`LATTICE_TEST_APISERVER` has the path of its binary. The tests do not install it themselves, because `go install` cannot build
Kubernetes from its module.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from chart.tools import tool
from harness.ports import free_port
from harness.service import Service
from harness.wait import wait_for

TOKEN = "of-this-test"  # valid on loopback, during the test


def binary() -> Path | None:
    """Returns the path of the binary, or `None` if `LATTICE_TEST_APISERVER` is not set."""
    named = os.environ.get("LATTICE_TEST_APISERVER")
    return Path(named) if named else None


class ApiServer:
    """An API server. Its owner must call `end`."""

    def __init__(self, folder: Path, etcd: Service) -> None:
        program = binary()
        assert program is not None
        self.port = free_port()
        # The certificate is self-signed.
        self.certificate = folder / "certificates" / "apiserver.crt"
        self._log = folder / "apiserver.log"
        key = folder / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens = folder / "tokens.csv"
        tokens.write_text(f"{TOKEN},admin,1,system:masters\n")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--etcd-servers=http://{etcd.endpoint}",
                    f"--secure-port={self.port}",
                    "--bind-address=127.0.0.1",
                    "--advertise-address=127.0.0.1",
                    f"--cert-dir={self.certificate.parent}",
                    f"--token-auth-file={tokens}",
                    "--authorization-mode=RBAC",
                    "--service-cluster-ip-range=10.98.0.0/16",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={key}",
                    f"--service-account-signing-key-file={key}",
                    # No controller creates the account of a namespace, or maintains endpoints.
                    "--disable-admission-plugins=ServiceAccount",
                    "--endpoint-reconciler-type=none",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def wait_ready(self) -> None:
        """Waits until the server is ready."""

        def ready() -> bool:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            return self.kubectl("get", "--raw", "/readyz", check=False).returncode == 0

        wait_for("the API server is ready", ready, timeout_seconds=120, detail=lambda: self._log.read_text()[-3000:])

    def wait_kind(self, name: str) -> None:
        """Waits until the server serves a kind whose definition was applied."""
        wait_for(f"{name} are served", lambda: self.kubectl("get", name, check=False).returncode == 0)

    def kubectl(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs kubectl with this server, without the machine's own configuration. A warning is an error."""
        done = subprocess.run(
            [
                tool("kubectl-1.37.1/kubectl"),
                f"--server=https://127.0.0.1:{self.port}",
                "--insecure-skip-tls-verify",
                f"--token={TOKEN}",
                "--warnings-as-errors",
                *arguments,
            ],
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/dev/null"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def end(self) -> None:
        """Ends the server."""
        self._process.kill()
        self._process.wait()
