"""Turns etcd's authentication on, keeps its users and roles as the values say, and tells whether the store is closed.

It runs beside etcd in the pod. `/ready` answers 200 only while an anonymous read is refused, so that a store that is open
(a new one, or one that lost its data) is not in the clients' Service. Whatever it does can be done twice, and by all members at once.
It speaks to etcd's JSON gateway, on the pod's own loopback, with the standard library alone.
"""

import base64
import json
import os
import signal
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PREFIX = "/lattice/rdzv/"
# How long to wait between two looks at the store, in seconds.
PAUSE_SECONDS = 5.0
# How long one call may take. A probe has less patience by default than a cluster without a leader.
TIMEOUT_SECONDS = 4.0


class Refused(Exception):
    """Etcd answered that it will not."""


class Etcd:
    """The member in this pod."""

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address
        self.token = token

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """One call; `Refused` with etcd's words, `OSError` if it is not there."""
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = self.token
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
    """As etcd's JSON has keys."""
    return base64.b64encode(value.encode()).decode()


def prefix_of(tenant: str) -> str:
    """The keys of a tenant's runs; of all runs if it is empty."""
    return PREFIX + tenant + "/" if tenant else PREFIX


def end_of(prefix: str) -> str:
    """The first key after all that begin with it."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def is_closed(etcd: Etcd) -> bool:
    """Whether somebody without a name is refused."""
    anonymous = Etcd(etcd.address)
    try:
        anonymous.call("kv/range", {"key": text(PREFIX), "limit": "1", "keys_only": True, "serializable": True})
    except Refused as refusal:
        if "user name is empty" in str(refusal) or "permission denied" in str(refusal):
            return True
        raise
    return False


def sign_in(etcd: Etcd, name: str, password: str) -> str | None:
    """A token; none if that is not the password."""
    try:
        return str(etcd.call("auth/authenticate", {"name": name, "password": password})["token"])
    except Refused as refusal:
        if "invalid user ID or password" in str(refusal):
            return None
        raise


def add(etcd: Etcd, method: str, request: dict[str, Any]) -> bool:
    """Whether it is new: false if it was there."""
    try:
        etcd.call(method, request)
    except Refused as refusal:
        if "already exists" in str(refusal):
            return False
        raise
    return True


def grant(etcd: Etcd, user: str, role: str) -> None:
    """Gives a user a role, and takes no other from him."""
    if role not in etcd.call("auth/user/get", {"name": user}).get("roles", []):
        etcd.call("auth/user/grant", {"user": user, "role": role})


def provide_role(etcd: Etcd, tenant: str) -> str:
    """The role that may read and write a tenant's runs, and its name."""
    role = "lattice-rdzv-" + tenant if tenant else "lattice-rdzv"
    add(etcd, "auth/role/add", {"name": role})
    key = prefix_of(tenant)
    wanted = {"permType": "READWRITE", "key": text(key), "range_end": text(end_of(key))}
    if wanted not in etcd.call("auth/role/get", {"role": role}).get("perm", []):
        etcd.call("auth/role/grant", {"name": role, "perm": wanted})
    return role


def provide(etcd: Etcd, users: list[dict[str, str]], secrets: Path) -> None:
    """Makes the store as the values say. Nothing that is right already is written again: each write of users ends tokens."""
    root_password = password_of(secrets, "root-password")
    closed = is_closed(etcd)
    etcd.token = sign_in(etcd, "root", root_password) if closed else None
    if closed and etcd.token is None:
        raise Refused("`root-password` in the Secret is not the password of the store's user `root`")
    if not closed and not add(etcd, "auth/user/add", {"name": "root", "password": root_password}):
        # A first try that did not come to its end, perhaps with another password.
        etcd.call("auth/user/changepw", {"name": "root", "password": root_password})
    if not closed:
        add(etcd, "auth/role/add", {"name": "root"})
        grant(etcd, "root", "root")
    for user in users:
        name, password = user["name"], password_of(secrets, user["name"])
        role = provide_role(etcd, user.get("tenant", ""))
        new = add(etcd, "auth/user/add", {"name": name, "password": password})
        if not new and (not closed or sign_in(etcd, name, password) is None):
            etcd.call("auth/user/changepw", {"name": name, "password": password})
            say(f"the password of a user was changed to that in the Secret: `{name}`")
        grant(etcd, name, role)
    if not closed:
        etcd.call("auth/enable", {})
        say("authentication is on, for `root` and " + ", ".join(f"`{user['name']}`" for user in users))


def password_of(secrets: Path, key: str) -> str:
    """What the Secret holds under a key, less a last line feed that slips in easily."""
    try:
        password = (secrets / key).read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise Refused(
            f"the Secret of `auth.existingSecret` cannot be read ({error.strerror}); it needs the key: `{key}`"
        ) from error
    if not password:
        raise Refused(f"a password in the Secret of `auth.existingSecret` is empty: `{key}`")
    return password


def say(what: str) -> None:
    """One line in the container's log."""
    print("auth: " + what, file=sys.stderr, flush=True)


def keep(etcd: Etcd, users: list[dict[str, str]], secrets: Path) -> None:
    """Provides for ever: a store that came back empty is closed again, and a changed Secret is taken over."""
    told = ""
    while True:
        trouble = ""
        try:
            etcd.token = None
            provide(etcd, users, secrets)
        except Refused as refusal:
            trouble = f"etcd or the Secret says no: {refusal}"
        except (OSError, HTTPException, ValueError) as error:
            trouble = f"etcd does not answer: {error}"
        if trouble and trouble != told:
            say(trouble)
        if told and not trouble:
            say("all is well again")
        told = trouble
        time.sleep(PAUSE_SECONDS if not trouble else 1.0)


def handler(etcd: Etcd) -> type:
    """Answers the probes, and nothing else."""

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
            """Probes come every few seconds."""

    return Probes


def main() -> None:
    """Everything it needs is in the environment."""
    # A container's first process is deaf to signals that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    etcd = Etcd(os.environ["AUTH_ETCD"])
    probes = ThreadingHTTPServer(("", int(os.environ["AUTH_PORT"])), handler(etcd))
    threading.Thread(target=probes.serve_forever, daemon=True).start()
    keep(etcd, json.loads(os.environ["AUTH_USERS"]), Path(os.environ["AUTH_SECRETS"]))


if __name__ == "__main__":
    main()
