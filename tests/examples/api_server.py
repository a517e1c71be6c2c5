"""A real kube-apiserver on loopback, over an etcd of its own: no nodes and no controllers, but every check of an object.

Its binary is `LATTICE_TEST_APISERVER`: Kubernetes is no module that could be built by name, so tests do not get it themselves.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from chart.tools import tool
from harness.ports import free_port
from harness.service import Service
from harness.wait import wait_for

TOKEN = "of-this-test"  # on loopback, for as long as the test takes


def binary() -> Path | None:
    """Where it is on this machine; `None` if it is not named."""
    named = os.environ.get("LATTICE_TEST_APISERVER")
    return Path(named) if named else None


class ApiServer:
    """One server that its owner ends."""

    def __init__(self, folder: Path, etcd: Service) -> None:
        program = binary()
        assert program is not None
        self.port = free_port()
        # Signed by nobody else.
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
                    # Nobody is there to make a namespace's account, or to look after endpoints.
                    "--disable-admission-plugins=ServiceAccount",
                    "--endpoint-reconciler-type=none",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def wait_ready(self) -> None:
        """Waits until it serves."""

        def ready() -> bool:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            return self.kubectl("get", "--raw", "/readyz", check=False).returncode == 0

        wait_for("the API server is ready", ready, timeout_seconds=120, detail=lambda: self._log.read_text()[-3000:])

    def wait_kind(self, name: str) -> None:
        """Waits until it serves a kind that it was told of."""
        wait_for(f"{name} are served", lambda: self.kubectl("get", name, check=False).returncode == 0)

    def kubectl(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """kubectl towards it, whatever this machine's own configuration says. A warning is an error."""
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
        """Ends it."""
        self._process.kill()
        self._process.wait()
