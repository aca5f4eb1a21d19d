"""The sender: which frames go to one replica next. No sockets: messages out, acknowledgements in.

Owns what is under way to a replica and its credits. A replica that follows closely is served from the
window, one that is behind from a cursor of its own over the log. An acknowledgement counts only if it
names the end of something that was sent, by its chain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ..store.cursor import LogCursor, list_segments
from ..store.errors import CorruptError, PositionGoneError, WireError
from ..store.ids import Position
from .messages import Frames, pack_payload
from .window import Window

CREDIT_BYTES = 8 << 20
"""Log bytes that may be sent and not acknowledged; one larger message goes alone."""
CATCH_UP_BYTES = 1 << 20
COMPRESS_BYTES_MIN = 4096
_new = tuple.__new__


class UnderWay(NamedTuple):
    """The end of a message that was sent, its size in bytes, and the time of its last frame."""

    end: Position
    size_bytes: int
    time_ms: int


class Search:
    """Looks for a position in the log, in bounded steps, so that nobody else waits for it."""

    def __init__(self, cursor: LogCursor, wanted: Position) -> None:
        """Raises as LogCursor.approach; the cursor is closed then."""
        self.cursor = cursor
        self.wanted = wanted
        try:
            cursor.approach(wanted.lsn)
        except BaseException:
            cursor.close()
            raise

    def step(self) -> bool | None:
        """Read on a little. True: it is there, and the cursor behind it; False: it is not; None: go on.

        Raises as LogCursor.read, CorruptError where the log does not reach it, and PositionGoneError if that
        was dropped meanwhile.
        """
        cursor, wanted = self.cursor, self.wanted
        if cursor.at.lsn < wanted.lsn:
            if cursor.read(wanted.lsn, CATCH_UP_BYTES) is not None:
                return None
            if cursor.at.lsn < wanted.lsn and cursor.read(limit_bytes=CATCH_UP_BYTES) is None:
                raise _ended_early(cursor, wanted.lsn)  # not a frame that goes on beyond it
        return cursor.at.lsn == wanted.lsn and (not wanted.lsn or cursor.at.position == wanted)


def find(cursor: LogCursor, wanted: Position) -> bool:
    """As a Search to its end; True leaves the cursor behind `wanted`."""
    search = Search(cursor, wanted)
    while (found := search.step()) is None:
        continue
    return found


class Sender:
    """The stream of frames to one replica.

    `cursor` stands behind `after`; the sender closes it.
    """

    def __init__(
        self,
        window: Window,
        make_cursor: Callable[[], LogCursor],
        after: Position,
        cursor: LogCursor | None = None,
        *,
        compress: bool = True,
    ) -> None:
        self.acked = after
        """The replica has this on disk."""
        self.sent = after
        self.window = window
        self._make_cursor = make_cursor
        self._compress = compress
        self._under_way: deque[UnderWay] = deque()
        self.under_way_bytes = 0
        self.number = window.number_after(after)
        """Of the run in the window that is sent next; None while the log itself is sent."""
        self._cursor = cursor
        self._segment = -1
        self._is_sealed = False

    @property
    def is_close(self) -> bool:
        """Is it served from the window?"""
        return self.number is not None

    @property
    def has_sent_all(self) -> bool:
        """Was everything in the window sent?"""
        return self.number == self.window.next

    @property
    def oldest_unacked_ms(self) -> int:
        """Time (ms) of the oldest message under way, 0 if there is none."""
        return self._under_way[0].time_ms if self._under_way else 0

    def next_message(self, committed_lsn: int) -> tuple[Frames, bytes] | None:
        """The next message to send; None if all is sent, or the credits are used up.

        Raises as LogCursor.read, and PositionGoneError if the log is no longer there.
        """
        if self.under_way_bytes >= CREDIT_BYTES:
            return None
        found = self._from_window() if self.number is not None else self._from_log()
        if found is None:
            return None
        raw, end, time_ms, compress = found
        size_bytes = len(raw)
        self.sent = end
        self._under_way.append(_new(UnderWay, (end, size_bytes, time_ms)))
        self.under_way_bytes += size_bytes
        if not compress or size_bytes < COMPRESS_BYTES_MIN:
            return Frames(size_bytes, False, committed_lsn), raw
        payload, compressed = pack_payload(raw, True)
        return Frames(size_bytes, compressed, committed_lsn), payload

    def take_ack(self, position: Position) -> bool:
        """The replica says it has this on disk; answers whether that is new.

        Raises WireError if nothing that was sent ends there.
        """
        if position == self.acked:
            return False
        under_way = self._under_way
        while under_way:
            done = under_way.popleft()
            self.under_way_bytes -= done.size_bytes
            if done.end == position:
                self.acked = position
                return True
            if done.end.lsn >= position.lsn:
                break
        raise WireError(f"the replica acknowledges {position}, which was not sent to it", lsn=position.lsn)

    def close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    def _from_window(self) -> tuple[bytes, Position, int, bool] | None:
        number = self.number
        if number is None or number < self.window.first:
            self.number = None
            return self._from_log()
        run = self.window.get(number)
        if run is None:
            return None
        self.number = number + 1
        return run.raw, run.end, run.time_ms, False

    def _from_log(self) -> tuple[bytes, Position, int, bool] | None:
        window = self.window
        number = window.number_after(self.sent)
        if number is not None:
            self.number = number
            self.close()
            return self._from_window()
        cursor = self._cursor
        if cursor is None:
            cursor = self._cursor = self._make_cursor()
            cursor.seek(self.sent.lsn)
            if self.sent.lsn and cursor.at.position != self.sent:
                raise CorruptError(
                    f"the log has {cursor.at.position} where {self.sent} was sent from",
                    path=cursor.path,
                    lsn=self.sent.lsn,
                )
        upto = window.start_lsn if self.sent.lsn < window.start_lsn else window.end.lsn
        run = cursor.read(upto, CATCH_UP_BYTES)
        if run is None:
            if self.sent.lsn < upto:
                raise _ended_early(cursor, upto)
            return None
        if cursor.header is not None and cursor.header.first_lsn != self._segment:
            self._segment = cursor.header.first_lsn
            self._is_sealed = cursor.footer() is not None
        last = run.frames[-1][1]
        return run.raw, last.position, last.time_ms, self._compress and self._is_sealed


def _ended_early(cursor: LogCursor, lsn: int) -> CorruptError | PositionGoneError:
    """Why a log that goes up to LSN `lsn` cannot be read up to there."""
    at = cursor.at
    files = list_segments(cursor.log)
    if not files or files[0].first_lsn > at.lsn + 1:
        return PositionGoneError(
            f"the log behind {at.position} was dropped while it was read", lsn=at.lsn + 1
        )
    return CorruptError(
        f"the log ends at LSN {at.lsn}, and was on disk up to {lsn}",
        path=cursor.path,
        offset=cursor.offset,
        lsn=at.lsn + 1,
        hint="`perdure verify` says how much is affected; a replica or an archive has it intact.",
    )
