"""A real torchrun process joins a running job and fails, again and again."""

from __future__ import annotations

import time

import pytest
from harness.service import Service
from harness.torchrun import MakeJob, once
from harness.wait import wait_for

pytestmark = pytest.mark.timeout(600)


@once
def test_node_that_fails_in_a_loop_waits_before_it_disturbs_the_others_again(
    job: MakeJob, service: Service, run_id: str
) -> None:
    run = job(nnodes="2:3")
    conf = {"on_node_failure": "leave"}
    others = [run.start(name, conf=conf, max_restarts=20) for name in ("node-1", "node-2")]
    run.wait_trains("node-1", "node-2")

    run.fail("bad")
    waits = "`bad` failed 3 times in a row, so it waits 10 s while at least 2 other nodes can form a round"
    for _ in range(2):
        assert run.start("bad", conf=conf, max_restarts=0).wait(180) != 0, run.describe()
    run.stop_failing("bad")
    third = run.start("bad", conf=conf, max_restarts=0)
    run.wait_trains("node-1", "node-2", "bad")
    # The next one is a spare when the third one fails, because a start may take longer than the wait.
    last = run.start("bad", conf=conf, max_restarts=0)
    wait_for("the spare is here", lambda: len(service.nodes(run_id)) == 4, timeout_seconds=90, detail=run.describe)
    assert not any(waits in agent.log for agent in run.agents), run.describe()
    at = time.monotonic()
    run.fail("bad")
    assert third.wait(180) != 0, run.describe()
    run.stop_failing("bad")
    # The coordinator logs this, and the node itself while it waits.
    run.wait_log(last, f"yet: {waits}")
    wait_for("the coordinator logs it", lambda: any(f"coordinator: {waits}" in agent.log for agent in others))

    # After its wait, the node joins like any other node.
    run.wait_trains("node-1", "node-2", "bad", since=at)
    run.finish()
    assert last.wait() == 0, run.describe()
    assert [agent.wait() for agent in others] == [0, 0], run.describe()
