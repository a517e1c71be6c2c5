"""A store that is installed again, on the volumes that it had and on new ones; and how Helm and others apply it."""

from __future__ import annotations

import json

import pytest
from chart.render import MEMBERS, Renderer
from harness.wait import wait_for

from e2e.chart import RELEASE, Chart
from e2e.kubernetes import Failed

pytestmark = pytest.mark.timeout(600, func_only=True)

KEY = "/lattice/kept"


@pytest.fixture
def uninstalled(chart: Chart) -> tuple[Chart, int]:
    """A store of three members that held a key and was uninstalled, and its cluster's id."""
    chart.install(MEMBERS)
    chart.etcdctl("put", KEY, "1")
    before = cluster_id(chart)
    chart.uninstall()
    chart.gone()
    return chart, before


def test_on_the_claims_that_it_left_it_is_the_same_store(uninstalled: tuple[Chart, int]) -> None:
    chart, before = uninstalled
    chart.install(MEMBERS)
    assert chart.etcdctl("get", KEY, "--print-value-only").strip() == "1"
    assert cluster_id(chart) == before


def test_on_new_claims_it_is_another_store(uninstalled: tuple[Chart, int]) -> None:
    """Clients know by the id that what they had written is gone."""
    chart, before = uninstalled
    chart.kubernetes("delete", "persistentvolumeclaims", "--all", f"--namespace={chart.namespace}")
    chart.install(MEMBERS)
    if chart.etcdctl("get", KEY, "--print-value-only").strip() != "":
        raise Failed(["etcdctl", "get", KEY], 0, "the old store's key is there")
    assert cluster_id(chart) != before


def cluster_id(chart: Chart) -> int:
    """The id that every response carries."""
    return int(json.loads(chart.etcdctl("get", "none", "--write-out=json"))["header"]["cluster_id"])


@pytest.mark.parametrize("helm_version", ["3.22.0", "4.3.1"])
def test_helm_waits_for_a_store_that_never_comes(chart: Chart, helm_version: str) -> None:
    chart.helm_version = helm_version
    chart.install()
    with pytest.raises(Failed, match=r"(?i)timed out|deadline|not ready|failed"):
        chart.helm(
            "upgrade", RELEASE, str(Renderer().chart), "--set=image=localhost/etcd:v3.5.6", "--wait", "--timeout=20s"
        )


@pytest.mark.parametrize("members", [1, 3])
def test_server_side_apply_of_the_same_render_changes_nothing(chart: Chart, members: int) -> None:
    """As controllers do it that render the chart themselves, without Helm's releases and look-ups."""
    rendered = Renderer(namespace=chart.namespace).text(MEMBERS if members == 3 else {})
    generations = []
    for _ in range(2):
        chart.kubernetes(
            "apply", "--server-side", "--field-manager=gitops", "--filename=-", text=without_tests(rendered)
        )
        chart.values = MEMBERS if members == 3 else {}
        chart.roll_out()
        one = json.loads(chart.kubernetes("get", chart.workload, f"--namespace={chart.namespace}", "--output=json"))
        generations.append((one["metadata"]["uid"], one["metadata"]["generation"]))
    assert generations[0] == generations[1]
    wait_for("every member serves", lambda: len(chart.pods()) == members, every_seconds=1)


def without_tests(rendered: str) -> str:
    """A render without the pods of `helm test`, which controllers leave out."""
    return "---\n".join(one for one in rendered.split("---\n") if "helm.sh/hook" not in one)
