"""Runs whose records are written directly: large ones, and ones whose times lie in the past. They need no nodes."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from harness.service import Service

# etcd accepts 128 operations in a transaction.
_AT_ONCE = 100
_IN_SHARD = 500


def put_all(service: Service, pairs: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Writes many keys with few requests, through etcd's JSON gateway."""
    pairs = list(pairs)
    for begin in range(0, len(pairs), _AT_ONCE):
        puts = [
            {"requestPut": {"key": _base64(key), "value": _base64(json.dumps(value))}}
            for key, value in pairs[begin : begin + _AT_ONCE]
        ]
        request = urllib.request.Request(
            f"http://127.0.0.1:{service.port}/v3/kv/txn", data=json.dumps({"success": puts}).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["succeeded"] is True


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@dataclass(frozen=True)
class WrittenRun:
    """A run in its third round. Node `n` has rank `n`, and there are `per_rack` of them in each rack."""

    run_id: str
    size: int
    min_nodes: int
    missing: Collection[int] = ()
    spares: int = 0
    per_rack: int = 40
    # Seconds since the change was announced, if there is one.
    changed_ago: float | None = None
    # The members that have asked for the next round.
    seeking: Collection[int] = ()
    # Seconds since the last node arrived.
    arrived_ago: float = 3000.0
    now: float = 0.0

    @property
    def prefix(self) -> str:
        """What all keys begin with."""
        return f"/lattice/rdzv/default/{self.run_id}/"

    def name(self, number: int) -> str:
        return f"gpu-{number:05}"

    def node_key(self, number: int) -> str:
        """The key of a node's record."""
        return f"{self.prefix}nodes/{_id(number)}"

    def node(self, number: int) -> dict[str, Any]:
        """A node's record."""
        seeks = 4 if number in self.seeking or number >= self.size else 3
        world = {"life": "life", "round": 3, "world": "world", "rank": number, "size": self.size}
        return {
            "version": 1, "name": self.name(number), "address": f"10.{number // 62500}.{number // 250 % 250}.{number % 250}",
            "port": 29500, "min": self.min_nodes, "max": self.size, "seeks": seeks, "leaving": False,
            "topology": f"rack-{number // self.per_rack + 1}", "world": world if number < self.size else None,
        }  # fmt: skip

    def records(self) -> list[tuple[str, dict[str, Any]]]:
        """All keys and records."""
        now = self.now or time.time()
        changed = None if self.changed_ago is None else now - self.changed_ago
        lost = [self.name(number) for number in self.missing]
        change = {"kind": "lost", "names": lost, "why": f"lost {', '.join(lost)}"} if self.missing else None
        change = change or {
            "kind": "seeking",
            "names": [self.name(0)],
            "why": f"{self.name(0)} asked: worker exit code 1",
        }
        shards = [range(begin, min(begin + _IN_SHARD, self.size)) for begin in range(0, self.size, _IN_SHARD)]
        world = {
            "version": 1, "life": "life", "round": 3, "attempt": "attempt", "world": "world", "phase": "running",
            "size": self.size, "shards": len(shards), "min": self.min_nodes, "max": self.size, "why": "spares joined",
            "master_address": "10.0.0.0", "master_port": 29500,
            **({} if changed is None else {"change": change}),
        }  # fmt: skip
        nodes = [number for number in range(self.size + self.spares) if number not in self.missing]
        return [
            *((self.node_key(number), self.node(number)) for number in nodes),
            *((f"{self.prefix}plan/life/0000000003/attempt/{index:06}", self._shard(shard)) for index, shard in enumerate(shards)),
            *((f"{self.prefix}lost/life/0000000003/{_id(number)}", self._lost(number)) for number in self.missing),
            *((f"{self.prefix}history/life/{record['round']:010}", record) for record in self._history(now)),
            (f"{self.prefix}clocks", self._clocks(now, changed)),
            (f"{self.prefix}ctl/coordinator", self._coordinator()),
            (f"{self.prefix}ctl/round", world),
        ]  # fmt: skip

    def write(self, service: Service) -> WrittenRun:
        """Writes the run."""
        put_all(service, self.records())
        return self

    def _shard(self, ranks: range) -> dict[str, Any]:
        entries = [
            {"id": _id(rank), "name": self.name(rank), "label": f"rack-{rank // self.per_rack + 1}", "rank": rank} for rank in ranks
        ]  # fmt: skip
        return {"version": 1, "nodes": entries}

    def _lost(self, number: int) -> dict[str, Any]:
        return {
            "version": 1, "name": self.name(number), "by": self.name(number + 1), "lease": 0,
            "why": f"connection reset, then refused at {self.node(number)['address']}:40112",
        }  # fmt: skip

    def _coordinator(self) -> dict[str, Any]:
        first = next(number for number in range(self.size) if number not in self.missing)
        return {
            "version": 1, "name": self.name(first), "node": _id(first), "nonce": "nonce", "min": self.min_nodes, "max": self.size
        }  # fmt: skip

    def _history(self, now: float) -> list[dict[str, Any]]:
        """Three rounds of the last hour."""
        loss = {"name": self.name(7), "evidence": "connection reset, then refused by its machine"}
        rounds: list[dict[str, Any]] = [
            {"round": 1, "formed_at": int(now) - 3400, "took_seconds": 41.0, "why": "first world", "size": self.size - self.size // 8},
            {
                "round": 2, "formed_at": int(now) - 2100, "took_seconds": 12.4, "why": f"lost {self.name(7)}",
                "size": self.size - self.size // 5, "change": {"kind": "lost", "names": [self.name(7)], "why": f"lost {self.name(7)}"},
                "lost": [loss],
            },
            {
                "round": 3, "formed_at": int(now) - 900, "took_seconds": 3.2, "why": "spares joined", "size": self.size,
                "change": {"kind": "newcomers", "names": [], "why": "spares joined"},
            },
        ]  # fmt: skip
        common = {"version": 1, "coordinator": self.name(0), "names": [self.name(0)], "newcomers": 0}
        return [{**common, **record} for record in rounds]

    def _clocks(self, now: float, changed: float | None) -> dict[str, Any]:
        def milliseconds(at: float | None) -> int | None:
            return None if at is None else int(at * 1000)

        arrived = milliseconds(now - self.arrived_ago)
        absence = {"since_ms": milliseconds(changed), "confirm_ms": milliseconds(changed), "announced": False}
        absences = [] if changed is None else [{"id": _id(number), **absence} for number in self.missing]
        return {
            "version": 1, "life": "life", "round": 3, "world": "world", "absences": absences, "failed": [], "turned_away": [],
            "change_ms": milliseconds(changed), "contested_ms": None, "enough_ms": None, "last_arrival_ms": arrived,
            "newcomers_ms": None, "restoring_until_ms": None, "wanted_ms": milliseconds(changed),
            "waits": {
                "grow_ms": 30000, "last_call_ms": 30000, "on_member_loss": "restart", "on_newcomer": "restart",
                "rejoin_ms": 90000, "return_ms": 15000, "settle_ms": 3000, "silence_ms": 5000, "ttl_ms": 10000,
            },
        }  # fmt: skip


def _id(number: int) -> str:
    return f"{(number + 1) << 1:016x}"
