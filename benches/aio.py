"""Measures the API for asyncio, and counts the items that cancelled calls lose and the exits that fail.

    python benches/aio.py --waits 1000 --cancels 10000 --exits 1000

The first four rows must be 0. Exits run on this interpreter and on those that `LATTICE_TEST_PYTHONS` names
(`scripts/pythons` prints them). The service is an embedded server of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lattice_rdzv
from lattice_rdzv import aio

PYTHONS = [sys.executable, *filter(None, os.environ.get("LATTICE_TEST_PYTHONS", "").split(":"))]
SETTINGS: dict[str, Any] = {"nnodes": 1, "local_address": "127.0.0.1", "settle_time": 0.01, "last_call_timeout": 0.01}
AT_ONCE = 4
EXIT_LIMIT_SECONDS = 60
LONGEST_POP_SECONDS = 0.002
FEW_ITEMS = 20

EXIT = """
import asyncio, sys, threading
from lattice_rdzv import aio
ready = threading.Event()
async def program(seconds):
    run = await aio.join(sys.argv[2], endpoint=sys.argv[1], nnodes=1, local_address="127.0.0.1", settle_time=0.01)
    store = (await run.next_world()).store
    pending = [asyncio.create_task(store.wait(f"never-{number}")) for number in range(20)]
    pending += [asyncio.create_task(store.set(f"key-{number}", b"value")) for number in range(20)]
    pending += [asyncio.create_task(store.queue_pop("never")), asyncio.create_task(run.wait_change())]
    await asyncio.sleep(float(sys.argv[3]))
    ready.set()
    await asyncio.sleep(seconds)
"""

ENDINGS = {
    "asyncio.run": EXIT + "asyncio.run(program(0))",
    "a loop in a daemon thread": EXIT
    + "threading.Thread(target=asyncio.run, args=(program(60),), daemon=True).start(); ready.wait()",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waits", type=int, default=1000, help="calls that wait at once (default: %(default)s)")
    parser.add_argument("--cancels", type=int, default=10_000, help="pops to cancel (default: %(default)s)")
    parser.add_argument("--exits", type=int, default=1000, help="processes that end (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=10_000, help="calls to time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random choices (default: a random one)")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    os.environ["LATTICE_RDZV_LOG"] = "warning"
    choices = random.Random(seed)
    with lattice_rdzv.serve(port=0) as server:
        bad = asyncio.run(of_one_run(server.endpoint, arguments, choices))
        bad += exits(server.endpoint, arguments.exits, choices)
        times(server.endpoint, arguments.calls)
    return 1 if bad else 0


async def of_one_run(endpoint: str, arguments: argparse.Namespace, choices: random.Random) -> int:
    """Counts the threads of calls that wait, and the items that cancelled pops lose."""
    async with await aio.join("aio", endpoint=endpoint, **SETTINGS) as run:
        store = (await run.next_world()).store
        added = await threads_of(store, arguments.waits)
        row(f"threads added by {arguments.waits} calls that wait", added)
        lost, twice, what = await pops(store, arguments.cancels, choices)
        row(f"of {what}: lost", lost)
        row(f"of {what}: received twice", twice)
    return added + lost + twice


async def threads_of(store: aio.Store, count: int) -> int:
    """Returns the number of additional threads while this number of calls waits."""
    await store.set("there", b"")
    before = threads()
    waiting = [asyncio.create_task(store.wait(f"never-{number}")) for number in range(count)]
    await store.wait("there")
    added = threads() - before
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    return added


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


async def pops(store: aio.Store, count: int, choices: random.Random) -> tuple[int, int, str]:
    """Cancels this number of pops at random moments, several at once, and checks that pushed = received + remaining."""
    pushed = cancelled = 0
    received: list[bytes | None] = []
    popping: set[asyncio.Task[bytes | None]] = set()
    while cancelled < count:
        while pushed - len(received) < FEW_ITEMS:
            await store.queue_push("queue", str(pushed).encode())
            pushed += 1
        popping |= {asyncio.create_task(store.queue_pop("queue")) for _ in range(4)}
        await asyncio.sleep(choices.uniform(0.0, LONGEST_POP_SECONDS))
        for task in popping:
            task.cancel()
        await asyncio.wait(popping)
        received += [task.result() for task in popping if not task.cancelled()]
        cancelled += sum(task.cancelled() for task in popping)
        popping.clear()
    taken = len(received)
    while (item := await store.queue_pop("queue", block=False)) is not None:
        received.append(item)
    distinct = len(set(received))
    what = f"{pushed} items, {taken} received and {len(received) - taken} remaining after {cancelled} cancelled pops"
    return pushed - distinct, len(received) - distinct, what


def exits(endpoint: str, count: int, choices: random.Random) -> int:
    """Ends this number of processes during calls, and counts those that do not end quietly."""
    endings = list(ENDINGS)
    jobs = [(PYTHONS[number % len(PYTHONS)], endings[number // len(PYTHONS) % len(endings)]) for number in range(count)]

    def end(number: int) -> bool:
        python, ending = jobs[number]
        pause = f"{choices.uniform(0.0, 0.02):.4f}"
        return quiet([python, "-c", ENDINGS[ending], endpoint, f"exit-{number}", pause])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        failed = [number for number, good in enumerate(pool.map(end, range(count))) if not good]
    versions = ", ".join(sorted({version(python) for python in PYTHONS}))
    row(f"of {count} exits with calls under way, on Python {versions}: failed", len(failed))
    return len(failed)


def quiet(command: list[str]) -> bool:
    """Returns whether a program exits with status 0 and prints no error."""
    package = str(Path(lattice_rdzv.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": package, "LATTICE_RDZV_LOG": "error"}
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=EXIT_LIMIT_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"{command[0]} did not end", flush=True)
        return False
    good = ended.returncode == 0 and "Traceback" not in ended.stderr and "panicked" not in ended.stderr
    if not good:
        print(f"{command[0]} ended with {ended.returncode}:\n{ended.stderr[-1000:]}", flush=True)
    return good


def version(python: str) -> str:
    command = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def times(endpoint: str, count: int) -> None:
    """Measures the time of a call without a request (`queue_keep`) and with a request to the server (`check`)."""
    with lattice_rdzv.join("sync", endpoint=endpoint, **SETTINGS) as run:
        store = run.next_world().store
        for what, call in (("queue_keep", lambda: store.queue_keep("q", b"")), ("check", lambda: store.check(["key"]))):
            began = time.perf_counter()
            for _ in range(count):
                call()
            report(f"lattice_rdzv      {what}", began, count)

    async def awaited() -> None:
        async with await aio.join("async", endpoint=endpoint, **SETTINGS) as run:
            store = (await run.next_world()).store
            await time_calls("queue_keep", lambda: store.queue_keep("q", b""), count)
            await time_calls("check", lambda: store.check(["key"]), count)

    asyncio.run(awaited())


async def time_calls(what: str, call: Callable[[], Awaitable[object]], count: int) -> None:
    began = time.perf_counter()
    for _ in range(count):
        await call()
    report(f"lattice_rdzv.aio  {what}", began, count)
    began = time.perf_counter()
    for _ in range(count // 100):
        await asyncio.gather(*(call() for _ in range(100)))
    report(f"lattice_rdzv.aio  {what}, 100 at once", began, count)


def report(what: str, began: float, count: int) -> None:
    print(f"{what:<45} {(time.perf_counter() - began) / count * 1e6:8.1f} us a call", flush=True)


def row(what: str, count: int) -> None:
    print(f"{count:>6}  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
