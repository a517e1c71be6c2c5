"""Programs that gevent has patched: the package keeps using threads of the operating system."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from harness.programs import Program

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gevent") is None, reason="gevent is not installed: it is part of the extra `test`"
)

PROGRAM = """
{imports}
import gevent
with lattice_rdzv.serve(port=0) as server:
    join = dict(nnodes="1:2", endpoint=server.endpoint, local_address="127.0.0.1", settle_time=0.1, last_call_timeout=0.1,
        grow_delay=0.1)
    with lattice_rdzv.join("gevent", node_name="node-1", **join) as run:
        world = run.next_world()
        world.store.set("key", b"value")
        # A call blocks the whole thread, so the documentation names gevent's thread pool for calls that wait.
        pool = gevent.get_hub().threadpool
        waiting = pool.spawn(run.wait_change)
        ticks = []
        ticking = gevent.spawn(lambda: [ticks.append(gevent.sleep(0.01)) for _ in range(5)])
        ticking.join()
        with lattice_rdzv.join("gevent", node_name="node-2", **join) as other:
            print(waiting.get(timeout=20).kind, len(ticks), world.store.get("key"), flush=True)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "from gevent import monkey; monkey.patch_all(); import lattice_rdzv",
        "import lattice_rdzv; from gevent import monkey; monkey.patch_all()",
    ],
    ids=["patched before the import", "patched after the import"],
)
def test_patched_program_joins_waits_and_exits(tmp_path: Path, imports: str) -> None:
    program = Program(tmp_path, PROGRAM.format(imports=imports), LATTICE_RDZV_LOG="info")
    assert program.wait() == 0, program.output
    assert "newcomers 5 b'value'" in program.output
    # The log thread delivers records as everywhere else.
    assert "INFO lattice_rdzv.node: round 1" in program.output


def test_other_libraries_that_replace_threads_are_refused(tmp_path: Path) -> None:
    program = Program(
        tmp_path,
        """
    import _thread
    def start_new_thread(*arguments):
        raise AssertionError("this is no thread")
    start_new_thread.__module__ = "other.green"
    _thread.start_new_thread = start_new_thread
    import lattice_rdzv
    try:
        lattice_rdzv.serve(port=0)
    except lattice_rdzv.RendezvousError as error:
        print(error)
    """,
    )
    assert program.wait() == 0, program.output
    assert "exclude threads from the patch" in program.output
    assert program.output.rstrip().endswith("replaced by: `other.green`")
