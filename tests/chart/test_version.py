"""Flags and probes follow the version of etcd, which is read from the one image string."""

import pytest

from chart.render import AUTH, MEMBERS, Renderer, merged

DIGEST = "@sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("image", "version", "has_livez", "has_v2"),
    [
        ("quay.io/coreos/etcd:v3.4.23", "", False, True),
        ("quay.io/coreos/etcd:v3.4.28", "", False, True),
        ("quay.io/coreos/etcd:v3.4.29", "", True, True),
        ("quay.io/coreos/etcd:v3.5.0", "", False, True),
        ("quay.io/coreos/etcd:v3.5.5", "", False, True),
        ("quay.io/coreos/etcd:v3.5.10", "", False, True),
        ("quay.io/coreos/etcd:v3.5.11", "", True, True),
        ("quay.io/coreos/etcd:v3.5.35", "", True, True),
        ("quay.io/coreos/etcd:v3.6.0-rc.1", "", True, False),
        ("quay.io/coreos/etcd:v3.6.16", "", True, False),
        ("quay.io/coreos/etcd:v3.7.3", "", True, False),
        ("quay.io/coreos/etcd:v3.6.16-arm64", "", True, False),
        ("registry.example:5000/mirror/etcd:3.5.21-debian-12", "", True, True),
        ("registry.example:5000/etcd:v3.6.4" + DIGEST, "", True, False),
        ("registry.example:5000/etcd" + DIGEST, "3.7.1", True, False),
        ("registry.example:5000/etcd", "v3.4.23", False, True),
        ("etcd:latest", "3.6.4", True, False),
        # A configured version takes precedence over the one in the image.
        ("etcd:v3.5.5", "3.6.4", True, False),
    ],
)
def test_version_decides(image: str, version: str, *, has_livez: bool, has_v2: bool) -> None:
    objects = Renderer().objects({"image": image, "etcd": {"version": version}})
    assert objects.etcd["image"] == image
    assert ("enable-v2" in objects.flags) == has_v2
    live, ready = (objects.etcd[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness"))
    if has_livez:
        assert (live, ready) == ("/livez", "/readyz")
    else:
        assert (live, ready) == (live_before_livez(version or image.split(":v")[1]), "/health?exclude=NOSPACE")
    assert objects.etcd["startupProbe"]["httpGet"]["path"] == live


def live_before_livez(version: str) -> str:
    """Since 3.5.3, `/health` can exclude the other members."""
    numbers = tuple(int(number) for number in version.removeprefix("v").split("."))
    return "/health?serializable=true&exclude=NOSPACE" if numbers >= (3, 5, 3) else "/metrics"


@pytest.mark.parametrize("version", ["v3.4.23", "v3.5.5", "v3.5.35", "v3.6.16", "v3.7.3"])
def test_no_flag_is_experimental(version: str) -> None:
    objects = Renderer().objects(merged(MEMBERS, {"image": f"quay.io/coreos/etcd:{version}"}))
    assert not [flag for flag in objects.flags if flag.startswith("experimental-")]


@pytest.mark.parametrize("values", [MEMBERS, AUTH], ids=["members", "auth"])
def test_v2_is_disabled_on_volumes_and_with_users(values: dict[str, object]) -> None:
    assert "enable-v2" not in Renderer().objects(values).flags


def test_v2_can_be_disabled() -> None:
    assert "enable-v2" not in Renderer().objects({"etcd": {"enableV2": False}}).flags
