"""The way of a node's label to torchrun, by the example's own script, rights and command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.wait import wait_for

from examples.api_server import ApiServer
from examples.pods import outside
from examples.render import EXAMPLES, objects, one_of, pod_specs

EXAMPLE = "topology-from-node"
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "machine-7", "labels": {"topology.kubernetes.io/zone": "zone-b"}},
}


def read_label(server: ApiServer, folder: Path, label: str) -> subprocess.CompletedProcess[str]:
    """Does what the first container does, with the token that it would have."""
    account = folder / "account"
    account.mkdir(exist_ok=True)
    token = server.kubectl("create", "token", "train", "--namespace=lattice").stdout.strip()
    (account / "token").write_text(token)
    (account / "ca.crt").write_bytes(server.certificate.read_bytes())
    start = f"import node_label, pathlib; node_label.ACCOUNT = pathlib.Path({str(account)!r}); node_label.main"
    return subprocess.run(
        [sys.executable, "-c", f"{start}({label!r}, {str(folder / 'label')!r})"],
        cwd=EXAMPLES / EXAMPLE,
        env={
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(server.port),
            "NODE_NAME": NODE["metadata"]["name"],  # type: ignore[index]
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)
def test_rights_of_the_example_suffice_to_read_the_label_and_allow_nothing_else(
    server: ApiServer, tmp_path: Path
) -> None:
    node = tmp_path / "node.json"
    node.write_text(json.dumps(NODE))
    server.kubectl("create", f"--filename={node}")
    server.kubectl("create", "serviceaccount", "train", "--namespace=lattice")
    refused = read_label(server, tmp_path, "topology.kubernetes.io/zone")
    assert "403" in refused.stderr

    server.kubectl("delete", "serviceaccount", "train", "--namespace=lattice")
    server.kubectl("apply", f"--filename={EXAMPLES / EXAMPLE / 'rights.yaml'}", "--namespace=lattice")
    # The API server reads new rights with a short delay.
    wait_for("the label is read", lambda: read_label(server, tmp_path, "topology.kubernetes.io/zone").returncode == 0)
    assert (tmp_path / "label").read_text() == "zone-b"

    missing = read_label(server, tmp_path, "topology.example.com/rack")
    assert missing.returncode == 1
    assert "`topology.example.com/rack`; it has: " in missing.stderr

    for what in (("list", "nodes"), ("get", "pods"), ("get", "secrets"), ("update", "nodes")):
        asked = server.kubectl(
            "auth", "can-i", *what, "--namespace=lattice", "--as=system:serviceaccount:lattice:train", check=False
        )
        assert asked.stdout.strip() == "no", what


@pytest.mark.parametrize("label", ["zone-b", None])
def test_torchrun_replaces_the_shell_and_gets_the_label_and_the_options(label: str | None, tmp_path: Path) -> None:
    """Without the label, torchrun is not started."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\necho "$LATTICE_RDZV_TOPOLOGY" "$@"\n')
    torchrun.chmod(0o755)
    if label is not None:
        (tmp_path / "label").write_text(label)
    [agent] = pod_specs(one_of(EXAMPLE, "Job"))[0]["containers"]
    command = [part.replace("/topology/", f"{tmp_path}/") for part in agent["command"]]
    done = subprocess.run(
        [*command, *agent["args"]],
        env={**outside(), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if label is None:
        assert done.returncode != 0
        assert done.stdout == ""
    else:
        assert done.stdout.split() == ["zone-b", *agent["args"]], done.stderr


def test_agent_reads_the_label_itself_on_newer_kubernetes() -> None:
    [job] = [one for one in objects("topology") if one["kind"] == "Job"]
    [variable] = [one for one in pod_specs(job)[0]["containers"][0]["env"] if one["name"] == "LATTICE_RDZV_TOPOLOGY"]
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['topology.kubernetes.io/zone']"
