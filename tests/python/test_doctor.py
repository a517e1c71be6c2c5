"""`lattice-rdzv doctor` as users and scripts run it."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from harness.ports import free_port
from harness.service import Service
from harness.silent import http_endpoint, silent_endpoint, tcp_store_endpoint

from lattice_rdzv.cli import doctor, judgements, main

ROOT = Path(__file__).resolve().parents[2]

# No server listens on the discard port of this machine.
CLOSED = "127.0.0.1:9"


def printed_findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_embedded_server_has_no_known_bugs_of_etcd(embedded: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--endpoint", embedded.endpoint]) == 0
    finding = printed_findings(capsys)["etcd's release"]
    assert finding["status"] == "ok"
    assert "the embedded server" in finding["found"]


def test_healthy_setup_passes(etcd: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--endpoint", etcd.endpoint]) == 0
    findings = printed_findings(capsys)
    assert findings["service"]["status"] == "ok"
    assert findings["permission to write"]["status"] == "ok"
    assert findings["torchrun backend `lattice`"]["status"] == "ok"


def test_environment_is_read_as_an_agent_reads_it(
    etcd: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATTICE_RDZV_ENDPOINTS", etcd.endpoint)
    assert main(["doctor", "--json"]) == 0
    assert "LATTICE_RDZV_ENDPOINTS" in printed_findings(capsys)["settings"]["found"]


def test_service_in_torchruns_own_variable_is_probed(
    etcd: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PET_RDZV_ENDPOINT", etcd.endpoint)
    monkeypatch.setenv("LATTICE_RDZV_ENDPOINTS", "127.0.0.1:1")
    assert main(["doctor", "--json"]) == 0
    findings = printed_findings(capsys)
    assert etcd.endpoint in findings["service"]["found"]
    assert findings["torchrun's own variables"]["status"] == "warn"


def test_server_that_is_not_etcd_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with http_endpoint() as endpoint:
        assert main(["doctor", "--json", "--endpoint", endpoint, "--timeout", "20"]) == 1
    assert "client port" in printed_findings(capsys)["service"]["advice"]


def test_refused_connection_is_a_failure_with_a_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--endpoint", f"{CLOSED},127.0.0.1:10", "--timeout", "2"]) == 1
    printed = capsys.readouterr().out
    assert "fail  service:" in printed
    assert "127.0.0.1:9" in printed
    assert "--rdzv-endpoint" in printed


def test_missing_server_is_a_warning_if_an_agent_would_host_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--endpoint", f"127.0.0.1:{free_port()}", "--timeout", "10"]) == 0
    finding = printed_findings(capsys)["service"]
    assert finding["status"] == "warn"
    assert "Connection refused" in finding["found"]
    assert "hosts it" in finding["advice"]


@pytest.mark.parametrize("source", ["--nnodes", "LATTICE_NNODES", "PET_NNODES"])
def test_endpoint_that_no_other_machine_reaches_fails_for_several_nodes(
    etcd: Service, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["doctor", "--json", "--endpoint", etcd.endpoint]
    assert main(arguments) == 0
    assert printed_findings(capsys)["nodes on other machines"]["status"] == "warn"
    if source.startswith("--"):
        arguments += [source, "2:4"]
    else:
        monkeypatch.setenv(source, "2:4")
    assert main(arguments) == 1
    finding = printed_findings(capsys)["nodes on other machines"]
    assert finding["status"] == "fail"
    assert etcd.endpoint in finding["found"]
    assert "up to 4 nodes" in finding["found"]


def test_misspelled_variable_fails_with_the_intended_name(
    etcd: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATTICE_RDZV_ENDPOINT", etcd.endpoint)
    assert main(["doctor", "--json", "--endpoint", etcd.endpoint]) == 1
    assert "LATTICE_RDZV_ENDPOINTS" in printed_findings(capsys)["unknown variables"]["advice"]


def test_tcp_store_at_the_endpoint_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    with tcp_store_endpoint() as endpoint:
        assert main(["doctor", "--json", "--endpoint", endpoint, "--timeout", "20"]) == 1
    assert "held by a `TCPStore`" in printed_findings(capsys)["service"]["found"]


def test_both_ports_of_an_endpoint_without_one_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    # An address for documentation. Networks refuse or drop connections to it.
    main(["doctor", "--json", "--endpoint", "192.0.2.1", "--timeout", "5"])
    findings = printed_findings(capsys)
    assert "http://192.0.2.1:2379, else http://192.0.2.1:29400" in findings["settings"]["found"]
    assert "names no port" in findings["service"]["found"]


def test_port_0_is_hosted_by_the_agent_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--endpoint", "localhost:0", "--timeout", "10", "--nnodes", "1"]) == 0
    assert main(["doctor", "--json", "--endpoint", "localhost:0", "--timeout", "2", "--nnodes", "2"]) == 1


def test_silent_listener_keeps_an_agent_from_hosting(capsys: pytest.CaptureFixture[str]) -> None:
    with silent_endpoint() as endpoint:
        assert main(["doctor", "--json", "--endpoint", endpoint, "--timeout", "2"]) == 1
    finding = printed_findings(capsys)["service"]
    assert finding["status"] == "fail"
    assert re.search("did not answer|no answer", finding["found"])


def test_wrong_setting_is_a_finding_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATTICE_RDZV_BACKEND", "zookeeper")
    assert main(["doctor", "--json", "--endpoint", CLOSED]) == 1
    finding = printed_findings(capsys)["settings"]
    assert finding["status"] == "fail"
    assert "zookeeper" in finding["found"]


def test_entry_point_that_does_not_load_is_reported_with_its_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = metadata.EntryPoint("lattice", "lattice_rdzv.no_such_module:entry_point", "torchrun.handlers")

    def entry_points(**selection: Any) -> metadata.EntryPoints:
        return metadata.EntryPoints([broken]).select(**selection)

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    finding = judgements.judge_plugin(doctor.find_plugin())
    assert finding.status == "fail"
    assert "ModuleNotFoundError" in finding.found


def test_missing_entry_point_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: metadata.EntryPoints())
    finding = judgements.judge_plugin(doctor.find_plugin())
    assert finding.status == "fail"
    # What the README says, too: the package is in no registry.
    _, command, _ = finding.advice.split("`")
    assert command in (ROOT / "README.md").read_text()


def test_output_for_programs_has_no_colors() -> None:
    assert "\x1b" not in doctor.describe([judgements.Finding("a check", "fail", "found", "advice")])
