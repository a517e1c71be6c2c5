"""How `doctor` judges its findings."""

import json
import re
from pathlib import Path

import pytest

import lattice_rdzv
from lattice_rdzv.cli import doctor, etcd_versions, judgements

ROOT = Path(__file__).resolve().parents[2]


def by_check(findings: list[judgements.Finding]) -> dict[str, judgements.Finding]:
    return {finding.check: finding for finding in findings}


def test_variables_of_agents_are_shown_with_their_values() -> None:
    findings = by_check(
        judgements.judge_environment({"LATTICE_RDZV_ENDPOINTS": "etcd-1:2379", "LATTICE_RDZV_ID": "job"})
    )
    assert findings.keys() == {"environment"}
    assert "LATTICE_RDZV_ENDPOINTS=etcd-1:2379" in findings["environment"].found
    assert "LATTICE_RDZV_ID=job" in findings["environment"].found


def test_empty_variable_counts_as_not_set() -> None:
    findings = by_check(judgements.judge_environment({"LATTICE_RDZV_ENDPOINTS": "", "PET_RDZV_ENDPOINT": ""}))
    assert "LATTICE_RDZV_ENDPOINTS" not in findings["environment"].found
    assert findings.keys() == {"environment"}


def test_endpoint_of_torchruns_own_hides_our_variables() -> None:
    environment = {"PET_RDZV_ENDPOINT": "head:29400", "LATTICE_RDZV_CLIENT_SERVICE_HOST": "10.0.0.7"}
    finding = by_check(judgements.judge_environment(environment))["torchrun's own variables"]
    assert finding.status == "warn"
    assert "head:29400" in finding.found
    assert "LATTICE_RDZV_CLIENT_SERVICE_HOST" in finding.found
    assert "unset PET_RDZV_ENDPOINT" in finding.advice


def test_endpoint_of_torchruns_own_overrides_nothing_if_no_variable_is_set() -> None:
    findings = by_check(judgements.judge_environment({"PET_RDZV_ENDPOINT": "head:29400"}))
    assert findings.keys() == {"environment"}
    assert "PET_RDZV_ENDPOINT=head:29400" in findings["environment"].found


@pytest.mark.parametrize("name", ["LATTICE_RDZV_ENDPOINTS", "PET_RDZV_ENDPOINT"])
def test_password_in_an_endpoint_is_not_repeated(name: str) -> None:
    printed = doctor.describe(
        judgements.judge_environment({name: "http://user:s3cret@etcd:2379", "LATTICE_RDZV_CLIENT_PORT": "tcp://etcd:1"})
    )
    assert f"{name}=***@etcd:2379" in printed
    assert "s3cret" not in printed


def test_password_by_value_fails_and_is_not_repeated() -> None:
    findings = judgements.judge_environment({"LATTICE_RDZV_PASSWORD": "s3cret"})
    assert by_check(findings)["password"].status == "fail"
    assert "s3cret" not in doctor.describe(findings)
    # The password itself instead of a file.
    mistaken = judgements.judge_environment({"LATTICE_RDZV_PASSWORD_FILE": "s3cret"})
    assert "s3cret" not in doctor.describe(mistaken)


def test_misspelled_variable_is_reported_and_those_of_kubernetes_are_not() -> None:
    environment = {"LATTICE_RDZV_ENDPOINT": "etcd:2379", "LATTICE_RDZV_SERVER_SERVICE_PORT_CLIENT": "2379"}
    finding = by_check(judgements.judge_environment(environment))["unknown variables"]
    assert finding.status == "fail"
    assert finding.found.startswith("LATTICE_RDZV_ENDPOINT is set and has no effect")
    assert finding.advice == "did you mean LATTICE_RDZV_ENDPOINTS?"


def test_unknown_variable_without_a_similar_name_is_a_warning() -> None:
    finding = by_check(judgements.judge_environment({"LATTICE_RDZV_JOIN_TIMEOUT": "5"}))["unknown variables"]
    assert finding.status == "warn"
    assert "settings.md" in finding.advice


@pytest.mark.parametrize(
    ("only_this_machine", "max_nodes", "expected"),
    [(True, 4, ["fail"]), (True, None, ["warn"]), (True, 1, []), (False, 4, []), (False, None, [])],
)
def test_endpoint_that_only_this_machine_reaches_is_a_problem_for_several_nodes(
    only_this_machine: bool, max_nodes: int | None, expected: list[str]
) -> None:
    findings = judgements.judge_reach(
        "http://localhost:2379", "a test", only_this_machine=only_this_machine, max_nodes=max_nodes
    )
    assert [finding.status for finding in findings] == expected
    assert all("`--rdzv-endpoint`" in finding.advice for finding in findings)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.3.27", "fail"),
        ("3.4.23", "warn"),
        ("3.4.45", "warn"),
        ("3.5.1", "warn"),
        ("3.5.32", "warn"),
        ("3.5.33", "ok"),
        ("3.6.13", "warn"),
        ("3.6.14", "ok"),
        ("3.7.0-rc.1", "warn"),
        ("3.7.1", "ok"),
        (f"3.5.21+lattice-rdzv.{lattice_rdzv.__version__}", "ok"),
        (f"3.5.21+lattice-rdzv.{lattice_rdzv.__version__}.hosted.0123456789abcdef", "ok"),
        ("4.0.0", "ok"),
        ("", "warn"),
        ("nightly", "warn"),
    ],
)
def test_release_of_etcd_is_judged_by_its_known_bugs(version: str, expected: str) -> None:
    finding = judgements.judge_etcd(version)
    assert finding.status == expected
    assert finding.status == "ok" or finding.advice


def test_data_loss_is_named_with_its_source() -> None:
    assert "13766" in judgements.judge_etcd("3.5.2").found
    assert "13766" not in judgements.judge_etcd("3.5.3").found


def test_recommended_release_is_the_first_without_known_bugs() -> None:
    for line, (major, minor, patch) in etcd_versions.RECOMMENDED.items():
        assert etcd_versions.open_holes((major, minor, patch)) == []
        assert etcd_versions.open_holes((major, minor, patch - 1)) != []
        assert line == (major, minor) or etcd_versions.open_holes((*line, etcd_versions.NEVER - 1)) != []


def test_release_line_that_is_not_fixed_should_be_replaced() -> None:
    assert "3.5.33" in judgements.judge_etcd("3.4.45").advice


def test_chart_warns_of_the_same_releases() -> None:
    template = (ROOT / "helm" / "lattice-rdzv" / "templates" / "_version.tpl").read_text()
    _, definition = template.split('define "lattice.supportedVersion"')
    first = {".".join(map(str, version)) for version in etcd_versions.RECOMMENDED.values()}
    assert set(re.findall(r">=([\d.]+)", definition)) == first


@pytest.mark.parametrize(
    ("version", "expected"),
    [(None, "warn"), ("2.5.1+cpu", "fail"), ("2.6.0", "ok"), ("2.15.0+cu132", "ok"), ("3.0.0a0", "ok")],
)
def test_torch_is_judged_by_whether_it_loads_entry_points(version: str | None, expected: str) -> None:
    assert judgements.judge_torch(version).status == expected


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("refused", "start the service"),
        ("unavailable", "why it does not respond"),
        ("not_etcd", "client port"),
        ("denied", "LATTICE_RDZV_PASSWORD_FILE"),
        ("setting", "the setting that the message names"),
        ("other", "the service's log"),
        ("", "the service's log"),
    ],
)
def test_advice_is_about_the_failed_check(kind: str, advice: str) -> None:
    (finding,) = judgements.judge_service(judgements.Probe("etcd:2379", error="it failed", kind=kind))
    assert finding.status == "fail"
    assert advice in finding.advice


def test_read_only_service_fails_with_its_reason() -> None:
    text = json.dumps({"endpoint": "e:1", "version": "3.5.23", "writable": False, "errors": ["permission denied"]})
    finding = by_check(judgements.judge_service(judgements.Probe.from_json(text, endpoint="e:1")))[
        "permission to write"
    ]
    assert finding.status == "fail"
    assert "permission denied" in finding.found
