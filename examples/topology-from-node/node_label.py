"""Writes a label of the node that this pod is on to a file. Reads one object of Kubernetes' API, with the pod's own token.

node_label.py LABEL FILE
"""

import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def main(label: str, file: str) -> None:
    """Writes the label. A node without the label is an error, because its place in the order of ranks would be arbitrary."""
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    address = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"https://{address}:{os.environ['KUBERNETES_SERVICE_PORT']}/api/v1/nodes/{os.environ['NODE_NAME']}",
        headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"},
    )
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, context=trusted, timeout=30) as answer:
        labels = json.load(answer)["metadata"]["labels"]
    if label not in labels:
        sys.exit(f"node {os.environ['NODE_NAME']} has no label `{label}`; it has: {', '.join(sorted(labels))}")
    Path(file).write_text(labels[label])
    print(f"{label} of {os.environ['NODE_NAME']}: {labels[label]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
