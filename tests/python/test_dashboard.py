"""The page of `lattice-rdzv dashboard` in a real browser. `LATTICE_SCREENSHOTS=folder` keeps pictures of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from conftest import JoinNode
from harness.browser import chromium, violations
from harness.dashboard import Dashboard
from harness.embedded import Embedded
from harness.etcd import Etcd
from harness.records import WrittenRun, put_all
from harness.service import Service
from harness.status import command
from harness.wait import wait_for

import lattice_rdzv

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.timeout(240)

Scheme = Literal["light", "dark"]
OpenPage = Callable[..., "Watched"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    with chromium() as browser:
        yield browser


class Watched:
    """A page, and the messages of the browser's console."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.console: list[str] = []
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.console.append(f"error: {error}"))

    def text(self, selector: str) -> str:
        """The text that is shown at a selector; nothing if it is hidden."""
        found = self.page.locator(selector)
        return found.inner_text() if found.is_visible() else ""

    def wait(self, selector: str, text: str, *, timeout_seconds: float = 30.0) -> str:
        """Waits until an element shows a text."""
        return wait_for(
            f"{selector} shows `{text}`",
            lambda: shown if text.lower() in (shown := self.text(selector)).lower() else None,
            timeout_seconds=timeout_seconds,
            detail=lambda: self.page.locator("body").inner_text()[:2000],
        )

    def check(self) -> None:
        """Checks that the page in its present state is accessible and that the console has no message."""
        assert violations(self.page) == []
        assert self.console == []

    def keep(self, name: str) -> None:
        """Keeps a picture, if a folder for it is set."""
        folder = os.environ.get("LATTICE_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture
def visit(browser: Browser) -> Iterator[OpenPage]:
    """Opens pages, each in a separate browser profile."""
    contexts: list[Any] = []

    def open_page(url: str, *, width: int = 1280, height: int = 860, scheme: Scheme = "light") -> Watched:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            timezone_id="UTC",
        )
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.goto(url)
        return watched

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def dashboard(etcd: Service, tmp_path: Path) -> Iterator[Dashboard]:
    """The dashboard of the shared etcd."""
    with Dashboard(tmp_path, "--endpoint", etcd.endpoint).running() as dashboard:
        yield dashboard


def wait_until_quiet(dashboard: Dashboard, run_id: str) -> None:
    """Waits until the last change of a run is over, because the dashboard gathers changes that follow each other."""
    before = ""
    for name, _ in dashboard.events(f"/events/run/default/{run_id}"):
        if name == before == "checked":
            return
        before = name


def named(run_id: str, name: str) -> str:
    """A run id for a picture, if pictures are kept."""
    return name if os.environ.get("LATTICE_SCREENSHOTS") else f"{run_id}-{name}"


def at_run(dashboard: Dashboard, run_id: str) -> str:
    """The address of a run's page."""
    return f"{dashboard.url}/#/run/default/{run_id}"


def test_run_is_shown_from_its_first_node_to_its_end(
    dashboard: Dashboard, visit: OpenPage, join: JoinNode, run_id: str
) -> None:
    seen = visit(at_run(dashboard, run_id))
    seen.wait("#badge", "No such run")
    seen.check()
    first = join("a", nnodes="2:3")
    seen.wait("#badge", "Forming")
    seen.wait("#sentence", "waiting for 1 more node: 1 of at least 2 here (a)")
    seen.wait("#waits", "not known by name")
    seen.wait("#act", "lattice-rdzv doctor")
    seen.check()
    join("b", nnodes="2:3")
    seen.wait("#badge", "Formed")
    seen.wait("#sentence", "round 1 runs with 2 nodes of at most 3")
    seen.wait("#outliers", "All nodes")
    assert "2 nodes by rank: 2 members" in (seen.page.locator("#grid canvas").get_attribute("aria-label") or "")
    seen.check()
    join("c", nnodes="2:3")
    seen.wait("#sentence", "a, b have not requested round 2 since the change was announced")
    seen.wait("#waits", "last sign of life")
    assert f"lattice-rdzv drain {run_id} a" in seen.text("#act .command")
    # The times are known a moment later, when the coordinator has written its clocks.
    before = seen.wait(".countdown", "in ")
    wait_for("the countdown counts", lambda: seen.text(".countdown") != before)
    assert seen.page.title().startswith("FORMING · ")
    seen.check()
    first.close("failed", why="loss is NaN")
    seen.wait("#badge", "Closed")
    seen.wait("#sentence", "was closed as failed by `a`: loss is NaN")
    seen.check()


def test_spare_and_node_with_another_nnodes_are_named_with_the_reason(
    dashboard: Dashboard, visit: OpenPage, join: JoinNode, run_id: str
) -> None:
    seen = visit(at_run(dashboard, run_id))
    join("a", nnodes="1:1")
    seen.wait("#badge", "Formed")
    join("b", nnodes="1:1")
    seen.wait("#notes", "b waits as a spare: the only place is taken (max_nodes)")
    seen.wait("#next-body", "a spare takes the place of the first member that leaves or is lost")
    with pytest.raises(lattice_rdzv.SettingsError, match="nnodes"):
        join("c", nnodes="2")
    seen.wait("#notes", "nnodes 2:2, but the run has 1:1")
    seen.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_stuck_run_names_the_culprits_and_what_to_do(
    dashboard: Dashboard, etcd: Service, visit: OpenPage, run_id: str, scheme: str
) -> None:
    missing = range(17, 22)
    run = WrittenRun(
        named(run_id, "llm-70b"),
        64,
        60,
        missing=missing,
        # Almost a minute before "for 5 min".
        changed_ago=241,
        arrived_ago=240,
        seeking=[n for n in range(64) if n not in missing],
    ).write(etcd)
    try:
        seen = visit(at_run(dashboard, run.run_id), scheme=scheme)
        seen.wait("#badge", "Stuck")
        seen.wait("#since", "for 4 min")
        seen.wait("#waits", "connection reset, then refused at 10.0.0.17:40112 (seen by gpu-00018)")
        assert "All of them are in rack-1." in seen.text("#waits")
        assert "gpu-00017" in seen.text("#waits")
        # The nodes that have joined are not listed.
        assert seen.text("#sentence") == "waiting for 1 more node: 59 of at least 60 here"
        assert "This does not happen by itself." in seen.text("#next")
        assert "again, or as many other nodes, with the same run id" in seen.text("#act")
        assert "no node has arrived for more than 60 s" in seen.text("#notes")
        assert "59" in seen.text("#legend [data-state=waiting]")
        assert "They have had none for 4 min" in seen.text("#rounds")
        # The shapes of the picture: three rounds, and the times between them and now.
        assert seen.page.locator("#picture .span-round").count() == 3
        assert seen.page.locator("#picture .span-still").count() == 3
        assert seen.page.locator("#picture .mark-lost").count() == 2
        seen.check()
        if scheme == "light":
            seen.keep("dashboard-stuck")
            phone = visit(at_run(dashboard, run.run_id), width=380, height=800)
            phone.wait("#badge", "Stuck")
            overflow = phone.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, "the page does not scroll sideways on a phone"
            phone.check()
    finally:
        etcd.delete(run.prefix)


def test_thousand_nodes_are_one_picture_with_the_outliers_named(
    dashboard: Dashboard, etcd: Service, visit: OpenPage, run_id: str
) -> None:
    late = (500, 3, 31)
    seeking = [number for number in range(1000) if number not in late]
    run = WrittenRun(
        named(run_id, "vision-1k"), 1000, 800, missing=[500], changed_ago=41, arrived_ago=200, seeking=seeking
    ).write(etcd)
    try:
        seen = visit(at_run(dashboard, run.run_id))
        seen.wait("#sentence", "gpu-00003, gpu-00031 have not requested round 4 since the change was announced")
        seen.wait("#outliers", "3 nodes not like the others")
        label = seen.page.locator("#grid canvas").get_attribute("aria-label") or ""
        assert label.startswith("1,000 nodes by rank: 1 missing, 2 told, 997 waiting.")
        seen.check()
        seen.keep("dashboard-forming")
        # By keyboard: find a node, see what is known of it, and go to its neighbor.
        seen.page.keyboard.press("/")
        seen.page.keyboard.type("gpu-00031")
        seen.page.keyboard.press("Enter")
        seen.wait("#picked", "gpu-00031: rank 31 · told")
        seen.wait("#outliers", "1 node selected")
        seen.page.locator("#grid canvas").focus()
        seen.page.keyboard.press("ArrowRight")
        seen.wait("#picked", "gpu-00032: rank 32 · waiting")
        seen.page.keyboard.press("ArrowDown")
        assert "gpu-00032" not in seen.text("#picked")
        # The legend selects the nodes of a state.
        seen.page.locator("#find").fill("")
        seen.page.locator("#legend [data-state=missing]").press("Enter")
        seen.wait("#outliers", "1 node selected")
        seen.wait("#outliers", "gpu-00500")
        seen.page.locator("h1#sentence").click()
        seen.page.keyboard.press("Escape")
        seen.wait("#list", run.run_id)
        seen.check()
    finally:
        etcd.delete(run.prefix)


@pytest.mark.timeout(900)
def test_ten_thousand_nodes_are_shown_and_changes_follow(
    dashboard: Dashboard, etcd: Service, visit: OpenPage, run_id: str, say: Callable[[str], None]
) -> None:
    run = WrittenRun(run_id, 10_000, 9_000, spares=24).write(etcd)
    try:
        seen = visit(f"{dashboard.url}/#/")
        began = time.perf_counter()
        seen.page.evaluate("name => location.hash = `#/run/default/${name}`", run_id)
        seen.page.wait_for_function(
            "() => document.querySelector('#grid canvas')?.ariaLabel?.startsWith('10,024 nodes')", timeout=120_000
        )
        say(f"dashboard: 10,000 nodes were shown {time.perf_counter() - began:.2f} s after a click")
        seen.check()
        began = time.perf_counter()
        printed = command("status", run_id, "--endpoint", etcd.endpoint, "--timeout=100", timeout_seconds=120).stdout
        assert printed.startswith(f"Run {run_id}: ")
        say(f"lattice-rdzv status: 10,000 nodes were shown after {time.perf_counter() - began:.2f} s")
        # The write of one key is a change of the page. The clocks of browser and test are one.
        for nodes, words in ((10_000, "a run of 10,000 nodes"), (8, "a run of 8 nodes")):
            small = WrittenRun(f"{run_id}-{nodes}", nodes, nodes // 2).write(etcd)
            try:
                seen.page.evaluate("name => location.hash = `#/run/default/${name}`", small.run_id)
                seen.wait("#badge", "Formed")
                seen.page.evaluate(
                    """() => new MutationObserver(() => (window.changedAt ??= Date.now() / 1000))
                    .observe(document.getElementById("sentence"), {childList: true, characterData: true, subtree: true})"""
                )
                delays: list[float] = []
                for number in (5, 6, 7):
                    wait_until_quiet(dashboard, small.run_id)
                    seen.page.evaluate("window.changedAt = undefined")
                    record = {**small.node(number), "leaving": True}
                    put_all(etcd, [(small.node_key(number), record)])
                    written = time.time()
                    changed = wait_for("the page shows the change", lambda: seen.page.evaluate("window.changedAt"))
                    delays.append(changed - written)
                    put_all(etcd, [(small.node_key(number), small.node(number))])
                    seen.wait("#sentence", "runs with")
                say(f"dashboard: a change of {words} was shown {max(delays) * 1000:.0f} ms after its write")
            finally:
                etcd.delete(small.prefix)
    finally:
        etcd.delete(run.prefix)


def test_runs_are_listed_with_the_worst_first(own_etcd: Etcd, visit: OpenPage, tmp_path: Path) -> None:
    steady = WrittenRun("tokenizer", 8, 4, spares=1).write(own_etcd)
    WrittenRun("llm-70b", 64, 60, missing=range(17, 22), changed_ago=252, arrived_ago=240, seeking=range(64)).write(
        own_etcd
    )
    WrittenRun("vision", 8, 4, changed_ago=20, seeking=range(7)).write(own_etcd)
    with Dashboard(tmp_path, "--endpoint", own_etcd.endpoint).running() as dashboard:
        seen = visit(dashboard.url, height=460, scheme="dark")

        def order() -> list[str]:
            return [str(name) for name in seen.page.locator(".row strong").all_inner_texts()]

        wait_for("the stuck run is first", lambda: order() == ["llm-70b", "vision", "tokenizer"])
        assert seen.page.title().startswith("STUCK · Runs")
        seen.check()
        seen.keep("dashboard-runs")
        seen.page.locator(".row", has_text="vision").click()
        seen.wait("#sentence", "gpu-00007 has not requested round 4")
        seen.page.locator("#home").click()
        seen.wait("#list", "tokenizer")
        own_etcd.delete(steady.prefix)
        wait_for("a run that is gone leaves the list", lambda: order() == ["llm-70b", "vision"])
        # A run that is new joins it.
        WrittenRun("another", 8, 4).write(own_etcd)
        wait_for("a new run is in the list", lambda: order() == ["llm-70b", "vision", "another"])
        assert seen.console == []


def test_service_that_does_not_respond_is_shown_and_its_return_too(
    own_etcd: Etcd, visit: OpenPage, tmp_path: Path
) -> None:
    WrittenRun("steady", 8, 4).write(own_etcd)
    with Dashboard(tmp_path, "--endpoint", own_etcd.endpoint).running() as dashboard:
        seen = visit(at_run(dashboard, "steady"))
        seen.wait("#badge", "Formed")
        own_etcd.kill()
        seen.wait("#badge", "Unreachable")
        seen.wait("#since", "since ")
        seen.wait("#notes", "last known: round 3 runs with 8 nodes")
        seen.wait("#world-title", "As known at ")
        seen.wait("#facts", "does not respond")
        seen.wait("#link", "no service")
        assert seen.page.locator("body[data-last-known]").count() == 1
        seen.check()
        # A page that is opened now shows this, too.
        other = visit(at_run(dashboard, "steady"))
        other.wait("#badge", "Unreachable")
        listed = visit(dashboard.url)
        listed.wait("#lost", "The runs have been unreadable since")
        listed.check()
        own_etcd.start()
        for page in (seen, other):
            page.wait("#badge", "Formed")
            page.wait("#world-title", "World: 8 nodes")
            assert page.page.locator("body[data-last-known]").count() == 0
        listed.wait("#list", "steady")
        assert listed.text("#lost") == ""
        seen.check()


def test_service_that_lost_its_data_is_not_shown_as_it_was(visit: OpenPage, tmp_path: Path) -> None:
    with Embedded(tmp_path / "service").running() as service:
        for key, value in WrittenRun("fleeting", 8, 4).records():
            service.put(key, json.dumps(value).encode())
        with Dashboard(tmp_path, "--endpoint", service.endpoint).running() as dashboard:
            seen = visit(at_run(dashboard, "fleeting"))
            seen.wait("#badge", "Formed")
            service.wipe()
            seen.wait("#badge", "No such run")
            assert seen.console == []


def test_page_says_when_the_dashboard_is_gone_and_reconnects(
    etcd: Service, visit: OpenPage, tmp_path: Path, run_id: str
) -> None:
    run = WrittenRun(run_id, 8, 4, changed_ago=10, seeking=range(7)).write(etcd)
    try:
        with Dashboard(tmp_path, "--endpoint", etcd.endpoint).running() as dashboard:
            seen = visit(at_run(dashboard, run_id))
            seen.wait("#link", "live")
            seen.wait("#badge", "Forming")
            assert dashboard.stop() == 0
            seen.wait("#lost", "No connection to the dashboard since")
            seen.wait("#link", "connection lost")
            assert seen.page.locator("body[data-stale]").count() == 1
            assert seen.page.title().startswith("? FORMING")
            # The times stop, because the page does not know what has happened since.
            shown = seen.text(".countdown"), seen.text("#since")
            seen.page.wait_for_function("begin => Date.now() > begin + 1500", arg=seen.page.evaluate("Date.now()"))
            assert (seen.text(".countdown"), seen.text("#since")) == shown
            assert violations(seen.page) == []
            etcd.delete(run.prefix)
            dashboard.start()
            seen.wait("#badge", "No such run")
            seen.wait("#link", "live")
            assert seen.text("#lost") == ""
            assert seen.page.locator("body[data-stale]").count() == 0
    finally:
        etcd.delete(run.prefix)
