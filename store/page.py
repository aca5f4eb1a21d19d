"""The control page: a few shared words that say where the log stands, for the price of a memory read.

Owns the file `control` and its mapping. The page is a hint that every process of one boot shares: it
is checked against the frame that it names, and is written anew after another boot. Words are 64 bits
wide, aligned, and each is stored and loaded as one.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import xxhash

from .bell import Bell
from .files import FILE_MODE, read_small, translated

PAGE_BYTES = 4096
MAGIC = 0x3130454741504450


class Word(IntEnum):
    """Which word holds what."""

    MAGIC = 0
    BOOT = 1
    """xxh3_64 of the boot id under which the page was written."""
    GENERATION = 2
    """Grows when role, epoch, poison or what is already in the log changes: look again."""
    DIRTY = 3
    """1 while a frame is being appended: its writer died if the lock is free."""
    OWNER = 4
    """Process that last took the write lock."""
    SEGMENT = 5
    """First LSN of the tail segment."""
    END = 6
    """Offset (bytes) behind the last frame of the tail segment."""
    APPENDED = 7
    """Last LSN in the log."""
    LAST_FRAME = 8
    """Offset (bytes) of the last frame in the tail segment, 0 if it has none."""
    EPOCH = 9
    """Epoch of the tail segment."""
    FLUSHED = 10
    """LSN that is on this node's disk."""
    COMMITTED = 11
    """LSN that is committed (sync_replicas >= 1)."""
    FOLDED = 12
    """LSN that the state holds."""
    POISON = 13
    """1 after a failed sync."""
    SHIPPER_IDLE = 14
    """1 while the shipper waits to be poked."""
    SHIPPER = 15
    """Process id of the shipper, 0 if there is none."""
    TURN = 16
    """Until when a writer that waited long asks the others to let it in, ns (monotonic clock); 0: none."""
    VOTERS_CONNECTED = 17
    """Replicas that acknowledge at the moment."""
    CHAIN = 18
    """Chain of the last frame."""
    MARK_SYNCED_MS = 19
    """When the mark was last synced, milliseconds of the monotonic clock."""
    FOLDED_SEGMENT = 20
    """First LSN of the segment in which the frame behind the state begins, 0 if unknown."""
    FOLDED_OFFSET = 21
    """Offset (bytes) there."""
    LOST_FRAMES = 22
    """1 if the log may have lost frames (another boot, a torn tail): it needs a new epoch before a write."""
    MARK_SEQUENCE = 23
    """Sequence number of the newest mark; 0: ask the file, one is being written or its writer died."""
    MARK_SYNCED_SEQUENCE = 24
    """Sequence number of the newest mark that was synced."""
    SESSION_OFFSET_MS = 25
    """Session time less the time since boot, ms, signed; 0: session time has not begun in this boot."""
    SLEWED_MS = 26
    """When that was last set, ms since boot."""
    DRAINED_UNTIL_MS = 27
    """Until when the primary's writers wait for a switchover, ms since boot; 0: they do not (see drain)."""
    DRAINED_BY = 28
    """Number of the switchover for which they wait."""
    GIVEN_UP = 30
    """The epoch of which this node is primary no more by its own will: its disk stalls. 0 if of none."""
    CONFIRMED_US = 32
    """On a primary: up to when sync_replicas have confirmed that it is one, us (monotonic clock); 0: they
    have not."""
    HEARD_LSN = 33
    """On a replica: the commit LSN that the last heartbeat told."""
    HEARD_MS = 34
    """When that came, ms (monotonic clock); 0: none came. Written behind HEARD_LSN, read before it."""
    ALLOCATED = 35
    """Offset (bytes) in the tail segment up to which nobody need allocate ahead of the frames; 0: look."""
    SYNC_WANTED = 36
    """1 if a process waits for another one's sync, and is to be woken by SYNC_BELL."""
    SYNC_BELL = 37
    """Grows when a sync is over for which others have waited."""
    TURN_GIVEN = 38
    """When a turn at the write lock was last taken, ns (monotonic clock)."""
    FIRST_SINCE = 39
    """Since when the first of the writers in line for the write lock has waited, ns (monotonic clock)."""
    FIRST_LOOKED = 40
    """When that one last looked at the lock, ns (monotonic clock); 0: it has got it."""
    SYNC_NS = 41
    """How long a sync takes, ns: a mean in which the last one counts for a quarter (see gathering)."""
    SYNCED_NS = 42
    """When the last one ended, ns (monotonic clock)."""
    SYNC_BEHIND = 43
    """Last LSN in the log at that moment."""
    SYNC_RELEASED = 44
    """How many LSNs it covered that none had before."""
    SYNC_AT_ONCE = 45
    """How many syncs begin at once before one waits again for those that the last one released."""
    SYNC_VAIN = 46
    """What that was last set to; 0 if somebody came."""


def read_boot_id() -> str:
    """The running kernel's boot id: what changes whenever un-synced pages may have been lost."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


BootId = Callable[[], str]


def is_page_poisoned(path: Path, boot_id: str) -> bool:
    """Does a control page of this boot say that a sync failed? Makes none where there is none."""
    data = read_small(path, PAGE_BYTES - 1)
    if data is None or len(data) < PAGE_BYTES:
        return False
    words = memoryview(data).cast("Q")
    is_current = words[Word.MAGIC] == MAGIC and words[Word.BOOT] == boot_number(boot_id)
    return is_current and bool(words[Word.POISON])


def boot_number(boot_id: str) -> int:
    """What stands for a boot in the page."""
    return xxhash.xxh3_64_intdigest(boot_id.encode())


class ControlPage:
    """The mapping of one control page. `words` is a memoryview of unsigned 64-bit words."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self.path = path
        self.boot = boot_number(boot_id)
        with translated("cannot open the control page", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                if os.fstat(descriptor).st_size < PAGE_BYTES:
                    # Allocated, not sparse: a store into a hole of a full disk would be a SIGBUS.
                    os.posix_fallocate(descriptor, 0, PAGE_BYTES)
                self._map = mmap.mmap(descriptor, PAGE_BYTES)
            finally:
                os.close(descriptor)
        self.words: memoryview = memoryview(self._map).cast("Q")
        self.signed_words: memoryview = memoryview(self._map).cast("q")
        self.sync_bell = Bell(self._map, self.words, Word.SYNC_BELL)

    def is_current(self) -> bool:
        """True if the page was written under the running boot."""
        return self.words[Word.MAGIC] == MAGIC and self.words[Word.BOOT] == self.boot

    def reset(self) -> None:
        """Make all words 0, but for a new generation, and session time, which goes on within one boot.

        The caller holds the write lock.

        The page is nobody's until adopt(): whoever dies in between leaves it as after another boot.
        """
        generation = self.words[Word.GENERATION]
        offset_ms = self.words[Word.SESSION_OFFSET_MS] if self.is_current() else 0
        self._map[:] = bytes(PAGE_BYTES)
        self.words[Word.SESSION_OFFSET_MS] = offset_ms
        self.words[Word.GENERATION] = (generation + 1) & 0xFFFFFFFFFFFF

    def adopt(self) -> None:
        """Make it this boot's page: its words are right from now on. The caller holds the write lock."""
        self.words[Word.BOOT] = self.boot
        self.words[Word.MAGIC] = MAGIC

    def bump(self) -> None:
        """Make every process look again at role, epoch, poison and log."""
        self.words[Word.GENERATION] += 1

    def close(self) -> None:
        self.sync_bell.close()
        self.words.release()
        self.signed_words.release()
        self._map.close()
