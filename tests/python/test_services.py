"""The services of the plugin's tests are of the right kind, and their faults have the intended effects."""

from __future__ import annotations

from harness.service import Service

KEY = "/lattice/test-services/key"


def test_each_service_is_of_its_kind(kind: str, service: Service, own_service: Service, mtls_service: Service) -> None:
    for one in (service, own_service, mtls_service):
        assert ("lattice-rdzv" in one.version()) == (kind == "embedded")


def test_keys_can_be_read_and_written(service: Service, mtls_service: Service) -> None:
    for one in (service, mtls_service):
        one.put(KEY, bytes(range(256)))
        assert one.get(KEY) == bytes(range(256))
        assert one.keys_under("/lattice/test-services/") == [KEY]
        one.delete("/lattice/test-services/")
        assert one.get(KEY) is None


def test_wipe_deletes_all_data_and_keeps_the_address(own_service: Service) -> None:
    endpoint = own_service.endpoint
    own_service.put(KEY, b"value")
    own_service.wipe()
    assert own_service.get(KEY) is None
    assert own_service.endpoint == endpoint


def test_only_the_data_of_an_etcd_survives_a_kill(kind: str, own_service: Service) -> None:
    own_service.put(KEY, b"value")
    own_service.kill()
    own_service.start()
    assert own_service.get(KEY) == (b"value" if kind == "etcd" else None)
