"""The state of each node, for a status: by the word of this node's monitor, else by what the nodes say.

Owns which of the two is believed: a monitor hears all nodes ten times a second, and knows of elections; a
status that was asked for once is enough where no monitor runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ..shipping.messages import StatusReply
from ..shipping.ports import read_ports
from ..store.errors import PerdureError
from .health import ask_health
from .node_state import NodeFacts, NodeState, state_of
from .reach import Reach
from .report import NodeReport

HEARD_MS_MAX: Final = 2_000
"""A primary that a replica has not heard for so long is not heard."""


def node_states(
    store: Path, own: NodeReport, heard: Iterable[StatusReply], reach: Reach, monitor_host: str
) -> dict[str, str]:
    """The state of each node that is known, by name."""
    replies = list(heard)
    end_lsn = max((reply.end[1] for reply in replies if reply.role == "primary"), default=own.flushed_lsn)
    found = {reply.node: _by_status(reply, end_lsn).value for reply in replies}
    found[own.node] = _by_report(own, end_lsn, has_primary=any(r.role == "primary" for r in replies)).value
    if read_ports(store).monitor:
        try:
            health = ask_health(store, monitor_host, reach)
        except PerdureError:
            return found  # its monitor does not run at the moment
        found.update({row.node: row.state for row in health.nodes if row.state})
    return found


def _by_status(reply: StatusReply, end_lsn: int) -> NodeState:
    hears = reply.role == "primary" or 0 <= reply.primary_heard_ms <= HEARD_MS_MAX
    return _word(
        reply.role == "primary", reply.fault, hears, max(0, end_lsn - reply.end[1]), not reply.end[1]
    )


def _by_report(own: NodeReport, end_lsn: int, *, has_primary: bool) -> NodeState:
    hears = own.is_primary or has_primary
    return _word(own.is_primary, own.fault, hears, max(0, end_lsn - own.flushed_lsn), not own.appended_lsn)


def _word(is_primary: bool, fault: str, hears: bool, lag_events: int, is_empty: bool) -> NodeState:
    return state_of(
        NodeFacts(
            is_primary=is_primary,
            fault=fault,
            is_suspicious=False,
            is_standing=False,
            hears=hears,
            lag_events=lag_events,
            is_empty=is_empty,
        )
    )
