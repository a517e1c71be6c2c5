"""The metrics of runs at `/metrics` of the dashboard, read by Prometheus' own parsers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import JoinNode
from harness.dashboard import Dashboard
from harness.etcd import Etcd
from harness.members import start_members
from harness.service import Service
from harness.wait import wait_for
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def dashboard(tmp_path: Path, etcd: Etcd) -> Iterator[Dashboard]:
    with Dashboard(tmp_path, "--endpoint", etcd.endpoint).running() as running:
        yield running


def scrape(dashboard: Dashboard, run_id: str) -> dict[str, float]:
    """Returns the samples of one run by name and further labels, as `name{label=value}`."""
    status, _, text = dashboard.get("/metrics")
    assert status == 200, text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("run", run_id) == run_id:
                labels.pop("tenant", None)
                further = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
                key = f"{sample.name}{{{further}}}" if further else sample.name
                assert key not in found, f"{key} appears twice"
                found[key] = sample.value
    return found


def awaited(dashboard: Dashboard, run_id: str, key: str, value: float) -> dict[str, float]:
    """Waits until a sample has this value, and returns all samples."""
    seen: dict[str, float] = {}

    def has() -> bool:
        nonlocal seen
        seen = scrape(dashboard, run_id)
        return seen.get(key) == value

    wait_for(f"{key} is {value:g}", has, detail=lambda: "\n".join(f"{name} {seen[name]:g}" for name in seen))
    return seen


def test_rounds_losses_and_waits_of_a_run_are_counted(
    tmp_path: Path, dashboard: Dashboard, etcd: Service, run_id: str
) -> None:
    members = start_members(tmp_path, etcd, run_id, 3, nnodes="2:3")
    everyone = list(members)
    try:
        members.await_lifelines()
        seen = awaited(dashboard, run_id, "lattice_run_nodes{state=member}", 3)
        assert seen["lattice_run_state{state=formed}"] == 1
        assert seen["lattice_run_phase{phase=running}"] == 1
        assert (seen["lattice_run_min_nodes"], seen["lattice_run_max_nodes"]) == (2, 3)
        first = seen["lattice_run_rounds_total{cause=first}"]
        assert first == 1
        assert "lattice_run_waiting_since_timestamp_seconds" not in seen
        # The time of a loss is known if the coordinator saw it, so the coordinator survives.
        coordinator = json.loads(etcd.get(f"/lattice/rdzv/default/{run_id}/ctl/coordinator") or b"{}")["name"]
        lost = next(each for each in members if each.name != coordinator)
        lost.kill()
        members.remove(lost)
        members.await_reported([lost])
        seen = awaited(dashboard, run_id, "lattice_run_rounds_total{cause=lost}", 1)
        assert seen["lattice_run_rounds_total{cause=first}"] == first
        assert seen["lattice_run_nodes{state=member}"] == 2
        assert seen["lattice_run_told_seconds_count{evidence=connection}"] == 1
        assert seen["lattice_run_told_seconds_sum{evidence=connection}"] > 0
        assert seen["lattice_run_told_seconds_count{evidence=lease}"] == 0
        assert seen["lattice_run_standstill_seconds_total"] > 0
        rounds = sum(value for name, value in seen.items() if name.startswith("lattice_run_rounds_total"))
        assert seen["lattice_run_formation_seconds_count"] == rounds
        # One node is left of at least two.
        members.pop(0).kill()
        since = "lattice_run_waiting_since_timestamp_seconds"
        wait_for("the run waits", lambda: scrape(dashboard, run_id).get(since, 0) > 1_700_000_000)
        seen = awaited(dashboard, run_id, "lattice_run_awaited_nodes", 1)
        assert seen["lattice_run_state{state=formed}"] == 0
        assert seen["lattice_run_phase{phase=changing}"] == 1
        before = seen["lattice_run_standstill_seconds_total"]
        wait_for(
            "the present standstill counts",
            lambda: scrape(dashboard, run_id)["lattice_run_standstill_seconds_total"] > before,
        )
    finally:
        for each in everyone:
            each.end()


def test_closed_run_has_no_series_and_a_lost_service_is_reported(join: JoinNode, tmp_path: Path, run_id: str) -> None:
    own = Etcd(tmp_path / "own")
    with own.running(), Dashboard(tmp_path, "--endpoint", own.endpoint).running() as dashboard:
        run = join("node-1", nnodes=1, endpoint=own.endpoint)
        run.next_world()
        seen = awaited(dashboard, run_id, "lattice_run_state{state=formed}", 1)
        assert seen["lattice_service_up"] == 1
        run.close("succeeded")
        seen = awaited(dashboard, run_id, "lattice_runs{state=closed}", 1)
        assert not [name for name in seen if name.startswith("lattice_run_")]
        own.kill()
        awaited(dashboard, run_id, "lattice_service_up", 0)


def test_promtool_accepts_the_text(join: JoinNode, dashboard: Dashboard, run_id: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (package prometheus)")
    join("node-1", nnodes=1).next_world()
    awaited(dashboard, run_id, "lattice_run_state{state=formed}", 1)
    _, _, text = dashboard.get("/metrics")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
