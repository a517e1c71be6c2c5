"""Parameters of torchrun and its users: they are accepted, or refused with a message that names them."""

from __future__ import annotations

from typing import Any

import pytest
from harness.handlers import MakeHandler, form_round, is_alone
from harness.service import Service


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"run_id": ""}, "--rdzv-id"),
        ({"run_id": "none", "endpoint": ""}, "--rdzv-id"),
        ({"run_id": "x" * 300}, "300"),
        ({"run_id": "a/b"}, "'/'"),
        ({"run_id": "a\nb"}, r"\\n"),
        ({"run_id": "a\0b"}, r"\\x00"),
        ({"lease_tll": "5"}, "lease_ttl"),
        ({"lease_ttl": "soon"}, "soon"),
        ({"password": "hunter2"}, "password"),
        ({"run_id": "fine", "max_nodes": 2, "min_nodes": 1, "port": "x"}, "port"),
    ],
)
def test_wrong_parameter_is_a_value_error(make: MakeHandler, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        make(**given)
    assert is_alone(caught.value)
    assert "hunter2" not in str(caught.value)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("nodes", [(4, 2), (0, 1), ("two", 2)])
def test_torch_itself_refuses_wrong_counts(make: MakeHandler, nodes: tuple[Any, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        make(min_nodes=nodes[0], max_nodes=nodes[1])


def test_error_of_an_unknown_backend_names_the_known_ones(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATTICE_RDZV_BACKEND", "zookeeper")
    with pytest.raises(ValueError, match=r"zookeeper[\s\S]*etcd|etcd[\s\S]*zookeeper"):
        make()


def test_run_id_may_be_unicode(make: MakeHandler, run_id: str) -> None:
    handler = make(run_id=f"größe-実験-{run_id}"[:60])
    assert handler.next_rendezvous().world_size == 1
    assert handler.get_run_id().startswith("größe")


def test_run_id_is_read_from_the_environment_when_torchrun_has_none(
    make: MakeHandler, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_RDZV_ID", run_id)
    assert make(run_id="none").get_run_id() == run_id


def test_empty_run_id_counts_as_missing(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="LATTICE_RDZV_ID"):
        make(run_id="")
    monkeypatch.setenv("LATTICE_RDZV_ID", "from-the-environment")
    assert make(run_id="").get_run_id() == "from-the-environment"


def test_number_of_nodes_is_read_from_the_environment_when_torchrun_has_none(
    make: MakeHandler, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_NNODES", "2")
    assert [info.world_size for info in form_round(make("node-1"), make("node-2"))] == [2, 2]
    assert make(run_id=f"{run_id}-2", min_nodes=1, max_nodes=2).next_rendezvous().world_size == 1


def test_keys_of_other_backends_are_accepted(make: MakeHandler) -> None:
    handler = make(is_host="true", store_type="tcp", read_timeout=60, protocol="http", etcd_prefix="/x", timeout=900)
    assert handler.next_rendezvous().world_size == 1


def test_service_variable_of_kubernetes(
    service: Service, run_id: str, make: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_PORT", str(service.port))
    assert make(endpoint="").next_rendezvous().world_size == 1


def test_service_port_that_is_a_url(service: Service, make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kubernetes sets this for a Service with the name `lattice-rdzv-client-service`.
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_PORT", f"tcp://127.0.0.1:{service.port}")
    assert make(endpoint="").next_rendezvous().world_size == 1


def test_invalid_service_port_is_named(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_PORT", "http")
    with pytest.raises(ValueError, match="LATTICE_RDZV_CLIENT_SERVICE_PORT"):
        make(endpoint="")
