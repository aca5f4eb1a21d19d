"""Bugs that are put into the code on purpose: the simulator must find each of them.

Owns the patches. Each takes one safeguard away, in the modules of this process alone, which runs nothing
but one schedule.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec

from perdure.recovery import availability, members, promises
from perdure.shipping import nodelog, shipper
from perdure.shipping.progress import Electorate
from perdure.shipping.receiver import Receiver
from perdure.shipping.replica_log import ReplicaLog
from perdure.store import files
from perdure.store import promise as promise_file
from perdure.store.control import Config
from perdure.store.errors import FencedError
from perdure.store.ids import Position
from perdure.store.page import Word
from perdure.store.promise import Promise
from perdure.store.smallfile import encode_small

Patch: TypeAlias = "tuple[Any, str, Any]"
"""(module or class, name, what stands there instead)."""


def put_in(name: str) -> None:
    """Put a bug into the code. Raises KeyError for a name that there is not."""
    for owner, attribute, instead in BUGS[name]():
        setattr(owner, attribute, instead)


def _no_fence() -> list[Patch]:
    """A node takes frames of any epoch, whatever it has promised."""

    def accept_reign(self: ReplicaLog, _promise: Promise) -> Position:
        self._log.lock_any()
        try:
            self._sync()
            return self._log.cursor.at.position
        finally:
            self._log.unlock()

    ended = Receiver.end

    def end(self: Receiver, visitor: Any, error: Exception) -> None:
        if not isinstance(error, FencedError):
            ended(self, visitor, error)

    return [
        (ReplicaLog, "accept_reign", accept_reign),
        (ReplicaLog, "_check_reign", lambda _self, _reign: None),
        (Receiver, "end", end),
    ]


def _promise_not_durable() -> list[Patch]:
    """A promise is answered before it is on disk."""

    def publish(path: Path, magic: bytes, version: int, value: msgspec.Struct) -> None:
        system: Any = vars(files)["os"]
        temporary = path.with_name(path.name + ".new")
        descriptor = system.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        system.write(descriptor, encode_small(magic, version, value))
        system.close(descriptor)
        system.rename(temporary, path)

    return [(promise_file, "publish_small", publish)]


def _ack_before_fsync() -> list[Patch]:
    """A replica acknowledges what it has written and not synced."""

    def sync(self: ReplicaLog) -> None:
        words, end = self._log.words, self._log.cursor.at.lsn
        words[Word.FLUSHED] = max(words[Word.FLUSHED], end)

    return [(ReplicaLog, "_sync", sync)]


def _shorter_log_promoted() -> list[Patch]:
    """A candidate does not mind that a promiser has more of the log than it has itself."""
    return [(promises, "_better", lambda _candidate, _sound: None)]


def _epoch_reused() -> list[Patch]:
    """A candidate that was promised an epoch before takes the same one again."""
    promotion: Any = vars(import_module("perdure.recovery.promote"))["_Promotion"]
    taken, promised = promotion._next_epoch, promotion._promise_self

    def next_epoch(self: Any, states: Any) -> int:
        held = self.log.promise
        return int(held.epoch) if held.candidate == self.name else taken(self, states)

    def promise_self(self: Any, asked: Any, **_is_first: bool) -> Any:
        return promised(self, asked)

    return [(promotion, "_next_epoch", next_epoch), (promotion, "_promise_self", promise_self)]


def _two_promised() -> list[Patch]:
    """A node promises an epoch to every candidate that asks."""
    return [(promise_file, "decide_promise", lambda held, asked: asked.epoch >= held.epoch)]


def _no_majority() -> list[Patch]:
    """q = n - k promises are enough: of four nodes two pairs each find their own."""
    election: Any = import_module("perdure.recovery.election")
    return [(module, "is_majority", lambda _electors, _agreeing: True) for module in (promises, election)]


def _lease_by_wall_clock() -> list[Patch]:
    """A primary that k replicas have just answered believes itself alone for a while, by the wall clock."""
    lease_ms = 250
    until_ms = {"": 0}
    counted = vars(shipper)["commit_lsn"]

    def commit_lsn(
        electorate: Electorate, acked: Mapping[str, Position], flushed_lsn: int, committed_lsn: int
    ) -> int:
        reached: int = counted(electorate, acked, flushed_lsn, committed_lsn)
        now_ms = vars(nodelog)["now_ms"]()
        if reached > committed_lsn:
            until_ms[electorate.primary] = now_ms + lease_ms
        return max(reached, flushed_lsn) if now_ms < until_ms.get(electorate.primary, 0) else reached

    def take_news(self: Any) -> bool:
        has_more: bool = taken(self)
        self._reign.has_news = True
        return has_more

    taken = shipper.Shipper._take_appended
    return [(shipper, "commit_lsn", commit_lsn), (shipper.Shipper, "_take_appended", take_news)]


def _two_voters_at_once() -> list[Patch]:
    """Two voters go at once, at the word of one CONFIG alone, and without waiting for the change before."""
    without = vars(members)["without_vote"]

    def without_two(config: Config, node: str) -> Config:
        changed = without(config, node)
        others = [voter for voter in changed.voters[1:] if voter != node]
        return cast("Config", without(changed, others[-1]) if len(others) > 1 else changed)

    def next_config(_config: Config, wanted: Config, _primary: str, *, at_lsn: int, **_known: Any) -> Config:
        return msgspec.structs.replace(wanted, before=None, changed_lsn=at_lsn + 1)

    return [(members, "without_vote", without_two), (members, "next_config", next_config)]


def _older_frames_count() -> list[Patch]:
    """A frame counts as committed once k replicas have it, though nothing of this epoch stands on it."""

    def commit_lsn(
        electorate: Electorate, acked: Mapping[str, Position], flushed_lsn: int, committed_lsn: int
    ) -> int:
        k = electorate.sync_replicas
        replicas = electorate.voters - electorate.witnesses - {electorate.primary}
        reached = sorted((at.lsn for node, at in acked.items() if node in replicas), reverse=True)
        return max(committed_lsn, min(reached[k - 1], flushed_lsn)) if len(reached) >= k else committed_lsn

    return [(shipper, "commit_lsn", commit_lsn)]


def _degrade_recorded_late() -> list[Patch]:
    """A primary goes on alone first, and tells the witness afterwards."""

    def when_short(scene: availability.Scene) -> availability.Step:
        is_time = scene.since_ms >= scene.alone_after_ms and scene.is_config_committed
        return availability.Step(availability.Act.GO_ALONE) if is_time else availability.NOTHING

    return [(availability, "_when_short", when_short)]


SHOWN_BY_CONSEQUENCE = {"ack-before-fsync", "lease-by-wall-clock"}
"""Bugs that break the rule of k + 1 disks at once: what has to be found is what follows from it."""

BUGS: dict[str, Callable[[], list[Patch]]] = {
    "no-fence": _no_fence,
    "promise-not-durable": _promise_not_durable,
    "ack-before-fsync": _ack_before_fsync,
    "shorter-log-promoted": _shorter_log_promoted,
    "epoch-reused": _epoch_reused,
    "two-promised-in-one-epoch": _two_promised,
    "q-is-n-minus-k-only": _no_majority,
    "lease-by-wall-clock": _lease_by_wall_clock,
    "two-voters-at-once": _two_voters_at_once,
    "degrade-recorded-late": _degrade_recorded_late,
    "older-frames-count-as-committed": _older_frames_count,
}

FLAVOUR_OF: dict[str, str] = {
    "no-fence": "rivals",
    "promise-not-durable": "mixed",
    "ack-before-fsync": "power",
    "shorter-log-promoted": "power",
    "older-frames-count-as-committed": "power",
    "lease-by-wall-clock": "rivals",
    "epoch-reused": "power",
    "two-promised-in-one-epoch": "rivals",
    "q-is-n-minus-k-only": "rivals",
    "two-voters-at-once": "members",
    "degrade-recorded-late": "witness",
}
"""What the schedules are about that look for a bug."""
