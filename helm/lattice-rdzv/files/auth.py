"""Enables etcd's authentication, keeps users and roles as the values define them, and serves the readiness probe.

It runs beside etcd in the pod. `/ready` returns 200 only while etcd rejects an anonymous read, so that an etcd without authentication (a new
one, or one that lost its data) is not in the client Service. Each step can be repeated, and all members can run it in parallel.
It calls etcd's JSON gateway on the pod's loopback interface and uses only the standard library.
"""

import base64
import errno
import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PREFIX = "/lattice/rdzv/"
# The roles for all tenants. The role for one tenant has its name as a suffix.
ROLE = "lattice-rdzv"
READER = "lattice-rdzv.reader"
# A role without permissions. It marks the users that come from the values, so that no other user is ever deleted.
MANAGED = "lattice-rdzv.managed"
# Time between two checks of etcd.
PAUSE_SECONDS = 5.0
# Time after which the names of users and their roles are compared although no file changed, because they can be edited in etcd.
REVIEW_SECONDS = 600.0
# Limit of one call: shorter than a probe's timeout, because a cluster without a leader does not respond.
TIMEOUT_SECONDS = 4.0


class Refused(Exception):
    """etcd rejected a request."""


class Etcd:
    """Client of the etcd member in this pod.

    etcd's JSON gateway forwards requests with etcd's own certificate, at random to the port with TLS or to the one without. etcd takes the
    user of such a request from the certificate's common name, unless it has an `Accept` header, which real clients send.
    """

    def __init__(self, address: str, token: str | None = None, *, accepts: bool = True) -> None:
        self.address = address
        self.token = token
        self._headers = {"Content-Type": "application/json", **({"Accept": "application/json"} if accepts else {})}

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Makes one call. Raises `Refused` with etcd's message, or `OSError` if etcd does not respond."""
        headers = self._headers if self.token is None else {**self._headers, "Authorization": self.token}
        connection = HTTPConnection(self.address, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("POST", "/v3/" + method, json.dumps(request), headers)
            answer = connection.getresponse()
            body = answer.read().decode("utf-8", "replace")
        finally:
            connection.close()
        if answer.status == 200:
            return dict(json.loads(body))
        try:
            words = json.loads(body)
            told = words.get("message") or words.get("error") or body
        except ValueError:
            told = body
        raise Refused(str(told).strip())


def text(value: str) -> str:
    """Encodes a key for etcd's JSON gateway."""
    return base64.b64encode(value.encode()).decode()


def prefix_of(tenant: str) -> str:
    """Returns the key prefix of a tenant's runs, or of all runs if the tenant is empty."""
    return PREFIX + tenant + "/" if tenant else PREFIX


def end_of(prefix: str) -> str:
    """Returns the first key after all keys with this prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def is_closed(etcd: Etcd) -> bool:
    """Returns whether etcd rejects a client without a user."""
    return not can_read(Etcd(etcd.address), "")


def can_read(etcd: Etcd, tenant: str) -> bool:
    """Returns whether etcd permits this client to read the runs of a tenant."""
    try:
        etcd.call("kv/range", {"key": text(prefix_of(tenant)), "limit": "1", "keys_only": True, "serializable": True})
    except Refused as refusal:
        if "user name is empty" in str(refusal) or "permission denied" in str(refusal):
            return False
        raise
    return True


def sign_in(etcd: Etcd, name: str, password: str) -> str | None:
    """Logs in and returns a token, or None if the password is wrong."""
    try:
        return str(etcd.call("auth/authenticate", {"name": name, "password": password})["token"])
    except Refused as refusal:
        if "invalid user ID or password" in str(refusal):
            return None
        raise


def create(etcd: Etcd, method: str, request: dict[str, Any]) -> None:
    """Creates a user or a role, unless another member has already created it."""
    try:
        etcd.call(method, request)
    except Refused as refusal:
        if "already exists" not in str(refusal):
            raise


def names(etcd: Etcd, method: str, kind: str) -> set[str]:
    """Returns the existing users or roles."""
    return set(etcd.call(method, {}).get(kind, []))


def is_role_of_a_tenant(role: str) -> bool:
    """Returns whether `provide_role` has made a role of this name."""
    return role in (ROLE, READER) or role.startswith((ROLE + "-", READER + "-"))


def provide_role(etcd: Etcd, tenant: str, roles: set[str], *, read_only: bool = False) -> str:
    """Creates or corrects the role that can read a tenant's runs, and write them unless `read_only`, and returns its name."""
    # No tenant makes the two names equal, because a tenant is preceded by `-`.
    role = READER if read_only else ROLE
    role += "-" + tenant if tenant else ""
    key = prefix_of(tenant)
    # etcd's gateway leaves out `permType` in its responses if it is READ, the first of its values.
    wanted = {"key": text(key), "range_end": text(end_of(key))}
    kind = {"permType": "READ"} if read_only else {"permType": "READWRITE"}
    if role not in roles:
        create(etcd, "auth/role/add", {"name": role})
        roles.add(role)
    granted = etcd.call("auth/role/get", {"role": role}).get("perm", [])
    if {"permType": "READ", **wanted, **kind} not in [{"permType": "READ", **one} for one in granted]:
        etcd.call("auth/role/grant", {"name": role, "perm": {**wanted, **kind}})
    return role


def provide_user(
    etcd: Etcd, name: str, password: str, role: str, users: set[str], *, may_differ: bool, only: bool = False
) -> None:
    """Creates a user if it is missing, and corrects its roles: `role` and `MANAGED`. Takes away the role of another tenant, and with
    `only` all other roles. With `may_differ`, corrects its password, too."""
    if name not in users:
        create(etcd, "auth/user/add", {"name": name, "password": password})
        users.add(name)
    # Without a token there is no authentication yet, and etcd does not check passwords.
    elif may_differ and (etcd.token is None or sign_in(etcd, name, password) is None):
        etcd.call("auth/user/changepw", {"name": name, "password": password})
        say(f"changed the password of a user to the one in the Secret: `{name}`")
    granted = etcd.call("auth/user/get", {"name": name}).get("roles", [])
    needed = (role, MANAGED) if name != "root" else (role,)
    for missing in needed:
        if missing not in granted:
            etcd.call("auth/user/grant", {"user": name, "role": missing})
    for other in granted:
        if other not in needed and (only or is_role_of_a_tenant(other)):
            etcd.call("auth/user/revoke", {"name": name, "role": other})


def delete_if_managed(etcd: Etcd, name: str) -> None:
    """Deletes a user that came from earlier values, unless another member has already deleted it."""
    try:
        if MANAGED in etcd.call("auth/user/get", {"name": name}).get("roles", []):
            etcd.call("auth/user/delete", {"name": name})
            say(f"deleted a user that is no longer in the values: `{name}`")
    except Refused as refusal:
        if "user name not found" not in str(refusal):
            raise


@dataclass(frozen=True)
class Wanted:
    """The users from the values, and the passwords from the Secret."""

    users: list[dict[str, Any]]
    passwords: dict[str, str]


def provide(etcd: Etcd, wanted: Wanted, *, is_new: bool) -> None:
    """Creates and corrects users and roles. If the values or the Secret are new, checks passwords and deletes the users of earlier
    values, too. Writes only differences, because each change of users invalidates all tokens."""
    closed = is_closed(etcd)
    root_password = wanted.passwords["root-password"]
    etcd.token = sign_in(etcd, "root", root_password) if closed else None
    if closed and etcd.token is None:
        raise Refused("`root-password` in the Secret is not the password of etcd's user `root`")
    users, roles = names(etcd, "auth/user/list", "users"), names(etcd, "auth/role/list", "roles")
    if not closed:
        if "root" not in roles:
            create(etcd, "auth/role/add", {"name": "root"})
        provide_user(etcd, "root", root_password, "root", users, may_differ=True)
    if wanted.users and MANAGED not in roles:
        create(etcd, "auth/role/add", {"name": MANAGED})
    for user in wanted.users:
        reads = bool(user.get("readOnly", False))
        role = provide_role(etcd, user.get("tenant", ""), roles, read_only=reads)
        password = wanted.passwords[user["name"]]
        provide_user(etcd, user["name"], password, role, users, may_differ=is_new or not closed, only=reads)
    if is_new:
        for name in users - {"root", *(user["name"] for user in wanted.users)}:
            delete_if_managed(etcd, name)
    if not closed:
        etcd.call("auth/enable", {})
        say("authentication is on, for `root` and " + ", ".join(f"`{user['name']}`" for user in wanted.users))


def read_wanted(users_file: Path, secrets: Path) -> Wanted:
    """Reads the mounted files, which Kubernetes updates in the running pod."""
    users = json.loads(users_file.read_text(encoding="utf-8"))
    keys = ["root-password", *(user["name"] for user in users)]
    return Wanted(users, {key: password_of(secrets, key) for key in keys})


def password_of(secrets: Path, key: str) -> str:
    """Returns the password under a key of the Secret, without a line break at its end, which is often added by mistake."""
    try:
        password = (secrets / key).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise Refused(
            f"the Secret of `auth.existingSecret` cannot be read ({error.strerror}); it needs the key: `{key}`"
        ) from error
    if not password:
        raise Refused(f"a password in the Secret of `auth.existingSecret` is empty: `{key}`")
    return password


def say(what: str) -> None:
    """Writes one line to the container's log."""
    print("auth: " + what, file=sys.stderr, flush=True)


class Keeper:
    """Keeps users and roles as the values define them. While nothing changes, a check costs one local read in etcd and no proposal."""

    def __init__(self, etcd: Etcd, users_file: Path, secrets: Path) -> None:
        self._etcd = etcd
        self._users_file = users_file
        self._secrets = secrets
        self._provided: Wanted | None = None
        self._provided_at = 0.0

    def look(self) -> None:
        """Updates users and roles if they may differ: at the start, after a change of the files, after a loss of data, and periodically."""
        wanted = read_wanted(self._users_file, self._secrets)
        is_due = time.monotonic() - self._provided_at >= REVIEW_SECONDS
        if wanted == self._provided and not is_due and is_closed(self._etcd):
            return
        self._etcd.token = None
        # A mere review deletes no user and changes no password, because the files of another pod may be newer.
        provide(self._etcd, wanted, is_new=wanted != self._provided)
        self._provided, self._provided_at = wanted, time.monotonic()
        as_server = Etcd(self._etcd.address, accepts=False)
        if any(can_read(as_server, user.get("tenant", "")) for user in wanted.users):
            say(
                "the common name of etcd's certificate is the name of a user, so each client with a certificate has this user's rights through"
                " etcd's JSON gateway; issue a certificate with another common name"
            )

    def run(self) -> None:
        """Checks etcd forever, and logs each problem once."""
        logged = ""
        while True:
            problem = ""
            try:
                self.look()
            except Refused as refusal:
                problem = f"cannot update users: {refusal}"
            except (OSError, HTTPException, ValueError) as error:
                problem = f"etcd does not respond: {error}"
            if problem and problem != logged:
                say(problem)
            if logged and not problem:
                say("recovered")
            logged = problem
            time.sleep(1.0 if problem else PAUSE_SECONDS)


def handler(etcd: Etcd) -> type:
    """Returns a request handler that serves only the probes."""

    class Probes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, told = 404, "not found"
            if self.path == "/alive":
                status, told = 200, "alive"
            elif self.path == "/ready":
                status, told = self._ready()
            body = told.encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _ready(self) -> tuple[int, str]:
            try:
                return (200, "closed") if is_closed(etcd) else (503, "open: authentication is not on yet")
            except (Refused, OSError, HTTPException, ValueError) as error:
                return 503, f"unknown: {error}"

        def log_message(self, *_: Any) -> None:
            """Logs nothing, because a probe arrives every few seconds."""

    return Probes


class ProbeServer(ThreadingHTTPServer):
    """Serves IPv4 and IPv6, if the pod has them."""

    address_family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def probe_server(port: int, etcd: Etcd) -> ProbeServer:
    """Opens the port of the probes. Falls back to IPv4 on a kernel without IPv6."""
    try:
        return ProbeServer(("", port), handler(etcd))
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        ProbeServer.address_family = socket.AF_INET
        return ProbeServer(("", port), handler(etcd))


def main() -> None:
    """Reads the settings from the environment and runs until SIGTERM."""
    # The first process of a container ignores signals that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    etcd = Etcd(os.environ["AUTH_ETCD"])
    probes = probe_server(int(os.environ["AUTH_PORT"]), etcd)
    threading.Thread(target=probes.serve_forever, daemon=True).start()
    Keeper(etcd, Path(os.environ["AUTH_USERS"]), Path(os.environ["AUTH_SECRETS"])).run()


if __name__ == "__main__":
    main()
