"""Where one session's last change is: its LSN, the nodes that have it on disk, how it stands.

Owns the search for the change, newest segment first, and the word for it. Other nodes are asked through
their servers; of one that cannot be asked the primary's slot tells what it last acknowledged.
"""

from __future__ import annotations

import os
import time
from typing import Final, TypeAlias

import msgspec

from ..shipping.messages_ops import LocateAsk, LocateReply
from ..store.cursor import SegmentFile
from ..store.errors import InvalidIdError, PerdureError, UsageError
from ..store.event import KEY_BYTES_MAX, Kind, Reason, decode_events
from ..store.ids import Position
from .held import find_held
from .reach import NOBODY, Reach
from .report import NodeReport, report_node
from .scan import SegmentScan
from .source import Source, open_source
from .sync_state import Holder, SessionSync, session_sync

PIECE_BYTES: Final = 4 << 20
POLL_S: Final = 0.02
_REMOVALS: Final = frozenset({Kind.DELETE, Kind.EXPIRE})
Store: TypeAlias = "str | os.PathLike[str]"


class LastChange(msgspec.Struct, frozen=True):
    """The newest event of a session that the log holds."""

    lsn: int
    position: Position
    """The end of its frame: who has this has the change."""
    kind: str
    """created, updated, touched, deleted, ...: why the event came to be."""
    time_ms: int
    is_removed: bool


class SessionHolder(msgspec.Struct, frozen=True):
    """One node and a session's last change."""

    node: str
    is_held: bool | None
    """On its disk; None: not known."""
    is_applied: bool | None
    """In its state."""
    said_by: str
    """The node itself, or the primary whose slot tells it."""
    why: str = ""


class Located(msgspec.Struct, frozen=True):
    """Where a session's last change is."""

    id: str
    change: LastChange | None
    """None: the log does not hold one. Then there never was one, or it is older than the log."""
    oldest_lsn: int
    """First LSN that the log holds: a change that is not found stands before it, if anywhere."""
    sync_state: SessionSync | None
    """None if there is no change to speak of."""
    is_committed: bool
    primary: str
    holders: list[SessionHolder]

    @property
    def replicas_holding(self) -> int:
        """How many nodes besides the primary have it on disk."""
        return sum(1 for holder in self.holders if holder.is_held and holder.node != self.primary)


def locate(store: Store, id: str, reach: Reach = NOBODY) -> Located:
    """Find a session's last change in this node's log, and who has it.

    `id` is the id as it stands in the log: where ids are hidden, what `stored_as` says. Raises
    InvalidIdError, StoreMissingError, FormatError, StorageError.
    """
    key = key_of(id)
    source = open_source(store)
    own = report_node(store, is_brief=True)
    files = source.segments()
    change = find_last_change(source, key)
    oldest = files[0].first_lsn if files else 0
    if change is None:
        return Located(id, None, oldest, None, False, own.primary, [])
    holders = [_own_holder(store, own, change.position), *_ask(source, own, reach, change.position)]
    is_committed = change.position.lsn <= min(own.committed_lsn, own.appended_lsn)
    return Located(
        id=id,
        change=change,
        oldest_lsn=oldest,
        sync_state=_word(own, change, holders, is_committed),
        is_committed=is_committed,
        primary=own.primary,
        holders=holders,
    )


def wait_synced(store: Store, id: str, replicas: int, timeout_ms: int, reach: Reach = NOBODY) -> bool:
    """Wait until so many replicas have a session's last change (of now) on disk; False when the time is up.

    True as well for a change that is older than the log, once so many have the log from there on. Raises as
    locate, and UsageError for less than one replica.
    """
    if replicas < 1:
        raise UsageError(f"at least one replica is to have it, not {replicas}")
    deadline = time.monotonic() + timeout_ms / 1000
    source = open_source(store)
    change = find_last_change(source, key_of(id))
    files = source.segments()
    lsn = change.lsn if change else (files[0].first_lsn - 1 if files else 0)
    while True:
        own = report_node(store, is_brief=True)
        if own.is_primary and replicas <= own.sync_replicas and own.committed_lsn >= lsn:
            return True
        if own.is_primary:
            held = sum(1 for replica in own.replicas if replica.holds(lsn))
        else:
            at = change.position if change else Position(0, 0, 0)
            asked = _ask(source, own, reach, at)
            held = sum(1 for found in asked if found.is_held and found.node != own.primary) + 1
        if held >= replicas:
            return True
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(POLL_S, left_s))


def find_last_change(source: Source, key: bytes) -> LastChange | None:
    """The newest event of a key that the log holds, None if there is none.

    Newest segment first; those without the key's bytes in them are passed over. Raises StorageError,
    FormatError.
    """
    for file in reversed(source.segments()):
        if _may_hold(file, key):
            found = _last_in(file, key)
            if found is not None:
                return found
    return None


def _may_hold(file: SegmentFile, key: bytes) -> bool:
    """Do a key's bytes stand in a segment at all? Frames are stored as they are."""
    rest = b""
    with file.path.open("rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            if key in rest + piece:
                return True
            rest = piece[-(len(key) - 1) :] if len(key) > 1 else b""
    return False


def _last_in(file: SegmentFile, key: bytes) -> LastChange | None:
    found: LastChange | None = None
    with SegmentScan(file.path) as scan:
        for _, frame, payload in scan.frames():
            if key not in payload:
                continue
            events = decode_events(payload, frame.event_count)
            for number, (kind, reason, _operation_id, changed, value) in enumerate(events):
                is_new_name = kind == Kind.RENAME and value == key
                if kind < Kind.EPOCH_START and (changed == key or is_new_name):
                    is_removed = kind in _REMOVALS or (kind == Kind.RENAME and not is_new_name)
                    found = LastChange(
                        lsn=frame.first_lsn + number,
                        position=frame.position,
                        kind=Reason(reason).name.lower(),
                        time_ms=frame.time_ms,
                        is_removed=is_removed,
                    )
    return found


def key_of(id: str) -> bytes:
    """The key of an id in the log. Raises InvalidIdError."""
    try:
        key = id.encode()
    except UnicodeEncodeError as error:
        raise InvalidIdError("a session id is valid Unicode") from error
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise InvalidIdError(f"a session id has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}")
    return key


def _own_holder(store: Store, own: NodeReport, position: Position) -> SessionHolder:
    held = find_held(store, position)
    is_applied = held.is_applied if own.folded_lsn is not None else None
    return SessionHolder(own.node, held.is_held, is_applied, own.node, held.why)


def _ask(source: Source, own: NodeReport, reach: Reach, position: Position) -> list[SessionHolder]:
    """Each other node's word, or what the primary's slot says of it."""
    cluster_id = source.identity.cluster_id

    def ask(node: str) -> LocateReply:
        with reach.server(node, cluster_id) as server:
            return server.ask(LocateAsk(position), LocateReply, timeout_ms=reach.timeout_ms)[0]

    answers = reach.ask_all(ask)
    found: list[SessionHolder] = []
    for node in sorted({*answers, *own.expected} - {own.node, *own.witnesses}):
        answer = answers.get(node)
        replica = own.replica(node)
        if isinstance(answer, LocateReply):
            found.append(SessionHolder(node, answer.is_held, answer.is_applied, node, answer.why))
        elif replica is not None and own.is_primary:
            why = str(answer) if isinstance(answer, PerdureError) else ""
            is_held, is_applied = replica.acked_lsn >= position.lsn, replica.applied_lsn >= position.lsn
            found.append(SessionHolder(node, is_held, is_applied, own.node, why or replica.error))
        else:
            why = str(answer) if isinstance(answer, PerdureError) else "its address is not known"
            found.append(SessionHolder(node, None, None, "", why))
    return found


def _word(
    own: NodeReport, change: LastChange, holders: list[SessionHolder], is_committed: bool
) -> SessionSync:
    others = [
        Holder(
            found.node,
            found.said_by == found.node or _is_connected(own, found.node),
            bool(found.is_held),
        )
        for found in holders
        if found.node != own.primary
    ]
    heard = {found.node for found in holders if found.said_by == found.node}
    return session_sync(
        others,
        has_primary=own.primary in heard,
        is_flushed=any(found.is_held for found in holders if found.node == own.primary),
        is_committed=is_committed,
        is_removed=change.is_removed,
    )


def _is_connected(own: NodeReport, node: str) -> bool:
    replica = own.replica(node)
    return replica is not None and replica.is_connected
