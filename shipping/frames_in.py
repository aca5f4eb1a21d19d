"""Frames as they arrive: checked against the end of the log, and cut into what one segment holds.

Pure. A frame is taken only if it follows by LSN and by chain, belongs to this cluster and shard, and
is of no lower epoch than the log; a new epoch begins only with a control frame.
"""

from __future__ import annotations

import msgspec

from ..store.control import Config as VoterConfig
from ..store.control import EpochStart, config_of, epoch_start_of, starts_segment
from ..store.cursor import EVERYTHING, Run
from ..store.errors import CorruptError, WireError
from ..store.frame import HEADER_BYTES, Frame, decode_frame, frame_checked, scan_frames
from ..store.ids import StatePosition
from .wire_types import TIME_MS_LIMIT


class Piece(msgspec.Struct, frozen=True):
    """Consecutive frames of one segment. `opens` if its first frame begins a segment."""

    run: Run
    opens: bool
    epoch_start: EpochStart | None
    config: VoterConfig | None

    @property
    def first(self) -> Frame:
        return self.run.frames[0][1]

    @property
    def end(self) -> StatePosition:
        return self.run.frames[-1][1].state_position


def split_frames(raw: bytes, at: StatePosition, *, key: int, shard: int, epoch_max: int) -> list[Piece]:
    """The pieces that `raw` is, as a whole. `at` is where the log ends, `key` the cluster key.

    Raises WireError, naming the LSN, for anything that does not follow.
    """
    pieces: list[Piece] = []
    offset, size = 0, len(raw)
    while offset < size:
        verdict, first = decode_frame(raw, offset, key)
        if first is None:
            raise WireError(
                f"what was received is no frame of this cluster ({verdict.value})", lsn=at.lsn + 1
            )
        opens = starts_segment(raw[offset + HEADER_BYTES : offset + HEADER_BYTES + 1])
        if first.first_lsn != at[1] + 1 or first.previous_chain != at[2]:
            raise WireError("a frame does not follow the one before it", lsn=at.lsn + 1)
        if not at[0] <= first.epoch <= epoch_max or (first.epoch != at[0] and not opens):
            raise WireError(f"a frame of epoch {first.epoch} out of place", lsn=at.lsn + 1)
        if first.size_bytes == size - offset and first.shard == shard:  # as most are: one alone
            run = Run(raw, [(offset, _in_time(first))])
            pieces.append(_opening(run) if opens else Piece(run, False, None, None))
            break
        scan = scan_frames(
            raw,
            offset,
            key=key,
            shard=shard,
            epoch=first.epoch,
            lsn=at.lsn,
            chain=at.chain,
            upto_lsn=EVERYTHING,
            stop_at_control=True,
        )
        if scan.last < 0:
            raise WireError(f"a frame of shard {first.shard} out of place", lsn=at.lsn + 1)
        last = _in_time(frame_checked(raw, scan.last))
        frames = [(offset, first)] if scan.last == offset else [(offset, first), (scan.last, last)]
        run = Run(raw, frames)
        pieces.append(_opening(run) if opens else Piece(run, False, None, None))
        at, offset = last.state_position, scan.end
    return pieces


def _in_time(frame: Frame) -> Frame:
    if frame.time_ms >= TIME_MS_LIMIT:
        raise WireError(f"a frame of the time {frame.time_ms} ms", lsn=frame.first_lsn)
    return frame


def _opening(run: Run) -> Piece:
    frames = run.frames
    try:
        events = run.events(*frames[0])
        return Piece(run, True, epoch_start_of(events), config_of(events))
    except CorruptError as error:
        raise WireError(
            f"a control frame does not decode: {error.message}", lsn=frames[0][1].first_lsn
        ) from error
