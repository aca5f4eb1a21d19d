"""A replica whose log is damaged is made anew: what it may not do until it has again what it acknowledged.

Owns the files `log.fault` (the log was found damaged) and `rebuild` (the log is being made anew). Steps, each
durable before the next; a crash after any of them is finished by finish_rebuild, which a receiver calls
before it opens the log:

    1. `rebuild`: from here on this node is fit neither to become primary nor to vouch for a write
    2. mark, segments and state move to `aside/`; nothing is removed
    3. the control page says that the log is empty; the permission to be made anew; `log.fault` is removed
    4. a primary comes, whose epoch this node accepts: where its log ends is the floor, durably
    5. this node's log reaches the floor: `rebuild` is removed

Why 4 is enough: whatever this node acknowledged, and was committed by that, is in the log of every primary
of the epoch that it promised last, or of a later one; and no older one is accepted.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.cursor import LogCursor, SegmentFile, list_segments
from ..store.errors import CorruptError, FormatError, StaleReadError
from ..store.files import make_directory, next_free, remove_durably, rename_durably, translated
from ..store.follow import is_half_replaced
from ..store.frame import cluster_key
from ..store.identity import Identity, read_identity
from ..store.smallfile import publish_small, read_small_file
from ..store.state import set_aside
from .faults import MAGIC as FAULT_MAGIC
from .faults import Fault, read_fault
from .permission import Permission, give_permission
from .replacing import lock_log, move_if_there, renew_page

logger = logging.getLogger(__name__)

MAGIC: Final = b"PDRREBU1"
VERSION: Final = 1


class Rebuild(msgspec.Struct, frozen=True):
    """The log is being made anew."""

    why: str
    folder: str = ""
    """Where in `aside/` the damaged log goes; empty once it is there, or if it was replaced at once."""
    epoch: int = 0
    lsn: int = 0
    """The floor: up to there this node's log has to reach again. 0: not known yet."""
    time_ms: int = 0


def read_rebuild(store: Path) -> Rebuild | None:
    """None if the log is whole. Raises CorruptError for a damaged file."""
    return read_small_file(store / names.REBUILD, MAGIC, VERSION, Rebuild)


def why_unfit(store: Path) -> str:
    """Why this node must neither become primary nor vouch for a write; empty if nothing speaks against it."""
    try:
        found = read_rebuild(store)
    except FormatError as error:
        return f"its log is being made anew, and the file that says how far is damaged: {error}"
    if found is not None:
        return f"its log is being made anew, and is short of what it acknowledged: {found.why}"
    return read_fault(store) or (f"its log is damaged: {text}" if (text := read_log_fault(store)) else "")


def read_log_fault(store: Path) -> str:
    """Why the log is damaged, empty if it is not known to be."""
    try:
        found = read_small_file(store / names.LOG_FAULT, FAULT_MAGIC, VERSION, Fault)
    except FormatError as error:
        return f"it was found damaged, and the file that says so is damaged: {error}"
    return found.text if found else ""


def note_log_fault(store: Path, error: CorruptError, now_ms: int) -> bool:
    """Record that the log is damaged, if that is what the error says; answers whether it is."""
    if error.path is None or Path(error.path).parent != names.log_path(store):
        return False
    publish_small(store / names.LOG_FAULT, FAULT_MAGIC, VERSION, Fault(error.lsn or 0, error.message, now_ms))
    return True


def confirm_log_fault(store: Path, error: CorruptError, now_ms: int) -> None:
    """As note_log_fault, for who read without the write lock: the segment is read again with it.

    A log of which a cut or a replacement was left half done lacks frames until that is finished, and is at no
    fault.
    """
    if error.path is None or Path(error.path).parent != names.log_path(store):
        return
    identity = read_identity(store)
    lock = lock_log(store)
    try:
        if is_half_replaced(store):
            return
        for file in list_segments(names.log_path(store)):
            if file.path == Path(error.path):
                _read_through(file, identity)
    except CorruptError as found:
        note_log_fault(store, found, now_ms)
    finally:
        lock.close()


def _read_through(file: SegmentFile, identity: Identity) -> None:
    """Raises CorruptError at the first frame that is damaged or missing; the log's torn end is neither."""
    cursor = LogCursor(
        file.path.parent, identity.cluster_id, cluster_key(identity.cluster_id), identity.shard
    )
    try:
        cursor.open_segment(file)
        while cursor.read() is not None and str(cursor.path) == str(file.path):
            continue
        last_lsn = cursor.at.lsn
        later = [other for other in list_segments(cursor.log) if other.first_lsn > last_lsn + 1]
        if later and str(cursor.path) == str(file.path) and file.path.exists():  # else retention dropped it
            raise CorruptError(
                f"the segment ends behind LSN {last_lsn}, the next one begins with LSN {later[0].first_lsn}: "
                "frames are missing",
                path=file.path,
                offset=cursor.offset,
                lsn=last_lsn + 1,
            )
    finally:
        cursor.close()


def begin_rebuild(store: Path, why: str, now_ms: int) -> Path:
    """Set the damaged log aside, and let the next primary make it anew; answers where the old one is now.

    The caller holds the receiver's lock. Raises StorageError, LockTimeoutError.
    """
    folder = next_free(store / names.ASIDE / "damaged-log")
    publish_small(store / names.REBUILD, MAGIC, VERSION, Rebuild(why, folder.name, time_ms=now_ms))
    finish_rebuild(store)
    return folder


def finish_rebuild(store: Path) -> None:
    """Go on where a rebuild was broken off. Nothing happens if the damaged log is out of the way."""
    plan = read_rebuild(store)
    if plan is None or not plan.folder:
        return
    log, folder = names.log_path(store), store / names.ASIDE / plan.folder
    lock = lock_log(store)
    try:
        with translated("cannot set a damaged log aside", store):
            make_directory(store / names.ASIDE)
            make_directory(folder)
            move_if_there(log / names.MARK, folder / names.MARK)
            for file in list_segments(log):
                rename_durably(file.path, folder / file.path.name)
            set_aside(store, "its log was damaged")
        renew_page(store, committed_lsn=0, keep_folded=False)
        give_permission(store, Permission(is_anew=True))
        remove_durably(store / names.LOG_FAULT)
        publish_small(store / names.REBUILD, MAGIC, VERSION, msgspec.structs.replace(plan, folder=""))
    finally:
        lock.close()
    logger.warning("a damaged log was set aside: why=%s kept=%s", plan.why, folder)


def check_not_emptied(store: Path) -> None:
    """Refuse to show a store of which nothing is there yet. Raises StaleReadError."""
    if (store / names.REBUILD).exists() and not list_segments(names.log_path(store)):
        raise StaleReadError(
            "the damaged log of this node was set aside, and the primary has not made it anew yet",
            path=store,
            hint="Wait, or use another node; `perdure status` tells how far it is.",
        )


def keep_floor(store: Path, why: str, epoch: int, lsn: int, now_ms: int) -> None:
    """The log is about to be replaced by one that ends earlier: it has to reach this end again."""
    publish_small(store / names.REBUILD, MAGIC, VERSION, Rebuild(why, "", epoch, lsn, now_ms))


class Rebuilding:
    """The receiver's look at it: sets the floor, and sees that it is reached."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._found = read_rebuild(store)

    @property
    def is_under_way(self) -> bool:
        return self._found is not None

    def meet(self, epoch: int, lsn: int) -> None:
        """A primary of this epoch was accepted, and its log ends there."""
        found = self._found
        if found is None or found.lsn:
            return
        if lsn:
            found = msgspec.structs.replace(found, epoch=epoch, lsn=lsn)
            publish_small(self._store / names.REBUILD, MAGIC, VERSION, found)
            self._found = found

    def look(self, epoch: int, lsn: int) -> None:
        """This node's log ends there, on disk."""
        found = self._found
        if found is not None and found.lsn and (epoch, lsn) >= (found.epoch, found.lsn):
            remove_durably(self._store / names.REBUILD)
            self._found = None
            logger.warning("the log is whole again: lsn=%d", lsn)
