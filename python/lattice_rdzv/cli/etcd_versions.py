"""Which releases of etcd have holes that a run can fall into. Data, with its sources; the judgement is two functions.

A hole is `(what happens, {release line: first fixed patch}, source)`. A line that is not named never had it, one with
`NEVER` keeps it.
"""

from typing import NamedTuple

Version = tuple[int, int, int]

# The oldest line whose API we use, and for each line the first release without an open hole; 3.4 ended with some. The
# chart warns of the same releases.
OLDEST = (3, 4)
RECOMMENDED = {(3, 4): (3, 5, 33), (3, 5): (3, 5, 33), (3, 6): (3, 6, 14), (3, 7): (3, 7, 1)}

# No patch has this number.
NEVER = 1_000_000


class Hole(NamedTuple):
    """Something that goes wrong in some releases."""

    what: str
    fixed_in: dict[tuple[int, int], int]
    source: str


HOLES = (
    Hole("members may come to hold different data after a crash under load", {(3, 5): 3}, "etcd issue 13766"),
    Hole(
        "a single etcd member may lose acknowledged writes when it is killed",
        {(3, 4): 21, (3, 5): 5},
        "etcd issue 14370",
    ),
    Hole(
        "a leader that stalls revokes leases that were renewed: live nodes count as lost",
        {(3, 4): 31, (3, 5): 13},
        "etcd issue 15247",
    ),
    Hole(
        "watches may lose events around a compaction: a change is seen up to 30 s late",
        {(3, 4): 36, (3, 5): 18},
        "etcd pull requests 17612 and 19249, issue 18089",
    ),
    Hole(
        "renewing a lease that was just revoked succeeds: a lost node learns it a renewal late",
        {(3, 4): 38, (3, 5): 23, (3, 6): 5},
        "etcd changelogs of 3.4.38, 3.5.23, 3.6.5: lease existence is checked again during renewal",
    ),
    Hole(
        "without a password whoever reaches the port may raise an alarm that ends all writes, compact, and renew leases",
        {(3, 4): 42, (3, 5): 28, (3, 6): 9},
        "CVE-2026-33413",
    ),
    Hole(
        "transactions pass by roles: a user reads keys, and attaches leases, that its role does not grant",
        {(3, 4): 44, (3, 5): 30, (3, 6): 11},
        "CVE-2026-33343 and CVE-2026-44283",
    ),
    Hole(
        "a user whose role grants one key may watch all keys behind it",
        {(3, 4): NEVER, (3, 5): 33, (3, 6): 14, (3, 7): 1},
        "GHSA-xg4h-6gfc-h4m8",
    ),
    Hole(
        "whoever reaches a TLS port may hold connections open for ever by not finishing the handshake",
        {(3, 4): NEVER, (3, 5): 33, (3, 6): 14, (3, 7): 1},
        "GHSA-6vch-q96h-7gc3",
    ),
)


def parse(version: str) -> Version | None:
    """`3.5.21` or `3.6.0-rc.1` as numbers; None if it is neither."""
    numbers = version.strip().removeprefix("v").split("-")[0].split("+")[0].split(".")
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers[:3]):
        return None
    major, minor, *patch = (int(number) for number in numbers[:3])
    return major, minor, patch[0] if patch else 0


def open_holes(version: Version) -> list[Hole]:
    """The holes of this release."""
    *line, patch = version
    return [hole for hole in HOLES if patch < hole.fixed_in.get((line[0], line[1]), 0)]
