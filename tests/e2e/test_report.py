"""What a failing scenario leaves to read."""

import pytest

from e2e.chart import Chart
from e2e.report import gather, side_by_side


def test_events_and_lines_stand_in_the_order_of_time() -> None:
    events = [("2026-01-01T10:00:02Z", "Pod/a Killing: Stopping"), ("2026-01-01T10:00:00.5Z", "Pod/a Started: Started")]
    lines = [("2026-01-01T10:00:01.123456789Z", "a: rank 0 of 2")]
    shown = side_by_side(events, lines).splitlines()
    assert [line[:12] for line in shown] == ["10:00:00.500", "10:00:01.123", "10:00:02.000"]
    left, right = zip(*(line[15:].split(" | ") for line in shown), strict=True)
    assert [one.strip() for one in left] == ["Pod/a Started: Started", "", "Pod/a Killing: Stopping"]
    assert [one.strip() for one in right] == ["", "a: rank 0 of 2", ""]


def test_last_ones_are_kept() -> None:
    lines = [(f"2026-01-01T10:00:{second:02}Z", str(second)) for second in range(60)]
    assert side_by_side([], lines, limit=2).splitlines()[-1].endswith("| 59")
    assert len(side_by_side([], lines, limit=2).splitlines()) == 2


@pytest.mark.timeout(600, func_only=True)
def test_store_is_heard_beside_kubernetes(chart: Chart) -> None:
    chart.install()
    (store,) = (one["metadata"]["name"] for one in chart.pods())
    shown = gather(chart.kubernetes, [chart.namespace], [])
    events, lines = zip(*(line[15:].split(" | ", 1) for line in shown.splitlines()), strict=True)
    assert any(f"Pod/{store} Started" in event for event in events), shown
    assert any(line.startswith(f"{store}: ") and "ready to serve client requests" in line for line in lines), shown
