"""Certificates and passwords."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.certificates import Certificates
from harness.handlers import MakeHandler, leave
from harness.service import Service
from harness.together import together
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
)

import lattice_rdzv


def test_mutual_tls(mtls_service: Service, certificates: Certificates, make: MakeHandler) -> None:
    handler = make(
        endpoint=mtls_service.endpoint,
        cacert=str(certificates.authority),
        cert=str(certificates.client),
        key=str(certificates.client_key),
    )
    assert handler.next_rendezvous().world_size == 1
    leave(handler)
    with pytest.raises(RendezvousConnectionError):
        make(endpoint=mtls_service.endpoint, cacert=str(certificates.authority), connect_timeout="3").next_rendezvous()


def test_password(own_service: Service, make: MakeHandler, tmp_path: Any) -> None:
    own_service.need_password("agent", "s3cret")
    file, wrong = tmp_path / "password", tmp_path / "wrong"
    file.write_text("s3cret\n")
    wrong.write_text("guess\n")
    handler = make(endpoint=own_service.endpoint, user="agent", password_file=str(file))
    assert handler.next_rendezvous().world_size == 1
    leave(handler)
    with pytest.raises(RendezvousError) as caught:
        make(
            endpoint=own_service.endpoint, user="agent", password_file=str(wrong), connect_timeout="3"
        ).next_rendezvous()
    assert "guess" not in str(caught.value)


def test_running_node_reads_a_changed_password(own_service: Service, run_id: str, tmp_path: Path) -> None:
    own_service.need_password("agent", "first")
    file = tmp_path / "password"
    file.write_text("first\n")

    def join(name: str) -> lattice_rdzv.Run:
        return lattice_rdzv.join(
            run_id,
            nnodes=2,
            endpoint=own_service.endpoint,
            node_name=name,
            user="agent",
            password_file=str(file),
            settle_time=0.1,
            local_address="127.0.0.1",
        )

    first = join("node-1")
    own_service.change_password("agent", "second")
    file.write_text("second\n")
    # The server forgets all tokens, so the running node has to log in again, as the new one does.
    own_service.kill()
    own_service.start()
    second = join("node-2")
    worlds = together(first.next_world, second.next_world)
    assert [world.size for world in worlds] == [2, 2]
    second.leave()
    first.leave()


@pytest.mark.parametrize(
    ("broken", "called"), [("cacert", "cacert"), ("cert", "client certificate"), ("key", "client key")]
)
def test_file_that_cannot_be_used_is_named_before_anything_is_connected(
    certificates: Certificates, run_id: str, tmp_path: Path, broken: str, called: str
) -> None:
    file = tmp_path / "broken.pem"
    file.write_bytes(b"\x30\x82\x01\x0a no PEM")
    good = {"cacert": certificates.authority, "cert": certificates.client, "key": certificates.client_key}
    files: dict[str, Any] = {name: str(file if name == broken else path) for name, path in good.items()}
    with pytest.raises(lattice_rdzv.SettingsError, match=rf"{called}.*broken\.pem"):
        lattice_rdzv.join(run_id, nnodes=1, endpoint="https://localhost:2379", connect_timeout=600, **files)


def test_http_to_a_port_with_tls_is_named_at_once(mtls_service: Service, make: MakeHandler) -> None:
    endpoint = mtls_service.endpoint.replace("https://", "http://")
    with pytest.raises(RendezvousConnectionError, match=rf"requires TLS.*pass `{mtls_service.endpoint}`"):
        make(endpoint=endpoint, connect_timeout="600").next_rendezvous()


def test_https_to_a_port_without_tls_is_named_at_once(
    service: Service, certificates: Certificates, make: MakeHandler
) -> None:
    endpoint = service.endpoint.replace("http://", "https://")
    with pytest.raises(RendezvousConnectionError, match=r"does not use TLS.*pass `http://"):
        make(endpoint=endpoint, cacert=str(certificates.authority), connect_timeout="600").next_rendezvous()


def test_certificate_that_cannot_be_read_is_named_at_once(make: MakeHandler, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"`cacert`.*missing"):
        make(endpoint="https://localhost:2379", cacert=str(tmp_path / "missing"))


def test_secret_in_place_of_a_password_file_is_not_repeated(make: MakeHandler) -> None:
    with pytest.raises(ValueError, match="`password_file`") as caught:
        make(user="agent", password_file="hunter2")
    assert "hunter2" not in str(caught.value)
