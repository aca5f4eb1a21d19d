"""Frames as they arrive: checked against the end of the log, and cut into what one segment holds.

Pure. A frame is taken only if it follows by LSN and by chain, belongs to this cluster and shard, and
is of no lower epoch than the log; a new epoch begins only with a control frame.
"""

from __future__ import annotations

import msgspec

from ..store.control import Config as VoterConfig
from ..store.control import EpochStart, config_of, epoch_start_of, starts_segment
from ..store.cursor import Run
from ..store.errors import CorruptError, WireError
from ..store.frame import HEADER_BYTES, Frame, decode_frame
from ..store.ids import StatePosition


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
    frames: list[tuple[int, Frame]] = []
    offset, lsn, chain, epoch = 0, at.lsn, at.chain, at.epoch
    size = len(raw)
    opening = False
    while offset < size:
        verdict, frame = decode_frame(raw, offset, key)
        if frame is None:
            raise WireError(f"what was received is no frame of this cluster ({verdict.value})", lsn=lsn + 1)
        opens = starts_segment(raw[offset + HEADER_BYTES : offset + HEADER_BYTES + 1])
        if frame.first_lsn != lsn + 1 or frame.previous_chain != chain:
            raise WireError("a frame does not follow the one before it", lsn=lsn + 1)
        if (
            frame.shard != shard
            or not epoch <= frame.epoch <= epoch_max
            or (frame.epoch != epoch and not opens)
        ):
            raise WireError(f"a frame of epoch {frame.epoch}, shard {frame.shard} out of place", lsn=lsn + 1)
        if opens and frames:
            pieces.append(_piece(raw, frames, opening))
            frames = []
        if not frames:
            opening = opens
        frames.append((offset, frame))
        offset += frame.size_bytes
        lsn, chain, epoch = frame.last_lsn, frame.chain, frame.epoch
    if frames:
        pieces.append(_piece(raw, frames, opening))
    return pieces


def _piece(raw: bytes, frames: list[tuple[int, Frame]], opens: bool) -> Piece:
    run = Run(raw, frames)
    if not opens:
        return Piece(run, False, None, None)
    try:
        events = run.events(*frames[0])
        return Piece(run, True, epoch_start_of(events), config_of(events))
    except CorruptError as error:
        raise WireError(
            f"a control frame does not decode: {error.message}", lsn=frames[0][1].first_lsn
        ) from error
