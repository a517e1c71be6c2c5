"""A real torchrun process joins a running job and fails, again and again."""

from __future__ import annotations

import pytest
from harness.torchrun import MakeJob, once

pytestmark = pytest.mark.timeout(400)


@once
def test_a_node_that_fails_in_a_loop_waits_before_it_disturbs_the_others_again(job: MakeJob) -> None:
    run = job(nnodes="2:3")
    conf = {"on_node_failure": "leave"}
    others = [run.start(name, conf=conf, max_restarts=20) for name in ("node-1", "node-2")]
    run.wait_trains("node-1", "node-2")

    run.fail("bad")
    waits = "`bad` waits 10 s because it failed 3 times in a row"
    for _ in range(3):
        assert not any(waits in agent.log for agent in run.agents), run.describe()
        assert run.start("bad", conf=conf, max_restarts=0).wait(120) != 0, run.describe()
    last = run.start("bad", conf=conf, max_restarts=0)
    # The coordinator says so, and the node itself while it waits.
    run.wait_log(last, f"yet: {waits}")
    assert any(f"coordinator: {waits}" in agent.log for agent in others), run.describe()

    # After its wait it gets a place like any other node.
    run.mend("bad")
    run.wait_trains("node-1", "node-2", "bad")
    run.finish()
    assert last.wait() == 0, run.describe()
    assert [agent.wait() for agent in others] == [0, 0], run.describe()
