"""The findings of a policy scanner in the rendered files, each with the reason why it is accepted.

0.1.0 had 23 findings. The recommended values of `production` have fewer than the defaults, which must not change.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from chart.render import Renderer
from chart.tools import CHART, tool

CHECKOV = "checkov-3.3.30/checkov"
FILES = {
    "default": CHART / "ci" / "default-values.yaml",
    "production": CHART / "values-production.yaml",
    "auth": CHART / "ci" / "auth-values.yaml",
}

# For each check: the renders in which it may be found, and the reason.
REASONS: dict[str, tuple[set[str], str]] = {
    "CKV2_K8S_6": (
        {"default", "production", "auth"},
        "NetworkPolicy is off by default, as promised; pods of `helm test` live for seconds and serve nothing",
    ),
    "CKV_K8S_10": ({"default", "auth"}, "`resources` is empty by default, as promised; NOTES.txt warns"),
    "CKV_K8S_11": (
        {"default", "production", "auth"},
        "a CPU limit throttles a leader in the middle of a heartbeat, which costs an election",
    ),
    "CKV_K8S_12": ({"default", "auth"}, "as CKV_K8S_10"),
    "CKV_K8S_13": ({"default", "auth"}, "as CKV_K8S_10"),
    "CKV_K8S_15": (
        {"default", "production", "auth"},
        "the default must not change; etcd's release tags are immutable, and with `Always`, etcd could not start without the registry",
    ),
    "CKV_K8S_35": (
        {"auth"},
        "etcdctl takes a password from a flag or a variable, and a flag shows in the process list",
    ),
    "CKV_K8S_43": (
        {"default", "production", "auth"},
        "`image` is one string, which may contain a digest, as values-production.yaml describes",
    ),
    "CKV_K8S_8": ({"default", "production", "auth"}, "pods of `helm test` run to their end"),
    "CKV_K8S_9": ({"default", "production", "auth"}, "pods of `helm test` run to their end"),
    # These checks look for flags in `command`, but the flags are in `args`. test_run_tls tests their effect.
    "CKV_K8S_116": ({"default", "production", "auth"}, "open by default, as promised; else overlooked in `args`"),
    "CKV_K8S_117": ({"default", "production", "auth"}, "open by default, as promised; else overlooked in `args`"),
    "CKV_K8S_119": ({"default", "production", "auth"}, "open by default, as promised; else overlooked in `args`"),
}
PROBES = {"CKV_K8S_8", "CKV_K8S_9"}


@pytest.mark.timeout(240)
def test_no_finding_without_a_reason(tmp_path: Path) -> None:
    for name, values in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(Renderer().text(None, values))
    done = subprocess.run(
        [tool(CHECKOV), "--directory", ".", "--framework", "kubernetes", "--output", "json", "--compact", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    found = {
        (Path(one["file_path"]).stem, one["check_id"], one["resource"]) for one in report["results"]["failed_checks"]
    }
    print(Counter(file for file, _, _ in found), "of 0.1.0's 23")
    for rendered, check, resource in found:
        assert check in REASONS, (rendered, check, resource)
        assert rendered in REASONS[check][0], (rendered, check, resource)
        assert check not in PROBES or "-test-" in resource, (rendered, check, resource)
    seen = {(file, check) for file, check, _ in found}
    excused = {(file, check) for check, (files, _) in REASONS.items() for file in files}
    assert seen == excused, f"nothing to excuse any more: {excused - seen}"
