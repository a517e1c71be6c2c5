"""The services that the plugin's tests run on are what they say, and break as they are told."""

from __future__ import annotations

from harness.service import Service

KEY = "/lattice/test-services/key"


def test_each_is_the_one_that_it_is_called(
    kind: str, service: Service, own_service: Service, mtls_service: Service
) -> None:
    for one in (service, own_service, mtls_service):
        assert ("lattice-rdzv" in one.version()) == (kind == "embedded")


def test_what_they_hold_can_be_read_and_written(service: Service, mtls_service: Service) -> None:
    for one in (service, mtls_service):
        one.put(KEY, bytes(range(256)))
        assert one.get(KEY) == bytes(range(256))
        assert one.keys_under("/lattice/test-services/") == [KEY]
        one.delete("/lattice/test-services/")
        assert one.get(KEY) is None


def test_a_wipe_leaves_nothing_and_the_address_stays(own_service: Service) -> None:
    endpoint = own_service.endpoint
    own_service.put(KEY, b"value")
    own_service.wipe()
    assert own_service.get(KEY) is None
    assert own_service.endpoint == endpoint


def test_what_an_etcd_held_outlives_a_kill_and_the_embedded_stores_does_not(kind: str, own_service: Service) -> None:
    own_service.put(KEY, b"value")
    own_service.kill()
    own_service.start()
    assert own_service.get(KEY) == (b"value" if kind == "etcd" else None)
