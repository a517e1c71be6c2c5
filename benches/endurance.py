"""Repeats operations that fail only rarely, and counts losses, leaks and crashes. Each row must be 0.

    python benches/endurance.py --exits 1000 --abandoned 1000 --forks 1000 --pops 10000

Exits run on this interpreter and on those that `LATTICE_TEST_PYTHONS` names (`scripts/pythons` prints them). The service
is an embedded server of this process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import lattice_rdzv
from lattice_rdzv import _core

PYTHONS = [sys.executable, *filter(None, os.environ.get("LATTICE_TEST_PYTHONS", "").split(":"))]
SETTINGS = {"local_address": "127.0.0.1", "settle_time": 0.01, "last_call_timeout": 0.01, "lease_ttl": 60}
AT_ONCE = 4
EXIT_LIMIT_SECONDS = 60
DUMP_SECONDS = 2
# The runtime may open a few files late, and the allocator keeps some memory.
FEW_DESCRIPTORS = 5
LONGEST_POP_SECONDS = 0.002
FEW_ITEMS = 20
MOST_GROWTH_KIB = 16 * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exits", type=int, default=1000, help="processes that end (default: %(default)s)")
    parser.add_argument("--abandoned", type=int, default=1000, help="runs and handlers dropped (default: %(default)s)")
    parser.add_argument("--forks", type=int, default=1000, help="forked children that join (default: %(default)s)")
    parser.add_argument("--pops", type=int, default=10_000, help="pops that are ended early (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random choices (default: a random one)")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    os.environ["LATTICE_RDZV_LOG"] = "warning"
    with lattice_rdzv.serve(port=0) as server:
        rows: list[Callable[[], Iterable[tuple[str, int]]]] = [
            lambda: exits(server.endpoint, arguments.exits, random.Random(seed)),
            lambda: abandoned(server.endpoint, arguments.abandoned),
            lambda: forks(server.endpoint, arguments.forks),
            lambda: pops(server.endpoint, arguments.pops, random.Random(seed)),
        ]
        failed = 0
        for row in rows:
            for what, count in row():
                print(f"{count:6d}  {what}", flush=True)
                failed += count
    return 1 if failed else 0


# --- exits -----------------------------------------------------------------------------------------------------------

JOIN = """
import faulthandler, os, signal, sys, threading, time
# Prints the stacks of a process that hangs.
faulthandler.register(signal.SIGUSR1, all_threads=True)
class Stop(Exception): pass
def stop(number, frame): raise Stop
signal.signal(signal.SIGALRM, stop)
import lattice_rdzv
run = lattice_rdzv.join({run_id!r}, nnodes="1:100", endpoint={endpoint!r}, **{settings!r})
world = run.next_world()
store = world.store
def loop(call):
    while True:
        try: call()
        except BaseException: pass
def daemons(call):
    for _ in range(8): threading.Thread(target=loop, args=(call,), daemon=True).start()
"""

# The ways in which a process ends, with the possible exit statuses.
ENDINGS = {
    "daemon threads read": ("daemons(lambda: store.get_now(['key']))", (0,)),
    "daemon threads wait": ("daemons(lambda: run.wait_change(timeout_seconds=0.01))", (0,)),
    "daemon threads fail": ("daemons(lambda: lattice_rdzv.join('x', port='y'))", (0,)),
    "daemon thread waits without limit": ("threading.Thread(target=run.wait_change, daemon=True).start()", (0,)),
    "run is dropped": ("del run, world, store", (0,)),
    "server is not stopped": ("server = lattice_rdzv.serve(port=0)", (0,)),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", (128 + signal.SIGTERM,)),
    # The exception may arrive while the process leaves, joins again, or exits.
    "exception of a signal": (
        """
signal.setitimer(signal.ITIMER_REAL, {delay})
while True:
    with lattice_rdzv.join({run_id!r} + "-again", nnodes="1:100", endpoint={endpoint!r}, **{settings!r}): pass
""",
        (0, 1),
    ),
    "exception of a signal at exit": ("signal.setitimer(signal.ITIMER_REAL, {delay} / 20)", (0, 1, -signal.SIGALRM)),
    "fork": ("child = os.fork()\nif child: os.waitpid(child, 0)", (0,)),
}


def exits(endpoint: str, count: int, choices: random.Random) -> Iterable[tuple[str, int]]:
    """Ends many processes, and counts those that crash, hang, or are still members."""
    faults: Counter[str] = Counter({"crashed": 0, "hung": 0, "panicked": 0})
    ended: Counter[str] = Counter()
    # Several processes are members of one run, and each run has a coordinator that may end at any time. An exception may
    # prevent a process from leaving, so such a process is alone in its run.
    jobs = [
        (python, name, f"exit-{number if 'exception' in name else number // 8}", choices.uniform(0.01, 0.5))
        for number, python, name in zip(range(count), cycle(PYTHONS), cycle_slowly(list(ENDINGS), len(PYTHONS)))
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        for (python, name, _, _), fault in zip(
            jobs, pool.map(lambda job: one_exit(endpoint, Path(folder), *job), jobs), strict=True
        ):
            ended[version(python)] += 1
            if fault:
                kind, output = fault
                faults[kind] += 1
                print(f"{kind}: Python {version(python)}, {name}: {output[-2000:]}", file=sys.stderr, flush=True)
    per_version = ", ".join(f"{number} on {python}" for python, number in sorted(ended.items()))
    for kind, number in faults.items():
        yield f"of {count} exits {kind} ({per_version})", number
    left = sum(members(endpoint, run_id) for run_id in sorted({job[2] for job in jobs if "exception" not in job[1]}))
    yield f"nodes of {count} ended processes are still members", left


def one_exit(endpoint: str, folder: Path, python: str, name: str, run_id: str, delay: float) -> tuple[str, str] | None:
    ending, statuses = ENDINGS[name]
    values = {"run_id": run_id, "endpoint": endpoint, "settings": SETTINGS, "delay": delay}
    environment = os.environ | {"PYTHONPATH": str(Path(lattice_rdzv.__file__).parent.parent)}
    source = JOIN.format(**values) + ending.format(**values)
    process = subprocess.Popen(
        [python, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
    )
    try:
        output, _ = process.communicate(timeout=EXIT_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        threads = [
            f"{task.name} {(task / 'comm').read_text().strip()}: {(task / 'syscall').read_text().strip()}"
            for task in Path(f"/proc/{process.pid}/task").iterdir()
        ]
        process.send_signal(signal.SIGUSR1)
        try:
            output, _ = process.communicate(timeout=DUMP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        return "hung", "\n".join([*threads, output])
    if "panicked" in output:
        return "panicked", output
    return None if process.returncode in statuses else ("crashed", f"status {process.returncode}\n{output}")


def cycle_slowly(names: list[str], times: int) -> Iterable[str]:
    """Yields each name `times` times in a row, forever, so that each interpreter gets it once."""
    return (name for name in cycle(names) for _ in range(times))


def version(python: str) -> str:
    if python == sys.executable:
        return ".".join(map(str, sys.version_info[:3]))
    return Path(python).parent.parent.name


# --- forks -----------------------------------------------------------------------------------------------------------

FORKS = """
running = set()
for number in range({count}):
    child = os.fork()
    if child == 0:
        with lattice_rdzv.join(f"{run_id}-{{number}}", nnodes=1, endpoint={endpoint!r}, **{settings!r}) as own:
            own.next_world(timeout_seconds=60)
            # With one write, because several processes write to this pipe, and `print` may write a line in parts.
            os.write(1, f"id {{own.node_id}}\\n".encode())
        sys.exit(0)
    running.add(child)
    while len(running) >= {at_once} or (number == {count} - 1 and running):
        child, status = os.wait()
        running.remove(child)
        os.write(1, f"status {{status}}\\n".encode())
"""


def forks(endpoint: str, count: int) -> Iterable[tuple[str, int]]:
    """Forks many children of a process that has joined, a few at a time. Each of them joins a run."""
    values = {"run_id": "fork", "endpoint": endpoint, "settings": SETTINGS, "count": count, "at_once": AT_ONCE}
    source = JOIN.format(**values) + FORKS.format(**values)
    process = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    lines = process.stdout.splitlines()
    ids = [line for line in lines if line.startswith("id ")]
    if process.returncode != 0 or lines.count("status 0") != count:
        print(process.stderr[-2000:], file=sys.stderr, flush=True)
    yield f"of {count} forked children failed", count - lines.count("status 0")
    yield f"node ids of {count} forked children are missing or repeated", count - len(set(ids))
    yield (
        f"nodes of {count} forked children are still members",
        sum(members(endpoint, f"fork-{number}") for number in range(count)),
    )


# --- pops that are ended early ---------------------------------------------------------------------------------------


def pops(endpoint: str, count: int, choices: random.Random) -> Iterable[tuple[str, int]]:
    """Ends many pops by a time limit, and counts the items that were returned by no pop or by several."""
    ended = pushed = 0
    received: Counter[bytes] = Counter()
    with lattice_rdzv.join("pops", nnodes=1, endpoint=endpoint, **SETTINGS) as run:  # type: ignore[arg-type]
        store = run.next_world(timeout_seconds=30).store
        while ended < count:
            if pushed - received.total() < FEW_ITEMS:
                store.queue_push("queue", str(pushed).encode())
                pushed += 1
            try:
                item = store.queue_pop("queue", timeout_seconds=choices.uniform(0.0, LONGEST_POP_SECONDS))
            except lattice_rdzv.StoreTimeoutError:
                ended += 1
            else:
                received[item or b""] += 1
        while (item := store.queue_pop("queue", block=False)) is not None:
            received[item] += 1
    what = f"of {pushed} items are lost after {ended} pops that were ended early"
    yield what, pushed - len(received)
    yield what.replace("lost", "received twice"), received.total() - len(received)


# --- abandoned runs and handlers -------------------------------------------------------------------------------------


def abandoned(endpoint: str, count: int) -> Iterable[tuple[str, int]]:
    """Drops many runs and handlers of one run id. Each of them can only form a world because the previous one has left."""
    drops = [drop_run] + ([drop_handler] if has_torch() else [])
    for drop in drops:
        drop(endpoint, "warm-up")
    settle(endpoint, "warm-up")
    before = Counter(measure())
    began = time.monotonic()
    for number in range(count):
        drops[number % len(drops)](endpoint, "abandoned")
    left = settle(endpoint, "abandoned")
    grown = Counter(measure())
    grown.subtract(before)
    kinds = " and ".join(drop.__name__.removeprefix("drop_") + "s" for drop in drops)
    per_node = (time.monotonic() - began) / max(1, count) * 1000
    what = f"after {count} abandoned {kinds} ({per_node:.0f} ms each)"
    yield f"nodes are still members {what}", left
    yield f"descriptors have leaked {what}", max(0, grown["descriptors"] - FEW_DESCRIPTORS)
    yield f"threads have leaked {what}", max(0, grown["threads"])
    yield (
        f"KiB above {MOST_GROWTH_KIB} have leaked {what}; grown by {grown['KiB']}",
        max(0, grown["KiB"] - MOST_GROWTH_KIB),
    )


def drop_run(endpoint: str, run_id: str) -> None:
    run = lattice_rdzv.join(run_id, nnodes=1, endpoint=endpoint, **SETTINGS)  # type: ignore[arg-type]
    run.next_world(timeout_seconds=30).store.set("key", b"value")


def drop_handler(endpoint: str, run_id: str) -> None:
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    settings = {("local_addr" if name == "local_address" else name): value for name, value in SETTINGS.items()}
    parameters = RendezvousParameters("lattice", endpoint, run_id, 1, 1, spare_timeout=30, **settings)  # type: ignore[arg-type]
    handler = get_rendezvous_handler(parameters)
    handler.next_rendezvous().store.set("key", "value")


def has_torch() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def settle(endpoint: str, run_id: str) -> int:
    """Returns the number of members that are left after a time in which they can leave."""
    gc.collect()
    deadline = time.monotonic() + 10
    while (left := members(endpoint, run_id)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def measure() -> dict[str, int]:
    memory = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "KiB": sum(int(line.split()[1]) for line in memory if line.startswith("Private_")),
    }


def members(endpoint: str, run_id: str) -> int:
    """Returns the number of nodes with a record in the service."""
    settings = _core.Settings({"run_id": run_id, "endpoint": endpoint, "nnodes": "1", "host_name": "bench"}, {})
    nodes = json.loads(_core.status(settings, timeout_seconds=30.0).wait())["nodes"]
    return sum(node["state"] != "missing" for node in nodes)


if __name__ == "__main__":
    sys.exit(main())
