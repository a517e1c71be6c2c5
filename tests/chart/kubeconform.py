"""Validates objects with kubeconform. An unknown field is an error, as for a strict API server."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from chart import definitions
from chart.render import Object
from chart.tools import schemas, tool


def errors(manifests: Mapping[str, Sequence[Object]], kubernetes: str, folder: Path) -> dict[str, list[str]]:
    """Returns the errors of each manifest by its name. `folder` is an empty folder."""
    own, foreign = folder / "manifests", folder / "schemas"
    own.mkdir()
    foreign.mkdir()
    for name, objects in manifests.items():
        (own / f"{name}.yaml").write_text(yaml.safe_dump_all(objects))
        for kind, version in {(one["kind"], one["apiVersion"]) for one in objects}:
            if definitions.is_foreign(version):
                # kubeconform writes its variables in lower case.
                file = foreign / f"{kind.lower()}-{version.replace('/', '-')}.json"
                file.write_text(json.dumps(definitions.schema(kind, version)))
    done = subprocess.run(
        [
            *(tool("kubeconform-0.7.0/kubeconform"), "-strict", "-output=json"),
            f"-schema-location={schemas(kubernetes)}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
            f"-schema-location={foreign}/{{{{.ResourceKind}}}}-{{{{.Group}}}}-{{{{.ResourceAPIVersion}}}}.json",
            own,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    found: dict[str, list[str]] = {name: [] for name in manifests}
    for one in json.loads(done.stdout)["resources"]:
        found[Path(one["filename"]).stem].append(f"{one['kind']} {one['name']}: {one['msg']}")
    return found
