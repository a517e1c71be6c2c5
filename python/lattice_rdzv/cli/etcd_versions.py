"""Known bugs and vulnerabilities of etcd releases that affect a run, with their sources.

Each entry is `(effect, {release line: first fixed patch}, source)`. A release line that is not listed never had the bug. A line
with `NEVER` was not fixed.
"""

from typing import NamedTuple

Version = tuple[int, int, int]

# The oldest supported release line, and for each line the first release without a known bug. 3.4 was never fixed completely. The
# chart warns about the same releases.
OLDEST = (3, 4)
RECOMMENDED = {(3, 4): (3, 5, 33), (3, 5): (3, 5, 33), (3, 6): (3, 6, 14), (3, 7): (3, 7, 1)}

# Greater than any patch number.
NEVER = 1_000_000


class Hole(NamedTuple):
    """A bug of some releases."""

    what: str
    fixed_in: dict[tuple[int, int], int]
    source: str


HOLES = (
    Hole("members can diverge after a crash under load", {(3, 5): 3}, "etcd issue 13766"),
    Hole(
        "a single etcd member can lose acknowledged writes when it is killed",
        {(3, 4): 21, (3, 5): 5},
        "etcd issue 14370",
    ),
    Hole(
        "a stalled leader revokes renewed leases: live nodes count as lost",
        {(3, 4): 31, (3, 5): 13},
        "etcd issue 15247",
    ),
    Hole(
        "watches can lose events around a compaction: a change is detected up to 30 s late",
        {(3, 4): 36, (3, 5): 18},
        "etcd pull requests 17612 and 19249, issue 18089",
    ),
    Hole(
        "the renewal of a revoked lease succeeds: a lost node detects its loss one renewal late",
        {(3, 4): 38, (3, 5): 23, (3, 6): 5},
        "etcd changelogs of 3.4.38, 3.5.23, 3.6.5: lease existence is checked again during renewal",
    ),
    Hole(
        "clients without a password can raise an alarm that stops all writes, compact history, and renew leases",
        {(3, 4): 42, (3, 5): 28, (3, 6): 9},
        "CVE-2026-33413",
    ),
    Hole(
        "transactions bypass roles: a user can read keys and attach leases without permission",
        {(3, 4): 44, (3, 5): 30, (3, 6): 11},
        "CVE-2026-33343 and CVE-2026-44283",
    ),
    Hole(
        "a user with access to one key can watch all keys after it",
        {(3, 4): NEVER, (3, 5): 33, (3, 6): 14, (3, 7): 1},
        "GHSA-xg4h-6gfc-h4m8",
    ),
    Hole(
        "clients of a TLS port can keep connections open forever by not finishing the handshake",
        {(3, 4): NEVER, (3, 5): 33, (3, 6): 14, (3, 7): 1},
        "GHSA-6vch-q96h-7gc3",
    ),
)


def parse(version: str) -> Version | None:
    """Parses a version such as `3.5.21` or `3.6.0-rc.1`. Returns None if the text is not a version."""
    numbers = version.strip().removeprefix("v").split("-")[0].split("+")[0].split(".")
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers[:3]):
        return None
    major, minor, *patch = (int(number) for number in numbers[:3])
    return major, minor, patch[0] if patch else 0


def open_holes(version: Version) -> list[Hole]:
    """Returns the known bugs of a release."""
    *line, patch = version
    return [hole for hole in HOLES if patch < hole.fixed_in.get((line[0], line[1]), 0)]
