"""NOTES.txt: what is told after an install, and what is warned of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from chart.render import AUTH, MEMBERS, MTLS, Objects, Renderer, merged, parse
from chart.tools import CHART


@pytest.fixture
def notes(tmp_path: Path) -> Any:
    """Renders NOTES.txt as the text of an object: Helm shows it only where there is a cluster."""
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


def test_a_default_install_says_what_it_is_and_how_to_use_it(notes: Any) -> None:
    text = notes()
    assert "etcd 3.5.5, one member, whose data goes with its pod, v2 API on." in text
    assert "plain HTTP" in text
    assert "configMapRef:\n        name: lattice-rdzv-config" in text
    assert "in their container, and nothing else:" in text
    assert "helm test rdzv --namespace lattice" in text
    assert text.count("WARNING") == 2
    assert "WARNING: `resources` is empty" in text
    assert "WARNING: etcd 3.5.5 has known holes" in text


@pytest.mark.parametrize("values", [{}, MTLS, merged(MEMBERS, AUTH)], ids=["open", "mtls", "auth"])
def test_agents_by_hand_are_told_all_that_the_others_read(notes: Any, values: dict[str, Any]) -> None:
    """Without the endpoint or the certificates an agent would speak plain HTTP to a store that does not."""
    told = dict(re.findall("^  ([A-Z_]+)=(.*)$", notes(values), re.MULTILINE))
    assert told == Renderer().objects(values).agents
    without = merged(values, {"agents": {"configMap": {"includeEndpoint": False}}})
    assert notes(without) == notes(values)


def test_a_production_install_is_warned_of_nothing(notes: Any) -> None:
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
        (merged(MTLS, {"tls": {"client": {"requireClientCert": False}}}), "served over TLS."),
        (merged(MEMBERS, AUTH), "with users and roles"),
        (AUTH, "a Secret of their namespace with the key `lattice` mounted at /etc/lattice-rdzv/auth"),
        ({"agents": {"namespaces": ["team-a"]}}, "Agents in lattice, team-a need"),
        ({"external": {"endpoints": ["http://etcd-1:2379"]}}, "uses your own etcd: http://etcd-1:2379"),
        (
            {"clientService": {"type": "LoadBalancer", "allowUnauthenticated": True}},
            "WARNING: the store is published beyond the cluster",
        ),
        ({"clientService": {"name": "other"}}, "WARNING: Kubernetes makes LATTICE_RDZV_CLIENT_SERVICE_HOST"),
        ({"image": "quay.io/coreos/etcd:v3.6.13"}, "WARNING: etcd 3.6.13 has known holes"),
    ],
)
def test_each_mode_is_told(notes: Any, values: dict[str, Any], words: str) -> None:
    assert words in notes(values)


@pytest.mark.parametrize("version", ["3.5.33", "3.6.14", "3.7.1", "3.7.3"])
def test_a_supported_release_is_not_warned_of(notes: Any, version: str) -> None:
    assert "known holes" not in notes({"image": f"quay.io/coreos/etcd:v{version}"})
