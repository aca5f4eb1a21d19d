"""The state in the memory of one process (the Backend port): the fastest, and shared with nobody.

Owns the sessions as a dict, and beside it their order, the index of labels and the deadlines. Each handle
has a state of its own, which it fills from snapshot and log when it opens; there is no file. What makes
it durable is the log.

A read view is the dict itself as long as no fold comes between; a fold while a view or a scan is open
first puts the records that it replaces aside for them. A fold is noted as a whole before anything of it is
done, and what a signal's exception broke off is completed by the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from .errors import StoreClosedError, UsageError
from .forks import raise_forked, watch_forks
from .ids import NOWHERE, StatePosition
from .ordered import Image, OrderedItems
from .ports import Change, Deadline, Labelled, Record
from .timeline import Timeline

ENGINE: Final = "memory"
_UNCHANGED: Final = b"unchanged"
"""Stands for what was not put aside. Told by identity."""


class _Redo(NamedTuple):
    """What a fold does. To do any part of it twice changes nothing."""

    put: dict[bytes, Record]
    removed: list[bytes]
    new: list[bytes]
    armed: Sequence[Deadline]
    disarmed: Sequence[Deadline]
    position: StatePosition
    labelled: Sequence[Labelled]
    unlabelled: Sequence[Labelled]


class MemoryBackend:
    """One state in memory. `path` only says whose it is."""

    engine_errors: tuple[type[Exception], ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[bytes, Record] = {}
        self._keys: OrderedItems[bytes] = OrderedItems()
        self._pairs: OrderedItems[Labelled] = OrderedItems()
        self._deadlines = Timeline()
        self._position = NOWHERE
        self._redo: _Redo | None = None
        self._refuse: Callable[[], NoReturn] | None = None
        self._view: _Before | None = None
        """What folds put aside for the read view; None without one."""
        self._scans: list[_Before] = []
        self.has_labels = False
        self.get: Callable[[bytes], Record | None] = self._get_without_view
        """The record of a key in the read view. With a view and no fold since, that is the dict's own."""
        watch_forks(self)

    def refresh(self) -> StatePosition:
        """Begin (or renew) the read view at the newest state; says where that stands."""
        self._settle()
        self._view = _Before()
        self.has_labels = not self._pairs.is_empty()
        self.get = self._records.get
        return self._position

    def release(self) -> None:
        """End the read view, so that it pins nothing. The next get needs a refresh."""
        self._view = None
        self.get = self._get_without_view

    def scan(self, after: bytes = b"") -> MemoryScan:
        """An image of the newest state, from the first key above `after`."""
        self._settle()
        return MemoryScan(self.path, self._records, self._keys.image(), self._position, after, self._scans)

    def fold(
        self,
        changes: Sequence[Change],
        armed: Sequence[Deadline],
        disarmed: Sequence[Deadline],
        position: StatePosition,
        labelled: Sequence[Labelled] = (),
        unlabelled: Sequence[Labelled] = (),
    ) -> None:
        """One step: changes (in key order, no key twice), deadlines, index, position.

        What is both disarmed and armed stays armed.
        """
        self._settle()
        records = self._records
        put = {key: record for key, record in changes if record is not None}
        removed = [] if len(put) == len(changes) else [key for key, record in changes if record is None]
        new = [key for key in put if key not in records]
        self._redo = _Redo(put, removed, new, armed, disarmed, position, labelled, unlabelled)
        self._settle()

    def due(self, until_ms: int, limit: int) -> list[Deadline]:
        """Up to `limit` of the earliest deadlines that are at or before `until_ms`, in order."""
        self._settle()
        return self._deadlines.due(until_ms, limit)

    def find(self, above: Labelled, last_term: bytes, limit: int) -> list[Labelled]:
        """Up to `limit` pairs of the index in order, above `above`, with terms up to `last_term`."""
        if self._refuse is not None or self._view is None:
            self._raise_without_view(above[1])
        pairs = self._view.pairs or self._pairs.image()
        return pairs.first_above(above, (last_term + b"\0", b""), limit)

    def close(self) -> None:
        """Forget all of it. Scans must be closed before."""
        if self._refuse is None:
            self.release()
            self._refuse = self._raise_closed
            self._records, self._keys, self._pairs = {}, OrderedItems(), OrderedItems()
            self._deadlines = Timeline()

    def sever(self) -> object:
        self.release()
        if self._refuse is None:
            self._refuse = self._raise_forked
        return self._records, self._keys, self._pairs, self._deadlines

    # -- folding ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Complete a fold that was noted. Refuses where this handle is of no use any more."""
        if self._refuse is not None:
            self._refuse()
        redo = self._redo
        if redo is None:
            return
        put, removed, new, armed, disarmed, position, labelled, unlabelled = redo
        self._put_aside(put, removed)
        records = self._records
        records.update(put)
        for key in removed:
            records.pop(key, None)
        self._keys.add(new)
        self._keys.discard(removed)
        if disarmed:
            self._deadlines.disarm(disarmed)
        self._deadlines.arm(armed)
        if unlabelled:
            self._pairs.discard(unlabelled)
        if labelled:
            self._pairs.add(labelled)
        self._deadlines.drop_stale(records, len(records))
        self._position, self._redo = position, None

    def _put_aside(self, put: dict[bytes, Record], removed: list[bytes]) -> None:
        """Keep the records that are about to change for whoever reads an older state."""
        view = self._view
        readers = self._scans if view is None else [*self._scans, view]
        known = self._records.get
        for reader in readers:
            for key in (*put, *removed):
                reader.records.setdefault(key, known(key))
        if view is not None:
            view.pairs = view.pairs or self._pairs.image()
            self.get = self._get_before

    # -- reading ---------------------------------------------------------------------------------

    def _get_before(self, key: bytes) -> Record | None:
        view = self._view
        if self._refuse is not None or view is None:
            self._raise_without_view(key)
        before = view.records.get(key, _UNCHANGED)
        return self._records.get(key) if before is _UNCHANGED else before

    def _get_without_view(self, key: bytes) -> Record | None:
        self._raise_without_view(key)

    def _raise_without_view(self, key: bytes) -> NoReturn:
        if self._refuse is not None:
            self._refuse()
        raise UsageError(f"no read view to get session {key!r} from: call refresh() first")

    def _raise_closed(self) -> NoReturn:
        raise StoreClosedError("the state was closed", path=self.path)

    def _raise_forked(self) -> NoReturn:
        raise_forked(self.path)


class _Before:
    """What folds put aside for one reader of an older state."""

    __slots__ = ("pairs", "records")

    def __init__(self) -> None:
        self.records: dict[bytes, Record | None] = {}
        self.pairs: Image[Labelled] | None = None


class MemoryScan:
    """One image of the state, in key order (the Scan port). Folds put aside for it what they replace."""

    def __init__(
        self,
        path: Path,
        records: dict[bytes, Record],
        keys: Image[bytes],
        position: StatePosition,
        after: bytes,
        open_scans: list[_Before],
    ) -> None:
        self._path = path
        self._records = records
        self._keys = keys
        self._keys_left = chain.from_iterable(keys.above(after))
        self._position = position
        self._after = after
        self._before = _Before()
        self._open_scans = open_scans
        self._refuse: Callable[[], NoReturn] | None = None
        open_scans.append(self._before)
        watch_forks(self)

    @property
    def position(self) -> StatePosition:
        return self._position

    def __iter__(self) -> Iterator[tuple[bytes, Record]]:
        newest, before = self._records.get, self._before.records.get
        for keys in self._keys.above(self._after):
            if self._refuse is not None:
                self._refuse()
            for key in keys:
                record = newest(key)  # first: a fold in another thread puts aside before it replaces
                aside = before(key, _UNCHANGED)
                if aside is not _UNCHANGED:
                    record = aside
                if record is not None:
                    yield key, record
        if self._refuse is not None:
            self._refuse()

    def next_keys(self, limit: int) -> list[bytes]:
        """The next up to `limit` keys, in order: those of the image, each of which had a record then."""
        if self._refuse is not None:
            self._refuse()
        return list(islice(self._keys_left, limit))

    def close(self) -> None:
        if self._refuse is None:
            self._refuse = self._raise_closed
            self._open_scans.remove(self._before)

    def sever(self) -> object:
        self._refuse = self._raise_forked
        return self._records, self._before

    def _raise_closed(self) -> NoReturn:
        raise StoreClosedError("the scan was closed", path=self._path)

    def _raise_forked(self) -> NoReturn:
        raise_forked(self._path)
