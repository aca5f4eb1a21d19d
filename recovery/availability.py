"""Going on without replicas, and back (policy `available`): which step comes next. Pure.

Owns the order, which is what safety rests on. With k = sync_replicas >= 1, on the primary:

    going on alone   1. every witness has recorded, durably, that only the primary is in sync
                     2. CONFIG with k = 0 (`degraded_from` keeps the k to go back to): from here on the
                        primary's own disk is enough
    going back       1. CONFIG with that k, once as many replicas follow closely: each write needs them again
                     2. everything up to that CONFIG is committed by them
                     3. every witness has recorded that all replicas are in sync

Whenever a write may have been acknowledged by the primary alone, every witness names it as the only one in
sync; a candidate without it is refused by the count (promises). Broken off anywhere, the next look at log and
witnesses leads to the next step: nothing but these two is remembered. What a witness is not known to hold, in
this epoch and by its own answer, is asked first.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

import msgspec

from ..store.control import AVAILABLE, Config
from ..store.witness import InSync

ALONE_AFTER_MS: Final = 2_000
"""So long fewer than k replicas follow before the primary goes on alone, unless it is told."""
BACK_AFTER_MS: Final = 500
"""So long enough of them follow before it waits for them again."""


class Act(Enum):
    """What to do next."""

    NOTHING = "nothing"
    ASK = "ask"
    """Ask a witness what it holds; it promises the epoch to the primary by that."""
    RECORD = "record"
    """Have a witness record `nodes` in place of what it holds."""
    GO_ALONE = "go-alone"
    """Append the CONFIG with k = 0."""
    GO_BACK = "go-back"
    """Append the CONFIG with the k from before."""


class Step(msgspec.Struct, frozen=True):
    """One step. `witness`, `nodes` and `expected` are for ASK and RECORD."""

    act: Act
    witness: str = ""
    nodes: tuple[str, ...] = ()
    expected: InSync = InSync()


NOTHING = Step(Act.NOTHING)


class Scene(msgspec.Struct, frozen=True):
    """What the primary sees."""

    primary: str
    config: Config
    """The newest in its log."""
    is_config_committed: bool
    """No candidate counts by the CONFIG before any more."""
    is_caught_up: bool
    """All that was written before k was in force, in this epoch, is committed by k replicas."""
    following: int
    """Replicas that vote and follow closely."""
    since_ms: int
    """For so long it has been enough of them, or too few."""
    held: Mapping[str, InSync]
    """What each witness said that it holds, in this epoch; one that has not said so is not in it."""
    alone_after_ms: int = ALONE_AFTER_MS


def next_step(scene: Scene) -> Step:
    """What to do now."""
    config = scene.config
    k = config.electors.sync_replicas
    if not config.witnesses or k == 0:
        return NOTHING
    if config.degraded_from:
        return _while_alone(scene, scene.following >= k)
    if scene.following < k:
        return _when_short(scene)
    return _when_well(scene)


def is_recorded(scene: Scene, witness: str, nodes: tuple[str, ...]) -> bool:
    """Has this witness said, in this epoch, that it holds just these nodes?"""
    held = scene.held.get(witness)
    return held is not None and set(held.nodes) == set(nodes)


def _when_short(scene: Scene) -> Step:
    """Too few replicas follow. First the witnesses, then the log."""
    if scene.config.policy != AVAILABLE or scene.since_ms < scene.alone_after_ms:
        return NOTHING
    if not scene.is_config_committed:
        return NOTHING
    return _record(scene, (scene.primary,)) or Step(Act.GO_ALONE)


def _while_alone(scene: Scene, is_enough: bool) -> Step:
    """k = 0 is in force. What witnesses hold is made sure of again by a primary that was started anew."""
    step = _record(scene, (scene.primary,))
    if step is not None:
        return step
    return Step(Act.GO_BACK) if is_enough and scene.since_ms >= BACK_AFTER_MS else NOTHING


def _when_well(scene: Scene) -> Step:
    """Enough replicas follow, and k is in force."""
    missing = _unknown(scene)
    if missing:
        return Step(Act.ASK, missing)
    if not scene.is_caught_up or not any(held.nodes for held in scene.held.values()):
        return NOTHING
    return _record(scene, scene.config.data_voters) or NOTHING


def _record(scene: Scene, nodes: tuple[str, ...]) -> Step | None:
    """The next step until every witness holds `nodes`; None once all do."""
    for witness in scene.config.witnesses:
        if is_recorded(scene, witness, nodes):
            continue
        held = scene.held.get(witness)
        return Step(Act.ASK, witness) if held is None else Step(Act.RECORD, witness, nodes, held)
    return None


def _unknown(scene: Scene) -> str:
    return next((name for name in scene.config.witnesses if name not in scene.held), "")


def config_after(config: Config, step: Step, at_lsn: int) -> Config:
    """The CONFIG that GO_ALONE or GO_BACK appends behind `at_lsn`.

    Those before it do not count any more: going on alone, the witnesses hold who is in sync; going back,
    the primary alone was enough before.
    """
    if step.act is Act.GO_ALONE:
        k, degraded_from = 0, config.sync_replicas
    else:
        k, degraded_from = config.degraded_from, 0
    return msgspec.structs.replace(
        config, sync_replicas=k, degraded_from=degraded_from, before=None, changed_lsn=at_lsn + 1
    )
