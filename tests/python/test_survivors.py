"""Survivors keep training in the same processes: losses, joins, and departures of `examples/train/survive.py`."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.paused import pause
from harness.service import Service, on_etcd
from harness.survivors import POINTS, START_SECONDS, MakeSurvivors, Survivors, Trainer
from harness.wait import wait_for

KILLS = int(os.environ.get("LATTICE_TEST_KILLS", "3"))

pytestmark = pytest.mark.timeout(300)

# `form_timeout_seconds` of these jobs. A loss while a group is formed may cost as much, besides the lease.
FORM_SECONDS = 10.0
LEASE_SECONDS = 10.0


def four(job: Survivors, **options: object) -> list[Trainer]:
    """Starts four processes, and waits until they train together."""
    trainers = [job.start(f"n{number}", **options) for number in range(4)]  # type: ignore[arg-type]
    job.wait_trains(*trainers, timeout_seconds=START_SECONDS)
    return trainers


def assert_same_processes(job: Survivors, *trainers: Trainer) -> None:
    """Checks that these have never been restarted, and that the job as a whole is right."""
    for one in trainers:
        assert {step.pid for step in one.steps()} == {one.pid}, job.describe()
    job.check()


def test_survivors_continue_in_the_same_processes_when_one_of_four_is_killed(survivors: MakeSurvivors) -> None:
    job = survivors(nnodes="1:4")
    first, second, third, fourth = four(job)
    second.kill()
    job.wait_trains(first, third, fourth)
    job.wait_steps(first, 20)
    assert_same_processes(job, first, third, fourth)
    wait_for("the report that it trains", lambda: job.status().rounds[-1].resumed_after_seconds, detail=job.describe)


@on_etcd
def test_job_ends_with_success_on_all_members_after_a_loss(survivors: MakeSurvivors) -> None:
    job = survivors(nnodes="1:4")
    first, second, third, fourth = four(job, steps=400)
    second.kill()
    assert [one.wait() for one in (first, third, fourth)] == [0, 0, 0], job.describe()
    assert {one.steps()[-1].step for one in (first, third, fourth)} == {400}
    assert_same_processes(job, first, third, fourth)


@on_etcd
def test_two_are_killed_within_50_milliseconds(survivors: MakeSurvivors) -> None:
    job = survivors(nnodes="1:4")
    first, second, third, fourth = four(job)
    second.kill()
    time.sleep(0.05)
    fourth.kill()
    job.wait_trains(first, third)
    job.wait_steps(first, 5)
    assert_same_processes(job, first, third)


@on_etcd
@pytest.mark.parametrize("point", ["seek", "before-form", "form", "first-collective", "ddp"])
def test_second_loss_while_the_next_world_forms(survivors: MakeSurvivors, point: str, tmp_path: Path) -> None:
    job = survivors(nnodes="1:4")
    environment = {"SURVIVE_POINT": point, "SURVIVE_FILE": str(tmp_path / "now")}
    unlucky = job.start("n3", script=POINTS, environment=environment)
    first, second, third = (job.start(f"n{number}") for number in range(3))
    job.wait_trains(first, second, third, unlucky, timeout_seconds=START_SECONDS)
    (tmp_path / "now").touch()
    second.kill()
    job.wait_trains(first, third, timeout_seconds=FORM_SECONDS + 2 * LEASE_SECONDS + 20)
    assert unlucky.wait() == -signal.SIGKILL, job.describe()
    assert f"point {point}" in unlucky.log
    job.wait_steps(first, 5)
    assert_same_processes(job, first, third)


@on_etcd
def test_losses_at_points_of_a_step(survivors: MakeSurvivors, tmp_path: Path) -> None:
    job = survivors(nnodes="1:5")
    first = job.start("n0")
    unlucky: dict[str, Trainer] = {}
    for point in ("backward", "optimizer", "advance", "begin-step"):
        environment = {"SURVIVE_POINT": point, "SURVIVE_FILE": str(tmp_path / point)}
        unlucky[point] = job.start(point, script=POINTS, environment=environment)
    job.wait_trains(first, *unlucky.values(), timeout_seconds=START_SECONDS)
    # All in one job, because most of the time passes until the processes have imported torch.
    while unlucky:
        point, victim = unlucky.popitem()
        (tmp_path / point).touch()
        assert victim.wait() == -signal.SIGKILL, job.describe()
        assert f"point {point}" in victim.log
        job.wait_trains(first, *unlucky.values())
        job.wait_steps(first, 5)
    assert_same_processes(job, first)


@on_etcd
@pytest.mark.parametrize("point", ["send", "receive"])
def test_loss_while_the_state_is_sent(survivors: MakeSurvivors, point: str, tmp_path: Path) -> None:
    job = survivors(nnodes="1:4")
    environment = {"SURVIVE_POINT": point, "SURVIVE_FILE": str(tmp_path / "now")}
    options: dict[str, object] = {"script": POINTS, "environment": environment}
    # One of the old members sends its state, and the new one receives it.
    old, new = (options, {}) if point == "send" else ({}, options)
    trainers = [job.start(f"n{number}", **old) for number in range(3)]  # type: ignore[arg-type]
    job.wait_trains(*trainers, timeout_seconds=START_SECONDS)
    job.wait_steps(trainers[0], 5)
    (tmp_path / "now").touch()
    trainers.append(job.start("n3", **new))  # type: ignore[arg-type]

    def ended() -> list[Trainer]:
        return [one for one in trainers if one.process.poll() == -signal.SIGKILL]

    [unlucky] = wait_for("the kill", ended, timeout_seconds=START_SECONDS, detail=job.describe)
    left = [one for one in trainers if one is not unlucky]
    job.wait_trains(*left, timeout_seconds=FORM_SECONDS + 2 * LEASE_SECONDS + 20)
    job.wait_steps(left[0], 5)
    assert_same_processes(job, *left)


def test_new_process_gets_the_state_and_trains_with_the_others(survivors: MakeSurvivors) -> None:
    job = survivors(nnodes="1:4")
    first, second = job.start("n0"), job.start("n1", conf={"last_call_timeout": "1"})
    job.wait_trains(first, second, timeout_seconds=START_SECONDS)
    reached = job.wait_steps(first, 20)
    third = job.start("n2")
    job.wait_trains(first, second, third, timeout_seconds=START_SECONDS)
    assert third.steps()[0].step > reached, "it begins with the progress of the others"
    assert_same_processes(job, first, second, third)


def test_sigterm_ends_one_after_its_step_and_the_others_continue(survivors: MakeSurvivors) -> None:
    job = survivors(nnodes="1:4")
    trainers = four(job)
    leaver = trainers.pop(1)
    leaver.process.terminate()
    assert leaver.wait() == 128 + signal.SIGTERM, job.describe()
    job.wait_trains(*trainers)
    job.wait_steps(trainers[0], 5)
    # Its last step was completed, and no step of the others was lost.
    last = leaver.steps()[-1].step
    assert any(step.step == last + 1 for step in trainers[0].steps()), job.describe()
    assert_same_processes(job, *trainers)


@on_etcd
def test_stopped_survivor_is_excluded_and_joins_again_as_a_new_member(survivors: MakeSurvivors) -> None:
    job = survivors(nnodes="1:4")
    trainers = four(job)
    stopped = trainers[1]
    pause(stopped.process)
    others = [one for one in trainers if one is not stopped]
    job.wait_trains(*others)
    stopped.process.send_signal(signal.SIGCONT)
    job.wait_trains(*trainers)
    assert_same_processes(job, *trainers)


@on_etcd
def test_pause_of_one_rank_outside_of_collectives_changes_nothing(survivors: MakeSurvivors) -> None:
    job = survivors(nnodes="1:4")
    # Longer than the limit for forming a group, which does not apply to the collectives of the program.
    environment = {"SURVIVE_POINT": "optimizer", "SURVIVE_ACTION": f"sleep:{FORM_SECONDS + LEASE_SECONDS + 3}"}
    paused = job.start("n3", script=POINTS, environment=environment)
    trainers = [*(job.start(f"n{number}") for number in range(3)), paused]
    world = job.wait_trains(*trainers, timeout_seconds=START_SECONDS)
    wait_for("the pause", lambda: "point optimizer" in paused.log, detail=job.describe)
    job.wait_steps(paused, 20)
    assert {one.steps()[-1].world for one in trainers} == {world}, job.describe()
    assert_same_processes(job, *trainers)


@on_etcd
def test_survivor_that_hangs_is_excluded_and_ends_itself_with_an_explanation(survivors: MakeSurvivors) -> None:
    job = survivors(nnodes="1:4")
    conf = {"step_timeout_seconds": "5"}
    hung = job.start(
        "n3", script=POINTS, environment={"SURVIVE_POINT": "optimizer", "SURVIVE_ACTION": "sleep:600"}, conf=conf
    )
    first, second, third = (job.start(f"n{number}", conf=conf) for number in range(3))
    job.wait_trains(first, second, third, hung, timeout_seconds=START_SECONDS)
    wait_for("the hang", lambda: "point optimizer" in hung.log, detail=job.describe)
    second.kill()
    job.wait_trains(first, third)
    assert hung.wait() == 75, job.describe()
    assert "did not return from its step within 5 s" in hung.log
    assert "n3" in first.log.rpartition("formed a group of 2")[2], "the reason of the round names it"
    assert_same_processes(job, first, third)


def test_training_continues_while_the_service_is_lost(
    survivors: MakeSurvivors, own_service: Service, run_id: str
) -> None:
    job = survivors(nnodes="1:4", endpoint=own_service.endpoint)
    trainers = four(job)
    world = trainers[0].steps()[-1].world
    own_service.kill()
    job.wait_steps(trainers[0], 100)
    own_service.start()
    job.wait_steps(trainers[0], 100)
    assert {one.steps()[-1].world for one in trainers} == {world}, job.describe()
    trainers[1].kill()
    left = [trainers[0], *trainers[2:]]
    job.wait_trains(*left)
    assert_same_processes(job, *left)


@pytest.mark.timeout(300 + 30 * KILLS)
@on_etcd
def test_threads_descriptors_and_memory_stay_flat_over_many_kills_and_joins(
    survivors: MakeSurvivors, say: Callable[[str], None]
) -> None:
    job = survivors(nnodes="1:4")
    # Fewer steps in a long job, because the test reads all of them again and again.
    step_seconds = 0.02 if KILLS < 20 else 0.2
    trainers = four(job, step_seconds=step_seconds)
    counts = []
    for number in range(KILLS):
        # Any of them but the first, whose counts are compared.
        victim = trainers.pop(1 + number % 3)
        victim.kill()
        job.wait_trains(*trainers)
        trainers.insert(1 + number % 3, job.start(f"n{4 + number}", step_seconds=step_seconds))
        job.wait_trains(*trainers, timeout_seconds=START_SECONDS)
        counts.append(trainers[0].counts())
    assert_same_processes(job, *trainers)
    assert all(one.process.poll() is None for one in trainers), job.describe()
    say(f"after each of {KILLS} kills and joins: {[tuple(each) for each in counts]}")
    # The first rounds may open what stays, such as another connection to the service. A single count may include the group
    # of the world before, so the median counts.
    for allowed, before, *later in zip((3, 3, 64), counts[1], *counts[len(counts) // 2 :], strict=True):
        assert statistics.median(later) <= before + allowed, counts
