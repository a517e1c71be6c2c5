"""A second job of real torchrun processes uses the run id of a running job."""

from __future__ import annotations

import re

import pytest
from harness.torchrun import MakeJob, once, starts

pytestmark = pytest.mark.timeout(500)


@once
def test_another_submission_is_refused_and_the_running_job_is_not_disturbed(job: MakeJob, run_id: str) -> None:
    first = job(nnodes="2:4", environment={"LATTICE_RDZV_SUBMISSION": "job-one"})
    first.start("node-1")
    first.start("node-2")
    first.wait_trains("node-1", "node-2")

    second = job(nnodes="2:4", environment={"LATTICE_RDZV_SUBMISSION": "job-two"})
    refused = [second.start("node-3"), second.start("node-4")]
    statuses = second.wait_all(timeout_seconds=90)
    assert 0 not in statuses.values(), second.describe()
    for agent in refused:
        for part in (f"`{run_id}`", "submission `job-one` with the nodes node-1, node-2", "`job-two`", "--rdzv-id"):
            assert part in agent.log, second.describe()
    assert starts(second) == {}

    first.finish()
    assert set(first.wait_all().values()) == {0}, first.describe()
    assert starts(first) == {"node-1": 1, "node-2": 1}


@once
def test_without_submissions_a_node_of_a_second_job_is_warned_that_the_run_is_full(job: MakeJob, run_id: str) -> None:
    first = job(nnodes="2")
    first.start("node-1")
    first.start("node-2")
    first.wait_trains("node-1", "node-2")

    second = job(nnodes="2")
    spare = second.start("node-3")
    second.wait_log(spare, f"run `{run_id}` is full with 2 of at most 2 nodes (")
    full = r"\(node-\d, node-\d\) in round 1 for \d+ s: .*another run id \(`--rdzv-id`"
    assert re.search(full, spare.log), second.describe()
    first.finish()
    assert set(first.wait_all().values()) == {0}, first.describe()
