"""A failover that a person asks for: which node takes over, and that it is told to.

Owns the choice. The node that is chosen stands by itself; what it may not become, promises refuse.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..shipping.messages import StatusReply
from ..shipping.messages_health import StandAsk
from ..store.errors import NoQuorumError, PerdureError, UsageError, WireError
from ..store.identity import read_identity
from .health import order_to_stand
from .reach import Reach, node_names
from .report import report_node


class FailoverReport(msgspec.Struct, frozen=True):
    """What a failover did."""

    node: str
    """The primary from now on."""
    epoch: int
    before: str
    """The primary that was given up, as far as it is known."""
    was_primary: bool
    """`node` was primary already, and nothing was done."""


def fail_over(
    store: str | os.PathLike[str],
    reach: Reach,
    *,
    own_address: tuple[str, int],
    from_node: str | None = None,
    to_node: str | None = None,
    accept_data_loss: bool = False,
) -> FailoverReport:
    """Let `to_node` take over, or take `from_node` out: then the furthest other voter takes over. Without
    either the primary is taken out. Callable on any node; `own_address` is where this one listens.

    Raises UsageError for nodes that cannot be meant, NoQuorumError if nobody can take over, and what the
    promotion of the node that was chosen raised.
    """
    identity = read_identity(Path(store))
    if to_node and to_node in report_node(store, is_brief=True).witnesses:
        raise UsageError(
            f"{to_node} is a witness: it keeps promises, and no log", hint="Name a node that keeps the log."
        )
    if from_node and to_node:
        raise UsageError("--from and --to cannot both be given", hint="--to alone says who takes over.")
    everybody = msgspec.structs.replace(reach, peers={**reach.peers, identity.node: own_address})
    _check_known({*everybody.peers, *node_names(store)}, from_node, to_node)
    answers = everybody.ask_all(lambda node: _status(everybody, node, identity.cluster_id))
    states = {node: answer for node, answer in answers.items() if isinstance(answer, StatusReply)}
    primary = _primary(states)
    chosen = to_node or _best(states, answers, from_node or primary)
    address = everybody.peers.get(chosen)
    if address is None:
        raise UsageError(
            f"the address of {chosen} is not known", node=chosen, hint="Give --peer NODE=HOST:PORT."
        )
    if from_node and primary and from_node != primary:
        raise UsageError(f"{from_node} is not primary, {primary} is", node=from_node)
    reason = f"a person takes {from_node or primary or 'the primary'} out" if not to_node else "a person asks"
    reply = order_to_stand(
        chosen, address, identity.cluster_id, reach, StandAsk(reason, accept_data_loss=accept_data_loss)
    )
    return FailoverReport(chosen, reply.epoch, primary, reply.was_primary)


def _check_known(known: set[str], *named: str | None) -> None:
    """Refuse a node that nothing tells of. A replica that has received nothing yet may know nobody."""
    for node in named:
        if node and node not in known and len(known) > 1:
            raise UsageError(f"there is no node {node}: {', '.join(sorted(known))}", node=node)


def _status(reach: Reach, node: str, cluster_id: bytes) -> StatusReply:
    with reach.connect(node, cluster_id) as client:
        reply = client.status()
    if reply.node != node:
        raise WireError(f"node {reply.node} answers at the address of {node}", node=node)
    return reply


def _primary(states: Mapping[str, StatusReply]) -> str:
    """The primary of the newest epoch among those that say that they are one; empty if none does."""
    reigning = [state for state in states.values() if state.role == "primary"]
    best = max(reigning, key=lambda state: state.end[0], default=None)
    return best.node if best else ""


def _best(
    states: Mapping[str, StatusReply], answers: Mapping[str, StatusReply | PerdureError], out: str
) -> str:
    """The furthest voter that answers, is fit, and is not to be taken out."""
    newest = max(states.values(), key=lambda state: state.end[:2], default=None)
    voters = newest.voters if newest else ()
    fit = [
        state
        for node, state in states.items()
        if node != out and node in voters and not state.fault and state.end[1]
    ]
    if fit:
        return max(fit, key=lambda state: (state.end[:2], state.node)).node
    why = "; ".join(f"{node}: {answer}" for node, answer in answers.items() if node not in states)
    raise NoQuorumError(
        f"nobody can take over{f' ({why})' if why else ''}",
        node=out or None,
        hint="Bring back a voter other than the one that is taken out.",
    )
