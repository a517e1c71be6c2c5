"""NOTES.txt: the description and the warnings after an install."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from chart.render import AUTH, EMBEDDED, MEMBERS, MTLS, Objects, Renderer, merged, parse
from chart.test_dashboard import PAGE
from chart.tools import CHART


@pytest.fixture
def notes(tmp_path: Path) -> Any:
    """Renders NOTES.txt as the text of an object, because Helm prints it only with a cluster."""
    copy = tmp_path / "lattice-rdzv"
    shutil.copytree(CHART, copy)
    text = (CHART / "templates" / "NOTES.txt").read_text()
    (copy / "templates" / "_notes.tpl").write_text('{{- define "notes" -}}\n' + text + "{{- end -}}\n")
    (copy / "templates" / "notes.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes, namespace: lattice}\n"
        'data: {notes: {{ include "notes" . | toJson }}}\n'
    )

    def render(values: dict[str, Any] | None = None, *files: Path) -> str:
        objects = Objects(parse(Renderer(chart=copy).text(values, *files)))
        return str(objects.get("ConfigMap", "notes")["data"]["notes"])

    return render


def test_default_install_describes_itself_and_its_use(notes: Any) -> None:
    text = notes()
    assert "etcd 3.5.5, one member, whose data is lost with its pod, v2 API on." in text
    assert "plain HTTP" in text
    assert "configMapRef:\n        name: lattice-rdzv-config" in text
    assert "in their container, and nothing else:" in text
    assert "helm test rdzv --namespace lattice" in text
    assert text.count("WARNING") == 2
    assert "WARNING: `resources` is empty" in text
    assert "WARNING: etcd 3.5.5 has known vulnerabilities" in text


@pytest.mark.parametrize("values", [{}, MTLS, merged(MEMBERS, AUTH)], ids=["open", "mtls", "auth"])
def test_manual_settings_are_complete(notes: Any, values: dict[str, Any]) -> None:
    """Without the endpoint or the certificates, an agent would use plain HTTP with an etcd that requires TLS."""
    listed = dict(re.findall("^  ([A-Z_]+)=(.*)$", notes(values), re.MULTILINE))
    assert listed == Renderer().objects(values).agents
    without = merged(values, {"agents": {"configMap": {"includeEndpoint": False}}})
    assert notes(without) == notes(values)


def test_production_install_has_no_warnings(notes: Any) -> None:
    text = notes(None, CHART / "values-production.yaml")
    assert "3 members on volumes, v2 API off" in text
    assert "over mTLS" in text
    assert "a Secret of their namespace with `ca.crt`, `tls.crt` and `tls.key` mounted at /etc/lattice-rdzv/tls" in text
    assert "nothing else" not in text
    assert "WARNING" not in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ephemeral": {"medium": "Memory"}}, "one member in memory"),
        ({"persistence": {"enabled": True}}, "one member on a volume"),
        (EMBEDDED, "the embedded server, one pod without a disk"),
        (merged(EMBEDDED, {"auth": AUTH["auth"]}), "served over plain HTTP, with a password."),
        (merged(MTLS, {"tls": {"client": {"requireClientCert": False}}}), "served over TLS."),
        (merged(MEMBERS, AUTH), "with users and roles"),
        (
            AUTH,
            "a Secret of their namespace, mounted at /etc/lattice-rdzv/auth, with the key\n  `lattice` in lattice\n",
        ),
        (
            merged(
                AUTH,
                {
                    "auth": {"users": [{"name": "all"}, {"name": "jobs"}]},
                    "agents": {"namespaces": [{"name": "team", "user": "jobs"}]},
                },
            ),
            "with the key\n  `all` in lattice\n  `jobs` in team\n",
        ),
        (PAGE, "kubectl -n lattice port-forward service/lattice-rdzv-dashboard 8089"),
        ({"agents": {"namespaces": ["team-a"]}}, "Agents in lattice, team-a need"),
        ({"external": {"endpoints": ["http://etcd-1:2379"]}}, "uses your own etcd: http://etcd-1:2379"),
        (
            {"clientService": {"type": "LoadBalancer", "allowUnauthenticated": True}},
            "WARNING: etcd is published outside of the cluster",
        ),
        ({"clientService": {"name": "other"}}, "WARNING: Kubernetes sets LATTICE_RDZV_CLIENT_SERVICE_HOST"),
        ({"image": "quay.io/coreos/etcd:v3.6.13"}, "WARNING: etcd 3.6.13 has known vulnerabilities"),
    ],
)
def test_each_mode_is_described(notes: Any, values: dict[str, Any], words: str) -> None:
    assert words in notes(values)


def test_embedded_server_is_not_warned_of_etcds_versions(notes: Any) -> None:
    text = notes(merged(EMBEDDED, {"resources": {"limits": {"memory": "1Gi"}}}))
    assert "WARNING" not in text
    assert "etcd 3" not in text


@pytest.mark.parametrize("version", ["3.5.33", "3.6.14", "3.7.1", "3.7.3"])
def test_supported_release_has_no_warning(notes: Any, version: str) -> None:
    assert "known vulnerabilities" not in notes({"image": f"quay.io/coreos/etcd:v{version}"})


def test_upgrading_names_the_first_releases_without_known_vulnerabilities(notes: Any) -> None:
    """The minimum versions of the upgrade path, the list in UPGRADING.md, and the warning come from one line of _version.tpl."""
    template = (CHART / "templates" / "_version.tpl").read_text()
    (supported,) = re.findall(r'lattice\.supportedVersion" -}}\n.*"range" "(.*?)"\)', template)
    fixed = re.findall(r">=(\d+\.\d+\.[1-9]\d*)", supported)
    page = (CHART / "UPGRADING.md").read_text()
    assert re.findall(r"at least (\d+\.\d+\.\d+)", page) == fixed
    listed = "{}, {} and {}".format(*fixed)
    assert f"Releases below {listed}" in page
    assert f"fixed in {listed}" in notes()
