"""Subinterpreters: the package cannot be imported in one, and the end of one does not affect the main interpreter."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from harness.programs import Program
from harness.service import Service

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("_xxsubinterpreters") is None, reason="this Python has no `_xxsubinterpreters`"
)

TRY = """
    import _xxsubinterpreters as interpreters
    other = interpreters.create(isolated=False)
    interpreters.run_string(other, "\\n".join([
        "try:",
        "    import lattice_rdzv",
        "except ImportError as error:",
        "    print('refused:', error, flush=True)",
    ]))
    interpreters.destroy(other)
"""


@pytest.mark.parametrize("first", ["main", "subinterpreter"])
def test_subinterpreter_refuses_the_import_and_ends_nothing(
    tmp_path: Path, etcd: Service, run_id: str, first: str
) -> None:
    join = f"""
    import lattice_rdzv
    run = lattice_rdzv.join({run_id!r}, nnodes=1, endpoint={etcd.endpoint!r}, settle_time=0.1, join_timeout=20)
"""
    use = """
    assert run.next_world().size == 1
    assert run.leave()
    print("left", flush=True)
"""
    scenario = (join + TRY if first == "main" else TRY + join) + use
    program = Program(tmp_path, scenario)
    assert program.wait() == 0, program.output
    assert "refused: lattice_rdzv works in the main interpreter only" in program.output
    assert "left" in program.output
