"""Control events: what EPOCH_START and CONFIG say. Owns the bytes of their values, and what a CONFIG may be.

Every segment begins with a frame whose last event is a CONFIG, so that the newest voter set is found
at the start of the tail segment; a new epoch's first frame is EPOCH_START, CONFIG.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from .errors import DECODE_ERRORS, CorruptError
from .event import NO_OPERATION, Event, Kind, Reason, encode_event
from .option import name_problem, nodes_problem

VOTERS_MAX: Final = 32
"""A promotion asks so many at most."""
STRICT: Final = "strict"
AVAILABLE: Final = "available"
POLICIES: Final = (STRICT, AVAILABLE)
_CONTROL_KINDS: Final = (int(Kind.EPOCH_START), int(Kind.CONFIG))


class EpochStart(msgspec.Struct, frozen=True, omit_defaults=True):
    """A reign begins."""

    node: str
    reason: str = ""
    at_risk_from: int = 0
    """First LSN of the history before that may be lost, as whoever promoted the node accepted; 0: none."""
    at_risk_to: int = 0
    """Highest LSN of it that any node was known to have."""


class Electors(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose promises and acknowledgements count, and how many acknowledge a frame."""

    voters: tuple[str, ...] = ()
    sync_replicas: int = 0
    witnesses: tuple[str, ...] = ()

    @property
    def data_voters(self) -> tuple[str, ...]:
        """Voters that keep the log."""
        return tuple(voter for voter in self.voters if voter not in self.witnesses)


class Config(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who votes, where they are, and how many replicas must hold a frame before it is committed."""

    voters: tuple[str, ...] = ()
    """Names of all nodes that vote, the primary and the witnesses included; empty for a store on its own."""
    sync_replicas: int = 0
    """k: how many replicas (voters that keep the log, besides the primary) must have a frame on disk before
    it is committed."""
    members: dict[str, str] = {}
    """HOST:PORT of the receiver of every node, also of those that do not vote; empty where each node's own
    configuration says it."""
    witnesses: tuple[str, ...] = ()
    """Voters that keep promises only; they acknowledge nothing."""
    is_auto: bool = False
    """k follows the number of voters, as auto_sync_replicas says."""
    policy: str = STRICT
    """What a primary does that is left by its replicas: strict refuses writes, available goes on alone once
    that is recorded at the witnesses."""
    degraded_from: int = 0
    """The k to go back to, while the primary goes on with sync_replicas = 0; 0 while it does not."""
    before: Electors | None = None
    """Those of the CONFIG before, which count as well until this one is committed."""
    changed_lsn: int = 0
    """LSN at which this CONFIG came into force; segments after it repeat it."""

    @property
    def data_voters(self) -> tuple[str, ...]:
        """Voters that keep the log."""
        return tuple(voter for voter in self.voters if voter not in self.witnesses)

    @property
    def electors(self) -> Electors:
        """Whose promises count: with the k that acknowledged what was not written alone."""
        return Electors(self.voters, self.degraded_from or self.sync_replicas, self.witnesses)

    def is_committed(self, committed_lsn: int) -> bool:
        """Does the CONFIG before no longer count, where it is known that `committed_lsn` is committed?"""
        return self.before is None or committed_lsn >= self.changed_lsn


ALONE = Config()


def auto_sync_replicas(voters: Sequence[str], witnesses: Sequence[str] = ()) -> int:
    """k of a cluster that leaves it to its size: frames are then on a majority of its nodes.

    Witnesses count as nodes; more than the replicas that keep the log it cannot be.
    """
    nodes, data = len(set(voters)), len(set(voters) - set(witnesses))
    return max(0, min(nodes // 2, data - 1))


def config_problem(config: Config, node: str) -> str:
    """What speaks against a CONFIG of the primary `node`, empty if nothing does. Pure."""
    voters, replicas = config.voters, max(0, len(config.data_voters) - 1)
    named = (*voters, *config.witnesses, *config.members)
    k = config.sync_replicas
    problems = (
        ("a voter is named twice", len(set(voters)) < len(voters)),
        (f"{len(voters)} voters; at most {VOTERS_MAX} are asked", len(voters) > VOTERS_MAX),
        (f"{node} is not among the voters {', '.join(voters)}", bool(voters) and node not in voters),
        ("a witness is not among the voters", not set(config.witnesses) <= set(voters)),
        (f"{node} is primary, and cannot be a witness", node in config.witnesses),
        (
            f"sync_replicas = {k} needs as many voters besides {node}, there are {replicas}",
            not 0 <= k <= replicas,
        ),
        (f"{config.policy!r} is no policy: {' or '.join(POLICIES)}", config.policy not in POLICIES),
    )
    found = [text for text, is_so in problems if is_so]
    found += filter(None, (*map(name_problem, named), nodes_problem(config.members)))
    return found[0] if found else ""


def control_payload(epoch_start: EpochStart | None, config: Config) -> tuple[bytes, int]:
    """(payload, event count) of a segment's first frame."""
    payload = encode_event(Kind.CONFIG, Reason.CONTROL, NO_OPERATION, b"", msgspec.msgpack.encode(config))
    if epoch_start is None:
        return payload, 1
    start = msgspec.msgpack.encode(epoch_start)
    return encode_event(Kind.EPOCH_START, Reason.CONTROL, NO_OPERATION, b"", start) + payload, 2


def config_of(events: list[Event]) -> Config | None:
    """The last CONFIG among events, None if there is none. CorruptError if it does not decode."""
    for kind, _reason, _operation_id, _key, value in reversed(events):
        if kind == Kind.CONFIG:
            try:
                return msgspec.msgpack.decode(value, type=Config)
            except DECODE_ERRORS as error:
                raise CorruptError("a CONFIG event does not decode") from error
    return None


def epoch_start_of(events: list[Event]) -> EpochStart | None:
    """The EPOCH_START among events, None if there is none. CorruptError if it does not decode."""
    for kind, _reason, _operation_id, _key, value in events:
        if kind == Kind.EPOCH_START:
            try:
                return msgspec.msgpack.decode(value, type=EpochStart)
            except DECODE_ERRORS as error:
                raise CorruptError("an EPOCH_START event does not decode") from error
    return None


def starts_segment(events_head: bytes) -> bool:
    """Does a payload begin with a control event, so that its frame opens a segment?"""
    return bool(events_head) and events_head[0] in _CONTROL_KINDS
