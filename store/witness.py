"""A witness: what a voter that keeps promises only has on disk, and the pure rules for changing it.

Owns the file `witness` in the directory of a witness: which cluster it belongs to, the promise in force, and
which nodes hold every acknowledged write, as the primary of that promise recorded it. One file, replaced as a
whole (write, fsync, rename, fsync of the directory) before anything is answered: after a crash both are as
they were told.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from . import names
from .errors import ForeignError, PromiseRefusedError, StoreMissingError, UsageError
from .files import translated
from .identity import CLUSTER_ID_BYTES
from .promise import NO_PROMISE, Promise, decide_promise, decide_reign
from .smallfile import publish_small, read_small_file

MAGIC = b"PDRWITN1"
VERSION = 1
_OURS = (names.CONFIG_FILE, names.WITNESS + names.TEMPORARY_SUFFIX, "lost+found")
"""What may stand in the directory that becomes a witness's: the second, if making it was broken off."""


class InSync(msgspec.Struct, frozen=True):
    """Which nodes hold every acknowledged write. Records are numbered: none is taken twice, or late."""

    epoch: int = 0
    number: int = 0
    nodes: tuple[str, ...] = ()
    """Empty if nothing was ever recorded: then k replicas hold each write, as the log says."""


NOTHING_RECORDED = InSync()


class WitnessState(msgspec.Struct, frozen=True):
    """All that a witness knows."""

    cluster_id: bytes
    node: str
    created_ms: int
    promise: Promise = NO_PROMISE
    in_sync: InSync = NOTHING_RECORDED


def promised(state: WitnessState, asked: Promise) -> WitnessState:
    """The state after the promise was given. Raises PromiseRefusedError, naming the one in force. Pure."""
    if not decide_promise(state.promise, asked):
        raise _refused(state, asked)
    held = state.promise
    is_same = (held.epoch, held.candidate) == (asked.epoch, asked.candidate)
    return state if is_same else msgspec.structs.replace(state, promise=asked)


def recorded(state: WitnessState, asked: Promise, expected: InSync, nodes: tuple[str, ...]) -> WitnessState:
    """The state after the primary of epoch `asked` recorded `nodes`, if `expected` is what is held. Pure.

    A primary of a higher epoch than was promised is promised it first, and so is one that began the epoch
    that was promised to a candidate which did not win it (see decide_reign). What another record came before
    changes nothing but that: the answer is the state, by which the primary sees it. Without `nodes` it asks
    what is held, which then gets a new number: a record that is still on its way from before comes too late.
    Raises PromiseRefusedError for a primary whose epoch is over.
    """
    if not decide_reign(state.promise, asked, ""):
        raise _refused(state, asked)
    begun = msgspec.structs.replace(asked, has_begun=True)
    state = msgspec.structs.replace(state, promise=begun)
    held = state.in_sync
    if not nodes:
        return msgspec.structs.replace(state, in_sync=InSync(held.epoch, held.number + 1, held.nodes))
    if (held.epoch, held.number) != (expected.epoch, expected.number):
        return state
    return msgspec.structs.replace(state, in_sync=InSync(asked.epoch, held.number + 1, nodes))


def make_witness(path: Path, node: str, cluster_id: bytes, now_ms: int) -> WitnessState:
    """Make the directory of a witness.

    Raises UsageError for a bad name or id, and if there is a witness already (made anew it would
    have forgotten its promises), ForeignError if something else is in the directory.
    """
    if not names.is_node_name(node):
        raise UsageError(f"{node!r} is no node name: 1 to 32 of a-z, 0-9, '.', '-', '_'")
    if len(cluster_id) != CLUSTER_ID_BYTES:
        raise UsageError(f"a cluster id has {CLUSTER_ID_BYTES} bytes")
    with translated("cannot make a witness", path):
        path.mkdir(parents=True, exist_ok=True)
        strange = [name for name in os.listdir(path) if name not in _OURS]
    if names.WITNESS in strange:
        raise UsageError(
            "there is a witness already",
            path=path,
            hint="`perdure witness DIR` runs it. To make another one, give a directory that is empty or does "
            "not exist yet.",
        )
    if strange:
        raise ForeignError(f"the directory holds other files ({strange[0]!r}, ...)", path=path)
    state = WitnessState(cluster_id, node, now_ms)
    write_witness(path, state)
    return state


def read_witness(path: Path) -> WitnessState:
    """What a witness knows. Raises StoreMissingError if there is none, FormatError if the file is damaged."""
    state = read_small_file(path / names.WITNESS, MAGIC, VERSION, WitnessState)
    if state is None:
        raise StoreMissingError(
            "there is no witness here",
            path=path,
            hint="`perdure init DIR --node NODE --witness-of ID` makes one.",
        )
    return state


def write_witness(path: Path, state: WitnessState) -> None:
    """Make a state durable. Raises StorageError."""
    publish_small(path / names.WITNESS, MAGIC, VERSION, state)


def _refused(state: WitnessState, asked: Promise) -> PromiseRefusedError:
    held = state.promise
    return PromiseRefusedError(
        f"epoch {asked.epoch} cannot be promised to {asked.candidate}: "
        f"epoch {held.epoch} is promised to {held.candidate}",
        node=state.node,
        hint="Try again with a higher epoch, after a look at who is primary.",
    )
