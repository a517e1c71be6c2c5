"""The render of a set of values is valid for every Kubernetes, equal in every Helm, and equal to the last reviewed one."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.definitions import is_foreign
from chart.kubeconform import errors
from chart.render import Renderer, is_hook, parse
from chart.tools import CHART, HELM_VERSIONS, KUBERNETES_VERSIONS, helm

FILES = [*sorted((CHART / "ci").glob("*-values.yaml")), CHART / "values-production.yaml"]
GOLDEN = Path(__file__).parent / "golden"
# These renders are reviewed completely. Other values are covered by assertions about single objects.
REVIEWED = {"default-values", "everything-values", "values-production"}
each_file = pytest.mark.parametrize("file", FILES, ids=[file.stem.removesuffix("-values") for file in FILES])


@pytest.mark.parametrize("kubernetes", KUBERNETES_VERSIONS)
def test_renders_are_valid(kubernetes: str, tmp_path: Path) -> None:
    renderer = Renderer(kubernetes=f"{kubernetes}.0")
    renders = {file.stem: parse(renderer.text(None, file)) for file in FILES}
    assert errors(renders, kubernetes, tmp_path) == {name: [] for name in renders}


def test_unknown_field_is_an_error_in_every_kind(tmp_path: Path) -> None:
    kinds = {one["kind"]: one for file in FILES for one in parse(Renderer().text(None, file))}
    assert any(is_foreign(one["apiVersion"]) for one in kinds.values())
    found = errors({kind: [{**one, "typo": 1}] for kind, one in kinds.items()}, "1.30", tmp_path)
    assert [kind for kind, messages in found.items() if "typo" not in str(messages)] == []


@each_file
def test_every_helm_renders_the_same(file: Path) -> None:
    renders = [ordered(parse(Renderer(version).text(None, file))) for version in HELM_VERSIONS]
    assert renders[0] == renders[1] == renders[2]


@pytest.mark.parametrize("version", HELM_VERSIONS)
@each_file
def test_strict_lint_has_no_findings(file: Path, version: str) -> None:
    done = subprocess.run(
        [helm(version), "lint", "--strict", CHART, "--values", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("file", [file for file in FILES if file.stem in REVIEWED], ids=lambda file: file.stem)
def test_render_is_as_reviewed(file: Path) -> None:
    """The comparison ignores the format. After an intended change, run `make chart-golden` and review the diff."""
    golden = GOLDEN / f"{file.stem.removesuffix('-values')}.yaml"
    rendered = ordered(parse(Renderer().text(None, file)))
    if os.environ.get("LATTICE_CHART_GOLDEN") == "write":
        golden.write_text(yaml.safe_dump_all(rendered, sort_keys=True, width=160))
    assert rendered == list(yaml.safe_load_all(golden.read_text()))


def test_values_of_every_reviewed_render_exist() -> None:
    assert {file.stem for file in GOLDEN.glob("*.yaml")} == {stem.removesuffix("-values") for stem in REVIEWED}


@each_file
def test_nothing_is_rendered_empty(file: Path) -> None:
    """A mistake in a template often results in a key without a value."""

    def empties(node: Any, path: str) -> list[str]:
        if node is None:
            return [path]
        if isinstance(node, dict):
            return [found for key, value in node.items() for found in empties(value, f"{path}.{key}")]
        if isinstance(node, list):
            return [found for index, value in enumerate(node) for found in empties(value, f"{path}[{index}]")]
        return []

    for one in parse(Renderer().text(None, file)):
        assert not empties(one, one["kind"])


@each_file
def test_every_object_has_the_charts_labels_and_a_namespace(file: Path) -> None:
    for one in parse(Renderer().text(None, file)):
        metadata = one["metadata"]
        assert metadata["labels"]["app"] == ("lattice-rdzv-test" if is_hook(one) else "lattice-rdzv")
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert metadata["namespace"]


@each_file
def test_pods_are_restricted(file: Path) -> None:
    """They meet the Pod Security Standard `restricted`, and have no token for Kubernetes' API."""
    specs = [
        one["spec"]["template"]["spec"] for one in objects_of(file) if one["kind"] in ("Deployment", "StatefulSet")
    ]
    specs += [
        one["spec"]["jobTemplate"]["spec"]["template"]["spec"] for one in objects_of(file) if one["kind"] == "CronJob"
    ]
    specs += [one["spec"] for one in objects_of(file) if one["kind"] == "Pod"]
    for spec in specs:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {next(iter(volume.keys() - {"name"})) for volume in spec.get("volumes", [])} <= {
            "emptyDir",
            "secret",
            "configMap",
        }
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}


def objects_of(file: Path) -> list[dict[str, Any]]:
    return parse(Renderer().text(None, file))


def ordered(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorts hooks and objects of one kind, because releases of Helm sort them in different ways."""
    return sorted(objects, key=lambda one: (one["kind"], one["metadata"]["namespace"], one["metadata"]["name"]))
