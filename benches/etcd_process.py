"""An etcd for a measurement, and its counters."""

import base64
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lattice_rdzv.cli.local_etcd import serving_etcd

# Without a proxy of the environment, because etcd runs on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Etcd:
    """A running etcd."""

    endpoint: str

    def version(self) -> str:
        """Returns its version."""
        return str(json.loads(self._get("/version"))["etcdserver"])

    def revision(self) -> int:
        """Returns its revision, which every write increases."""
        body = json.dumps({"key": base64.b64encode(b"\0").decode()}).encode()
        request = urllib.request.Request(f"http://{self.endpoint}/v3/kv/range", data=body, method="POST")
        with _OPENER.open(request, timeout=5) as answer:
            document: dict[str, Any] = json.load(answer)
        return int(document["header"]["revision"])

    def metric(self, name: str) -> float | None:
        """Returns one of its counters, or `None` if this version does not have it."""
        lines = self._get("/metrics").splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), None)

    def _get(self, path: str) -> str:
        with _OPENER.open(f"http://{self.endpoint}{path}", timeout=5) as answer:
            return bytes(answer.read()).decode()


@contextmanager
def running_etcd(binary: Path) -> Iterator[Etcd]:
    """Runs an empty etcd, and removes it afterwards."""
    with TemporaryDirectory(prefix="lattice-bench-") as folder, serving_etcd(binary, Path(folder)) as endpoint:
        yield Etcd(endpoint)
