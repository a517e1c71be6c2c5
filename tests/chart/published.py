"""The chart 0.1.0, as its documentation describes it."""

from chart.render import Object, Objects


def published(namespace: str = "lattice") -> Objects:
    """Returns the objects of 0.1.0 with the documented names, ports and selectors. Other fields have Kubernetes' defaults."""

    def head(kind: str, name: str, version: str = "v1") -> Object:
        labels = {"app": "lattice-rdzv"}
        return {
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
        }

    def service(name: str, *ports: tuple[str, int]) -> Object:
        listed = [{"name": port, "port": number, "targetPort": number, "protocol": "TCP"} for port, number in ports]
        spec = {"type": "ClusterIP", "selector": {"app": "lattice-rdzv"}, "ports": listed}
        return {**head("Service", name), "spec": spec}

    container = {
        "name": "etcd-server",
        "image": "quay.io/coreos/etcd:v3.5.5",
        "command": ["etcd", "--enable-v2", "--name", "etcd-server"],
    }
    deployment = {
        **head("Deployment", "lattice-rdzv", "apps/v1"),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "lattice-rdzv"}},
            "template": {"metadata": {"labels": {"app": "lattice-rdzv"}}, "spec": {"containers": [container]}},
        },
    }
    config = {**head("ConfigMap", "lattice-rdzv-config"), "data": {"LATTICE_RDZV_BACKEND": "etcd"}}
    return Objects(
        [
            config,
            service("lattice-rdzv-client", ("client", 2379)),
            service("lattice-rdzv-server", ("client", 2379), ("server", 2380)),
            deployment,
        ]
    )
