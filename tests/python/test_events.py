"""The handler's records with torch's events, and the log as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.handlers import MakeHandler, form_round, leave
from harness.programs import Program
from harness.service import Service, on_etcd
from torch.distributed.elastic import events
from torch.distributed.elastic.events import handlers as destinations
from torch.distributed.elastic.rendezvous import RendezvousError

DESTINATION = "dynamic_rendezvous"


class Collected(logging.Handler):
    """Keeps the events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(json.loads(record.getMessage()))


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    """Collects the events as a program that wants them does."""
    handler = Collected()
    monkeypatch.setitem(destinations._log_handlers, DESTINATION, handler)
    monkeypatch.setattr(events, "_events_loggers", {})
    yield handler
    logging.getLogger(f"torchelastic-events-{DESTINATION}").handlers.clear()


@on_etcd
def test_joining_and_leaving_are_recorded_as_events(make: MakeHandler, run_id: str, collected: Collected) -> None:
    first, second = make("a", max_nodes=2, min_nodes=2), make("b", max_nodes=2, min_nodes=2)
    form_round(first, second)
    joined = [event for event in collected.events if "has joined round 1" in str(event["message"])]
    assert {event["rank"] for event in joined} == {0, 1}
    assert {(event["run_id"], event["node_state"]) for event in joined} == {(run_id, "RUNNING")}
    assert all(event["master_endpoint"] for event in joined)
    attempts = [event for event in collected.events if "attempts to join the next round" in str(event["message"])]
    assert len(attempts) == 2
    assert leave(second)
    last = collected.events[-1]
    assert (last["message"], last["node_state"]) == (
        f"The node 'b' has left the rendezvous '{run_id}'.",
        "SUCCEEDED",
    )
    first.set_closed()  # type: ignore[no-untyped-call]
    last = collected.events[-1]
    assert last["message"] == f"The node 'a' has closed the rendezvous '{run_id}'."


@on_etcd
def test_event_of_a_failure_has_its_error(make: MakeHandler, collected: Collected) -> None:
    handler = make("a", min_nodes=2, max_nodes=2, join_timeout=1)
    with pytest.raises(RendezvousError):
        handler.next_rendezvous()
    (failed,) = [event for event in collected.events if event["node_state"] == "FAILED"]
    assert str(failed["message"]).startswith("JoinTimeoutError: ")
    assert "JoinTimeoutError" in str(failed["error_trace"])


def test_log_is_json_with_run_round_and_node(etcd: Service, run_id: str, tmp_path: Path) -> None:
    source = f"""
        import logging, lattice_rdzv
        run = lattice_rdzv.join(
            {run_id!r}, nnodes=1, endpoint={etcd.endpoint!r}, node_name="node-1", local_address="127.0.0.1", lease_ttl=10)
        run.next_world()
        try:
            raise ValueError("a test")
        except ValueError:
            logging.getLogger("lattice_rdzv.torch").exception("of Python")
        run.close("succeeded")
    """
    program = Program(tmp_path, source, LATTICE_RDZV_LOG="debug", LATTICE_RDZV_LOG_FORMAT="json")
    assert program.wait() == 0, program.output
    lines = [json.loads(line) for line in program.output.splitlines()]
    assert all({"time", "level", "logger", "message", "run", "node", "round"} <= set(line) for line in lines)
    in_round = [line for line in lines if line["message"].startswith("round 1: rank 0 of 1")]
    assert [(line["run"], line["node"], line["round"], line["level"]) for line in in_round] == [
        (run_id, "node-1", 1, "info")
    ]
    formed = [line for line in lines if line["message"].startswith("round 1 formed")]
    assert [(line["logger"], line["run"]) for line in formed] == [("lattice_rdzv.coordinator", run_id)]
    (of_python,) = [line for line in lines if line["message"] == "of Python"]
    assert (of_python["run"], of_python["node"]) == (run_id, "node-1")
    assert "ValueError: a test" in of_python["exception"]


def test_unknown_log_format_is_an_error(etcd: Service, run_id: str, tmp_path: Path) -> None:
    source = f"import lattice_rdzv; lattice_rdzv.join({run_id!r}, nnodes=1, endpoint={etcd.endpoint!r})"
    program = Program(tmp_path, source, LATTICE_RDZV_LOG_FORMAT="yaml")
    assert program.wait() == 1
    assert "environment `LATTICE_RDZV_LOG_FORMAT` must be `text` or `json`, but is `yaml`" in program.output
