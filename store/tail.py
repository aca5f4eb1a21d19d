"""The tail verdict: is the first failing frame of a log torn or corrupt?

A pure decision, no input or output. Torn means that nothing durable ever covered the frame, so that
it may be set aside and cut; corrupt means that something did, so that the store must not go on as if
it had never been. The first row that fits decides:

    | durable witness covers b     | same boot | valid frame behind | state at or beyond b | bytes at b | verdict |
    |------------------------------|-----------|--------------------|----------------------|------------|---------|
    | mark, flushed word, peer ack | any       | any                | any                  | any        | corrupt |
    | none                         | yes       | yes                | any                  | any        | corrupt |
    | none                         | yes       | no                 | yes                  | any        | corrupt |
    | none                         | yes       | no                 | no                   | yes        | torn    |
    | none                         | yes       | no                 | no                   | no         | clean   |
    | none                         | no        | any                | any                  | yes        | torn    |
    | none                         | no        | any                | any                  | no         | clean   |

b is the LSN at which the failing frame would begin. What the control page says counts as the state does:
a frame is named there only once its last byte was written. After another boot a valid frame behind b proves
nothing: un-synced pages reach the disk in any order. One node alone cannot tell rot in its last sync
unit from a tear after a power loss.
"""  # noqa: E501 - the table is easier to read in one piece

from __future__ import annotations

from enum import Enum

import msgspec


class TailVerdict(Enum):
    CLEAN = "clean"
    TORN = "torn"
    CORRUPT = "corrupt"


class Witnesses(msgspec.Struct, frozen=True):
    """What is known about the bytes at and behind the first failing frame."""

    failing_lsn: int
    """LSN at which the failing frame would begin: one more than the last good one."""
    has_bytes: bool
    """False if the log simply ends there."""
    mark_lsn: int = 0
    """LSN of the mark, 0 if there is none."""
    flushed_lsn_max: int = 0
    """Highest `flushed` in valid frames behind the failing one, on the node that wrote it; else 0."""
    acked_lsn_max: int = 0
    """Highest LSN that a peer holds on disk by this history; 0 if unknown."""
    same_boot: bool = False
    """The boot that wrote the tail is still running."""
    follower_lsn: int = 0
    """LSN of a valid frame behind the failing one, above it and of no lower epoch; 0 if there is none."""
    state_lsn: int = 0
    """LSN that the state holds, 0 if there is none."""
    page_lsn: int = 0
    """LSN that the control page of the running boot says was appended, 0 if it says nothing."""


class Judgement(msgspec.Struct, frozen=True):
    """A verdict and the witness that decided it."""

    verdict: TailVerdict
    because: str


def judge_tail(seen: Witnesses) -> Judgement:
    """Decide what the end of a log is. See the module's table."""
    failing = seen.failing_lsn
    if seen.mark_lsn >= failing:
        return Judgement(TailVerdict.CORRUPT, f"the mark says that LSN {seen.mark_lsn} was on disk")
    if seen.acked_lsn_max >= failing:
        return Judgement(TailVerdict.CORRUPT, f"a peer holds LSN {seen.acked_lsn_max}")
    if seen.flushed_lsn_max >= failing:
        return Judgement(
            TailVerdict.CORRUPT, f"a later frame says that LSN {seen.flushed_lsn_max} was on disk"
        )
    if seen.same_boot and seen.follower_lsn > failing:
        return Judgement(
            TailVerdict.CORRUPT, f"the valid frame of LSN {seen.follower_lsn} follows in the same boot"
        )
    if seen.same_boot and seen.page_lsn >= failing:
        return Judgement(TailVerdict.CORRUPT, f"the control page says that LSN {seen.page_lsn} was written")
    if seen.same_boot and seen.state_lsn >= failing:
        return Judgement(TailVerdict.CORRUPT, f"the state holds LSN {seen.state_lsn}")
    if not seen.has_bytes:
        return Judgement(TailVerdict.CLEAN, "the log ends with a whole frame")
    if not seen.same_boot:
        return Judgement(TailVerdict.TORN, "nothing durable covers it, and the machine was restarted since")
    return Judgement(TailVerdict.TORN, "nothing durable covers it, and nothing follows")
