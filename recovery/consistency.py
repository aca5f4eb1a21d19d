"""Checking and reconciling the nodes of a cluster, from one of them.

Owns which nodes are asked, and what is written down of a repair. The comparison is reconcile's, and the
mending of a state mend's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import msgspec

from ..store.errors import PerdureError
from ..store.identity import read_identity
from ..store.ids import NOWHERE
from .audit import AuditLine, append_audit, now_text
from .node_sessions import NodeSessions, OwnSessions, PeerSessions
from .reach import Reach
from .reconcile import Comparison, NodeVerdict, OnProgress, compare
from .report import report_node

Store: TypeAlias = "str | os.PathLike[str]"


def check_consistency(store: Store, reach: Reach, *, on_progress: OnProgress | None = None) -> Comparison:
    """Do this node and its peers hold the same sessions at one position of the log, as the log says?

    Reads every session of every node; nothing is changed. A peer that cannot be asked has a verdict of None.
    Raises BusyError if nodes could not be brought to one position, and as open_store.
    """
    return _compare(store, reach, repairs=False, on_progress=on_progress)


def reconcile(
    store: Store, reach: Reach, *, repairs: bool = False, on_progress: OnProgress | None = None
) -> Comparison:
    """As check_consistency; with `repairs`, nodes that are wrong get records from one that is right.

    Each mended record leaves a line in the audit file of the node that was mended; afterwards all are
    compared again, and that comparison is the answer, with what was found at first. On no node the log
    is changed: what is mended is a state, which is a fold of it.
    """
    found = _compare(store, reach, repairs=repairs, on_progress=on_progress)
    if repairs and any(verdict.mended for verdict in found.nodes):
        append_audit(Path(store), [_line(found, verdict) for verdict in found.nodes if verdict.mended])
    return found


def _compare(store: Store, reach: Reach, *, repairs: bool, on_progress: OnProgress | None) -> Comparison:
    path = Path(store)
    identity = read_identity(path)
    own = OwnSessions(path, identity.node)
    nodes: list[NodeSessions] = [own]
    unasked: list[NodeVerdict] = []
    for node, server in reach.ask_all(lambda node: reach.server(node, identity.cluster_id)).items():
        if isinstance(server, PerdureError):
            unasked.append(NodeVerdict(node=node, is_right=None, problem=str(server)))
        else:
            nodes.append(PeerSessions(server, node))
    known = report_node(path, is_brief=True)
    nodes.sort(key=lambda node: (node.node != known.primary, node is not own, node.node))
    found = compare(nodes, repairs=repairs, on_progress=on_progress)
    missing = [name for name in known.expected if name not in {*reach.peers, identity.node}]
    unasked += [
        NodeVerdict(node=name, is_right=None, problem="its address is not known: give --peer NODE=HOST:PORT")
        for name in missing
    ]
    return msgspec.structs.replace(found, nodes=found.nodes + unasked)


def _line(found: Comparison, verdict: NodeVerdict) -> AuditLine:
    counts = ", ".join(f"{count} {what}" for what, count in sorted(verdict.counts.items()))
    after = "now as the log says" if verdict.is_right else verdict.problem or "still not as the log says"
    return AuditLine(
        time=now_text(),
        node=verdict.node,
        action="ended",
        what=f"{verdict.mended} records mended ({counts}); {after}",
        lsn=found.at.lsn if found.at != NOWHERE else 0,
        source=found.reference,
    )
