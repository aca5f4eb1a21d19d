"""One image of a node's sessions at one position of its log, to be compared with other nodes' at the same.

Owns how an image is taken on to a common position: what the log has between is laid over it, without being
checked against what the sessions come to, because that is what is in question. Nothing is written. Memory
holds the sums of the buckets and the keys that changed in between, both bounded.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import xxhash

from ..store.cursor import LogCursor
from ..store.errors import BusyError, CorruptError, DivergedError, PerdureError, PositionGoneError, WireError
from ..store.event import Event, Kind
from ..store.fold import HASH_BYTES, record_of, touched, unpack_hash
from ..store.ids import MASK64, NOWHERE, StatePosition
from ..store.opening import Opened, OpenOptions, open_store
from ..store.page import Word
from ..store.ports import Record, Scan

BUCKET_BITS: Final = 12
BUCKETS: Final = 1 << BUCKET_BITS
_SHIFT: Final = 64 - BUCKET_BITS
OVERLAY_BYTES_MAX: Final = 64 << 20
"""An image that is behind by more log than this is too old: another one is taken later."""
IMAGE_TRIES: Final = 20
READ_BYTES: Final = 1 << 20
_SUMS = struct.Struct(f"<{BUCKETS}Q")
_COUNTS = struct.Struct(f"<{BUCKETS}I")
SUMS_BYTES: Final = _SUMS.size + _COUNTS.size
xxh3_64 = xxhash.xxh3_64_intdigest


class Buckets:
    """What the sessions of an image add up to, by the first bits of their keys' hashes."""

    def __init__(self) -> None:
        self.sums = array("Q", bytes(8 * BUCKETS))
        self.counts = array("L", bytes(array("L").itemsize * BUCKETS))

    @property
    def digest(self) -> int:
        return sum(self.sums) & MASK64

    @property
    def session_count(self) -> int:
        return sum(self.counts)

    def pack(self) -> bytes:
        return _SUMS.pack(*self.sums) + _COUNTS.pack(*self.counts)

    @staticmethod
    def unpack(data: bytes) -> Buckets:
        """Raises WireError for bytes that are none."""
        if len(data) != SUMS_BYTES:
            raise WireError(f"the sums of buckets have {len(data)} bytes, not {SUMS_BYTES}")
        found = Buckets()
        found.sums = array("Q", _SUMS.unpack_from(data))
        found.counts = array("L", _COUNTS.unpack_from(data, _SUMS.size))
        return found

    def differing(self, other: Buckets) -> set[int]:
        """The buckets that do not come out the same."""
        pairs = zip(self.sums, other.sums, self.counts, other.counts, strict=True)
        return {number for number, (a, b, m, n) in enumerate(pairs) if a != b or m != n}


def pack_bits(buckets: Iterable[int]) -> bytes:
    """Buckets as a string of bits."""
    bits = bytearray(BUCKETS // 8)
    for number in buckets:
        bits[number >> 3] |= 1 << (number & 7)
    return bytes(bits)


def unpack_bits(data: bytes) -> set[int]:
    """Raises WireError for bytes that are none."""
    if len(data) != BUCKETS // 8:
        raise WireError(f"the choice of buckets has {len(data)} bytes, not {BUCKETS // 8}")
    return {number for number in range(BUCKETS) if data[number >> 3] >> (number & 7) & 1}


def bucket_of(key: bytes) -> int:
    return xxh3_64(key) >> _SHIFT


class StatePass:
    """An image of one store's sessions. One thread at a time; pins old pages until it is closed."""

    def __init__(self, store: Path) -> None:
        """Take it. Raises as open_store; BusyError if folding never paused."""
        self._opened: Opened = open_store(store, OpenOptions(create=False))
        self._scan: Scan
        try:
            self.at, self._scan = self._image()
        except BaseException:
            self._opened.close()
            raise
        self._base = self.at
        self._overlay: dict[bytes, Record | None] = {}
        self._records: Iterator[tuple[bytes, Record]] | None = None
        self.buckets = Buckets()
        self.done = 0
        """Records read so far, of the walk that is under way."""

    def close(self) -> None:
        self._scan.close()
        self._opened.close()

    def align(self, to: StatePosition) -> bool:
        """Take the image on to `to`; False if this node's log does not reach that yet.

        `at` has then the digest and count that the log's own frame says. Raises DivergedError if the log
        has another history there, BusyError if it is ahead of `to` or too far behind, CorruptError.
        """
        log = self._opened.log
        if to.lsn < self._base.lsn:
            raise BusyError(
                f"the sessions stand at LSN {self._base.lsn} already, not at {to.lsn}", path=log.store
            )
        cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key, log.identity.shard)
        try:
            if to.lsn > log.words[Word.APPENDED]:
                return False
            if to.lsn > self._base.lsn:
                self._lay_over(cursor, to)
            self.at = self._said_by_log(cursor, to)
        finally:
            cursor.close()
        if self.at.position != to.position:
            raise DivergedError(
                f"this node's log has {self.at.position} where {to.position} was expected",
                path=log.store,
                lsn=to.lsn,
                hint="Make the node anew, or see `perdure status` for what it says of its primary.",
            )
        self.rewind()
        return True

    def rewind(self) -> None:
        """Begin to read at the first key again."""
        self._records, self.done = None, 0

    def add_up(self, limit: int) -> bool:
        """Sum up so many more records; says whether that was the last of them."""
        if not self.done:
            self.buckets = Buckets()
        sums, counts = self.buckets.sums, self.buckets.counts
        number = 0
        for key, record in islice(self._walk(), limit):
            hashed = xxh3_64(key)
            place = hashed >> _SHIFT
            term = xxh3_64(record[HASH_BYTES:], hashed)
            if len(record) < HASH_BYTES or unpack_hash(record)[0] != term:  # see hash_of_record
                term += 1
            sums[place] = (sums[place] + term) & MASK64
            counts[place] += 1
            number += 1
        self.done += number
        return number < limit

    def names(self, buckets: set[int], limit: int, bytes_max: int) -> tuple[list[tuple[bytes, int]], bool]:
        """((key, hash) of what is in these buckets, among so many more records; was that the last of them).

        Ends early once about `bytes_max` bytes of keys were found.
        """
        found: list[tuple[bytes, int]] = []
        number = size = 0
        for key, record in islice(self._walk(), limit):
            number += 1
            hashed = xxh3_64(key)
            if hashed >> _SHIFT in buckets:
                found.append((key, hash_of_record(key, record)))
                size += len(key) + 16
                if size >= bytes_max:
                    self.done += number
                    return found, False
        self.done += number
        return found, number < limit

    def get(self, key: bytes) -> Record | None:
        """The record of a key in the image. Raises CorruptError if the state cannot be read."""
        if key in self._overlay:
            return self._overlay[key]
        return self._stored(key)

    # -- inside ----------------------------------------------------------------------------------

    def _image(self) -> tuple[StatePosition, Scan]:
        """The read view and a scan at the same position."""
        view = self._opened.view
        with view.mutex:
            for _ in range(IMAGE_TRIES):
                at, scan = view.backend.refresh(), view.backend.scan()
                if scan.position == at:
                    return at, scan
                scan.close()
        raise BusyError("the state is folded all the time; no image could be taken", path=self._opened.store)

    def _stored(self, key: bytes) -> Record | None:
        backend = self._opened.view.backend
        try:
            return backend.get(key)
        except backend.engine_errors as error:
            raise CorruptError(f"the state cannot be read: {error}", path=self._opened.state_path) from error

    def _walk(self) -> Iterator[tuple[bytes, Record]]:
        if self._records is None:
            self._records = merged(iter(self._scan), self._overlay)
        return self._records

    def _lay_over(self, cursor: LogCursor, to: StatePosition) -> None:
        cursor.seek(self._base.lsn)
        if self._base.lsn and cursor.at.position != self._base.position:
            raise DivergedError(
                f"the state stands at {self._base.position}, the log has {cursor.at.position} there",
                path=self._opened.store,
                lsn=self._base.lsn,
            )
        overlay: dict[bytes, Record | None] = {}
        size = 0
        while (run := cursor.read(to.lsn, READ_BYTES)) is not None:
            for offset, frame in run.frames:
                lay_events(overlay, run.events(offset, frame), self._stored)
                size += frame.size_bytes
            if size > OVERLAY_BYTES_MAX:
                raise BusyError(
                    f"the state is more than {OVERLAY_BYTES_MAX} bytes of log behind LSN {to.lsn}",
                    path=self._opened.store,
                    hint="Wait until it has folded more: `perdure wait ready DIR`.",
                )
        self._overlay = overlay

    def _said_by_log(self, cursor: LogCursor, to: StatePosition) -> StatePosition:
        """The frame that ends at `to`; where the log begins behind it, what the state says of itself."""
        if not to.lsn:
            return NOWHERE
        try:
            cursor.approach(to.lsn - 1)
        except PositionGoneError:
            return self._base
        while cursor.at.lsn < to.lsn and cursor.read(to.lsn) is not None:
            pass
        return cursor.at


def hash_of_record(key: bytes, record: Record) -> int:
    """A record's term of the digest, made from what it holds; one more where it does not match its own hash.

    So a record whose hash alone is damaged differs, too: a reader would refuse it.
    """
    hashed = xxh3_64(record[HASH_BYTES:], xxh3_64(key))
    return hashed if record[:HASH_BYTES] == hashed.to_bytes(8, "little") else (hashed + 1) & MASK64


def lay_events(
    overlay: dict[bytes, Record | None],
    events: Iterable[Event],
    stored: Callable[[bytes], Record | None],
    is_wanted: Callable[[bytes], bool] | None = None,
) -> None:
    """What events make of records, laid over what `stored` gives.

    A change of a session that is not there is passed over: what is missing is found by comparing.
    """
    for kind, _reason, _operation_id, key, value in events:
        if kind >= Kind.EPOCH_START:
            continue
        others = kind == Kind.RENAME and is_wanted is not None and is_wanted(value)
        if is_wanted is not None and not others and not is_wanted(key):
            continue
        if kind == Kind.PUT:
            overlay[key] = record_of(key, value)
        elif kind in (Kind.DELETE, Kind.EXPIRE):
            overlay[key] = None
        else:
            record = overlay[key] if key in overlay else stored(key)
            if record is None:
                continue
            if kind == Kind.TOUCH:
                try:
                    overlay[key] = record_of(key, touched(key, record, value))
                except (PerdureError, struct.error, IndexError):
                    continue  # too short to be a session: it differs as it is
            else:
                overlay[key] = None
                overlay[value] = record_of(value, record[HASH_BYTES:])


def merged(
    stored: Iterator[tuple[bytes, Record]], overlay: dict[bytes, Record | None]
) -> Iterator[tuple[bytes, Record]]:
    """The stored records in key order, with the overlay's in their place."""
    if not overlay:
        yield from stored
        return
    new = iter(sorted((key, record) for key, record in overlay.items() if record is not None))
    ahead = next(new, None)
    for key, record in stored:
        while ahead is not None and ahead[0] < key:
            yield ahead
            ahead = next(new, None)
        if ahead is not None and ahead[0] == key:
            yield ahead
            ahead = next(new, None)
        elif key not in overlay:
            yield key, record
    while ahead is not None:
        yield ahead
        ahead = next(new, None)
