"""Slots: what a node remembers of every replica, in one small file each.

Owns the files in `slots/`. A slot says up to where a replica has the log on disk; retention keeps what
a slot still needs. It is a memory, not a lock: losing one costs a snapshot, never a session.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.errors import FormatError, PerdureError
from ..store.files import remove_durably, translated
from ..store.ids import Position
from ..store.smallfile import publish_small, read_small_file

logger = logging.getLogger(__name__)

MAGIC: Final = b"PDRSLOT1"
VERSION: Final = 1
WRITE_MS_MIN: Final = 200
SEEN_MS: Final = 10_000

STREAMING: Final = "streaming"
"""It follows closely: what is appended is sent at once."""
CATCH_UP: Final = "catch-up"
"""It is behind, and is being sent what it lacks."""
SNAPSHOT: Final = "snapshot"
"""It needs a snapshot: the log no longer holds, or is no longer kept for, what it lacks."""
DISCONNECTED: Final = "disconnected"
DIVERGED: Final = "diverged"
"""Its log has another history than the primary's."""
REFUSED: Final = "refused"
"""It refuses, or is refused: secret, cluster, epoch or protocol."""
PAUSED: Final = "paused"
"""It cannot write at the moment: its disk is full."""
STATES: Final = frozenset({STREAMING, CATCH_UP, SNAPSHOT, DISCONNECTED, DIVERGED, REFUSED, PAUSED})


class Slot(msgspec.Struct, frozen=True):
    """What is known of one replica."""

    node: str
    epoch: int
    lsn: int
    chain: int
    """Acknowledged: on the replica's disk."""
    state: str
    last_seen_ms: int
    """When it was last heard, ms since 1970; 0 for never."""
    error: str = ""
    applied_lsn: int = 0
    """What the replica's state holds."""
    lag_ms: int = 0
    """Age of the oldest frame that it has not acknowledged, when this was written."""
    round_trip_us: int = 0
    snapshot: str = ""
    """File name of the snapshot that it is being sent; the log behind that is kept."""
    snapshot_lsn: int = 0
    snapshot_bytes: int = 0
    """It has so much of that, with the part of the log that goes with it."""
    snapshot_total_bytes: int = 0

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.lsn, self.chain)

    @property
    def keeps_log(self) -> bool:
        """Must retention keep the log behind `held_lsn`? Not if another snapshot comes anyway."""
        return bool(self.snapshot) if self.state == SNAPSHOT else self.state != DIVERGED

    @property
    def held_lsn(self) -> int:
        """Behind this LSN the replica needs the log: its own position, or that of the snapshot it gets."""
        return self.snapshot_lsn if self.snapshot and self.state == SNAPSHOT else self.lsn


def new_slot(node: str) -> Slot:
    return Slot(node, 0, 0, 0, DISCONNECTED, 0)


def write_slot(store: Path, slot: Slot) -> None:
    """Replace a slot's file durably. Raises StorageError."""
    publish_small(store / names.SLOTS / names.slot_name(slot.node), MAGIC, VERSION, slot)


def read_slot(store: Path, node: str) -> Slot | None:
    """The slot of a node, None if there is none. Raises FormatError for a damaged file."""
    path = store / names.SLOTS / names.slot_name(node)
    return read_small_file(path, MAGIC, VERSION, Slot)


def read_slots(store: Path) -> list[Slot]:
    """All slots by node. Raises FormatError, naming the file, if one is damaged."""
    slots = [read_slot(store, node) for node in slot_nodes(store)]
    return [slot for slot in slots if slot is not None]


def slot_nodes(store: Path) -> list[str]:
    """The nodes that have a slot, be it damaged, by name."""
    with translated("cannot list the slots", store / names.SLOTS):
        found = [names.parse_slot_name(name) for name in os.listdir(store / names.SLOTS)]
    return sorted(node for node in found if node)


def remove_slot(store: Path, node: str) -> None:
    """Forget a replica, so that no log is kept for it. Nothing happens if there is no such slot."""
    remove_durably(store / names.SLOTS / names.slot_name(node))


def slot_or_new(store: Path, node: str) -> Slot:
    """The slot of a node; an empty one if there is none or it is damaged (it costs a snapshot at most)."""
    try:
        return read_slot(store, node) or new_slot(node)
    except FormatError as error:
        logger.warning("a slot is begun anew: node=%s error=%s", node, error)
        return new_slot(node)


class SlotWriter:
    """Writes slots from a thread of its own, so that nothing waits for their syncs.

    Each slot at once if its state changed, else at most every WRITE_MS_MIN ms, and only if it changed.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._written: dict[str, tuple[Slot, float]] = {}
        self._newest: dict[str, Slot | None] = {}
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="perdure-slots", daemon=True)
        self._thread.start()

    def put(self, slot: Slot) -> None:
        """Take a slot's newest value; it is written if that is due."""
        written = self._written.get(slot.node)
        if written is not None:
            old, at_s = written
            if old is slot or _is_same(old, slot):
                return
            if old.state == slot.state and time.monotonic() - at_s < WRITE_MS_MIN / 1000:
                return
        with self._changed:
            self._newest[slot.node] = slot
            self._written[slot.node] = (slot, time.monotonic())
            self._changed.notify()

    def drop(self, node: str) -> None:
        """Forget a replica: its slot is removed, behind whatever was to be written of it."""
        with self._changed:
            self._newest[node] = None
            self._written.pop(node, None)
            self._changed.notify()

    def close(self) -> None:
        """Write what is left and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._newest and not self._is_closing:
                    self._changed.wait()
                if not self._newest:
                    return
                due, self._newest = self._newest, {}
            for node, slot in due.items():
                try:
                    if slot is None:
                        remove_slot(self._store, node)
                    else:
                        write_slot(self._store, slot)
                except PerdureError as error:
                    logger.warning("cannot write a slot: node=%s error=%s", node, error)


def _is_same(old: Slot, new: Slot) -> bool:
    """Nothing that matters changed: what is only a time may be old by a second."""
    if new.last_seen_ms - old.last_seen_ms >= SEEN_MS:
        return False
    return _changing(old) == _changing(new)


def _changing(slot: Slot) -> tuple[int, int, str, str, str, int]:
    return slot.epoch, slot.lsn, slot.state, slot.error, slot.snapshot, slot.snapshot_bytes
