"""Mending a state: records that are not what the log says are replaced by the right ones, in one transaction.

Owns the way from a record that is right at some position to the one that is right where the state stands:
the log between the two, for the keys in question. The position itself is not changed, so that what is mended
must add up to the digest that stands there; whoever mends compares again afterwards. Folding is held up
meanwhile, writers and readers go on. Each mended record leaves a line in the audit file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.backends import shares_state
from ..store.cursor import LogCursor
from ..store.errors import BusyError, CorruptError, DivergedError, PerdureError, UsageError
from ..store.fold import HASH_BYTES, RECORD_BYTES_MIN, plan_deadlines
from ..store.ids import StatePosition
from ..store.labels import plan_labels, terms_of_record
from ..store.lock import FileLock
from ..store.opening import Opened, OpenOptions, open_store
from ..store.page import Word
from ..store.ports import Backend, Change, Record
from ..store.session import expiry_of
from .audit import AuditLine, append_audit, now_text
from .state_pass import READ_BYTES, hash_of_record, lay_events

FOLD_LOCK_TIMEOUT_MS: Final = 10_000
KEYS_MAX: Final = 1000
LOG_BYTES_MAX: Final = 256 << 20
"""More log than this is not read to bring records up to where the state stands."""


class Mended(msgspec.Struct, frozen=True):
    """What a mending did."""

    mended: int
    unchanged: int
    """Were right already."""


def mend(store: Path, at: StatePosition, right: Iterable[tuple[bytes, Record | None]], source: str) -> Mended:
    """Put records that are right at `at` in place of those in the state; None says that there is none.

    `source` is the node that they come from, for the audit file. Raises UsageError for more than KEYS_MAX
    keys, or where each process keeps a state of its own; DivergedError if this node's log has another history
    at `at`; BusyError if the state has not folded up to it; CorruptError, StorageError. Nothing is changed
    then.
    """
    records = dict(right)
    if not 0 < len(records) <= KEYS_MAX:
        raise UsageError(f"1 to {KEYS_MAX} sessions are mended at once, not {len(records)}")
    opened = open_store(store, OpenOptions(create=False))
    lock = FileLock(store / names.FOLD_LOCK)
    try:
        if not shares_state(opened.identity.backend):
            raise UsageError(
                "each process makes a state of its own from snapshot and log: there is none to mend",
                path=store,
                hint="Start the processes anew.",
            )
        lock.acquire(FOLD_LOCK_TIMEOUT_MS)
        generation = opened.log.generation
        backend = opened.backend
        position = backend.refresh()
        if opened.log.words[Word.GENERATION] != generation:
            raise BusyError("the store changed its role or its state meanwhile", path=store)
        _bring_up(opened, records, at, position)
        return _write(opened, backend, records, position, source)
    finally:
        lock.close()
        opened.close()


def _bring_up(
    opened: Opened, records: dict[bytes, Record | None], at: StatePosition, position: StatePosition
) -> None:
    """Take the records on from `at` to where the state stands."""
    log, store = opened.log, opened.store
    if position.lsn < at.lsn:
        raise BusyError(
            f"the state stands at LSN {position.lsn}, the records are those at {at.lsn}",
            path=store,
            hint="Wait until it has folded more.",
        )
    cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key, log.identity.shard)
    try:
        cursor.seek(at.lsn)
        if at.lsn and cursor.at.position != at.position:
            raise DivergedError(
                f"this node's log has {cursor.at.position} where {at.position} was expected",
                path=store,
                lsn=at.lsn,
            )

        def known(key: bytes) -> Record | None:
            if key not in records:
                raise BusyError("a session in question was renamed meanwhile; compare again", path=store)
            return records[key]

        size = 0
        while (run := cursor.read(position.lsn, READ_BYTES)) is not None:
            for offset, frame in run.frames:
                lay_events(records, run.events(offset, frame), known, records.__contains__)
                size += frame.size_bytes
            if size > LOG_BYTES_MAX:
                raise BusyError("too much was written since the comparison; compare again", path=store)
        if cursor.at.lsn != position.lsn:
            raise CorruptError(
                f"the log ends behind LSN {cursor.at.lsn}, where it must reach {position.lsn}",
                path=cursor.path,
                lsn=cursor.at.lsn + 1,
                hint="`perdure verify` says how much is affected; nothing was mended.",
            )
    finally:
        cursor.close()


def _write(
    opened: Opened,
    backend: Backend,
    records: dict[bytes, Record | None],
    position: StatePosition,
    source: str,
) -> Mended:
    changes: list[Change] = []
    expiries: dict[bytes, int] = {}
    terms: dict[bytes, tuple[bytes, ...]] = {}
    lines: list[AuditLine] = []
    now = now_text()
    for key, record in sorted(records.items()):
        old = _stored(backend, key, opened)
        if old == record:
            continue
        changes.append((key, record))
        _note_base(key, old, expiries, terms)
        lines.append(
            AuditLine(
                time=now,
                node=opened.identity.node,
                action="reconciled",
                key=key.decode("utf-8", "backslashreplace"),
                what=_what(old, record),
                lsn=position.lsn,
                source=source,
                before=_hash_text(key, old),
                after=_hash_text(key, record),
            )
        )
    if changes:
        armed = list(plan_deadlines(changes, expiries))
        labelled, unlabelled = plan_labels(changes, terms)
        opened.log.lock_any()  # first: what was mended is not met again, should the others not be told
        try:
            append_audit(opened.store, lines)  # what is mended has a line, whatever dies in between
            backend.fold(changes, armed, [], position, labelled, unlabelled)
            opened.log.page.bump()  # for those who keep what they have read
        finally:
            opened.log.unlock()
    return Mended(len(changes), len(records) - len(changes))


def _stored(backend: Backend, key: bytes, opened: Opened) -> Record | None:
    try:
        return backend.get(key)
    except backend.engine_errors as error:
        raise CorruptError(f"the state cannot be read: {error}", path=opened.state_path) from error


def _note_base(
    key: bytes, old: Record | None, expiries: dict[bytes, int], terms: dict[bytes, tuple[bytes, ...]]
) -> None:
    """What the state's own record says of deadline and labels, where it can be read at all."""
    if old is None or len(old) < RECORD_BYTES_MIN:
        return
    try:
        terms[key] = terms_of_record(old)
        expiries[key] = expiry_of(old, HASH_BYTES)
    except (PerdureError, ValueError, IndexError):
        terms.pop(key, None)


def _what(old: Record | None, record: Record | None) -> str:
    if old is None:
        return "was missing"
    return "was extra" if record is None else "was different"


def _hash_text(key: bytes, record: Record | None) -> str:
    return "" if record is None else f"{hash_of_record(key, record):016x}"
