"""A real API server accepts every example unchanged in the strictest namespace. It checks rules that no schema has."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from examples.api_server import ApiServer
from examples.render import EXAMPLES, FOLDERS, objects, pod_specs

SCALED = '{"spec": {"parallelism": 2, "completions": 2}}'


@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", FOLDERS)
def test_example_is_accepted(example: str, server: ApiServer) -> None:
    server.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-k", EXAMPLES / example)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", FOLDERS)
def test_its_pods_are_admitted(example: str, server: ApiServer, tmp_path: Path) -> None:
    """A pod of each template is created directly, without its controller."""

    def admitted(spec: object) -> bool:
        file = tmp_path / "pod.yaml"
        metadata = {"name": "of-the-template", "namespace": "lattice"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"restartPolicy": "Never", **spec}}  # type: ignore[dict-item]
        file.write_text(yaml.safe_dump(pod))
        done = server.kubectl("create", "--dry-run=server", "--validate=strict", f"--filename={file}", check=False)
        assert done.returncode == 0 or "violates PodSecurity" in done.stderr, done.stderr
        return done.returncode == 0

    for spec in (spec for one in objects(example) for spec in pod_specs(one)):
        assert admitted(spec)
        rooted = copy.deepcopy(spec)
        rooted["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        assert not admitted(rooted)


@pytest.mark.timeout(300)
def test_job_scales_as_its_page_describes_and_its_pods_have_the_uid(server: ApiServer) -> None:
    assert f"--patch '{SCALED}'" in (EXAMPLES / "job" / "README.md").read_text()
    server.kubectl("apply", "-k", EXAMPLES / "job")
    server.kubectl("patch", "job", "train", "--namespace=lattice", f"--patch={SCALED}")
    job = yaml.safe_load(server.kubectl("get", "job", "train", "--namespace=lattice", "--output=yaml").stdout)
    assert (job["spec"]["parallelism"], job["spec"]["completions"]) == (2, 2)
    server.kubectl("delete", "-k", EXAMPLES / "job")
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels["batch.kubernetes.io/controller-uid"] == job["metadata"]["uid"]
