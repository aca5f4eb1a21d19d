"""Node states: six words for how a node is, and which may follow which. Pure.

Owns the words, the table of legal transitions, and the rule that says which word fits. A node tells its
state in heartbeats, in its status and to the init system.

    initializing   it has just begun, and has not seen yet what it is
    active         it is the primary, or follows one closely
    syncing        it follows, and lacks log that the primary has
    failover       there is no primary that it knows, or it is becoming one
    recovering     its own log or state is being put right, and it must not become primary
    terminating    it ends
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import Final

import msgspec

from ..store.errors import PerdureError


class NodeState(Enum):
    INITIALIZING = "initializing"
    ACTIVE = "active"
    SYNCING = "syncing"
    FAILOVER = "failover"
    RECOVERING = "recovering"
    TERMINATING = "terminating"


_LIVING: Final = frozenset(
    {NodeState.ACTIVE, NodeState.SYNCING, NodeState.FAILOVER, NodeState.RECOVERING, NodeState.TERMINATING}
)
TRANSITIONS: Final = MappingProxyType(
    {
        NodeState.INITIALIZING: _LIVING,
        NodeState.ACTIVE: _LIVING - {NodeState.ACTIVE},
        NodeState.SYNCING: _LIVING - {NodeState.SYNCING},
        NodeState.FAILOVER: _LIVING - {NodeState.FAILOVER},
        # What is put right is behind, or waits for a primary: it never serves from one moment to the next.
        NodeState.RECOVERING: _LIVING - {NodeState.RECOVERING, NodeState.ACTIVE},
        NodeState.TERMINATING: frozenset[NodeState](),
    }
)
"""What may follow each state."""


class NodeFacts(msgspec.Struct, frozen=True):
    """What the state depends on."""

    is_primary: bool
    fault: str
    """Why its log or state is not fit, empty if it is."""
    is_suspicious: bool
    """No primary is heard, and that is more than a late heartbeat."""
    is_standing: bool
    hears: bool
    """A primary is heard."""
    lag_events: int
    """What the primary said that it has on disk, less what this node has."""
    is_empty: bool = False
    """It has no log at all, and so does not vote yet."""


class IllegalTransitionError(PerdureError):
    """A node's state cannot change like that: a fault in the node's own program."""


def state_of(facts: NodeFacts, lag_events_max: int = 1_000) -> NodeState:
    """The word that fits."""
    if facts.is_standing:
        return NodeState.FAILOVER
    if facts.fault:
        return NodeState.RECOVERING
    if facts.is_primary:
        return NodeState.ACTIVE
    if facts.is_suspicious or not facts.hears:
        return NodeState.FAILOVER
    is_behind = facts.is_empty or facts.lag_events > lag_events_max
    return NodeState.SYNCING if is_behind else NodeState.ACTIVE


class NodeStates:
    """The state of one node over time: starts as initializing, and changes along the table only."""

    def __init__(self) -> None:
        self.state = NodeState.INITIALIZING

    def become(self, state: NodeState) -> bool:
        """Change it; says whether it changed. Raises IllegalTransitionError."""
        if state is self.state:
            return False
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransitionError(f"a node that is {self.state.value} cannot become {state.value}")
        self.state = state
        return True

    def follow(self, facts: NodeFacts) -> bool:
        """Change it as the facts say, by way of syncing where the table asks for that."""
        wanted = state_of(facts)
        if wanted is self.state:
            return False
        if wanted not in TRANSITIONS[self.state]:
            wanted = NodeState.SYNCING
        return self.become(wanted)
