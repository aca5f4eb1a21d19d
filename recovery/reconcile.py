"""Consistency between nodes: the same sessions at the same position of the log, and mending where not.

Owns the comparison and its verdict. Every node takes an image of its state; the furthest of their positions
is the common one, and each image is taken on to it. The log itself says which digest and count the sessions
have there, so a node whose sums are others is wrong, whoever agrees with it. What differs is found by
buckets, then key by key, both in key order, so that memory is bounded whatever the number of sessions.

A state is a fold of the log: what is mended must come out as the log says. A node that does not, although
every key was put right, has more wrong with it than records; its state has to be made anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from ..store.errors import BusyError, PerdureError
from ..store.ids import StatePosition
from .mend import KEYS_MAX
from .node_sessions import NodeSessions
from .state_pass import Buckets

NAMED_MAX: Final = 100
"""So many differing sessions of each node are named; the rest are counted."""
TRIES: Final = 5
ALIGN_S: Final = 10.0
"""How long a node's log may take to reach the position of another one's state."""
POLL_S: Final = 0.02
HOLD_S: Final = 15.0
"""So often the images of nodes that wait for their turn are asked for, which keeps them."""
MEND_KEYS: Final = 250
assert MEND_KEYS <= KEYS_MAX

OnProgress: TypeAlias = Callable[[str, int, int], object]
"""Called with what is done (a node's name is in it), how much of it, and how much there is."""


class Difference(msgspec.Struct, frozen=True):
    """A session that one node has not as it should be."""

    key: str
    what: str
    """missing, extra or different."""


class NodeVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison says of one node."""

    node: str
    is_right: bool | None
    """None: it could not be compared."""
    sessions: int = 0
    digest: str = ""
    buckets: int = 0
    """That do not come out as on the node that it was compared with key by key."""
    counts: Mapping[str, int] = {}
    """Differences of each kind."""
    differences: list[Difference] = []
    """The first NAMED_MAX."""
    mended: int = 0
    problem: str = ""
    """Why it could not be compared, or what is to be done."""

    @property
    def differing(self) -> int:
        return sum(self.counts.values())


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Several nodes at one position."""

    at: StatePosition
    """The common position, with the digest and count that the log says."""
    reference: str
    """A node that is right; empty if none is."""
    nodes: list[NodeVerdict]
    elapsed_ms: int

    @property
    def is_consistent(self) -> bool:
        """Were all compared, and are all right?"""
        return all(verdict.is_right for verdict in self.nodes)


def compare(
    nodes: Sequence[NodeSessions],
    *,
    repairs: bool = False,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Compare nodes; with `repairs`, mend those that are wrong from one that is right, and compare again.

    The first of `nodes` that is right is the one that others are compared with. Errors of single nodes are in
    their verdicts. Raises BusyError if the images could not be brought to one position, or none was given.
    """
    started = time.monotonic()
    tell = on_progress or _silent
    found = _Round(nodes, tell).run(repairs=repairs)
    if repairs and any(verdict.mended for verdict in found.nodes):
        mended = {verdict.node: verdict for verdict in found.nodes}
        again = _Round(nodes, tell).run(repairs=False)
        verdicts = [_after_mending(mended[verdict.node], verdict) for verdict in again.nodes]
        found = msgspec.structs.replace(again, nodes=verdicts)
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return msgspec.structs.replace(found, elapsed_ms=elapsed_ms)


def _after_mending(first: NodeVerdict, again: NodeVerdict) -> NodeVerdict:
    problem = again.problem
    if first.mended and not again.is_right and not problem:
        problem = (
            "records were put right, and it still does not add up; make its state anew: perdure repair DIR"
        )
    return msgspec.structs.replace(
        again,
        mended=first.mended,
        counts=first.counts,
        differences=first.differences,
        buckets=first.buckets,
        problem=problem,
    )


def differing_keys(right: NodeSessions, other: NodeSessions, keys: list[bytes]) -> list[bytes]:
    """Which of these sessions are not the same on two nodes, at one position. Raises as compare."""
    round = _Round([right, other], _silent)
    try:
        round.align()
        pairs = zip(keys, right.records(keys), other.records(keys), strict=True)
        return [key for key, ours, theirs in pairs if ours != theirs]
    finally:
        right.close()
        other.close()


class _Round:
    """One comparison."""

    def __init__(self, nodes: Sequence[NodeSessions], tell: OnProgress) -> None:
        self._nodes = list(nodes)
        self._tell = tell
        self._problems: dict[str, str] = {}
        self._is_busy = False
        """A node could not be brought to the position, and may be in another try."""
        self._held_s = time.monotonic()
        self._at: StatePosition
        self._buckets: dict[str, Buckets] = {}

    def run(self, *, repairs: bool) -> Comparison:
        try:
            self._at = self.align()
            self._add_up()
            right = [node for node in self._aligned() if self._is_right(node)]
            reference = right[0] if right else None
            verdicts = [self._judge(node, reference, repairs=repairs) for node in self._nodes]
        finally:
            for node in self._nodes:
                node.close()
        return Comparison(
            at=self._at, reference=reference.node if reference else "", nodes=verdicts, elapsed_ms=0
        )

    # -- one position ----------------------------------------------------------------------------

    def _aligned(self) -> list[NodeSessions]:
        return [node for node in self._nodes if node.node not in self._problems]

    def align(self) -> StatePosition:
        """Bring all images to one position; those of nodes that cannot get there are left out."""
        problem: PerdureError | None = None
        for _ in range(TRIES):
            self._problems.clear()
            stands = self._take()
            if not stands:
                break
            target = max(stands.values(), key=lambda at: (at.epoch, at.lsn))
            said = self._bring_to(target)
            if said is not None and not self._is_busy:
                return said
            problem = BusyError(
                "the nodes could not be brought to one position: "
                + "; ".join(f"{node}: {text}" for node, text in self._problems.items())
            )
            time.sleep(POLL_S)
        raise problem or BusyError(
            "no node gave an image of its sessions: "
            + "; ".join(f"{node}: {text}" for node, text in self._problems.items())
        )

    def _take(self) -> dict[str, StatePosition]:
        stands: dict[str, StatePosition] = {}
        for node in self._nodes:
            try:
                stands[node.node] = node.take()
            except PerdureError as error:
                self._problems[node.node] = str(error)
        return stands

    def _bring_to(self, target: StatePosition) -> StatePosition | None:
        """Take each image on; answers what the logs say of the position."""
        said: StatePosition | None = None
        self._is_busy = False
        deadline = time.monotonic() + ALIGN_S
        for node in self._aligned():
            try:
                at = node.align(target)
                while at is None and time.monotonic() < deadline:
                    time.sleep(POLL_S)
                    at = node.align(target)
            except BusyError as error:
                self._is_busy = True
                self._problems[node.node] = str(error)
            except PerdureError as error:
                self._problems[node.node] = str(error)
            else:
                if at is None:
                    self._problems[node.node] = (
                        f"its log does not reach LSN {target.lsn}, where another node's sessions stand"
                    )
                elif said is None or (at.digest, at.session_count) != (0, 0):
                    said = at
        return said

    # -- sums ------------------------------------------------------------------------------------

    def _add_up(self) -> None:
        for node in self._aligned():
            try:
                self._buckets[node.node] = node.add_up(self._told(f"read {node.node}", node))
            except PerdureError as error:
                self._problems[node.node] = str(error)

    def _told(self, phase: str, reading: NodeSessions) -> Callable[[int], object]:
        """Called while a node is read; the others wait, and their images are kept."""

        def tell(done: int) -> None:
            self._hold(reading)
            if phase:
                self._tell(phase, done, max(done, self._at.session_count))

        return tell

    def _hold(self, reading: NodeSessions) -> None:
        if time.monotonic() - self._held_s < HOLD_S:
            return
        for node in self._aligned():
            if node is not reading:
                node.hold()
        self._held_s = time.monotonic()

    def _is_right(self, node: NodeSessions) -> bool:
        sums = self._buckets[node.node]
        return (sums.digest, sums.session_count) == (self._at.digest, self._at.session_count)

    # -- one node against one that is right ------------------------------------------------------

    def _judge(self, node: NodeSessions, reference: NodeSessions | None, *, repairs: bool) -> NodeVerdict:
        if node.node in self._problems:
            return NodeVerdict(node=node.node, is_right=None, problem=self._problems[node.node])
        sums = self._buckets[node.node]
        verdict = NodeVerdict(
            node=node.node,
            is_right=self._is_right(node),
            sessions=sums.session_count,
            digest=f"{sums.digest:016x}",
        )
        if verdict.is_right:
            return verdict
        if reference is None:
            text = "no node that was asked has what the log says; make its state anew: perdure repair DIR"
            return msgspec.structs.replace(verdict, problem=text)
        return self._differences(verdict, node, reference, repairs=repairs)

    def _differences(
        self, verdict: NodeVerdict, node: NodeSessions, reference: NodeSessions, *, repairs: bool
    ) -> NodeVerdict:
        buckets = self._buckets[node.node].differing(self._buckets[reference.node])
        counts: dict[str, int] = {}
        named: list[Difference] = []
        keys: list[bytes] = []
        mended, problem = 0, ""
        try:
            ours = reference.names(buckets, self._told("", reference))
            theirs = node.names(buckets, self._told(f"compare {node.node}", node))
            for key, what in differences(ours, theirs):
                counts[what] = counts.get(what, 0) + 1
                if len(named) < NAMED_MAX:
                    named.append(Difference(key.decode("utf-8", "backslashreplace"), what))
                if repairs:
                    keys.append(key)
                if len(keys) >= MEND_KEYS:
                    mended += self._mend(node, reference, keys)
                    keys = []
            if keys:
                mended += self._mend(node, reference, keys)
        except PerdureError as error:
            problem = str(error)
        return msgspec.structs.replace(
            verdict,
            buckets=len(buckets),
            counts=counts,
            differences=named,
            mended=mended,
            problem=problem,
        )

    def _mend(self, node: NodeSessions, reference: NodeSessions, keys: list[bytes]) -> int:
        right = list(zip(keys, reference.records(keys), strict=True))
        deadline = time.monotonic() + ALIGN_S
        while True:
            try:
                return node.mend(self._at, right, reference.node).mended
            except BusyError:  # its state is folded up to the position by and by
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S * 5)


def differences(
    right: Iterator[tuple[bytes, int]], other: Iterator[tuple[bytes, int]]
) -> Iterator[tuple[bytes, str]]:
    """(key, missing | extra | different) of what `other` has not as `right` has it. Both in key order."""
    ours, theirs = next(right, None), next(other, None)
    while ours is not None or theirs is not None:
        if ours is not None and (theirs is None or ours[0] < theirs[0]):
            yield ours[0], "missing"
            ours = next(right, None)
        elif theirs is not None and (ours is None or theirs[0] < ours[0]):
            yield theirs[0], "extra"
            theirs = next(other, None)
        elif ours is not None and theirs is not None:
            if ours[1] != theirs[1]:
                yield ours[0], "different"
            ours, theirs = next(right, None), next(other, None)


def _silent(_phase: str, _done: int, _total: int) -> None: ...
