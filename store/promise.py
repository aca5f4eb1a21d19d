"""Promises: which candidate this node accepts frames from, per epoch. Given once, kept for ever.

Owns the file `promise` and the pure rules for giving one. A promise is durable before it is answered
(write, fsync, rename, fsync of the directory): a node that crashes after its answer still keeps it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from . import names
from .errors import PromiseRefusedError
from .ids import EPOCH_JUMP_MAX, EPOCH_MAX
from .smallfile import publish_small, read_small_file

MAGIC = b"PDRPROM1"
VERSION = 1


class Promise(msgspec.Struct, frozen=True):
    """Frames of `epoch` are accepted from `candidate` only, and of no lower epoch from anyone."""

    epoch: int
    candidate: str
    alone: bool = False
    """The candidate made itself the only voter (two nodes, the other one gone)."""
    has_begun: bool = False
    """It was given to the primary that the candidate had become already, not to a candidate."""


NO_PROMISE = Promise(0, "")


def decide_promise(held: Promise, asked: Promise) -> bool:
    """May `asked` be given, where `held` is? Pure.

    One candidate per epoch, no way back: yes for a higher epoch, and again for the very same one. A leap
    by more than EPOCH_JUMP_MAX is no election, but a peer gone mad; who knows no epoch yet believes any.
    """
    if asked.epoch > held.epoch:
        return asked.epoch <= EPOCH_MAX and not leaps(held.epoch, asked.epoch)
    return asked.epoch == held.epoch and asked.candidate == held.candidate


def decide_reign(held: Promise, reign: Promise, primary: str) -> bool:
    """May frames of `reign` be taken from its primary, where `held` is promised? Pure.

    `primary` is who began the newest epoch of the own log, if that is the one of `held`, else empty. As
    decide_promise; and a node that promised the epoch to a candidate which did not win it (itself, perhaps)
    follows who did, as in Raft: it would otherwise be lost to the cluster until the next epoch. The winner
    had a majority, so that no other candidate can begin the epoch any more; but one that needs no majority
    can. Nor is anybody followed but who began the epoch in the own log.
    """
    if reign.epoch != held.epoch or reign.candidate == held.candidate:
        return decide_promise(held, reign)
    return not (held.has_begun or held.alone or reign.alone or primary not in ("", reign.candidate))


def leaps(known_epoch: int, epoch: int) -> bool:
    """Is an epoch further ahead of the one that a node knows than any election could have brought it?"""
    return known_epoch > 0 and epoch > known_epoch + EPOCH_JUMP_MAX


def read_promise(store: Path) -> Promise:
    """The promise in force; NO_PROMISE if none was ever given. FormatError if the file is damaged."""
    return read_small_file(store / names.PROMISE, MAGIC, VERSION, Promise) or NO_PROMISE


def give_promise(store: Path, asked: Promise) -> Promise:
    """Make a promise durable. The caller holds the write lock.

    Raises PromiseRefusedError, which names the promise in force.
    """
    held = read_promise(store)
    if not decide_promise(held, asked):
        raise _refusal(store, held, asked)
    if held != asked:
        publish_small(store / names.PROMISE, MAGIC, VERSION, asked)
    return asked


def give_reign(store: Path, reign: Promise, primary: str) -> Promise:
    """Promise an epoch to the primary that began it, durably; nothing happens if it has the promise.

    The caller holds the write lock. Raises PromiseRefusedError; see decide_reign.
    """
    held = read_promise(store)
    if not decide_reign(held, reign, primary):
        raise _refusal(store, held, reign)
    if (held.epoch, held.candidate) == (reign.epoch, reign.candidate):
        return held
    given = msgspec.structs.replace(reign, has_begun=True)
    publish_small(store / names.PROMISE, MAGIC, VERSION, given)
    return given


def _refusal(store: Path, held: Promise, asked: Promise) -> PromiseRefusedError:
    if asked.epoch > held.epoch:
        return PromiseRefusedError(
            f"epoch {asked.epoch} is more than {EPOCH_JUMP_MAX} ahead of {held.epoch}, the newest known",
            path=store / names.PROMISE,
            hint="See which node speaks of it: its promise is damaged, or it is none of this cluster's. "
            "A node that was away for so many elections is made anew.",
        )
    return PromiseRefusedError(
        f"epoch {asked.epoch} cannot be promised to {asked.candidate}: "
        f"epoch {held.epoch} is promised to {held.candidate}",
        path=store / names.PROMISE,
        hint="Try again with a higher epoch, after a look at who is primary.",
    )
