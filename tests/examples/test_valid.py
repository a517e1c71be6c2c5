"""Every example is valid for its controller, and its pods are admitted in the strictest namespace."""

import copy
from pathlib import Path
from typing import Any

import pytest
from chart.kubeconform import errors
from chart.render import Object

from examples.render import EXAMPLES, FOLDERS, PARTS, objects, one_of, pod_specs

# The examples use backoffLimitPerIndex, which needs no feature gate since 1.29.
KUBERNETES_VERSIONS = ("1.30", "1.37")
RUNS = ("job", "jobset", "kueue", "pytorchjob", "topology", "topology-from-node", "trainjob")
each_example = pytest.mark.parametrize("example", FOLDERS)


def test_list_of_examples_is_complete() -> None:
    assert tuple(FOLDERS) == RUNS


@pytest.mark.parametrize("kubernetes", KUBERNETES_VERSIONS)
def test_objects_are_valid(kubernetes: str, tmp_path: Path) -> None:
    examples = {example: objects(example) for example in FOLDERS}
    assert errors(examples, kubernetes, tmp_path) == {example: [] for example in examples}


@each_example
def test_mistake_in_any_object_is_detected(example: str, tmp_path: Path) -> None:
    """The schemas are strict, at the top level of an object and inside of a pod."""
    broken: dict[str, list[Object]] = {}
    for number, one in enumerate(objects(example)):
        broken[f"{number}-typo"] = [{**one, "typo": 1}]
        for index in range(len(pod_specs(one))):
            changed = copy.deepcopy(one)
            pod_specs(changed)[index]["containers"][0]["comand"] = ["x"]
            broken[f"{number}-comand-{index}"] = [changed]
    found = errors(broken, "1.37", tmp_path)
    assert [name for name, messages in found.items() if name.split("-")[1] not in str(messages)] == []


@each_example
def test_its_pods_are_restricted(example: str) -> None:
    """They meet the Pod Security Standard `restricted`, and have only the rights that they use."""
    specs = [spec for one in objects(example) for spec in pod_specs(one)]
    assert specs
    for spec in specs:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        kinds = {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]}
        assert kinds <= {"configMap", "emptyDir", "projected"}
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}


@each_example
def test_torchrun_is_the_first_process_and_has_time_to_end(example: str) -> None:
    for one in objects(example):
        for spec in pod_specs(one):
            [agent] = spec["containers"]
            command = agent["command"]
            assert command == ["torchrun"] or "exec torchrun" in command[2]
            assert spec["terminationGracePeriodSeconds"] >= 45


@each_example
def test_agent_gets_its_run_and_finds_the_service(example: str) -> None:
    for agent in agents(example):
        assert {"configMapRef": {"name": "lattice-rdzv-config"}} in agent["envFrom"]
        assert "LATTICE_RDZV_ID" in variables(agent)
        # An option of torchrun would override the variables of the ConfigMap.
        assert not any("rdzv-endpoint" in argument for argument in agent["args"])


@each_example
def test_pod_that_is_retried_after_success_gets_the_submission(example: str) -> None:
    """The training operator has no value that differs between two jobs of one name, so its example has no submission."""
    for agent in agents(example):
        assert ("LATTICE_RDZV_SUBMISSION" in variables(agent)) is (example != "pytorchjob")


@each_example
def test_image_is_set_in_one_place(example: str) -> None:
    """kustomize knows where each kind has its image, or the example configures it."""
    images = {
        container["image"]
        for one in objects(example)
        for spec in pod_specs(one)
        for container in (*spec["containers"], *spec.get("initContainers", []))
    }
    assert images == {"lattice-rdzv-agent:0.2.0"}


def test_operator_passes_the_service_to_torchrun() -> None:
    """Without these values, the operator would pass the first worker."""
    policy = one_of("pytorchjob", "PyTorchJob")["spec"]["elasticPolicy"]
    assert (policy["rdzvBackend"], policy["rdzvHost"], policy["rdzvPort"]) == (
        "lattice",
        "lattice-rdzv-client.lattice.svc",
        2379,
    )


def test_runtime_is_created_before_the_job_that_names_it() -> None:
    """The trainer reads the runtime when it admits the job."""
    kinds = [one["kind"] for one in objects("trainjob")]
    assert kinds.index("TrainingRuntime") < kinds.index("TrainJob")


def test_token_of_the_node_label_stays_with_the_first_container() -> None:
    [spec] = pod_specs(one_of("topology-from-node", "Job"))
    assert "token" in mounts(spec["initContainers"][0])
    assert "token" not in mounts(spec["containers"][0])


@pytest.mark.parametrize("folder", sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()))
def test_example_is_documented(folder: str) -> None:
    """It is on the page of all examples, and has a page unless it is a part of others."""
    assert f"]({folder}/" in (EXAMPLES / "README.md").read_text()
    assert (EXAMPLES / folder / "README.md").exists() or folder in PARTS


def agents(example: str) -> list[dict[str, Any]]:
    return [container for one in objects(example) for spec in pod_specs(one) for container in spec["containers"]]


def variables(container: dict[str, Any]) -> set[str]:
    return {one["name"] for one in container["env"]}


def mounts(container: dict[str, Any]) -> set[str]:
    return {one["name"] for one in container["volumeMounts"]}
