"""The command `lattice-rdzv`, as a person or a script meets it."""

import argparse
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from harness.binaries import etcd_binary
from harness.ports import free_port
from harness.service import Service
from harness.silent import http_endpoint, silent_endpoint

import lattice_rdzv
from lattice_rdzv import _core
from lattice_rdzv.cli import demo, doctor, etcd_versions, main, status

ROOT = Path(__file__).resolve().parents[2]

# Nobody listens on the discard port of this machine.
NOBODY = "127.0.0.1:9"


def by_check(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.check: finding for finding in findings}


def printed_findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}


# --- doctor: judgements ----------------------------------------------------------------------------------------------


def test_variables_that_agents_read_are_told_with_their_values() -> None:
    findings = by_check(doctor.judge_environment({"LATTICE_RDZV_ENDPOINTS": "etcd-1:2379", "LATTICE_RDZV_ID": "job"}))
    assert findings.keys() == {"environment"}
    assert "LATTICE_RDZV_ENDPOINTS=etcd-1:2379" in findings["environment"].found
    assert "LATTICE_RDZV_ID=job" in findings["environment"].found


def test_an_empty_variable_counts_as_not_set() -> None:
    findings = by_check(doctor.judge_environment({"LATTICE_RDZV_ENDPOINTS": "", "PET_RDZV_ENDPOINT": ""}))
    assert "LATTICE_RDZV_ENDPOINTS" not in findings["environment"].found
    assert findings.keys() == {"environment"}


def test_an_endpoint_of_torchruns_own_hides_our_variables() -> None:
    environment = {"PET_RDZV_ENDPOINT": "head:29400", "LATTICE_RDZV_CLIENT_SERVICE_HOST": "10.0.0.7"}
    finding = by_check(doctor.judge_environment(environment))["torchrun's own variables"]
    assert finding.status == "warn"
    assert "head:29400" in finding.found
    assert "LATTICE_RDZV_CLIENT_SERVICE_HOST" in finding.found
    assert "unset PET_RDZV_ENDPOINT" in finding.advice


def test_an_endpoint_of_torchruns_own_hides_nothing_where_nothing_of_ours_is_set() -> None:
    findings = by_check(doctor.judge_environment({"PET_RDZV_ENDPOINT": "head:29400"}))
    assert findings.keys() == {"environment"}
    assert "PET_RDZV_ENDPOINT=head:29400" in findings["environment"].found


@pytest.mark.parametrize("name", ["LATTICE_RDZV_ENDPOINTS", "PET_RDZV_ENDPOINT"])
def test_a_password_in_an_endpoint_is_not_repeated(name: str) -> None:
    told = doctor.describe(
        doctor.judge_environment({name: "http://user:s3cret@etcd:2379", "LATTICE_RDZV_CLIENT_PORT": "tcp://etcd:1"})
    )
    assert f"{name}=***@etcd:2379" in told
    assert "s3cret" not in told


def test_a_password_by_value_fails_and_is_not_repeated() -> None:
    findings = doctor.judge_environment({"LATTICE_RDZV_PASSWORD": "s3cret"})
    assert by_check(findings)["password"].status == "fail"
    assert "s3cret" not in doctor.describe(findings)


def test_a_misspelt_variable_is_told_and_those_of_kubernetes_are_not() -> None:
    environment = {"LATTICE_RDZV_ENDPOINT": "etcd:2379", "LATTICE_RDZV_SERVER_SERVICE_PORT_CLIENT": "2379"}
    finding = by_check(doctor.judge_environment(environment))["unknown variables"]
    assert finding.status == "warn"
    assert finding.found.endswith(": LATTICE_RDZV_ENDPOINT")


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
        (f"3.5.21+lattice-rdzv.{lattice_rdzv.__version__}.hosted", "ok"),
        ("4.0.0", "ok"),
        ("", "warn"),
        ("nightly", "warn"),
    ],
)
def test_a_release_of_etcd_is_judged_by_its_holes(version: str, expected: str) -> None:
    finding = doctor.judge_etcd(version)
    assert finding.status == expected
    assert finding.status == "ok" or finding.advice


def test_data_loss_is_named_with_its_source() -> None:
    assert "13766" in doctor.judge_etcd("3.5.2").found
    assert "13766" not in doctor.judge_etcd("3.5.3").found


def test_what_is_recommended_is_the_first_release_without_a_hole() -> None:
    for line, (major, minor, patch) in etcd_versions.RECOMMENDED.items():
        assert etcd_versions.open_holes((major, minor, patch)) == []
        assert etcd_versions.open_holes((major, minor, patch - 1)) != []
        assert line == (major, minor) or etcd_versions.open_holes((*line, etcd_versions.NEVER - 1)) != []


def test_a_line_that_keeps_its_holes_is_to_be_left() -> None:
    assert "3.5.33" in doctor.judge_etcd("3.4.45").advice


def test_the_chart_warns_of_the_same_releases() -> None:
    template = (ROOT / "helm" / "lattice-rdzv" / "templates" / "_version.tpl").read_text()
    _, definition = template.split('define "lattice.supportedVersion"')
    first = {".".join(map(str, version)) for version in etcd_versions.RECOMMENDED.values()}
    assert set(re.findall(r">=([\d.]+)", definition)) == first


@pytest.mark.parametrize(
    ("version", "expected"),
    [(None, "warn"), ("2.5.1+cpu", "fail"), ("2.6.0", "ok"), ("2.15.0+cu132", "ok"), ("3.0.0a0", "ok")],
)
def test_torch_is_judged_by_whether_it_loads_entry_points(version: str | None, expected: str) -> None:
    assert doctor.judge_torch(version).status == expected


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("refused", "start the service"),
        ("unavailable", "why it does not answer"),
        ("not_etcd", "client port"),
        ("denied", "LATTICE_RDZV_PASSWORD_FILE"),
        ("setting", "which setting"),
        ("other", "the service's log"),
        ("", "the service's log"),
    ],
)
def test_the_advice_is_for_what_is_wrong(kind: str, advice: str) -> None:
    (finding,) = doctor.judge_service(doctor.Probe("etcd:2379", error="it failed", kind=kind))
    assert finding.status == "fail"
    assert advice in finding.advice


def test_the_embedded_store_is_no_etcd_with_holes(embedded: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--endpoint", embedded.endpoint]) == 0
    finding = printed_findings(capsys)["etcd's release"]
    assert finding["status"] == "ok"
    assert "the embedded store" in finding["found"]


def test_a_service_that_reads_only_fails_with_its_reason() -> None:
    text = json.dumps({"endpoint": "e:1", "version": "3.5.23", "writable": False, "errors": ["permission denied"]})
    finding = by_check(doctor.judge_service(doctor.Probe.from_json(text, endpoint="e:1")))["permission to write"]
    assert finding.status == "fail"
    assert "permission denied" in finding.found


# --- doctor: the command ---------------------------------------------------------------------------------------------


def test_a_healthy_place_is_healthy(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--endpoint", etcd.endpoint]) == 0
    findings = printed_findings(capsys)
    assert findings["service"]["status"] == "ok"
    assert findings["permission to write"]["status"] == "ok"
    assert findings["torchrun backend `lattice`"]["status"] == "ok"


def test_the_environment_is_asked_as_an_agent_asks_it(
    etcd: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATTICE_RDZV_ENDPOINTS", etcd.endpoint)
    assert main(["doctor", "--json"]) == 0
    assert "LATTICE_RDZV_ENDPOINTS" in printed_findings(capsys)["settings"]["found"]


def test_the_service_of_torchruns_own_variable_is_the_one_that_is_asked(
    etcd: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PET_RDZV_ENDPOINT", etcd.endpoint)
    monkeypatch.setenv("LATTICE_RDZV_ENDPOINTS", "127.0.0.1:1")
    assert main(["doctor", "--json", "--timeout", "0.9"]) == 0
    findings = printed_findings(capsys)
    assert etcd.endpoint in findings["service"]["found"]
    assert findings["torchrun's own variables"]["status"] == "warn"


def test_what_is_no_etcd_is_told_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    with http_endpoint() as endpoint:
        assert main(["doctor", "--json", "--endpoint", endpoint, "--timeout", "2"]) == 1
    assert "client port" in printed_findings(capsys)["service"]["advice"]


def test_nobody_at_the_endpoint_is_a_failure_that_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--endpoint", f"{NOBODY},127.0.0.1:10", "--timeout", "2"]) == 1
    told = capsys.readouterr().out
    assert "fail  service:" in told
    assert "127.0.0.1:9" in told
    assert "--rdzv-endpoint" in told


def test_where_an_agent_would_host_the_service_nobody_has_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--endpoint", f"127.0.0.1:{free_port()}", "--timeout", "2"]) == 0
    finding = printed_findings(capsys)["service"]
    assert finding["status"] == "warn"
    assert "Connection refused" in finding["found"]
    assert "hosts it" in finding["advice"]


def test_who_listens_and_says_nothing_keeps_an_agent_from_hosting(capsys: pytest.CaptureFixture[str]) -> None:
    with silent_endpoint() as endpoint:
        assert main(["doctor", "--json", "--endpoint", endpoint, "--timeout", "2"]) == 1
    finding = printed_findings(capsys)["service"]
    assert finding["status"] == "fail"
    assert "did not answer" in finding["found"]


def test_a_wrong_setting_is_a_finding_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATTICE_RDZV_BACKEND", "zookeeper")
    assert main(["doctor", "--json", "--endpoint", NOBODY]) == 1
    finding = printed_findings(capsys)["settings"]
    assert finding["status"] == "fail"
    assert "zookeeper" in finding["found"]


def test_an_entry_point_that_torch_could_not_load_is_told_with_its_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = metadata.EntryPoint("lattice", "lattice_rdzv.no_such_module:entry_point", "torchrun.handlers")

    def entry_points(**selection: Any) -> metadata.EntryPoints:
        return metadata.EntryPoints([broken]).select(**selection)

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    finding = doctor.judge_plugin(doctor.find_plugin())
    assert finding.status == "fail"
    assert "ModuleNotFoundError" in finding.found


def test_an_entry_point_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: metadata.EntryPoints())
    finding = doctor.judge_plugin(doctor.find_plugin())
    assert finding.status == "fail"
    # What the README says, too: the package is in no registry.
    _, command, _ = finding.advice.split("`")
    assert command in (ROOT / "README.md").read_text()


def test_nothing_is_coloured_where_a_program_reads() -> None:
    assert "\x1b" not in doctor.describe([doctor.Finding("a check", "fail", "found", "advice")])


# --- status ----------------------------------------------------------------------------------------------------------


def test_a_run_is_shown_with_its_nodes_and_rounds(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "run_id": "shown",
        "nnodes": "1",
        "endpoint": etcd.endpoint,
        "node_name": "node-7",
        "local_addr": "127.0.0.1",
    }
    node = _core.Node.join(_core.Settings(given, {}), port=29507)
    try:
        node.next_world(timeout_seconds=30.0)
        assert main(["status", "shown", "--endpoint", etcd.endpoint, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [node["name"] for node in document["nodes"]] == ["node-7"]
        assert document["history"][-1]["names"] == ["node-7"]
        assert main(["status", "shown", "--endpoint", etcd.endpoint]) == 0
        told = capsys.readouterr().out
        assert "node-7" in told
        assert "rank 0" in told
    finally:
        node.leave(timeout_seconds=5.0)


def test_a_run_that_is_not_there_is_told(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "nowhere", "--endpoint", etcd.endpoint]) == 1
    assert capsys.readouterr().err.rstrip().endswith(": nowhere")


def test_status_wants_to_know_which_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--endpoint", NOBODY]) == 2
    assert "LATTICE_RDZV_ID" in capsys.readouterr().err


def test_a_rank_is_shown_as_the_service_has_it() -> None:
    nodes = [
        {"id": "a", "name": "node-1", "address": "10.0.0.1", "port": 7, "rank": 1, "leaving": False},
        {"id": "b", "name": "node-2", "address": "10.0.0.2", "port": 8, "rank": None, "leaving": False},
        {"id": "c", "name": "node-3", "address": "10.0.0.3", "port": 9, "rank": 0, "leaving": True},
    ]
    told = status.describe({"life": "l", "round": 4, "nodes": nodes}, "job").splitlines()
    shown = {line.split()[0]: line for line in told if "node-" in line}
    assert "rank 1" in shown["node-1"]
    assert "spare or seeking" in shown["node-2"]
    assert "leaving" in shown["node-3"]
    assert "rank" not in shown["node-3"]


def test_a_closed_run_says_who_closed_it_and_why() -> None:
    document = {"life": "l", "round": 3, "closed": {"outcome": "failed", "by": "node-2", "why": "exit code 1"}}
    told = status.describe(document, "job")
    assert "closed as failed by node-2: exit code 1" in told


# --- demo ------------------------------------------------------------------------------------------------------------


def test_the_picture_shows_who_had_which_rank_and_why() -> None:
    history = [
        {"round": 1, "size": 2, "took_seconds": 1.0, "why": "2 nodes", "names": ["node-1", "node-2"]},
        {"round": 2, "size": 1, "took_seconds": 3.2, "why": "lost node-1", "names": ["node-2"]},
    ]
    lines = demo.picture(history, {"node-1": -9, "node-2": 0}).splitlines()
    assert lines[1].split() == ["node-1", "rank", "0", "-", "killed"]
    assert lines[2].split() == ["node-2", "rank", "1", "rank", "0", "status", "0"]
    assert lines[-1].split() == ["2", "1", "3.2", "s", "lost", "node-1"]


def test_worlds_of_the_workers_must_be_rounds_of_the_service_in_their_order() -> None:
    assert demo.contains([["a"], ["c"]], [["a"], ["b"], ["c"]])
    assert not demo.contains([["c"], ["a"]], [["a"], ["b"], ["c"]])


def test_an_etcd_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(argparse.Namespace(etcd=str(tmp_path / "etcd"), keep=False)) == 2
    assert capsys.readouterr().err.endswith(f"{tmp_path / 'etcd'}\n")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("on", ["the embedded store", "an etcd"])
def test_the_demo_goes_as_told(on: str) -> None:
    binary = etcd_binary()
    assert binary is not None, "the extra `test` brings an etcd"
    result = subprocess.run(
        [sys.executable, "-m", "lattice_rdzv.cli", "demo", *(["--etcd", str(binary)] if on == "an etcd" else [])],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert "killed" in result.stdout
    assert "lost node-" in result.stdout
