"""Certificates for the names that the chart's README lists, and all kinds of invalid ones, created by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

NAMES = (
    "lattice-rdzv-client.{namespace}.svc.cluster.local",
    "lattice-rdzv-server.{namespace}.svc.cluster.local",
    "*.lattice-rdzv-members.{namespace}.svc.cluster.local",
)
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """One CA. It issues certificates in the form of Secrets."""

    def __init__(self, folder: Path, name: str = "test", *, namespace: str = "lattice") -> None:
        self._names = [one.format(namespace=namespace) for one in NAMES]
        self._folder = folder / f"authority-{name}"
        self._folder.mkdir()
        self._count = 0
        self._openssl(
            *("req", "-x509", *_KEY, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
        self.certificate = (self._folder / "ca.crt").read_text()

    def secret(
        self, name: str = "lattice", *, addresses: tuple[str, ...] = (), expired: bool = False
    ) -> dict[str, str]:
        """Returns a new certificate for servers and clients, with its key and the certificate of the CA."""
        self._count += 1
        stem = f"{self._count}"
        (self._folder / f"{stem}.ext").write_text(
            f"subjectAltName={','.join([*(f'DNS:{one}' for one in self._names), *(f'IP:{one}' for one in addresses)])}\n"
            "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        self._openssl("req", *_KEY, "-keyout", f"{stem}.key", "-out", f"{stem}.csr", "-subj", f"/CN={name}")
        if expired:
            self._sign_in_the_past(stem)
        else:
            self._openssl(
                *("x509", "-req", "-in", f"{stem}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
                *("-out", f"{stem}.crt", "-days", "2", "-extfile", f"{stem}.ext"),
            )
        files = {"tls.crt": f"{stem}.crt", "tls.key": f"{stem}.key", "ca.crt": "ca.crt"}
        return {key: (self._folder / file).read_text() for key, file in files.items()}

    def _sign_in_the_past(self, stem: str) -> None:
        """Signs an expired certificate. Only `openssl ca` accepts an end date in every release."""
        (self._folder / "index.txt").touch()
        (self._folder / "serial").write_text("1000\n")
        (self._folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca=this\n[this]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\n"
            "policy=any\nunique_subject=no\n[any]\ncommonName=supplied\n"
        )
        self._openssl(
            *("ca", "-batch", "-config", "ca.cnf", "-in", f"{stem}.csr", "-cert", "ca.crt", "-keyfile", "ca.key"),
            *("-out", f"{stem}.crt", "-startdate", "20200101000000Z", "-enddate", "20200102000000Z"),
            *("-extfile", f"{stem}.ext", "-notext"),
        )

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self._folder)
