"""A handler without references leaves by itself."""

from __future__ import annotations

import gc
import socket
from pathlib import Path

import pytest
from harness.handlers import handlers
from harness.ports import free_port
from harness.programs import PATIENT_EXIT, Program
from harness.service import Service, on_etcd
from harness.wait import wait_for


def test_dropped_handler_leaves_and_releases_its_port(service: Service, run_id: str) -> None:
    port = free_port()
    with handlers(service, run_id) as make:
        handler = make("node-1", lease_ttl="60", max_nodes=2, last_call_timeout=0.1, port=port)
        info = handler.next_rendezvous()
        info.store.set("key", "value")
        # It holds a socket for the next world again.
        handler._master.listen()  # type: ignore[attr-defined]
        assert len(service.nodes(run_id)) == 1
        # The context's own list is the last reference.
        make.__closure__[0].cell_contents.clear()  # type: ignore[index]
        del handler, info
        gc.collect()
        wait_for("the node has left", lambda: service.nodes(run_id) == [])
    with socket.create_server(("", port)):
        pass


@pytest.mark.timeout(300)
@on_etcd
def test_program_that_catches_the_signal_of_its_agent_can_launch_again(
    tmp_path: Path, service: Service, run_id: str
) -> None:
    (tmp_path / "workers.py").write_text(
        """
import os, pathlib, time

def wait(folder):
    pathlib.Path(folder, "started").touch()
    time.sleep(600)

def end():
    return os.environ["RANK"]
"""
    )
    program = Program(
        tmp_path,
        f"""
    import gc, os, signal, sys, threading, time
    sys.path.insert(0, {str(tmp_path)!r})
    import workers
    {PATIENT_EXIT}
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def terminate():
        while not os.path.exists({str(tmp_path / "started")!r}):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    if __name__ == "__main__":
        # Not "fork", because this process has other threads, whose locks a child would inherit.
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=1, run_id={run_id!r}, rdzv_backend="lattice",
            rdzv_endpoint={service.endpoint!r}, max_restarts=0, monitor_interval=0.1, start_method="spawn",
            rdzv_configs=dict(lease_ttl=60, settle_time=0.1, last_call_timeout=0.1, join_timeout=30, spare_timeout=30,
                leave_on_signal=False),
            local_addr="127.0.0.1")
        threading.Thread(target=terminate, daemon=True).start()
        try:
            elastic_launch(config, workers.wait)({str(tmp_path)!r})
        except SignalException as error:
            print("terminated", error.sigval, flush=True)
        gc.collect()
        print("ranks", elastic_launch(config, workers.end)(), flush=True)
    """,
    )
    assert program.wait(200) == 0, program.output
    assert "terminated" in program.output
    assert "ranks {0: '0'}" in program.output
    assert service.nodes(run_id) == []
