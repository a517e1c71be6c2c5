"""Measures the costs of an idle run, and prints them without limits.

- An idle world sends only keep-alives of its leases. They do not go through raft, so neither etcd's revision nor its number of
  committed proposals changes.
- `num_nodes_waiting()`, which torch's agent calls ten times a second, reads a number of its own process.
- The time and the memory that `import lattice_rdzv` adds to a bare Python.
- The sizes of the downloads.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import threading
import time
import timeit
from pathlib import Path

from etcd_process import Etcd, running_etcd

from lattice_rdzv import _core

NODES = 3
CALLS = 1_000_000
PROPOSALS = "etcd_server_proposals_committed_total"
# A world that has just formed removes old records, which belongs to the costs of the round.
SETTLED_SECONDS = 3.0

# VmRSS would count pages that all processes share.
MEASURE_IMPORT = """
import sys, time
def private_kilobytes():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private_"))
before, start = private_kilobytes(), time.perf_counter()
import lattice_rdzv
print(time.perf_counter() - start, private_kilobytes() - before)
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Measure what an idle run costs.")
    parser.add_argument("--etcd", type=Path, required=True, help="the etcd binary")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to idle (10)")
    parser.add_argument("--repeat", type=int, default=9, help="imports; the median is printed (9)")
    arguments = parser.parse_args()

    imports = [measure_import() for _ in range(arguments.repeat)]
    milliseconds = 1000 * statistics.median(seconds for seconds, _ in imports)
    megabytes = statistics.median(kilobytes for _, kilobytes in imports) / 1024
    print(
        f"import lattice_rdzv            {milliseconds:.1f} ms, {megabytes:.1f} MB over bare Python {platform.python_version()}"
    )

    with running_etcd(arguments.etcd) as etcd:
        nodes = form_world(etcd)
        try:
            waiting = timeit.timeit(nodes[0].num_nodes_waiting, number=CALLS) / CALLS
            print(f"num_nodes_waiting()            {waiting * 1e6:.2f} us")
            time.sleep(SETTLED_SECONDS)
            print(idle(etcd, arguments.seconds))
        finally:
            for node in nodes:
                node.leave(timeout_seconds=5.0).wait()
    _core.shutdown()

    native = Path(str(_core.__file__))
    print(f"native module                  {native.stat().st_size / 1e6:.2f} MB ({native.name})")
    wheels = sorted((Path(__file__).parent.parent / "dist").glob("*.whl"))
    sizes = ", ".join(f"{wheel.stat().st_size / 1e6:.2f} MB ({wheel.name})" for wheel in wheels)
    print(f"wheel                          {sizes or 'none in dist/: `make wheel` builds one'}")


def form_world(etcd: Etcd) -> list[_core.Node]:
    """Returns the nodes of a running world."""

    def settings(node: int) -> _core.Settings:
        given = {"run_id": "idle", "nnodes": str(NODES), "endpoint": etcd.endpoint, "node_name": f"node-{node}"}
        return _core.Settings({**given, "local_addr": "127.0.0.1"}, {})

    nodes = [_core.Node.join(settings(node), port=29500 + node).wait() for node in range(NODES)]
    waits = [threading.Thread(target=node.next_world(timeout_seconds=30.0).wait) for node in nodes]
    for wait in waits:
        wait.start()
    for wait in waits:
        wait.join()
    return nodes


def idle(etcd: Etcd, seconds: float) -> str:
    """Returns the number of writes in a service whose nodes are idle."""
    revision, proposals = etcd.revision(), etcd.metric(PROPOSALS)
    time.sleep(seconds)
    revisions = etcd.revision() - revision
    after = etcd.metric(PROPOSALS)
    writes = "unknown" if proposals is None or after is None else f"{after - proposals:.0f}"
    return (
        f"an idle world of {NODES}, {seconds:.0f} s    etcd {etcd.version()}: revisions +{revisions}, "
        f"writes of any kind through raft +{writes}"
    )


def measure_import() -> tuple[float, int]:
    """Returns the seconds and kilobytes of an import in a new Python process."""
    result = subprocess.run([sys.executable, "-c", MEASURE_IMPORT], check=True, capture_output=True, text=True)
    seconds, kilobytes = result.stdout.split()
    return float(seconds), int(kilobytes)


if __name__ == "__main__":
    main()
